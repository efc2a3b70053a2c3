"""The work queue: one worker per key, nothing lost, nothing hot. Every sequence of calls, and real threads."""

from __future__ import annotations

import random
import threading
import time
from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from fakes.scripted import ScriptedApiserver, Status, eventually
from llmfleet.kube.client import Api
from llmfleet.kube.errors import Conflict, NotFound, Rejected, Unavailable
from llmfleet.kube.pending import EVENT_GAP, PendingKeys
from llmfleet.kube.refs import POD, Key, key_of
from llmfleet.kube.transport.client import Anonymous, Transport
from llmfleet.kube.workqueue import Manager, WorkQueue

KEYS = [Key("ns", name) for name in "abc"]
A, B, C = KEYS


class QueueMachine(RuleBasedStateMachine):
    """The queue beside a model that only knows what the queue promises."""

    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.queue = PendingKeys()
        self.now = 0.0
        self.working: set[Key] = set()
        self.resting: dict[Key, float] = {}
        """Keys after a success, and until when they must not be handed out."""
        self.marked: dict[Key, float] = {}
        """Keys that must be taken again, and from when on at the latest."""

    def mark(self, key: Key, by: float) -> None:
        by = max(by, self.resting.get(key, 0.0))
        self.marked[key] = min(by, self.marked.get(key, by))

    @rule(key=st.sampled_from(KEYS))
    def add(self, key: Key) -> None:
        self.queue.add(key, self.now)
        self.mark(key, self.now + EVENT_GAP)

    @rule(key=st.sampled_from(KEYS), delay=st.floats(0, 20))
    def add_later(self, key: Key, delay: float) -> None:
        self.queue.add_later(key, self.now + delay)
        self.mark(key, self.now + max(delay, EVENT_GAP))

    @rule()
    def take(self) -> None:
        key = self.queue.take(self.now)
        if key is None:
            overdue = {k for k, by in self.marked.items() if by <= self.now and k not in self.working}
            assert not overdue, f"{overdue} should have been handed out"
            return
        assert key not in self.working, "two workers on one key"
        assert self.resting.get(key, 0.0) <= self.now, "handed out while it rests"
        self.working.add(key)
        self.marked.pop(key, None)

    @rule(data=st.data(), again=st.none() | st.floats(0, 20), rest=st.just(0.0) | st.floats(0, 5))
    def done(self, data: st.DataObject, again: float | None, rest: float) -> None:
        if self.working:
            key = data.draw(st.sampled_from(sorted(self.working)))
            self.working.discard(key)
            self.queue.done(key, self.now, again, rest)
            self.resting[key] = self.now + rest
            if key in self.marked:
                self.marked[key] = max(self.marked[key], self.now + rest)
            if again is not None:
                self.mark(key, self.now + again + EVENT_GAP)

    @rule(data=st.data(), delay=st.floats(0.01, 30))
    def failed(self, data: st.DataObject, delay: float) -> None:
        if self.working:
            key = data.draw(st.sampled_from(sorted(self.working)))
            self.working.discard(key)
            was_marked = key in self.marked
            self.queue.failed(key, self.now, delay)
            self.resting.pop(key, None)
            if was_marked:
                self.marked[key] = max(self.marked[key], self.now + EVENT_GAP)
            else:
                self.mark(key, self.now + delay)

    @rule(seconds=st.floats(0, 10))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def a_delayed_key_is_announced(self) -> None:
        """Whoever waits until `next_at` misses nothing."""
        waiting = {k for k in self.marked if k not in self.working}
        assert not waiting or len(self.queue) or self.queue.next_at() is not None

    def teardown(self) -> None:
        """In the end every marked key comes out, each once."""
        for key in list(self.working):
            self.queue.done(key, self.now)
        self.now += 1000.0
        out = []
        while (key := self.queue.take(self.now)) is not None:
            out.append(key)
        assert set(self.marked) <= set(out)
        assert len(out) == len(set(out))


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_many_events_for_a_key_are_one_pass() -> None:
    queue = PendingKeys()
    for _ in range(100):
        queue.add(A, 0.0)
    assert queue.take(0.0) == A
    assert queue.take(0.0) is None


