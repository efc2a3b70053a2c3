"""Specs of an LLMCluster that must be refused: what is wrong, the change, and what the message must say.

Data only. The second text of each expectation is the field path that the message must name.
"""

from __future__ import annotations

from typing import Any

from crds.crd_objects import REMOVED

Case = tuple[str, dict[str, Any], str, str]

QUANTITY = "must be a Kubernetes quantity above zero, for example 16Gi"
QUANTITIES = "must be a Kubernetes quantity that is not negative, for example 4, 500m or 64Gi"
NAME_OF_OBJECT = "must be an object's name: lower case letters, digits, '-' and '.', for example my-object"
ENGINE_WORD = "must be one word as vLLM spells it"
PRODUCT = "tensorParallelSize x pipelineParallelSize must equal replicas x gpusPerPod"
MODEL = "model must be a Hugging Face id such as org/name, an absolute path, or a reference such as hf://org/name"
UTILIZATION = 'gpuMemoryUtilization must be a decimal number in quotes above 0 and at most 1, for example "0.90"'
OWNED_ENV = "env must not set a variable by which the pods of the group find each other"
EXCLUSIVE_SHARE = "accessMode must be ReadWriteMany or ReadOnlyMany when replicas is above 1"
CLAIM = {"type": "persistentVolumeClaim", "size": "200Gi"}


def less(bound: int) -> str:
    """What OpenAPI says below a minimum."""
    return f"should be greater than or equal to {bound}"


def more(bound: int) -> str:
    """What OpenAPI says above a maximum."""
    return f"should be less than or equal to {bound}"


SHAPES: list[Case] = [
    ("an empty spec lacks its required fields", {"model": REMOVED}, "Required value", "spec.model"),
    ("no image", {"image": REMOVED}, "Required value", "spec.image"),
    ("no replicas", {"replicas": REMOVED}, "Required value", "spec.replicas"),
    ("no accelerators per pod", {"gpusPerPod": REMOVED}, "Required value", "spec.gpusPerPod"),
    ("no tensor parallel size", {"tensorParallelSize": REMOVED}, "Required value", "spec.tensorParallelSize"),
    ("zero replicas", {"replicas": 0}, less(1), "spec.replicas"),
    ("negative replicas", {"replicas": -1}, less(1), "spec.replicas"),
    ("one replica too many", {"replicas": 1025}, more(1024), "spec.replicas"),
    ("a fraction of a replica", {"replicas": 1.5}, 'must be of type integer: "number"', "spec.replicas"),
    ("replicas as text", {"replicas": "2"}, 'must be of type integer: "string"', "spec.replicas"),
    ("replicas null", {"replicas": None}, "Required value", "spec.replicas"),
    ("a number beyond 64 bits", {"replicas": 10**30}, "spec.replicas", "spec.replicas"),
    ("zero accelerators", {"gpusPerPod": 0}, less(1), "spec.gpusPerPod"),
    ("zero tensor parallel size", {"tensorParallelSize": 0}, less(1), "spec.tensorParallelSize"),
    ("zero pipeline parallel size", {"pipelineParallelSize": 0}, less(1), "spec.pipelineParallelSize"),
    ("a size one above the product", {"tensorParallelSize": 9}, PRODUCT, "spec.tensorParallelSize"),
    ("a size one below the product", {"tensorParallelSize": 7}, PRODUCT, "spec.tensorParallelSize"),
    ("a pipeline on top of a full group", {"pipelineParallelSize": 2}, PRODUCT, "spec.tensorParallelSize"),
    ("an empty model", {"model": ""}, MODEL, "spec.model"),
    ("a model that reads as a flag", {"model": "--port"}, MODEL, "spec.model"),
    ("a model with a space", {"model": "org/my model"}, MODEL, "spec.model"),
    ("a relative path as model", {"model": "./model"}, MODEL, "spec.model"),
    ("a scheme that nobody loads", {"model": "ftp://host/model"}, MODEL, "spec.model"),
    ("a claim without a name", {"model": "pvc:///path"}, MODEL, "spec.model"),
    ("a model in unicode", {"model": "orgänisation/modell"}, MODEL, "spec.model"),
    ("a model with a line break", {"model": "/models/a\nb"}, MODEL, "spec.model"),
    ("a model of 513 characters", {"model": "/" + "m" * 512}, "may not be more than 512", "spec.model"),
    ("an empty image", {"image": ""}, "image must be an image reference without spaces", "spec.image"),
    ("an image with a space", {"image": "a b"}, "image must be an image reference without spaces", "spec.image"),
    ("a pull policy in the wrong case", {"imagePullPolicy": "always"}, '"Always"', "spec.imagePullPolicy"),
    ("an unknown role", {"role": "router"}, 'supported values: "both", "prefill", "decode"', "spec.role"),
    ("an unknown field", {"gpus": 4}, 'unknown field "spec.gpus"', "spec.gpus"),
    ("an unknown field deep inside", {"router.wieght": 1}, 'unknown field "spec.router.wieght"', "spec.router"),
    ("a status field in the spec", {"status": {}}, 'unknown field "spec.status"', "spec.status"),
    ("a list where an object belongs", {"router": []}, 'must be of type object: "array"', "spec.router"),
    ("a served name that reads as a flag", {"servedModelNames": ["-x"]}, "every item of servedModelNames", "[0]"),
    ("an empty served name", {"servedModelNames": [""]}, "every item of servedModelNames must be", "[0]"),
    ("a served name twice", {"servedModelNames": ["a", "a"]}, "Duplicate value", "spec.servedModelNames[1]"),
    ("17 served names", {"servedModelNames": [f"m{i}" for i in range(17)]}, "at most 16", "spec.servedModelNames"),
    ("a pull secret twice", {"imagePullSecrets": [{"name": "a"}] * 2}, "Duplicate value", "spec.imagePullSecrets[1]"),
    ("a pull secret without a name", {"imagePullSecrets": [{}]}, "Required value", "spec.imagePullSecrets[0].name"),
]

