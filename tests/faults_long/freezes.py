"""One rank of a group is frozen: it neither answers nor ends, and its connections stay open.

Leader and follower, each while the group is idle, while it reads a prompt and while it writes an answer. A frozen rank
is what a hung collective or a dead device looks like from outside.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import requests

from e2e.bed import Manifest, eventually
from e2e.load import Load, Reconnect
from faults.ground import processes_of
from faults_long.incident import Incident, count, named, spread
from faults_long.loads import shaped_loop
from faults_long.scenario import Scenario
from faults_long.world import NODES, ROUTERS, World, settled

STALL = 15  # lifecycle.stallTimeoutSeconds here: 60 by default
ROUTER_STALL = 30.0
PROMPT = 400  # words, each 5 ms long where a prompt is to take its time
# Of such prompts one engine must be able to read all that come while the other one is away: more of them in one step
# would take longer than the stall timeout, and a healthy group would be made anew as a hung one.
PROMPT_RATE = 0.2


@contextmanager
def frozen(pod_uid: str, word: str) -> Iterator[list[int]]:
    """Stop the processes of a pod that were started with a word; those that are left go on afterwards."""
    pids = processes_of(pod_uid, word)
    assert pids, f"no process of pod {pod_uid} was started with {word!r}"
    handles = [os.pidfd_open(pid) for pid in pids]
    try:
        for handle in handles:
            signal.pidfd_send_signal(handle, signal.SIGSTOP)
        yield pids
    finally:
        for handle in handles:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGCONT)
            os.close(handle)


def spec(world: World, phase: str) -> Manifest:
    """An engine whose prompts take some two seconds when they are what is to be hit."""
    steps = ["--sim-step-a=50", "--sim-step-b=0", f"--sim-step-c={5 if phase == 'prefill' else 0}", "--sim-step-d=0"]
    made = world.spread_spec("frozen", NODES, lifecycle={"stallTimeoutSeconds": STALL})
    return made | {"inferenceArgs": {"maxModelLen": 8192, "extraArgs": steps}}


def play(rank: int, phase: str, world: World, incident: Incident) -> None:
    """Freeze a rank of one of two groups, watch it being made anew, ask it again."""
    bed = world.bed
    rate, tokens, words = (PROMPT_RATE, 4, PROMPT) if phase == "prefill" else (4.0, 100, 0)
    with bed.fleet("frozen", 2, spec(world, phase), wait=120) as names, ExitStack() as stack:
        victim, router = world.random.choice(names), bed.pods(ROUTERS)[0]
        eventually(lambda: all(world.offers(router, name) for name in names), 30)
        before, pod = bed.uids(victim), bed.ranks(victim)[rank]
        loop = partial(shaped_loop, bed.router_url(), "frozen", rate, tokens, words=words, reconnect=Reconnect(2))
        load = Load() if phase == "idle" else stack.enter_context(loop())
        settled(0 if phase == "idle" else 9)
        begin = incident.note(f"rank {rank} of {victim} frozen ({phase})")
        with frozen(pod["metadata"]["uid"], "serve"):
            if phase == "idle":
                settled(5)
                incident.note("the first request comes")
                load = stack.enter_context(loop())
            out = eventually(lambda: 0 if world.offers(router, victim) else time.time(), 120)
            incident.note("the router sends it nothing more", out)
            eventually(lambda: bed.uids(victim) and not before & bed.uids(victim), 180, lambda: bed.why("frozen"))
            anew = incident.note("every rank of it is a new pod")
            eventually(partial(bed.is_ready, victim), 120, lambda: bed.why("frozen"))
            ready = incident.note("it is ready")
        eventually(lambda: world.offers(router, victim), 30)
        settled(6)
        stack.close()
        judge(incident, load, begin)
        incident.figure("seconds until the router sent nothing more", out - begin)
        incident.figure("seconds until every rank was a new pod", anew - begin)
        incident.figure("seconds until it was ready again", ready - begin)
        incident.figure("restarts of the group", world.group_restarts(victim))
        incident.expect(world.group_restarts(victim) == 1, "the group was not restarted exactly once")
        incident.expect(serves(bed.ranks(victim)[0], "frozen"), "the group that came back does not serve")


def judge(incident: Incident, load: Load, begin: float) -> None:
    """Nothing is silent, nothing waits longer than the router's stall timeout once its answer had begun."""
    count(incident, load)
    lost = load.failures()
    incident.figure("requests lost", len(lost))
    incident.figure("lost requests", named(lost, incident.began))
    incident.figure("seconds from the freeze to the word", dict(spread(one.end - begin for one in lost)))
    started = [one for one in lost if one.chunks and one.end - max(begin, one.begin) > ROUTER_STALL + 10]
    incident.expect(not started, f"{len(started)} streams were told later than the stall timeout: {started[:2]}")
    unstarted = [one for one in lost if not one.chunks]
    incident.expect(not unstarted, f"{len(unstarted)} requests without a token were lost: {unstarted[:2]}")


def serves(leader: Manifest, model: str) -> bool:
    """Whether an engine answers when it is asked without a router."""
    ask = {"model": model, "prompt": "Hi", "max_tokens": 2}
    answer = requests.post(f"http://{leader['status']['podIP']}:8000/v1/completions", json=ask, timeout=20)
    return answer.status_code == 200


SCENARIOS = tuple(
    Scenario(
        name=f"freeze-{who}-{phase}",
        title=f"the {who} of a group frozen ({word})",
        must_hold="found; the group made anew once and serving; what has no token yet is answered elsewhere",
        limit=420,
        play=partial(play, rank, phase),
    )
    for rank, who in enumerate(("leader", "follower"))
    for phase, word in (("idle", "idle"), ("prefill", "reading a prompt"), ("decode", "writing an answer"))
)
