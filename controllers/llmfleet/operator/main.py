"""`llmfleet operator`: build the parts once, stand for the lease, run the controllers while it is ours.

In: the command line. Out: exit code 0 after SIGTERM with the lease released, 1 when the lease was lost, 2 for wrong
input. A process that lost its lease never goes on: it leaves, and the kubelet starts a clean one.
"""

from __future__ import annotations

from typing import Final

import click

from llmfleet import names
from llmfleet.deploy import controller as deploy
from llmfleet.kube.client import Api
from llmfleet.kube.process.main import (
    Process,
    build_process,
    check_identity,
    open_credentials,
    run_process,
)
from llmfleet.kube.refs import LEASE, Ref
from llmfleet.kube.transport.client import Credentials
from llmfleet.kube.workqueue import Manager
from llmfleet.route import controller as route
from llmfleet.settings import OperatorSettings, own_namespace
from llmfleet.telemetry import OperatorMetrics, set_up_logs

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
    process = build_operator(
        credentials=open_credentials(kubeconfig),
        settings=settings,
        lease=None if no_leader_election else lease,
        workers=workers,
    )
    run_process(
        process,
        metrics_port=metrics_port,
        health_port=health_port,
        identity=settings.identity,
        namespaces=settings.namespaces,
    )


def build_operator(
    *, credentials: Credentials, settings: OperatorSettings, lease: Ref | None, workers: int = WORKERS
) -> Process:
    """Wire one operator; nothing runs yet."""
    metrics = OperatorMetrics()

    def install(manager: Manager, api: Api) -> None:
        deploy.install(manager, api, settings, api.now, metrics)
        route.install(manager, api, settings, api.now, metrics)

    return build_process(
        "operator",
        writer=names.OPERATOR_MANAGER,
        credentials=credentials,
        lease=lease,
        workers=workers,
        metrics=metrics,
        install=install,
    )