ACCELERATORS: list[Case] = [
    (
        "both kinds of accelerator",
        {"accelerator": {"resourceName": "nvidia.com/gpu", "resourceClaimTemplateName": "gpus"}},
        "resourceName and resourceClaimTemplateName exclude each other: remove one of them",
        "spec.accelerator",
    ),
    (
        "a resource name without a domain",
        {"accelerator.resourceName": "gpu"},
        "resourceName must be empty or an extended resource such as nvidia.com/gpu",
        "spec.accelerator.resourceName",
    ),
    (
        "the accelerator in the limits",
        {"accelerator.resourceName": "amd.com/gpu", "resources.limits": {"amd.com/gpu": 4}},
        "resources must not hold the accelerator",
        "spec.resources",
    ),
    (
        "the accelerator in the requests",
        {"accelerator.resourceName": "amd.com/gpu", "resources.requests": {"amd.com/gpu": 4}},
        "the operator adds gpusPerPod of accelerator.resourceName",
        "spec.resources",
    ),
    (
        "the operator's default accelerator in the limits",
        {"resources.limits": {"nvidia.com/gpu": "4"}},
        "resources must not hold the accelerator",
        "spec.resources",
    ),
    (
        "a request above its limit",
        {"resources": {"requests": {"memory": "64Gi"}, "limits": {"memory": "65535Mi"}}},
        "requests must not be above limits: lower the request or raise the limit",
        "spec.resources.requests",
    ),
    (
        "a request above its limit in another notation",
        {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "1999m"}}},
        "requests must not be above limits",
        "spec.resources.requests",
    ),
    ("no quantity", {"resources.limits": {"memory": "lots"}}, QUANTITIES, "spec.resources.limits[memory]"),
    ("a quantity NaN", {"resources.limits": {"cpu": "NaN"}}, QUANTITIES, "spec.resources.limits[cpu]"),
    ("a negative quantity", {"resources.requests": {"memory": "-1Gi"}}, QUANTITIES, "spec.resources.requests[memory]"),
    ("a negative number", {"resources.requests": {"cpu": -1}}, QUANTITIES, "spec.resources.requests[cpu]"),
    ("an empty quantity", {"resources.requests": {"cpu": ""}}, QUANTITIES, "spec.resources.requests[cpu]"),
    (
        "17 resources",
        {"resources.limits": {f"example.com/r{i}": 1 for i in range(17)}},
        "must have at most 16",
        "spec.resources.limits",
    ),
]

