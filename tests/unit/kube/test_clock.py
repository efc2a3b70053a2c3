"""Times are measured by the clock that wrote them: the apiserver's, whatever the clock of our own node says."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmfleet.kube.client import Api
from llmfleet.kube.errors import KubeError
from llmfleet.kube.refs import LEASE, Ref
from llmfleet.kube.transport.client import Anonymous, Transport
from llmfleet.kube.transport.clock import corrected, parse_date

OFFSETS = st.floats(1e9, 2e9)
WAITS = st.floats(0, 60)
THERE = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@given(there=OFFSETS, sent=st.floats(0, 1e6), asking=WAITS, answering=WAITS)
def test_a_clock_that_is_right_is_never_changed(there: float, sent: float, asking: float, answering: float) -> None:
    """However long an answer takes: what it proves is never wrong."""
    date = float(int(sent + asking + there))
    assert corrected(there, date, sent, sent + asking + answering) == pytest.approx(there, abs=1e-3)


@given(there=OFFSETS, wrong=st.floats(-1e7, 1e7), sent=st.floats(0, 1e6), asking=WAITS, answering=WAITS)
def test_one_answer_puts_a_clock_right_but_for_a_second_and_what_the_answer_took(
    there: float, wrong: float, sent: float, asking: float, answering: float
) -> None:
    date = float(int(sent + asking + there))
    found = corrected(there + wrong, date, sent, sent + asking + answering)
    assert abs(found - there) <= 1.001 + asking + answering


@pytest.mark.parametrize("text", ["", "noon", "Sun, 99 Nov 2026 08:00:00 GMT", "Sun, 22 Nov 99999 08:00:00 GMT"])
def test_what_says_no_time_changes_nothing(text: str) -> None:
    assert parse_date(text) is None


@contextmanager
def apiserver(moments: list[datetime], status: int = 200) -> Iterator[str]:
    """One that answers everything with an object; each answer at the next of these moments."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            self.send_header("Date", format_datetime(moments.pop(0) if len(moments) > 1 else moments[0], usegmt=True))
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def api_of(url: str) -> Api:
    return Api(Transport(Anonymous(url), user_agent="test"), manager="test")


def ask(api: Api) -> None:
    api.get(Ref(kind=LEASE, namespace="ns", name="x"))


@contextmanager
def node_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Iterator[None]:
    """This process on a node whose clock is set wrong; a steady clock cannot be set."""
    wrong = SimpleNamespace(time=lambda: time.time() + seconds, monotonic=time.monotonic)
    monkeypatch.setattr("llmfleet.kube.transport.client.time", wrong)
    yield
    monkeypatch.undo()


@pytest.mark.parametrize("hours", [-1000, -1, 0, 1, 1000])
def test_a_node_whose_clock_is_wrong_has_the_time_of_the_apiserver(monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    with apiserver([THERE]) as url, node_clock(monkeypatch, 3600 * hours):
        api, began = api_of(url), time.monotonic()
        ask(api)
        elapsed = timedelta(seconds=time.monotonic() - began + 1)
        assert THERE - elapsed <= api.now() <= THERE + elapsed + timedelta(seconds=1)


def test_a_refusal_tells_the_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with apiserver([THERE], status=403) as url, node_clock(monkeypatch, 3600):
        api = api_of(url)
        with pytest.raises(KubeError):
            ask(api)
        assert api.now() - THERE < timedelta(minutes=30)


def test_without_a_date_our_own_clock_counts() -> None:
    api = api_of("http://127.0.0.1:1")
    assert abs(api.now() - datetime.now(UTC)) < timedelta(minutes=1)


def test_an_apiserver_whose_clock_is_set_is_followed() -> None:
    with apiserver([THERE, THERE - timedelta(hours=2), THERE + timedelta(hours=2)]) as url:
        api = api_of(url)
        for hours in (0, -2, 2):
            ask(api)
            assert abs(api.now() - THERE - timedelta(hours=hours)) < timedelta(minutes=30)
