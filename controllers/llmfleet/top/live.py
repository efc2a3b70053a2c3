"""What a router does right now: models, engines, counters.

In: the object behind `/fleet` and the samples behind `/metrics`. Out: `Live`, several of which can be merged, and the
`Rates` between two looks. Counters stay counters, so that whoever looks twice can tell what happened in between. It
asks nobody and knows no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from llmfleet.top.samples import Samples

TTFT: Final = "llmfleet_router_time_to_first_token_seconds"
ENGINE_TTFT: Final = "llmfleet_router_endpoint_time_to_first_token_seconds"
REQUESTS: Final = "llmfleet_router_requests_total"
BAD: Final = frozenset({"failed", "truncated"})
Buckets = Mapping[float, float]
"""Cumulative counts by upper edge."""
Firsts = Mapping[tuple[str, ...], tuple[float, float]]
"""How many first tokens an engine gave and in how many seconds, by instance and role."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One engine as routers see it."""

    instance: str
    address: str
    role: str
    state: str
    """ready, draining, leaving, or why it is left out."""
    in_flight: int
    slots: int
    limit: int
    first_tokens: float
    """How many there were, and how many seconds they took together."""
    first_seconds: float

    @property
    def ttft(self) -> float | None:
        """Mean since its routers started."""
        return self.first_seconds / self.first_tokens if self.first_tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model with its engines."""

    name: str
    state: str
    panic: bool
    in_flight: int
    slots: int
    waiting: int
    requests: float
    bad: float
    """Requests that failed or broke off."""
    prompt_tokens: float
    output_tokens: float
    ttft: Buckets = field(default_factory=dict)
    engines: tuple[Engine, ...] = ()

    @property
    def ready(self) -> int:
        return sum(one.state == "ready" for one in self.engines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """One router, or several together."""

    models: tuple[Model, ...] = ()
    connections: int = 0
    draining: int = 0
    """Routers that take leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What happened to one model between two looks; None where nothing can be told."""

    requests: float | None = None
    """Per second."""
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    bad_share: float | None = None
    ttft_median: float | None = None
    """Seconds."""
    ttft_p95: float | None = None


def read_live(fleet: Mapping[str, Any], samples: Samples) -> Live:
    """One router's own words; what is missing or of another shape reads as nothing."""
    waiting, firsts = mapping(fleet.get("waiting")), first_tokens(samples)
    models = [
        read_model(str(name), mapping(raw), whole(waiting.get(name)), samples, firsts)
        for name, raw in mapping(fleet.get("models")).items()
    ]
    return Live(
        models=tuple(models),
        connections=whole(fleet.get("connections")),
        draining=int(fleet.get("draining") is True),
    )


def first_tokens(samples: Samples) -> Firsts:
    """Count and seconds of every engine's first tokens."""
    counts, seconds = (samples.sums(f"{ENGINE_TTFT}_{end}", "llmcluster", "role") for end in ("count", "sum"))
    return {key: (counts[key], seconds.get(key, 0.0)) for key in counts}


def read_model(name: str, raw: Mapping[str, Any], waiting: int, samples: Samples, firsts: Firsts) -> Model:
    endpoints = raw.get("endpoints")
    return Model(
        name=name,
        state=str(raw.get("state", "")),
        panic=raw.get("panic") is True,
        in_flight=whole(raw.get("inFlight")),
        slots=whole(raw.get("slots")),
        waiting=waiting,
        requests=samples.total(REQUESTS, model=name),
        bad=sum(one.value for one in samples.of(REQUESTS, model=name) if one.labels.get("outcome") in BAD),
        prompt_tokens=samples.total("llmfleet_router_prompt_tokens_total", model=name),
        output_tokens=samples.total("llmfleet_router_completion_tokens_total", model=name),
        ttft=buckets_of(samples, name),
        engines=tuple(read_engine(mapping(one), firsts) for one in endpoints) if isinstance(endpoints, list) else (),
    )


def buckets_of(samples: Samples, model: str) -> Buckets:
    found: dict[float, float] = {}
    for one in samples.of(f"{TTFT}_bucket", model=model):
        try:
            edge = float(one.labels.get("le", "").replace("+Inf", "inf"))
        except ValueError:
            continue
        found[edge] = found.get(edge, 0.0) + one.value
    return found


