"""Cost formulas: floating-point operations, bytes and seconds.

They depend on shapes of models and rates of a machine, not on recipes. The constants are
effective efficiencies of this code relative to the rates of :class:`Machine`; a comment
says what each was measured on. They are accurate to about a factor of 1.5, which is
sufficient for a plan.

Symbols: P parameters, V vocabulary, D hidden size, T tokens of a document.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Shares of the matrix-multiplication rate that model passes reach. SmolLM2-135M on 2 cores with 121 (float32)
# and 328 (bfloat16) GFLOP/s: forward 502 and 947 tokens/s, forward and backward 159 and 304.
PASS_FLOAT32 = 1.0
PASS_BFLOAT16 = 0.75
# Batched sampling of the same model by torch: 22, 107, 216, 262 tokens/s at batch 1, 8, 32, 64 in bfloat16.
DECODE_BFLOAT16 = 0.27
# llama.cpp, the same model in Q4_1, relative to the float32 rate: 304 tokens/s read, 169 written in 8 slots.
LLAMA_READ = 0.68
LLAMA_WRITE = 0.37
# Decoding one token at a time, either backend: every token reads the weights, at this share of the copy rate
# (llama.cpp: 103 tokens/s of 98 MB; torch: 22 tokens/s of 269 MB).
DECODE_BANDWIDTH = 0.45
# Softmax, divergence and gradient of one vocabulary entry at one token, as float32 operations at the matrix
# rate: 32 ns (26 ns for cross-entropy) at 86 GFLOP/s for V 49,152, D 576, skinny products included.
DIVERGENCE_ENTRY = 2700
CROSS_ENTROPY_ENTRY = 2200
# AdamW reads p, g, m, v and writes p, m, v in float32, and refreshes the bfloat16 copy.
ADAMW_BYTES = 30
# Loading: dequantising a GGUF file of 134.5 M parameters took 5.6 s without imports; safetensors are mapped.
IMPORT_S = 4.0
GGUF_LOAD_S = 15e-9
SAFETENSORS_LOAD_S = 3e-9
# A remote API, not measured: seconds until the first token, tokens/s after it.
API_FIRST_TOKEN_S = 1.0
API_TOKENS_PER_S = 50.0
# Verifying one short answer; a user's function is assumed to be as fast as math-verify.
VERIFY_S = {"code": 0.025, "math": 1e-3, "function": 1e-3, "reasoning_gym": 1e-4}
COMPARE_S = 5e-6

# Python with torch and transformers before any weights: 0.5 GB resident.
BASE_MEMORY = 500_000_000
# Activations kept for the backward pass, for each token and layer: about 16 D + 4 times the MLP's width.
KEPT_HIDDEN, KEPT_MLP = 16, 4
LOSS_CHUNK = 512
LOSS_BUFFERS = 4


@dataclass(frozen=True)
class Machine:
    """Rates of one machine, as measured by :func:`~stillhouse.plan.machine.measure_machine`."""

    float32_flops: float
    """Matrix multiplication, operations per second."""
    bfloat16_flops: float
    bytes_per_s: float
    """Copying: bytes read and written per second."""
    fast_bfloat16: bool
    """Whether `dtype: auto` selects bfloat16 on this machine."""


@dataclass(frozen=True)
class Shape:
    """The shape of a decoder-only transformer, as far as the cost depends on it."""

    layers: int
    layer_parameters: float
    """Parameters of one layer."""
    hidden: int
    intermediate: int
    vocab: int
    attention_width: int
    """Number of query heads times head size."""
    tied: bool
    """Whether the output head shares the weights of the embedding."""

    @property
    def body(self) -> float:
        """Parameters of all layers."""
        return self.layers * self.layer_parameters

    @property
    def head(self) -> int:
        """Parameters of the output head."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> float:
        """All parameters; a tied head counts once."""
        return self.body + self.head * (1 if self.tied else 2)


def gated_layer(hidden: int, intermediate: int, heads: int, kv_heads: int, head_dim: int) -> int:
    """Parameters of a layer of the Llama family: q and o, k and v, and the three matrices of a gated MLP."""
    return 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim + 3 * hidden * intermediate


