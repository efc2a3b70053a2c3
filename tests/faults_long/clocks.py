"""Clocks that are wrong: operators, the autoscaler and a router are an hour ahead or behind, and jump.

libfaketime stands in every container of theirs, and each pod has a file that says how wrong its clock is; without one
it is right. Steady clocks stay steady, as in reality. Two operators stand for one lease, one ahead and one behind.
"""

from __future__ import annotations

import copy
import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import requests

from e2e.bed import GROUP, RELEASE, Bed, Manifest, engine_spec, eventually
from e2e.beside import beside
from e2e.load import Reconnect, many_streams, open_loop
from faults.ground import kill_in
from faults_long.control_plane import FAKETIME, faketime, long_valid
from faults_long.incident import Incident, count, named
from faults_long.injectors import frozen
from faults_long.loads import Jobs, asking
from faults_long.scenario import Scenario
from faults_long.world import NAMESPACE, World, settled

HOUR = 3600
DEPLOYMENTS = tuple(f"{RELEASE}-{part}" for part in ("operator", "autoscaler", "router"))
OPERATORS, AUTOSCALER = "app.kubernetes.io/component=operator", "app.kubernetes.io/component=autoscaler"
TWICE = Reconnect(times=2)
JOB_SECONDS = 60  # queue.jobTtlSeconds
STEPS = ["--sim-step-a=50", "--sim-step-b=0", "--sim-step-c=0", "--sim-step-d=0"]
SCALED: Manifest = {
    "mode": "monolithic",
    "scaleTargetRef": {"labelSelector": {"matchLabels": {"serving.ai/fleet": "sized"}}},
    "minInstances": 2,
    "maxInstances": 3,
    "workBudget": {
        "slo": {"ttftSeconds": "2", "tpotSeconds": "0.2", "errorBudget": "0.05"},
        "capacity": {"coefficients": {"a": "0.05", "b": "0", "c": "0", "d": "0"}},
        "coldStartSeconds": 15,
    },
    "behavior": {"scaleDown": {"stabilizationSeconds": 1800}},
}


# -- wrong clocks ----------------------------------------------------------------------------------------------------


@dataclass
class Clocks:
    """The clocks of pods, as files of this machine."""

    folder: Path

    def set(self, pod: Manifest, seconds: int) -> None:
        """Put a pod's clock wrong by so much, from now on: within a second it sees that."""
        beside = self.folder / ".new"
        beside.write_text(f"{seconds:+d}\n")
        beside.chmod(0o644)
        beside.replace(self.folder / pod["metadata"]["name"])


@contextmanager
def wrong_clocks(world: World) -> Iterator[Clocks]:
    """Every container of ours takes its time from us; afterwards they are as they were."""
    folder = world.folder / "clocks"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    shutil.copy(faketime(), folder / FAKETIME.name)
    before = {name: json.loads(get(world, name)) for name in DEPLOYMENTS}
    try:
        for name, found in before.items():
            replace_template(world, name, clocked(found["spec"]["template"], folder))
        scale_operators(world, 2)
        yield Clocks(folder)
    finally:
        scale_operators(world, before[DEPLOYMENTS[0]]["spec"]["replicas"])
        for name, found in before.items():
            replace_template(world, name, found["spec"]["template"])
        shutil.rmtree(folder)


def get(world: World, deployment: str) -> str:
    """A Deployment as it is."""
    return world.kubectl("get", "deployment", deployment, "--namespace", NAMESPACE, "--output=json")


def replace_template(world: World, deployment: str, template: Manifest) -> None:
    """Give a Deployment other pods, and wait for them."""
    patch = json.dumps([{"op": "replace", "path": "/spec/template", "value": template}])
    where = ("--namespace", NAMESPACE)
    world.kubectl("patch", "deployment", deployment, *where, "--type=json", f"--patch={patch}")
    world.kubectl("rollout", "status", f"deployment/{deployment}", *where, "--timeout=240s")


def scale_operators(world: World, count: int) -> None:
    """So many operators, of which one leads."""
    name, where = DEPLOYMENTS[0], ("--namespace", NAMESPACE)
    world.kubectl("scale", "deployment", name, *where, f"--replicas={count}")
    world.kubectl("rollout", "status", f"deployment/{name}", *where, "--timeout=240s")


