"""`llmfleet operator`: build the parts once, stand for the lease, run the controllers while it is ours.

In: the command line. Out: exit code 0 after SIGTERM with the lease released, 1 when the lease was lost, 2 for wrong
input. A process that lost its lease never goes on: it leaves, and the kubelet starts a clean one.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import Final

import click
from prometheus_client import ProcessCollector

from llmfleet import names
from llmfleet.deploy import controller as deploy
from llmfleet.kube.client import Api
from llmfleet.kube.process.main import Process, build_election, count_writes, open_credentials, utc_now
from llmfleet.kube.refs import LEASE, Ref
from llmfleet.kube.transport.client import Credentials, Transport
from llmfleet.kube.workqueue import Manager
from llmfleet.route import controller as route
from llmfleet.settings import OperatorSettings, own_namespace
from llmfleet.telemetry import OperatorMetrics, set_up_logs

log = logging.getLogger(__name__)

USER_AGENT: Final = f"llmfleet-operator/{names.VERSION}"
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
    operator.serve(metrics_port, health_port)
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


def build_operator(
    *, credentials: Credentials, settings: OperatorSettings, lease: Ref | None, workers: int = WORKERS
) -> Process:
    """Wire one operator; nothing runs yet."""
    metrics = OperatorMetrics()
    ProcessCollector(registry=metrics.registry)
    transport = Transport(credentials, user_agent=USER_AGENT)
    election = build_election(transport, lease, names.OPERATOR_MANAGER) if lease else None
    api = Api(
        transport,
        manager=names.OPERATOR_MANAGER,
        may_write=election.is_leader if election else lambda: True,
        on_sent=count_writes(metrics),
    )
    manager = Manager(api, workers=workers, metrics=metrics)
    deploy.install(manager, api, settings, utc_now, metrics)
    route.install(manager, api, settings, utc_now, metrics)
    return Process(
        name="operator",
        manager=manager,
        election=election,
        metrics=metrics,
        stop=threading.Event(),
        won=threading.Event(),
    )
