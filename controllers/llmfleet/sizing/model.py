"""Read the shape of a model from its Hugging Face `config.json`.

In: the parsed file, and the checkpoint's own size when its index is there. Out: `Model`: parameters and bytes by part,
KV bytes a token, which parallel sizes divide it; or a `ConfigError` that names the field. Counted are the matrices,
embeddings and norms of the text model; biases and vision towers are not. It never opens a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llmfleet.sizing.quantization import ConfigError, Quantization, read_quantization

Config = Mapping[str, Any]

PLAIN_MLP: Final = frozenset(
    {"bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "mpt", "opt", "phi", "starcoder2"}
)
"""Families whose feed-forward block has two matrices; all others have three (gate, up, down)."""
ALIASES: Final = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "experts": ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"),
    "experts_per_token": ("num_experts_per_tok", "experts_per_token", "moe_top_k", "moe_topk"),
}
UNKNOWN_LAYERS: Final = ("linear_attention", "mamba", "recurrent", "conv", "hybrid")
LARGEST: Final = 10**8
"""No size of a model is above this; what is above it is no size."""
ELEMENT: Final = 2
"""Bytes of a bfloat16 or float16 value; vLLM casts float32 checkpoints to one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """How a layer attends, and what it keeps for each token."""

    heads: int
    kv_heads: int
    head_dim: int
    latent: int = 0
    """Width of the compressed KV of multi-head latent attention (MLA), its rotary part included; 0: not MLA."""
    window: int = 0
    """Tokens a sliding-window layer keeps; 0: none slides."""
    sliding_layers: int = 0

    @property
    def kind(self) -> str:
        if self.latent:
            return "MLA"
        return "MHA" if self.kv_heads == self.heads else "MQA" if self.kv_heads == 1 else "GQA"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The sparse part of a mixture of experts."""

    count: int
    per_token: int
    layers: int
    each: int
    """Parameters of one expert in one layer."""

    @property
    def parameters(self) -> int:
        return self.count * self.layers * self.each

    @property
    def active(self) -> int:
        return self.per_token * self.layers * self.each

    def touched(self, batch: float) -> float:
        """Share of the experts that a step with this many tokens reads, when tokens choose evenly."""
        return 1.0 - float((1.0 - self.per_token / self.count) ** max(batch, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What arithmetic needs to know of a model."""

    family: str
    hidden: int
    layers: int
    intermediate: int
    """Widest feed-forward activation of one token."""
    vocabulary: int
    max_length: int
    attention: Attention
    experts: Experts | None
    attention_parameters: int
    dense_parameters: int
    """Feed-forward blocks that every token passes: dense layers and shared experts."""
    embedding_parameters: int
    """Embedding, output head, norms and routers: never quantized."""
    quantization: Quantization
    checkpoint_bytes: int = 0
    """Size of the weights as the checkpoint's index says; 0: not known."""

    @property
    def parameters(self) -> int:
        sparse = self.experts.parameters if self.experts else 0
        return self.attention_parameters + self.dense_parameters + self.embedding_parameters + sparse

    @property
    def active_parameters(self) -> int:
        """Parameters that compute one token; the embedding is only looked up."""
        sparse = self.experts.active if self.experts else 0
        return self.attention_parameters + self.dense_parameters + self.vocabulary * self.hidden + sparse

    @property
    def attention_bytes(self) -> float:
        each = self.quantization.bytes if self.quantization.attention else ELEMENT
        return self.attention_parameters * each

    @property
    def expert_bytes(self) -> float:
        return self.experts.parameters * self.quantization.bytes if self.experts else 0.0

    @property
    def counted_bytes(self) -> float:
        dense = self.dense_parameters * self.quantization.bytes
        return self.attention_bytes + dense + self.embedding_parameters * ELEMENT + self.expert_bytes

    @property
    def weight_bytes(self) -> float:
        """The checkpoint's own figure, unless a step of quantization changes it on load."""
        return float(self.checkpoint_bytes) if self.checkpoint_bytes else self.counted_bytes

    def read_bytes(self, batch: float) -> float:
        """Bytes of weights one step reads: all, without the experts nobody chose and without the embedding table."""
        idle = self.expert_bytes * (1 - self.experts.touched(batch)) if self.experts else 0.0
        return self.weight_bytes - idle - self.vocabulary * self.hidden * ELEMENT

    def kv_bytes(self, element: int, context: float) -> float:
        """Bytes a token of a context of this length holds on average, over all layers and all GPUs."""
        attention = self.attention
        each = attention.latent or 2 * attention.kv_heads * attention.head_dim
        full = self.layers - attention.sliding_layers
        sliding = attention.sliding_layers * min(1.0, attention.window / max(context, 1.0)) if attention.window else 0.0
        return (full + sliding) * each * element

    def splits(self, tensor: int) -> str:
        """Why this tensor parallel size cannot be used; empty when it can."""
        heads, kv = self.attention.heads, self.attention.kv_heads
        if heads % tensor:
            return f"{heads} attention heads do not divide by {tensor}"
        if not self.attention.latent and kv % tensor and tensor % kv:
            return f"{kv} KV heads and {tensor} GPUs do not divide each other"
        return ""

    def kv_copies(self, tensor: int) -> float:
        """How many times a token's KV is stored over the tensor parallel GPUs: heads that are too few are repeated,
        and MLA's one latent vector is on every GPU."""
        return float(tensor) if self.attention.latent else max(1.0, tensor / self.attention.kv_heads)


