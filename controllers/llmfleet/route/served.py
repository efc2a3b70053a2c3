"""What the engine that runs now serves, read from its own command line.

In: the pod of rank 0 and the LLMCluster. Out: `Served`. Pure. The spec may be ahead of the pod: an edited spec waits
for its turn, and until then clients must be sent to what the running engine answers to. What the router alone decides
(weight, tier, maximum) is taken from the spec at once. Nothing here can fail: a field that is missing or odd gets its
default, as the CRD has checked it and the instance's condition reports it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from llmfleet import names
from llmfleet.api.document import Role
from llmfleet.kube.refs import Manifest

DEFAULT_SLOTS: Final = 256
DEFAULT_WEIGHT: Final = 100
MAX_DIGITS: Final = 18
OUR_VARIABLES: Final = "LLMFLEET_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The names an engine answers to, its port, and how many requests it takes at once."""

    models: tuple[str, ...]
    port: int
    max_num_seqs: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """What the spec says about routing."""

    enabled: bool
    role: Role
    weight: int
    tier: int
    max_concurrency: int


def served_by(pod: Manifest) -> Served:
    """Read the engine container of a pod."""
    engine = engine_of(pod)
    flags = parse_flags(engine.get("args") or ())
    ports = {port.get("name"): port.get("containerPort") for port in engine.get("ports") or ()}
    return Served(
        models=tuple(
            dict.fromkeys((*flags.get("--served-model-name", ()), *adapters(flags.get("--lora-modules", ()))))
        ),
        port=whole(ports.get("http"), names.ENGINE_PORT),
        max_num_seqs=whole(next(iter(flags.get("--max-num-seqs", ())), None), 0) or None,
    )


def served_revision(pod: Manifest, cluster: str) -> str:
    """Hash of what an engine's answers depend on, as far as its container says: the same for all alike of a fleet.

    What tells one instance or rank from another is left out: the leader's address, and the operator's own variables.
    """
    engine = engine_of(pod)
    leader = f"{names.rank_pod(cluster, 0)}.{names.group_service(cluster)}"
    content = {
        "image": engine.get("image"),
        "args": [argument for argument in engine.get("args") or () if argument != leader],
        "env": [entry for entry in engine.get("env") or () if not str(entry.get("name")).startswith(OUR_VARIABLES)],
    }
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


def engine_of(pod: Manifest) -> Mapping[str, Any]:
    """The engine's container."""
    containers = (pod.get("spec") or {}).get("containers") or ()
    return next((c for c in containers if c.get("name") == names.ENGINE_CONTAINER), {})


def parse_flags(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Each `--flag` with the values after it; the first of a repeated flag wins, as the operator's come first."""
    flags: dict[str, list[str]] = {}
    values: list[str] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument.partition("=")
            values = [value] if value else []
            flags.setdefault(name, values)
        else:
            values.append(argument)
    return flags


def adapters(modules: Sequence[str]) -> Iterator[str]:
    """Names of LoRA modules, each written as NAME=PATH or as JSON with a name."""
    for module in modules:
        name = json_name(module) if module.startswith("{") else module.partition("=")[0]
        if name:
            yield name


def json_name(text: str) -> str:
    try:
        return str(orjson.loads(text).get("name") or "")
    except (orjson.JSONDecodeError, AttributeError):
        return ""


def asked_by(cluster: Manifest) -> Served:
    """What the spec asks to be served: known before the engine runs."""
    spec = cluster.get("spec") or {}
    inference = spec.get("inferenceArgs") or {}
    lora = inference.get("lora") or {}
    extra = [adapter.get("name") for adapter in lora.get("adapters") or ()] if lora.get("enabled") else []
    base = spec.get("servedModelNames") or [spec.get("model")]
    return Served(
        models=tuple(dict.fromkeys(str(name) for name in (*base, *extra) if name)),
        port=whole((spec.get("network") or {}).get("basePort"), names.ENGINE_PORT),
        max_num_seqs=whole(inference.get("maxNumSeqs"), 0) or None,
    )


def routing_of(cluster: Manifest) -> Routing:
    """The routing fields of the spec, with the CRD's defaults."""
    spec = cluster.get("spec") or {}
    router = spec.get("router") or {}
    return Routing(
        enabled=router.get("enabled") is not False,
        role=Role(spec["role"]) if spec.get("role") in list(Role) else Role.BOTH,
        weight=whole(router.get("weight"), DEFAULT_WEIGHT),
        tier=whole(router.get("tier"), 0),
        max_concurrency=whole(router.get("maxConcurrency"), 0),
    )


def whole(value: object, default: int) -> int:
    """A whole number, also when written as text."""
    text = str(value)
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else default
