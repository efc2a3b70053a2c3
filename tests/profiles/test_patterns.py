"""The three production patterns, installed from their own files on a real cluster: `helm test` is green on each.

And red on one of them when its engines are gone, and when its routers are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from charts.rendering import of_kind, render
from e2e.bed import eventually
from profiles.ground import NAMESPACE, RELEASE, Ground

ENGINE_STARTS = 600


@contextmanager
def installed(ground: Ground, profile: str) -> Iterator[set[str]]:
    """A profile on the cluster, as a person installs it; the hooks that `helm test` has to walk."""
    try:
        ground.install(profile)
        objects = render(profile, release=RELEASE, namespace=NAMESPACE)
        pods = {pod["metadata"]["name"] for pod in of_kind(objects, "Pod")}
        yield {name for name in pods if "-test-" in name}
    finally:
        ground.uninstall()


def walk(ground: Ground, hooks: set[str]) -> None:
    """Every hook of the profile runs and passes."""
    assert {f"{RELEASE}-test-{name}" for name in ("models", "chat", "stream", "metrics")} <= hooks
    code, phases, said = ground.test()
    assert (code, phases) == (0, dict.fromkeys(hooks, "Succeeded")), said + ground.why()


def test_one_instance_without_a_router(ground: Ground) -> None:
    with installed(ground, "single") as hooks:
        eventually(lambda: ground.all_ready(1), ENGINE_STARTS, ground.why)
        assert list(ground.asked_for("nvidia.com/gpu").values()) == ["4"] * 2
        walk(ground, hooks)


def test_three_instances_behind_routers_and_red_when_engines_or_routers_are_gone(ground: Ground) -> None:
    with installed(ground, "production-monolithic") as hooks:
        eventually(lambda: ground.all_ready(3), ENGINE_STARTS, ground.why)
        assert list(ground.asked_for("nvidia.com/gpu").values()) == ["4"] * 6
        walk(ground, hooks)
        # From here on a check shall not wait a minute for what is gone on purpose.
        ground.must("upgrade", RELEASE, "charts/llmfleet", "--reuse-values", "--set", "fleet.tests.patienceSeconds=1")
        ground.delete_instances()
        red(ground, "models", "is not among the models listed: none")
        ground.stop_routers()
        red(ground, "chat", "no answer")


def red(ground: Ground, hook: str, reason: str) -> None:
    """`helm test` of one hook ends with an error, and its log says why."""
    name = f"{RELEASE}-test-{hook}"
    code, phases, said = ground.test("--filter", f"name={name}")
    assert (code != 0, phases[name]) == (True, "Failed"), said
    assert reason in said


def test_prefill_and_decode_apart(ground: Ground) -> None:
    with installed(ground, "production-disaggregated") as hooks:
        eventually(lambda: ground.all_ready(4), ENGINE_STARTS, ground.why)
        roles = sorted(one["spec"]["role"] for one in ground.instances())
        assert roles == ["decode", "decode", "prefill", "prefill"]
        assert list(ground.asked_for("nvidia.com/gpu").values()) == ["4"] * 4
        assert list(ground.asked_for("rdma/hca").values()) == ["1"] * 4
        walk(ground, hooks)
