"""`llmfleet simulate`: run policies over a trace and print what each cost and missed.

In: the command line, a trace as CSV (or .csv.gz). Out: a table, or with `--json` one JSON object (a list for several
policies); with `--plot` a picture. Exit status 2 with one line that says what to write for wrong input.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, Final

import click

from llmfleet.api.autoscaler import Mode
from llmfleet.capacity.profiles import PROFILES, Profile, find_profile
from llmfleet.simulate.grid import Row, summary
from llmfleet.simulate.plot import frontier, page
from llmfleet.simulate.policies import PolicyError, parse_policy
from llmfleet.simulate.scenario import Tick
from llmfleet.simulate.scene import Choice, Scene, build_scene, play
from llmfleet.simulate.trace import Trace, TraceError, cut, parse_trace, thicken

DEFAULT_POLICIES: Final = ("work-budget", "hpa", "hysteresis")
GRID: Final = (
    "work-budget",
    "oracle",
    "hysteresis",
    "hysteresis:up=0.75,down=0.5",
    "hpa",
    "hpa:target=0.7",
    "hpa:target=0.5",
    "wva-qm",
    "wva-qm:up=0.7,down=0.55",
    "wva-v2",
    "dynamo",
    "keda-waiting",
    "kpa",
    "apa",
)
"""Documented defaults, and settings on our own signal that did best."""
JITTERS: Final = (("azure", 300.0), ("m-large", 150.0), ("r1", 30.0))
"""By what a file is called: the jitter that gives a thinned trace the short-term noise of its source."""
JITTER: Final = 300.0


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--trace",
    "path",
    type=click.Path(exists=True, dir_okay=False),
    help="CSV or CSV.GZ with t_s, in_tok, out_tok.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME[:k=v,...]",
    help="work-budget, hysteresis, hpa, keda-waiting, kpa, apa, wva-v2, wva-qm, dynamo, static or oracle; repeat it. "
    "Default: work-budget, hpa, hysteresis.",
)
@click.option(
    "--hardware", default="llama-70b-fp8-h100-tp8", show_default=True, help="Capacity profile of one instance."
)
@click.option(
    "--thicken",
    "thickness",
    default="1",
    metavar="K[:SD]",
    help="K copies of each request, moved by SD seconds (by the file's name 300, 150 or 30). Default: 1.",
)
@click.option("--mode", type=click.Choice([str(mode) for mode in Mode]), default=str(Mode.MONOLITHIC))
@click.option(
    "--cold-start",
    type=click.FloatRange(0, 86400),
    default=300.0,
    show_default=True,
    help="Seconds until a new instance serves.",
)
@click.option(
    "--slo-ttft", type=click.FloatRange(0.001), default=2.0, show_default=True, help="Seconds to the first token."
)
@click.option(
    "--slo-tpot", type=click.FloatRange(0.001), default=0.05, show_default=True, help="Seconds per token after it."
)
@click.option(
    "--error-budget",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.001,
    show_default=True,
    help="Share of requests that may miss.",
)
@click.option(
    "--batched-tokens",
    type=click.IntRange(16),
    default=None,
    help="Of one engine step (--max-num-batched-tokens). Default: so that a step lasts no longer than --slo-tpot; "
    "that of the profile where engines only prefill.",
)
@click.option(
    "--believed",
    type=click.FloatRange(0.1, 10),
    default=1.0,
    show_default=True,
    help="Factor on the coefficients that policies start from; the engines keep the profile's.",
)
@click.option("--min-instances", type=click.IntRange(1), default=1, show_default=True)
@click.option("--max-instances", type=click.IntRange(1), default=60, show_default=True)
@click.option("--begin", type=click.FloatRange(0), default=0.0, help="Begin so many seconds into the trace.")
@click.option("--seconds", type=click.FloatRange(1), default=None, help="Use only so much of the trace.")
@click.option(
    "--seed",
    type=int,
    default=1,
    show_default=True,
    help="Of cold starts and jitter; the same seed gives the same report.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, writable=True),
    help="Write demand, instances and misses over time to FILE.html or FILE.svg.",
)
@click.pass_context
def command(
    context: click.Context,
    path: str | None,
    policies: tuple[str, ...],
    hardware: str,
    thickness: str,
    mode: str,
    cold_start: float,
    slo_ttft: float,
    slo_tpot: float,
    error_budget: float,
    batched_tokens: int | None,
    believed: float,
    min_instances: int,
    max_instances: int,
    begin: float,
    seconds: float | None,
    seed: int,
    as_json: bool,
    plot: str | None,
) -> None:
    """Replay a trace against a simulated fleet and compare policies that size it."""
    if context.invoked_subcommand:
        return
    if path is None:
        raise click.UsageError("Missing option '--trace'.")
    profile = profile_of(hardware)
    if min_instances > max_instances:
        raise click.BadParameter("is above --max-instances", param_hint="--min-instances")
    if plot:
        checked_picture(plot)
    chosen = policies or DEFAULT_POLICIES
    for text in chosen:
        checked(text)
    choice = Choice(
        hardware=hardware,
        mode=Mode(mode),
        cold_start=cold_start,
        ttft=slo_ttft,
        tpot=slo_tpot,
        budget=error_budget,
        low=min_instances,
        high=max_instances,
        seed=seed,
        batched_tokens=batched_tokens or 0,
        believed=believed,
    )
    scene = build_scene(load(path, thickness, begin, seconds, seed), choice, profile)
    results, ticks = [], {}
    for text in chosen:
        result, ticks[text] = one(scene, text, quiet=as_json)
        results.append(result)
    if plot:
        Path(plot).write_text(page(ticks, html=plot.endswith(".html")), encoding="utf-8")
    print_json(results) if as_json else print_table(results, scene, profile)


@command.command("compare")
@click.option(
    "--trace",
    "paths",
    multiple=True,
    required=True,
    metavar="FILE[@K[:SD]]",
    help="A trace and how it is thickened; repeat it.",
)
@click.option(
    "--policy", "policies", multiple=True, metavar="NAME[:k=v,...]", help="Repeat it. Default: every policy and some."
)
@click.option("--cold-start", "starts", type=click.FloatRange(0, 86400), multiple=True, default=(300.0,))
@click.option("--seed", "seeds", type=int, multiple=True, default=(1,), help="Repeat it.")
@click.option("--begin", "begins", type=click.FloatRange(0), multiple=True, default=(0.0,), help="Slices; repeat it.")
@click.option("--seconds", type=click.FloatRange(1), default=None, help="Length of a slice.")
@click.option("--hardware", default="llama-70b-fp8-h100-tp8", show_default=True)
@click.option("--mode", type=click.Choice([str(mode) for mode in Mode]), default=str(Mode.MONOLITHIC))
@click.option("--error-budget", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.001)
@click.option("--max-instances", type=click.IntRange(1), default=60, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Every cell as JSON.")
@click.option("--plot", type=click.Path(dir_okay=False, writable=True), help="Cost against misses, FILE.svg or .html.")
def compare(
    paths: tuple[str, ...],
    policies: tuple[str, ...],
    starts: tuple[float, ...],
    seeds: tuple[int, ...],
    begins: tuple[float, ...],
    seconds: float | None,
    hardware: str,
    mode: str,
    error_budget: float,
    max_instances: int,
    as_json: bool,
    plot: str | None,
) -> None:
    """Run a grid of traces, slices, cold starts, seeds and policies; mean and worst of each policy."""
    profile, chosen = profile_of(hardware), policies or GRID
    for text in chosen:
        checked(text)
    if plot:
        checked_picture(plot)
    cells: list[dict[str, Any]] = []
    for path, start, seed, begin in product(paths, starts, seeds, begins):
        name, _, thickness = path.partition("@")
        if not Path(name).is_file():
            raise click.BadParameter(f"{name!r} is no file", param_hint="--trace")
        choice = Choice(
            hardware=hardware, mode=Mode(mode), cold_start=start, budget=error_budget, high=max_instances, seed=seed
        )
        scene = build_scene(load(name, thickness or "1", begin, seconds, seed), choice, profile)
        for text in chosen:
            found, _ = one(scene, text, quiet=as_json)
            cells.append({"trace": Path(name).name, "begin": begin, "cold_start": start, **found})
    rows = summary(cells)
    if plot:
        Path(plot).write_text(frontier(rows, html=plot.endswith(".html")), encoding="utf-8")
    click.echo(json.dumps(cells, indent=2)) if as_json else print_grid(rows)


def print_grid(rows: list[Row]) -> None:
    """Mean and worst, cheapest first."""
    head = ("policy", "cells", "SLO % mean", "worst", "x oracle mean", "worst", "actions/day")
    cells = [
        (
            row.policy,
            str(row.cells),
            f"{100 * row.slo:.3f}",
            f"{100 * row.worst_slo:.3f}",
            f"{row.cost:.3f}",
            f"{row.worst_cost:.3f}",
            f"{row.actions:.0f}",
        )
        for row in rows
    ]
    print_columns(head, cells)


def checked_picture(plot: str) -> None:
    if not plot.endswith((".html", ".svg")):
        message = f"{plot!r}: write FILE.html or FILE.svg; other formats are not made"
        raise click.BadParameter(message, param_hint="--plot")


def profile_of(hardware: str) -> Profile:
    profile = find_profile(hardware)
    if profile is None:
        raise click.BadParameter(
            f"{hardware!r} is no profile; there are {', '.join(PROFILES)}", param_hint="--hardware"
        )
    return profile


def checked(text: str) -> None:
    try:
        parse_policy(text)
    except PolicyError as error:
        raise click.BadParameter(str(error), param_hint="--policy") from None


def jitter_of(path: str) -> float:
    """The jitter that suits a file."""
    name = Path(path).name.lower()
    return next((jitter for part, jitter in JITTERS if part in name), JITTER)


def load(path: str, thickness: str, begin: float, seconds: float | None, seed: int) -> Trace:
    """The requests of the trace, thickened."""
    copies, _, jitter = thickness.partition(":")
    try:
        count, deviation = int(copies), float(jitter or jitter_of(path))
    except ValueError:
        raise click.BadParameter(
            f"{thickness!r} is not K or K:SECONDS, such as 30:300", param_hint="--thicken"
        ) from None
    try:
        with opened(path) as lines:
            found = parse_trace(lines)
    except (TraceError, OSError, UnicodeDecodeError, EOFError) as error:
        raise click.BadParameter(f"{path}: {error}", param_hint="--trace") from None
    if begin or seconds is not None:
        found = cut(found, begin, seconds if seconds is not None else found.end)
    if not len(found):
        raise click.BadParameter(f"{path}: no request in it", param_hint="--trace")
    return thicken(found, count, deviation, random.Random(f"{seed} jitter"))


@contextmanager
def opened(path: str) -> Iterator[Iterator[str]]:
    """Text lines, unpacked if need be."""
    if path.endswith(".gz"):
        with gzip.open(path, "rt", encoding="utf-8") as packed:
            yield iter(packed)
    else:
        with Path(path).open(encoding="utf-8") as plain:
            yield iter(plain)


def one(scene: Scene, text: str, *, quiet: bool) -> tuple[dict[str, Any], list[Tick]]:
    """Run one policy, with a progress bar and how long it took."""
    began = time.monotonic()
    with shown(text, quiet) as progress:
        found, ticks = play(scene, text, random.Random(f"{scene.choice.seed} starts"), progress)
    return {**found, "run_seconds": round(time.monotonic() - began, 3)}, ticks


@contextmanager
def shown(text: str, quiet: bool) -> Iterator[Any]:
    """A progress bar on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _share: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def print_json(results: list[dict[str, Any]]) -> None:
    """One object for one policy, a list for several."""
    click.echo(json.dumps(results[0] if len(results) == 1 else results, indent=2))


def print_table(results: list[dict[str, Any]], scene: Scene, profile: Profile) -> None:
    """What a person compares."""
    click.echo(
        f"{len(scene.trace)} requests in {scene.trace.end / 3600:.1f} h, instances of {profile.gpus} GPUs, "
        f"{scene.scenario.profile.batched_tokens} tokens a step; "
        f"clairvoyant {scene.oracle / 3600:.1f} GPU-hours; alone on an idle instance {100 * scene.ceiling:.3f} % meet "
        "the objective"
    )
    head = ("policy", "SLO %", "missed", "GPU-h", "x oracle", "mean", "max", "actions/day")
    rows = [
        (
            result["policy"],
            f"{100 * result['slo_attainment']:.3f}",
            str(result["missed"]),
            f"{result['gpu_seconds'] / 3600:.1f}",
            f"{result['cost_ratio']:.2f}",
            f"{result['mean_instances']:.2f}",
            str(result["max_instances"]),
            f"{result['actions_per_day']:.0f}",
        )
        for result in results
    ]
    print_columns(head, rows)


def print_columns(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table: names to the left, figures to the right."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())
