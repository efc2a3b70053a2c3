"""Picking: slots are hard, tiers come first, load decides, turns are fair."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from llmfleet.api.document import Document, Endpoint, Model, ModelState, Role, State
from llmfleet.router.affinity import Affinity
from llmfleet.router.pick import Fleet, ModelPool, pick


def engine(name: str, **changes) -> Endpoint:
    return Endpoint(**({"instance": name, "address": f"{name}:1", "pod_uid": name} | changes))


def fleet_of(*endpoints: Endpoint) -> tuple[Fleet, ModelPool]:
    fleet = Fleet()
    fleet.apply(Document(models={"m": Model(endpoints=endpoints)}))
    return fleet, fleet.models["m"]


def take(pool: ModelPool, count: int) -> Counter:
    """Pick and hold."""
    taken: Counter = Counter()
    for _ in range(count):
        backend = pick(pool)
        if backend is not None:
            backend.in_flight += 1
            taken[backend.instance] += 1
    return taken


def test_slots_are_never_exceeded():
    _, pool = fleet_of(engine("a", slots=3), engine("b", slots=5))
    assert take(pool, 20) == {"a": 3, "b": 5}
    assert pick(pool) is None


def test_the_least_loaded_engine_is_chosen():
    fleet, pool = fleet_of(engine("a"), engine("b"), engine("c"))
    for backend, busy in zip(fleet.backends.values(), (5, 2, 9), strict=True):
        backend.in_flight = busy
    assert pick(pool).instance == "b"


def test_equal_engines_take_turns():
    _, pool = fleet_of(engine("a"), engine("b"), engine("c"))
    assert "".join(pick(pool).instance for _ in range(9)) == "abcabcabc"


def test_a_lower_tier_is_full_before_a_higher_one_is_used():
    _, pool = fleet_of(engine("far", tier=1), engine("near", slots=2))
    assert [pick_and_hold(pool) for _ in range(4)] == ["near", "near", "far", "far"]


def pick_and_hold(pool: ModelPool) -> str:
    backend = pick(pool)
    backend.in_flight += 1
    return backend.instance


def test_weights_share_load_and_turns_in_proportion():
    _, pool = fleet_of(engine("stable", weight=95), engine("canary", weight=5))
    assert Counter(pick(pool).instance for _ in range(1000)) == {"stable": 950, "canary": 50}
    assert take(pool, 100) == {"stable": 95, "canary": 5}


def test_draining_weightless_prefill_and_decode_engines_get_nothing():
    _, pool = fleet_of(
        engine("leaving", state=State.DRAINING),
        engine("off", weight=0),
        engine("p", role=Role.PREFILL),
        engine("d", role=Role.DECODE),
    )
    assert pick(pool) is None and not pool.open


def test_the_engine_to_avoid_is_avoided():
    fleet, pool = fleet_of(engine("a"), engine("b"))
    a, b = fleet.backends.values()
    assert all(pick(pool, avoid=a) is b for _ in range(5))
    _, alone = fleet_of(engine("a"))
    assert pick(alone, avoid=alone.candidates[0].backend) is None


def test_an_engine_that_was_away_does_not_catch_up():
    fleet, pool = fleet_of(engine("a"), engine("b", slots=1))
    fleet.backends["b", "b:1"].in_flight = 1
    for _ in range(100):
        pick(pool)
    fleet.backends["b", "b:1"].in_flight = 0
    assert Counter(pick(pool).instance for _ in range(10)) == {"a": 5, "b": 5}


def test_a_new_engine_is_not_flooded():
    fleet, pool = fleet_of(engine("a"))
    for _ in range(100):
        pick(pool)
    fleet.apply(Document(models={"m": Model(endpoints=(engine("a"), engine("b")))}))
    assert Counter(pick(fleet.models["m"]).instance for _ in range(10)) == {"a": 5, "b": 5}


def test_one_engine_behind_two_models_has_its_slots_once():
    fleet = Fleet()
    model = Model(endpoints=(engine("a", slots=4),))
    fleet.apply(Document(models={"base": model, "adapter": model}))
    assert take(fleet.models["base"], 3) == {"a": 3}
    assert take(fleet.models["adapter"], 3) == {"a": 1}


def test_documents_keep_what_is_in_flight_and_name_what_left():
    fleet, pool = fleet_of(engine("a"), engine("b"))
    take(pool, 4)
    gone = fleet.apply(Document(models={"m": Model(endpoints=(engine("b", slots=9),))}))
    assert [b.instance for b in gone] == ["a"]
    assert {b.instance: (b.in_flight, b.slots) for b in fleet.backends.values()} == {"a": (2, 256), "b": (2, 9)}
    for backend in fleet.backends.values():
        backend.in_flight = 0
    fleet.forget_idle()
    assert [b.instance for b in fleet.backends.values()] == ["b"]


def test_another_pod_at_the_same_address_is_another_engine():
    fleet, pool = fleet_of(engine("a"))
    take(pool, 2)
    fleet.apply(Document(models={"m": Model(endpoints=(engine("a", pod_uid="new"),))}))
    assert [(b.pod_uid, b.in_flight) for b in fleet.backends.values()] == [("a", 2), ("new", 0)]


def test_a_model_without_engines_is_known():
    fleet = Fleet()
    fleet.apply(Document(models={"m": Model(state=ModelState.ASLEEP)}))
    assert pick(fleet.models["m"]) is None and fleet.models["m"].state is ModelState.ASLEEP


@given(
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 50), st.integers(0, 2)), min_size=1, max_size=6),
    steps=st.lists(st.booleans(), max_size=80),
)
def test_an_eligible_free_slot_is_always_found_and_never_exceeded(shapes, steps):
    engines = [engine(f"e{i}", slots=s, weight=w, tier=t) for i, (s, w, t) in enumerate(shapes)]
    _, pool = fleet_of(*engines)
    held = []
    for acquire in steps:
        if not acquire and held:
            held.pop(0).in_flight -= 1
            continue
        free = [c for c in pool.open if c.backend.in_flight < c.backend.slots]
        chosen = pick(pool)
        assert (chosen is None) == (not free)
        if chosen is not None:
            least = min(c.tier for c in free)
            assert any(c.backend is chosen and c.tier == least for c in free)
            chosen.in_flight += 1
            held.append(chosen)
        assert all(c.backend.in_flight <= c.backend.slots for c in pool.candidates)


# ---- prefixes ----


def near_fleet(*endpoints: Endpoint) -> ModelPool:
    fleet = Fleet(affinity=Affinity(block_bytes=1024, max_entries=1000, load_factor=1.25, session_headers=()))
    fleet.apply(Document(models={"m": Model(endpoints=endpoints)}))
    return fleet.models["m"]


def test_a_prefix_returns_to_the_engine_that_had_it():
    pool = near_fleet(engine("a"), engine("b"), engine("c"))
    first = [pick(pool, keys=[key]).instance for key in (1, 2, 3)]
    assert sorted(first) == ["a", "b", "c"]
    assert [pick(pool, keys=[key, key + 10]).instance for key in (3, 1, 2, 2, 2, 1)] == [
        first[key - 1] for key in (3, 1, 2, 2, 2, 1)
    ]
    assert (pool.hits, pool.misses, pool.spread) == (6, 3, 0)


def test_an_engine_used_for_its_cache_does_not_lose_its_turns_for_long():
    pool = near_fleet(engine("a"), engine("b"))
    for _ in range(1000):
        assert pick(pool, keys=[1]).instance == "a"
    others = "".join(pick(pool).instance for _ in range(100))
    assert others.count("a") >= 40


def test_a_canary_keeps_its_weight_though_every_prompt_begins_alike():
    pool = near_fleet(
        engine("s1", weight=50, engine_revision="old"),
        engine("s2", weight=45, engine_revision="old"),
        engine("canary", weight=5, engine_revision="new"),
    )
    served = Counter(pick(pool, keys=[1]).instance for _ in range(1000))
    assert 40 <= served["canary"] <= 60


def test_a_canary_that_was_away_does_not_catch_up():
    pool = near_fleet(engine("s", engine_revision="old"), engine("c", engine_revision="new", slots=1))
    canary = next(c.backend for c in pool.open if c.backend.instance == "c")
    canary.in_flight = 1
    for _ in range(500):
        assert pick(pool, keys=[1]).instance == "s"
    canary.in_flight = 0
    assert 40 <= Counter(pick(pool, keys=[1]).instance for _ in range(100))["c"] <= 50 + 40


def test_a_prefix_never_leads_past_a_better_tier_a_full_engine_or_the_one_to_avoid():
    pool = near_fleet(engine("far", tier=1), engine("near"), engine("near2"))
    far, near, near2 = (c.backend for c in pool.open)
    for backend in (far, near):
        pool.affinity.index.learn([1], backend.number)
    assert pick(pool, keys=[1]) is near
    assert pick(pool, avoid=near, keys=[1]) is near2
    near.in_flight = near.limit
    assert pick(pool, keys=[1]) is near2


@given(
    keys=st.lists(st.integers(0, 5), max_size=40), slots=st.integers(1, 4), weights=st.tuples(*[st.integers(1, 9)] * 3)
)
def test_with_prefixes_too_a_free_slot_is_found_and_never_exceeded(keys, slots, weights):
    pool = near_fleet(
        *(engine(f"e{i}", slots=slots, weight=w, engine_revision=str(i % 2)) for i, w in enumerate(weights))
    )
    for number, key in enumerate(keys):
        chosen = pick(pool, keys=[key])
        assert (chosen is None) == (number >= 3 * slots)
        if chosen is not None:
            chosen.in_flight += 1
            assert chosen.in_flight <= chosen.slots
