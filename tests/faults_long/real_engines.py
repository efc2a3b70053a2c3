"""Real vLLM on CPU loses ranks: groups of two on two nodes, and prefill and decode engines that hand KV over by NIXL.

The other scenarios break the simulator, which does what vLLM was seen to do; these look whether it does. The model's
weights are random, so the text of a prompt is like no other's: an answer with another's text would show.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from e2e.bed import ROOT, Manifest, eventually, run
from e2e.load import Load
from faults_long.incident import Incident, count, named, spread
from faults_long.injectors import EVERYTHING, Injector, frozen, killed, out_of_memory
from faults_long.scenario import Scenario
from faults_long.texts import Texts
from faults_long.world import NODES, ROUTERS, World, settled

PROMPTS = [f"{number} models said {number * 7919} and then" for number in range(16)]
TOKENS, RATE = 120, 1.0
START = 900  # seconds an engine may take to start on two cores that others use too
STALL = 15  # seconds: lifecycle.stallTimeoutSeconds; vLLM itself gives up after 300
ROUTER_STALL = 30.0
# What a container reads of its libraries counts as its memory too: with 3 GiB now and then one had no room for its KV.
MEMORY, SCARCE = "6Gi", "3584Mi"
CALM = ROOT / "tests/conformance/calm"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Which rank of which instance is lost, how, and whether its group has something to do then."""

    instance: str
    rank: int
    how: str
    inject: Injector
    word: str
    idle: bool = False

    @property
    def words(self) -> str:
        """As a person would say it."""
        return f"rank {self.rank} of {self.instance} {self.how} ({'idle' if self.idle else 'at work'})"


def engine(places: Mapping[str, str], model: str, nodes: int, memory: str = MEMORY) -> Manifest:
    """The instance that values/dev-vllm-cpu.yaml describes, as the operator is given it."""
    values = yaml.safe_load((ROOT / "values/dev-vllm-cpu.yaml").read_text())["fleet"]
    engine, tiny = values["engine"], values["models"]["tiny"]
    cache = engine["storage"]["modelCache"] | {"hostPath": str(Path(places["MODEL"]).parent)}
    image = f"localhost/{engine['image']['repository']}:{engine['image']['tag']}"
    requests = {"cpu": "50m", "memory": "1Gi"}
    return {
        "model": tiny["model"],
        "servedModelNames": [model],
        "replicas": nodes,
        "gpusPerPod": 1,
        "tensorParallelSize": nodes,
        "image": image,
        "accelerator": {"resourceName": ""},
        "resources": {"requests": requests, "limits": {"memory": memory}},
        "env": engine["env"],
        "storage": engine["storage"] | {"modelCache": cache},
        "inferenceArgs": tiny["inferenceArgs"],
        "lifecycle": {
            "startupTimeoutSeconds": START,
            "stallTimeoutSeconds": STALL,
            "drainTimeoutSeconds": 60,
            "restartBackoffSeconds": 1,
        },
    }


def places(world: World) -> Mapping[str, str]:
    """Real vLLM on this machine, and the image that starts it on every node."""
    printed = subprocess.run([ROOT / "ci/vllm-cpu"], stdout=subprocess.PIPE, text=True, check=True).stdout
    archives = run([ROOT / "ci/images/build", "vllm-cpu"]).splitlines()
    world.ground.load([line.split(" ", 1)[1] for line in archives])
    return dict(line.split(" ", 1) for line in printed.splitlines())


# -- groups on two nodes ---------------------------------------------------------------------------------------------


def groups(how: str, inject: Injector, word: str, world: World, incident: Incident) -> None:
    """Two groups of two pods: a follower is lost while nobody asks, then each rank of the other group at work."""
    memory = SCARCE if inject is out_of_memory else MEMORY
    spec = engine(places(world), "real", 2, memory) | {"podTemplate": world.spread_spec("real", NODES)["podTemplate"]}
    lost = partial(Fault, how=how, inject=inject, word=word)
    faults = [
        lost(instance="real-0", rank=1, idle=True),
        lost(instance="real-1", rank=0),
        lost(instance="real-1", rank=1),
    ]
    play(world, incident, {f"real-{number}": spec for number in range(2)}, faults)


# -- prefill and decode ----------------------------------------------------------------------------------------------


def roles(world: World, incident: Incident) -> None:
    """Two prefill and two decode engines: one of each killed, one of each frozen."""
    base = engine(places(world), "real", 1)
    network = [{"name": "UCX_TLS", "value": "tcp,self"}, {"name": "UCX_NET_DEVICES", "value": "eth0"}]
    shared = base | {"kvTransfer": {"connector": "NixlConnector", "port": 5600}, "podTemplate": calm()}
    shared["env"] = [*base["env"], *network, {"name": "PYTHONPATH", "value": "/calm"}]
    specs = {f"{role}-{n}": shared | {"role": role} for role in ("prefill", "decode") for n in range(2)}
    faults = [
        Fault(instance=f"{role}-{n}", rank=0, how=how, inject=inject, word=word)
        for n, (how, inject, word) in enumerate((("killed", killed, "serve"), ("frozen", frozen, EVERYTHING)))
        for role in ("prefill", "decode")
    ]
    play(world, incident, specs, faults)


