"""Questions to engines and routers never block a pass, and one that does not answer delays nobody else."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fakes.ports import free_port
from llmfleet.deploy import client
from llmfleet.deploy.client import EngineLook, Prober, sum_figures
from llmfleet.deploy.records import Figures
from llmfleet.kube.refs import Key

KEY = Key("d", "a")
PATIENCE = 60.0


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Site:
    """An engine and a router in one: pages by path, and what was posted."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, str]] = {}
        self.posted: list[dict[str, object]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(*outer.pages.get(self.path, (404, "")))

            def do_POST(self) -> None:
                outer.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.answer(*outer.pages.get(self.path, (200, "{}")))

            def answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self.server.server_address[1])
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def load(self, running: int) -> None:
        self.pages["/metrics"] = (200, f"vllm:num_requests_running {running}\nvllm:num_requests_waiting 0\n")


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not turn an answer into silence."""
    monkeypatch.setattr(client, "PROBE_SECONDS", PATIENCE)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def woken() -> list[Key]:
    return []


@pytest.fixture
def prober(clock: Clock, woken: list[Key]) -> Iterator[Prober]:
    prober = Prober(clock, woken.append)
    yield prober
    prober.close()


def wait_for(reached: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end, "no answer"
        time.sleep(0.01)


def test_idle_looks_are_counted_a_second_apart(prober: Prober, site: Site, clock: Clock, woken: list[Key]) -> None:
    site.load(0)
    prober.engine(KEY, "u", "127.0.0.1", site.port)
    wait_for(lambda: woken == [KEY])
    assert prober.engine(KEY, "u", "127.0.0.1", site.port).idle_looks == 1
    assert prober.engine(KEY, "u", "127.0.0.1", site.port).idle_looks == 1
    clock.pass_by(1)
    prober.engine(KEY, "u", "127.0.0.1", site.port)
    wait_for(lambda: len(woken) == 2)
    assert prober.engine(KEY, "u", "127.0.0.1", site.port).idle_looks == 2


def test_a_clock_that_is_set_back_stops_no_question(prober: Prober, site: Site, clock: Clock, woken: list[Key]) -> None:
    site.load(0)
    prober.engine(KEY, "u", "127.0.0.1", site.port)
    wait_for(lambda: woken == [KEY])
    clock.pass_by(-3600)
    prober.engine(KEY, "u", "127.0.0.1", site.port)
    wait_for(lambda: len(woken) == 2)


def test_a_busy_look_starts_the_count_again(prober: Prober, site: Site, clock: Clock, woken: list[Key]) -> None:
    for number, running in enumerate((0, 1, 0), start=1):
        site.load(running)
        prober.engine(KEY, "u", "127.0.0.1", site.port)
        wait_for(lambda number=number: len(woken) == number)
        clock.pass_by(1)
    site.pages.clear()
    assert prober.engine(KEY, "u", "127.0.0.1", site.port).idle_looks == 1


def test_looks_from_before_are_forgotten_on_demand(prober: Prober, site: Site, woken: list[Key]) -> None:
    site.load(0)
    prober.engine(KEY, "u", "127.0.0.1", site.port)
    wait_for(lambda: woken)
    prober.forget_engine("u")
    assert prober.engine(KEY, "u", "127.0.0.1", site.port).idle_looks == 0


def test_a_refused_connection_is_an_engine_that_does_not_serve(prober: Prober, woken: list[Key]) -> None:
    port = free_port()
    prober.engine(KEY, "u", "127.0.0.1", port)
    wait_for(lambda: woken)
    assert prober.engine(KEY, "u", "127.0.0.1", port) == EngineLook(serving=False)


def test_an_engine_without_figures_is_not_idle(prober: Prober, site: Site, clock: Clock, woken: list[Key]) -> None:
    site.pages["/metrics"] = (200, "up 1\n")
    prober.engine(KEY, "u", "127.0.0.1", site.port)
    wait_for(lambda: woken)
    assert prober.engine(KEY, "u", "127.0.0.1", site.port) == EngineLook()


def test_silent_engines_hold_nobody_up(
    prober: Prober, site: Site, woken: list[Key], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PROBE_SECONDS", 2 * PATIENCE)
    site.load(0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for number in range(client.PROBE_THREADS - 1):
            prober.engine(Key("d", f"dead-{number}"), f"dead-{number}", "127.0.0.1", port)
        prober.engine(KEY, "u", "127.0.0.1", site.port)
        wait_for(lambda: KEY in woken)
        assert Key("d", "dead-0") not in woken


def test_a_router_says_which_generation_it_works_with(
    prober: Prober, site: Site, woken: list[Key], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.names, "ADMIN_PORT", site.port)
    site.pages["/fleet"] = (200, '{"generation": 42, "pod": "r"}')
    prober.router(KEY, "r", "127.0.0.1")  # the answer may be there before this returns, or later
    wait_for(lambda: woken)
    assert prober.router(KEY, "r", "127.0.0.1") == 42


@pytest.mark.parametrize("page", [(500, ""), (200, "x"), (200, "{}"), (200, '{"generation": null}'), (200, "[]")])
def test_a_router_that_answers_nonsense_has_not_answered(
    page: tuple[int, str], prober: Prober, site: Site, woken: list[Key], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.names, "ADMIN_PORT", site.port)
    site.pages["/fleet"] = page
    prober.router(KEY, "r", "127.0.0.1")
    wait_for(lambda: woken)
    assert prober.router(KEY, "r", "127.0.0.1") is None


def test_the_warm_up_request_is_sent_once_and_remembered(prober: Prober, site: Site, woken: list[Key]) -> None:
    body = {"model": "m", "prompt": "Hello", "max_tokens": 1}
    assert not prober.warmed("c")
    prober.warm_up(KEY, "c", "127.0.0.1", site.port, body)
    wait_for(lambda: woken)
    assert prober.warmed("c")
    prober.warm_up(KEY, "c", "127.0.0.1", site.port, body)
    assert site.posted == [body]


def test_a_warm_up_that_failed_is_sent_again_later_and_later(
    prober: Prober, site: Site, clock: Clock, woken: list[Key]
) -> None:
    site.pages["/v1/completions"] = (500, "")
    for number, pause in enumerate((0, 2, 4), start=1):
        clock.pass_by(pause - 0.1)
        prober.warm_up(KEY, "c", "127.0.0.1", site.port, {})
        assert len(site.posted) == number - 1 or pause == 0
        clock.pass_by(0.1)
        prober.warm_up(KEY, "c", "127.0.0.1", site.port, {})
        wait_for(lambda number=number: len(woken) == number)
    assert not prober.warmed("c")


def test_a_model_that_refuses_completions_is_warm(prober: Prober, site: Site, woken: list[Key]) -> None:
    site.pages["/v1/completions"] = (400, "")
    prober.warm_up(KEY, "c", "127.0.0.1", site.port, {})
    wait_for(lambda: woken)
    assert prober.warmed("c")


def test_figures_are_summed_over_routers_and_split_by_instance() -> None:
    one = {"a": Figures(requests=1, errors=1), "b": Figures(requests=2), "x": Figures(requests=9)}
    two = {"a": Figures(requests=3), "c": Figures(requests=4)}
    own, rest = sum_figures(iter((one, two)), "a", frozenset({"a", "b", "c"}))
    assert (own, rest) == (Figures(requests=4, errors=1), Figures(requests=6))
