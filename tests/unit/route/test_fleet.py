"""Which endpoint is in the document, in which state, under which names."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmfleet.api.document import Document, Endpoint, Model, ModelState, State, parse_document, render
from llmfleet.deploy.records import RECORDS_ANNOTATION, Records, parse_records, render_records
from llmfleet.kube.selectors import parse_selector
from llmfleet.route.fleet import GROUP_ANNOTATION, build_document, build_entries, parse_members, promised_models
from llmfleet.route.served import served_revision

from .world import NS, annotated, cluster, deleted, pod, router, statefulset


def document(**world: Any) -> Document:
    facts = {
        "clusters": [cluster()],
        "statefulsets": [statefulset()],
        "pods": [pod(rank=0), pod(rank=1)],
        "routers": [],
        **world,
    }
    routers = facts.pop("routers")
    entries = build_entries(**facts)
    assert build_entries(**facts, known=entries) == entries
    built = build_document(entries, routers)
    assert parse_document(render(built)).models.keys() == built.models.keys()
    return built


def endpoint(**world: Any) -> Endpoint | None:
    models = document(**world).models
    endpoints = models["m"].endpoints if "m" in models else ()
    assert len(endpoints) <= 1
    return endpoints[0] if endpoints else None


def test_a_ready_instance_is_an_endpoint_with_everything_a_router_needs() -> None:
    found = endpoint()
    assert found is not None
    assert (found.instance, found.address, found.pod_uid, found.state) == (
        "a",
        "10.0.0.97:8000",
        "a-0-uid",
        State.READY,
    )
    assert (found.role, found.tier, found.weight, found.slots, found.engine_revision) == ("both", 0, 100, 256, "rev")
    assert document().models["m"].state is ModelState.SERVING


GONE: dict[str, dict[str, Any]] = {
    "Ready is not True": {"clusters": [cluster(ready=False)]},
    "there is no status yet": {"clusters": [{**cluster(), "status": {}}]},
    "there are no pods": {"pods": []},
    "a rank is missing": {"pods": [pod(rank=0)]},
    "rank 0 is missing": {"pods": [pod(rank=1)]},
    "rank 0 is Terminating": {"pods": [deleted(pod(rank=0)), pod(rank=1)]},
    "another rank is Terminating": {"pods": [pod(rank=0), deleted(pod(rank=1))]},
    "rank 0 was replaced, Ready is from before": {"pods": [pod(rank=0, uid="new"), pod(rank=1)]},
    "another rank was replaced": {"pods": [pod(rank=0), pod(rank=1, uid="new")]},
    "a rank was restarted in place": {
        "pods": [pod(rank=0), pod(rank=1, containerStatuses=[{"name": "engine", "restartCount": 1}])]
    },
    "rank 0 is not Ready": {"pods": [pod(rank=0, ready=False), pod(rank=1)]},
    "rank 0 has no address": {"pods": [pod(rank=0, podIP=""), pod(rank=1)]},
    "rank 0 has failed": {"pods": [pod(rank=0, phase="Failed"), pod(rank=1)]},
    "nobody knows who started together": {"statefulsets": []},
    "the memory is unreadable": {"statefulsets": [{"metadata": {"name": "a", "annotations": {GROUP_ANNOTATION: "{"}}}]},
    "the memory is empty": {"statefulsets": [statefulset(members={})]},
    "routing is switched off": {"clusters": [cluster(router={"enabled": False})]},
}


@pytest.mark.parametrize("case", GONE)
def test_there_is_no_endpoint_when(case: str) -> None:
    assert endpoint(**GONE[case]) is None


LEAVING = {"deletion": deleted(cluster()), "a drain on purpose": annotated(cluster(), draining="2026-11-21T12:00:00Z")}


@pytest.mark.parametrize("case", LEAVING)
def test_an_instance_that_leaves_is_draining_while_its_group_runs(case: str) -> None:
    found = endpoint(clusters=[LEAVING[case]])
    assert found is not None
    assert found.state is State.DRAINING
    assert endpoint(clusters=[LEAVING[case]], pods=[pod(rank=0), deleted(pod(rank=1))]) is None
    assert endpoint(clusters=[LEAVING[case]], pods=[]) is None


def test_a_draining_instance_stays_listed_when_its_condition_and_probe_say_not_ready() -> None:
    leaving = deleted(cluster(ready=False, reason="Draining"))
    found = endpoint(clusters=[leaving], pods=[pod(rank=0, ready=False), pod(rank=1)])
    assert found is not None
    assert found.state is State.DRAINING


@given(st.data())
def test_an_endpoint_never_belongs_to_a_group_that_changed(data: st.DataObject) -> None:
    """Whatever the mix of pods: an endpoint means every member is there, is that pod, and stays."""
    uids = data.draw(st.lists(st.sampled_from(["a-0-uid", "a-1-uid", "new"]), max_size=2))
    pods = [pod(rank=rank, uid=uid, ready=data.draw(st.booleans())) for rank, uid in enumerate(uids)]
    pods = [deleted(item) if data.draw(st.booleans()) else item for item in pods]
    leaving = data.draw(st.booleans())
    found = endpoint(clusters=[deleted(cluster()) if leaving else cluster()], pods=pods)
    whole = uids == ["a-0-uid", "a-1-uid"] and not any("deletionTimestamp" in p["metadata"] for p in pods)
    if found is not None:
        assert whole
        assert found.pod_uid == "a-0-uid"
        assert found.state is (State.DRAINING if leaving else State.READY)


def test_clients_are_sent_to_the_names_the_running_engine_answers_to() -> None:
    """The spec was edited and waits for its turn: the pods still serve the old names on the old port."""
    edited = cluster(servedModelNames=["new-name"], network={"basePort": 9000}, inferenceArgs={"maxNumSeqs": 4})
    args = ["serve", "org/m", "--served-model-name", "m", "alias", "--max-num-seqs", "32", "--lora-modules", "sql=/x"]
    found = document(clusters=[edited], pods=[pod(rank=0, args=args), pod(rank=1)])
    assert sorted(found.models) == ["alias", "m", "sql"]
    assert {e.address for model in found.models.values() for e in model.endpoints} == {"10.0.0.97:8000"}
    assert found.models["m"].endpoints[0].slots == 32


def revision(name: str = "a", *changes: str, env: Any = (), image: str = "i:1") -> str:
    leader = f"{name}-0.{name}-group"
    one = pod(name, args=["vllm", "serve", "org/m", "--master-addr", leader, *changes])
    engine = one["spec"]["containers"][1]
    engine |= {"image": image, "env": [{"name": "LLMFLEET_LEADER", "value": leader}, *env]}
    return served_revision(one, name)


def test_instances_that_answer_alike_have_one_revision_and_others_have_not() -> None:
    others = [
        revision("a", "--chat-template", "/other.jinja"),
        revision(image="i:2"),
        revision(env=[{"name": "VLLM_USE_V1", "value": "0"}]),
    ]
    assert revision("a") == revision("b") == revision("fleet-with-a-long-name-7")
    assert len({revision(), *others}) == 4
    found = endpoint()
    assert found is not None
    assert found.served_revision == served_revision(pod(), "a") != ""


def test_before_anything_runs_the_models_of_the_spec_are_known() -> None:
    lora = {"lora": {"enabled": True, "adapters": [{"name": "sql", "path": "/x"}]}}
    found = document(clusters=[cluster(ready=False, inferenceArgs=lora)], pods=[], statefulsets=[])
    assert {name: (model.state, model.endpoints) for name, model in found.models.items()} == {
        "m": (ModelState.WAKING, ()),
        "sql": (ModelState.WAKING, ()),
    }


def test_a_model_without_served_names_is_called_by_its_own() -> None:
    bare = cluster()
    del bare["spec"]["servedModelNames"]
    found = document(clusters=[bare], pods=[pod(rank=0, args=[]), pod(rank=1)])
    assert list(found.models) == ["org/m"]


@pytest.mark.parametrize(
    ("spec", "args", "slots"),
    [
        ({}, [], 256),
        ({}, ["--max-num-seqs", "8"], 8),
        ({}, ["--max-num-seqs=8"], 8),
        ({"router": {"maxConcurrency": 3}}, ["--max-num-seqs", "8"], 3),
        ({"router": {"maxConcurrency": 0}}, ["--max-num-seqs", "8"], 8),
        ({}, ["--max-num-seqs", "many"], 256),
    ],
)
def test_slots_come_from_the_router_limit_then_the_engine_then_the_default(spec: Any, args: Any, slots: int) -> None:
    pods = [pod(rank=0, args=["--served-model-name", "m", *args]), pod(rank=1)]
    found = endpoint(clusters=[cluster(**spec)], pods=pods)
    assert found is not None
    assert found.slots == slots


def test_weight_tier_and_the_trial_weight() -> None:
    weighted = cluster(router={"weight": 30, "tier": 2})
    found = endpoint(clusters=[weighted])
    assert found is not None
    assert (found.weight, found.tier) == (30, 2)
    trial = endpoint(clusters=[annotated(cluster(router={"weight": 30}), canary_weight="5")])
    assert trial is not None
    assert trial.weight == 5
    odd = endpoint(clusters=[annotated(cluster(router={"weight": 30}), canary_weight="lots")])
    assert odd is not None
    assert odd.weight == 30


def test_an_ipv6_pod_is_written_in_brackets() -> None:
    found = endpoint(pods=[pod(rank=0, podIP="fd00::7"), pod(rank=1)])
    assert found is not None
    assert found.address == "[fd00::7]:8000"


@pytest.mark.parametrize(
    ("instances", "state"),
    [
        ([cluster("a"), cluster("b", ready=False, reason="Starting")], ModelState.SERVING),
        ([cluster("b", ready=False, reason="Starting")], ModelState.WAKING),
        ([cluster("b", ready=False, reason="GroupRestarting")], ModelState.RESTARTING),
        ([cluster("b", ready=False, reason="GroupRestarting"), cluster("c", ready=False)], ModelState.WAKING),
        ([deleted(cluster("b"))], ModelState.ASLEEP),
        ([annotated(cluster("b"), draining="2026-11-21T12:00:00Z")], ModelState.WAKING),
    ],
)
def test_the_state_of_a_model_is_the_best_of_its_instances(instances: Any, state: ModelState) -> None:
    assert document(clusters=instances).models["m"].state is state


def test_the_same_world_in_any_order_is_the_same_document() -> None:
    clusters = [cluster(name) for name in "abc"]
    pods = [pod(name, rank) for name in "abc" for rank in (0, 1)]
    sets = [statefulset(name) for name in "abc"]
    documents = {
        render(document(clusters=list(order), pods=pods[::step], statefulsets=sets))
        for order in itertools.permutations(clusters)
        for step in (1, -1)
    }
    assert len(documents) == 1


def test_an_address_that_two_pods_claim_is_offered_by_neither_and_hinders_no_other() -> None:
    names = ("a", "b", "c")
    address = {"a": "10.0.0.1", "b": "10.0.0.1", "c": "10.0.0.3"}
    built = document(
        clusters=[cluster(name) for name in names],
        statefulsets=[statefulset(name) for name in names],
        pods=[pod(name, rank, podIP=address[name]) for name in names for rank in (0, 1)],
    )
    assert [e.instance for e in built.models["m"].endpoints] == ["c"]
    assert built.models["m"].state is ModelState.SERVING
    alone = document(
        clusters=[cluster("a"), cluster("b")],
        statefulsets=[statefulset("a"), statefulset("b")],
        pods=[pod(name, rank, podIP="10.0.0.1") for name in ("a", "b") for rank in (0, 1)],
    )
    assert (alone.models["m"].endpoints, alone.models["m"].state) == ((), ModelState.WAKING)


@pytest.mark.parametrize("weight", ["9" * 5000, "\u0669", "-1", "1e3", ""])
def test_an_odd_trial_weight_breaks_no_document(weight: str) -> None:
    found = endpoint(clusters=[annotated(cluster(), canary_weight=weight)])
    assert found is not None and 0 <= found.weight <= 1_000_000


def test_peers_are_the_router_pods_that_answer() -> None:
    routers = [
        router("r2", "10.1.0.2"),
        deleted(router("r1")),
        router("r3", ""),
        router("r4", "10.1.0.4", phase="Failed"),
    ]
    peers = document(routers=routers).peers
    assert [(peer.name, peer.address, peer.state) for peer in peers] == [
        ("r1", "10.1.0.1:9090", State.DRAINING),
        ("r2", "10.1.0.2:9090", State.READY),
    ]


def test_a_spec_that_breaks_every_rule_breaks_no_document() -> None:
    odd = cluster()
    odd["spec"] = {"model": 7, "servedModelNames": None, "router": {"weight": "x", "tier": -3}, "role": "captain"}
    document(clusters=[odd, {**cluster("b"), "spec": None}, {**cluster("c"), "status": None}])


def test_deploy_and_route_mean_the_same_annotation() -> None:
    """The one thing both packages know without importing each other."""
    assert GROUP_ANNOTATION == RECORDS_ANNOTATION
    text = render_records(Records(members={"0": "u0/0", "1": "u1/2"}))
    assert parse_members({"metadata": {"annotations": {GROUP_ANNOTATION: text}}}) == parse_records(text).members


VERSIONED = st.sampled_from(["cluster", "statefulset", "pod 0", "pod 1", "nothing"])


@given(st.lists(st.tuples(VERSIONED, st.integers(0, 3)), max_size=8))
def test_what_is_remembered_never_differs_from_what_would_be_built_anew(steps: list[tuple[str, int]]) -> None:
    """Change any of the objects any way, with a new version each time: the memory is never stale."""
    held: dict[str, Any] = {
        "cluster": cluster(),
        "statefulset": statefulset(),
        "pod 0": pod(rank=0),
        "pod 1": pod(rank=1),
    }
    for number, obj in enumerate(held.values(), start=1):
        obj["metadata"]["resourceVersion"] = str(number)
    known: dict[str, Any] = {}
    for version, (what, variant) in enumerate(steps, start=100):
        if what == "cluster":
            held[what] = [cluster(), cluster(ready=False), deleted(cluster()), cluster(servedModelNames=["n"])][variant]
        elif what == "statefulset":
            held[what] = statefulset(ranks=variant)
        elif what != "nothing":
            rank = int(what[-1])
            held[what] = [
                pod(rank=rank),
                pod(rank=rank, uid="new"),
                deleted(pod(rank=rank)),
                pod(rank=rank, ready=False),
            ][variant]
        if what != "nothing":
            held[what]["metadata"]["resourceVersion"] = str(version)
        facts = {
            "clusters": [held["cluster"]],
            "statefulsets": [held["statefulset"]],
            "pods": [held["pod 0"], held["pod 1"]],
        }
        known = build_entries(**facts, known=known)
        assert known == build_entries(**facts)


def test_an_instance_that_did_not_change_is_not_looked_at_again() -> None:
    objects = [cluster(), statefulset(), pod(rank=0), pod(rank=1)]
    for number, obj in enumerate(objects, start=1):
        obj["metadata"]["resourceVersion"] = str(number)
    facts = {"clusters": objects[:1], "statefulsets": objects[1:2], "pods": objects[2:]}
    first = build_entries(**facts)
    assert build_entries(**facts, known=first)["a"] is first["a"]


def scaler(name: str = "s", **labels: str) -> dict[str, object]:
    template = {"labels": {"app.kubernetes.io/instance": "rel", **labels}, "spec": {"model": "org/z", "replicas": 1}}
    return {"metadata": {"name": name, "namespace": NS}, "spec": {"mode": "monolithic", "instanceTemplate": template}}


def test_a_model_whose_fleet_is_empty_is_listed_as_asleep() -> None:
    promised = promised_models([scaler()], parse_selector("app.kubernetes.io/instance=rel"))
    assert promised == ("org/z",)
    document = build_document({}, [], promised)
    assert document.models == {"org/z": Model(state=ModelState.ASLEEP, endpoints=())}


def test_a_model_of_another_release_or_that_is_not_routed_is_not_promised() -> None:
    selects = parse_selector("app.kubernetes.io/instance=rel")
    hidden = scaler("hidden")
    hidden["spec"]["instanceTemplate"]["spec"]["router"] = {"enabled": False}  # type: ignore[index]
    other = scaler(**{"app.kubernetes.io/instance": "other"})
    assert promised_models([hidden, other, {"spec": {}}], selects) == ()


@pytest.mark.parametrize(
    ("metadata", "spec"),
    [({"deletionTimestamp": "2026-01-01T00:00:00Z"}, {}), ({}, {"paused": True}), ({}, {"dryRun": True})],
)
def test_an_autoscaler_that_will_make_nothing_promises_nothing(
    metadata: dict[str, object], spec: dict[str, object]
) -> None:
    still = scaler()
    changed = {"metadata": {**still["metadata"], **metadata}, "spec": {**still["spec"], **spec}}  # type: ignore[dict-item]
    assert promised_models([still], parse_selector("")) == ("org/z",)
    assert promised_models([changed], parse_selector("")) == ()


def test_both_roles_of_a_disaggregated_fleet_promise_their_models() -> None:
    blocks = {role: {"instanceTemplate": {"labels": {}, "spec": {"model": role}}} for role in ("prefill", "decode")}
    assert promised_models([{"spec": blocks}], parse_selector("")) == ("decode", "prefill")


def test_an_instance_says_more_than_a_promise() -> None:
    entries = build_entries(clusters=[cluster()], statefulsets=[], pods=[])
    assert build_document(entries, [], ("m",)).models["m"].state is ModelState.WAKING
