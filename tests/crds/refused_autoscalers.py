"""Specs of an LLMClusterAutoscaler that must be refused: what is wrong, the object, the message, the path.

Data only.
"""

from __future__ import annotations

from typing import Any

from crds.crd_objects import FLEET, REMOVED, Object, disaggregated, monolithic, role_fleet, shape, template

Case = tuple[str, Object, str, str]

BOUNDS = "minInstances must not be above maxInstances: lower minInstances or raise maxInstances"
COVERED = "otherwise new instances would not be counted and be created without end"
PROMETHEUS_ONLY = "metrics of type GPUUtilization and Custom come from Prometheus only"
DECIMAL = "must be a plain decimal number in quotes that is not negative"
ERROR_BUDGET = 'errorBudget must be a decimal number in quotes above 0 and below 1, for example "0.001"'
NEEDS_ALL = "mode monolithic needs minInstances, maxInstances and instanceTemplate"
OTHER_MODE = "mode disaggregated must not have minInstances, maxInstances, instanceTemplate, metrics or instances"
TO_ZERO = "scaleToZero.afterSeconds above 0 needs minInstances: 0"
ADDRESS = "source type Prometheus needs prometheus.address: write its URL"
FROM_PROMETHEUS = {"type": "Prometheus", "prometheus": {"address": "http://prometheus:9090"}}
SCHEDULE = {"name": "day", "start": "0 8 * * *", "end": "0 18 * * *", "minInstances": 3}


def metric(kind: str = "QueueLength", up: str = "100", down: str = "20", **more: Any) -> Object:
    """One metric of policy Metrics."""
    return {"type": kind, "threshold": {"scaleUp": up, "scaleDown": down}, **more}


def metrics(*items: Object) -> dict[str, Any]:
    """Policy Metrics with these."""
    return {"policy": "Metrics", "metrics": list(items)}


def templated(**spec: Any) -> dict[str, Any]:
    """A change of the template's spec."""
    return {"instanceTemplate": template("llama-", **spec)}


def scheduled(**changes: Any) -> dict[str, Any]:
    """One cron window with a change."""
    return {"workBudget.forecast.schedule": [{**SCHEDULE, **changes}]}


MODES: list[Case] = [
    ("no mode", monolithic({"mode": REMOVED}), "Required value", "spec.mode"),
    ("an unknown mode", monolithic({"mode": "mixed"}), '"monolithic", "disaggregated"', "spec.mode"),
    ("monolithic without a minimum", monolithic({"minInstances": REMOVED}), NEEDS_ALL, "spec.mode"),
    ("monolithic without a maximum", monolithic({"maxInstances": REMOVED}), NEEDS_ALL, "spec.mode"),
    ("monolithic without a template", monolithic({"instanceTemplate": REMOVED}), NEEDS_ALL, "spec.mode"),
    (
        "monolithic with a prefill block",
        monolithic({"prefill": role_fleet("prefill")}),
        "must not have prefill",
        "mode",
    ),
    ("monolithic with a decode block", monolithic({"decode": role_fleet("decode")}), "prefill or decode", "mode"),
    ("disaggregated without prefill", disaggregated({"prefill": REMOVED}), "needs both prefill and decode", "mode"),
    ("disaggregated without decode", disaggregated({"decode": REMOVED}), "needs both prefill and decode", "mode"),
    ("disaggregated with a minimum", disaggregated({"minInstances": 1}), OTHER_MODE, "spec.mode"),
    ("disaggregated with a maximum", disaggregated({"maxInstances": 1}), OTHER_MODE, "spec.mode"),
    ("disaggregated with a template", disaggregated({"instanceTemplate": template("a-")}), OTHER_MODE, "spec.mode"),
    ("disaggregated with metrics", disaggregated({"metrics": [metric()]}), OTHER_MODE, "spec.mode"),
    ("disaggregated with instances", disaggregated({"instances": 1}), OTHER_MODE, "spec.mode"),
    ("disaggregated and External", disaggregated({"policy": "External"}), "only with mode monolithic", "spec.policy"),
    ("an unknown policy", monolithic({"policy": "Cpu"}), '"WorkBudget"', "spec.policy"),
    (
        "instances under another policy",
        monolithic({"instances": 3}),
        "instances is only for policy External",
        "instances",
    ),
    ("negative instances", monolithic({"policy": "External", "instances": -1}), "equal to 0", "spec.instances"),
]