def forward_flops(shape: Shape, tokens: float, *, context: float, head_tokens: float) -> float:
    """Operations of a forward pass over ``tokens``, with logits for ``head_tokens`` of them.

    Two for each parameter and token (Kaplan et al. 2020, arXiv:2001.08361, table 1), and for causal attention
    4 · width · context / 2 for each layer and token.
    """
    attention = 2 * shape.layers * shape.attention_width * context
    return tokens * (2 * shape.body + attention) + head_tokens * 2 * shape.head


def training_flops(
    shape: Shape, tokens: float, *, context: float, head_tokens: float, weights: bool, head: bool
) -> float:
    """Operations of forward and backward: each gradient, of inputs and of weights, costs one forward pass.

    Args:
        weights: whether the layers' weights are trained (not with adapters).
        head: whether the head is trained.
    """
    body = forward_flops(shape, tokens, context=context, head_tokens=0) * (3 if weights else 2)
    return body + head_tokens * 2 * shape.head * (3 if head else 2)


def pass_seconds(flops: float, machine: Machine, *, bfloat16: bool) -> float:
    """Seconds of a forward or backward pass over a batch of text."""
    rate = machine.bfloat16_flops * PASS_BFLOAT16 if bfloat16 else machine.float32_flops * PASS_FLOAT32
    return flops / rate


def loss_seconds(tokens: float, vocab: int, machine: Machine, *, divergence: bool) -> float:
    """Seconds of the loss between the head's matrix products, forward and backward."""
    entry = DIVERGENCE_ENTRY if divergence else CROSS_ENTROPY_ENTRY
    return tokens * vocab * entry / machine.float32_flops


def optimizer_seconds(steps: float, trained: float, machine: Machine) -> float:
    """Seconds of ``steps`` AdamW updates of ``trained`` parameters."""
    return steps * trained * ADAMW_BYTES / machine.bytes_per_s


def torch_generation_seconds(
    shape: Shape, prompt_tokens: float, new_tokens: float, batch: float, machine: Machine
) -> float:
    """Seconds to sample ``new_tokens`` in total in batches; each step reads the weights and computes."""
    bfloat16 = machine.fast_bfloat16
    read = pass_seconds(
        forward_flops(shape, prompt_tokens, context=0, head_tokens=0), machine, bfloat16=bfloat16
    )
    rate = DECODE_BFLOAT16 * (machine.bfloat16_flops if bfloat16 else machine.float32_flops)
    compute = 2 * (shape.body + shape.head) / rate
    step = weights_read_seconds(shape.parameters * (2 if bfloat16 else 4), machine)
    return read + new_tokens * (compute + step / batch)


def llama_generation_seconds(
    shape: Shape, size_bytes: float, prompt_tokens: float, new_tokens: float, slots: float, machine: Machine
) -> float:
    """Seconds to sample with llama.cpp, which keeps the weights quantised."""
    active = 2 * (shape.body + shape.head)
    read = prompt_tokens * active / (LLAMA_READ * machine.float32_flops)
    compute = active / (LLAMA_WRITE * machine.float32_flops)
    return read + new_tokens * max(compute, weights_read_seconds(size_bytes, machine) / slots)


def api_seconds(requests: float, tokens_each: float, concurrency: int) -> float:
    """Seconds for ``requests`` to an API, ``concurrency`` at a time."""
    return math.ceil(requests / concurrency) * (API_FIRST_TOKEN_S + tokens_each / API_TOKENS_PER_S)


def weights_read_seconds(size_bytes: float, machine: Machine) -> float:
    """Seconds to read a model's weights from memory once, as each decoded token does."""
    return size_bytes / (DECODE_BANDWIDTH * machine.bytes_per_s)


def training_memory(
    shape: Shape, trained: float, micro_tokens: int, *, bfloat16: bool, teacher_head: int
) -> float:
    """Bytes while training: float32 weights, gradients and two moments, a working copy, activations, and
    one chunk of the loss."""
    masters = 4 * shape.parameters + 12 * trained
    copy = 2 * shape.parameters if bfloat16 else 0
    kept = KEPT_HIDDEN * shape.hidden + KEPT_MLP * shape.intermediate
    activations = micro_tokens * shape.layers * kept * (2 if bfloat16 else 4)
    chunk = LOSS_CHUNK * shape.vocab * 4 * LOSS_BUFFERS
    return masters + copy + activations + chunk + 4 * teacher_head
