"""`llmfleet explain`: why a fleet has its size, what would change it, what was decided lately.

In: a name, a namespace, a kubeconfig. Out: text or JSON. Exit status 1 when the cluster does not answer or has no such
autoscaler, 2 for wrong use. It only reads.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Final

import click

from llmfleet import names
from llmfleet.explain import report
from llmfleet.explain.client import context_namespace, read_all
from llmfleet.explain.core import explain
from llmfleet.kube.client import Api
from llmfleet.kube.errors import KubeError, NotFound
from llmfleet.kube.transport.client import Transport, find_credentials
from llmfleet.settings import own_namespace, read_in_cluster

MANAGER: Final = "llmfleet-explain"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", required=False, metavar="[LLMCA]")
@click.option("--namespace", "-n", metavar="NS", help="Namespace. Default: the kubeconfig's current one.")
@click.option("--all-namespaces", "-A", is_flag=True, help="Every autoscaler of the cluster.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of text.")
@click.option("--kubeconfig", metavar="FILE", help="Kubeconfig to use instead of the usual one.")
def command(
    name: str | None, namespace: str | None, all_namespaces: bool, as_json: bool, kubeconfig: str | None
) -> None:
    """Explain the size of a fleet: LLMCA is an LLMClusterAutoscaler; without one, every one of the namespace."""
    if all_namespaces and (name or namespace):
        raise click.UsageError("--all-namespaces takes no name and no --namespace")
    api = connect(kubeconfig, MANAGER)
    where = "" if all_namespaces else namespace or current_namespace(kubeconfig)
    now = datetime.now(UTC)
    try:
        found = [explain(one.scaler, one.clusters, one.events, now) for one in read_all(api, where, name)]
    except NotFound as error:
        raise click.ClickException(f"no LLMClusterAutoscaler {where}/{name or ''}: {error}") from error
    except KubeError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps([report.as_json(one) for one in found], indent=2))
        return
    if not found:
        raise click.ClickException(f"no LLMClusterAutoscaler in {where or 'any namespace'}; try --all-namespaces")
    click.echo("\n\n".join("\n".join(report.text(one, now)) for one in found))


def connect(kubeconfig: str | None, manager: str) -> Api:
    """Log in as kubectl would; one line when that is not possible."""
    try:
        credentials = find_credentials(kubeconfig)
    except Exception as error:
        raise click.UsageError(f"cannot log in to a cluster: {error}; pass --kubeconfig FILE") from error
    return Api(Transport(credentials, user_agent=f"{manager}/{names.VERSION}"), manager=manager)


def current_namespace(kubeconfig: str | None) -> str:
    """The pod's namespace in a pod, else the kubeconfig's."""
    return own_namespace() if not kubeconfig and read_in_cluster() else context_namespace(kubeconfig)