def test_a_key_that_changed_while_worked_is_worked_again() -> None:
    queue = PendingKeys()
    queue.add(A, 0.0)
    queue.take(0.0)
    queue.add(A, 0.0)
    assert queue.take(0.0) is None
    queue.done(A, 0.0)
    assert queue.take(0.0) == A


def test_a_failing_key_does_not_delay_the_others_nor_overtake_its_back_off_by_events() -> None:
    queue = PendingKeys()
    for key in KEYS:
        queue.add(key, 0.0)
    assert queue.take(0.0) == A
    queue.failed(A, 0.0, 8.0)
    queue.add(A, 0.1)
    assert [queue.take(0.1), queue.take(0.1), queue.take(0.1)] == [B, C, None]
    assert queue.take(EVENT_GAP) == A


def test_a_sooner_time_wins_and_a_later_one_is_forgotten_only_when_it_comes() -> None:
    queue = PendingKeys()
    queue.add_later(A, 10.0)
    queue.add_later(A, 5.0)
    queue.add_later(A, 20.0)
    assert queue.take(4.9) is None
    assert queue.take(5.0) == A
    queue.done(A, 5.0)
    assert queue.take(100.0) is None


def test_a_key_that_rests_takes_no_passes_however_many_events_come() -> None:
    queue = PendingKeys()
    queue.add(A, 0.0)
    queue.take(0.0)
    queue.add(A, 0.0)
    queue.done(A, 0.0, rest=2.0)
    queue.add(A, 1.0)
    assert queue.take(1.9) is None
    assert queue.take(2.0) == A
    queue.done(A, 2.0)
    assert queue.take(10.0) is None


def test_a_worker_that_waits_for_a_later_key_is_woken_for_a_sooner_one() -> None:
    queue = WorkQueue()
    taken: list[Key | None] = []
    queue.add_after(A, timedelta(seconds=30))
    worker = threading.Thread(target=lambda: taken.append(queue.take()), daemon=True)
    worker.start()
    time.sleep(0.1)
    queue.add_after(B, timedelta(seconds=0.05))
    eventually(lambda: taken == [B], seconds=20)
    worker.join(20)


def test_keys_due_at_once_are_worked_side_by_side() -> None:
    queue = WorkQueue()
    both = threading.Barrier(2, timeout=60)
    met: list[Key] = []

    def work() -> None:
        key = queue.take()
        both.wait()
        assert key is not None
        met.append(key)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    time.sleep(0.05)
    for key in (A, B):
        queue.add_after(key, timedelta(seconds=0.1))
    for worker in workers:
        worker.join(60)
    assert sorted(met) == [A, B]


def test_back_off_grows_per_key_and_is_forgotten_after_a_success() -> None:
    queue = WorkQueue(clock=lambda: 0.0)
    delays = []
    for _ in range(12):
        queue._pending.add(A, 1e9)
        key = queue._pending.take(1e9)
        assert key == A
        delays.append(queue.failed(A, RuntimeError("x"))[1])
    assert delays[0] <= 0.25
    assert 15.0 <= delays[-1] <= 30.0
    queue._pending.add(A, 1e9)
    queue._pending.take(1e9)
    queue.done(A)
    queue._pending.add(A, 1e9)
    queue._pending.take(1e9)
    assert queue.failed(A, RuntimeError("x"))[1] <= 0.25


def test_a_conflict_is_retried_soon_and_a_retry_after_is_honoured() -> None:
    queue = WorkQueue(clock=lambda: 0.0)
    for key, error, low, high in (
        (A, Conflict("x"), 0.01, 0.02),
        (B, Unavailable("x", retry_after=7.0), 7.0, 7.0),
        (C, Rejected("x"), 0.12, 0.25),
    ):
        queue.add(key)
        assert queue.take() == key
        assert low <= queue.failed(key, error)[1] <= high


