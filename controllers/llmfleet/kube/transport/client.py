"""HTTP to one apiserver: connections, credentials and time-outs.

In: method, path, query, body. Out: bytes, or a stream of lines, or an exception of `kube.errors`; and the time, as the
apiserver's answers tell it. It never retries, except once with fresh credentials after a 401.

Credentials come from the pod's projected token, read here in a few lines, or from a kubeconfig, read by the official
client with all its ways to log in. The official client is imported only for a kubeconfig: in a pod it would cost
21 MiB and 0.3 s for reading two files.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlencode, urlsplit

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.util import Retry, Timeout

from llmfleet.kube.errors import Unavailable
from llmfleet.kube.transport.answers import error_for
from llmfleet.kube.transport.clock import corrected, parse_date
from llmfleet.settings import InCluster, read_in_cluster

log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 30.0
TOKEN_SECONDS: Final = 60.0
CONNECTIONS: Final = 64
NO_RETRY: Final = Retry.from_int(False, redirect=False)
# A peer that vanished without a word is noticed by the kernel after 15 + 3 * 5 s, also while we only wait to read.
KEEPALIVE: Final = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the apiserver is and how TLS to it is set up."""

    url: str
    tls: Mapping[str, Any] = field(default_factory=dict)


class Credentials(Protocol):
    """Who we are to the apiserver."""

    def endpoint(self) -> Endpoint: ...

    def headers(self) -> Mapping[str, str]: ...

    def reload(self) -> None:
        """Read everything again: the apiserver refused what we sent."""


class Anonymous:
    """An address and nothing else; for tests on loopback."""

    def __init__(self, url: str) -> None:
        self._endpoint = Endpoint(url=url)

    def endpoint(self) -> Endpoint:
        return self._endpoint

    def headers(self) -> Mapping[str, str]:
        return {}

    def reload(self) -> None:
        """Nothing to read."""


class PodCredentials:
    """The projected service account token, read again every minute because the kubelet rotates it."""

    def __init__(self, place: InCluster) -> None:
        self._place = place
        self._token = ""
        self._read_at = float("-inf")

    def endpoint(self) -> Endpoint:
        return Endpoint(url=self._place.url, tls={"cert_reqs": "CERT_REQUIRED", "ca_certs": str(self._place.ca)})

    def headers(self) -> Mapping[str, str]:
        if time.monotonic() - self._read_at > TOKEN_SECONDS:
            self.reload()
        return {"Authorization": f"Bearer {self._token}"}

    def reload(self) -> None:
        self._token = read_token(self._place.token, self._token)
        self._read_at = time.monotonic()


def read_token(path: Path, last: str) -> str:
    """The token, or the last good one while the file cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip() or last
    except OSError as error:
        log.warning("cannot read the service account token", extra={"fields": {"path": str(path), "error": str(error)}})
        return last


class KubeconfigCredentials:
    """A kubeconfig file, read by the official client: certificates, tokens, exec plugins, OIDC."""

    def __init__(self, path: str | None, context: str | None = None) -> None:
        self._path, self._context = path, context
        self.reload()

    def endpoint(self) -> Endpoint:
        found = self._config
        names = {
            "ca_certs": found.ssl_ca_cert,
            "cert_file": found.cert_file,
            "key_file": found.key_file,
            "server_hostname": found.tls_server_name,
        }
        tls: dict[str, Any] = {name: value for name, value in names.items() if value}
        tls["cert_reqs"] = "CERT_REQUIRED" if found.verify_ssl else "CERT_NONE"
        return Endpoint(url=str(found.host).rstrip("/"), tls=tls if found.host.startswith("https") else {})

    def headers(self) -> Mapping[str, str]:
        token = self._config.get_api_key_with_prefix("BearerToken", "authorization")
        if token is None and self._config.username:
            token = self._config.get_basic_auth_token()
        return {"Authorization": str(token)} if token else {}

    def reload(self) -> None:
        # Untyped, and imported only here: see the top of this file.
        client: Any = import_module("kubernetes.client")
        config: Any = import_module("kubernetes.config")
        self._config: Any = client.Configuration()
        config.load_kube_config(config_file=self._path, context=self._context, client_configuration=self._config)


def find_credentials(kubeconfig: str | None) -> Credentials:
    """The pod's own identity, unless a kubeconfig is named or there is no pod around us."""
    place = None if kubeconfig else read_in_cluster()
    return PodCredentials(place) if place else KubeconfigCredentials(kubeconfig)


