"""A router meets its memory limit: by bodies of requests as large as it takes, and by force.

Bodies must not be able to do it: what they hold in all is bounded, and what is over the bound is refused. Something
else that grows in the same container can, and then the kernel kills the router.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import aiohttp

from e2e.bed import Manifest, eventually
from e2e.beside import beside
from e2e.load import REFUSED, Load, Outcome, Reconnect, open_loop
from faults.ground import Death, processes_of
from faults.test_control_plane_dead import answers
from faults_long.incident import Incident, count, named
from faults_long.injectors import memory_group
from faults_long.scenario import Scenario
from faults_long.world import World, settled

MEBIBYTE = 1 << 20
BODY = 16 * MEBIBYTE
TIMES_THE_LIMIT = 1.6  # what the bodies would need, had all of them to be held
PROMPT_WORDS, STEP = 100, 20  # words, and milliseconds that an engine reads on each: two seconds until the first token
PATIENT = Reconnect(times=4)
# It joins the container's memory group and grows until it is told that the victim is dead, or is killed itself. The
# kernel prefers the router: pods' processes carry a score that ours does not.
TAKER = """
import os, select, sys, time
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
taken = []
while not select.select([0], [], [], 0.005)[0] and len(taken) < int(sys.argv[2]):
    taken.append(b"x" * (1 << 20))
"""


# -- bodies ----------------------------------------------------------------------------------------------------------


@dataclass
class Bodies:
    """What became of requests with large bodies."""

    answers: Counter[str] = field(default_factory=Counter)

    async def send(self, session: aiohttp.ClientSession, url: str, raw: bytes) -> None:
        """Send one and note how it was answered."""
        headers = {"content-type": "application/json"}
        try:
            async with session.post(f"{url}/v1/completions", data=raw, headers=headers) as answer:
                text = await answer.read()
                code = "" if answer.status == 200 else str(json.loads(text)["error"]["code"])
                self.answers[f"{answer.status} {code}".strip()] += 1
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as problem:
            self.answers[type(problem).__name__] += 1


def flood(url: str, model: str, number: int) -> Bodies:
    """Send so many large requests at once and wait for every answer."""
    prompt = "word " * PROMPT_WORDS
    body = {"model": model, "prompt": prompt, "max_tokens": 2, "ignore_eos": True, "user": "u" * BODY}
    raw, found = json.dumps(body).encode(), Bodies()

    async def drive() -> None:
        limits = aiohttp.ClientTimeout(total=240, sock_connect=20)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=limits) as session:
            await asyncio.gather(*(found.send(session, url, raw) for _ in range(number)))

    asyncio.run(drive())
    return found


def by_bodies(world: World, incident: Incident, router: Manifest, limit: int) -> None:
    """Ask for more than the limit in bodies, all at once, of an engine that is slow to begin its answers."""
    number = int(TIMES_THE_LIMIT * limit / BODY)
    before, group = world.restarts(), group_of(router)
    incident.note(f"{number} requests of {BODY // MEBIBYTE} MiB to one router, whose limit is {limit // MEBIBYTE} MiB")
    with watched(group) as most:
        found = flood(f"http://{router['status']['podIP']}:8080", "bulky", number)
    incident.note(f"answered: {dict(found.answers)}")
    incident.figure("bodies sent at once, MiB", number * BODY // MEBIBYTE)
    incident.figure("limit of the router, MiB", limit // MEBIBYTE)
    incident.figure("most memory of the router, MiB", most[0] // MEBIBYTE)
    incident.figure("how the large requests were answered", dict(found.answers))
    changed = {name: times - before.get(name, 0) for name, times in world.restarts().items()}
    killed = {name: times for name, times in changed.items() if times}
    incident.expect(not killed, f"large bodies killed the router: {killed}")
    odd = {word: times for word, times in found.answers.items() if word not in ("200", "503 server_is_overloaded")}
    incident.expect(not odd, f"answers that are neither whole nor a refusal: {odd}")
    incident.expect(found.answers["200"] > 0, "not one large request was answered")


@contextmanager
def watched(group: Path) -> Iterator[list[int]]:
    """The most that the processes of a memory group held while the block ran."""
    most = [0]

    def look(stop: threading.Event) -> None:
        while not stop.wait(0.1):
            most[0] = max(most[0], resident(group))

    with beside(look):
        yield most


def resident(group: Path) -> int:
    """Bytes of memory that the processes of a group hold."""
    total = 0
    for pid in (group / "cgroup.procs").read_text().split():
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
    return total * os.sysconf("SC_PAGE_SIZE")


# -- force -----------------------------------------------------------------------------------------------------------


def group_of(router: Manifest) -> Path:
    """The memory control group of a router's own container."""
    return memory_group(processes_of(router["metadata"]["uid"], "router")[0])


