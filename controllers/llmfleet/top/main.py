"""`llmfleet top`: a live table of models, engines and decisions.

In: addresses of routers, or a kubeconfig and a namespace. Out: a table that is drawn anew every few seconds, or one
table, or one JSON object. Exit status 1 when nothing answered, 2 for wrong use. It only reads.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Final

import click
from rich.console import Console
from rich.live import Live as Screen

from llmfleet import names
from llmfleet.kube.client import Api
from llmfleet.kube.transport.client import Transport, find_credentials
from llmfleet.top.client import Addresses, Cluster, Source
from llmfleet.top.screen import draw
from llmfleet.top.view import Look, View, as_json, build_view

MANAGER: Final = "llmfleet-top"
WIDTH: Final = 160
"""Of a table that goes into a file, where no terminal says how wide it is."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--url",
    "urls",
    multiple=True,
    metavar="URL",
    help="Admin port of a router, such as http://localhost:9090; repeat it. Then no cluster is asked.",
)
@click.option("--namespace", "-n", default="", metavar="NS", help="Namespace of the fleet. Default: all.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks; rates are of this time.",
)
@click.option("--once", is_flag=True, help="Look twice, print one table and leave.")
@click.option("--json", "as_object", is_flag=True, help="With --once: one JSON object instead of a table.")
@click.option("--kubeconfig", metavar="FILE", help="Kubeconfig to use instead of the usual one.")
def command(
    urls: tuple[str, ...], namespace: str, interval: float, once: bool, as_object: bool, kubeconfig: str | None
) -> None:
    """Show fleets, engines, load, latency and the last decisions, live. Ctrl-C leaves."""
    if as_object and not once:
        raise click.UsageError("--json needs --once")
    source = source_of(urls, namespace, kubeconfig)
    if once:
        print_once(source, interval, as_object)
        return
    console = Console()
    if not console.is_terminal:
        raise click.UsageError("a live table needs a terminal: pass --once")
    try:
        watch(source, interval, console)
    except KeyboardInterrupt:
        return


def source_of(urls: tuple[str, ...], namespace: str, kubeconfig: str | None) -> Source:
    if urls:
        return Addresses([url if "://" in url else f"http://{url}" for url in urls])
    try:
        credentials = find_credentials(kubeconfig)
    except Exception as error:
        raise click.UsageError(
            f"cannot log in to a cluster: {error}; pass --kubeconfig FILE, or --url URL for a router's admin port"
        ) from error
    transport = Transport(credentials, user_agent=f"{MANAGER}/{names.VERSION}")
    return Cluster(Api(transport, manager=MANAGER), transport, namespace)


def print_once(source: Source, interval: float, as_object: bool) -> None:
    """Two looks, because a rate needs two."""
    before = take(source)
    time.sleep(interval)
    view = build_view(before, take(source))
    if as_object:
        click.echo(json.dumps(as_json(view), indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else WIDTH).print(draw(view))
    if is_empty(view):
        raise SystemExit(1)


def is_empty(view: View) -> bool:
    """Nothing answered: neither a router nor the cluster."""
    return not view.models and not view.others and all(one.problem for one in view.routers)


def watch(source: Source, interval: float, console: Console) -> None:
    """Draw until somebody has seen enough."""
    before: Look | None = None
    with Screen(console=console, screen=True, auto_refresh=False) as screen:
        while True:
            now = take(source)
            hint = f"; every {interval:g} s, Ctrl-C leaves"
            screen.update(draw(build_view(before, now), hint), refresh=True)
            before = now
            time.sleep(interval)


def take(source: Source) -> Look:
    return source.look(time.monotonic())