BOUND_CASES: list[Case] = [
    ("a minimum above the maximum", monolithic({"minInstances": 11}), BOUNDS, "spec.minInstances"),
    ("a negative minimum", monolithic({"minInstances": -1}), "greater than or equal to 0", "spec.minInstances"),
    ("a maximum of zero", monolithic({"minInstances": 0, "maxInstances": 0}), "equal to 1", "spec.maxInstances"),
    ("a maximum beyond its bound", monolithic({"maxInstances": 10001}), "equal to 10000", "spec.maxInstances"),
    ("prefill bounds crossed", disaggregated({"prefill.minInstances": 5}), BOUNDS, "spec.prefill.minInstances"),
    ("decode bounds crossed", disaggregated({"decode.maxInstances": 0}), "equal to 1", "spec.decode.maxInstances"),
    ("prefill without bounds", disaggregated({"prefill.maxInstances": REMOVED}), "Required", "prefill.maxInstances"),
    (
        "no prefill per decode",
        disaggregated({"coordination.maxPrefillPerDecode": 0}),
        "equal to 1",
        "maxPrefillPerDecode",
    ),
    ("scale to zero with a minimum", monolithic({"scaleToZero.afterSeconds": 600}), TO_ZERO, "afterSeconds"),
    (
        "scale to zero with a decode minimum",
        disaggregated({"prefill.minInstances": 0, "scaleToZero.afterSeconds": 1}),
        TO_ZERO,
        "spec.scaleToZero.afterSeconds",
    ),
    ("a negative idle time", monolithic({"scaleToZero.afterSeconds": -1}), "equal to 0", "afterSeconds"),
    ("a step of zero", monolithic({"behavior.scaleUp.step": 0}), "equal to 1", "spec.behavior.scaleUp.step"),
    ("a negative window", monolithic({"behavior.scaleDown.stabilizationSeconds": -1}), "equal to 0", "scaleDown"),
    ("a negative surge", monolithic({"behavior.maxSurge": -1}), "equal to 0", "spec.behavior.maxSurge"),
    ("an unknown victim", monolithic({"victim": "Random"}), '"LeastUtilized"', "spec.victim"),
]

SELECTORS: list[Case] = [
    ("no selector", monolithic({"scaleTargetRef": REMOVED}), "Required value", "spec.scaleTargetRef"),
    (
        "an empty selector",
        monolithic({"scaleTargetRef.labelSelector.matchLabels": {}}),
        "matchLabels must not be empty: write at least one label",
        "spec.scaleTargetRef.labelSelector.matchLabels",
    ),
    (
        "a selector without labels",
        monolithic({"scaleTargetRef.labelSelector": {}}),
        "Required value",
        "spec.scaleTargetRef.labelSelector.matchLabels",
    ),
    (
        "a selector with expressions",
        monolithic({"scaleTargetRef.labelSelector.matchExpressions": []}),
        "unknown field",
        "matchExpressions",
    ),
    (
        "a selector of 17 labels",
        monolithic({"scaleTargetRef.labelSelector.matchLabels": {f"l{i}": "v" for i in range(17)}}),
        "at most 16",
        "matchLabels",
    ),
    (
        "a selector value of 64 characters",
        monolithic({"scaleTargetRef.labelSelector.matchLabels": {"a": "v" * 64}}),
        "may not be more than 63",
        "matchLabels.a",
    ),
    (
        "a selector value in unicode",
        monolithic({"scaleTargetRef.labelSelector.matchLabels": {"a": "é"}}),
        "must be a label value",
        "matchLabels[a]",
    ),
    ("a template without labels", monolithic({"instanceTemplate.labels": REMOVED}), COVERED, "instanceTemplate"),
    (
        "a template of another fleet",
        monolithic({"instanceTemplate.labels": {"serving.ai/fleet": "other"}}),
        f"labels of instanceTemplate must hold every label of scaleTargetRef.labelSelector.matchLabels, {COVERED}",
        "spec.instanceTemplate",
    ),
    (
        "a template with one label too few",
        monolithic({"scaleTargetRef.labelSelector.matchLabels": {**FLEET, "team": "a"}}),
        COVERED,
        "spec.instanceTemplate",
    ),
    (
        "a prefill template of another fleet",
        disaggregated({"prefill.instanceTemplate.labels": {}}),
        "labels of prefill.instanceTemplate must hold every label of scaleTargetRef.labelSelector.matchLabels",
        "spec.prefill.instanceTemplate",
    ),
    (
        "a decode template of another fleet",
        disaggregated({"decode.instanceTemplate.labels": {"serving.ai/fleet": "x"}}),
        COVERED,
        "spec.decode.instanceTemplate",
    ),
    (
        "a prefix of 32 characters",
        monolithic({"instanceTemplate.namePrefix": "p" * 32}),
        "namePrefix must have at most 31 characters",
        "spec.instanceTemplate.namePrefix",
    ),
    ("an empty prefix", monolithic({"instanceTemplate.namePrefix": ""}), "namePrefix must have", "namePrefix"),
    ("a prefix in upper case", monolithic({"instanceTemplate.namePrefix": "Llama-"}), "lower case", "namePrefix"),
    ("no prefix", monolithic({"instanceTemplate.namePrefix": REMOVED}), "Required value", "namePrefix"),
]

