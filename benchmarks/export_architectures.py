"""Measures how near llama.cpp is to transformers on every architecture that can be exported.

    python benchmarks/export_architectures.py            # prints the table of docs/export.md

For each architecture, a tiny random model (that of the tests) is exported in float32. llama.cpp reads prompts
of several lengths; the largest difference of a log-probability from transformers', over the whole vocabulary,
is reported. It needs the repository, xllamacpp and about a minute.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from stillhouse.export import export_gguf
from stillhouse.models import MODEL_TYPES

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS / "export"), str(TESTS / "models" / "gguf"), str(TESTS)]

from exported_models import LlamaCpp, byte_level, save, sentencepiece  # noqa: E402  (from the tests)

LENGTHS = (1, 7, 40, 200)
NAMES = {
    "llama": "Llama (SmolLM2, TinyLlama …)",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "qwen2": "Qwen 2, 2.5",
    "qwen2_moe": "Qwen 2 MoE",
    "qwen3": "Qwen 3",
    "qwen3_moe": "Qwen 3 MoE",
    "qwen3_5_text": "Qwen 3.5 (text)",
    "smollm3": "SmolLM3",
    "phi3": "Phi-3, 3.5, 4",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "granite": "Granite",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
}


def main() -> None:
    print("| models | `model_type` | GGUF | largest difference |\n|---|---|---|---|")
    for model_type, architecture in MODEL_TYPES.items():
        difference = largest_difference(model_type)
        print(
            f"| {NAMES[model_type]} | `{model_type}` | `{architecture.name}` | {difference:.1g} |", flush=True
        )


def largest_difference(model_type: str) -> float:
    """The largest difference of a log-probability, of a tiny random model."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = sentencepiece(prefix=False) if model_type.startswith("gemma") else byte_level()
        model = save(Path(directory) / "model", model_type, tokenizer)
        (file,) = export_gguf(Path(directory) / "model", ["f32"])
        rows = model.config.vocab_size
        ids = torch.randint(3, rows, (1, LENGTHS[-1]), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = model(ids).logits[0].log_softmax(-1)
        llama = LlamaCpp(file.path)
        return max(
            (llama.logprobs(ids[0, :length].tolist(), rows) - expected[length - 1]).abs().max().item()
            for length in LENGTHS
        )


if __name__ == "__main__":
    main()
