"""GPUs joined to instances, and what they cost.

In: nothing. Out: a Dashboard. Pure. NVIDIA's DCGM exporter says which pod has a GPU, either as pod or, beside its own
pod, as exported_pod: both are read. The pods of an instance are its name and a rank, so the join needs nothing else;
GPUs of pods that belong to no fleet fall out of it. What is requested comes from kube-state-metrics.
"""

from __future__ import annotations

from typing import Final

from llmfleet_dashboards.model import Dashboard, Row, Unit, Variable
from llmfleet_dashboards.panels import FLEET, NAMESPACE, ask, figure, lines, now, table
from llmfleet_dashboards.promql import ENGINE

MEBIBYTE: Final = 1024 * 1024
# An engine that is not scraped for a while still has its GPUs; of two answers about one instance, one is taken.
HOLDERS: Final = (
    "topk by (namespace, llmcluster) (1, group by (namespace, fleet, llmcluster, role) "
    f"(present_over_time(vllm:num_requests_running{{{ENGINE}}}[15m])))"
)
SERVING: Final = 'present_over_time(vllm:num_requests_running{namespace=~"$namespace"}[$__rate_interval])'
PRICE: Final = Variable(
    name="price",
    label="Dollars per GPU hour",
    description="What one GPU costs for an hour, for the cost row",
    default="2.50",
)
REQUESTED: Final = (
    'kube_pod_container_resource_requests{namespace=~"$namespace", container="engine", resource="nvidia_com_gpu"}'
)
OWNED: Final = f'label_replace({REQUESTED}, "llmcluster", "$1", "pod", "(.+)-[0-9]+")'
IDLE: Final = f"{OWNED} unless on (namespace, llmcluster) {SERVING}"
TOKENS: Final = f"vllm:generation_tokens_total{{{ENGINE}}}"


def joined(series: str) -> str:
    """A series of DCGM with the labels of the instance whose pod has the GPU."""
    owned = series
    for label in ("pod", "namespace"):
        owned = f'label_replace({owned}, "{label}", "$1", "exported_{label}", "(.+)")'
    owned = f'label_replace({owned}, "llmcluster", "$1", "pod", "(.+)-[0-9]+")'
    return f"{owned} * on (namespace, llmcluster) group_left (fleet, role) {HOLDERS}"


def per(by: str, series: str, how: str = "avg") -> str:
    """That series for each instance, or whatever `by` names."""
    return f"{how} by ({by}) ({joined(series)})"


def build() -> Dashboard:
    """The page."""
    return Dashboard(
        uid="llmfleet-gpu",
        title="llmfleet / GPU and cost",
        description="How busy the GPUs of each instance are, whether they are well, and what a token costs.",
        variables=(NAMESPACE, FLEET, PRICE),
        rows=(_use(), _health(), _cost(), _each()),
    )


def _use() -> Row:
    who = "llmcluster"
    return Row(
        title="Use",
        panels=(
            lines(
                "GPU utilisation",
                "Mean share of time with any kernel on the GPUs of each instance. It says busy, not efficient.",
                Unit.SHARE,
                ask(per(who, "DCGM_FI_DEV_GPU_UTIL / 100"), "{{llmcluster}}"),
            ),
            lines(
                "Graphics engine active",
                "As utilisation, from the profiling counters: the one to read for MIG slices.",
                Unit.SHARE,
                ask(per(who, "DCGM_FI_PROF_GR_ENGINE_ACTIVE"), "{{llmcluster}}"),
            ),
            lines(
                "Tensor cores active",
                "Share of cycles in which tensor cores worked. Low with high utilisation: small batches, "
                "memory-bound decode.",
                Unit.SHARE,
                ask(per(who, "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"), "{{llmcluster}}"),
            ),
            lines(
                "Memory bandwidth active",
                "Share of cycles in which memory moved data; decode is bound by it.",
                Unit.SHARE,
                ask(per(who, "DCGM_FI_PROF_DRAM_ACTIVE"), "{{llmcluster}}"),
            ),
            lines(
                "GPU memory used",
                "Memory of all GPUs of each instance. Nearly full is right: vLLM takes what "
                "--gpu-memory-utilization allows.",
                Unit.BYTES,
                ask(per(who, f"DCGM_FI_DEV_FB_USED * {MEBIBYTE}", "sum"), "{{llmcluster}}"),
            ),
            lines(
                "PCIe traffic",
                "Bytes per second to and from the GPUs of each instance; with host offload or KV transfer it is load.",
                Unit.BYTES_PER_SECOND,
                ask(per(who, "DCGM_FI_PROF_PCIE_RX_BYTES", "sum"), "{{llmcluster}} in"),
                ask(per(who, "DCGM_FI_PROF_PCIE_TX_BYTES", "sum"), "{{llmcluster}} out"),
            ),
        ),
    )