def test_threads_never_meet_on_a_key_and_lose_no_change() -> None:
    """Each key counts up; a pass copies what it sees. In the end every copy is current."""
    queue = WorkQueue()
    wanted = dict.fromkeys((Key("ns", str(n)) for n in range(20)), 0)
    seen: dict[Key, int] = {}
    inside: set[Key] = set()
    clashes: list[Key] = []
    rng = random.Random(7)

    def work() -> None:
        while (key := queue.take()) is not None:
            if key in inside:
                clashes.append(key)
            inside.add(key)
            value = wanted[key]
            if rng.random() < 0.2:
                time.sleep(0.0005)
            seen[key] = value
            inside.discard(key)
            if rng.random() < 0.1:
                queue.failed(key, Conflict("x"))
            else:
                queue.done(key, timedelta(seconds=0.001) if rng.random() < 0.1 else None)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for worker in workers:
        worker.start()
    for _ in range(3000):
        key = rng.choice(list(wanted))
        wanted[key] += 1
        queue.add(key)
    eventually(lambda: seen == wanted)
    queue.close()
    for worker in workers:
        worker.join(5)
    assert clashes == []
    assert not any(worker.is_alive() for worker in workers)


# The manager.


def api_of(fake: ScriptedApiserver) -> Api:
    return Api(Transport(Anonymous(fake.url), user_agent="test"), manager="test")


class Running:
    """A manager on a thread."""

    def __init__(self, manager: Manager, fake: ScriptedApiserver) -> None:
        self.manager, self.fake = manager, fake
        self.stop = threading.Event()
        self.thread = threading.Thread(target=manager.run, args=(self.stop,), daemon=True)

    def __enter__(self) -> Running:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.fake.end_watches()
        self.thread.join(60)
        assert not self.thread.is_alive()


def test_no_pass_begins_before_the_first_list_of_every_cache(fake: ScriptedApiserver) -> None:
    manager = Manager(api_of(fake))
    pods = manager.cache(POD, namespaces=("ns",))
    late = manager.cache(POD, namespaces=("ns",), label_selector="slow=true")
    fake.put("a")
    held = threading.Event()

    def hold(request: object) -> None:
        if getattr(request, "query", {}).get("labelSelector") == "slow=true":
            held.wait(120)

    fake.rules.append(hold)
    passes: list[bool] = []
    manager.controller(
        "test",
        lambda _key: passes.append(late.synced("ns")),
        sources=[(pods, lambda obj: [key_of(obj)]), (late, lambda obj: [key_of(obj)])],
    )
    with Running(manager, fake):
        eventually(lambda: pods.synced("ns"))
        time.sleep(0.3)
        assert passes == []
        held.set()
        eventually(lambda: passes)
        assert all(passes)


def test_a_namespace_we_may_not_read_does_not_hold_up_the_others(fake: ScriptedApiserver) -> None:
    fake.rules.append(lambda request: Status(code=403) if "/namespaces/closed/" in request.path else None)
    fake.put("a")
    manager = Manager(api_of(fake))
    pods = manager.cache(POD, namespaces=("ns", "closed"))
    passes: list[Key] = []
    manager.controller("test", passes.append, sources=[(pods, lambda obj: [key_of(obj)])])
    with Running(manager, fake):
        eventually(lambda: passes == [Key("ns", "a")])
        eventually(lambda: manager.unsynced() == [])


def test_a_poisoned_object_never_blocks_the_others_and_is_no_hot_loop(fake: ScriptedApiserver) -> None:
    for name in ("good", "poison"):
        fake.put(name)
    manager = Manager(api_of(fake))
    pods = manager.cache(POD, namespaces=("ns",))
    passes: list[str] = []

    def reconcile(key: Key) -> None:
        passes.append(key.name)
        if key.name == "poison":
            raise RuntimeError("poison")

    manager.controller("test", reconcile, sources=[(pods, lambda obj: [key_of(obj)])])
    with Running(manager, fake):
        eventually(lambda: set(passes) == {"good", "poison"})
        for n in range(50):
            fake.put("poison", status={"n": n})
            fake.put("good", status={"n": n})
        time.sleep(0.5)
        assert passes.count("poison") <= 8
        eventually(lambda: (pods.get("ns", "good") or {}).get("status") == {"n": 49})
        eventually(lambda: passes.count("good") >= 2)