INFERENCE: list[Case] = [
    ("utilization zero", {"inferenceArgs.gpuMemoryUtilization": "0"}, UTILIZATION, "gpuMemoryUtilization"),
    ("utilization 0.000", {"inferenceArgs.gpuMemoryUtilization": "0.000"}, UTILIZATION, "gpuMemoryUtilization"),
    ("utilization just above 1", {"inferenceArgs.gpuMemoryUtilization": "1.0001"}, UTILIZATION, "gpuMemoryUtilization"),
    ("utilization in percent", {"inferenceArgs.gpuMemoryUtilization": "90%"}, UTILIZATION, "gpuMemoryUtilization"),
    ("utilization NaN", {"inferenceArgs.gpuMemoryUtilization": "NaN"}, UTILIZATION, "gpuMemoryUtilization"),
    ("utilization Infinity", {"inferenceArgs.gpuMemoryUtilization": "Infinity"}, UTILIZATION, "gpuMemoryUtilization"),
    ("negative utilization", {"inferenceArgs.gpuMemoryUtilization": "-0.5"}, UTILIZATION, "gpuMemoryUtilization"),
    ("utilization 9e-1", {"inferenceArgs.gpuMemoryUtilization": "9e-1"}, UTILIZATION, "gpuMemoryUtilization"),
    ("utilization .", {"inferenceArgs.gpuMemoryUtilization": "."}, UTILIZATION, "gpuMemoryUtilization"),
    (
        "utilization as a number",
        {"inferenceArgs.gpuMemoryUtilization": 0.9},
        'must be of type string: "number"',
        "spec.inferenceArgs.gpuMemoryUtilization",
    ),
    ("no sequences", {"inferenceArgs.maxNumSeqs": 0}, less(1), "spec.inferenceArgs.maxNumSeqs"),
    ("no tokens", {"inferenceArgs.maxModelLen": 0}, less(1), "spec.inferenceArgs.maxModelLen"),
    ("negative tokens", {"inferenceArgs.maxNumBatchedTokens": -1}, less(1), "maxNumBatchedTokens"),
    ("a block of nothing", {"inferenceArgs.blockSize": 0}, less(1), "spec.inferenceArgs.blockSize"),
    ("a negative seed", {"inferenceArgs.seed": -1}, less(0), "spec.inferenceArgs.seed"),
    ("a seed of 33 bits", {"inferenceArgs.seed": 2**32}, more(2**32 - 1), "spec.inferenceArgs.seed"),
    ("a boolean as text", {"inferenceArgs.enforceEager": "yes"}, "must be of type boolean", "enforceEager"),
    ("an unknown policy", {"inferenceArgs.schedulingPolicy": "lifo"}, '"fcfs", "priority"', "schedulingPolicy"),
    ("a dtype that reads as a flag", {"inferenceArgs.dtype": "-auto"}, ENGINE_WORD, "spec.inferenceArgs.dtype"),
    ("an empty dtype", {"inferenceArgs.dtype": ""}, ENGINE_WORD, "spec.inferenceArgs.dtype"),
    ("a quantization of two words", {"inferenceArgs.quantization": "fp8 --port"}, ENGINE_WORD, "quantization"),
    (
        "a draft of no tokens",
        {"inferenceArgs.speculativeDecoding": {"enabled": True, "numSpeculativeTokens": 0}},
        less(1),
        "spec.inferenceArgs.speculativeDecoding.numSpeculativeTokens",
    ),
    (
        "a draft model with a space",
        {"inferenceArgs.speculativeDecoding.model": "a b"},
        "model must be empty, a Hugging Face id",
        "spec.inferenceArgs.speculativeDecoding.model",
    ),
    ("no adapters at once", {"inferenceArgs.lora.maxLoras": 0}, less(1), "spec.inferenceArgs.lora.maxLoras"),
    (
        "an adapter without a path",
        {"inferenceArgs.lora.adapters": [{"name": "sql"}]},
        "Required value",
        "spec.inferenceArgs.lora.adapters[0].path",
    ),
    (
        "an adapter at a relative path",
        {"inferenceArgs.lora.adapters": [{"name": "sql", "path": "../sql"}]},
        "path of an adapter must be an absolute path",
        "spec.inferenceArgs.lora.adapters[0].path",
    ),
    (
        "an adapter name with '='",
        {"inferenceArgs.lora.adapters": [{"name": "a=b", "path": "/a"}]},
        "name of an adapter must be letters",
        "spec.inferenceArgs.lora.adapters[0].name",
    ),
    (
        "an adapter twice",
        {"inferenceArgs.lora.adapters": [{"name": "a", "path": "/a"}, {"name": "a", "path": "/b"}]},
        "Duplicate value",
        "spec.inferenceArgs.lora.adapters[1]",
    ),
    (
        "an adapter with the model's name",
        {"servedModelNames": ["a", "sql"], "inferenceArgs.lora.adapters": [{"name": "sql", "path": "/sql"}]},
        "adapters must have other names than servedModelNames",
        "spec.inferenceArgs.lora.adapters",
    ),
    ("65 arguments", {"inferenceArgs.extraArgs": ["x"] * 65}, "must have at most 64 items", "extraArgs"),
    ("10,000 arguments", {"inferenceArgs.extraArgs": ["x"] * 10_000}, "must have at most 64 items", "extraArgs"),
    ("an argument of 4097", {"inferenceArgs.extraArgs": ["x" * 4097]}, "may not be more than 4096", "extraArgs[0]"),
    ("an argument that is null", {"inferenceArgs.extraArgs": [None]}, "must be of type string", "extraArgs[0]"),
    ("an argument that is a number", {"inferenceArgs.extraArgs": [1]}, "must be of type string", "extraArgs[0]"),
]

