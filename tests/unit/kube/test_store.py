"""The store in any order of events, and its indices."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmfleet.kube.refs import Key
from llmfleet.kube.store import TOMBSTONES, Store


def obj(name: str, version: int, **fields: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "ns", "resourceVersion": str(version)}, **fields}


@given(st.lists(st.sampled_from(["put", "delete"]), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_events_of_one_object_in_any_order_any_number_of_times_give_the_last_state(kinds: list[str], rng: Any) -> None:
    history = [(kind, version) for version, kind in enumerate(kinds, start=1)]
    events = [*history, *history]
    rng.shuffle(events)
    store = Store()
    for kind, version in events:
        if kind == "put":
            store.upsert(obj("a", version))
        else:
            store.remove(Key("ns", "a"), version)
    last_kind, last_version = history[-1]
    found = store.find(Key("ns", "a"))
    if last_kind == "put":
        assert found == obj("a", last_version)
    else:
        assert found is None
    assert len(store) == (last_kind == "put")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y", ""]), st.booleans()), max_size=30))
def test_an_index_always_names_exactly_the_objects_with_the_value(steps: list[tuple[str, str, bool]]) -> None:
    store = Store()
    store.add_index("value", lambda o: [o["value"]] if o["value"] else [])
    for version, (name, value, keep) in enumerate(steps, start=1):
        if keep:
            store.upsert(obj(name, version, value=value))
        else:
            store.remove(Key("ns", name), version)
        for wanted in ("x", "y"):
            direct = sorted(o["metadata"]["name"] for o in store.all() if o["value"] == wanted)
            assert sorted(o["metadata"]["name"] for o in store.by_index("value", wanted)) == direct


def test_a_list_removes_what_it_does_not_name_but_nothing_newer_and_nothing_it_does_not_cover() -> None:
    store = Store()
    for item in (obj("old", 1), obj("kept", 2), obj("newer", 9)):
        store.upsert(item)
    other = {"metadata": {"name": "x", "namespace": "other", "resourceVersion": "1"}}
    store.upsert(other)
    changes = store.replace([obj("kept", 2)], 5, lambda key: key.namespace == "ns")
    assert changes == [(obj("old", 1), None)]
    assert sorted(key.name for key in list(store.keys())) == ["kept", "newer", "x"]


def test_an_index_added_late_covers_what_is_there() -> None:
    store = Store()
    store.upsert(obj("a", 1, value="x"))
    store.add_index("value", lambda o: [o["value"]])
    assert store.by_index("value", "x") == [obj("a", 1, value="x")]
    assert store.by_index("value", "nobody") == []


def test_the_memory_of_deletions_is_bounded() -> None:
    store = Store()
    for n in range(TOMBSTONES + 100):
        store.remove(Key("ns", f"p{n}"), n + 1)
    assert len(store._deleted) == TOMBSTONES