class Clock:
    """The time by the apiserver's clock. Ours counts until its first answer, and whoever sets ours changes nothing."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> datetime:
        """What time it is there."""
        return datetime.fromtimestamp(time.monotonic() + self._offset, UTC)

    def hear(self, date: str, sent: float) -> None:
        """Take note of the Date of an answer to a request that was sent then on our steady clock."""
        said = parse_date(date)
        if said is not None:
            self._offset = corrected(self._offset, said, sent, time.monotonic())


class Streams:
    """The answers one thread is reading, so that another can end its wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: urllib3.BaseHTTPResponse | None = None
        self._ended = False

    def opened(self, response: urllib3.BaseHTTPResponse) -> None:
        """Note the answer that is being read; it ends at once when `end` came first."""
        with self._lock:
            self._open = response
            if self._ended:
                shut(response)

    def end(self) -> None:
        """Wake the reader: it sees the end of the answer, of this one and of any later one."""
        with self._lock:
            self._ended = True
            if self._open is not None:
                shut(self._open)


def shut(response: urllib3.BaseHTTPResponse) -> None:
    """Stop reading; a thread that is blocked in a read returns."""
    with contextlib.suppress(ValueError, RuntimeError, OSError):
        response.shutdown()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, to be sent once or twice."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    read_seconds: float
    """The longest silence."""
    stream: bool = False
    """The answer is read while it comes."""

    @property
    def target(self) -> str:
        return self.path + (f"?{urlencode(self.query)}" if self.query else "")

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Transport:
    """A pool of kept-alive connections to the apiserver, safe for many threads."""

    def __init__(self, credentials: Credentials, *, user_agent: str) -> None:
        self._credentials = credentials
        self._user_agent = user_agent
        self._lock = threading.Lock()
        self.clock = Clock()
        self._connect()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        read_seconds: float = READ_SECONDS,
    ) -> bytes:
        """One request, answered in full."""
        headers = {"Content-Type": content_type} if body is not None else {}
        sent = Request(
            method=method, path=path, query=query or {}, body=body, headers=headers, read_seconds=read_seconds
        )
        return self._send(sent).data

    def lines(self, path: str, query: Mapping[str, str], *, read_seconds: float, streams: Streams) -> Iterator[bytes]:
        """The lines of an endless answer. A silence longer than `read_seconds` raises Unavailable.

        Another thread can end the wait through `streams`."""
        response = self._send(Request(method="GET", path=path, query=query, read_seconds=read_seconds, stream=True))
        streams.opened(response)
        try:
            yield from split_lines(response.stream(1 << 16, decode_content=False))
        except (HTTPError, OSError) as error:
            raise Unavailable(f"GET {path}: {error}") from error
        finally:
            response.close()

    def _send(self, request: Request) -> urllib3.BaseHTTPResponse:
        response = self._once(request)
        if response.status == 401:
            response.drain_conn()
            self.reload()
            response = self._once(request)
        if not 200 <= response.status < 300:
            retry_after = response.headers.get("Retry-After", "")
            raise error_for(response.status, retry_after, read_error(response), str(request))
        return response

    def _once(self, request: Request) -> urllib3.BaseHTTPResponse:
        # The pool itself, not its manager: parsing the URL of each request anew would be a fifth of what it costs.
        pool, prefix = self._pool
        ours = {"User-Agent": self._user_agent, "Accept": "application/json", **self._credentials.headers()}
        sent = time.monotonic()
        try:
            response = pool.urlopen(
                request.method,
                prefix + request.target,
                body=request.body,
                headers={**ours, **request.headers},
                timeout=Timeout(connect=CONNECT_SECONDS, read=request.read_seconds),
                retries=NO_RETRY,
                redirect=False,
                assert_same_host=False,
                preload_content=not request.stream,
            )
        except (HTTPError, OSError) as error:
            raise Unavailable(f"{request}: {error}") from error
        self.clock.hear(response.headers.get("Date", ""), sent)
        return response

    def reload(self) -> None:
        """Read the credentials again and connect anew; also finds a rotated CA or client certificate."""
        with self._lock:
            self._credentials.reload()
            self._connect()

    def _connect(self) -> None:
        endpoint = self._credentials.endpoint()
        manager = urllib3.PoolManager(
            num_pools=1, maxsize=CONNECTIONS, block=False, socket_options=KEEPALIVE, **endpoint.tls
        )
        self._pool = manager.connection_from_url(endpoint.url), (urlsplit(endpoint.url).path).rstrip("/")


def read_error(response: urllib3.BaseHTTPResponse) -> bytes:
    """The body of an error answer; what is left of it when the connection breaks."""
    try:
        return response.data
    except (HTTPError, OSError):
        return b""


def split_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines of a byte stream, without their ends; a last line without end is incomplete and is dropped."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line)