def clocked(template: Manifest, folder: Path) -> Manifest:
    """The same pods with a clock that can be set."""
    made = copy.deepcopy(template)
    spec = made["spec"]
    spec["volumes"] = [*spec.get("volumes", []), {"name": "clock", "hostPath": {"path": str(folder)}}]
    texts = {
        "FAKETIME_TIMESTAMP_FILE": "/clock/$(CLOCK_OF)",
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DISABLE_SHM": "1",
        "LD_PRELOAD": f"/clock/{FAKETIME.name}",
    }
    name = {"name": "CLOCK_OF", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    for container in spec["containers"]:
        env = [name, *({"name": key, "value": text} for key, text in texts.items())]
        container["env"] = [*container.get("env", []), *env]
        mount = {"name": "clock", "mountPath": "/clock", "readOnly": True}
        container["volumeMounts"] = [*container.get("volumeMounts", []), mount]
    return made


# -- who leads -------------------------------------------------------------------------------------------------------


@dataclass
class Leaders:
    """Who said to lead, look by look."""

    world: World
    seen: list[tuple[float, frozenset[str]]] = field(default_factory=list)

    def look(self) -> None:
        """Ask every operator."""
        leading = frozenset(
            pod["metadata"]["name"] for pod in self.world.bed.pods(OPERATORS) if gauge(pod, "llmfleet_operator_leader")
        )
        self.seen.append((time.time(), leading))

    def now(self) -> str:
        """Who leads alone, by the last look; empty when nobody does or two do."""
        leading = self.seen[-1][1] if self.seen else frozenset()
        return next(iter(leading)) if len(leading) == 1 else ""

    def two(self) -> list[frozenset[str]]:
        """Looks at which two led, and at the look before too: one look may fall into the hand-over."""
        pairs = zip(self.seen, self.seen[1:], strict=False)
        return [leading for (_, before), (_, leading) in pairs if len(leading) > 1 and before == leading]


@contextmanager
def watched(world: World) -> Iterator[Leaders]:
    """Look again and again while the block runs."""
    leaders = Leaders(world)

    def look(stop: threading.Event) -> None:
        while not stop.wait(0.3):
            leaders.look()

    with beside(look):
        yield leaders


def gauge(pod: Manifest, name: str) -> float:
    """One figure of a process; 0 when it does not answer."""
    with suppress(requests.RequestException, KeyError):
        text = requests.get(f"http://{pod['status']['podIP']}:9090/metrics", timeout=2).text
        return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)
    return 0.0


# -- what goes on meanwhile ------------------------------------------------------------------------------------------


@contextmanager
def sized(world: World) -> Iterator[None]:
    """A fleet that an autoscaler made of two, and that it may make smaller when half an hour has shown it is idle."""
    bed = world.bed
    template = engine_spec("sized", replicas=1, tensorParallelSize=1)
    template["inferenceArgs"] = {"maxModelLen": 8192, "extraArgs": STEPS}
    labels = {"serving.ai/fleet": "sized", "app.kubernetes.io/instance": RELEASE}
    body = {
        "apiVersion": "/".join(GROUP),
        "kind": "LLMClusterAutoscaler",
        "metadata": {"name": "sized"},
        "spec": SCALED | {"instanceTemplate": {"namePrefix": "sized-", "labels": labels, "spec": template}},
    }
    try:
        bed.custom.create_namespaced_custom_object(*GROUP, NAMESPACE, "llmclusterautoscalers", body)
        eventually(lambda: ready_of(bed, "sized") == 2, 120, lambda: bed.why("sized"))
        smaller = {"spec": {"minInstances": 1}}
        bed.custom.patch_namespaced_custom_object(*GROUP, NAMESPACE, "llmclusterautoscalers", "sized", smaller)
        yield
    finally:
        world.kubectl("delete", "llmclusterautoscaler", "sized", "--namespace", NAMESPACE, "--ignore-not-found")
        for one in bed.instances("sized"):
            bed.delete(one["metadata"]["name"])
        eventually(lambda: not bed.instances("sized"), 180, lambda: bed.why("sized"))


def ready_of(bed: Bed, fleet: str) -> int:
    """How many instances of a fleet are ready."""
    return sum(bed.is_ready(one["metadata"]["name"]) for one in bed.instances(fleet))