def read_model(config: Config, *, quantization: str = "", checkpoint_bytes: int = 0) -> Model:
    """The model that a `config.json` describes; `quantization` is what vLLM is told to do on load."""
    if not isinstance(config, Mapping):
        raise ConfigError("config.json: not an object")
    text = text_part(config)
    refuse_unknown(text)
    hidden, layers = integer(text, "hidden_size"), integer(text, "num_hidden_layers")
    attention = read_attention(text, hidden, layers)
    family = str(text.get("model_type") or config.get("model_type") or "unknown")
    found = read_quantization(text.get("quantization_config") or config.get("quantization_config"), quantization)
    matrices = 2 if family in PLAIN_MLP else 3
    inter = integer(text, "intermediate_size", default=4 * hidden)
    experts, dense = read_experts(text, family, hidden, layers, inter, matrices)
    vocabulary = integer(text, "vocab_size")
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", family in ("gpt2", "gemma"))))
    gates = experts.count * experts.layers * hidden if experts else 0
    return Model(
        family=family,
        hidden=hidden,
        layers=layers,
        intermediate=inter if not experts else max(inter, experts.per_token * experts.each // (matrices * hidden)),
        vocabulary=vocabulary,
        max_length=integer(text, "max_position_embeddings", default=0) or integer(text, "n_positions", default=4096),
        attention=attention,
        experts=experts,
        attention_parameters=layers * attention_parameters(text, attention, hidden),
        dense_parameters=dense,
        embedding_parameters=vocabulary * hidden * (1 if tied else 2) + (2 * layers + 1) * hidden + gates,
        quantization=found,
        checkpoint_bytes=0 if found.on_load else checkpoint_bytes,
    )


def text_part(config: Config) -> Config:
    """The language model inside a multimodal one."""
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), Mapping):
            return {**{k: v for k, v in config.items() if k == "dtype"}, **config[key]}
    return config


def refuse_unknown(text: Config) -> None:
    """Models that keep a state instead of KV need other arithmetic."""
    kinds = {*words(text, "layer_types"), str(text.get("model_type"))}
    for kind in sorted(kinds):
        if any(word in kind for word in UNKNOWN_LAYERS):
            raise ConfigError(
                f"{kind}: layers without a KV cache are not modelled; measure this model with a load test"
            )


