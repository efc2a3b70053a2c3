"""Names in PromQL: which metrics and labels an expression speaks of, and which of them nobody exports.

In: expressions, series of cases. Out: names. Metrics of other exporters are named here, each with who exports it.
"""

from __future__ import annotations

import re
from functools import cache

from rules.exposed import known
from rules.rules import records

# Labels that a scrape adds: Kubernetes' own, and those of the chart's relabelings.
TARGET_LABELS = {"namespace", "pod", "container", "instance", "job", "endpoint", "component", "release"}
ENGINE_LABELS = {"llmcluster", "fleet", "role"}
# What llmfleet does not export itself, and who does.
DCGM, KUBE, REDIS, CERTIFICATES, SPECULATION, SCRAPE = (
    "NVIDIA's DCGM exporter, default counters",
    "kube-state-metrics",
    "the redis exporter",
    "cert-manager",
    "vLLM with --speculative-config; the simulator does not speculate",
    "Prometheus itself, for every target",
)
EXTERNAL = {
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": DCGM,
    "DCGM_FI_DEV_FB_USED": DCGM,
    "DCGM_FI_DEV_GPU_TEMP": DCGM,
    "DCGM_FI_DEV_GPU_UTIL": DCGM,
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": DCGM,
    "DCGM_FI_DEV_SM_CLOCK": DCGM,
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": DCGM,
    "DCGM_FI_DEV_XID_ERRORS": DCGM,
    "DCGM_FI_PROF_DRAM_ACTIVE": DCGM,
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": DCGM,
    "certmanager_certificate_expiration_timestamp_seconds": CERTIFICATES,
    "kube_pod_container_status_last_terminated_reason": KUBE,
    "kube_pod_container_status_restarts_total": KUBE,
    "kube_pod_created": KUBE,
    "kube_pod_status_ready_time": KUBE,
    "kube_secret_created": KUBE,
    "process_cpu_seconds_total": SCRAPE,
    "process_resident_memory_bytes": SCRAPE,
    "redis_memory_max_bytes": REDIS,
    "redis_memory_used_bytes": REDIS,
    "up": SCRAPE,
    "vllm:spec_decode_num_accepted_tokens_total": SPECULATION,
    "vllm:spec_decode_num_draft_tokens_total": SPECULATION,
}
WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
GROUPING = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"


def metrics(expression: str) -> set[str]:
    """Names of the metrics that an expression reads."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(GROUPING, " ", bare)
    found = re.findall(r"(?<![\w.:])([a-zA-Z_:][\w:]*)(?!\s*\(|[\w:])", bare)
    return {name for name in found if name not in WORDS}


def matchers(expression: str) -> set[tuple[str, str, str]]:
    """Metric, label and value of every matcher."""
    found = set()
    for name, inner in re.findall(r"([a-zA-Z_:][\w:]*)\s*\{((?:[^{}\"]|\"(?:[^\"\\]|\\.)*\")*)\}", expression):
        for label, value in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"', inner):
            found.add((name, label, value))
    return found


@cache
def exported() -> dict[str, set[str]]:
    """Sample names of our components with their labels; read once."""
    return known()


def unknown(expression: str) -> set[str]:
    """Metrics of an expression that neither a component, a recording rule nor a named exporter has."""
    return metrics(expression) - set(exported()) - set(records()) - set(EXTERNAL)


def target_labels(name: str) -> set[str]:
    """Labels that the scrape of a metric's component adds."""
    return TARGET_LABELS | (ENGINE_LABELS if name.startswith("vllm:") else set())
