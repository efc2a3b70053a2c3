"""`llmfleet operator`: build the parts once, stand for the lease, run the controllers while it is ours.

In: the command line. Out: exit code 0 after SIGTERM with the lease released, 1 when the lease was lost, 2 for wrong
input. A process that lost its lease never goes on: it leaves, and the kubelet starts a clean one.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import Final

import click
from prometheus_client import ProcessCollector

from llmfleet import names
from llmfleet.deploy import controller as deploy
from llmfleet.kube.app import metrics_page, probe_page, serve
from llmfleet.kube.client import Api
from llmfleet.kube.election.client import Election
from llmfleet.kube.refs import LEASE, Kind, Ref
from llmfleet.kube.transport.client import Credentials, Transport, find_credentials
from llmfleet.kube.workqueue import Manager
from llmfleet.route import controller as route
from llmfleet.settings import OperatorSettings, holder_name, own_namespace
from llmfleet.telemetry import OperatorMetrics, set_up_logs

log = logging.getLogger(__name__)

USER_AGENT: Final = f"llmfleet-operator/{names.VERSION}"
LEASE_SECONDS: Final = 5.0
"""A lease request must not outlast the time there is for two tries before the deadline."""
LEASE_NAME: Final = "llmfleet-operator"
WORKERS: Final = 8
"""Passes mostly wait for the apiserver; more of them at once cost threads, not CPU."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--namespace", "namespaces", multiple=True, metavar="NS", help="Namespace to watch; repeat it. Default: all."
)
@click.option(
    "--identity", metavar="NS/RELEASE", help="Whose objects these are. Default: this pod's namespace/llmfleet."
)
@click.option("--lease-namespace", metavar="NS", help="Namespace of the Lease. Default: this pod's.")
@click.option("--lease-name", default=LEASE_NAME, show_default=True, help="Name of the Lease.")
@click.option("--no-leader-election", is_flag=True, help="Lead at once; only for a single process.")
@click.option("--kubeconfig", metavar="FILE", help="Kubeconfig to use instead of the pod's own account.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=names.METRICS_PORT, show_default=True)
@click.option("--health-port", type=click.IntRange(0, 65535), default=names.HEALTH_PORT, show_default=True)
@click.option(
    "--workers", type=click.IntRange(1, 64), default=WORKERS, show_default=True, help="Passes at once, per controller."
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning"]), default="info", show_default=True)
def command(
    namespaces: tuple[str, ...],
    identity: str | None,
    lease_namespace: str | None,
    lease_name: str,
    no_leader_election: bool,
    kubeconfig: str | None,
    metrics_port: int,
    health_port: int,
    workers: int,
    log_level: str,
) -> None:
    """Build, drain and update the instances behind LLMCluster objects, and tell routers where they are."""
    set_up_logs(log_level)
    settings = OperatorSettings(identity=check_identity(identity), namespaces=tuple(dict.fromkeys(namespaces)))
    lease = Ref(kind=LEASE, namespace=lease_namespace or own_namespace(), name=lease_name)
    operator = build_operator(
        credentials=open_credentials(kubeconfig),
        settings=settings,
        lease=None if no_leader_election else lease,
        workers=workers,
    )
    serve(metrics_port, {"/metrics": metrics_page(operator.metrics.registry)})
    serve(health_port, {"/healthz": probe_page(operator.healthy), "/readyz": probe_page(operator.ready)})
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, operator.on_signal)
    fields = {"version": names.VERSION, "identity": settings.identity, "namespaces": list(namespaces) or "all"}
    log.info("operator starts", extra={"fields": fields})
    sys.exit(operator.run())


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
class Operator:
    """Everything one operator process consists of."""

    manager: Manager
    election: Election | None
    metrics: OperatorMetrics
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
        log.info("operator ends", extra={"fields": {"exit_code": self.exit_code}})
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


def build_operator(
    *, credentials: Credentials, settings: OperatorSettings, lease: Ref | None, workers: int = WORKERS
) -> Operator:
    """Wire one operator; nothing runs yet."""
    metrics = OperatorMetrics()
    ProcessCollector(registry=metrics.registry)
    transport = Transport(credentials, user_agent=USER_AGENT)
    election = build_election(transport, lease) if lease else None
    api = Api(
        transport,
        manager=names.OPERATOR_MANAGER,
        may_write=election.is_leader if election else lambda: True,
        on_sent=count_writes(metrics),
    )
    manager = Manager(api, workers=workers, metrics=metrics)
    deploy.install(manager, api, settings, utc_now, metrics)
    route.install(manager, api, settings, utc_now, metrics)
    return Operator(manager=manager, election=election, metrics=metrics, stop=threading.Event(), won=threading.Event())


def build_election(transport: Transport, lease: Ref) -> Election:
    """The lease has an API of its own: it is not fenced by itself, and it gives up early."""
    api = Api(transport, manager=names.OPERATOR_MANAGER, read_seconds=LEASE_SECONDS)
    return Election(api, lease, holder_name())


def count_writes(metrics: OperatorMetrics) -> Callable[[Kind, str, int], None]:
    return lambda kind, verb, code: metrics.writes.labels(str(kind), verb, str(code)).inc()


def utc_now() -> datetime:
    return datetime.now(UTC)
