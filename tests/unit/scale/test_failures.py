"""Signals that fail, in every form: the fleet holds and says so, grows by what is known, and recovers.

The pages are written as engines and routers write them and read as the controller reads them, so that a fault passes
through everything between a socket and a decision.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

import pytest

from llmfleet.api.reasons import DecisionReason as Why
from llmfleet.api.types import Role
from llmfleet.prometheus import client as prometheus
from llmfleet.prometheus.client import Prometheus
from llmfleet.scale import client
from llmfleet.scale.client import Direct
from llmfleet.scale.signals import Observation
from llmfleet.scale.targets import Target, Targets
from llmfleet.telemetry import AutoscalerMetrics
from unit.scale.builders import PLAIN, TICK, Counters, Toy, toy

Pages = dict[str, str]
Fault = Callable[[Pages], Pages | Exception]
ENGINES, ROUTERS = 4, 2


class Site:
    """A fleet whose engines and routers have pages; a fault changes them or keeps them from coming."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bed: Toy) -> None:
        self.bed, self.fault, self.late = bed, None, 0.0
        self.counters = {name: Counters() for name in bed.fleet.serving}
        self.direct = Direct(lambda: self.bed.now + TICK - self.late, AutoscalerMetrics())
        self.load = 0.0
        monkeypatch.setattr(client, "fetch", self.fetch)

    fault: Fault | None

    def fetch(self, address: str, port: int, path: str) -> str:
        pages = self.pages()
        found = pages if self.fault is None else self.fault(pages)
        if isinstance(found, Exception):
            raise found
        if address not in found:
            raise OSError("connection refused")
        return found[address]

    def pages(self) -> Pages:
        return {name: engine_page(one) for name, one in self.counters.items()} | {
            f"r{number}": router_page() for number in range(ROUTERS)
        }

    def serve(self, load: float) -> None:
        for one in self.counters.values():
            one.prefill += load / ENGINES * TICK / PLAIN.c
            one.finished += load / ENGINES * TICK / PLAIN.c / 1000
            one.steps += TICK / 0.02

    def targets(self) -> Targets:
        routers = tuple(f"r{number}" for number in range(ROUTERS))
        return Targets(
            namespace="d",
            engines=tuple(Target(name=one, pod=f"{one}-0", address=one, port=1) for one in self.counters),
            routers=tuple(Target(name=one, pod=one, address=one, port=1) for one in routers),
            serving=tuple(self.counters),
            routers_expected=ROUTERS,
            routers_wanted=routers,
            models=frozenset({"m"}),
        )

    def run(self, load: float, ticks: int) -> Any:
        """Looks at what the pages say, one each 15 seconds; the last decision."""
        for _ in range(ticks):
            self.serve(load)
            self.bed.tick(0.0, observation=self.direct.observe(self.targets()))
        assert self.bed.last is not None
        return self.bed.last.decisions[Role.BOTH]


def engine_page(one: Counters) -> str:
    return (
        f"vllm:prompt_tokens_total {one.prefill}\nvllm:generation_tokens_total {one.generated}\n"
        f"vllm:iteration_tokens_total_count {one.steps}\nvllm:request_success_total {one.finished}\n"
        "vllm:num_requests_running 1.0\nvllm:num_requests_waiting 0.0\nvllm:kv_cache_usage_perc 0.1\n"
    )


def router_page() -> str:
    return (
        'llmfleet_queue_requests{model="m"} 0.0\nllmfleet_router_in_flight_requests{model="m"} 1.0\n'
        'llmfleet_router_refusals_total{model="m",reason="server_is_overloaded"} 0.0\n'
    )


def every(change: Callable[[str], str], who: str = "llama") -> Fault:
    """The same change to every page of engines (`llama`), or of routers (`r`)."""
    return lambda pages: {name: change(text) if name.startswith(who) else text for name, text in pages.items()}


def without(*who: str) -> Fault:
    return lambda pages: {name: text for name, text in pages.items() if not name.startswith(who)}


