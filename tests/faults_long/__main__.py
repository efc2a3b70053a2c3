"""Break a running fleet in every way there is, one scenario after the other: `make faults-long`.

    python -m faults_long                        what was not run yet, or did not hold
    python -m faults_long --list                 the scenarios, and how each one went last time
    python -m faults_long --only NAME ...        these, if they need it
    python -m faults_long --again NAME ...       these, in any case
    python -m faults_long --rounds 3             until each has held three times in a row, with seeds 1, 2 and 3
    python -m faults_long --publish              put what was found into the documentation

Every finished scenario is kept at once in build/faults-long/results.json, so a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from e2e.bed import ROOT
from faults.ground import Ground
from faults_long import results
from faults_long.catalogue import SCENARIOS
from faults_long.scenario import Scenario, run
from faults_long.world import World

RESULTS = ROOT / "build/faults-long/results.json"
PUBLISHED, PAGE = ROOT / "docs/faults.json", ROOT / "docs/faults.md"


def main(arguments: list[str]) -> int:
    """Run what is asked for; the status is 0 when all of it held."""
    known = {scenario.name: scenario for scenario in SCENARIOS}
    asked = parsed(arguments, list(known))
    if asked.list or asked.publish:
        show(results.read(asked.results)) if asked.list else publish(asked.results)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs behind it without one
    found = results.read(asked.results)
    wanted = [known[name] for name in asked.again or asked.only or known]
    due = [one for one in wanted if asked.again or not results.finished(found, one.name, asked.rounds)]
    say: Callable[[str], None] = lambda line: print(line, flush=True)  # noqa: E731
    say(f"{len(due)} of {len(wanted)} scenarios to run: {', '.join(one.name for one in due) or 'none'}")
    if due:
        play(due, World(say, Ground(asked.cluster), options=vars(asked)), asked, say)
    found = results.read(asked.results)
    return 0 if all(results.finished(found, one.name, asked.rounds) for one in wanted) else 1


def play(due: list[Scenario], world: World, asked: argparse.Namespace, say: Callable[[str], None]) -> None:
    """One cluster for all; it stays when the last scenario is over only if that is asked for."""
    try:
        world.open()
        for number, scenario in enumerate(due, 1):
            say(f"\n[{number}/{len(due)}] {scenario.name}: {scenario.title} (at most {scenario.limit:.0f} s)")
            world.mend()
            found = results.read(asked.results)
            runs = found.get(scenario.name, ())
            row = results.joined(results.read(PUBLISHED), found).get(scenario.name, ())
            one = run(scenario, world, asked.seed or len(results.held(row)) + 1, say)
            results.write(asked.results, found | {scenario.name: results.after(runs, one)})
            say(f"{scenario.name}: {'held' if one['passed'] else 'BROKEN'} ({one['seconds']} s)")
    finally:
        if not asked.keep:
            world.close()


def parsed(arguments: list[str], names: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="faults_long", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="the scenarios and what is known of them")
    parser.add_argument("--again", nargs="+", choices=names, metavar="NAME", help="run these, also if they held")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="run these, unless they held")
    parser.add_argument(
        "--publish", action="store_true", help="write docs/faults.json and the tables of docs/faults.md"
    )
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    parser.add_argument("--cluster", default="long", help="the name of the cluster, to run several at once")
    parser.add_argument("--seed", type=int, help="of what is chosen by chance; by default the number of the run")
    parser.add_argument("--rounds", type=int, default=1, help="how often in a row each has to hold")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to keep what was found")
    parser.add_argument("--requests", type=int, default=1_000_000, help="length of the soak")
    parser.add_argument("--away", type=float, default=600.0, help="seconds without a control plane")
    return parser.parse_args(arguments)


def show(found: Mapping[str, results.Runs]) -> None:
    """Say which scenarios there are, and what is known of them."""
    for scenario in SCENARIOS:
        word = said(found.get(scenario.name, ()))
        print(f"{scenario.name:22} {word:40} {scenario.title}")


def said(runs: results.Runs) -> str:
    """In a word how the last run went, and how many in a row held."""
    if not runs:
        return "not run"
    times = f"{len(results.held(runs))} times" if len(results.held(runs)) > 1 else "once"
    return f"{f'held {times}' if runs[-1]['passed'] else 'BROKEN'}, {runs[-1]['date']}, {runs[-1]['seconds']} s"


def publish(path: Path) -> None:
    """Keep what was found beside the page, and show it there."""
    order = [scenario.name for scenario in SCENARIOS]
    found = results.joined(results.read(PUBLISHED), results.read(path))
    results.write(PUBLISHED, {name: found[name] for name in order if name in found})
    table = results.rendered(found, order)
    Path(PAGE).write_text(results.page_with(PAGE.read_text(), table))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