@dataclass
class Expiring:
    """A job that waits behind a stream on the only slot there is, asked for at a router whose clock is wrong.

    Each router takes one job for a model at least, however few its slots are, and has it wait with those who hold on:
    it is behind some of these.
    """

    url: str
    model: str
    ended: str = ""
    seconds: float = 0.0

    def follow(self) -> None:
        """Fill the slot, ask for the job, wait for its end."""
        stream = threading.Thread(target=lambda: many_streams(self.url, self.model, 1, 1800, lambda: None))
        stream.start()
        time.sleep(3)
        ahead, jobs = Jobs(self.url, self.model, 4), Jobs(self.url, self.model, 4)
        for _ in range(4):
            ahead.ask()
        jobs.ask()
        begin = time.monotonic()
        self.ended = next(iter(jobs.ends(JOB_SECONDS + 60)), f"refused: {dict(jobs.refused)}")
        self.seconds = time.monotonic() - begin
        stream.join()


def come_and_go(world: World, incident: Incident, name: str, leaving: str) -> None:
    """Ask for an instance and give another up, under load: one start, and a drain that waits for its streams."""
    bed, begin = world.bed, time.time()
    bed.create(name, group(world), fleet="timed")
    eventually(partial(bed.is_ready, name), 120, lambda: bed.why("timed"))
    incident.figure(f"seconds until a new instance served ({name})", time.time() - begin)
    incident.expect(world.group_restarts(name) == 0, f"{name} was restarted {world.group_restarts(name)} times")
    bed.delete(leaving)
    begin = time.time()
    eventually(lambda: bed.instance(leaving) is None, 120, lambda: bed.why("timed"))
    incident.figure(f"seconds until an instance was drained ({leaving})", time.time() - begin)
    incident.note(f"{name} has come, {leaving} has gone")


def group(world: World) -> Manifest:
    """A group of two whose streams last eight seconds and whose drain may last a minute."""
    return engine_spec("timed", lifecycle={"startupTimeoutSeconds": 120, "drainTimeoutSeconds": 60})


# -- the scenario ----------------------------------------------------------------------------------------------------


def play(world: World, incident: Incident) -> None:
    """Clocks wrong one way, the leader killed, clocks wrong the other way."""
    long_valid(world)
    incident.note("certificates are valid since two days: clocks may be behind")
    names = {f"timed-{number}": group(world) for number in range(3)}
    narrow = world.single_spec("narrow", "node-2")
    narrow["inferenceArgs"] = {"maxModelLen": 8192, "maxNumSeqs": 1, "extraArgs": STEPS}
    with (
        wrong_clocks(world) as clocks,
        world.instances("timed", {name: names[name] for name in ("timed-0", "timed-1", "timed-2")}),
        world.instances("narrow", {"narrow-0": narrow}),
        sized(world),
        watched(world) as leaders,
    ):
        before = uids(world)
        restarts = world.restarts()
        with open_loop(world.bed.router_url(), "timed", 3, 160, reconnect=TWICE) as load:
            jobs = under_wrong_clocks(world, incident, clocks, leaders)
            settled(3)
        judge_instances(world, incident, before, restarts)
        count(incident, load)
        lost = load.failures()
        incident.figure("lost requests", named(lost, incident.began))
        incident.expect(not lost, f"{len(lost)} requests were lost: {lost[:2]}")
        ends = jobs.ends(60)
        incident.figure("jobs accepted by the router with a wrong clock", len(jobs.accepted))
        incident.figure("how they ended", dict(ends))
        incident.expect(set(ends) <= {"complete"} and bool(ends), f"jobs ended {dict(ends)}, refused {jobs.refused}")
        two = leaders.two()
        incident.figure("looks at who leads", len(leaders.seen))
        incident.figure("looks at which two operators led", len(two))
        incident.expect(not two, f"two operators led at once: {two[:2]}")
        for name in ("timed-3", "timed-4"):
            world.bed.delete(name)
        eventually(lambda: not world.bed.instance("timed-3") and not world.bed.instance("timed-4"), 180)


