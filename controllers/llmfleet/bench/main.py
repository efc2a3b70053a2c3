"""`llmfleet bench`: load an OpenAI-compatible endpoint with more and more users, and say what they see.

In: an address, a model, how many users for how long. Out: a table or one JSON object on stdout, a picture with
`--plot`, progress on stderr. Exit status 0: every judged level kept the objective and nothing failed; 1: one did not;
2: wrong use, or nothing could be measured; 130: stopped by Ctrl-C, after what was measured so far was printed.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import signal
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import SystemRandom
from typing import Any, Final

import click
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from llmfleet.bench.app import NothingMeasuredError, Run, Watcher, measured, prepared
from llmfleet.bench.figures import Level
from llmfleet.bench.plot import page, picture
from llmfleet.bench.report import as_json, notes, people, table
from llmfleet.bench.request import Prompting, Target, TargetError, parse_target
from llmfleet.bench.verdict import Objective, misses

DEFAULT_USERS: Final = "1,5,10,25,50"
DEFAULT_SECONDS: Final = 30.0
WIDTH: Final = 160
"""Of a table at least: a narrow terminal wraps its lines, but no figure is left out."""
UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
SPARE_FILES: Final = 64


class Duration(click.ParamType[float]):
    """A time with its unit, because 2 may be seconds or milliseconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s|m)", str(value).strip())
        seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
        if not seconds:
            self.fail(f"{value!r} is no time above zero: write it with its unit, such as 2s or 50ms", param, ctx)
        return seconds


class Users(click.ParamType[tuple[int, ...]]):
    """Numbers of users."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(re.fullmatch(r"[1-9]\d{0,4}", part) for part in parts):
            self.fail(f"{value!r}: write numbers of users from 1 to 99999, such as {DEFAULT_USERS}", param, ctx)
        if len(set(parts)) < len(parts):
            self.fail(f"{value!r} names a number twice", param, ctx)
        return tuple(int(part) for part in parts)


class Picture(click.ParamType[str]):
    """A file that can be drawn."""

    name = "FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value).endswith((".html", ".svg")):
            self.fail(f"{value!r}: write FILE.svg or FILE.html; other formats are not made", param, ctx)
        if not Path(value).parent.is_dir():
            self.fail(f"{value!r}: there is no folder {str(Path(value).parent)!r}", param, ctx)
        return str(value)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", required=True, help="Address of the endpoint, http(s)://HOST:PORT, with or without /v1.")
@click.option("--model", required=True, metavar="NAME", help="Model name as a client asks for it.")
@click.option("--users", type=Users(), default=DEFAULT_USERS, show_default=True, help="Levels, one after the other.")
@click.option("--seconds", type=click.FloatRange(0.1, 86400), default=None, help="Of each level. Default: 30.")
@click.option("--requests", type=click.IntRange(1), default=None, help="Of each level, instead of --seconds.")
@click.option("--warmup", type=click.IntRange(0, 100), default=1, show_default=True, help="Of each user, not measured.")
@click.option("--prompt-tokens", type=click.IntRange(1, 10_000_000), default=512, show_default=True)
@click.option("--output-tokens", type=click.IntRange(1, 10_000_000), default=128, show_default=True)
@click.option(
    "--ignore-eos/--no-ignore-eos",
    default=True,
    show_default=True,
    help="Ask for exactly that many output tokens; vLLM and llmfleet know this field, others may refuse it.",
)
@click.option("--api-key-file", type=click.Path(exists=True, dir_okay=False), help="File with the API key, one line.")
@click.option("--ca-file", type=click.Path(exists=True, dir_okay=False), help="Certificates to trust instead of usual.")
@click.option("--timeout", type=Duration(), default="300s", show_default=True, help="Of one request.")
@click.option("--slo-ttft", type=Duration(), help="Longest time to the first token, such as 2s.")
@click.option("--slo-tpot", type=Duration(), help="Longest time per token after it, such as 50ms.")
@click.option("--slo-percentile", type=click.FloatRange(1, 100), default=99.0, show_default=True)
@click.option("--slo-users", type=Users(), default=None, help="Judge these levels only. Default: all.")
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--plot", type=Picture(), help="Draw latency and throughput over users, FILE.svg or FILE.html.")
@click.option("--seed", type=int, default=None, help="Of the prompts. Default: drawn, so that no cache knows them.")
def command(
    *,
    url: str,
    model: str,
    users: tuple[int, ...],
    seconds: float | None,
    requests: int | None,
    warmup: int,
    prompt_tokens: int,
    output_tokens: int,
    ignore_eos: bool,
    api_key_file: str | None,
    ca_file: str | None,
    timeout: float,
    slo_ttft: float | None,
    slo_tpot: float | None,
    slo_percentile: float,
    slo_users: tuple[int, ...] | None,
    as_object: bool,
    plot: str | None,
    seed: int | None,
) -> None:
    """Load an endpoint with more and more users, and judge what they see: TTFT, TPOT, throughput, errors."""
    check_levels(users, seconds, requests, slo_users)
    target = target_of(url, api_key_file)
    prompting = Prompting(
        model=model,
        words=prompt_tokens,
        output_tokens=output_tokens,
        ignore_eos=ignore_eos,
        seed=SystemRandom().randrange(1 << 31) if seed is None else seed,
    )
    run = Run(
        target=target,
        prompting=prompting,
        users=users,
        prompt_tokens=prompt_tokens,
        seconds=seconds or DEFAULT_SECONDS,
        requests=requests,
        warmup=warmup,
        timeout=timeout,
        tls=trusted(ca_file) if target.tls else None,
    )
    objective = Objective(ttft=slo_ttft, tpot=slo_tpot, percentile=slo_percentile, users=frozenset(slo_users or ()))
    make_room(max(users))
    levels, interrupted = carried_out(run)
    if plot:
        draw(plot, run, levels, objective)
    show(run, levels, objective, interrupted=interrupted, as_object=as_object)
    if interrupted:
        sys.exit(128 + signal.SIGINT)
    sys.exit(1 if any(misses(level, objective) for level in levels) else 0)


def check_levels(
    users: tuple[int, ...], seconds: float | None, requests: int | None, judged: tuple[int, ...] | None
) -> None:
    """What no option can see alone."""
    if seconds is not None and requests is not None:
        raise click.UsageError("give --seconds or --requests, not both")
    if requests is not None and requests < max(users):
        raise click.UsageError(f"--requests {requests} is below {max(users)} users: every user must have one")
    if others := sorted(set(judged or ()) - set(users)):
        raise click.UsageError(f"--slo-users {','.join(map(str, others))}: not among --users")


def target_of(url: str, key_file: str | None) -> Target:
    try:
        return parse_target(url, key_in(key_file) if key_file else "")
    except TargetError as error:
        raise click.BadParameter(str(error), param_hint="--url") from None


def key_in(path: str) -> str:
    """The one line of a file."""
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path} cannot be read: {error}", param_hint="--api-key-file") from None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise click.BadParameter(f"{path} holds no API key: write one line without spaces", param_hint="--api-key-file")
    return key


def trusted(path: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise click.BadParameter(f"{path} holds no certificate: {error}", param_hint="--ca-file") from None


def make_room(users: int) -> None:
    """Each user holds a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = users + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise click.UsageError(f"--users {users} needs {needed} open files and {hard} are allowed: raise ulimit -n")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def carried_out(run: Run) -> tuple[list[Level], bool]:
    """Every level that could be measured, and whether somebody stopped it."""
    levels: list[Level] = []
    stop = asyncio.Event()

    async def drive(watcher: Watcher) -> None:
        ready = await prepared(run)
        # From here on an interrupt ends the level; before, it ends the program.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
        async for level in measured(ready, stop, watcher):
            levels.append(level)

    with watching(run) as watcher, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(drive(watcher))
        except NothingMeasuredError as error:
            raise click.UsageError(str(error)) from None
        except KeyboardInterrupt:
            return levels, True
    return levels, stop.is_set()


