"""Redis is killed, and its disk is full: every job that was accepted ends once, and direct requests notice nothing.

Redis stands on a volume of 24 MiB here, so its disk is full as soon as something else fills it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from e2e.bed import Manifest, eventually
from e2e.load import Load, Reconnect, open_loop
from faults.ground import kill_in
from faults_long.incident import Incident, count, named
from faults_long.loads import Jobs, asking, takes_jobs
from faults_long.scenario import Scenario
from faults_long.world import DISK_NODE, REDIS, World, settled

SERVER = "redis-server *:6379"  # it writes its own title
KILLS = 3
FULL_SECONDS = 25.0


@contextmanager
def jobs_and_requests(world: World) -> Iterator[tuple[Jobs, Load]]:
    """One engine, eight jobs and eight direct requests a second."""
    url = world.bed.router_url()
    spec = world.single_spec("worked", "node-2")
    with (
        world.instances("worked", {"worked-0": spec}),
        open_loop(url, "worked", 8, 10, reconnect=Reconnect(times=2)) as load,
    ):
        jobs = Jobs(url, "worked", 4)
        with asking(jobs, 8):
            yield jobs, load


def redis_of(world: World) -> Manifest:
    """Redis' pod."""
    return world.bed.pods(REDIS)[0]


def is_up(world: World) -> bool:
    """Whether Redis' container runs and is ready."""
    states = redis_of(world)["status"].get("containerStatuses", ())
    return bool(states) and all(state["ready"] for state in states)


def killed(world: World, incident: Incident) -> None:
    """Kill Redis three times while jobs come in."""
    with jobs_and_requests(world) as (jobs, load):
        settled(8)
        longest = 0.0
        for number in range(KILLS):
            death = kill_in(redis_of(world)["metadata"]["uid"], SERVER)
            incident.note(f"Redis killed ({number + 1})", death.killed)
            eventually(lambda: takes_jobs(jobs), 120)
            longest = max(longest, incident.note("jobs are accepted again") - death.killed)
            settled(6)
        incident.figure("kills of Redis", KILLS)
        incident.figure("longest time without jobs in seconds", longest)
    judge(incident, jobs, load)


def judge(incident: Incident, jobs: Jobs, load: Load) -> None:
    """Every accepted job ended once, and no direct request was lost."""
    ends = jobs.ends(90)
    incident.figure("jobs accepted", len(jobs.accepted))
    incident.figure("how they ended", dict(ends))
    incident.figure("jobs refused", dict(jobs.refused))
    incident.figure("slowest answer to one who asked for a job, in seconds", jobs.slowest)
    left = {word: number for word, number in ends.items() if word.startswith(("forgotten", "unfinished"))}
    incident.expect(not left, f"accepted jobs that were lost: {left}")
    count(incident, load, "direct requests")
    lost = load.failures()
    incident.figure("lost requests", named(lost, incident.began))
    incident.expect(not lost, f"{len(lost)} direct requests were lost: {lost[:2]}")


@contextmanager
def full_disk(world: World) -> Iterator[None]:
    """Fill the disk Redis writes to."""
    filler = f"{world.folder}/small-disk/filler"
    try:
        world.on_node(DISK_NODE, "sh", "-c", f"dd if=/dev/zero of={filler} bs=4k 2>/dev/null; true")
        yield
    finally:
        world.on_node(DISK_NODE, "rm", "-f", filler)


def disk_full(world: World, incident: Incident) -> None:
    """Fill the disk while jobs come in, give the room back, then kill Redis: what it said it had must be there."""
    with jobs_and_requests(world) as (jobs, load):
        settled(8)
        with full_disk(world):
            begin = incident.note("the disk of Redis is full")
            before = sum(jobs.refused.values())
            eventually(lambda: sum(jobs.refused.values()) > before + 3, 60)
            incident.figure("seconds until jobs were refused", incident.note("jobs are refused") - begin)
            settled(FULL_SECONDS)
        room = incident.note("there is room again")
        eventually(lambda: takes_jobs(jobs), 120)
        incident.figure("seconds until jobs were accepted again", incident.note("jobs are accepted again") - room)
        settled(5)
        incident.note("Redis killed", kill_in(redis_of(world)["metadata"]["uid"], SERVER).killed)
        eventually(lambda: takes_jobs(jobs), 120)
        incident.note("jobs are accepted again")
        settled(3)
    judge(incident, jobs, load)


SCENARIOS = (
    Scenario(
        name="redis-killed",
        title="Redis killed three times while jobs come in",
        must_hold="every accepted job ends once; nobody is given an id that is lost; direct requests notice nothing",
        limit=400,
        play=killed,
    ),
    Scenario(
        name="redis-disk-full",
        title="the disk of Redis full, then Redis killed",
        must_hold="jobs are refused, not accepted and lost; they come back by themselves; direct requests go on",
        limit=400,
        play=disk_full,
    ),
)
