"""Real routers and engines, a few thousand requests with faults: no violation; each planted router: at least one."""

from __future__ import annotations

import pytest
import uvloop

from history.checker import check
from history.mutants import MUTANTS
from history.run import FAULTS, Plan, run, tell

# What each planted fault must be caught by.
CAUGHT_BY = {
    "asks_two_engines": 2,
    "counts_after_connecting": 5,
    "drops_the_error_event": 1,
    "ends_what_is_not_whole": 1,
    "gives_more_slots_than_there_are": 5,
    "leaks_the_slot_of_one_that_leaves": 3,
    "lets_the_engine_work_on": 3,
    "passes_on_the_id_of_the_client": 4,
    "retries_after_the_first_event": 1,
    "takes_any_end_for_a_whole_answer": 1,
    "tries_three_times": 2,
}


def test_thousands_of_requests_with_killed_frozen_and_replaced_processes_keep_every_promise():
    history = uvloop.run(run(Plan(requests=2500, rate=120.0, seed=11, faults=FAULTS, fault_every=2.0)))
    print(tell(history))
    assert check(history) == []
    assert {f.what for f in history.faults} >= {"engine-killed", "engine-frozen"}
    assert sum(c.how == "whole" and c.status == 200 for c in history.calls) > 1000


def test_every_planted_router_has_an_expectation():
    assert set(MUTANTS) == set(CAUGHT_BY)


@pytest.mark.parametrize("mutant", sorted(CAUGHT_BY))
def test_a_planted_router_is_caught(mutant):
    plan = Plan(requests=500, rate=150.0, seed=5, mutant=mutant, bad=0.3, leavers=0.1, slots=3, burst=40, rest=6)
    found = check(uvloop.run(run(plan)))
    assert CAUGHT_BY[mutant] in {violation.invariant for violation in found}, mutant
