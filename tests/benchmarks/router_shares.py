"""Compare waiting at routers that share slots by gossip with one common line and with a fixed division.

    python tests/benchmarks/router_shares.py [--seconds S]

In: a simulated load on 64 slots, answers of 10 s on average. Out: per number of routers and policy the 99th percentile
of waiting in simulated seconds and the most requests beyond the slots, and what an interval of gossip costs a router in
CPU on this machine. The simulated part gives the same figures everywhere.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import orjson

sys.path.insert(0, str(Path(__file__).parent.parent / "router"))

from shares_world import World

from llmfleet.router.reports import parse_report, render_report
from llmfleet.router.shares import INTERVAL_SECONDS

MEAN = 10.0
SLOTS = 64


def waits(seconds: float) -> None:
    print("| engines | load | routers | one common line | gossip | fixed 1/R | most beyond the slots of an engine |")
    print("|---|---|---|---|---|---|---|")
    for engines in (1, 8):
        for load in (0.7, 0.95):
            for routers in (2, 3, 8):
                cells = []
                for policy in ("pooled", "gossip", "static"):
                    slots = {f"e{i}": SLOTS // engines for i in range(engines)}
                    world = World(slots, routers, policy, seed=11)
                    world.poisson(load * SLOTS / MEAN, MEAN, seconds)
                    world.run(seconds)
                    cells.append(f"{world.p99():.2f} s")
                    if policy == "gossip":
                        beyond = max(world.over.values())
                print(f"| {engines} | {load:.0%} | {routers} | {' | '.join(cells)} | {beyond} |", flush=True)


def cost() -> None:
    """Time what one router does per interval: one decision, a report for each peer, a report read from each peer."""
    print("\n| engines | routers | CPU per interval | of one core |\n|---|---|---|---|")
    for engines, routers in ((4, 3), (16, 3), (16, 8), (64, 8)):
        world = World({f"e{i}": 16 for i in range(engines)}, routers, seed=1)
        world.poisson(0.8 * 16 * engines / MEAN, MEAN, 20.0)
        world.run(20.0)
        router, now = world.fleet["router-0"], world.now
        loads, rooms = router.loads(), router.rooms()
        data = [
            orjson.dumps(render_report(peer.shares.report(peer.loads(), peer.rooms(), draining=False, now=now)))
            for name, peer in world.fleet.items()
            if name != "router-0"
        ]
        rounds = 40
        start = time.process_time()
        for _ in range(rounds):
            for report in data:
                router.shares.heard(parse_report(orjson.loads(report)), now)
            router.shares.tick(loads, rooms, draining=False, now=now)
            for _ in data:
                orjson.dumps(render_report(router.shares.report(loads, rooms, draining=False, now=now)))
        spent = (time.process_time() - start) / rounds
        print(f"| {engines} | {routers} | {spent * 1e6:.0f} us | {spent / INTERVAL_SECONDS:.2%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="simulated seconds of each run (default 300)")
    options = parser.parse_args()
    waits(options.seconds)
    cost()


if __name__ == "__main__":
    main()