TRANSFER_AND_ENV: list[Case] = [
    ("a transfer with role both", {"kvTransfer": {}}, "kvTransfer is only for role prefill or decode", "kvTransfer"),
    (
        "a transfer port below 1024",
        {"role": "prefill", "kvTransfer.port": 1023},
        less(1024),
        "spec.kvTransfer.port",
    ),
    (
        "an unknown failure policy",
        {"role": "decode", "kvTransfer.loadFailurePolicy": "retry"},
        'supported values: "fail", "recompute"',
        "spec.kvTransfer.loadFailurePolicy",
    ),
    ("the engine's own port variable", {"env": [{"name": "VLLM_PORT", "value": "1"}]}, OWNED_ENV, "spec.env[0]"),
    ("the host variable", {"env": [{"name": "VLLM_HOST_IP", "value": "1"}]}, OWNED_ENV, "spec.env[0].name"),
    ("the rank", {"env": [{"name": "A"}, {"name": "RANK", "value": "0"}]}, OWNED_ENV, "spec.env[1].name"),
    ("the world size", {"env": [{"name": "WORLD_SIZE"}]}, OWNED_ENV, "spec.env[0].name"),
    ("the master address", {"env": [{"name": "MASTER_ADDR"}]}, OWNED_ENV, "spec.env[0].name"),
    ("a variable of the operator's own", {"env": [{"name": "LLMFLEET_RANK"}]}, "starts with LLMFLEET_", "env[0].name"),
    ("a variable without a name", {"env": [{"value": "1"}]}, "Required value", "spec.env[0].name"),
    ("a variable twice", {"env": [{"name": "A"}, {"name": "A"}]}, "Duplicate value", "spec.env[1]"),
    ("a variable that is a number", {"env": [{"name": "A", "value": 1}]}, "must be of type string", "env[0].value"),
    ("129 variables", {"env": [{"name": f"A{i}"} for i in range(129)]}, "at most 128 items", "spec.env"),
]

