"""`llmfleet route-sync`: keep one file equal to one ConfigMap.

In: the command line. Out: the file, and a health page. With the apiserver away it waits quietly, and the last good
document stays. It holds the only Kubernetes credential of a router pod and can do nothing but read that ConfigMap.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

import click

from llmfleet import names
from llmfleet.kube.app import probe_page, serve
from llmfleet.kube.client import Api
from llmfleet.kube.refs import CONFIGMAP
from llmfleet.kube.transport.client import Credentials, Transport, find_credentials
from llmfleet.kube.trim import trim_metadata
from llmfleet.kube.watch.client import Cache, Reflector
from llmfleet.route.sync.client import read_if_there, write_atomically
from llmfleet.route.sync.file import next_step
from llmfleet.settings import own_namespace
from llmfleet.telemetry import set_up_logs

log = logging.getLogger(__name__)

USER_AGENT: Final = f"llmfleet-route-sync/{names.VERSION}"
RETRY_SECONDS: Final = 1.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--namespace", metavar="NS", help="Namespace of the ConfigMap. Default: this pod's.")
@click.option("--configmap", required=True, metavar="NAME", help="The ConfigMap to read.")
@click.option(
    "--output",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write; its folder must exist and be writable.",
)
@click.option("--health-port", type=click.IntRange(0, 65535), default=8082, show_default=True, help="Port of /healthz.")
@click.option("--kubeconfig", metavar="FILE", help="Kubeconfig to use instead of the pod's own account.")
def command(namespace: str | None, configmap: str, output: Path, health_port: int, kubeconfig: str | None) -> None:
    """Keep one file equal to one ConfigMap."""
    set_up_logs()
    if not output.parent.is_dir():
        raise click.BadParameter(f"{output.parent} is no folder; mount the volume there first", param_hint="--output")
    try:
        credentials = find_credentials(kubeconfig)
    except Exception as error:
        raise click.UsageError(f"cannot log in to a cluster: {error}; pass --kubeconfig FILE") from error
    sync = build_sync(credentials, namespace or own_namespace(), configmap, output)
    serve(health_port, {"/healthz": probe_page(sync.healthy)})
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, sync.on_signal)
    sync.run()


@dataclass(slots=True, kw_only=True)
class Sync:
    """One ConfigMap, one file."""

    cache: Cache
    reflector: Reflector
    namespace: str
    name: str
    output: Path
    stop: threading.Event = field(default_factory=threading.Event)
    changed: threading.Event = field(default_factory=threading.Event)
    written: bytes | None = None
    reason: str = ""
    generation: int = 0
    watching: threading.Thread | None = None

    def run(self) -> None:
        """Write whenever the ConfigMap changes, until told to stop."""
        self.written = read_if_there(self.output)
        self.cache.subscribe(lambda _before, _after: self.changed.set())
        self.watching = threading.Thread(target=self.reflector.run, args=(self.stop,), daemon=True, name="watch")
        self.watching.start()
        while not self.stop.is_set():
            self.changed.wait()
            self.changed.clear()
            if not self.stop.is_set() and not self.step():
                self.stop.wait(RETRY_SECONDS)
                self.changed.set()

    def step(self) -> bool:
        """Look once and write if there is something new; False when the file could not be written."""
        began = time.monotonic()
        step = next_step(self.cache.get(self.namespace, self.name), self.written)
        if step.data is not None:
            try:
                write_atomically(self.output, step.data)
            except OSError as error:
                self._say("the file could not be written", logging.ERROR, error=str(error))
                return False
            self.written, self.generation = step.data, step.generation
            self._say("backends written", milliseconds=round(1000 * (time.monotonic() - began), 1))
        elif step.reason != self.reason:
            self.generation = step.generation or self.generation
            self._say("backends kept", logging.INFO if step.generation else logging.WARNING, reason=step.reason)
        self.reason = step.reason
        return True

    def healthy(self) -> tuple[bool, str]:
        """Unwell only when nobody watches any more."""
        alive = self.watching is None or self.watching.is_alive()
        return (
            alive,
            f"generation {self.generation}: {self.reason or 'nothing seen yet'}" if alive else "the watch ended",
        )

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Stop, but from another thread: the one that was interrupted may hold an event's own lock."""
        threading.Thread(target=self.end, daemon=True).start()

    def end(self) -> None:
        self.stop.set()
        self.changed.set()
        self.reflector.interrupt()

    def _say(self, message: str, level: int = logging.INFO, **fields: object) -> None:
        extra = {"fields": {"file": str(self.output), "generation": self.generation, **fields}}
        log.log(level, message, extra=extra)


def build_sync(credentials: Credentials, namespace: str, configmap: str, output: Path) -> Sync:
    """Wire one sync; nothing runs yet."""
    api = Api(Transport(credentials, user_agent=USER_AGENT), manager=names.ROUTE_MANAGER, may_write=lambda: False)
    # A Role that names one ConfigMap allows list and watch of it only with this field selector.
    cache = Cache(CONFIGMAP, namespaces=(namespace,), field_selector=f"metadata.name={configmap}", trim=trim_metadata)
    reflector = Reflector(api, cache, namespace)
    return Sync(cache=cache, reflector=reflector, namespace=namespace, name=configmap, output=output)
