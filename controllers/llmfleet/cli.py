"""The `llmfleet` command: one small table from role to the click command that runs it.

A role's modules are imported only when that role is asked for, so a router process never pays for the Kubernetes
client and `llmfleet --help` answers at once.
"""

from __future__ import annotations

import os
import signal

if os.getpid() == 1:
    # The kernel drops a SIGTERM that PID 1 of a container has no handler for. Without this one a pod that is deleted
    # in the second in which its process reads its code would stay for its whole grace period. Roles set their own.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))

from importlib import import_module
from typing import Final, cast

import click

from llmfleet import __version__

ROLES: Final[dict[str, tuple[str, str]]] = {
    "operator": ("llmfleet.operator.main:command", "Build, drain and update the instances behind LLMCluster objects."),
    "autoscaler": ("llmfleet.autoscaler.main:command", "Grow and shrink fleets by whole instances, and say why."),
    "router": ("llmfleet.router.main:command", "Serve the OpenAI API and relay each request to an engine."),
    "route-sync": ("llmfleet.route.sync.main:command", "Keep one file equal to one ConfigMap."),
    "backends": ("llmfleet.router.main:backends_command", "Print a backends document for engines given by URL."),
    "keys": ("llmfleet.router.main:keys_command", "Make API keys, and the hashes a keys file holds."),
    "simulate": ("llmfleet.simulate.main:command", "Replay a trace and compare policies that size a fleet."),
    "plan": ("llmfleet.sizing.main:command", "Say how many GPUs a model and a workload need, and how to cut them."),
    "explain": ("llmfleet.explain.main:command", "Say why a fleet has its size, and what would change it."),
    "doctor": ("llmfleet.doctor.main:command", "Find what is wrong with an install, and how to mend it."),
    "bench": ("llmfleet.bench.main:command", "Load an endpoint with more and more users, and judge what they see."),
    "top": ("llmfleet.top.main:command", "Show fleets, engines, load and the last decisions, live."),
    "uninstall": ("llmfleet.uninstall.main:command", "Drain and delete the instances of a release before it goes."),
    "apply-crds": ("llmfleet.crds.main:command", "Bring the kinds of serving.ai up to date before an upgrade."),
    "helm-test": ("llmfleet.helmtest.main:command", "Check a running release from inside the cluster."),
}


class Roles(click.Group):
    """A click group whose commands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(ROLES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in ROLES:
            return None
        module, _, attribute = ROLES[cmd_name][0].partition(":")
        return cast(click.Command, getattr(import_module(module), attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in ROLES.items()])


@click.command(cls=Roles, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="llmfleet")
def main() -> None:
    """Serve fleets of tensor-parallel vLLM instances on Kubernetes."""