def read_attention(text: Config, hidden: int, layers: int) -> Attention:
    heads = integer(text, "num_attention_heads")
    if integer(text, "kv_lora_rank", default=0):
        latent = integer(text, "kv_lora_rank") + integer(text, "qk_rope_head_dim")
        width = integer(text, "qk_nope_head_dim") + integer(text, "qk_rope_head_dim")
        return Attention(heads=heads, kv_heads=heads, head_dim=width, latent=latent)
    kv = integer(text, "num_key_value_heads", default=1 if text.get("multi_query") else heads)
    if not kv or kv > heads or heads % kv:
        raise ConfigError(f"num_key_value_heads: {kv} does not divide num_attention_heads: {heads}")
    window, sliding = read_window(text, layers)
    return Attention(
        heads=heads,
        kv_heads=kv,
        head_dim=integer(text, "head_dim", default=0) or max(1, hidden // heads),
        window=window,
        sliding_layers=sliding,
    )


def read_window(text: Config, layers: int) -> tuple[int, int]:
    """Tokens a sliding layer keeps, and how many layers slide."""
    window = integer(text, "sliding_window", default=0)
    if not window or text.get("use_sliding_window") is False:
        return 0, 0
    kinds = words(text, "layer_types")
    if kinds:
        return window, sum(kind == "sliding_attention" for kind in kinds)
    if pattern := integer(text, "sliding_window_pattern", default=0):
        return window, layers - layers // pattern
    return window, layers if text.get("model_type") in ("mistral", "mixtral") else 0


def attention_parameters(text: Config, attention: Attention, hidden: int) -> int:
    """Matrices of one layer's attention."""
    heads, width = attention.heads, attention.head_dim
    if not attention.latent:
        return 2 * hidden * heads * width + 2 * hidden * attention.kv_heads * width
    rank, rope = integer(text, "kv_lora_rank"), integer(text, "qk_rope_head_dim")
    nope, value = integer(text, "qk_nope_head_dim"), integer(text, "v_head_dim")
    lora = integer(text, "q_lora_rank", default=0)
    query = lora * (hidden + heads * width) if lora else hidden * heads * width
    return query + hidden * (rank + rope) + rank * heads * (nope + value) + heads * value * hidden


def read_experts(
    text: Config, family: str, hidden: int, layers: int, inter: int, matrices: int
) -> tuple[Experts | None, int]:
    """The sparse part, and the parameters of the feed-forward blocks that every token passes."""
    count = integer(text, "experts", default=0)
    if count <= 1:
        return None, layers * matrices * hidden * inter
    width = integer(text, "moe_intermediate_size", default=inter)
    sparse = sparse_layers(text, layers)
    shared = integer(text, "shared_expert_intermediate_size", default=0)
    shared = shared or integer(text, "n_shared_experts", default=0) * width
    dense_width = inter
    if family.startswith("llama4"):
        shared, dense_width = inter, integer(text, "intermediate_size_mlp", default=inter)
    per_token = integer(text, "experts_per_token")
    if per_token > count:
        raise ConfigError(f"num_experts_per_tok: {per_token} is more than the {count} experts")
    dense = matrices * hidden * (sparse * shared + (layers - sparse) * dense_width)
    return Experts(count=count, per_token=per_token, layers=sparse, each=matrices * hidden * width), dense


def sparse_layers(text: Config, layers: int) -> int:
    """Layers with experts: after the first dense ones, every n-th, less those that are named dense."""
    first = integer(text, "first_k_dense_replace", default=0)
    step = integer(text, "decoder_sparse_step", default=0) or integer(text, "interleave_moe_layer_step", default=0) or 1
    named = {layer for layer in items(text, "mlp_only_layers") if isinstance(layer, int)}
    return sum(layer >= first and (layer + 1) % step == 0 and layer not in named for layer in range(layers))


def items(text: Config, key: str) -> list[Any]:
    """A list of the file; none when it is missing."""
    value = text.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConfigError(f"{key}: {value!r} is not a list")
    return value


def words(text: Config, key: str) -> list[str]:
    return [str(one) for one in items(text, key)]


def integer(text: Config, key: str, default: int | None = None) -> int:
    """A whole number of the file, under any of its names."""
    for name in ALIASES.get(key, (key,)):
        value = text.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{name}: {value!r} is not a whole number")
        if value > LARGEST:
            raise ConfigError(f"{name}: {value} is too large")
        if value == 0 and default is None:
            raise ConfigError(f"{name}: 0 is too small")
        return value
    if default is None:
        raise ConfigError(f"{ALIASES.get(key, (key,))[0]}: missing; is this the config.json of a language model?")
    return default