class Bar:
    """Progress on a terminal, or one line for each level where there is none."""

    def __init__(self, progress: Progress | None, run: Run) -> None:
        self._progress, self._run = progress, run
        self._task: Any = progress.add_task("counting the tokens of a prompt", total=1.0, said="") if progress else None

    def level(self, users: int) -> None:
        if self._progress is None:
            click.echo(f"bench: {people(users)}", err=True)
        else:
            self._progress.update(self._task, description=people(users), completed=0.0, said="warming up")

    def look(self, share: float, answers: int, errors: int) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=share, said=f"{answers - errors} answers, {errors} errors")


@contextmanager
def watching(run: Run) -> Iterator[Bar]:
    if not sys.stderr.isatty():
        yield Bar(None, run)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bar(progress, run)


def show(run: Run, levels: list[Level], objective: Objective, *, interrupted: bool, as_object: bool) -> None:
    if as_object:
        click.echo(json.dumps(as_json(levels, objective, asked=asked(run), interrupted=interrupted), indent=2))
        return
    click.echo(title(run))
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(table(levels, objective))
    for note in notes(levels, objective, interrupted=interrupted):
        click.echo(note)


def title(run: Run) -> str:
    length = f"{run.requests} requests" if run.requests is not None else f"{run.seconds:g} s"
    return (
        f"{run.prompting.model} at {run.target.url}: {run.prompt_tokens} tokens in, {run.prompting.output_tokens} out, "
        f"{length} a level, seed {run.prompting.seed}"
    )


def asked(run: Run) -> dict[str, Any]:
    return {
        "url": run.target.url,
        "model": run.prompting.model,
        "users": list(run.users),
        "seconds": None if run.requests is not None else run.seconds,
        "requests": run.requests,
        "warmup": run.warmup,
        "promptTokens": run.prompt_tokens,
        "outputTokens": run.prompting.output_tokens,
        "ignoreEos": run.prompting.ignore_eos,
        "seed": run.prompting.seed,
    }


def draw(plot: str, run: Run, levels: list[Level], objective: Objective) -> None:
    if not levels:
        return
    image = picture(title(run), levels, objective)
    Path(plot).write_text(page(image) if plot.endswith(".html") else image, encoding="utf-8")
