"""Compares a written GGUF file with its model by the log-probabilities of the next token, on real text.

1. Every tensor of the file is de-quantised and compared with the model's own.
2. transformers runs the model with the file's weights; llama.cpp runs the file. Both must agree, within what
   llama.cpp's own arithmetic for the type costs. This finds everything in the header that is wrong: rotary
   parameters, scales, windows, tied weights.
3. transformers also runs the model's own weights. The divergence from these is what the type costs, and is
   reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stillhouse.errors import IntegrityError, ModelError
from stillhouse.export.header import context_length
from stillhouse.export.rope import USE_TRANSFORMERS
from stillhouse.export.source import EMBEDDING, OUTPUT, Source
from stillhouse.export.streamed_model import streamed_logprobs
from stillhouse.export.tensors import read_weights
from stillhouse.models import Architecture, GgufFile, from_gguf, read_tensor, tensor_names

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES = (
    "The 3 quick brown foxes jumped over 1234567 lazy dogs' tails.\n\n\tIt's 25°C — naïve café, isn't it?",
    'def f(x: int) -> str:\n    return {"a": [x ** 2, 0xFF, 3.14e-10]}  # TODO\r\n\tif x != y && z || !w;\n',
    "数学は12345です。 ひらがなカタカナ 한국어 математика हिन्दी नमस्ते العربية עברית ไทย Ελληνικά",
    "🙂🙂👩\u200d👩\u200d👧 🇫🇷 ½ ² ≠ ∑ “quoted” «x» …—–",
    "   leading,  inner   and trailing spaces   \n \n\n\n \t \t\n",
    "DON'T I'll WE'VE HTTPServer CamelCase snake_case __init__(self) https://example.org/a?b=c#d",
    "$100,000.00 12:34:56 2026-11-24 +1 (555) 010-9999 1e6 ١٢٣٤ Ⅷ",
    "!!!...???  ((([[[{{{ ***bold*** `code` ~~~ ||| \\\\ //",
    " ",
    "x",
)
"""Texts of many scripts, digits, whitespace, code and emoji. In NFC, which llama.cpp does not establish."""
POSITIONS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Lengths of the prompts after which both predict a token."""
_TOP = 64  # tokens whose probabilities llama.cpp reports

WEIGHT_ERRORS = {
    "F32": 1e-6,
    "F16": 1e-3,
    "BF16": 4e-3,
    "Q8_0": 0.02,
    "Q6_K": 0.08,
    "Q5_K": 0.15,
    "Q5_1": 0.15,
    "Q5_0": 0.15,
    "Q4_K": 0.3,
    "Q4_0": 0.35,
}
"""ggml's type -> largest root mean square error of a tensor, relative to its values'. About three times what
normally distributed values have."""
_ROUNDING = 1e-7  # of norms that are stored plus one

RUNTIME_DIVERGENCE = {
    "f32": 0.002,
    "f16": 0.002,
    "bf16": 0.02,
    "q8_0": 0.1,
    "q6_k": 0.1,
    "q5_k_m": 0.1,
    "q4_k_m": 0.1,
    "q4_0": 0.1,
}
"""Quantisation -> largest divergence in nats per token between llama.cpp and transformers with the same
weights: what llama.cpp's arithmetic costs. It multiplies in float16, bfloat16, or (for the q types) with
hidden states rounded to 8 bits, and looks Gemma's GELU up in a table of float16. Measured on the tiny models
of every architecture and on SmolLM2-135M, the largest are 4e-5, 4e-6, 2e-4 and (q types) 0.03. Larger models
have larger hidden states, so the limits leave room. On SmolLM2 a rotary base ten times too large costs 0.16,
and an ignored scaling 2; a base twice too large costs 0.04, which the q types hide."""
EXPERT_DIVERGENCE = 5e-3
"""What is added for a mixture of experts: rounding can send a token to another expert. Measured: 6e-4."""


@dataclass(frozen=True)
class LogitComparison:
    """How near a file is to its model."""

    divergence: float
    """KL divergence in nats per token from the model to the model with the file's weights."""
    runtime_divergence: float | None
    """The same from the latter to llama.cpp; None where llama.cpp is not installed."""