def _health() -> Row:
    who = "llmcluster, Hostname, gpu"
    name = "{{llmcluster}} {{Hostname}} {{gpu}}"
    return Row(
        title="Health",
        panels=(
            lines(
                "Hottest GPU",
                "The hottest GPU of each instance. Near its limit the clock goes down.",
                Unit.CELSIUS,
                ask(per("llmcluster", "DCGM_FI_DEV_GPU_TEMP", "max"), "{{llmcluster}}"),
            ),
            lines(
                "Last XID",
                "The last error a GPU reported; 0 is none. 79: it fell off the bus; 48, 63, 64, 94, 95: memory. "
                "Drain its node.",
                Unit.COUNT,
                ask(per(who, "DCGM_FI_DEV_XID_ERRORS", "max"), name),
            ),
            lines(
                "Rows remapped",
                "Memory rows replaced after errors that could not be corrected. A failed remapping: replace the GPU.",
                Unit.COUNT,
                ask(per(who, "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", "max"), name),
                ask(per(who, "DCGM_FI_DEV_ROW_REMAP_FAILURE", "max"), f"{name} failed"),
            ),
        ),
    )


def _cost() -> Row:
    hourly = f"sum({joined(REQUESTED)}) * $price"
    made = f"sum(rate({TOKENS}[$__rate_interval]))"
    return Row(
        title="Power and cost",
        panels=(
            figure(
                "GPUs requested",
                "GPUs that engine pods request, from kube-state-metrics; paid for whether their engine serves or not.",
                Unit.COUNT,
                ask(f"sum({REQUESTED})", "GPUs"),
                width=6,
            ),
            figure(
                "GPUs without an engine that serves",
                "Requested by engine pods of an instance that is not scraped: it loads, is stuck, or waits for "
                "its group.",
                Unit.COUNT,
                ask(f"sum({IDLE}) or on () 0 * sum({REQUESTED})", "GPUs"),
                (1, "orange"),
                width=6,
            ),
            figure(
                "Dollars per hour",
                "All GPUs requested in these namespaces, at the price above.",
                Unit.DOLLARS,
                ask(f"sum({REQUESTED}) * $price", "per hour"),
                width=6,
            ),
            figure(
                "Dollars per million tokens",
                "What a million generated tokens cost in this time range: the GPUs of instances that serve, at "
                "the price above.",
                Unit.DOLLARS,
                now(f"{hourly} / 3600 / (sum(rate({TOKENS}[$__range])) > 0) * 1e6", "per million tokens"),
                width=6,
            ),
            lines(
                "Power",
                "Watts of all GPUs of each instance.",
                Unit.WATTS,
                ask(per("llmcluster", "DCGM_FI_DEV_POWER_USAGE", "sum"), "{{llmcluster}}"),
                stacked=True,
            ),
            lines(
                "Tokens per watt second",
                "Tokens generated for each joule. Falls when instances idle.",
                Unit.COUNT,
                ask(f"{made} / (sum({joined('DCGM_FI_DEV_POWER_USAGE')}) > 0)", "tokens per joule"),
            ),
            lines(
                "Dollars per million tokens over time",
                "High while little is asked for: a smaller minInstances, or scale to zero.",
                Unit.DOLLARS,
                ask(f"{hourly} / 3600 / ({made} > 0) * 1e6", "per million tokens"),
            ),
        ),
    )


def _each() -> Row:
    by = "namespace, fleet, llmcluster"
    return Row(
        title="Each instance",
        panels=(
            table(
                "GPUs of instances now",
                "One line for each instance.",
                ("GPUs", Unit.COUNT, per(by, "DCGM_FI_DEV_GPU_TEMP", "count")),
                ("Utilisation", Unit.SHARE, per(by, "DCGM_FI_DEV_GPU_UTIL / 100")),
                ("Tensor cores", Unit.SHARE, per(by, "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE")),
                ("Memory", Unit.BYTES, per(by, f"DCGM_FI_DEV_FB_USED * {MEBIBYTE}", "sum")),
                ("Power", Unit.WATTS, per(by, "DCGM_FI_DEV_POWER_USAGE", "sum")),
                ("Tokens out", Unit.PER_SECOND, f"sum by ({by}) (rate({TOKENS}[$__rate_interval]))"),
            ),
        ),
    )