def squeezed(router: Manifest, limit: int) -> Death:
    """Take the memory of a router's container until the kernel has killed the router."""
    pid = processes_of(router["metadata"]["uid"], "router")[0]
    handle = os.pidfd_open(pid)
    command = [sys.executable, "-c", TAKER, str(group_of(router)), str(2 * limit // MEBIBYTE)]
    begin = time.time()
    taker = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        wait = select.poll()
        wait.register(handle, select.POLLIN)
        assert wait.poll(60_000), "the router outlived a container without memory"
        return Death(begin, time.time())
    finally:
        os.close(handle)
        if taker.stdin:
            taker.stdin.close()
        taker.wait()


def by_force(world: World, incident: Incident, router: Manifest, limit: int) -> None:
    """Squeeze the router under load, and wait until it is there again."""
    bed, uid, address = world.bed, router["metadata"]["uid"], router["status"]["podIP"]
    with open_loop(bed.router_url(), "plain", 20, 40, reconnect=PATIENT) as load:
        settled(6)
        incident.note("something else in its container takes memory")
        death = squeezed(router, limit)
        incident.note("the kernel has killed the router", death.dead)
        eventually(lambda: processes_of(uid, "router") and answers(address), 120)
        incident.figure("seconds until it answered again", incident.note("it answers again") - death.dead)
        eventually(world.whole, 120, world.why_not_whole)
        incident.figure("seconds until it was ready again", incident.note("it is ready") - death.dead)
        eventually(lambda: world.offers(router, "plain-0"), 30)
        settled(5)
    reason = eventually(partial(last_end, world, router), 60)
    incident.note(f"the kubelet says: {reason}")
    incident.expect(reason == "OOMKilled", f"the kubelet says {reason}")
    judge(incident, load, death)


def last_end(world: World, router: Manifest) -> str:
    """Why a router's container ended last."""
    pod = next(one for one in world.bed.pods("") if one["metadata"]["uid"] == router["metadata"]["uid"])
    states = {state["name"]: state for state in pod["status"]["containerStatuses"]}
    return str(states["router"].get("lastState", {}).get("terminated", {}).get("reason", ""))


def judge(incident: Incident, load: Load, death: Death) -> None:
    """What was open on the router is cut; what begins later is served."""
    count(incident, load)
    lost = load.failures()
    cut = [one for one in lost if death.cut(one) and one.kind != REFUSED]
    incident.figure("requests open on the killed router", len(cut))
    incident.figure("lost requests", named(lost, incident.began))
    others: list[Outcome] = [one for one in lost if one not in cut]
    incident.figure("requests lost otherwise", len(others))
    incident.expect(not others, f"{len(others)} requests were lost that were not open on it: {others[:2]}")


def play(world: World, incident: Incident) -> None:
    """Bodies first, then force."""
    bed, router = world.bed, world.router_on("node-0")
    container = next(one for one in router["spec"]["containers"] if one["name"] == "router")
    limit = mebibytes(container["resources"]["limits"]["memory"]) * MEBIBYTE
    steps = ["--sim-step-a=50", "--sim-step-b=0", f"--sim-step-c={STEP}", "--sim-step-d=0"]
    slow = world.single_spec("bulky", "node-2") | {"inferenceArgs": {"maxModelLen": 8192, "extraArgs": steps}}
    slow["resources"] = {"requests": {"cpu": "10m", "memory": "48Mi"}, "limits": {"memory": "4Gi"}}
    with (
        world.instances("bulky", {"bulky-0": slow}),
        world.instances("plain", {"plain-0": world.single_spec("plain", "node-2")}),
    ):
        eventually(lambda: world.offers(router, "bulky-0") and world.offers(router, "plain-0"), 60)
        with open_loop(bed.router_url(), "plain", 4, 20, reconnect=PATIENT) as load:
            settled(3)
            by_bodies(world, incident, router, limit)
            settled(2)
        lost = load.failures()
        incident.expect(not lost, f"{len(lost)} small requests were lost beside the large ones: {lost[:2]}")
        incident.figure("small requests meanwhile", load.sent)
        incident.figure("small requests meanwhile: lost", len(lost))
        eventually(world.whole, 120, world.why_not_whole)
        by_force(world, incident, router, limit)


def mebibytes(quantity: str) -> int:
    """A memory limit as the chart writes it."""
    return int(quantity.removesuffix("Mi")) if quantity.endswith("Mi") else 1024 * int(quantity.removesuffix("Gi"))


SCENARIOS = (
    Scenario(
        name="router-out-of-memory",
        title="a router at its memory limit: by bodies of 16 MiB, and by force",
        must_hold="bodies are refused before they kill it; killed, it costs what is open on it, and it comes back",
        limit=700,
        play=play,
    ),
)
