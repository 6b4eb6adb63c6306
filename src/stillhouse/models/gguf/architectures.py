"""The architectures that are loaded from GGUF and exported to it: one table.

Add an architecture:

1. Add an entry to :data:`ARCHITECTURES`: its names, its tensors, its header fields, and the settings that
   llama.cpp does not read but derives from the architecture's name.
2. Add a case to `tests/export/test_export_weights.py`, which compares with transformers and with llama.cpp.
3. Run `python benchmarks/export_architectures.py`, which measures it for docs/export.md.

Facts from llama.cpp's `convert_hf_to_gguf.py` and `src/models`, and the models' own configuration files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stillhouse.models.gguf.layouts import (
    MINUS_EXP,
    PLUS_ONE,
    Layout,
    Settings,
    chain,
    interleaved_heads,
    tiled_value_heads,
    without_axis,
)

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class MixedLayers:
    """Layers of two kinds: every nth attends to the whole sequence."""

    other: str
    """transformers' layer type of the other layers: `sliding_attention` or `linear_attention`."""
    period: int
    """n in the published models."""
    key: str
    """Suffix of the header field that holds n."""


@dataclass(frozen=True)
class Architecture:
    """One architecture, as GGUF and transformers name and store it."""

    name: str
    """GGUF's `general.architecture`."""
    model_types: tuple[str, ...]
    """transformers' `model_type`s that are exported as this one; a file is loaded as the first."""
    model_class: str
    """transformers' class."""
    modules: Mapping[str, str]
    """GGUF's name -> transformers' name, of the modules of a layer (both with `.weight` or `.bias`). Several
    GGUF tensors of one transformers name are its equal parts, along the second axis from the end."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """The same for single parameters, with complete names."""
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """GGUF's name without suffix -> how the values differ. All others are stored as they are."""
    counts: Mapping[str, str] = field(default_factory=dict)
    """Header field (suffix) -> transformers' setting, of whole numbers that only this architecture has."""
    factors: Mapping[str, str] = field(default_factory=dict)
    """The same for real numbers."""
    derived: Mapping[str, Callable[[Settings], Any]] = field(default_factory=dict)
    """Header field (suffix) -> its value, where no single setting holds it. Written, and not read."""
    requires: Mapping[str, Any] = field(default_factory=dict)
    """transformers' setting -> its only supported value, or a function that computes it from the settings.
    llama.cpp does not read these, so a model with another value would load and answer wrongly."""
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")
    partial_rotary: bool = False
    """Whether a rotary dimension below the head's size is supported."""
    mixed: MixedLayers | None = None
    """For models with layers of two kinds. Without it llama.cpp has no sliding window for this architecture,
    and the exported context ends where a window begins."""
    optional_bias: bool = False
    """Whether `attention_bias` can be set; the others never or always have biases."""
    has_head_dim: bool = False
    """Whether `head_dim` is a setting of transformers' configuration."""
    needs_output: bool = False
    """Whether llama.cpp requires `output.weight`, also where it is tied to the embedding."""

    @property
    def has_experts(self) -> bool:
        """Whether it is a mixture of experts."""
        return "expert_count" in self.counts

    def required(self, settings: Settings) -> dict[str, Any]:
        """The supported value of each setting in :attr:`requires`."""
        return {key: value(settings) if callable(value) else value for key, value in self.requires.items()}


def head_size(settings: Settings) -> int:
    """The width of one attention head."""
    return settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]


