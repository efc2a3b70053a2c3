"""One rank of a group is lost: killed, frozen, or out of memory.

Leader and follower, each while its group loads, is idle, reads a prompt and writes an answer: eight fleets of two
groups each, with a load of its own, and one group of each is hit. A frozen rank is what a hung collective or a dead
device looks like from outside.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import requests

from e2e.bed import Bed, Manifest, eventually
from e2e.load import Load, Outcome, Reconnect
from faults.ground import processes_of
from faults_long.incident import Incident, count, named, spread
from faults_long.injectors import Injector, frozen, killed, out_of_memory
from faults_long.loads import shaped_loop
from faults_long.scenario import Scenario
from faults_long.world import NODES, ROUTERS, World, settled

STALL = 15  # lifecycle.stallTimeoutSeconds here: 60 by default
STARTUP = 60  # lifecycle.startupTimeoutSeconds here: 1800 by default
ROUTER_STALL = 30.0
LOADING = 15  # seconds a group loads where it is to be hit then
PROMPT = 400  # words, each 5 ms long where a prompt is to take its time
# Of such prompts one engine must be able to read all that come while the other one is away: more of them in one step
# would take longer than the stall timeout, and a healthy group would be made anew as a hung one.
PROMPT_RATE = 0.2
RATE = 2.0
AT_ONCE = 4  # fleets of four pods each: more start so slowly on two cores that the start is what is tested
WHO, PHASES = ("leader", "follower"), ("load", "idle", "prefill", "decode")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Which rank is lost, and what its group does then."""

    rank: int
    phase: str
    ordinal: int

    @property
    def model(self) -> str:
        """Its fleet, of its own."""
        return f"{WHO[self.rank]}-{self.phase}"

    @property
    def victim(self) -> str:
        """The group that is hit; one that is to load then is made beside the two that serve."""
        return f"{self.model}-{2 if self.phase == 'load' else self.ordinal}"


@dataclass(frozen=True, kw_only=True)
class Story:
    """What became of it, Unix times in seconds."""

    case: Case
    load: Load
    begin: float
    out: float
    anew: float
    ready: float
    restarts: int
    told: str


def spec(world: World, case: Case) -> Manifest:
    """An engine that takes its time for what it is to be hit in."""
    steps = ["--sim-step-a=50", "--sim-step-b=0", f"--sim-step-c={5 if case.phase == 'prefill' else 0}"]
    loading = [f"--sim-load-seconds={LOADING}"] if case.phase == "load" else []
    lifecycle = {"stallTimeoutSeconds": STALL, "startupTimeoutSeconds": STARTUP}
    made = world.spread_spec(case.model, NODES, lifecycle=lifecycle)
    return made | {"inferenceArgs": {"maxModelLen": 8192, "extraArgs": [*steps, "--sim-step-d=0", *loading]}}


def play(inject: Injector, says: str, world: World, incident: Incident) -> None:
    """All eight, half of them at once."""
    chosen = world.random.randrange
    cases = [Case(rank=rank, phase=phase, ordinal=chosen(2)) for rank in range(len(WHO)) for phase in PHASES]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(one_case, case, inject, world, incident) for case in cases]
        stories = [future.result() for future in futures]
    judge(incident, stories)
    quiet = [one.case.model for one in stories if says not in one.told]
    incident.expect(not quiet, f"no event of these groups says {says!r}: {', '.join(quiet)}")


