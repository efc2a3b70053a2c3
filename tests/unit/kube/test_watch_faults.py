"""Every way a list or watch goes wrong is ordinary: the cache converges, and nobody asks in a hot loop."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from fakes.scripted import (
    Hang,
    Raw,
    Reset,
    ScriptedApiserver,
    Silent,
    Status,
    Stream,
    eventually,
    scripted_apiserver,
    status,
)
from llmfleet.kube.backoff import Backoff
from llmfleet.kube.client import Api
from llmfleet.kube.errors import Unavailable
from llmfleet.kube.refs import POD
from llmfleet.kube.transport.client import Anonymous, Transport
from llmfleet.kube.trim import trim_metadata
from llmfleet.kube.watch.client import Cache, Reflector

FAST = Backoff(base=0.02, cap=0.1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules in less time; the real pauses are tested by their own test."""
    monkeypatch.setattr("llmfleet.kube.watch.client.WATCH", FAST)
    monkeypatch.setattr("llmfleet.kube.watch.client.SETTLED_SECONDS", 0.2)


def api_of(fake: ScriptedApiserver) -> Api:
    return Api(Transport(Anonymous(fake.url), user_agent="test"), manager="test")


@contextmanager
def reflecting(fake: ScriptedApiserver, **options: Any) -> Iterator[Cache]:
    label_selector = options.pop("label_selector", "")
    cache = Cache(POD, namespaces=("ns",), trim=trim_metadata, label_selector=label_selector)
    reflector = Reflector(api_of(fake), cache, "ns", **options)
    stop = threading.Event()
    thread = threading.Thread(target=reflector.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield cache
    finally:
        stop.set()
        reflector.interrupt()
        fake.end_watches()
        thread.join(60)
        assert not thread.is_alive()


def names(cache: Cache) -> list[str]:
    return sorted(obj["metadata"]["name"] for obj in cache.list())


def converges(cache: Cache, fake: ScriptedApiserver) -> None:
    """Cache and apiserver name the same objects in the same versions."""

    def same() -> bool:
        held = {o["metadata"]["name"]: o["metadata"]["resourceVersion"] for o in cache.list()}
        return held == {name: o["metadata"]["resourceVersion"] for (_, name), o in fake.objects.items()}

    eventually(same)


def lists(fake: ScriptedApiserver) -> int:
    return len(fake.asked(watch=False))


LIST_FAULTS = {
    "400": Status(code=400),
    "401": Status(code=401),
    "403": Status(code=403),
    "404": Status(code=404),
    "409": Status(code=409),
    "410": Status(code=410),
    "429": Status(code=429),
    "500": Status(code=500),
    "503": Status(code=503),
    "a proxy's HTML page": Status(code=502, body=b"<html>bad gateway</html>"),
    "an answer that is no JSON": Raw(data=b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{{{{"),
    "an answer that is a list": Status(code=200, body=[1]),
    "bytes that are no HTTP": Raw(data=b"SSH-2.0-OpenSSH\r\n"),
    "a body cut short": Raw(data=b'HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{"items":['),
    "a reset": Reset(),
}


@pytest.mark.parametrize("name", LIST_FAULTS)
def test_a_list_that_fails_is_tried_again_until_it_works(fake: ScriptedApiserver, name: str) -> None:
    fake.put("a")
    fake.times(3, LIST_FAULTS[name], watch=False)
    with reflecting(fake) as cache:
        eventually(lambda: names(cache) == ["a"])


WATCH_FAULTS = {
    **LIST_FAULTS,
    "an orderly end": Stream(),
    "an end after one event": Stream(
        events=({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "101"}}},)
    ),
    "a reset in mid-stream": Stream(reset=True),
    "a line cut short": Stream(cut=b'{"type":"ADDED","object":{"meta'),
    "an ERROR event 410": Stream(events=({"type": "ERROR", "object": status(410)},)),
    "an ERROR event 500": Stream(events=({"type": "ERROR", "object": status(500)},)),
    "an ERROR event without an object": Stream(events=({"type": "ERROR"},)),
    "an event without metadata": Stream(events=({"type": "ADDED", "object": {}},)),
    "an event of an unknown type": Stream(
        events=({"type": "NEW", "object": {"metadata": {"name": "x", "namespace": "ns"}}},)
    ),
    "an event that is no object": Stream(events=(7,)),
    "an event whose object is no object": Stream(events=({"type": "ADDED", "object": 7},)),
}


@pytest.mark.parametrize("name", WATCH_FAULTS)
def test_a_watch_that_fails_loses_no_change(fake: ScriptedApiserver, name: str) -> None:
    fake.put("before")
    fake.times(3, WATCH_FAULTS[name], watch=True)
    with reflecting(fake) as cache:
        eventually(lambda: cache.synced("ns"))
        fake.put("during", silent=True)
        eventually(lambda: fake.open_watches == 1)
        fake.put("after")
        eventually(lambda: names(cache) == ["after", "before", "during"])


def test_a_watch_that_always_fails_is_no_hot_loop() -> None:
    """All faults side by side. Pauses are 0.01..0.02, 0.02..0.04, then 0.05..0.1 s: at most 20 rounds a second each."""
    with ExitStack() as stack:
        fakes = {name: stack.enter_context(scripted_apiserver()) for name in WATCH_FAULTS}
        began = time.monotonic()
        for name, fake in fakes.items():
            fake.put("a")
            fake.always(WATCH_FAULTS[name], watch=True)
            stack.enter_context(reflecting(fake))
        eventually(lambda: all(len(fake.asked(watch=True)) >= 2 for fake in fakes.values()))
        time.sleep(0.6)
        asked = {name: (len(fake.asked(watch=True)), lists(fake)) for name, fake in fakes.items()}
        most = 8 + (time.monotonic() - began) / 0.05
    # A 401 is asked twice per round: once more with fresh credentials.
    assert {name: n for name, n in asked.items() if max(n) > (2 * most if name == "401" else most)} == {}


def test_deletions_missed_during_an_outage_are_found_by_the_next_list(fake: ScriptedApiserver) -> None:
    fake.put("a")
    fake.put("b")
    with reflecting(fake) as cache:
        eventually(lambda: names(cache) == ["a", "b"] and fake.open_watches == 1)
        fake.once(Status(code=410), watch=True)
        fake.drop("a", silent=True)
        fake.put("b", spec={"n": 2}, silent=True)
        fake.end_watches(reset=True)
        eventually(lambda: names(cache) == ["b"])
        converges(cache, fake)


def test_a_watch_resumes_where_it_ended_without_a_list(fake: ScriptedApiserver) -> None:
    fake.put("a")
    with reflecting(fake) as cache:
        eventually(lambda: fake.open_watches == 1)
        time.sleep(0.25)
        version = fake.put("b")["metadata"]["resourceVersion"]
        eventually(lambda: names(cache) == ["a", "b"])
        fake.end_watches()
        eventually(lambda: len(fake.asked(watch=True)) == 2)
        assert fake.asked(watch=True)[-1].query["resourceVersion"] == version
        assert lists(fake) == 1


def test_a_bookmark_moves_the_position(fake: ScriptedApiserver) -> None:
    with reflecting(fake):
        eventually(lambda: fake.open_watches == 1)
        fake.emit("BOOKMARK", {"metadata": {"resourceVersion": "5000"}})
        time.sleep(0.1)
        fake.end_watches()
        eventually(lambda: len(fake.asked(watch=True)) == 2)
        assert fake.asked(watch=True)[-1].query["resourceVersion"] == "5000"
        assert all(request.query["allowWatchBookmarks"] == "true" for request in fake.asked(watch=True))


@pytest.mark.parametrize("fault", [Silent(), Hang()], ids=["silent after the head", "silent from the start"])
def test_a_half_open_watch_is_noticed(fake: ScriptedApiserver, fault: Any) -> None:
    fake.put("a")
    fake.once(fault, watch=True)
    with reflecting(fake, silence_seconds=0.3) as cache:
        eventually(lambda: len(fake.asked(watch=True)) == 1)
        fake.put("b")
        eventually(lambda: names(cache) == ["a", "b"])


def test_the_server_is_asked_to_end_each_watch_before_we_take_silence_for_death(fake: ScriptedApiserver) -> None:
    from llmfleet.kube.watch.client import SILENCE_SECONDS, WATCH_SECONDS

    with reflecting(fake):
        eventually(lambda: fake.open_watches == 1)
        assert int(fake.asked(watch=True)[0].query["timeoutSeconds"]) == WATCH_SECONDS < SILENCE_SECONDS


def test_an_apiserver_that_is_down_is_asked_a_few_times_not_thousands(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmfleet.kube.backoff import WATCH

    monkeypatch.setattr("llmfleet.kube.watch.client.WATCH", WATCH)
    attempts: list[float] = []

    class Counting(Transport):
        def _once(self, *args: Any) -> Any:
            attempts.append(time.monotonic())
            return super()._once(*args)

    dead = ScriptedApiserver()
    dead.stop()
    cache = Cache(POD, trim=trim_metadata)
    reflector = Reflector(Api(Counting(Anonymous(dead.url), user_agent="test"), manager="test"), cache, "")
    stop = threading.Event()
    thread = threading.Thread(target=reflector.run, args=(stop,), daemon=True)
    thread.start()
    time.sleep(2.0)
    assert len(attempts) <= 5
    eventually(lambda: len(attempts) >= 2)
    stop.set()
    thread.join(60)


def test_after_an_outage_the_cache_is_current_within_a_back_off(fake: ScriptedApiserver) -> None:
    fake.put("a")
    with reflecting(fake) as cache:
        eventually(lambda: fake.open_watches == 1)
        heal = fake.always(Reset())
        fake.end_watches(reset=True)
        time.sleep(0.3)
        fake.put("b", silent=True)
        fake.drop("a", silent=True)
        heal()
        fake.once(Status(code=410), watch=True)
        eventually(lambda: names(cache) == ["b"], seconds=30)


def test_retry_after_is_honoured(fake: ScriptedApiserver) -> None:
    fake.once(Status(code=429, headers={"Retry-After": "1"}), watch=False)
    with reflecting(fake) as cache:
        eventually(lambda: cache.synced("ns"))
        first, second = fake.asked(watch=False)[:2]
        assert second.at - first.at >= 1.0


def test_a_missing_permission_is_reported_once_a_minute_by_name(
    fake: ScriptedApiserver, caplog: pytest.LogCaptureFixture
) -> None:
    fake.always(Status(code=403, body=status(403, "pods is forbidden")), watch=False)
    with caplog.at_level(logging.WARNING), reflecting(fake) as cache:
        eventually(lambda: lists(fake) >= 4)
        assert not cache.synced("ns")
        assert cache.settled()
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["permission is missing: list and watch on pods"]


def test_an_optional_kind_that_is_absent_counts_as_empty(fake: ScriptedApiserver) -> None:
    fake.always(Status(code=404), watch=False)
    with reflecting(fake, optional=True) as cache:
        eventually(lambda: cache.synced("ns"))
        assert cache.list() == []
        time.sleep(0.2)
        assert lists(fake) == 1


def test_a_kind_that_is_not_optional_keeps_its_objects_through_a_404(fake: ScriptedApiserver) -> None:
    fake.put("a")
    with reflecting(fake) as cache:
        eventually(lambda: names(cache) == ["a"] and fake.open_watches == 1)
        fake.once(Status(code=410), watch=True)
        fake.times(3, Status(code=404), watch=False)
        fake.end_watches(reset=True)
        eventually(lambda: lists(fake) >= 3)
        assert names(cache) == ["a"]


def test_a_duplicated_or_late_event_changes_nothing(fake: ScriptedApiserver) -> None:
    seen: list[tuple[Any, Any]] = []
    old = json.loads(json.dumps(fake.put("a", spec={"n": 1})))
    fake.put("a", spec={"n": 2})
    with reflecting(fake) as cache:
        cache.subscribe(lambda before, after: seen.append((before, after)))
        eventually(lambda: names(cache) == ["a"] and fake.open_watches == 1)
        seen.clear()
        fake.emit("MODIFIED", old)
        fake.emit("MODIFIED", fake.objects["ns", "a"])
        fake.put("z")
        eventually(lambda: names(cache) == ["a", "z"])
        assert cache.get("ns", "a")["spec"] == {"n": 2}
        assert len(seen) == 1


def test_a_change_reported_after_its_deletion_does_not_bring_the_object_back(fake: ScriptedApiserver) -> None:
    fake.put("a", spec={"n": 1})
    with reflecting(fake) as cache:
        eventually(lambda: names(cache) == ["a"] and fake.open_watches == 1)
        late = json.loads(json.dumps(fake.put("a", spec={"n": 2}, silent=True)))
        fake.drop("a")
        fake.emit("MODIFIED", late)
        fake.put("z")
        eventually(lambda: "z" in names(cache))
        assert names(cache) == ["z"]


def test_a_change_no_event_told_of_is_found_by_the_list_now_and_then(fake: ScriptedApiserver) -> None:
    fake.put("a")
    with reflecting(fake, relist_seconds=0.2) as cache:
        eventually(lambda: names(cache) == ["a"] and fake.open_watches == 1)
        fake.drop("a", silent=True)
        time.sleep(0.3)
        fake.end_watches()
        eventually(lambda: names(cache) == [])


def test_versions_that_go_backwards_are_believed(fake: ScriptedApiserver) -> None:
    """etcd restored from a backup: every version is older than what is held."""
    fake.version = 10_000
    fake.put("a", spec={"n": "new"})
    with reflecting(fake) as cache:
        eventually(lambda: fake.open_watches == 1)
        fake.version = 50
        fake.objects.clear()
        fake.put("a", spec={"n": "restored"}, silent=True)
        fake.once(Status(code=410), watch=True)
        fake.end_watches(reset=True)
        eventually(lambda: cache.get("ns", "a")["spec"] == {"n": "restored"})


def test_an_object_that_left_the_selection_is_gone(fake: ScriptedApiserver) -> None:
    fake.put("a", metadata={"labels": {"app": "x"}})
    with reflecting(fake, label_selector="app=x") as cache:
        eventually(lambda: names(cache) == ["a"])
        changed = {"metadata": {"name": "a", "namespace": "ns", "resourceVersion": "900", "labels": {"app": "y"}}}
        cache.offer(changed)
        assert names(cache) == []


def test_a_stop_before_the_watch_is_open_ends_it_too(fake: ScriptedApiserver) -> None:
    cache = Cache(POD, namespaces=("ns",), trim=trim_metadata)
    reflector = Reflector(api_of(fake), cache, "ns")
    reflector.interrupt()
    stop = threading.Event()
    thread = threading.Thread(target=reflector.run, args=(stop,), daemon=True)
    thread.start()
    eventually(lambda: fake.asked(watch=True))
    stop.set()
    thread.join(60)
    assert not thread.is_alive()


def test_a_subscriber_that_raises_stops_nothing(fake: ScriptedApiserver) -> None:
    calls: list[Any] = []

    def poisoned(_before: Any, after: Any) -> None:
        calls.append(after)
        raise RuntimeError("poisoned")

    with reflecting(fake) as cache:
        eventually(lambda: fake.open_watches == 1)
        cache.subscribe(poisoned)
        fake.put("a")
        eventually(lambda: len(calls) == 1)
        eventually(lambda: fake.open_watches >= 1)
        fake.put("b")
        eventually(lambda: names(cache) == ["a", "b"])


def test_an_unauthorized_answer_reads_the_credentials_again(fake: ScriptedApiserver) -> None:
    class Rotating(Anonymous):
        tokens = iter(["new"])
        token = "old"

        def headers(self) -> dict[str, str]:
            return {"Authorization": f"Bearer {self.token}"}

        def reload(self) -> None:
            self.token = next(self.tokens)

    def only_new(request: Any) -> Status | None:
        return None if request.headers["authorization"] == "Bearer new" else Status(code=401)

    fake.rules.append(only_new)
    fake.put("a")
    items, version = Api(Transport(Rotating(fake.url), user_agent="test"), manager="test").list(POD, namespace="ns")
    assert (len(items), version) == (1, "101")
    assert [request.headers["authorization"] for request in fake.requests] == ["Bearer old", "Bearer new"]


def test_a_list_that_expires_between_pages_starts_again(
    fake: ScriptedApiserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmfleet.kube.client.PAGE", 2)
    for name in "abcde":
        fake.put(name)
    expired = [True]

    def once(request: Any) -> Status | None:
        if request.query.get("continue") == "2" and expired:
            expired.pop()
            return Status(code=410)
        return None

    fake.rules.append(once)
    with reflecting(fake) as cache:
        eventually(lambda: names(cache) == list("abcde"))
        assert [request.query.get("continue") for request in fake.asked(watch=False)] == [None, "2", None, "2", "4"]


def test_an_apiserver_behind_a_path_and_a_query_are_spelled_right(fake: ScriptedApiserver) -> None:
    """Some kubeconfigs name a proxy: https://host/k8s/clusters/c-1."""
    api = Api(Transport(Anonymous(fake.url + "/k8s/clusters/c-1/"), user_agent="test"), manager="test")
    fake.put("a")
    api.list(POD, namespace="ns", label_selector="a=b,c in (d,e)")
    assert fake.requests[0].path == "/k8s/clusters/c-1/api/v1/namespaces/ns/pods"
    assert fake.requests[0].query["labelSelector"] == "a=b,c in (d,e)"
    assert fake.requests[0].headers["user-agent"] == "test"


def test_a_redirect_is_not_followed_with_our_token(fake: ScriptedApiserver) -> None:
    fake.once(Status(code=302, headers={"Location": "http://127.0.0.1:1/elsewhere"}))
    with pytest.raises(Unavailable, match="302"):
        api_of(fake).list(POD, namespace="ns")
    assert len(fake.requests) == 1
