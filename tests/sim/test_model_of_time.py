"""The pure half: tokens, words, blocks, scheduling and step times."""

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfleet_sim import text, tokens
from llmfleet_sim.blocks import BlockPool, Holding
from llmfleet_sim.scheduler import Limits, Scheduler, Sequence
from llmfleet_sim.timing import PROFILES, StepModel


class Silent:
    """A sink that keeps nothing."""

    transfer = None

    def cut(self):
        pass

    def emit(self, seq, word, reason, now):
        return False

    def fail(self, error):
        pass

    def interrupt(self):
        pass


def sequence(prompt=8, max_tokens=4, **more):
    given_ids = more.pop("ids", range(prompt))
    values = {"ignore_eos": True, "seed": 1, "arrived": 0.0, "sink": Silent(), "index": 0, "request_id": "r", **more}
    return Sequence(prompt=array("Q", given_ids), max_tokens=max_tokens, **values)


def scheduler(blocks=101, caching=True, **limits):
    values = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 1024, **limits}
    return Scheduler(Limits(**values), BlockPool(blocks=blocks, block_size=4, caching=caching))


def run(engine, steps=10_000):
    """Step until nothing is left; gives the batches."""
    batches = []
    while engine.busy and len(batches) < steps:
        batch = engine.schedule(float(len(batches)))
        if not batch.parts:
            break
        engine.complete(batch, float(len(batches) + 1))
        batches.append(batch)
    return batches


@given(st.text(max_size=200))
def test_tokens_turn_back_into_their_text(words):
    sent = words.encode("utf-8", "replace").decode("utf-8")
    assert tokens.decode(tokens.encode(words)) == sent


@given(st.text(max_size=60), st.text(max_size=60))
def test_equal_beginnings_of_text_give_equal_tokens(head, tail):
    whole = len(head.encode("utf-8", "replace")) // 4
    assert tokens.encode(head)[:whole] == tokens.encode(head + tail)[:whole]


def test_every_word_of_an_answer_is_one_token():
    assert all(list(tokens.encode(" " + word)) == [token] for word, token in zip(text.WORDS, text.TOKENS, strict=True))


def test_an_answer_follows_from_its_prompt_alone():
    prompt = tokens.encode("why is the sky blue")
    first, again = text.prompt_seed(prompt), text.prompt_seed(tokens.encode("why is the sky blue"))
    assert [text.word_at(first, n) for n in range(50)] == [text.word_at(again, n) for n in range(50)]
    assert text.prompt_seed(prompt, choice=1) != first != text.prompt_seed(prompt, seed=7)


def test_step_time_is_the_sum_of_its_four_parts():
    model = StepModel(a=10, b=1, c=0.1, d=0.01)
    assert model.seconds(batch=4, prefill_tokens=100, context_tokens=1000) == pytest.approx(0.034)
    assert model.with_overrides(a=0, b=None, c=None, d=None).a == 0


def test_profiles_keep_a_busy_step_below_a_tenth_of_a_second():
    for name, model in PROFILES.items():
        assert model.seconds(batch=128, prefill_tokens=0, context_tokens=128 * 2000) < 0.1, name


def test_long_prompts_are_prefilled_in_chunks_of_the_budget():
    engine = scheduler(max_num_batched_tokens=16)
    engine.add(sequence(prompt=40, max_tokens=1))
    assert [batch.prefill_tokens for batch in run(engine)] == [16, 16, 8]


def test_decodes_go_on_beside_a_chunked_prefill():
    engine = scheduler(max_num_batched_tokens=16)
    engine.add(sequence(prompt=4, max_tokens=9))
    engine.complete(engine.schedule(0.0), 1.0)
    engine.add(sequence(ids=range(100, 140), max_tokens=1))
    batch = engine.schedule(1.0)
    assert [count for _, count in batch.parts] == [1, 15]


def test_without_chunked_prefill_a_prompt_waits_for_a_whole_budget():
    engine = scheduler(max_num_batched_tokens=16, chunked_prefill=False)
    engine.add(sequence(prompt=40))
    assert engine.schedule(0.0).parts == []


def test_no_more_sequences_run_than_there_are_seats():
    engine = scheduler(max_num_seqs=2)
    for start in range(5):
        engine.add(sequence(ids=range(start * 10, start * 10 + 4)))
    engine.schedule(0.0)
    assert (len(engine.running), len(engine.waiting)) == (2, 3)


def test_a_repeated_prompt_is_read_from_the_cache_except_its_last_block():
    engine = scheduler()
    engine.add(sequence(prompt=16, max_tokens=1))
    run(engine)
    again = sequence(prompt=16, max_tokens=1)
    engine.add(again)
    assert run(engine)[0].prefill_tokens == 4
    assert again.cached == 12


def test_another_cache_salt_shares_nothing():
    engine = scheduler()
    engine.add(sequence(prompt=16, max_tokens=1))
    run(engine)
    other = sequence(prompt=16, max_tokens=1, salt=99)
    engine.add(other)
    run(engine)
    assert other.cached == 0