MODEL_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
"""GGUF's name -> transformers' name, of modules outside of the layers."""
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
}
_LLAMA = _ATTENTION | {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_GEMMA = _LLAMA | {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OLMO = {name: module for name, module in _LLAMA.items() if name not in ("attn_norm", "ffn_norm")} | {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",  # gate and up in one tensor, in llama.cpp too
    "ffn_down": "mlp.down_proj",
}
_MOE = _ATTENTION | {"ffn_gate_inp": "mlp.gate"}
_EXPERTS = {
    "ffn_gate_exps.weight": "mlp.experts.gate_up_proj",
    "ffn_up_exps.weight": "mlp.experts.gate_up_proj",
    "ffn_down_exps.weight": "mlp.experts.down_proj",
}
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_QWEN35 = {name: module for name, module in _LLAMA.items() if name != "ffn_norm"} | {
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}

_INTERLEAVED = {
    "attn_q": interleaved_heads("num_attention_heads"),
    "attn_k": interleaved_heads("num_key_value_heads"),
}
_GEMMA_NORMS = {name: PLUS_ONE for name in (*_GEMMA, "output_norm") if name.endswith("norm")}
_QWEN35_LAYOUTS = {
    name: PLUS_ONE for name in (*_QWEN35, "output_norm") if name.endswith("norm") and name != "ssm_norm"
} | {
    "attn_qkv": tiled_value_heads(keys_first=True),
    "attn_gate": tiled_value_heads(),
    "ssm_beta": tiled_value_heads(single=True),
    "ssm_alpha": tiled_value_heads(single=True),
    "ssm_a": chain(tiled_value_heads(single=True), MINUS_EXP),
    "ssm_dt": tiled_value_heads(single=True),
    "ssm_conv1d": chain(tiled_value_heads(keys_first=True), without_axis(1)),
    "ssm_out": tiled_value_heads(axis=1),
}

_SILU = {"hidden_act": "silu"}
_PLAIN_SILU = _SILU | {"attention_bias": False}
_ROPE_WITH_FACTORS = ("default", "linear", "yarn", "llama3", "longrope")
_GELU = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
_MOE_EVERYWHERE = {"decoder_sparse_step": 1, "mlp_only_layers": []}
_WINDOW_PERIOD = "attention.sliding_window_pattern"


def _gemma_scale(layers_of_27b: int) -> Callable[[Settings], int]:
    """The attention scale of a Gemma; the 27B, which llama.cpp knows by its layers, has another."""

    def scale(settings: Settings) -> int:
        if settings["num_hidden_layers"] == layers_of_27b:
            return settings["hidden_size"] // settings["num_attention_heads"]
        return head_size(settings)

    return scale


ARCHITECTURES = (
    Architecture(
        "llama",
        ("llama", "mistral"),
        "LlamaForCausalLM",
        _LLAMA,
        layouts=_INTERLEAVED,
        optional_bias=True,
        has_head_dim=True,
        requires=_SILU | {"mlp_bias": False},
        rope_types=_ROPE_WITH_FACTORS,
    ),
    Architecture(
        "llama",
        ("mixtral",),
        "MixtralForCausalLM",
        _MOE,
        _EXPERTS,
        layouts=_INTERLEAVED,
        has_head_dim=True,
        counts={"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        requires=_SILU,
        rope_types=_ROPE_WITH_FACTORS,
    ),
    Architecture("qwen2", ("qwen2",), "Qwen2ForCausalLM", _LLAMA, requires=_SILU),
    Architecture(
        "qwen2moe",
        ("qwen2_moe",),
        "Qwen2MoeForCausalLM",
        _MOE | _SHARED_EXPERT,
        _EXPERTS,
        layouts={"ffn_gate_inp_shexp": without_axis(0)},
        counts={
            "expert_count": "num_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "moe_intermediate_size",
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
        },
        requires=_SILU | _MOE_EVERYWHERE | {"norm_topk_prob": False, "qkv_bias": True},
        needs_output=True,
    ),
    Architecture("qwen3", ("qwen3",), "Qwen3ForCausalLM", _LLAMA, requires=_PLAIN_SILU, has_head_dim=True),
    Architecture(
        "qwen3moe",
        ("qwen3_moe",),
        "Qwen3MoeForCausalLM",
        _MOE,
        _EXPERTS,
        counts={
            "expert_count": "num_local_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "moe_intermediate_size",
        },
        requires=_PLAIN_SILU | _MOE_EVERYWHERE | {"norm_topk_prob": True},
        has_head_dim=True,
    ),
    Architecture(
        "qwen35",
        ("qwen3_5_text",),
        "Qwen3_5ForCausalLM",
        _QWEN35,
        {"ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias"},
        layouts=_QWEN35_LAYOUTS,
        counts={
            "ssm.conv_kernel": "linear_conv_kernel_dim",
            "ssm.state_size": "linear_key_head_dim",
            "ssm.group_count": "linear_num_key_heads",
            "ssm.time_step_rank": "linear_num_value_heads",
        },
        derived={
            "ssm.inner_size": lambda settings: (
                settings["linear_value_head_dim"] * settings["linear_num_value_heads"]
            ),
            # The shares of time, height and width; in text all three positions are the same.
            "rope.dimension_sections": lambda settings: [
                *settings["rope_parameters"].get("mrope_section", [11, 11, 10]),
                0,
            ],
        },
        requires=_PLAIN_SILU | {"linear_value_head_dim": lambda settings: settings["linear_key_head_dim"]},
        partial_rotary=True,
        has_head_dim=True,
        mixed=MixedLayers("linear_attention", 4, "full_attention_interval"),
    ),
    Architecture(
        "smollm3",
        ("smollm3",),
        "SmolLM3ForCausalLM",
        _LLAMA,
        layouts=_INTERLEAVED,
        requires=_PLAIN_SILU
        | {
            "mlp_bias": False,
            "no_rope_layers": lambda settings: [
                int((i + 1) % 4 != 0) for i in range(settings["num_hidden_layers"])
            ],
        },
    ),
    Architecture(
        "phi3",
        ("phi3",),
        "Phi3ForCausalLM",
        _PHI,
        requires=_SILU,
        rope_types=("default", "longrope"),
        partial_rotary=True,
    ),
    Architecture("olmo2", ("olmo2",), "Olmo2ForCausalLM", _OLMO, requires=_PLAIN_SILU, needs_output=True),
    Architecture(
        "olmo2",
        ("olmo3",),
        "Olmo3ForCausalLM",
        _OLMO,
        requires=_PLAIN_SILU,
        mixed=MixedLayers("sliding_attention", 4, _WINDOW_PERIOD),
        needs_output=True,
    ),
    Architecture(
        "granite",
        ("granite",),
        "GraniteForCausalLM",
        _LLAMA,
        layouts=_INTERLEAVED,
        optional_bias=True,
        factors={
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
        requires=_SILU | {"mlp_bias": False},
        rope_types=_ROPE_WITH_FACTORS,
    ),
    Architecture(
        "gemma2",
        ("gemma2",),
        "Gemma2ForCausalLM",
        _GEMMA,
        layouts=_GEMMA_NORMS,
        factors={
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        requires=_GELU | {"query_pre_attn_scalar": _gemma_scale(layers_of_27b=46)},
        mixed=MixedLayers("sliding_attention", 2, _WINDOW_PERIOD),
        has_head_dim=True,
    ),
    Architecture(
        "gemma3",
        ("gemma3_text",),
        "Gemma3ForCausalLM",
        _GEMMA,
        layouts=_GEMMA_NORMS,
        requires=_GELU
        | {
            "query_pre_attn_scalar": _gemma_scale(layers_of_27b=62),
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
        mixed=MixedLayers("sliding_attention", 6, _WINDOW_PERIOD),
        has_head_dim=True,
    ),
)
"""Every architecture. Two that share GGUF's name differ in experts or windows."""

MODEL_TYPES = {
    model_type: architecture for architecture in ARCHITECTURES for model_type in architecture.model_types
}
"""transformers' `model_type` -> the architecture."""


def named(name: str, *, experts: bool, windows: bool) -> Architecture | None:
    """The architecture of a GGUF file.

    Args:
        name: the file's `general.architecture`.
        experts: whether its header declares experts.
        windows: whether its header declares a sliding window.
    """
    candidates = [a for a in ARCHITECTURES if a.name == name and a.has_experts == experts]
    with_windows = [a for a in candidates if windows == (a.mixed is not None)]
    return next(iter(with_windows or candidates), None)


def tensor_names(architecture: Architecture, parameter: str) -> list[str]:
    """GGUF's tensors of a transformers parameter: one, or its equal parts. Empty where GGUF has none."""
    module, _, suffix = parameter.rpartition(".")
    for name, own in MODEL_TENSORS.items():
        if own == module:
            return [f"{name}.{suffix}"]
    layer, _, rest = parameter.removeprefix("model.layers.").partition(".")
    names = [f"blk.{layer}.{name}" for name, own in architecture.parameters.items() if own == rest]
    module, _, suffix = rest.rpartition(".")
    return names or [
        f"blk.{layer}.{name}.{suffix}" for name, own in architecture.modules.items() if own == module
    ]


def parameter_name(architecture: Architecture, name: str) -> str | None:
    """The transformers parameter of which GGUF's tensor ``name`` is a part; None where there is none."""
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    layer, rest = (f"model.layers.{match[1]}.", match[2]) if match else ("", name)
    if match and rest in architecture.parameters:
        return layer + architecture.parameters[rest]
    module, _, suffix = rest.rpartition(".")
    own = (architecture.modules if match else MODEL_TENSORS).get(module)
    return f"{layer}{own}.{suffix}" if own and suffix in ("weight", "bias") else None


def to_gguf(
    architecture: Architecture, names: list[str], values: np.ndarray, settings: Settings
) -> list[np.ndarray]:
    """The values of GGUF's tensors ``names``, from the parameter that they share."""
    import numpy as np

    parts = np.split(values, len(names), axis=-2) if len(names) > 1 else [values]
    layouts = [architecture.layouts.get(base_name(name)) for name in names]
    return [
        layout.to_gguf(part, settings) if layout else part
        for layout, part in zip(layouts, parts, strict=True)
    ]


def from_gguf(
    architecture: Architecture, tensors: Mapping[str, np.ndarray], settings: Settings
) -> np.ndarray:
    """The values of a transformers parameter, from all of GGUF's ``tensors`` of it, in order."""
    import numpy as np

    parts = [
        layout.from_gguf(values, settings)
        if (layout := architecture.layouts.get(base_name(name)))
        else values
        for name, values in tensors.items()
    ]
    return np.concatenate(parts, axis=-2) if len(parts) > 1 else parts[0]


def base_name(name: str) -> str:
    """GGUF's name without layer and suffix: `attn_q` of `blk.0.attn_q.weight`."""
    return name.removeprefix("blk.").lstrip("0123456789.").partition(".")[0]