def compare_logits(
    file: GgufFile, source: Source, architecture: Architecture, server: Any | None, quantisation: str
) -> LogitComparison:
    """Compares the file with its source.

    Args:
        server: llama.cpp's, with the file; None where it is not installed.

    Raises:
        IntegrityError: a tensor, or llama.cpp's log-probabilities, differ by more than the type costs.
    """
    ids = checked_ids(source)
    rows = [length - 1 for length in POSITIONS if length <= len(ids)]
    model_TV = streamed_logprobs(source.config, lambda key: _own_weights(source, key), ids)
    file_TV = streamed_logprobs(
        source.config, lambda key: _file_weights(file, source, architecture, key), ids
    )
    divergence = _divergence(model_TV, file_TV)
    if server is None:
        return LogitComparison(divergence, None)
    theirs = [llama_logprobs(server, source, ids[: row + 1]) for row in rows]
    runtime = float(
        np.mean([_divergence_of_top(ours, top) for ours, top in zip(file_TV[rows], theirs, strict=True)])
    )
    limit = RUNTIME_DIVERGENCE[quantisation] + EXPERT_DIVERGENCE * architecture.has_experts
    limit = max(limit, divergence / 2)  # a model that any rounding upsets
    if not runtime <= limit:
        raise IntegrityError(
            f"{file.path}: llama.cpp computes something else than the model: with the same weights, the "
            f"predictions differ by {runtime:.2g} nats per token, and {quantisation} explains {limit:.2g}",
            hint=f"The file was not kept. {USE_TRANSFORMERS}",
        )
    return LogitComparison(divergence, runtime)


def checked_ids(source: Source) -> list[int]:
    """Token ids of real text, as many as the check reads."""
    ids = source.tokenizer.encode("".join(SAMPLES), verbose=False)
    return ids[: min(POSITIONS[-1], context_length(source.config) - 1)]


def _own_weights(source: Source, key: str) -> Tensor:
    import torch

    return torch.from_numpy(read_weights(source, _stored(source, key)))


def _stored(source: Source, key: str) -> str:
    return EMBEDDING if key == OUTPUT and key not in source.shapes else key


def _file_weights(file: GgufFile, source: Source, architecture: Architecture, key: str) -> Tensor:
    """A parameter's values in the file. Raises IntegrityError where they are not the source's."""
    import torch
    from gguf import GGMLQuantizationType

    key = _stored(source, key)
    names = tensor_names(architecture, key)
    tensors = {name: read_tensor(file, name) for name in names}
    values = from_gguf(architecture, tensors, source.config.to_dict())
    own = read_weights(source, key)
    kind = GGMLQuantizationType(file.tensors[names[0]].type).name
    scale = float(np.sqrt(np.mean(np.square(own, dtype=np.float64))))
    error = float(np.sqrt(np.mean(np.square(values - own, dtype=np.float64))))
    if not error <= WEIGHT_ERRORS[kind] * scale + _ROUNDING:
        raise IntegrityError(
            f"{file.path}: the tensor {names[0]} was not written as it should be "
            f"(error {error / max(scale, 1e-30):.2g}; {kind} explains {WEIGHT_ERRORS[kind]:g})"
        )
    return torch.from_numpy(values)


def llama_logprobs(server: Any, source: Source, ids: Sequence[int]) -> Mapping[int, float]:
    """llama.cpp's log-probabilities of the likeliest tokens after ``ids``, by id.

    llama.cpp reports them only together with text, so a bias forces an answer of plain text. The bias changes
    the sampled token but not the probabilities, which are those of the model's own logits.
    """
    plain = source.tokenizer.encode("x", add_special_tokens=False)[-1]
    answer = server.handle_completions(
        {
            "prompt": list(ids),
            "n_predict": 1,
            "n_probs": _TOP,
            "logit_bias": [[plain, 1000.0]],
            "cache_prompt": True,
            "stream": False,
        }
    )
    if "choices" not in answer:
        raise ModelError(f"llama.cpp loads the file and cannot run it: {answer}", hint=USE_TRANSFORMERS)
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {item["id"]: item["logprob"] for item in top}


def _divergence(p_TV: Tensor, q_TV: Tensor) -> float:
    return float((p_TV.exp() * (p_TV - q_TV)).sum(-1).mean())


def _divergence_of_top(p_V: Tensor, top: Mapping[int, float]) -> float:
    """KL divergence from ``p_V`` to a distribution of which only the likeliest tokens are known.

    All other tokens are one outcome, which can only lessen the divergence.
    """
    ids = list(top)
    p = p_V[ids].double().exp().numpy()
    q = np.exp(np.array([top[number] for number in ids]))
    p_rest, q_rest = max(1 - p.sum(), 1e-12), max(1 - q.sum(), 1e-12)
    return float((p * np.log(p / q)).sum() + p_rest * np.log(p_rest / q_rest))