def test_an_answer_is_cached_for_the_next_turn():
    engine = scheduler()
    first = sequence(prompt=8, max_tokens=9)
    engine.add(first)
    run(engine)
    second = sequence(ids=first.tokens, max_tokens=1)
    engine.add(second)
    run(engine)
    assert second.cached == 16


def test_when_blocks_run_out_the_last_sequence_is_preempted_and_still_finishes():
    engine = scheduler(blocks=9, caching=False)
    first, second = sequence(prompt=8, max_tokens=16), sequence(ids=range(50, 58), max_tokens=16)
    engine.add(first)
    engine.add(second)
    batches = run(engine)
    assert sum(len(batch.preempted) for batch in batches) > 0
    assert (first.preemptions, first.outputs, second.outputs) == (0, 16, 16)
    assert second.preemptions > 0


def test_a_more_urgent_sequence_takes_the_seat_of_a_running_one():
    engine = scheduler(max_num_seqs=1, priority=True)
    order = []
    low, high = (
        sequence(max_tokens=6, priority=10),
        sequence(ids=range(90, 98), max_tokens=6, priority=-10, arrived=1.0),
    )
    engine.add(low)
    engine.complete(engine.schedule(0.0), 1.0)
    engine.add(high)
    while engine.busy:
        for seq, _, reason in engine.complete(engine.schedule(1.0), 2.0):
            order += [seq.priority] if reason else []
    assert order == [-10, 10]


def test_first_come_first_served_ignores_priority():
    engine = scheduler(max_num_seqs=1)
    engine.add(sequence(max_tokens=3, priority=10))
    engine.schedule(0.0)
    engine.add(sequence(ids=range(90, 98), priority=-10))
    assert [seq.priority for seq in engine.running] == [10]


def test_answers_end_by_themselves_unless_told_otherwise():
    engine = scheduler(output_tokens=10)
    free, held, bound = (
        sequence(max_tokens=100, ignore_eos=False),
        sequence(ids=range(9), max_tokens=100),
        sequence(ids=range(7), max_tokens=2),
    )
    long = sequence(ids=range(11), max_tokens=100, ignore_eos=False, min_tokens=60)
    for seq in (free, held, bound, long):
        engine.add(seq)
    run(engine)
    assert 5 <= free.outputs <= 17 and free.finish == "stop"
    assert (held.outputs, held.finish) == (100, "length")
    assert (bound.outputs, bound.finish) == (2, "length")
    assert 60 <= long.outputs < 100


def test_the_context_length_ends_an_answer():
    engine = scheduler(max_model_len=20)
    seq = sequence(prompt=16, max_tokens=100)
    engine.add(seq)
    run(engine)
    assert (seq.outputs, seq.finish) == (4, "length")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(0, 3), st.booleans()), min_size=1, max_size=12
    ),
    st.integers(16, 60),
    st.booleans(),
)
def test_no_schedule_leaks_a_block_or_forgets_a_sequence(requests, blocks, priority):
    engine = scheduler(blocks=blocks, priority=priority, max_num_batched_tokens=24)
    sequences = []
    for number, (prompt, wanted, urgency, abort) in enumerate(requests):
        seq = sequence(
            prompt=prompt, max_tokens=min(wanted, (blocks - 1) * 4 - prompt), priority=urgency, arrived=float(number)
        )
        if seq.max_tokens < 1:
            continue
        sequences.append((seq, abort))
        engine.add(seq)
        engine.complete(engine.schedule(float(number)), float(number))
        if abort:
            engine.abort(seq)
    run(engine)
    assert not engine.busy
    assert engine.pool.used == 0
    assert all(seq.finish in ("abort", "length") for seq, _ in sequences)
    assert all(seq.outputs == seq.max_tokens for seq, _ in sequences if seq.finish == "length")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30)), max_size=30))
def test_blocks_given_out_never_exceed_the_pool(actions):
    pool = BlockPool(blocks=20, block_size=4, caching=True)
    holdings = [Holding() for _ in range(4)]
    lengths = [0, 0, 0, 0]
    for which, size in actions:
        if lengths[which] + size > 70:
            pool.release(holdings[which])
            lengths[which] = 0
        elif pool.grow(holdings[which], lengths[which] + size):
            lengths[which] += size
            pool.name_full(holdings[which], array("Q", [which] * 80), lengths[which])
        assert 0 <= pool.used <= 19
        assert pool.used == len({n for h in holdings for n in h.shared}) + sum(h.private for h in holdings)


def test_a_preempted_sequence_does_not_count_its_own_tokens_as_cached():
    engine = scheduler(blocks=11)
    found = []
    engine.on_admit = lambda seq: found.append((seq.index, seq.preemptions, seq.cached))
    for index in (1, 2):
        engine.add(sequence(prompt=8, max_tokens=16, index=index, ids=range(100 * index, 100 * index + 8)))
    run(engine)
    assert any(preemptions for _, preemptions, _ in found)
    assert {cached for _, _, cached in found} == {0}
