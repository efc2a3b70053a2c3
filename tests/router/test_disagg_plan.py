"""Splitting a request: which may be, over which pair, what each leg is sent, and what is owed until when."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet.api.document import Document, Endpoint, Model, Role, State
from llmfleet.router.disagg.ledger import LONGEST_PAUSE, Breaker, Fate, Ledger
from llmfleet.router.disagg.plan import (
    Handoff,
    NoHandoff,
    Way,
    any_prefill,
    leg_one,
    leg_two,
    pair,
    prefill_for,
    prompt_tokens,
    read_handoff,
    transfer_seconds,
    way_of,
)
from llmfleet.router.limits import BypassPrefill, Disaggregation
from llmfleet.router.pick import Fleet, ModelPool, pick
from llmfleet.router.sse import Dialect

SETTINGS = Disaggregation()
PROMPT = "the quick brown fox " * 20
# What real vLLM 0.32.0 answered on a first leg.
PARAMS = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[1]],
    "remote_engine_id": "e849f7e9-bd03-46aa-bb67-35d0defd788d",
    "remote_request_id": "cmpl-req-0123456789abcdef00000001-0-8a6231bb",
    "remote_host": "127.0.0.1",
    "remote_port": 5600,
    "tp_size": 1,
    "dcp_size": 1,
    "pp_size": 1,
    "remote_num_tokens": 72,
    "remote_blocks_expiry_time": None,
    "transfer_mode": "pull",
    "remote_prefill_cached_tokens": 0,
}
ANSWER = {"id": "cmpl-1", "choices": [{"text": "x"}], "usage": {"prompt_tokens": 72}, "kv_transfer_params": PARAMS}


def engine(name: str, role: Role, revision: str = "r1", **changes) -> Endpoint:
    return Endpoint(instance=name, address=f"{name}:1", pod_uid=name, role=role, engine_revision=revision, **changes)


def prefill(name: str, revision: str = "r1", **changes) -> Endpoint:
    return engine(name, Role.PREFILL, revision, **changes)


def decode(name: str, revision: str = "r1", **changes) -> Endpoint:
    return engine(name, Role.DECODE, revision, **changes)


def pool_of(*endpoints: Endpoint) -> ModelPool:
    fleet = Fleet()
    fleet.apply(Document(models={"m": Model(endpoints=endpoints)}))
    return fleet.models["m"]


def backend(pool: ModelPool, name: str):
    return next(c.backend for group in pool.groups() for c in group.candidates if c.backend.instance == name)


def names(found) -> tuple[str, str] | None:
    return found and (found.decode.instance, found.prefill.instance)


# ---- which requests ----


@pytest.mark.parametrize("dialect", [Dialect.CHAT, Dialect.COMPLETIONS, Dialect.RESPONSES, Dialect.MESSAGES])
def test_one_prompt_with_one_answer_is_split_on_every_route_that_generates(dialect):
    assert way_of(dialect, {"prompt": PROMPT}, 1, 400, SETTINGS) is Way.SPLIT


@pytest.mark.parametrize(
    ("document", "choices"),
    [
        ({"n": 2}, 2),
        ({"prompt": ["a", "b"]}, 2),
        ({"best_of": 3}, 1),
        ({"echo": True}, 1),
        ({"use_beam_search": True}, 1),
        ({"prompt_logprobs": 0}, 1),
        ({"max_tokens": 0}, 1),
    ],
)
def test_what_needs_the_prompt_twice_or_where_it_is_decoded_goes_to_one_engine(document, choices):
    assert way_of(Dialect.COMPLETIONS, {"prompt": PROMPT} | document, choices, 400, SETTINGS) is Way.ALONE


def test_embeddings_are_not_split():
    assert way_of(Dialect.PLAIN, {"input": PROMPT}, 1, 400, SETTINGS) is Way.ALONE


def test_short_prompts_go_straight_to_a_decode_engine_if_the_settings_say_so():
    settings = Disaggregation(bypass_prefill=BypassPrefill(min_prompt_tokens=100))
    assert way_of(Dialect.COMPLETIONS, {"prompt": [1] * 99}, 1, 9999, settings) is Way.BYPASS
    assert way_of(Dialect.COMPLETIONS, {"prompt": [1] * 100}, 1, 9, settings) is Way.SPLIT
    assert way_of(Dialect.CHAT, {}, 1, 399, settings) is Way.BYPASS
    assert way_of(Dialect.CHAT, {}, 1, 400, settings) is Way.SPLIT


def test_prompts_are_measured_by_their_ids_or_by_their_bytes():
    assert prompt_tokens({"prompt": [5, 6, 7]}, 1000) == 3
    assert prompt_tokens({"messages": []}, 1000) == 250


# ---- over which engines ----


def test_a_pair_is_the_least_loaded_of_either_side():
    pool = pool_of(prefill("p0"), prefill("p1"), decode("d0"), decode("d1"))
    backend(pool, "p0").in_flight = 1
    backend(pool, "d1").in_flight = 1
    assert names(pair(pool, SETTINGS, 0)) == ("d0", "p1")


def test_only_engines_of_one_revision_are_paired():
    pool = pool_of(prefill("p-new", "r2"), decode("d-old", "r1"), decode("d-new", "r2"))
    assert [names(pair(pool, SETTINGS, 0)) for _ in range(3)] == [("d-new", "p-new")] * 3
    lonely = pool_of(prefill("p", "r2"), decode("d", "r1"))
    assert pair(lonely, SETTINGS, 0) is None and not any_prefill(lonely, SETTINGS, 0)


def test_turns_are_fair_on_both_sides_at_once():
    pool = pool_of(prefill("p0"), prefill("p1"), prefill("p2"), decode("d0"), decode("d1"))
    assert [names(pair(pool, SETTINGS, 0)) for _ in range(6)] == [
        *(("d0", "p0"), ("d1", "p1"), ("d0", "p2"), ("d1", "p0"), ("d0", "p1"), ("d1", "p2")),
    ]


def test_no_prefill_is_started_without_a_decode_slot_and_headroom():
    pool = pool_of(prefill("p"), decode("d", slots=4))
    backend(pool, "d").in_flight = 4
    assert pair(pool, SETTINGS, 0) is None
    backend(pool, "d").in_flight = 3
    backend(pool, "d").arriving = 16
    assert pair(pool, SETTINGS, 0) is None
    assert any_prefill(pool, SETTINGS, 0), "it is busy, not gone"
    backend(pool, "d").arriving = 15
    assert names(pair(pool, SETTINGS, 0)) == ("d", "p")


def test_no_decode_slot_is_taken_when_every_prefill_engine_is_busy():
    pool = pool_of(prefill("p", slots=2), decode("d"))
    backend(pool, "p").in_flight = 2
    assert pair(pool, SETTINGS, 0) is None
    assert backend(pool, "d").picks == 0


def test_draining_engines_get_no_new_leg():
    pool = pool_of(prefill("p", state=State.DRAINING), decode("d"))
    assert pair(pool, SETTINGS, 0) is None and not any_prefill(pool, SETTINGS, 0)


def test_a_prefill_engine_full_of_unread_handoffs_waits_for_its_leases():
    pool, settings = pool_of(prefill("p"), decode("d")), Disaggregation(max_handoffs_per_prefill=1)
    ledger = backend(pool, "p").ledger
    ledger.opened()
    assert pair(pool, settings, 0) is None
    ledger.closed(Fate.ABANDONED, expires_at=30)
    assert pair(pool, settings, 29) is None
    assert names(pair(pool, settings, 30)) == ("d", "p")


def test_a_second_pair_has_the_engines_that_did_not_fail():
    pool = pool_of(prefill("p0"), prefill("p1"), decode("d0"), decode("d1"))
    first = pair(pool, SETTINGS, 0)
    second = pair(pool, SETTINGS, 0, avoid_decode=first.decode, avoid_prefill=first.prefill)
    assert {first.decode, first.prefill}.isdisjoint(second)
    alone = pool_of(prefill("p"), decode("d"))
    assert pair(alone, SETTINGS, 0, avoid_prefill=backend(alone, "p")) is None
    assert pair(alone, SETTINGS, 0, avoid_decode=backend(alone, "d")) is None


def test_another_prefill_engine_must_suit_the_decode_engine_that_is_reserved():
    pool = pool_of(prefill("p1", "r1"), prefill("p2", "r2"), decode("d", "r2"))
    assert prefill_for(pool, backend(pool, "d"), SETTINGS, 0).instance == "p2"
    assert prefill_for(pool, backend(pool, "d"), SETTINGS, 0, avoid=backend(pool, "p2")) is None


def test_requests_for_one_engine_never_reach_one_half_of_a_pair():
    pool = pool_of(prefill("p"), decode("d"))
    assert pick(pool) is None and pool.disaggregated
    assert not pool_of(engine("e", Role.BOTH)).disaggregated


@settings(deadline=None, derandomize=True)
@given(
    prefills=st.lists(st.tuples(st.sampled_from(["r1", "r2"]), st.integers(1, 3)), max_size=4),
    decodes=st.lists(st.tuples(st.sampled_from(["r1", "r2"]), st.integers(1, 4)), max_size=4),
    headroom=st.integers(1, 3),
    steps=st.lists(st.sampled_from(["take", "arrive", "end"]), max_size=60),
)
def test_a_pair_is_found_exactly_when_there_is_one_and_no_bound_is_ever_passed(prefills, decodes, headroom, steps):
    settings = Disaggregation(max_prefills_in_flight_per_decode=headroom)
    pool = pool_of(
        *(prefill(f"p{i}", r, slots=s) for i, (r, s) in enumerate(prefills)),
        *(decode(f"d{i}", r, slots=s) for i, (r, s) in enumerate(decodes)),
    )
    legs, streams = [], []
    for step in steps:
        if step == "take":
            free = {c.backend.revision for c in pool.prefill.open if c.backend.in_flight < c.backend.slots}
            possible = any(
                c.backend.revision in free and c.backend.in_flight < c.backend.slots and c.backend.arriving < headroom
                for c in pool.decode.open
            )
            found = pair(pool, settings, 0)
            assert (found is not None) == possible
            if found is not None:
                assert found.decode.revision == found.prefill.revision
                found.prefill.in_flight += 1
                found.decode.in_flight += 1
                found.decode.arriving += 1
                legs.append(found)
        elif step == "arrive" and legs:
            found = legs.pop(0)
            found.prefill.in_flight -= 1
            found.decode.arriving -= 1
            streams.append(found)
        elif step == "end" and streams:
            streams.pop(0).decode.in_flight -= 1
        for group in pool.groups():
            assert all(c.backend.in_flight <= c.backend.slots for c in group.candidates)
            assert all(c.backend.arriving <= headroom for c in group.candidates)


# ---- the legs ----

ASKS = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


def test_leg_one_asks_for_one_token_of_the_same_prompt_and_for_its_kv():
    request = {
        "model": "m",
        "prompt": PROMPT,
        "max_tokens": 500,
        "min_tokens": 5,
        "stream": True,
        "n": 1,
        "best_of": 1,
        "stream_options": {"include_usage": True},
        "logprobs": 5,
        "temperature": 0.5,
        "cache_salt": "t1",
    }
    assert json.loads(leg_one(Dialect.COMPLETIONS, request)) == {
        "model": "m",
        "prompt": PROMPT,
        "max_tokens": 1,
        "max_completion_tokens": 1,
        "stream": False,
        "temperature": 0.5,
        "cache_salt": "t1",
        "kv_transfer_params": ASKS,
    }
    assert request["max_tokens"] == 500, "the request itself is not touched"


@pytest.mark.parametrize(
    ("dialect", "limits"),
    [
        (Dialect.CHAT, {"max_tokens": 1, "max_completion_tokens": 1}),
        (Dialect.RESPONSES, {"max_output_tokens": 1}),
        (Dialect.MESSAGES, {"max_tokens": 1}),
    ],
)
def test_every_route_has_its_own_word_for_one_token(dialect, limits):
    assert json.loads(leg_one(dialect, {"model": "m"})) == {
        "model": "m",
        "stream": False,
        "kv_transfer_params": ASKS,
        **limits,
    }


def test_leg_two_is_the_request_with_the_handoff_as_it_came():
    handoff = read_handoff(json.dumps(ANSWER).encode(), 100.0, SETTINGS)
    body = b'{"model":"m","prompt":"a } b","stream":true} \n'
    sent = leg_two(body, handoff)
    assert json.loads(sent) == {"model": "m", "prompt": "a } b", "stream": True, "kv_transfer_params": PARAMS}
    assert sent.startswith(b'{"model":"m","prompt":"a } b","stream":true')
    assert list(json.loads(sent)["kv_transfer_params"]) == list(PARAMS)


def test_a_handoff_is_never_used_past_nine_tenths_of_its_lease():
    handoff = read_handoff(json.dumps(ANSWER).encode(), 100.0, Disaggregation(kv_lease_seconds=30))
    assert (handoff.prompt_tokens, handoff.expires_at) == (72, 127.0)


def test_the_second_leg_may_take_longer_for_longer_prompts():
    assert transfer_seconds(Handoff(b"{}", 0, 0), SETTINGS) == 5
    assert transfer_seconds(Handoff(b"{}", 100_000, 0), SETTINGS) == 15


def test_messages_count_their_prompt_under_another_name():
    answer = ANSWER | {"usage": {"input_tokens": 9, "output_tokens": 1}}
    assert read_handoff(json.dumps(answer).encode(), 0, SETTINGS).prompt_tokens == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_remote_prefill": None}, "no blocks"),
        ({"remote_block_ids": None}, "no blocks"),
        ({"remote_block_ids": []}, "no blocks"),
        ({"remote_engine_id": None}, "lacks remote_engine_id"),
        ({"remote_request_id": None}, "lacks remote_request_id"),
        ({"remote_host": None, "remote_port": None}, "lacks remote_host, remote_port"),
    ],
)
def test_an_incomplete_handoff_is_never_passed_on_as_it_would_end_the_decode_engine(change, message):
    with pytest.raises(NoHandoff, match=message):
        read_handoff(json.dumps(ANSWER | {"kv_transfer_params": PARAMS | change}).encode(), 0, SETTINGS)


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"no", b"{}", b'{"kv_transfer_params":null}', b'{"kv_transfer_params":1}']
)
def test_an_answer_without_a_handoff_is_none(answer):
    with pytest.raises(NoHandoff):
        read_handoff(answer, 0, SETTINGS)


@settings(deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from([*PARAMS, "extra"]),
        st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()),
    )
)
def test_whatever_an_engine_offers_only_complete_handoffs_pass(params):
    answer = json.dumps({"kv_transfer_params": params}).encode()
    try:
        sent = json.loads(read_handoff(answer, 0, SETTINGS).params)
    except NoHandoff:
        return
    assert sent["do_remote_prefill"] is True and sent["remote_block_ids"]
    assert None not in (sent[k] for k in ("remote_engine_id", "remote_request_id", "remote_host", "remote_port"))


# ---- what is owed ----


def test_a_read_handoff_is_owed_no_longer_and_any_other_until_its_lease_ends():
    ledger = Ledger()
    for _ in range(4):
        ledger.opened()
    assert ledger.outstanding(0) == 4
    ledger.closed(Fate.USED, 30)
    ledger.closed(Fate.FAILED, 31)
    ledger.closed(Fate.ABANDONED, 29)
    assert [ledger.outstanding(t) for t in (0, 28.9, 29, 30, 31)] == [3, 3, 2, 2, 1]
    assert ledger.fates == {Fate.USED: 1, Fate.FAILED: 1, Fate.ABANDONED: 1}


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(list(Fate)), st.floats(0, 100)), max_size=40), st.floats(0, 100))
def test_outstanding_is_what_is_pending_and_what_may_still_be_held(events, now):
    ledger = Ledger()
    for _ in events:
        ledger.opened()
    for fate, expires_at in events:
        ledger.closed(fate, expires_at)
    assert ledger.outstanding(now) == sum(f is not Fate.USED and e > now for f, e in events)
    assert ledger.pending == 0 and sum(ledger.fates.values()) == len(events)


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_request_try_after_each_pause():
    breaker = Breaker()
    for _ in range(2):
        breaker.failed(0, 3, 5)
    breaker.succeeded()
    for _ in range(2):
        breaker.failed(0, 3, 5)
    assert breaker.allows(0)
    breaker.failed(0, 3, 5)
    assert not breaker.allows(4.9) and breaker.allows(5)
    breaker.taken(5)
    assert not breaker.allows(5), "one trial at a time"
    breaker.failed(6, 3, 5)
    assert not breaker.allows(15.9) and breaker.allows(16)
    breaker.succeeded()
    assert breaker.allows(6)


def test_a_trial_that_never_ends_does_not_keep_the_breaker_open_for_ever():
    breaker = Breaker()
    breaker.failed(0, 1, 5)
    breaker.taken(5)
    assert breaker.allows(10)


def test_pauses_stop_growing():
    breaker, now = Breaker(), 0.0
    for _ in range(10):
        breaker.failed(now, 1, 5)
        now += 1000
    breaker.failed(0, 1, 5)
    assert not breaker.allows(5 * LONGEST_PAUSE - 1) and breaker.allows(5 * LONGEST_PAUSE)