def valued(name: str, value: str) -> Fault:
    def change(text: str) -> str:
        lines = [f"{line.rpartition(' ')[0]} {value}" if line.startswith(name) else line for line in text.splitlines()]
        return "\n".join(lines) + "\n"

    return every(change, "llama" if name.startswith("vllm") else "r")


def raising(error: Exception) -> Fault:
    return lambda pages: error


FAULTS: Mapping[str, Fault] = {
    "everybody refuses the connection": without("llama", "r"),
    "everybody is too slow": raising(TimeoutError("too slow")),
    "everybody breaks off": raising(http.client.IncompleteRead(b"")),
    "engines refuse the connection": without("llama"),
    "one engine refuses the connection": without("llama-2"),
    "one router refuses the connection": without("r1"),
    "both routers refuse the connection": without("r"),
    "empty pages": every(lambda text: ""),
    "pages of something else": every(lambda text: "<html>502 Bad Gateway</html>"),
    "pages cut short": every(lambda text: text[: len(text) // 3]),
    "figures under other names": every(lambda text: text.replace("vllm:", "sglang:")),
    **{
        f"tokens are {value}": valued("vllm:generation_tokens_total", value) for value in ("NaN", "-5", "1e308", "+Inf")
    },
    **{f"prompts are {value}": valued("vllm:prompt_tokens_total", value) for value in ("NaN", "-5", "1e308", "text")},
    **{f"waiting is {value}": valued("vllm:num_requests_waiting", value) for value in ("NaN", "-5", "1e308")},
    **{f"the queue is {value}": valued("llmfleet_queue_requests", value) for value in ("NaN", "-5", "1e308")},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_signals_holds_the_fleet_and_is_said(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    site = Site(monkeypatch, toy(ready=ENGINES))
    site.run(3.0, 20)
    site.fault = FAULTS[fault]
    # So little that a fleet which believed it would shrink by now: its window is two minutes.
    decision = site.run(0.0, 15)
    assert decision.instances == ENGINES
    assert decision.reason is Why.SIGNALS_STALE
    assert "no fresh figures of" in decision.message
    site.fault = None
    assert site.run(0.0, 15).instances == 2


@pytest.mark.parametrize("late", [46.0, 600.0])
def test_figures_from_before_hold_the_fleet(monkeypatch: pytest.MonkeyPatch, late: float) -> None:
    site = Site(monkeypatch, toy(ready=ENGINES))
    site.run(3.0, 20)
    site.late = late
    decision = site.run(0.0, 15)
    assert (decision.instances, decision.reason) == (ENGINES, Why.SIGNALS_STALE)


def test_what_one_engine_shows_still_grows_a_fleet_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, toy(ready=ENGINES))
    site.run(1.0, 20)
    site.fault = without("llama-0", "llama-1", "llama-2")
    decision = site.run(32.0, 6)
    assert decision.instances > ENGINES
    assert decision.reason is Why.LOWER_BOUND_ABOVE_CAPACITY


def test_a_roll_out_of_routers_does_not_keep_a_fleet_from_growing(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, toy(ready=ENGINES))
    site.run(1.0, 20)
    site.fault = without("r")
    assert site.run(5.0, 8).instances > ENGINES


def test_counters_that_begin_again_are_neither_silence_nor_a_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    calm = Site(monkeypatch, toy(ready=ENGINES))
    expected = [calm.run(2.0, 5).instances for _ in range(30)]
    site = Site(monkeypatch, toy(ready=ENGINES))
    for number, instances in enumerate(expected):
        assert site.run(2.0, 5).instances == instances
        if number > 10:
            site.counters = {name: Counters() for name in site.counters}


# Prometheus.


class Answers:
    """What a Prometheus says to each query, through its client's own parser."""

    def __init__(self, answer: Callable[[str], Any]) -> None:
        self.answer = answer

    def exchange(self, connection: Any, method: str, path: str, *, body: bytes, **_: Any) -> tuple[int, bytes]:
        [query] = parse_qs(body.decode())["query"]
        found = self.answer(query)
        if isinstance(found, Exception):
            raise found
        status, text = found if isinstance(found, tuple) else (200, found)
        return status, text.encode()


def vector(*samples: tuple[str, str]) -> str:
    items = ",".join(f'{{"metric":{labels},"value":[1,"{value}"]}}' for labels, value in samples)
    return f'{{"status":"success","data":{{"resultType":"vector","result":[{items}]}}}}'


def figures(site: Site, value: str = "", age: float = 0.0, label: str = "pod") -> Callable[[str], str]:
    """Every series of the site, as Prometheus has scraped it."""

    def answer(query: str) -> str:
        at = f"{site.bed.now + TICK - age}"
        routers = [f"r{number}" for number in range(ROUTERS)]
        if query.startswith("max by (pod) (timestamp(vllm"):
            return vector(*((f'{{"{label}":"{name}-0"}}', at) for name in site.counters))
        if query.startswith("max by (pod) (timestamp("):
            return vector(*((f'{{"{label}":"{name}"}}', at) for name in routers))
        if "vllm" not in query:
            return vector()
        return vector(
            *(
                (f'{{"__name__":"{line.split()[0]}","{label}":"{name}-0"}}', value or line.split()[1])
                for name, one in site.counters.items()
                for line in engine_page(one).splitlines()
            )
        )

    return answer


def broken(query: str) -> Any:
    return ConnectionRefusedError("connection refused")


def slow(query: str) -> Any:
    return TimeoutError("too slow")


PROMETHEUS: Mapping[str, tuple[Callable[[Site], Callable[[str], Any]], str]] = {
    "down": (lambda site: broken, "Prometheus does not answer: connection refused"),
    "30 s slow": (lambda site: slow, "Prometheus does not answer: "),
    "out of memory": (lambda site: lambda query: (503, "no"), "Prometheus does not answer: 503"),
    "a login page": (lambda site: lambda query: "<html>", "Prometheus does not answer: no JSON"),
    "empty": (lambda site: lambda query: vector(), "no fresh figures of 4 of 4 engines"),
    "NaN": (lambda site: figures(site, "NaN"), "no fresh figures of 4 of 4 engines"),
    "negative": (lambda site: figures(site, "-1"), "no fresh figures of 4 of 4 engines"),
    "1e308": (lambda site: figures(site, "1e308"), "no fresh figures of 4 of 4 engines"),
    "stale": (lambda site: figures(site, age=60), "no fresh figures of 4 of 4 engines"),
    "under another label": (lambda site: figures(site, label="exported_pod"), "no fresh figures of 4 of 4 engines"),
    "a matrix": (
        lambda site: lambda query: '{"status":"success","data":{"resultType":"matrix","result":[]}}',
        "a matrix where a vector was asked for",
    ),
}


@pytest.mark.parametrize("fault", PROMETHEUS)
def test_a_prometheus_that_fails_holds_the_fleet_and_is_said(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    site = Site(monkeypatch, toy({"source": {"type": "Prometheus", "prometheus": {"address": "http://p"}}}, ready=4))
    server = Prometheus("http://p", lambda: site.bed.now, AutoscalerMetrics())

    def observe(targets: Targets, answer: Callable[[str], Any]) -> Observation:
        monkeypatch.setattr(prometheus, "exchange", Answers(answer).exchange)
        return server.observe(targets)

    def run(load: float, ticks: int, answer: Callable[[str], Any]) -> Any:
        for _ in range(ticks):
            site.serve(load)
            site.bed.tick(0.0, observation=observe(site.targets(), answer))
        assert site.bed.last is not None
        return site.bed.last.decisions[Role.BOTH]

    make, words = PROMETHEUS[fault]
    run(3.0, 20, figures(site))
    decision = run(0.0, 15, make(site))
    assert (decision.instances, decision.reason) == (ENGINES, Why.SIGNALS_STALE)
    assert words in decision.message
    assert run(0.0, 15, figures(site)).instances == 2