def one_case(case: Case, inject: Injector, world: World, incident: Incident) -> Story:
    """Lose one rank, watch its group being made anew, ask it again."""
    bed, model, victim = world.bed, case.model, case.victim
    with bed.fleet(model, 2, spec(world, case), wait=240) as names, ExitStack() as stack:
        router = bed.pods(ROUTERS)[0]
        eventually(lambda: all(world.offers(router, name) for name in names), 60)
        words, rate, tokens = (PROMPT, PROMPT_RATE, 4) if case.phase == "prefill" else (0, RATE, 100)
        loop = partial(shaped_loop, bed.router_url(), model, rate, tokens, words=words, reconnect=Reconnect(2))
        load = Load() if case.phase == "idle" else stack.enter_context(loop())
        settled(1 if case.phase == "idle" else 9)
        if case.phase == "load":
            bed.create(victim, spec(world, case), fleet=model)
            eventually(partial(loading, bed, victim), 120, lambda: bed.why(model))
        before, pod = bed.uids(victim), bed.ranks(victim)[case.rank]
        with inject(pod["metadata"]["uid"], "serve"):
            begin = incident.note(f"{victim}: rank {case.rank} is lost")  # it may take a while to run out of memory
            if case.phase == "idle":
                settled(5)
                load = stack.enter_context(loop())
            out = eventually(lambda: 0 if world.offers(router, victim) else time.time(), 180)
            eventually(lambda: bed.uids(victim) and not before & bed.uids(victim), 300, lambda: bed.why(model))
            anew = incident.note(f"{victim}: every rank is a new pod")
            eventually(partial(bed.is_ready, victim), 240, lambda: bed.why(model))
            ready = incident.note(f"{victim}: ready")
        eventually(lambda: world.offers(router, victim), 60)
        settled(4)
        stack.close()
        incident.expect(serves(bed.ranks(victim)[0], model), f"{victim} came back and does not serve")
        times = {"begin": begin, "out": out, "anew": anew, "ready": ready}
        told = " ".join(str(event.get("note", "")) for event in bed.events(victim))
        return Story(case=case, load=load, restarts=world.group_restarts(victim), told=told, **times)


def loading(bed: Bed, victim: str) -> bool:
    """Whether an engine process runs in every rank of a group that is not ready."""
    ranks = bed.ranks(victim)
    return len(ranks) == len(WHO) and all(processes_of(pod["metadata"]["uid"], "serve") for pod in ranks)


def judge(incident: Incident, stories: Sequence[Story]) -> None:
    """Each was found, made anew and serves; nothing is silent; only what had begun to answer may be cut."""
    together = Load([one for story in stories for one in story.load.outcomes], sum(one.load.sent for one in stories))
    count(incident, together)
    lost = [(story, one) for story in stories for one in story.load.failures()]
    incident.figure("requests lost", len(lost))
    incident.figure("lost requests", named([one for _, one in lost], incident.began))
    words = [one.end - story.begin for story, one in lost]
    if words:
        incident.figure("seconds from the loss to the word", dict(spread(words)))
    for name, moment in measured(stories):
        incident.figure(name, dict(spread(moment)))
    again = [one.case.model for one in stories if one.restarts != 1]
    incident.expect(not again, f"these groups were not restarted exactly once: {', '.join(again)}")
    incident.figure("groups hit, restarts of groups", [len(stories), sum(one.restarts for one in stories)])
    expect_no_victims(incident, lost)


def measured(stories: Sequence[Story]) -> Iterator[tuple[str, list[float]]]:
    """How long everything took, group by group."""
    yield "seconds until the router sent it nothing more", [one.out - one.begin for one in stories]
    yield "seconds until every rank was a new pod", [one.anew - one.begin for one in stories]
    yield "seconds until it was ready again", [one.ready - one.begin for one in stories]


def expect_no_victims(incident: Incident, lost: Sequence[tuple[Story, Outcome]]) -> None:
    """What had no token yet is answered elsewhere; what had is told within the router's stall timeout."""
    late = [one for story, one in lost if one.chunks and one.end - max(story.begin, one.begin) > ROUTER_STALL + 10]
    incident.expect(not late, f"{len(late)} streams were told later than the stall timeout: {late[:2]}")
    unstarted = [one for _, one in lost if not one.chunks]
    incident.expect(not unstarted, f"{len(unstarted)} requests without a token were lost: {unstarted[:2]}")


def serves(leader: Manifest, model: str) -> bool:
    """Whether an engine answers when it is asked without a router."""
    ask = {"model": model, "prompt": "Hi", "max_tokens": 2}
    answer = requests.post(f"http://{leader['status']['podIP']}:8000/v1/completions", json=ask, timeout=60)
    return answer.status_code == 200


# A name, the words, the way, and what an event about the group must say of it.
WAYS = (
    ("killed", "killed", killed, "exit code 137"),
    ("frozen", "frozen", frozen, ""),
    ("memory", "out of memory", out_of_memory, "OOMKilled"),
)
SCENARIOS = tuple(
    Scenario(
        name=f"ranks-{name}",
        title=f"a rank {way}: leader and follower, each while it loads, is idle, reads a prompt, writes an answer",
        must_hold="found; its group made anew once and serving; what has no token yet is answered elsewhere",
        limit=1200,
        play=partial(play, inject, says),
    )
    for name, way, inject, says in WAYS
)
