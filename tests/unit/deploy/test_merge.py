"""The overlay algorithm, rule by rule."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmfleet.deploy.merge import merge

ENGINE = {"name": "engine", "image": "a:1", "env": [{"name": "X", "value": "1"}]}
BASE = {"spec": {"containers": [ENGINE], "nodeSelector": {"a": "1"}, "tolerations": [{"key": "t"}]}}


@pytest.mark.parametrize(
    ("case", "overlay", "path", "expected"),
    [
        ("objects merge", {"spec": {"nodeSelector": {"b": "2"}}}, ("spec", "nodeSelector"), {"a": "1", "b": "2"}),
        ("null removes", {"spec": {"nodeSelector": {"a": None}}}, ("spec", "nodeSelector"), {}),
        ("null of nothing is nothing", {"spec": {"x": {"y": None}}}, ("spec", "x"), {}),
        ("scalars are replaced", {"spec": {"x": 2}}, ("spec", "x"), 2),
        ("lists without a key are replaced", {"spec": {"tolerations": []}}, ("spec", "tolerations"), []),
        (
            "items merge by name",
            {"spec": {"containers": [{"name": "engine", "image": "b:2"}]}},
            ("spec", "containers"),
            [{**ENGINE, "image": "b:2"}],
        ),
        (
            "new items are appended",
            {"spec": {"containers": [{"name": "side"}]}},
            ("spec", "containers"),
            [ENGINE, {"name": "side"}],
        ),
        (
            "items are removed by a patch word",
            {"spec": {"containers": [{"name": "engine", "$patch": "delete"}]}},
            ("spec", "containers"),
            [],
        ),
        (
            "lists in items merge too",
            {"spec": {"containers": [{"name": "engine", "env": [{"name": "Y", "value": "2"}]}]}},
            ("spec", "containers", 0, "env"),
            [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}],
        ),
    ],
)
def test_merge(case: str, overlay: Any, path: tuple[Any, ...], expected: Any) -> None:
    found: Any = merge(BASE, overlay)
    for step in path:
        found = found[step]
    assert found == expected, case


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["containers", "name", "x"]), inner),
    max_leaves=10,
)


@given(overlay=JSON)
def test_neither_argument_is_changed(overlay: Any) -> None:
    base, before = copy.deepcopy(BASE), copy.deepcopy(overlay)
    merge(base, overlay)
    assert (base, overlay) == (BASE, before)


@given(overlay=st.dictionaries(st.sampled_from(["spec", "metadata"]), JSON))
def test_merging_twice_is_merging_once(overlay: Any) -> None:
    once = merge(BASE, overlay)
    assert merge(once, overlay) == once