def under_wrong_clocks(world: World, incident: Incident, clocks: Clocks, leaders: Leaders) -> Jobs:
    """The story itself; returns the jobs that were asked for meanwhile."""
    bed = world.bed
    leader = pod_of(world, eventually(leaders.now, 60))
    other = next(pod for pod in bed.pods(OPERATORS) if pod["metadata"]["name"] != leader["metadata"]["name"])
    autoscaler, router = bed.pods(AUTOSCALER)[0], world.router_on("node-0")
    url = f"http://{router['status']['podIP']}:8080"
    jobs, expiring = Jobs(url, "timed", 4), Expiring(url, "narrow")
    set_all(clocks, {1: (leader, autoscaler), -1: (other, router)})
    incident.note("the leading operator and the autoscaler are an hour ahead, the other operator and a router behind")
    waiting = threading.Thread(target=expiring.follow)
    waiting.start()
    with asking(jobs, 1):
        settled(15)
        incident.expect(skew(world, leader) > HOUR / 2, "the leader's clock is right: nothing was tested")
        come_and_go(world, incident, "timed-3", "timed-1")
        with frozen(leader["metadata"]["uid"], "operator"):
            begin = incident.note("the leader hangs, and holds its lease")
            eventually(lambda: leaders.now() == other["metadata"]["name"], 90)
            incident.figure("seconds until the other led", incident.note("the other leads") - begin)
            incident.note("the one that hung is killed", kill_in(leader["metadata"]["uid"], "operator").dead)
        eventually(world.whole, 120, world.why_not_whole)
        set_all(clocks, {1: (other, router), -1: (leader, autoscaler)})
        incident.note("every clock jumps by two hours the other way")
        settled(15)
        come_and_go(world, incident, "timed-4", "timed-2")
        settled(10)
    waiting.join()
    incident.figure("the job that nobody had time for ended", expiring.ended)
    incident.figure("seconds until it did", expiring.seconds)
    incident.expect(expiring.ended == "expired", f"the job that nobody had time for ended {expiring.ended}")
    right = JOB_SECONDS - 2 < expiring.seconds < JOB_SECONDS + 20
    incident.expect(right, f"it ended after {expiring.seconds:.0f} s, not {JOB_SECONDS}")
    return jobs


def set_all(clocks: Clocks, hours: Mapping[int, tuple[Manifest, ...]]) -> None:
    """Set several clocks."""
    for ahead, pods in hours.items():
        for pod in pods:
            clocks.set(pod, ahead * HOUR)


def pod_of(world: World, name: str) -> Manifest:
    """An operator's pod by its name."""
    return next(pod for pod in world.bed.pods(OPERATORS) if pod["metadata"]["name"] == name)


def skew(world: World, pod: Manifest) -> float:
    """By how much a pod's clock is wrong, as its own Python sees it."""
    said = world.bed.execute(pod["metadata"]["name"], "python3", "-c", "import time; print(time.time())")
    return float(said) - time.time()


def uids(world: World) -> dict[str, set[str]]:
    """The pods of every instance that is to stay."""
    found = [one["metadata"]["name"] for one in world.bed.instances("sized")]
    return {name: world.bed.uids(name) for name in ["timed-0", "narrow-0", *found]}


def judge_instances(world: World, incident: Incident, before: Mapping[str, Any], restarts: dict[str, int]) -> None:
    """No instance was restarted or replaced, no fleet has another size, and only who was killed began again."""
    after = uids(world)
    incident.figure("instances of the fleet that an autoscaler sizes", len(after) - 2)
    incident.expect(after == before, f"instances that were to stay changed: {set(before) ^ set(after) or after}")
    counted = {name: world.group_restarts(name) for name in [*after, "timed-3", "timed-4"]}
    incident.figure("restarts of instances", sum(counted.values()))
    incident.expect(not any(counted.values()), f"instances were restarted: {counted}")
    changed = {name: times - restarts.get(name, 0) for name, times in world.restarts().items()}
    began = {name: times for name, times in changed.items() if times}
    incident.figure("containers that began again", began)
    odd = {name: times for name, times in began.items() if "operator" not in name or times > 1}
    incident.expect(not odd, f"containers that nobody killed began again: {odd}")


SCENARIOS = (
    Scenario(
        name="clocks-differ",
        title="operators, autoscaler and a router with clocks an hour ahead and behind, which jump",
        must_hold="one leader; no restart, drain or deletion for a clock; jobs keep their time; no request lost",
        limit=1200,
        play=play,
    ),
)