def read_engine(raw: Mapping[str, Any], firsts: Firsts) -> Engine:
    instance, role = str(raw.get("instance", "")), str(raw.get("role", "both"))
    count, seconds = firsts.get((instance, role), (0.0, 0.0))
    return Engine(
        instance=instance,
        address=str(raw.get("address", "")),
        role=role,
        state=str(raw.get("out") or raw.get("state") or "ready"),
        in_flight=whole(raw.get("inFlight")),
        slots=whole(raw.get("slots")),
        limit=whole(raw.get("limit")),
        first_tokens=count,
        first_seconds=seconds,
    )


def merge(lives: Iterable[Live]) -> Live:
    """Several routers of one fleet: what each has in flight adds up, an engine's slots do not."""
    models: dict[str, Model] = {}
    connections = draining = 0
    for live in lives:
        connections, draining = connections + live.connections, draining + live.draining
        for model in live.models:
            models[model.name] = merge_models(models[model.name], model) if model.name in models else model
    ordered = tuple(models[name] for name in sorted(models))
    return Live(models=ordered, connections=connections, draining=draining)


def merge_models(one: Model, other: Model) -> Model:
    return replace(
        one,
        panic=one.panic or other.panic,
        in_flight=one.in_flight + other.in_flight,
        slots=max(one.slots, other.slots),
        waiting=one.waiting + other.waiting,
        requests=one.requests + other.requests,
        bad=one.bad + other.bad,
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
        ttft={edge: one.ttft.get(edge, 0.0) + other.ttft.get(edge, 0.0) for edge in {*one.ttft, *other.ttft}},
        engines=merge_engines((*one.engines, *other.engines)),
    )


def merge_engines(engines: Sequence[Engine]) -> tuple[Engine, ...]:
    """By instance and address; one that a router leaves out is shown with that router's word."""
    found: dict[tuple[str, str], Engine] = {}
    for engine in engines:
        key = (engine.instance, engine.address)
        seen = found.get(key)
        found[key] = engine if seen is None else merge_two(seen, engine)
    return tuple(found[key] for key in sorted(found))


def merge_two(one: Engine, other: Engine) -> Engine:
    return replace(
        one,
        state=other.state if one.state == "ready" else one.state,
        in_flight=one.in_flight + other.in_flight,
        slots=max(one.slots, other.slots),
        limit=one.limit + other.limit,
        first_tokens=one.first_tokens + other.first_tokens,
        first_seconds=one.first_seconds + other.first_seconds,
    )


def rates(before: Model | None, after: Model, seconds: float) -> Rates:
    """What happened in between; a counter that fell belongs to a router that started again, and tells nothing."""
    if before is None or seconds <= 0 or after.requests < before.requests:
        return Rates()
    asked = after.requests - before.requests
    arrived = {edge: after.ttft[edge] - before.ttft.get(edge, 0.0) for edge in after.ttft}
    return Rates(
        requests=asked / seconds,
        prompt_tokens=rate(before.prompt_tokens, after.prompt_tokens, seconds),
        output_tokens=rate(before.output_tokens, after.output_tokens, seconds),
        bad_share=max(0.0, after.bad - before.bad) / asked if asked else None,
        ttft_median=percentile(arrived, 0.5),
        ttft_p95=percentile(arrived, 0.95),
    )


def rate(before: float, after: float, seconds: float) -> float | None:
    return (after - before) / seconds if after >= before else None


def percentile(buckets: Buckets, share: float) -> float | None:
    """Interpolated inside its bucket, as Prometheus does; None when nothing arrived."""
    edges = sorted(buckets)
    if not edges or buckets[edges[-1]] <= 0:
        return None
    rank, low, below = share * buckets[edges[-1]], 0.0, 0.0
    for edge in edges:
        count = buckets[edge]
        if count >= rank:
            if edge == float("inf"):
                return low
            return low + (edge - low) * ((rank - below) / (count - below) if count > below else 1.0)
        low, below = edge, count
    return low


def mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def whole(value: object) -> int:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0