@pytest.mark.parametrize("error", [NotFound("gone"), Conflict("c"), Unavailable("u"), Rejected("r"), KeyError("k")])
def test_a_worker_survives_every_error(fake: ScriptedApiserver, error: Exception) -> None:
    fake.put("a")
    manager = Manager(api_of(fake))
    pods = manager.cache(POD, namespaces=("ns",))
    passes: list[Key] = []

    def reconcile(key: Key) -> None:
        passes.append(key)
        if len(passes) == 1:
            raise error

    manager.controller("test", reconcile, sources=[(pods, lambda obj: [key_of(obj)])])
    with Running(manager, fake):
        eventually(lambda: passes)
        fake.put("a")
        eventually(lambda: len(passes) >= 2)


def test_every_key_comes_back_once_per_resync_period(fake: ScriptedApiserver) -> None:
    for n in range(20):
        fake.put(f"p{n}")
    manager = Manager(api_of(fake), resync=timedelta(seconds=1))
    pods = manager.cache(POD, namespaces=("ns",))
    counts: dict[str, int] = {}
    lock = threading.Lock()

    def reconcile(key: Key) -> None:
        with lock:
            counts[key.name] = counts.get(key.name, 0) + 1

    manager.controller("test", reconcile, sources=[(pods, lambda obj: [key_of(obj)])])
    began = time.monotonic()
    with Running(manager, fake):
        eventually(lambda: len(counts) == 20)
        eventually(lambda: min(counts.values()) >= 3)
        passes = max(counts.values())
    assert passes <= 3 + (time.monotonic() - began)


def test_the_same_cache_is_watched_once(fake: ScriptedApiserver) -> None:
    manager = Manager(api_of(fake))
    assert manager.cache(POD, namespaces=("b", "a")) is manager.cache(POD, namespaces=("a", "b"))
    assert manager.cache(POD) is not manager.cache(POD, label_selector="a=b")


def test_a_key_that_is_always_due_costs_no_worker(fake: ScriptedApiserver) -> None:
    """The pass after it may begin on another worker before this one has put its tools away."""
    fake.put("a")
    manager = Manager(api_of(fake), workers=4)
    pods = manager.cache(POD, namespaces=("ns",))
    passes: list[int] = []

    def reconcile(key: Key) -> timedelta:
        passes.append(1)
        return timedelta(0)

    manager.controller("test", reconcile, sources=[(pods, lambda obj: [key_of(obj)])])
    with Running(manager, fake):
        eventually(lambda: len(passes) > 3000, seconds=60)
        assert manager.stuck() == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_died_is_noticed(fake: ScriptedApiserver) -> None:
    manager = Manager(api_of(fake))
    pods = manager.cache(POD, namespaces=("ns",))

    def reconcile(_key: Key) -> None:
        raise SystemExit

    manager.controller("doomed", reconcile, sources=[(pods, lambda obj: [key_of(obj)])])
    with Running(manager, fake):
        assert manager.stuck() == []
        fake.put("a")
        eventually(lambda: manager.stuck() == ["doomed"])


def test_an_outage_is_one_line_a_minute_however_many_keys_fail(
    fake: ScriptedApiserver, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(30):
        fake.put(f"p{n}")
    fake.rules.append(lambda request: Status(code=403) if request.method == "PATCH" else None)
    api = api_of(fake)
    manager = Manager(api, workers=2)
    pods = manager.cache(POD, namespaces=("ns",))

    def reconcile(key: Key) -> None:
        api.apply({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"namespace": "ns", "name": key.name}})

    manager.controller("test", reconcile, sources=[(pods, lambda obj: [key_of(obj)])])
    with Running(manager, fake):
        eventually(lambda: sum(request.method == "PATCH" for request in list(fake.requests)) >= 40)
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("workqueue")]
    assert lines == ["permission is missing: patch statefulsets.apps"]
