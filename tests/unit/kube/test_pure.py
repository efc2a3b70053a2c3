"""The pure parts: diff, selectors, back-off, events, the lease decision, trims."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmfleet.kube.backoff import Backoff
from llmfleet.kube.diff import applied_hash, is_subset, needs_apply, quantity, stamped
from llmfleet.kube.election.decide import Move, Observed, build_lease, build_released, decide, observe
from llmfleet.kube.events import MAX_NOTE, MEMORY, SERIES_GAP, SERIES_WINDOW, Continue, Create, EventLog
from llmfleet.kube.plan import CreateEvent
from llmfleet.kube.refs import LEASE, POD, STATEFULSET, Kind, Ref, kind_of
from llmfleet.kube.selectors import SelectorError, parse_selector
from llmfleet.kube.transport.answers import parse_retry_after
from llmfleet.kube.trim import shared, trim_pod

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)

# Diff.


@pytest.mark.parametrize(
    ("case", "wanted", "actual", "same"),
    [
        ("defaults of the apiserver do not count", {"a": 1}, {"a": 1, "b": 2}, True),
        ("a changed value counts", {"a": 1}, {"a": 2}, False),
        ("a missing value counts", {"a": 1}, {}, False),
        ("empty and absent are the same", {"a": {}, "b": [], "c": "", "d": 0, "e": False, "f": None}, {}, True),
        ("zero and one are not", {"replicas": 0}, {"replicas": 1}, False),
        ("1 and 1.0 are", {"a": 1.0}, {"a": 1}, True),
        ("quantities compare by value", {"requests": {"cpu": "0.5"}}, {"requests": {"cpu": "500m"}}, True),
        ("also as numbers", {"limits": {"x.y/gpu": 2}}, {"limits": {"x.y/gpu": "2"}}, True),
        ("and differ by value", {"limits": {"memory": "1Gi"}}, {"limits": {"memory": "1G"}}, False),
        ("other strings do not", {"value": "0.5"}, {"value": "500m"}, False),
        ("lists of names merge", {"env": [{"name": "a"}]}, {"env": [{"name": "z"}, {"name": "a"}]}, True),
        ("a missing item counts", {"env": [{"name": "a"}]}, {"env": [{"name": "z"}]}, False),
        ("arguments are compared whole", {"args": ["a"]}, {"args": ["a", "b"]}, False),
        ("tolerations are compared whole", {"tolerations": []}, {"tolerations": [{"key": "a"}]}, False),
        ("container ports by number and protocol", {"ports": [{"containerPort": 1}]},
         {"ports": [{"containerPort": 1, "protocol": "TCP"}]}, True),
        ("service ports likewise", {"ports": [{"port": 1}]}, {"ports": [{"port": 1, "protocol": "UDP"}]}, False),
        ("finalizers are a set", {"finalizers": ["b"]}, {"finalizers": ["a", "b"]}, True),
        ("a finalizer too few counts", {"finalizers": ["b", "c"]}, {"finalizers": ["b"]}, False),
        ("an object where a list was counts", {"env": [{"name": "a"}]}, {"env": {"name": "a"}}, False),
    ],
)  # fmt: skip
def test_is_subset(case: str, wanted: Any, actual: Any, same: bool) -> None:
    assert is_subset(wanted, actual) is same, case


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", min_size=1), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@given(JSON)
def test_everything_is_a_subset_of_itself(value: Any) -> None:
    assert is_subset({"f": value}, {"f": copy.deepcopy(value)})


@given(st.dictionaries(st.text("xyz", min_size=1), JSON, max_size=4), st.dictionaries(st.text("uvw", min_size=1), JSON))
def test_fields_of_others_never_matter(wanted: dict[str, Any], others: dict[str, Any]) -> None:
    assert is_subset(wanted, {**others, **copy.deepcopy(wanted)})


@pytest.mark.parametrize(
    ("left", "right"),
    [("1Gi", "1024Mi"), ("1k", "1000"), ("2E", "2e18"), ("0.1", "100m"), (3, "3"), ("1e3", "1k"), ("-1", "-1000m")],
)
def test_equal_quantities(left: Any, right: Any) -> None:
    assert quantity(left) == quantity(right) is not None


@pytest.mark.parametrize("text", ["", "abc", "1x", "Gi", "1 Gi", "1ee3", "--1", "1GiGi"])
def test_what_is_no_quantity_equals_none(text: str) -> None:
    assert quantity(text) is None


def manifest(**metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "ns", **metadata}}


def test_the_hash_ignores_what_the_apiserver_decides_and_the_hash_itself() -> None:
    plain = manifest()
    assert applied_hash(plain) == applied_hash(manifest(uid="u", resourceVersion="7", annotations={}))
    assert applied_hash(plain) == applied_hash(stamped(plain, "m"))
    assert applied_hash(plain) != applied_hash(manifest(labels={"a": "b"}))


def test_two_managers_keep_their_own_memory() -> None:
    live = stamped(stamped(manifest(), "one"), "two")
    assert not needs_apply(manifest(), live, "one")
    assert not needs_apply(manifest(), live, "two")
    assert needs_apply(manifest(), live, "three")


def test_what_does_not_exist_needs_an_apply() -> None:
    assert needs_apply(manifest(), None, "m")


# Selectors.


@pytest.mark.parametrize(
    ("selector", "labels", "matches"),
    [
        ("", {}, True),
        ("a=b", {"a": "b"}, True),
        ("a==b", {"a": "b"}, True),
        ("a=b", {"a": "c"}, False),
        ("a=", {"a": ""}, True),
        ("a!=b", {}, True),
        ("a!=b", {"a": "b"}, False),
        ("a", {"a": "x"}, True),
        ("!a", {"a": "x"}, False),
        ("a in (x, y),b=c", {"a": "y", "b": "c"}, True),
        ("a in (x,y)", {}, False),
        ("a notin (x,y)", {}, True),
        ("app.kubernetes.io/instance=r,app.kubernetes.io/component=router",
         {"app.kubernetes.io/instance": "r", "app.kubernetes.io/component": "router"}, True),
    ],
)  # fmt: skip
def test_selector(selector: str, labels: dict[str, str], matches: bool) -> None:
    assert parse_selector(selector)(labels) is matches


@pytest.mark.parametrize("text", ["a b", "a in x", "=", "a=b,", "a in (", "a<1", "a=b=c", "ü=1"])
def test_what_is_no_selector_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SelectorError, match="write for example"):
        parse_selector(text)


# Back-off.


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_back_off_stays_within_half_and_whole_of_its_cap(failures: int, fraction: float) -> None:
    policy = Backoff(base=0.5, cap=10.0)
    assert 0.25 <= policy.delay(failures, fraction) <= 10.0
    assert policy.delay(failures + 1, fraction) >= policy.delay(failures, fraction)


@pytest.mark.parametrize(("text", "seconds"), [("", 0), ("7", 7), ("999999", 60), ("-1", 0), ("Wed, 21 Oct 2026", 0)])
def test_retry_after_is_read_and_bounded(text: str, seconds: float) -> None:
    assert parse_retry_after(text) == seconds


# Events.


def event(message: str = "serves") -> CreateEvent:
    regarding = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "ns", "uid": "u"}}
    return CreateEvent(regarding=regarding, type_="Normal", reason="Serving", action="None", message=message)


def test_a_repeated_sentence_is_silent_then_a_series_then_a_new_event() -> None:
    log = EventLog(controller="llmfleet-operator", instance="pod-1")
    assert isinstance(log.record(event(), NOW), Create)
    assert log.record(event(), NOW + SERIES_GAP / 2) is None
    series = log.record(event(), NOW + SERIES_GAP)
    assert isinstance(series, Continue)
    assert series.body["series"]["count"] == 3
    assert isinstance(log.record(event("other"), NOW + SERIES_GAP), Create)
    assert isinstance(log.record(event(), NOW + SERIES_GAP + SERIES_WINDOW + timedelta(seconds=1)), Create)


def test_an_event_has_what_the_api_demands_and_a_bounded_note() -> None:
    step = EventLog(controller="llmfleet-operator", instance="p" * 500).record(event("x" * 5000), NOW)
    assert isinstance(step, Create)
    body = step.body
    assert len(body["note"]) == MAX_NOTE
    assert len(body["reportingInstance"]) <= 128
    assert body["metadata"]["namespace"] == "ns"
    assert body["eventTime"] == "2026-11-21T12:00:00.000000Z"
    assert body["regarding"] == {"apiVersion": "v1", "kind": "Pod", "name": "a", "namespace": "ns", "uid": "u"}


def test_the_memory_of_events_is_bounded() -> None:
    log = EventLog(controller="c", instance="i")
    for n in range(MEMORY + 50):
        log.record(event(str(n)), NOW)
    assert len(log._seen) == MEMORY


# The lease.


def lease(holder: str, renewed: str = "t0", duration: int = 17) -> dict[str, Any]:
    spec = {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": duration}
    return {"metadata": {"name": "l"}, "spec": spec}


@pytest.mark.parametrize(
    ("case", "found", "since", "now", "move"),
    [
        ("no lease is taken", None, 0, 0, Move.ACQUIRE),
        ("ours is renewed", lease("me"), 0, 1, Move.RENEW),
        ("ours is renewed however late", lease("me"), 0, 1000, Move.RENEW),
        ("a released one is taken at once", lease(""), 0, 0, Move.ACQUIRE),
        ("a fresh one of another is left alone", lease("other"), 0, 16.9, Move.WAIT),
        ("an abandoned one is taken", lease("other"), 0, 17.1, Move.ACQUIRE),
        ("for as long as its holder said, not as we would", lease("other", duration=60), 0, 30, Move.WAIT),
    ],
)
def test_lease_decision(case: str, found: Any, since: float, now: float, move: Move) -> None:
    assert decide(found, observe(found, None, since), "me", now) is move, case


def test_a_renewed_lease_starts_our_clock_anew_whatever_its_holders_clock_says() -> None:
    first = observe(lease("other", "1999-01-01"), None, 0)
    assert observe(lease("other", "1999-01-01"), first, 10) is first
    second = observe(lease("other", "1999-01-02"), first, 10)
    assert second == Observed(record=("other", "1999-01-02", "0"), since=10)
    assert decide(lease("other"), second, "me", 20) is Move.WAIT


def test_taking_over_counts_a_transition_and_renewing_does_not() -> None:
    ref = Ref(kind=LEASE, namespace="ns", name="l")
    taken = build_lease(ref, lease("other"), "me", NOW)
    assert taken["spec"]["leaseTransitions"] == 1
    renewed = build_lease(ref, taken, "me", NOW + timedelta(seconds=5))
    assert renewed["spec"]["leaseTransitions"] == 1
    assert renewed["spec"]["acquireTime"] == taken["spec"]["acquireTime"] != renewed["spec"]["renewTime"]
    assert decide(build_released(renewed, NOW), observe(build_released(renewed, NOW), None, 0), "x", 0) is Move.ACQUIRE


# Names and trims.


def test_paths() -> None:
    assert POD.path("ns", "a") == "/api/v1/namespaces/ns/pods/a"
    assert STATEFULSET.path() == "/apis/apps/v1/statefulsets"
    assert STATEFULSET.path("ns", "a", "status") == "/apis/apps/v1/namespaces/ns/statefulsets/a/status"
    assert kind_of({"apiVersion": "apps/v1", "kind": "StatefulSet"}) is STATEFULSET
    odd = Kind(group="g", version="v1", plural="things", kind="Thing")
    assert odd.path("ns", "a/../b") == "/apis/g/v1/namespaces/ns/things/a%2F..%2Fb"


@given(JSON)
def test_sharing_strings_changes_no_value(value: Any) -> None:
    assert shared({"f": value}) == {"f": value}


def test_equal_strings_of_two_objects_are_kept_once() -> None:
    first, second = (shared(orjson.loads(b'{"a": ["a long program text"]}')) for _ in range(2))
    assert first["a"][0] is second["a"][0]


def test_a_trimmed_pod_keeps_what_decisions_need_and_drops_the_rest() -> None:
    container = {"name": "engine", "image": "i", "args": ["serve"], "env": [{"name": "SECRET"}], "volumeMounts": [1]}
    pod = {
        "metadata": {"name": "a", "labels": {"x": "y"}, "managedFields": [1] * 100},
        "spec": {"nodeName": "n", "containers": [container], "volumes": [1], "tolerations": [2]},
        "status": {"podIP": "10.0.0.1"},
    }
    before = copy.deepcopy(pod)
    assert trim_pod(pod) == {
        "metadata": {"name": "a", "labels": {"x": "y"}},
        "spec": {"nodeName": "n", "containers": [{"name": "engine", "image": "i", "args": ["serve"]}]},
        "status": {"podIP": "10.0.0.1"},
    }
    assert pod == before
