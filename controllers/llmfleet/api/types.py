"""What an LLMCluster asks for, as frozen data: one dataclass for each object of the spec, one field for each of its
fields.

In: nothing. Out: `Spec` and its parts, with the CRD's defaults, so that a spec parses to the same value whether or
not the API server has filled them in. A field's JSON name is its Python name in camelCase unless its metadata says
otherwise; the parser and the test against the CRD both read the fields from here, so there is no second list. It
never validates: see `parse.py`.

`None` means "unset: vLLM's or Kubernetes' own value". An open object (Kubernetes' own shapes) stays a plain mapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

Open = Mapping[str, Any]
EMPTY: Final[Open] = MappingProxyType({})


class Role(StrEnum):
    """What an instance does with a request: all of it, its prompt, or its answer."""

    BOTH = "both"
    PREFILL = "prefill"
    DECODE = "decode"


class CacheType(StrEnum):
    """Where model files are kept."""

    EMPTY_DIR = "emptyDir"
    CLAIM = "persistentVolumeClaim"
    HOST_PATH = "hostPath"
    NONE = "none"


class Colocation(StrEnum):
    """How much the pods of one group belong on one node (or other topology domain)."""

    NONE = "None"
    PREFERRED = "Preferred"
    REQUIRED = "Required"


class LoadFailurePolicy(StrEnum):
    """What a decode engine does with a request whose KV blocks cannot be fetched."""

    FAIL = "fail"
    RECOMPUTE = "recompute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    resource_name: str | None = None
    resource_claim_template_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    requests: Open = field(default_factory=lambda: EMPTY)
    limits: Open = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeDecoding:
    enabled: bool = False
    method: str | None = None
    model: str | None = None
    num_speculative_tokens: int | None = None
    draft_tensor_parallel_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    name: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    enabled: bool = False
    max_loras: int | None = None
    max_lora_rank: int | None = None
    adapters: tuple[Adapter, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceArgs:
    dtype: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: Decimal | None = None
    block_size: int | None = None
    kv_cache_dtype: str | None = None
    quantization: str | None = None
    enforce_eager: bool | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    scheduling_policy: str | None = None
    trust_remote_code: bool | None = None
    load_format: str | None = None
    seed: int | None = None
    speculative_decoding: SpeculativeDecoding = SpeculativeDecoding()
    lora: Lora = Lora()
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KvTransfer:
    connector: str = "NixlConnector"
    port: int | None = None
    load_failure_policy: LoadFailurePolicy | None = None
    extra_config: Open = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCache:
    type: CacheType = CacheType.EMPTY_DIR
    claim_name: str = ""
    size: str | None = None
    storage_class_name: str | None = None
    access_mode: str = "ReadWriteMany"
    host_path: str = ""
    mount_path: str = "/models"
    read_only: bool = False
    delete_with_instance: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Preload:
    enabled: bool = False
    image: str = ""
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    shm_size: str | None = None
    model_cache: ModelCache = ModelCache()
    preload: Preload = Preload()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduling:
    node_selector: Open = field(default_factory=lambda: EMPTY)
    tolerations: tuple[Open, ...] = ()
    affinity: Open = field(default_factory=lambda: EMPTY)
    topology_spread_constraints: tuple[Open, ...] = ()
    priority_class_name: str = ""
    scheduler_name: str = ""
    runtime_class_name: str = ""
    colocation: Colocation = Colocation.PREFERRED
    colocation_topology_key: str = "kubernetes.io/hostname"
    queue_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    host_network: bool = False
    base_port: int = 8000
    interface: str = ""
    resources: Open = field(default_factory=lambda: EMPTY)
    annotations: Open = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    enabled: bool = True
    weight: int = 100
    max_concurrency: int = 0
    tier: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    enabled: bool = True
    prompt: str = "Hello"
    max_tokens: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifecycle:
    startup_timeout_seconds: int = 600
    drain_timeout_seconds: int = 300
    stall_timeout_seconds: int = 60
    restart_backoff_seconds: int = 10
    warmup: Warmup = Warmup()


@dataclass(frozen=True, slots=True, kw_only=True)
class DisruptionBudget:
    enabled: bool = True
    min_available: int | str | None = None
    max_unavailable: int | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretKeyRef:
    name: str = ""
    key: str = "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    service_account_name: str = ""
    hugging_face_token_secret_ref: SecretKeyRef = SecretKeyRef()
    pod_security_context: Open = field(default_factory=lambda: EMPTY)
    container_security_context: Open = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    enabled: bool = False
    weight_percent: int = 5
    analysis_seconds: int = 300
    max_error_ratio: Decimal = Decimal("0.01")
    max_ttft_ratio: Decimal = field(default=Decimal("1.5"), metadata={"json": "maxTTFTRatio"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    paused: bool = False
    canary: Canary = Canary()


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The whole spec of one instance."""

    model: str
    served_model_names: tuple[str, ...] = ()
    role: Role = Role.BOTH
    replicas: int
    gpus_per_pod: int
    tensor_parallel_size: int
    pipeline_parallel_size: int = 1
    image: str
    image_pull_policy: str | None = None
    image_pull_secrets: tuple[Open, ...] = ()
    accelerator: Accelerator = Accelerator()
    resources: Resources = Resources()
    inference_args: InferenceArgs = InferenceArgs()
    kv_transfer: KvTransfer | None = None
    env: tuple[Open, ...] = ()
    storage: Storage = Storage()
    scheduling: Scheduling = Scheduling()
    network: Network = Network()
    router: Router = Router()
    lifecycle: Lifecycle = Lifecycle()
    pod_disruption_budget: DisruptionBudget = DisruptionBudget()
    security: Security = Security()
    update: Update = Update()
    pod_template: Open = field(default_factory=lambda: EMPTY)

    @property
    def names(self) -> tuple[str, ...]:
        """The model names clients may ask for, without the adapters'."""
        return self.served_model_names or (self.model,)

    @property
    def slots(self) -> int:
        """How many requests the router may have in flight here."""
        return self.router.max_concurrency or self.inference_args.max_num_seqs or 256