PODS: list[Case] = [
    ("shared memory of nothing", {"storage.shmSize": "0"}, f"shmSize {QUANTITY}", "spec.storage.shmSize"),
    ("shared memory of -1Gi", {"storage.shmSize": "-1Gi"}, f"shmSize {QUANTITY}", "spec.storage.shmSize"),
    ("shared memory of 16 GB", {"storage.shmSize": "16 GB"}, f"shmSize {QUANTITY}", "spec.storage.shmSize"),
    ("a size that is NaN", {"storage.modelCache.size": "NaN"}, f"size {QUANTITY}", "spec.storage.modelCache.size"),
    ("an unknown volume", {"storage.modelCache.type": "nfs"}, '"emptyDir"', "spec.storage.modelCache.type"),
    (
        "a new exclusive claim for two pods",
        {"storage.modelCache": {**CLAIM, "accessMode": "ReadWriteOnce"}},
        EXCLUSIVE_SHARE,
        "spec.storage.modelCache.accessMode",
    ),
    (
        "a claim for one pod only, for two pods",
        {"storage.modelCache": {**CLAIM, "accessMode": "ReadWriteOncePod"}},
        EXCLUSIVE_SHARE,
        "spec.storage.modelCache.accessMode",
    ),
    (
        "a claim neither named nor sized",
        {"storage.modelCache.type": "persistentVolumeClaim"},
        "type persistentVolumeClaim needs claimName (a claim that exists) or size (a claim to create)",
        "spec.storage.modelCache",
    ),
    (
        "a host directory that is not named",
        {"storage.modelCache.type": "hostPath"},
        "hostPath must be set when type is hostPath",
        "spec.storage.modelCache",
    ),
    (
        "a host directory that climbs",
        {"storage.modelCache": {"type": "hostPath", "hostPath": "/mnt/../etc"}},
        "hostPath must be empty or an absolute path without '..', for example /mnt/models",
        "spec.storage.modelCache.hostPath",
    ),
    (
        "a relative mount path",
        {"storage.modelCache.mountPath": "models"},
        "mountPath must be an absolute path",
        "spec.storage.modelCache.mountPath",
    ),
    (
        "a preload into no cache",
        {"storage": {"modelCache": {"type": "none"}, "preload": {"enabled": True, "command": ["true"]}}},
        "preload fills modelCache, which has type none",
        "spec.storage.preload",
    ),
    (
        "a preload that would run the engine",
        {"storage.preload": {"enabled": True}},
        "preload needs an image or a command",
        "spec.storage.preload",
    ),
    (
        "a mount path with a colon",
        {"storage.modelCache.mountPath": "/a:b"},
        "mountPath must be an absolute path without ':' and without '..', for example /models",
        "spec.storage.modelCache.mountPath",
    ),
    (
        "a claim name in upper case",
        {"storage.modelCache.claimName": "Models"},
        f"claimName {NAME_OF_OBJECT}",
        "spec.storage.modelCache.claimName",
    ),
    (
        "a class name with an underscore",
        {"scheduling.priorityClassName": "high_priority"},
        f"priorityClassName {NAME_OF_OBJECT}",
        "spec.scheduling.priorityClassName",
    ),
    ("an unknown colocation", {"scheduling.colocation": "Always"}, '"Required"', "spec.scheduling.colocation"),
    (
        "a topology key with a space",
        {"scheduling.colocationTopologyKey": "the rack"},
        "colocationTopologyKey must be a label key, for example kubernetes.io/hostname",
        "spec.scheduling.colocationTopologyKey",
    ),
    (
        "a node label of 64 characters",
        {"scheduling.nodeSelector": {"zone": "z" * 64}},
        "may not be more than 63",
        "spec.scheduling.nodeSelector.zone",
    ),
    ("a misspelt affinity", {"scheduling.affinity.podAfinity": {}}, "unknown field", "podAfinity"),
    (
        "an affinity term without a topology",
        {"scheduling.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution": [{}]},
        "Required value",
        "requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey",
    ),
    (
        "a spread constraint without a skew",
        {"scheduling.topologySpreadConstraints": [{"topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]},
        "Required value",
        "spec.scheduling.topologySpreadConstraints[0].maxSkew",
    ),
    ("65 tolerations", {"scheduling.tolerations": [{"key": "a"}] * 65}, "at most 64 items", "tolerations"),
    ("a privileged port", {"network.basePort": 1023}, less(1024), "spec.network.basePort"),
    ("a port beyond the last", {"network.basePort": 65536}, more(65000), "spec.network.basePort"),
    (
        "an interface with a space",
        {"network.interface": "eth 0"},
        "interface must be empty or the name of a network interface, for example eth0",
        "spec.network.interface",
    ),
    (
        "a negative number of devices",
        {"network.resources": {"rdma/hca": -1}},
        QUANTITIES,
        "spec.network.resources[rdma/hca]",
    ),
    (
        "a disruption budget twice",
        {"podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": 1}},
        "minAvailable and maxUnavailable exclude each other: remove one of them",
        "spec.podDisruptionBudget",
    ),
    (
        "a budget of 101%",
        {"podDisruptionBudget.minAvailable": "101%"},
        "minAvailable must be a number of pods that is not negative, or a percentage",
        "spec.podDisruptionBudget.minAvailable",
    ),
    (
        "a negative budget",
        {"podDisruptionBudget.maxUnavailable": -1},
        "maxUnavailable must be a number of pods that is not negative, or a percentage",
        "spec.podDisruptionBudget.maxUnavailable",
    ),
    (
        "a key with a slash",
        {"security.huggingFaceTokenSecretRef": {"name": "hf", "key": "a/b"}},
        "key must be a key of the Secret",
        "spec.security.huggingFaceTokenSecretRef.key",
    ),
    ("a user that is text", {"security.podSecurityContext.runAsUser": "root"}, "must be of type integer", "runAsUser"),
    ("an unknown privilege", {"security.containerSecurityContext.root": True}, "unknown field", "root"),
    ("a pod template that is a list", {"podTemplate": []}, "must be of type object", "spec.podTemplate"),
]

SERVING: list[Case] = [
    ("a negative weight", {"router.weight": -1}, less(0), "spec.router.weight"),
    ("a weight above a million", {"router.weight": 1_000_001}, more(1_000_000), "spec.router.weight"),
    ("a negative concurrency", {"router.maxConcurrency": -1}, less(0), "spec.router.maxConcurrency"),
    ("a negative tier", {"router.tier": -1}, less(0), "spec.router.tier"),
    ("no time to start", {"lifecycle.startupTimeoutSeconds": 0}, less(1), "startupTimeoutSeconds"),
    ("a negative start-up time", {"lifecycle.startupTimeoutSeconds": -1}, less(1), "startupTimeoutSeconds"),
    ("a negative drain", {"lifecycle.drainTimeoutSeconds": -1}, less(0), "spec.lifecycle.drainTimeoutSeconds"),
    ("a drain of more than a day", {"lifecycle.drainTimeoutSeconds": 86401}, more(86400), "drainTimeoutSeconds"),
    ("a time as text", {"lifecycle.stallTimeoutSeconds": "60s"}, "must be of type integer", "stallTimeoutSeconds"),
    ("a back-off above its bound", {"lifecycle.restartBackoffSeconds": 301}, more(300), "restartBackoffSeconds"),
    ("an empty warm-up", {"lifecycle.warmup.prompt": ""}, "at least 1 chars", "spec.lifecycle.warmup.prompt"),
    ("a warm-up of no tokens", {"lifecycle.warmup.maxTokens": 0}, less(1), "spec.lifecycle.warmup.maxTokens"),
    ("a canary of nothing", {"update.canary.weightPercent": 0}, less(1), "spec.update.canary.weightPercent"),
    ("a canary of 101 percent", {"update.canary.weightPercent": 101}, more(100), "weightPercent"),
    (
        "an error ratio above 1",
        {"update.canary.maxErrorRatio": "1.01"},
        "maxErrorRatio must be a decimal number in quotes from 0 to 1",
        "spec.update.canary.maxErrorRatio",
    ),
    (
        "a TTFT ratio that is NaN",
        {"update.canary.maxTTFTRatio": "nan"},
        "maxTTFTRatio must be a plain decimal number in quotes that is not negative",
        "spec.update.canary.maxTTFTRatio",
    ),
]

NAMES: list[tuple[str, str]] = [
    ("41 characters", "a" * 41),
    ("a leading digit", "3-llama"),
    ("a dot, as Services take none", "llama-3.3"),
    ("63 characters", "a" * 63),
]

CASES: list[Case] = SHAPES + ACCELERATORS + INFERENCE + TRANSFER_AND_ENV + PODS + SERVING
