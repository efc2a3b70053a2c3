"""What is allowed is accepted: boundary values, every kind of model, and borrowed Kubernetes shapes."""

from __future__ import annotations

from typing import Any

import pytest

from crds.crd_objects import CLUSTERS, REMOVED, cluster
from fakes.apiserver import Apiserver

pytestmark = pytest.mark.apiserver

DRY = {"dryRun": "All"}
ONE_POD = {"replicas": 1, "gpusPerPod": 1, "tensorParallelSize": 1}
CLAIM = {"type": "persistentVolumeClaim", "size": "200Gi", "accessMode": "ReadWriteOnce"}
SELECTOR = {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}
TERM = {"topologyKey": "kubernetes.io/hostname", "labelSelector": SELECTOR, "namespaces": ["a"]}
NODE_TERM = {"matchExpressions": [{"key": "gpu", "operator": "Exists"}], "matchFields": []}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"

ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("nothing but the required fields", {}),
    ("one pod with one accelerator", ONE_POD),
    ("a pipeline over the pods", {"tensorParallelSize": 4, "pipelineParallelSize": 2}),
    ("the largest group", {"replicas": 1024, "gpusPerPod": 64, "tensorParallelSize": 65536}),
    ("a model without an organisation", {"model": "gpt2"}),
    ("a model in the container", {"model": "/models/My Model".replace(" ", "_")}),
    ("a path in unicode", {"model": "/modèles/été"}),
    ("a quantization of GGUF files", {"model": "unsloth/Qwen3-0.6B-GGUF:Q4_K_M"}),
    ("hf://", {"model": "hf://org/name"}),
    ("s3://", {"model": "s3://bucket/path/to/model"}),
    ("oci://", {"model": "oci://registry.example.com/models/llama:1.0"}),
    ("pvc://", {"model": "pvc://claim/path"}),
    ("a model of 512 characters", {"model": "/" + "m" * 511}),
    ("no served names", {"servedModelNames": []}),
    ("16 served names", {"servedModelNames": [f"org/m-{i}:v1" for i in range(16)]}),
    ("an image by digest", {"image": "registry.example.com:5000/a/b@sha256:" + "0" * 64}),
    ("an unset default is filled by null", {"role": None, "router.weight": None}),
    ("no device at all", {"accelerator.resourceName": ""}),
    ("a slice of an accelerator", {"accelerator.resourceName": "nvidia.com/mig-3g.40gb"}),
    ("a resource claim", {"accelerator": {"resourceName": "", "resourceClaimTemplateName": "gpus"}}),
    ("another resource than the accelerator", {"resources.limits": {"cpu": 4, "memory": "64Gi", "rdma/hca": "1"}}),
    ("a quantity of zero", {"resources.requests": {"cpu": "0"}}),
    ("requests at their limits", {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "2000m", "memory": "1Gi"}}}),
    ("16 resources", {"resources.limits": {f"example.com/r{i}": 1 for i in range(16)}}),
    ("utilization 1", {"inferenceArgs.gpuMemoryUtilization": "1"}),
    ("utilization 1.0", {"inferenceArgs.gpuMemoryUtilization": "1.0"}),
    ("utilization .5", {"inferenceArgs.gpuMemoryUtilization": ".5"}),
    ("the least utilization", {"inferenceArgs.gpuMemoryUtilization": "0.0000000001"}),
    ("the largest seed", {"inferenceArgs.seed": 2**32 - 1}),
    ("one speculative token", {"inferenceArgs.speculativeDecoding": {"enabled": True, "numSpeculativeTokens": 1}}),
    ("lora switched off", {"inferenceArgs.lora": {"enabled": False, "maxLoras": 1}}),
    ("an adapter of the hub", {"inferenceArgs.lora.adapters": [{"name": "org/sql", "path": "org/sql-lora"}]}),
    ("64 arguments of 4096 characters", {"inferenceArgs.extraArgs": ["x" * 4096] * 64}),
    ("128 variables", {"env": [{"name": f"A{i}", "value": "1"} for i in range(128)]}),
    ("a variable in unicode", {"env": [{"name": "A", "value": "naïve ☃"}]}),
    (
        "variables from elsewhere",
        {
            "env": [
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}},
                {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1"}}},
            ]
        },
    ),
    ("a transfer", {"role": "prefill", "kvTransfer": {"connector": "NixlConnector", "port": 5600}}),
    ("a connector's own settings", {"role": "decode", "kvTransfer.extraConfig": {"backends": ["UCX"], "n": {"x": 1}}}),
    ("a decode instance without a transfer", {"role": "decode"}),
    ("a shared claim that exists", {"storage.modelCache": {"type": "persistentVolumeClaim", "claimName": "models"}}),
    (
        "an existing claim whose mode is its own affair",
        {"storage.modelCache": {"type": "persistentVolumeClaim", "claimName": "m", "accessMode": "ReadWriteOnce"}},
    ),
    ("an exclusive claim for one pod", {**ONE_POD, "storage.modelCache": CLAIM}),
    ("a shared new claim", {"storage.modelCache": {"type": "persistentVolumeClaim", "size": "1Ti"}}),
    ("a directory of the node", {"storage.modelCache": {"type": "hostPath", "hostPath": "/mnt/models"}}),
    ("a preload by its image", {"storage.preload": {"enabled": True, "image": "registry.example.com/fill:1"}}),
    ("a preload by a command of the engine's image", {"storage.preload": {"enabled": True, "command": ["sh"]}}),
    ("a preload that is switched off", {"storage": {"modelCache": {"type": "none"}, "preload": {"enabled": False}}}),
    ("no cache", {"storage.modelCache.type": "none"}),
    ("empty names mean none", {"scheduling": {"priorityClassName": "", "runtimeClassName": "", "queueName": ""}}),
    ("a node label of 63 characters", {"scheduling.nodeSelector": {"zone": "z" * 63}}),
    ("a toleration", {"scheduling.tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]}),
    (
        "every kind of affinity",
        {
            "scheduling.affinity": {
                "nodeAffinity": {
                    REQUIRED: {"nodeSelectorTerms": [NODE_TERM]},
                    PREFERRED: [{"weight": 1, "preference": NODE_TERM}],
                },
                "podAffinity": {REQUIRED: [TERM], PREFERRED: [{"weight": 100, "podAffinityTerm": TERM}]},
                "podAntiAffinity": {REQUIRED: [TERM]},
            }
        },
    ),
    (
        "a spread over zones",
        {
            "scheduling.topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": SELECTOR}
            ]
        },
    ),
    ("the lowest and a high port", {"network": {"basePort": 1024, "hostNetwork": True, "interface": "eth0"}}),
    ("weight 0", {"router": {"weight": 0, "maxConcurrency": 0, "tier": 0}}),
    ("weight one million", {"router.weight": 1_000_000}),
    ("no drain at all", {"lifecycle.drainTimeoutSeconds": 0}),
    ("a warm-up in unicode", {"lifecycle.warmup.prompt": "こんにちは"}),
    ("a budget in percent", {"podDisruptionBudget": {"minAvailable": "100%"}}),
    ("no budget", {"podDisruptionBudget": {"enabled": False}}),
    (
        "a restricted pod",
        {
            "security.podSecurityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "security.containerSecurityContext": {"capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True},
        },
    ),
    ("no errors at all in a canary", {"update.canary": {"enabled": True, "maxErrorRatio": "0"}}),
    ("any pod template", {"podTemplate": {"spec": {"containers": [{"name": "engine", "tty": True}]}}}),
    ("the operator's choice of topology", {"scheduling.colocationTopologyKey": REMOVED}),
]


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case[0])
def test_a_good_spec_is_accepted(server: Apiserver, case: tuple[str, dict[str, Any]]) -> None:
    answer = server.call("POST", CLUSTERS, cluster(case[1]), params=DRY)
    assert answer.status == 201, answer.message


@pytest.mark.parametrize("name", ["a", "a" * 40, "llama-3-70b-a"])
def test_a_name_of_up_to_40_characters_is_accepted(server: Apiserver, name: str) -> None:
    answer = server.call("POST", CLUSTERS, cluster(name=name), params=DRY)
    assert answer.status == 201, answer.message


def test_open_parts_keep_what_they_are_given(server: Apiserver) -> None:
    changes = {"role": "prefill", "kvTransfer.extraConfig": {"a": {"b": [1]}}, "podTemplate": {"spec": {"x": {}}}}
    spec = server.call("POST", CLUSTERS, cluster(changes), params=DRY).body["spec"]
    assert spec["kvTransfer"]["extraConfig"] == {"a": {"b": [1]}}
    assert spec["podTemplate"] == {"spec": {"x": {}}}


@pytest.mark.parametrize(("length", "status"), [(63, 201), (64, 422)])
def test_a_label_value_ends_at_63_characters(server: Apiserver, length: int, status: int) -> None:
    labelled = cluster()
    labelled["metadata"]["labels"] = {"serving.ai/fleet": "f" * length}
    answer = server.call("POST", CLUSTERS, labelled, params=DRY)
    assert answer.status == status, answer.message