TEMPLATES: list[Case] = [
    (
        "a prefill template in a monolithic fleet",
        monolithic(templated(role="prefill")),
        "role in instanceTemplate must be both",
        "spec.instanceTemplate.spec.role",
    ),
    (
        "a decode template in the prefill block",
        disaggregated({"prefill.instanceTemplate.spec.role": "decode"}),
        "role must be prefill in the template of the prefill block",
        "spec.prefill.instanceTemplate.spec",
    ),
    (
        "a prefill block without a role",
        disaggregated({"prefill.instanceTemplate.spec.role": REMOVED}),
        "write role: prefill",
        "spec.prefill.instanceTemplate.spec",
    ),
    (
        "a decode block that does everything",
        disaggregated({"decode.instanceTemplate.spec.role": "both"}),
        "role must be decode in the template of the decode block",
        "spec.decode.instanceTemplate.spec",
    ),
    ("a template without a model", monolithic({"instanceTemplate.spec.model": REMOVED}), "Required", "spec.model"),
    (
        "a template with a broken shape",
        monolithic(templated(tensorParallelSize=9)),
        "tensorParallelSize x pipelineParallelSize must equal replicas x gpusPerPod",
        "spec.instanceTemplate.spec.tensorParallelSize",
    ),
    (
        "a decode template with an owned flag",
        disaggregated({"decode.instanceTemplate.spec": shape(role="decode", inferenceArgs={"extraArgs": ["--por=1"]})}),
        "extraArgs must not hold a flag that the operator sets",
        "spec.decode.instanceTemplate.spec.inferenceArgs.extraArgs[0]",
    ),
    (
        "a template with an owned variable",
        monolithic(templated(env=[{"name": "RANK"}])),
        "env must not set a variable",
        "spec.instanceTemplate.spec.env[0].name",
    ),
    (
        "a template with a transfer but no role",
        monolithic(templated(kvTransfer={})),
        "kvTransfer is only for role prefill or decode",
        "spec.instanceTemplate.spec.kvTransfer",
    ),
    (
        "a template with the accelerator in its resources",
        monolithic(templated(resources={"limits": {"nvidia.com/gpu": 8}})),
        "resources must not hold the accelerator",
        "spec.instanceTemplate.spec.resources",
    ),
    (
        "a template with an exclusive claim",
        monolithic(
            templated(
                storage={"modelCache": {"type": "persistentVolumeClaim", "size": "1Gi", "accessMode": "ReadWriteOnce"}}
            )
        ),
        "accessMode must be ReadWriteMany or ReadOnlyMany",
        "spec.instanceTemplate.spec.storage.modelCache.accessMode",
    ),
    (
        "a template with a typo",
        monolithic(templated(tensorParalelSize=8)),
        "unknown field",
        "spec.instanceTemplate.spec.tensorParalelSize",
    ),
]

