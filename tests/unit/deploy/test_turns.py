"""Whose turn it is in a fleet."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmfleet.deploy.update import Peer, turn, why_not


def peer(name: str, **change: Any) -> Peer:
    fields: dict[str, Any] = {
        "role": "both",
        "pending": True,
        "in_flight": False,
        "halted": False,
        "ready": True,
        "proven": True,
        **change,
    }
    return Peer(name=name, **fields)


@pytest.mark.parametrize(
    ("case", "fleet", "first"),
    [
        ("by name", [peer("b"), peer("a")], "a"),
        ("who is under way goes on", [peer("a"), peer("b", in_flight=True, pending=False)], "b"),
        ("who is down goes first", [peer("a"), peer("b", ready=False)], "b"),
        ("a paused one is passed over", [peer("a", paused=True), peer("b")], "b"),
        ("an updated one that is down holds the rest", [peer("a"), peer("b", pending=False, ready=False)], None),
        ("one that never served does not", [peer("a"), peer("b", pending=False, ready=False, proven=False)], "a"),
        ("nobody wants anything", [peer("a", pending=False)], None),
        (
            "the role that is further behind",
            [peer("d1", role="decode", pending=False), peer("d2", role="decode"), peer("p1", role="prefill")],
            "p1",
        ),
    ],
)
def test_turn(case: str, fleet: list[Peer], first: str | None) -> None:
    holder = turn(fleet)
    assert (holder.name if holder else None) == first, case


def test_a_halted_peer_stops_everybody() -> None:
    fleet = [peer("a", halted=True, pending=False), peer("b")]
    assert why_not("b", fleet) == "a could not start on its new template; the fleet stays on the old one"


@given(
    flags=st.lists(st.tuples(*(st.booleans() for _ in range(6))), min_size=1, max_size=6),
)
def test_at_most_one_instance_has_the_turn(flags: list[tuple[bool, ...]]) -> None:
    fleet = [
        peer(f"i{number}", pending=a, in_flight=b, halted=c, ready=d, proven=e, paused=f)
        for number, (a, b, c, d, e, f) in enumerate(flags)
    ]
    assert sum(why_not(member.name, fleet) == "" for member in fleet) <= 1
