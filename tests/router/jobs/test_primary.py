"""What Sentinels say, and what a router makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from llmfleet.router.jobs.primary.agree import Primary, Said, agreed, needed_copies, said_of
from llmfleet.router.jobs.troubles import Unavailable

A, B, C = "10.0.0.1:6379", "10.0.0.2:6379", "10.0.0.3:6379"


def said(address: str = A, *replicas: str, down: bool = False) -> Said:
    return Said(address=address, down=down, replicas=frozenset(replicas))


@pytest.mark.parametrize(
    ("case", "answers", "primary"),
    [
        ("all say the same", [said(A, B, C)] * 3, Primary(address=A, replicas=2)),
        ("one says nothing", [said(A, B, C), said(A, B, C), "no answer"], Primary(address=A, replicas=2)),
        ("one is behind", [said(B, A, C), said(B, A, C), said(A, B, C)], Primary(address=B, replicas=2)),
        (
            "a replica counts while anybody reaches it",
            [said(A, B), said(A, C), said(A)],
            Primary(address=A, replicas=2),
        ),
        ("but not by who is behind", [said(B, A), said(B, A), said(A, B, C)], Primary(address=B, replicas=1)),
        ("one that nobody reaches does not", [said(A, B)] * 3, Primary(address=A, replicas=1)),
        ("a primary alone", [said(A)] * 3, Primary(address=A, replicas=0)),
        ("one Sentinel is its own majority", [said(A, B)], Primary(address=A, replicas=1)),
        ("one takes it for down", [said(A, B), said(A, B), said(A, B, down=True)], Primary(address=A, replicas=1)),
    ],
)
def test_a_majority_names_the_primary_and_who_could_take_its_place(case, answers, primary):
    assert agreed(answers) == primary, case


@pytest.mark.parametrize(
    ("case", "answers", "reason"),
    [
        ("two say nothing", ["no answer", said(A), "no answer"], "2 of 3 Sentinels say nothing: no answer"),
        ("half of four is no majority", [said(A), said(A), "x", "x"], "2 of 4 Sentinels say nothing: x"),
        ("of two, both are needed", [said(A), "no answer"], "1 of 2 Sentinels say nothing: no answer"),
        ("it is down", [said(A, down=True)] * 3, f"3 of 3 Sentinels take the primary {A} for down"),
        ("for most", [said(A), said(A, down=True), said(A, down=True)], f"2 of 3 Sentinels take the primary {A}"),
        ("in the middle of a failover", [said(B), said(A, down=True), "no answer"], "1 of 3 Sentinels take"),
        ("each names another", [said(A), said(B), said(C)], "the Sentinels do not agree"),
        ("one of two is behind", [said(A), said(B)], "the Sentinels do not agree"),
    ],
)
def test_less_than_a_majority_is_no_primary_and_the_reason_is_said(case, answers, reason):
    with pytest.raises(Unavailable) as refused:
        agreed(answers)
    assert str(refused.value).startswith(reason), case


def server(host: str, **changes: Any) -> dict[str, Any]:
    flags = {"is_sdown": False, "is_odown": False, "is_disconnected": False, "last-ok-ping-reply": 900}
    return {"ip": host, "port": 6379} | flags | changes


def test_an_answer_is_read_with_the_replicas_that_the_sentinel_hears():
    replicas = [
        server("10.0.0.2"),
        server("10.0.0.3", is_disconnected=True),  # a promotion begins by closing connections
        server("10.0.0.4", is_sdown=True),
        server("10.0.0.6", **{"last-ok-ping-reply": 5001}),
        server("fd00::7"),
    ]
    found = said_of(server("10.0.0.1"), replicas)
    assert found == said(A, B, C, "[fd00::7]:6379")
    assert said_of(server("10.0.0.1", is_odown=True), []) == said(A, down=True)


def following(**changes: Any) -> dict[str, Any]:
    return {"ip": "10.0.0.2", "port": 6379, "state": "online", "offset": 1, "lag": 1} | changes


@pytest.mark.parametrize(
    ("case", "heard", "info", "expected"),
    [
        ("all are there", 2, {"slave0": following(), "slave1": following()}, 2),
        ("one is being promoted and follows no more", 2, {"slave0": following()}, 2),
        ("one follows that no Sentinel hears", 1, {"slave0": following(), "slave1": following()}, 2),
        ("neither hears one", 1, {"slave0": following(), "slave1": following(lag=6)}, 1),
        ("one is still being filled", 0, {"slave0": following(state="wait_bgsave")}, 0),
        ("nothing is left", 0, {"slave_read_only": 1, "connected_slaves": 0}, 0),
        ("nobody knows", None, {"slave0": following()}, 0),
    ],
)
def test_what_no_failover_may_undo_is_copied_to_every_replica_there_is(case, heard, info, expected):
    assert needed_copies(Primary(address=A, replicas=heard), info) == expected, case
