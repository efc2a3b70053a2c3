"""`llmfleet doctor`: look for the commonest faults of an install and name the fix of each.

In: a kubeconfig, a namespace or none. Out: findings as text or JSON. Exit status 0: no error found (warnings do not
count), 1: errors found, 2: wrong use, or no cluster. It only reads, and no Secret.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Final

import click

from llmfleet import names
from llmfleet.doctor.client import ClockTransport, take_snapshot
from llmfleet.doctor.examine import as_json, examine, has_errors, text
from llmfleet.kube.client import Api
from llmfleet.kube.refs import LLMCLUSTER, POD
from llmfleet.kube.transport.client import find_credentials

MANAGER: Final = "llmfleet-doctor"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--namespace", "-n", default="", metavar="NS", help="Namespace of the fleet. Default: all.")
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--kubeconfig", metavar="FILE", help="Kubeconfig to use instead of the usual one.")
def command(namespace: str, as_object: bool, kubeconfig: str | None) -> None:
    """Find what is wrong with an install, and how to mend it. It changes nothing and reads no Secret."""
    try:
        credentials = find_credentials(kubeconfig)
    except Exception as error:
        raise click.UsageError(f"cannot log in to a cluster: {error}; pass --kubeconfig FILE") from error
    transport = ClockTransport(credentials, user_agent=f"{MANAGER}/{names.VERSION}")
    world = take_snapshot(Api(transport, manager=MANAGER), transport, namespace, datetime.now(UTC))
    if {LLMCLUSTER.kind, POD.kind} <= world.refused.keys():
        raise click.UsageError(f"cannot look at the cluster: {world.refused[POD.kind]}")
    findings = examine(world)
    if as_object:
        click.echo(json.dumps(as_json(world, findings), indent=2))
    else:
        click.echo("\n".join(text(world, findings)))
    sys.exit(1 if has_errors(findings) else 0)
