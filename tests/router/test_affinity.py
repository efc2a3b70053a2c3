"""Affinity: equal beginnings have equal keys, the longest known one wins, and nobody is overrun for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import orjson
import pytest
from bed import CHAT, Bed, scenario
from engine import ok
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet.router.affinity import MAX_BITS, MAX_KEYS, PrefixIndex, nearest, prefix_keys, seed_of, session_key
from llmfleet.router.sse import Dialect

BLOCK = 1024
SEED = seed_of("", "m")
LONG = "".join(f"{n:07d} " for n in range(1000))
quick = settings(derandomize=True, max_examples=100, deadline=None)


def keys(document: dict, dialect: Dialect = Dialect.CHAT, seed: int = SEED) -> list[int]:
    return prefix_keys(dialect, document, seed, BLOCK)


def chat(*texts: str, **more) -> dict:
    roles = ("system", "user", "assistant")
    messages = [{"role": roles[min(i, 1 + (i + 1) % 2)], "content": text} for i, text in enumerate(texts)]
    return {"messages": messages} | more


def common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# ---- keys ----


def test_a_conversation_that_goes_on_keeps_every_key_it_had():
    before, after = keys(chat("be brief", "hello")), keys(chat("be brief", "hello", "hi", "and now?"))
    assert len(before) == 2 and len(after) == 4 and after[:2] == before


def test_two_conversations_share_the_keys_of_their_common_beginning():
    assert common(keys(chat("be brief", "hello")), keys(chat("be brief", "goodbye"))) == 1
    assert common(keys(chat("be brief", "hello")), keys(chat("be long", "hello"))) == 0


def test_a_long_message_has_a_key_for_every_block_it_shares():
    one, other = keys(chat(LONG + "a")), keys(chat(LONG + "b"))
    assert len(one) == len(LONG) // BLOCK + 1 and common(one, other) == len(LONG) // BLOCK
    early = keys(chat("x" + LONG))
    assert common(one, early) == 0


def test_blocks_widen_so_that_a_huge_prompt_has_a_handful_of_keys():
    assert 30 < len(keys({"prompt": "x" * (512 << 10)}, Dialect.COMPLETIONS)) < 60
    assert len(keys(chat(*["hello"] * 5000))) <= MAX_KEYS
    assert len(keys(chat(*[LONG] * 500))) <= MAX_KEYS


@pytest.mark.parametrize("change", ["tools", "role", "name", "part"])
def test_what_an_engine_reads_differently_has_other_keys(change):
    before = {"messages": [{"role": "user", "content": "hello"}]}
    after = orjson.loads(orjson.dumps(before))
    if change == "tools":
        after["tools"] = [{"type": "function", "function": {"name": "f"}}]
    elif change == "role":
        after["messages"][0]["role"] = "assistant"
    elif change == "name":
        after["messages"][0]["name"] = "ann"
    else:
        after["messages"][0]["content"] = [{"type": "image_url", "image_url": {"url": "data:,hello"}}]
    assert common(keys(before), keys(after)) == 0


def test_sampling_does_not_change_the_prefix():
    assert keys(chat("a", "b", temperature=0.1, max_tokens=5)) == keys(chat("a", "b"))


def test_tenants_and_models_have_keys_of_their_own():
    ours = keys(chat("a", "b"))
    assert not set(ours) & set(keys(chat("a", "b"), seed=seed_of("t", "m")))
    assert not set(ours) & set(keys(chat("a", "b"), seed=seed_of("", "m-adapter")))
    assert seed_of("ab", "c") != seed_of("a", "bc")
    assert session_key(SEED, b"s") != session_key(seed_of("t", "m"), b"s") != session_key(SEED, b"t")


def test_completions_take_text_several_texts_and_token_ids():
    text, tokens = LONG * 2, list(range(4000))
    for prompt, longer in ((text, text + "x"), ([text, "b"], [text + "x", "b"]), (tokens, [*tokens, 5])):
        one, other = (keys({"prompt": p}, Dialect.COMPLETIONS) for p in (prompt, longer))
        assert common(one, other) >= 10
    assert keys({"prompt": [tokens, [1]]}, Dialect.COMPLETIONS) == keys({"prompt": tokens}, Dialect.COMPLETIONS)
    assert keys({"prompt": text}, Dialect.COMPLETIONS) == keys({"prompt": [text]}, Dialect.COMPLETIONS)


def test_responses_take_instructions_and_text_or_items():
    one = keys({"instructions": "be brief", "input": "hello"}, Dialect.RESPONSES)
    two = keys({"instructions": "be brief", "input": [{"role": "user", "content": "hello"}]}, Dialect.RESPONSES)
    assert len(one) == len(two) == 2 and one[0] == two[0]


def test_messages_take_their_system_prompt_as_text_or_parts():
    said = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}
    for system in ("be brief", [{"type": "text", "text": "be brief"}]):
        found = keys({"system": system} | said, Dialect.MESSAGES)
        assert len(found) == 2 and common(found, keys({"system": system, "messages": []}, Dialect.MESSAGES)) == 1


def test_embeddings_have_no_prefix():
    assert keys({"input": "hello"}, Dialect.PLAIN) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
members = st.sampled_from(["messages", "prompt", "input", "system", "tools", "instructions"])


@given(document=st.dictionaries(members, json_values, max_size=6), dialect=st.sampled_from(list(Dialect)))
@quick
def test_no_body_however_odd_does_any_harm(document, dialect):
    found = keys(document, dialect)
    assert found == keys(document, dialect) and len(found) <= MAX_KEYS
    assert all(0 <= key < 1 << 64 for key in found)


def test_nesting_too_deep_to_write_has_no_key():
    deep: list = []
    for _ in range(400):
        deep = [deep]
    first = {"role": "user", "content": "a"}
    assert keys({"messages": [first, {"role": "user", "content": deep}]}) == keys({"messages": [first]})


@given(texts=st.lists(st.text(max_size=300), min_size=1, max_size=12), cut=st.integers(0, 12))
@quick
def test_a_prefix_of_a_conversation_has_a_prefix_of_its_keys(texts, cut):
    whole, part = keys(chat(*texts)), keys(chat(*texts[:cut]))
    assert whole[: len(part)] == part


# ---- the index ----


def test_the_index_never_exceeds_its_bound_and_keeps_what_is_used():
    index = PrefixIndex(1000)
    index.learn([1], 7)
    for key in range(100, 5000):
        index.learn([key], 8)
        if key % 100 == 0:
            index.learn([1], 7)
        assert len(index) <= 1000
    assert index.holders(1) == index.bit(7)
    assert index.holders(100) == 0 and index.holders(4999) == index.bit(8)


def test_a_key_has_every_engine_that_learnt_it():
    index = PrefixIndex(10)
    index.learn([1, 2], 5)
    index.learn([1], 6)
    assert index.holders(1) == index.bit(5) | index.bit(6) and index.holders(2) == index.bit(5)


def test_engines_beyond_the_bits_make_it_forget_and_never_mix_two_up():
    index = PrefixIndex(1000)
    for number in range(MAX_BITS):
        index.learn([number], number)
    index.learn([9999], MAX_BITS)
    assert len(index) == 1 and index.holders(9999) == index.bit(MAX_BITS)
    assert index.holders(0) == 0


# ---- the choice ----

numbers = count()


@dataclass
class Backend:
    name: str = ""
    in_flight: int = 0
    slots: int = 8
    limit: int = 256
    number: int = field(default_factory=lambda: next(numbers))


@dataclass
class Candidate:
    backend: Backend
    weight: int = 100


def engines(*loads: int, slots: int = 8) -> list[Candidate]:
    return [Candidate(Backend(chr(97 + i), load, slots)) for i, load in enumerate(loads)]


def near(index: PrefixIndex, asked: list[int], candidates: list[Candidate], factor: float = 1.25) -> str:
    choice, known = nearest(index, asked, candidates, factor)
    return choice.backend.name if choice is not None else "spread" if known else "unknown"


def test_the_longest_known_prefix_wins():
    index, fleet = PrefixIndex(100), engines(0, 0, 0)
    index.learn([1, 2], fleet[0].backend.number)
    index.learn([1, 2, 3], fleet[1].backend.number)
    assert near(index, [1, 2, 3, 4], fleet) == "b"
    assert near(index, [7], fleet) == "unknown"


def test_of_those_that_know_as_much_the_least_loaded_is_chosen():
    index, fleet = PrefixIndex(100), engines(3, 1, 3, 3)
    for candidate in fleet[:2]:
        index.learn([1], candidate.backend.number)
    assert near(index, [1], fleet) == "b"


def test_an_engine_over_its_bound_is_passed_over_for_a_shorter_prefix():
    index, fleet = PrefixIndex(100), engines(7, 2, 2)
    index.learn([1, 2], fleet[0].backend.number)
    assert near(index, [1, 2], fleet) == "spread"
    index.learn([1], fleet[2].backend.number)
    assert near(index, [1, 2], fleet) == "c"


def test_the_bound_is_by_weight():
    index, fleet = PrefixIndex(100), engines(5, 5)
    fleet[0].weight = 300
    for candidate in fleet:
        index.learn([candidate.backend.number], candidate.backend.number)
    assert near(index, [fleet[0].backend.number], fleet) == "a"
    assert near(index, [fleet[1].backend.number], fleet) == "spread"


def test_a_sixteenth_of_the_slots_is_never_too_much():
    index, fleet = PrefixIndex(100), engines(15, 0, 0, slots=256)
    index.learn([1], fleet[0].backend.number)
    assert near(index, [1], fleet) == "a"
    fleet[0].backend.in_flight = 16
    assert near(index, [1], fleet) == "spread"


@given(loads=st.lists(st.integers(0, 8), min_size=1, max_size=6), learnt=st.sets(st.integers(0, 5)))
@quick
def test_the_choice_knows_the_prefix_and_is_within_its_bound(loads, learnt):
    index, fleet = PrefixIndex(100), engines(*loads)
    for place in learnt & set(range(len(fleet))):
        index.learn([1], fleet[place].backend.number)
    choice, known = nearest(index, [1], fleet, 1.25)
    assert known == bool(learnt & set(range(len(fleet))))
    if choice is not None:
        assert fleet.index(choice) in learnt
        assert choice.backend.in_flight <= 1.25 * (sum(loads) + 1) / len(loads)


# ---- in a router ----


def turn(number: int, conversation: str) -> dict:
    return {"model": "m"} | chat("be brief", f"about {conversation}", *["well", "and?"] * number)


@scenario
async def test_a_conversation_stays_with_its_engine_and_conversations_are_spread():
    async with Bed(ok(), ok(), ok()) as bed:
        for conversation in ("trees", "rivers", "clouds"):
            for number in range(5):
                client = await bed.client()
                await client.send(turn(number, conversation) | {"seed": number})
                assert (await client.answer()).status == 200
                client.writer.close()
        served = [{request.json["messages"][1]["content"] for request in engine.requests} for engine in bed.engines]
        assert sum(map(len, served)) == 3, "a conversation went to two engines"
        pool = bed.router.fleet.models["m"]
        assert pool.hits >= 12
        text = (await bed.admin("/metrics")).decode()
        assert f'llmfleet_router_prefixes_total{{model="m",result="hit"}} {float(pool.hits)}' in text


@scenario
async def test_a_session_stays_with_its_engine_whatever_it_says():
    async with Bed(ok(), ok(), ok()) as bed:
        for number in range(12):
            body = {"model": "m", "messages": [{"role": "user", "content": f"{number}"}]}
            await bed.ask(body, headers={"X-Session-Id": f"s{number % 3}"})
        engines = [{r.json["messages"][0]["content"] for r in engine.requests} for engine in bed.engines]
        assert sorted(map(len, engines)) == [4, 4, 4]
        assert all(len({int(n) % 3 for n in numbers}) == 1 for numbers in engines)
        assert not any(request.header("x-session-id") for engine in bed.engines for request in engine.requests)


@scenario
async def test_one_prefix_in_demand_is_spread_by_load():
    async with Bed(ok(delay=1), ok(delay=1), ok(delay=1), slots=10) as bed:
        clients = [await bed.client() for _ in range(24)]
        for client in clients:
            await client.send(CHAT)
        await bed.until(lambda: bed.in_flight() == 24, "all requests in flight")
        assert sorted(b.in_flight for b in bed.router.fleet.backends.values()) in ([7, 8, 9], [8, 8, 8], [7, 7, 10])
        for client in clients:
            assert (await client.answer()).status == 200
            client.writer.close()


@scenario
async def test_without_affinity_equal_requests_take_turns():
    async with Bed(ok(), ok(), settings={"affinity": {"enabled": False}}) as bed:
        for _ in range(6):
            await bed.ask(CHAT)
        assert [len(engine.requests) for engine in bed.engines] == [3, 3]
