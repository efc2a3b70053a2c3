"""`llmfleet autoscaler`: build the parts once, stand for the lease, size fleets while it is ours.

In: the command line. Out: exit code 0 after SIGTERM with the lease released, 1 when the lease was lost, 2 for wrong
input.
"""

from __future__ import annotations

from typing import Final

import click

from llmfleet import names
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
from llmfleet.scale import controller as scale
from llmfleet.settings import AutoscalerSettings, own_namespace
from llmfleet.telemetry import AutoscalerMetrics, set_up_logs

LEASE_NAME: Final = "llmfleet-autoscaler"
WORKERS: Final = 24
"""A pass mostly waits for engines to answer: 200 fleets at 1 s each, every 15 s, need 14."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--namespace", "namespaces", multiple=True, metavar="NS", help="Namespace to watch; repeat it. Default: all."
)
@click.option(
    "--identity", metavar="NS/RELEASE", help="Whose autoscalers these are. Default: this pod's namespace/llmfleet."
)
@click.option(
    "--interval",
    type=click.FloatRange(1, 300),
    default=15.0,
    show_default=True,
    help="Seconds between two decisions about one fleet.",
)
@click.option("--lease-namespace", metavar="NS", help="Namespace of the Lease. Default: this pod's.")
@click.option("--lease-name", default=LEASE_NAME, show_default=True, help="Name of the Lease.")
@click.option("--no-leader-election", is_flag=True, help="Lead at once; only for a single process.")
@click.option("--kubeconfig", metavar="FILE", help="Kubeconfig to use instead of the pod's own account.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=names.METRICS_PORT, show_default=True)
@click.option("--health-port", type=click.IntRange(0, 65535), default=names.HEALTH_PORT, show_default=True)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning"]), default="info", show_default=True)
def command(
    namespaces: tuple[str, ...],
    identity: str | None,
    interval: float,
    lease_namespace: str | None,
    lease_name: str,
    no_leader_election: bool,
    kubeconfig: str | None,
    metrics_port: int,
    health_port: int,
    log_level: str,
) -> None:
    """Grow and shrink fleets by whole instances, as their LLMClusterAutoscalers ask, and say why."""
    set_up_logs(log_level)
    settings = AutoscalerSettings(
        identity=check_identity(identity),
        namespaces=tuple(dict.fromkeys(namespaces)),
        interval=interval,
    )
    lease = Ref(kind=LEASE, namespace=lease_namespace or own_namespace(), name=lease_name)
    process = build_autoscaler(
        credentials=open_credentials(kubeconfig),
        settings=settings,
        lease=None if no_leader_election else lease,
    )
    run_process(
        process,
        metrics_port=metrics_port,
        health_port=health_port,
        identity=settings.identity,
        namespaces=settings.namespaces,
    )


def build_autoscaler(
    *, credentials: Credentials, settings: AutoscalerSettings, lease: Ref | None, workers: int = WORKERS
) -> Process:
    """Wire one autoscaler; nothing runs yet."""
    metrics = AutoscalerMetrics()

    def install(manager: Manager, api: Api) -> None:
        scale.install(manager, api, settings, lambda: api.now().timestamp(), metrics)

    return build_process(
        "autoscaler",
        writer=names.AUTOSCALER_MANAGER,
        credentials=credentials,
        lease=lease,
        workers=workers,
        metrics=metrics,
        install=install,
    )
