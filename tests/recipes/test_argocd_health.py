"""The health checks for Argo CD, run by the interpreter that Argo CD embeds, over what the controllers really write."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from charts.rendering import ROOT, Object
from fakes.apiserver import tool
from llmfleet.api.conditions import build_conditions
from llmfleet.api.reasons import Reason
from llmfleet.deploy.status import State, conditions
from recipes.recipes import FOLDER, documents
from unit.scale.test_controller import scaled, world_of
from unit.scale.world import World as ScaleWorld

sys.path.insert(0, str(ROOT / "tests" / "unit" / "deploy"))
from world import World

FILE = "argo-cd/argocd-cm.yaml"
# Argo CD opens base, table and a clock-only os, and nothing else (util/lua/lua.go of its module).
PRELUDE = "string, io, debug, coroutine, math, package, require, dofile, loadfile = nil\nos = nil\n"


@cache
def script(kind: str) -> str:
    """The check of one kind."""
    [configuration] = documents(FOLDER / FILE)
    return str(configuration["data"][f"resource.customizations.health.{kind}"])


def lua(value: Any) -> str:
    """A JSON value as a Lua literal; Argo CD leaves nulls out too."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{lua(key)}] = {lua(one)}" for key, one in value.items() if one is not None) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(lua(one) for one in value) + "}"
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def health(things: list[Object], kind: str = "serving.ai_LLMCluster") -> list[tuple[str, str]]:
    """Status and message of each object: one process for all of them, the functions with nothing but their object."""
    calls = [f"show(check({lua(one)}))" for one in things]
    show = 'local print = print\nlocal function show(h) print(h.status .. "\\t" .. (h.message or "")) end\n'
    text = f"{PRELUDE}{show}local function check(obj)\n{script(kind)}\nend\n" + "\n".join(calls)
    done = subprocess.run([tool("glua"), "/dev/stdin"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.partition("\t") for line in done.stdout.splitlines()]
    return [(status, message) for status, _, message in lines]


def cluster(state: State, generation: int = 2) -> Object:
    """An instance in a state, its conditions as the operator writes them."""
    from datetime import UTC, datetime

    found = build_conditions(conditions(state), (), generation=generation, now=datetime(2026, 1, 1, tzinfo=UTC))
    metadata = {"name": "a", "generation": generation}
    return {"metadata": metadata, "spec": {}, "status": {"observedGeneration": generation, "conditions": found}}


STATES = [
    (State(ready=True, reason=Reason.SERVING, message="all ranks are ready", reconciling=False), "Healthy"),
    (State(ready=False, reason=Reason.STARTING, message="waiting"), "Progressing"),
    (State(ready=False, reason=Reason.DRAINING, message="the router has 3 requests here"), "Progressing"),
    (State(ready=True, reason=Reason.WAITING_FOR_TURN, message="b is first"), "Progressing"),
    (State(ready=True, reason=Reason.CANARY_ANALYSIS, message="on trial"), "Progressing"),
    (State(ready=True, reason=Reason.UPDATE_PAUSED, message="paused", reconciling=False), "Suspended"),
    (State(ready=False, reason=Reason.GROUP_RESTARTING, message="rank 1", degraded=True), "Progressing"),
    (
        State(ready=False, reason=Reason.CRASH_LOOP, message="x", degraded=True, stalled=True, reconciling=False),
        "Degraded",
    ),
    (
        State(ready=True, reason=Reason.UPDATE_HALTED, message="x", degraded=True, stalled=True, reconciling=False),
        "Degraded",
    ),
    (State(ready=False, reason=Reason.INVALID_SPEC, message="x", stalled=True, reconciling=False), "Degraded"),
]


def test_every_state_of_an_instance_has_the_health_that_a_person_would_give_it() -> None:
    found = health([cluster(state) for state, _ in STATES])
    assert [one for one, _ in found] == [expected for _, expected in STATES]
    assert found[2][1] == "Draining: the router has 3 requests here"


def test_an_instance_that_nobody_has_seen_is_not_healthy() -> None:
    fresh = {"metadata": {"name": "a", "generation": 1}, "spec": {}}
    defaulted = fresh | {"status": {"observedGeneration": -1}}
    edited = cluster(STATES[0][0])
    edited["metadata"]["generation"] = 3
    assert [one for one, _ in health([fresh, defaulted, edited])] == ["Progressing"] * 3


def test_an_instance_recorded_from_the_operator_is_progressing_until_it_serves_and_while_it_restarts() -> None:
    world = World()
    world.create("a", fleet="f")
    world.reconcile_all()
    seen = [world.cluster("a")]
    world.run(60, until=world.all_serving)
    seen.append(json.loads(json.dumps(world.cluster("a"), default=str)))
    world.kill("a", 1)
    world.run(30, until=lambda: not world.ready("a"))
    seen.append(world.cluster("a"))
    assert [one for one, _ in health(seen)] == ["Progressing", "Healthy", "Progressing"]


def test_an_autoscaler_recorded_from_its_controller_has_the_health_of_its_fleet() -> None:
    kind = "serving.ai_LLMClusterAutoscaler"
    starting = ScaleWorld()
    starting.create(scaled())
    starting.run(1)
    resting, paused = world_of(), world_of()
    paused.edit("llama", lambda spec: spec.update(paused=True))
    paused.run(30)
    unseen = {"metadata": {"name": "a", "generation": 1}, "spec": {}, "status": {"observedGeneration": -1}}
    found = health([unseen, starting.scaler(), resting.scaler(), paused.scaler()], kind)
    assert [one for one, _ in found] == ["Progressing", "Progressing", "Healthy", "Suspended"]
    stuck = json.loads(json.dumps(resting.scaler(), default=str))
    for one in stuck["status"]["conditions"]:
        if one["type"] == "Degraded":
            one.update(status="True", message="did not start")
    assert health([stuck], kind)[0][0] == "Degraded"


def test_an_application_is_as_healthy_as_it_says_so_that_waves_wait() -> None:
    kind = "argoproj.io_Application"
    things: list[Object] = [{"metadata": {}}, {"status": {"health": {"status": "Degraded", "message": "no"}}}]
    assert health(things, kind) == [("Progressing", ""), ("Degraded", "no")]


def test_a_check_that_uses_what_argo_cd_does_not_open_is_found(tmp_path: Path) -> None:
    path = tmp_path / "check.lua"
    path.write_text(f'{PRELUDE}print(string.upper("x"))')
    assert subprocess.run([tool("glua"), path], capture_output=True, check=False).returncode != 0
