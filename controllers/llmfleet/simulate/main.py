"""`llmfleet simulate`: run policies over a trace and print what each cost and missed.

In: the command line, a trace as CSV (or .csv.gz). Out: a table, or one JSON object per policy with `--json`. Exit
status 2 with one line that says what to write for wrong input.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from llmfleet.api.autoscaler import AutoscalerSpec, parse_autoscaler, parse_template
from llmfleet.api.types import Role
from llmfleet.capacity.capacity import build_capacity
from llmfleet.capacity.profiles import PROFILES, Profile, find_profile
from llmfleet.simulate.oracle import oracle_seconds
from llmfleet.simulate.policies import PolicyError, Setting, build_policy, parse_policy
from llmfleet.simulate.run import Report, Scenario, run
from llmfleet.simulate.trace import Request, TraceError, parse_trace, thicken

DEFAULT_POLICIES: Final = ("work-budget", "hpa", "hysteresis")
JITTER: Final = 300.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--trace",
    "path",
    required=True,
    type=click.Path(exists=True, dir_okay=False),
    help="CSV or CSV.GZ with t_s, in_tok, out_tok.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME[:k=v,...]",
    help="work-budget, hpa, hysteresis or static; repeat it. Default: the first three.",
)
@click.option(
    "--hardware", default="llama-70b-fp8-h100-tp8", show_default=True, help="Capacity profile of one instance."
)
@click.option(
    "--thicken",
    "thickness",
    default="1",
    metavar="K[:SD]",
    help="K copies of each request, moved by SD seconds (300). Default: 1.",
)
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
@click.option("--min-instances", type=click.IntRange(1), default=1, show_default=True)
@click.option("--max-instances", type=click.IntRange(1), default=60, show_default=True)
@click.option("--seconds", type=click.FloatRange(1), default=None, help="Use only so much of the trace.")
@click.option(
    "--seed",
    type=int,
    default=1,
    show_default=True,
    help="Of cold starts and jitter; the same seed gives the same report.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per policy instead of a table.")
def command(
    path: str,
    policies: tuple[str, ...],
    hardware: str,
    thickness: str,
    cold_start: float,
    slo_ttft: float,
    slo_tpot: float,
    error_budget: float,
    min_instances: int,
    max_instances: int,
    seconds: float | None,
    seed: int,
    as_json: bool,
) -> None:
    """Replay a trace against a simulated fleet and compare policies that size it."""
    profile = find_profile(hardware)
    if profile is None:
        raise click.BadParameter(
            f"{hardware!r} is no profile; there are {', '.join(PROFILES)}", param_hint="--hardware"
        )
    if min_instances > max_instances:
        raise click.BadParameter("is above --max-instances", param_hint="--min-instances")
    chosen = policies or DEFAULT_POLICIES
    for text in chosen:
        checked(text)
    requests = load(path, thickness, seconds, seed)
    spec = build_spec(hardware, slo_ttft, slo_tpot, error_budget, cold_start, min_instances, max_instances)
    template = parse_template(spec.fleets()[Role.BOTH].instance_template, "spec")
    setting = Setting(
        spec=spec, capacity=build_capacity(template, spec.work_budget), low=min_instances, high=max_instances
    )
    first = first_size(requests, setting)
    scenario = Scenario(profile=profile, cold_start=cold_start, ttft=slo_ttft, tpot=slo_tpot, first=first)
    oracle = oracle_seconds(requests, setting.capacity, cold_start, min_instances) * profile.gpus
    results = [one(text, requests, scenario, setting, seed, oracle, quiet=as_json) for text in chosen]
    print_json(results) if as_json else print_table(results, requests, profile)


def checked(text: str) -> None:
    try:
        parse_policy(text)
    except PolicyError as error:
        raise click.BadParameter(str(error), param_hint="--policy") from None


def load(path: str, thickness: str, seconds: float | None, seed: int) -> list[Request]:
    """The requests of the trace, thickened."""
    copies, _, jitter = thickness.partition(":")
    try:
        count, deviation = int(copies), float(jitter or JITTER)
    except ValueError:
        raise click.BadParameter(
            f"{thickness!r} is not K or K:SECONDS, such as 30:300", param_hint="--thicken"
        ) from None
    try:
        with opened(path) as lines:
            found = parse_trace(lines)
    except (TraceError, OSError, UnicodeDecodeError, EOFError) as error:
        raise click.BadParameter(f"{path}: {error}", param_hint="--trace") from None
    found = [request for request in found if seconds is None or request.at <= seconds]
    if not found:
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


def build_spec(
    hardware: str, ttft: float, tpot: float, budget: float, cold_start: float, low: int, high: int
) -> AutoscalerSpec:
    """The spec our own policy would have on a cluster."""
    labels = {"serving.ai/fleet": "simulated"}
    shape = {"model": "simulated", "replicas": 1, "gpusPerPod": 1, "tensorParallelSize": 1, "image": "none"}
    return parse_autoscaler(
        {
            "mode": "monolithic",
            "scaleTargetRef": {"labelSelector": {"matchLabels": labels}},
            "minInstances": low,
            "maxInstances": high,
            "instanceTemplate": {"namePrefix": "i-", "labels": labels, "spec": shape},
            "workBudget": {
                "slo": {"ttftSeconds": f"{ttft:f}", "tpotSeconds": f"{tpot:f}", "errorBudget": f"{budget:f}"},
                "capacity": {"profile": hardware},
                "coldStartSeconds": int(cold_start),
            },
        }
    )


def first_size(requests: list[Request], setting: Setting) -> int:
    """What the first hour needs on average, with some room: nobody begins a comparison with an empty fleet."""
    steps, capacity = setting.capacity.steps, setting.capacity
    hour = [request for request in requests if request.at <= requests[0].at + 3600]
    span = min(3600.0, max(requests[-1].at - requests[0].at, 60.0))
    work = sum(steps.work(request.prompt, request.output) for request in hour) / span
    return min(max(round(work / capacity.rho * 1.4 + 0.5), setting.low), setting.high)


def one(
    text: str,
    requests: list[Request],
    scenario: Scenario,
    setting: Setting,
    seed: int,
    oracle: float,
    *,
    quiet: bool,
) -> dict[str, Any]:
    """Run one policy; what it did, as the JSON has it."""
    began = time.monotonic()
    draw = random.Random(f"{seed} starts")
    with shown(text, quiet) as progress:
        found: Report = run(requests, scenario, build_policy(text, setting), draw, progress)
    return {
        "policy": text,
        **{key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(found).items()},
        "oracle_gpu_seconds": round(oracle, 3),
        "cost_ratio": round(found.gpu_seconds / oracle, 4) if oracle else 0.0,
        "first_instances": scenario.first,
        "run_seconds": round(time.monotonic() - began, 3),
    }


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


def print_table(results: list[dict[str, Any]], requests: list[Request], profile: Profile) -> None:
    """What a person compares."""
    click.echo(
        f"{len(requests)} requests in {requests[-1].at / 3600:.1f} h, instances of {profile.gpus} GPUs; "
        f"clairvoyant {results[0]['oracle_gpu_seconds'] / 3600:.1f} GPU-hours"
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
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())