def calm() -> Manifest:
    """A pod template that brings what lets NIXL's thread sleep: it polls without a pause otherwise, a core each."""
    volume = {"name": "calm", "hostPath": {"path": str(CALM)}}
    container = {"name": "engine", "volumeMounts": [{"name": "calm", "mountPath": "/calm", "readOnly": True}]}
    return {"spec": {"volumes": [volume], "containers": [container]}}


# -- what happens ----------------------------------------------------------------------------------------------------


def play(world: World, incident: Incident, specs: Mapping[str, Manifest], faults: Iterable[Fault]) -> None:
    """One fault after the other on one fleet; every group is back before the next one."""
    bed, all_requests, seconds = world.bed, Load(), list[float]()
    with world.instances("real", specs, wait=START) as names:
        router = bed.pods(ROUTERS)[0]
        eventually(lambda: all(world.offers(router, name) for name in names), 120)
        incident.note("every engine serves")
        texts = Texts(bed.router_url(), "real", TOKENS)
        texts.learn(PROMPTS)
        incident.figure("prompts, different texts", [len(PROMPTS), len(set(texts.known.values()))])
        incident.note("their texts are known")
        for fault in faults:
            load, took = one(world, incident, fault, texts)
            all_requests.outcomes += load.outcomes
            all_requests.sent += load.sent
            seconds.append(took)
    count(incident, all_requests)
    lost = all_requests.failures()
    incident.figure("requests lost", len(lost))
    incident.figure("lost requests", named(lost, incident.began))
    incident.figure("ranks lost, groups that came back", [len(seconds), len(seconds)])
    incident.figure("seconds from a lost rank to the group serving again", dict(spread(seconds)))
    incident.figure("answers with another's text", len(texts.foreign))
    incident.expect(not texts.foreign, f"answers with another's text: {texts.foreign[:3]}")


def one(world: World, incident: Incident, fault: Fault, texts: Texts) -> tuple[Load, float]:
    """Lose one rank under load, or before it; its group must be made anew as a whole, once, and serve."""
    bed, victim, router = world.bed, fault.instance, world.bed.pods(ROUTERS)[0]
    before, restarts = containers(world, victim), world.group_restarts(victim)
    pod = bed.ranks(victim)[fault.rank]["metadata"]["uid"]
    if fault.idle:
        with fault.inject(pod, fault.word):
            begin = incident.note(fault.words)
            with texts.asked(RATE) as load:
                ready = anew(world, incident, victim, before)
    else:
        with texts.asked(RATE) as load:
            settled(8)
            with fault.inject(pod, fault.word):
                begin = incident.note(fault.words)
                ready = anew(world, incident, victim, before)
    eventually(lambda: world.offers(router, victim), 120)
    counted = world.group_restarts(victim) - restarts
    incident.expect(counted == 1, f"{fault.words}: {counted} restarts of the group")
    judge(incident, fault, load, begin)
    return load, ready - begin


def containers(world: World, name: str) -> set[str]:
    """What an instance runs in: a lost group gets other pods, a single pod another container."""
    statuses = [pod["status"].get("containerStatuses") or [{}] for pod in world.bed.ranks(name)]
    return {status[0].get("containerID", "") for status in statuses}


def anew(world: World, incident: Incident, victim: str, before: set[str]) -> float:
    """Wait until no container of a group is an old one and it serves; says when that was."""
    bed = world.bed

    def gone() -> bool:
        now = containers(world, victim)
        return len(now) == len(before) and "" not in now and not now & before

    eventually(gone, 400, lambda: bed.why("real"))
    incident.note(f"{victim}: every rank is a new process")
    eventually(partial(bed.is_ready, victim), START, lambda: bed.why("real"))
    return incident.note(f"{victim}: ready")


def judge(incident: Incident, fault: Fault, load: Load, begin: float) -> None:
    """Who had a token may be told that the rest is lost, in time; nobody else notices."""
    lost = load.failures()
    unstarted = [one for one in lost if not one.chunks]
    incident.expect(not unstarted, f"{fault.words}: requests without a token were lost: {unstarted[:2]}")
    late = [one for one in lost if one.end - max(begin, one.begin) > ROUTER_STALL + 10]
    incident.expect(not late, f"{fault.words}: told later than the stall timeout: {late[:2]}")
    incident.note(f"{fault.words}: {load.sent} requests, {len(lost)} cut and told")


def scenario(name: str, title: str, play: Callable[[World, Incident], None]) -> Scenario:
    """What must hold is the same for all."""
    must = "found; the whole group made anew once and serving; who had no token notices nothing; no text is another's"
    return Scenario(name=name, title=title, must_hold=must, limit=2400, play=play)


GROUP = "real vLLM, TP=2 on two nodes: a rank"
SCENARIOS = (
    scenario("vllm-killed", f"{GROUP} killed", partial(groups, "killed", killed, "serve")),
    scenario("vllm-memory", f"{GROUP} out of memory", partial(groups, "out of memory", out_of_memory, EVERYTHING)),
    scenario("vllm-frozen", f"{GROUP} frozen", partial(groups, "frozen", frozen, EVERYTHING)),
    scenario("vllm-roles", "real vLLM, prefill and decode with NIXL: one of each killed, one of each frozen", roles),
)
