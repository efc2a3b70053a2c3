"""The long run: at least 100,000 requests with faults, checked.

    cd tests && python -m history [--requests N] [--rate R] [--seed S] [--mutant NAME] [--calm]

Out: what happened and every violation; status 1 if there is one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

import uvloop

from history.checker import check
from history.run import JOB_FAULTS, Plan, run, tell


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=250.0, help="requests per second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mutant", default="", help="a planted fault; see history/mutants.py")
    parser.add_argument("--jobs", type=float, default=0.1, help="share of clients that ask for a job")
    parser.add_argument("--calm", action="store_true", help="no faults from outside")
    options = parser.parse_args()
    faults = () if options.calm else JOB_FAULTS
    plan = Plan(
        requests=options.requests,
        rate=options.rate,
        seed=options.seed,
        mutant=options.mutant,
        faults=faults,
        jobs=options.jobs,
    )
    begun = time.monotonic()
    history = uvloop.run(run(plan, lambda text: print(f"history: {text}", file=sys.stderr, flush=True)))
    violations = check(history)
    print(tell(history))
    for (invariant, what), count in Counter((v.invariant, v.what) for v in violations).most_common():
        print(f"invariant {invariant}: {what}: {count} times")
    for violation in violations[:50]:
        print(violation)
    seconds = time.monotonic() - begun
    print(f"{len(violations)} violations of invariants 1-6 in {len(history.calls)} requests ({seconds:.0f} s)")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
