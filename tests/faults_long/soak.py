"""Hours of load: what a router holds must not grow.

In: how many requests (`--requests`; a million is the full length). Out: resident memory, open files and threads of
every router over time, their slopes, and what is left in flight at the end.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import requests

from e2e.bed import Manifest, eventually
from faults.ground import processes_of
from faults_long.incident import Incident, count, named
from faults_long.loads import shaped_loop
from faults_long.scenario import Scenario
from faults_long.world import ROUTERS, World, settled

RATE = 60.0
SAMPLE_SECONDS = 10.0
WARM = 0.3  # of the time, in which caches fill


def play(world: World, incident: Incident) -> None:
    """Send so many requests and look at the routers every ten seconds."""
    bed, wanted = world.bed, int(world.options["requests"])
    steps = ["--sim-step-a=10", "--sim-step-b=0", "--sim-step-c=0", "--sim-step-d=0"]
    specs = {f"soaked-{node}": world.single_spec("soaked", node) for node in ("node-1", "node-2")}
    for spec in specs.values():
        spec["inferenceArgs"] = {"maxModelLen": 8192, "extraArgs": steps}
    with world.instances("soaked", specs):
        routers = bed.pods(ROUTERS)
        pids = [processes_of(pod["metadata"]["uid"], "router")[0] for pod in routers]
        at_rest = [open_files(pid) for pid in pids]
        samples: list[list[tuple[float, int, int, int]]] = [[] for _ in pids]
        incident.note(f"{wanted:,} requests, {RATE:.0f} a second")
        with shaped_loop(bed.router_url(), "soaked", RATE, 8, words=20, most=wanted) as load:
            begin, last = time.time(), -1
            while load.sent < wanted:
                settled(SAMPLE_SECONDS)
                for pid, found in zip(pids, samples, strict=True):
                    found.append((time.time(), *weight(pid)))
                if load.sent * 10 // wanted > last:
                    last = load.sent * 10 // wanted
                    incident.note(f"{load.sent:,} requests; {[one[-1][1] // 1024 for one in samples]} MiB")
        eventually(lambda: all(idle(pod) for pod in routers), 60)
        incident.note("the last answer is here, and nothing is in flight")
        count(incident, load)
        incident.figure("lost requests", named(load.failures(), incident.began))
        incident.expect(not load.failures(), f"{len(load.failures())} requests were lost: {load.failures()[:2]}")
        incident.figure("hours", (time.time() - begin) / 3600)
        for number, (pid, found) in enumerate(zip(pids, samples, strict=True)):
            judge(incident, f"router {number}", pid, found, at_rest[number])


def judge(incident: Incident, who: str, pid: int, found: Sequence[tuple[float, int, int, int]], at_rest: int) -> None:
    """Memory, files and threads of one router after its caches were warm."""
    warm = found[int(len(found) * WARM) :]
    incident.figure(
        f"{who}: MiB resident, first, warm, last",
        arrows(round(one[1] / 1024, 1) for one in (found[0], warm[0], found[-1])),
    )
    hours = (warm[-1][0] - warm[0][0]) / 3600
    incident.figure(f"{who}: growth once warm, MiB", round((warm[-1][1] - warm[0][1]) / 1024, 2))
    incident.figure(f"{who}: slope once warm, % an hour", slope([(one[0], one[1]) for one in warm]))
    incident.figure(
        f"{who}: open files at rest before, most, at rest after",
        arrows((at_rest, max(one[2] for one in found), open_files(pid))),
    )
    incident.figure(f"{who}: threads first, last", arrows((found[0][3], found[-1][3])))
    incident.expect(open_files(pid) <= at_rest + 4, f"{who} holds {open_files(pid) - at_rest} files more than before")
    incident.expect(found[-1][3] <= found[0][3] + 1, f"{who} has more threads than before")
    if hours >= 1:
        incident.expect(slope([(one[0], one[1]) for one in warm]) < 1, f"{who} grows by more than 1 % an hour")


def arrows(values: Iterable[float]) -> str:
    """A few values in the order of time."""
    return " -> ".join(map(str, values))


def weight(pid: int) -> tuple[int, int, int]:
    """Resident KiB, open files and threads of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(status["VmRSS"].split()[0]), open_files(pid), int(status["Threads"])


def open_files(pid: int) -> int:
    """Open files of a process."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def idle(router: Manifest) -> bool:
    """Whether a router has nothing in flight, as it says itself."""
    said = requests.get(f"http://{router['status']['podIP']}:9090/fleet", timeout=5).json()
    return not any(model["inFlight"] for model in said["models"].values()) and not said["waiting"]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Growth in percent of the mean, per hour, by least squares."""
    times, values = [one[0] for one in points], [one[1] for one in points]
    mean_time, mean = sum(times) / len(times), sum(values) / len(values)
    spread = sum((moment - mean_time) ** 2 for moment in times)
    together = sum((moment - mean_time) * (value - mean) for moment, value in points)
    return round(together / spread * 3600 / mean * 100, 2) if spread else 0.0


SCENARIOS = (
    Scenario(
        name="soak",
        title="a million requests (or as many as --requests says)",
        must_hold="none is lost; memory grows by less than 1 % an hour; files and threads do not grow",
        limit=6 * 3600,
        play=play,
    ),
)