METRICS: list[Case] = [
    ("policy Metrics without metrics", monolithic({"policy": "Metrics"}), "at least one item in metrics", "metrics"),
    ("policy Metrics with none", monolithic(metrics()), "policy Metrics needs at least one item", "spec.metrics"),
    (
        "policy Metrics without those of prefill",
        disaggregated({"policy": "Metrics", "decode.metrics": [metric()]}),
        "policy Metrics needs at least one item in prefill.metrics",
        "spec.prefill.metrics",
    ),
    (
        "policy Metrics without those of decode",
        disaggregated({"policy": "Metrics", "prefill.metrics": [metric()]}),
        "policy Metrics needs at least one item in decode.metrics",
        "spec.decode.metrics",
    ),
    (
        "equal thresholds",
        monolithic(metrics(metric(up="5", down="5.0"))),
        "scaleUp must be above scaleDown",
        "threshold",
    ),
    (
        "crossed thresholds",
        monolithic(metrics(metric(up="9", down="10"))),
        "otherwise the fleet would flap",
        "threshold",
    ),
    ("a threshold NaN", monolithic(metrics(metric(up="NaN"))), f"scaleUp {DECIMAL}", "threshold.scaleUp"),
    ("a threshold Inf", monolithic(metrics(metric(up="Inf"))), f"scaleUp {DECIMAL}", "threshold.scaleUp"),
    ("a threshold 1e3", monolithic(metrics(metric(up="1e3"))), f"scaleUp {DECIMAL}", "threshold.scaleUp"),
    ("a negative threshold", monolithic(metrics(metric(down="-1"))), f"scaleDown {DECIMAL}", "threshold.scaleDown"),
    ("an empty threshold", monolithic(metrics(metric(down=""))), f"scaleDown {DECIMAL}", "threshold.scaleDown"),
    (
        "a threshold as a number",
        monolithic(metrics({"type": "TTFT", "threshold": {"scaleUp": 3, "scaleDown": "1"}})),
        "must be of type string",
        "scaleUp",
    ),
    ("half a threshold", monolithic(metrics({"type": "TTFT", "threshold": {"scaleUp": "3"}})), "Required", "scaleDown"),
    ("an unknown metric", monolithic(metrics(metric("CPU"))), '"QueueLength"', "spec.metrics[0].type"),
    ("per pod", monolithic(metrics(metric(per="Pod"))), '"Fleet", "Instance"', "spec.metrics[0].per"),
    ("a window of nothing", monolithic(metrics(metric(windowSeconds=0))), "equal to 1", "windowSeconds"),
    ("17 metrics", monolithic(metrics(*[metric()] * 17)), "at most 16", "spec.metrics"),
    (
        "Custom without a query",
        monolithic({**metrics(metric("Custom")), "source": FROM_PROMETHEUS}),
        "query must be set for type Custom: write the PromQL expression",
        "spec.metrics[0].query",
    ),
    (
        "Custom with an empty query",
        monolithic({**metrics(metric("Custom", query="")), "source": FROM_PROMETHEUS}),
        "query must be set for type Custom",
        "spec.metrics[0].query",
    ),
    ("Custom from Direct", monolithic(metrics(metric("Custom", query="up"))), PROMETHEUS_ONLY, "spec.source.type"),
    ("GPU figures from Direct", monolithic(metrics(metric("GPUUtilization"))), PROMETHEUS_ONLY, "spec.source.type"),
    (
        "decode's GPU figures from Direct",
        disaggregated({"decode.metrics": [metric("GPUUtilization")]}),
        PROMETHEUS_ONLY,
        "spec.source.type",
    ),
    ("Prometheus without an address", monolithic({"source": {"type": "Prometheus"}}), ADDRESS, "spec.source"),
    (
        "Prometheus with an empty address",
        monolithic({"source": {"type": "Prometheus", "prometheus": {"address": ""}}}),
        ADDRESS,
        "spec.source.prometheus",
    ),
    (
        "an address that is no URL",
        monolithic({"source": {"type": "Prometheus", "prometheus": {"address": "prometheus:9090"}}}),
        "address must be a URL, for example http://prometheus.monitoring:9090",
        "spec.source.prometheus.address",
    ),
]

BUDGETS: list[Case] = [
    ("no error budget at all", monolithic({"workBudget.slo.errorBudget": "0"}), ERROR_BUDGET, "errorBudget"),
    ("an error budget 0.0", monolithic({"workBudget.slo.errorBudget": "0.0"}), ERROR_BUDGET, "errorBudget"),
    ("an error budget of everything", monolithic({"workBudget.slo.errorBudget": "1"}), ERROR_BUDGET, "errorBudget"),
    ("an error budget 1.0", monolithic({"workBudget.slo.errorBudget": "1.0"}), ERROR_BUDGET, "errorBudget"),
    ("a negative error budget", monolithic({"workBudget.slo.errorBudget": "-0.1"}), ERROR_BUDGET, "errorBudget"),
    ("an SLO as a number", monolithic({"workBudget.slo.ttftSeconds": 2}), "must be of type string", "ttftSeconds"),
    ("an SLO in words", monolithic({"workBudget.slo.tpotSeconds": "fast"}), f"tpotSeconds {DECIMAL}", "tpotSeconds"),
    (
        "a coefficient in words",
        monolithic({"workBudget.capacity.coefficients.a": "auto"}),
        "a must be empty or a plain decimal number in quotes",
        "spec.workBudget.capacity.coefficients.a",
    ),
    ("negative tokens", monolithic({"workBudget.capacity.kvTokens": -1}), "equal to 0", "kvTokens"),
    ("a negative cold start", monolithic({"workBudget.coldStartSeconds": -1}), "equal to 0", "coldStartSeconds"),
    ("four cron fields", monolithic(scheduled(start="0 8 * *")), "start must be five cron fields", "schedule[0].start"),
    ("a window without an end", monolithic(scheduled(end="")), "end must be five cron fields", "schedule[0].end"),
    (
        "a time zone with a space",
        monolithic(scheduled(timeZone="Europe /A")),
        "timeZone must be an IANA name",
        "timeZone",
    ),
    ("a floor below zero", monolithic(scheduled(minInstances=-1)), "equal to 0", "schedule[0].minInstances"),
]

CASES: list[Case] = MODES + BOUND_CASES + SELECTORS + TEMPLATES + METRICS + BUDGETS
