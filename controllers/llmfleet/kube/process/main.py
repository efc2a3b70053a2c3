"""A process with controllers: stand for the lease, run the controllers while it is ours, leave cleanly.

In: a manager with its controllers, an election or none. Out: exit code 0 after SIGTERM with the lease released, 1 when
the lease was lost. A process that lost its lease never goes on: it leaves, and the kubelet starts a clean one.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Final

import click
from prometheus_client import ProcessCollector

from llmfleet import names
from llmfleet.kube.app import metrics_page, probe_page, serve
from llmfleet.kube.client import Api
from llmfleet.kube.election.client import Election
from llmfleet.kube.refs import Kind, Ref
from llmfleet.kube.transport.client import Credentials, Transport, find_credentials
from llmfleet.kube.workqueue import Manager
from llmfleet.settings import holder_name, own_namespace
from llmfleet.telemetry import ControllerMetrics

log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 5.0
"""A lease request must not outlast the time there is for two tries before the deadline."""


def check_identity(identity: str | None) -> str:
    """`<namespace>/<release>`, or a message that says so."""
    identity = identity or f"{own_namespace()}/llmfleet"
    namespace, _, release = identity.partition("/")
    if not namespace or not release or "/" in release:
        raise click.BadParameter(
            f"{identity!r} is not NAMESPACE/RELEASE, such as llmfleet-system/llmfleet", param_hint="--identity"
        )
    return identity


def open_credentials(kubeconfig: str | None) -> Credentials:
    """Credentials, or one line that says which file is wrong."""
    try:
        return find_credentials(kubeconfig)
    except Exception as error:
        raise click.UsageError(f"cannot log in to a cluster: {error}; pass --kubeconfig FILE") from error


@dataclass(slots=True, kw_only=True)
class Process:
    """Everything one process consists of."""

    name: str
    manager: Manager
    election: Election | None
    metrics: ControllerMetrics
    stop: threading.Event
    won: threading.Event
    exit_code: int = 0

    def run(self) -> int:
        """Lead until told to stop, or until the lease is lost; returns the exit code."""
        if self.election is None:
            self._lead()
            self.manager.run(self.stop)
            return self.exit_code
        standing = threading.Thread(
            target=self.election.run, args=(self.stop, self._lead, self._lose), daemon=True, name="lease"
        )
        standing.start()
        while not self.won.wait(0.2) and not self.stop.is_set():
            pass
        if self.won.is_set():
            self.manager.run(self.stop)
        standing.join(timeout=2 * LEASE_SECONDS)
        self.election.release()
        log.info(f"{self.name} ends", extra={"fields": {"exit_code": self.exit_code}})
        return self.exit_code

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Stop, but from another thread: the one that was interrupted may hold the event's own lock."""
        threading.Thread(target=self.stop.set, daemon=True).start()

    def healthy(self) -> tuple[bool, str]:
        """Unwell only when a restart would help; an apiserver that is away is no such case."""
        stuck = self.manager.stuck()
        return not stuck, f"stuck: {', '.join(stuck)}" if stuck else "ok"

    def ready(self) -> tuple[bool, str]:
        """Standing by, or leading with every cache filled."""
        if not self.won.is_set():
            return True, "standing by"
        waiting = self.manager.unsynced()
        return not waiting, f"waiting for the first list of {', '.join(waiting)}" if waiting else "leading"

    def _lead(self) -> None:
        self.metrics.leader.set(1)
        self.won.set()

    def _lose(self) -> None:
        self.metrics.leader.set(0)
        self.exit_code = 1
        self.stop.set()

    def serve(self, metrics_port: int, health_port: int) -> None:
        """Answer probes and Prometheus, and stop on a signal; call it from the main thread."""
        serve(metrics_port, {"/metrics": metrics_page(self.metrics.registry)})
        serve(health_port, {"/healthz": probe_page(self.healthy), "/readyz": probe_page(self.ready)})
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.on_signal)


def build_process(
    name: str,
    *,
    writer: str,
    credentials: Credentials,
    lease: Ref | None,
    workers: int,
    metrics: ControllerMetrics,
    install: Callable[[Manager, Api], None],
) -> Process:
    """Wire one process, which writes as the field manager `writer`; nothing runs yet."""
    ProcessCollector(registry=metrics.registry)
    transport = Transport(credentials, user_agent=f"{writer}/{names.VERSION}")
    election = build_election(transport, lease, writer) if lease else None
    api = Api(
        transport,
        manager=writer,
        may_write=election.is_leader if election else lambda: True,
        on_sent=count_writes(metrics),
    )
    manager = Manager(api, workers=workers, metrics=metrics)
    install(manager, api)
    return Process(
        name=name,
        manager=manager,
        election=election,
        metrics=metrics,
        stop=threading.Event(),
        won=threading.Event(),
    )


def run_process(
    process: Process, *, metrics_port: int, health_port: int, identity: str, namespaces: Sequence[str]
) -> None:
    """Say hello, run, and leave with the process's exit code."""
    process.serve(metrics_port, health_port)
    fields = {"version": names.VERSION, "identity": identity, "namespaces": list(namespaces) or "all"}
    log.info(f"{process.name} starts", extra={"fields": fields})
    sys.exit(process.run())


def build_election(transport: Transport, lease: Ref, manager: str) -> Election:
    """The lease has an API of its own: it is not fenced by itself, and it gives up early."""
    api = Api(transport, manager=manager, read_seconds=LEASE_SECONDS)
    return Election(api, lease, holder_name())


def count_writes(metrics: ControllerMetrics) -> Callable[[Kind, str, int], None]:
    return lambda kind, verb, code: metrics.writes.labels(str(kind), verb, str(code)).inc()
