"""The few calls to the apiserver that bringing a cluster up needs.

In: a Layout whose certificates exist. Out: parsed JSON, or None where the server does not answer or knows
no such object. Waiting and retrying is the caller's.
"""

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from . import pki
from .layout import Layout
from .shell import ClusterError

TIMEOUT_SECONDS = 30.0
# The server ends a watch before this side would take its silence for a broken connection.
WATCH_SECONDS, SILENCE_SECONDS = 240, 300.0
FIELD_MANAGER = "llmfleet-cluster"


class ApiClient:
    """A user's connection to one cluster, an administrator's unless said otherwise."""

    def __init__(self, layout: Layout, user: str = "admin") -> None:
        self._server = layout.server
        self._tls = ssl.create_default_context(cafile=str(pki.certificate(layout, "ca")))
        self._tls.load_cert_chain(pki.certificate(layout, user), pki.key(layout, user))

    def problem(self) -> str | None:
        """Say why the apiserver is not ready, or return None."""
        try:
            self._call("GET", "/readyz")
        except urllib.error.HTTPError as error:
            return f"apiserver answers {error.code}"
        except OSError as error:
            return f"apiserver: {error}"
        return None

    def get(self, path: str) -> Any:
        """Read an object or a list; None when there is none or the server is away."""
        try:
            return json.loads(self._call("GET", path))
        except OSError:
            return None

    def list(self, path: str) -> Any:
        """Read a list; the caller handles whatever stands in the way."""
        return json.loads(self._call("GET", path))

    def watch(self, path: str, version: str) -> Iterator[Any]:
        """Yield what changes in a list after a version of it, until the server ends the watch."""
        query = f"?watch=true&resourceVersion={version}&timeoutSeconds={WATCH_SECONDS}"
        request = urllib.request.Request(self._server + path + query)
        with urllib.request.urlopen(request, timeout=SILENCE_SECONDS, context=self._tls) as answer:
            yield from map(json.loads, answer)

    def delete(self, path: str) -> None:
        """Delete an object; one that is already gone is fine."""
        try:
            self._call("DELETE", path)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise ClusterError(f"DELETE {path}: {error.code} {error.read().decode()[:500]}") from error
        except OSError as error:
            raise ClusterError(f"DELETE {path}: {error}") from error

    def apply(self, path: str, manifest: dict[str, Any]) -> None:
        """Create or update an object by server-side apply."""
        query = f"?fieldManager={FIELD_MANAGER}&force=true"
        try:
            self._call("PATCH", path + query, json.dumps(manifest).encode(), "application/apply-patch+yaml")
        except urllib.error.HTTPError as error:
            raise ClusterError(f"apply {path}: {error.code} {error.read().decode()[:500]}") from error
        except OSError as error:
            raise ClusterError(f"apply {path}: {error}") from error

    def _call(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        request = urllib.request.Request(self._server + path, data=body, method=method)
        request.add_header("Content-Type", kind)
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=self._tls) as answer:
            return bytes(answer.read())
