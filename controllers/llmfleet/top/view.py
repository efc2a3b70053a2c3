"""One moment of a fleet as rows: models with rates and decisions, engines, routers.

In: the routers' answers now and before, autoscalers and their instances when the cluster could be read. Out: a `View`,
and the same as JSON. It asks nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llmfleet import names
from llmfleet.top.live import Engine, Live, Model, Rates, mapping, merge, rates, read_live
from llmfleet.top.samples import RouterState

Manifest = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What an autoscaler decided last about one of its fleets."""

    scaler: str
    role: str
    current: int
    ready: int
    desired: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """One model: now, lately, and why it has its size."""

    model: Model
    rates: Rates
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything on the screen."""

    live: Live
    models: tuple[ModelRow, ...]
    others: tuple[Decision, ...]
    """Of fleets that no router that was asked knows."""
    routers: tuple[RouterState, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was read at one moment, by a clock that only goes forward."""

    at: float
    routers: tuple[RouterState, ...] = ()
    scalers: tuple[Manifest, ...] = ()
    clusters: tuple[Manifest, ...] = ()
    problems: tuple[str, ...] = ()


def build_view(before: Look | None, now: Look) -> View:
    """Rows of this look, with rates since the one before."""
    live, earlier = merged(now), {model.name: model for model in merged(before).models} if before else {}
    seconds = now.at - before.at if before else 0.0
    same = before is not None and answered(before) == answered(now)
    decisions = [*decisions_of(now.scalers)]
    rows = []
    for model in live.models:
        found = rates(earlier.get(model.name), model, seconds) if same else Rates()
        owners = owners_of(model, now)
        rows.append(ModelRow(model=model, rates=found, decisions=tuple(d for d in decisions if d.scaler in owners)))
    shown = {decision for row in rows for decision in row.decisions}
    return View(
        live=live,
        models=tuple(rows),
        others=tuple(decision for decision in decisions if decision not in shown),
        routers=now.routers,
        problems=(*now.problems, *(f"router {one.pod}: {one.problem}" for one in now.routers if one.problem)),
    )


def merged(look: Look) -> Live:
    return merge(read_live(one.fleet, one.samples) for one in look.routers if not one.problem)


def answered(look: Look) -> frozenset[str]:
    """Who answered: with other routers the sums are of something else, and their difference tells nothing."""
    return frozenset(one.pod for one in look.routers if not one.problem)


def decisions_of(scalers: Sequence[Manifest]) -> Iterator[Decision]:
    for scaler in scalers:
        status, name = mapping(scaler.get("status")), title(scaler)
        roles = [role for role in ("prefill", "decode") if mapping(status.get(role))]
        for role in roles or ["both"]:
            part = mapping(status.get(role)) if roles else status
            said = mapping(part.get("decision"))
            yield Decision(
                scaler=name,
                role=role,
                current=int(part.get("currentInstances") or 0),
                ready=int(part.get("readyInstances") or 0),
                desired=int(part.get("desiredInstances") or 0),
                reason=str(said.get("reason", "")),
                message=str(said.get("message", "")),
            )


def owners_of(model: Model, look: Look) -> set[str]:
    """Autoscalers that made an engine of this model, or that would."""
    serving = {engine.instance for engine in model.engines}
    made = {
        f"{one['metadata'].get('namespace', '')}/{label}"
        for one in look.clusters
        if one["metadata"]["name"] in serving
        and (label := mapping(one["metadata"].get("labels")).get(names.AUTOSCALER_LABEL))
    }
    return made | {title(one) for one in look.scalers if model.name in served(one)}


def served(scaler: Manifest) -> set[str]:
    """Model names that instances of its templates answer to."""
    spec = mapping(scaler.get("spec"))
    blocks = (spec, mapping(spec.get("prefill")), mapping(spec.get("decode")))
    found: set[str] = set()
    for block in blocks:
        template = mapping(mapping(block.get("instanceTemplate")).get("spec"))
        if template:
            found |= set(template.get("servedModelNames") or [template.get("model")])
    return found


def title(scaler: Manifest) -> str:
    metadata = scaler["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata['name']}"


def as_json(view: View) -> dict[str, Any]:
    """The view as one object; seconds and tokens a second, null where nothing can be told."""
    return {
        "connections": view.live.connections,
        "models": [model_json(row) for row in view.models],
        "otherFleets": [asdict(decision) for decision in view.others],
        "routers": [
            {
                "pod": one.pod,
                "namespace": one.namespace,
                "generation": one.fleet.get("generation"),
                "draining": bool(one.fleet.get("draining")),
                "problem": one.problem,
            }
            for one in view.routers
        ],
        "problems": list(view.problems),
    }


def model_json(row: ModelRow) -> dict[str, Any]:
    model, lately = row.model, row.rates
    return {
        "model": model.name,
        "state": model.state,
        "panic": model.panic,
        "instances": len(model.engines),
        "ready": model.ready,
        "inFlight": model.in_flight,
        "slots": model.slots,
        "waiting": model.waiting,
        "requestsPerSecond": rounded(lately.requests),
        "promptTokensPerSecond": rounded(lately.prompt_tokens),
        "outputTokensPerSecond": rounded(lately.output_tokens),
        "failedShare": rounded(lately.bad_share),
        "ttftMedianSeconds": rounded(lately.ttft_median),
        "ttftP95Seconds": rounded(lately.ttft_p95),
        "decisions": [asdict(decision) for decision in row.decisions],
        "engines": [engine_json(engine) for engine in model.engines],
    }


def engine_json(engine: Engine) -> dict[str, Any]:
    return {
        "instance": engine.instance,
        "address": engine.address,
        "role": engine.role,
        "state": engine.state,
        "inFlight": engine.in_flight,
        "slots": engine.slots,
        "limit": engine.limit,
        "ttftMeanSeconds": rounded(engine.ttft),
    }


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
