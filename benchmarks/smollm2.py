"""The embedded SmolLM2 as a directory of safetensors, for the benchmarks that need one."""

from __future__ import annotations

from pathlib import Path

from stillhouse.models import Weights, load_weights


def saved(directory: str | Path, dtype: str) -> Weights:
    """Writes weights, tokenizer and chat template to ``directory``; returns the weights."""
    weights = load_weights("embedded:smollm2", dtype=dtype)
    weights.tokenizer.chat_template = weights.template.source
    weights.model.save_pretrained(directory)
    weights.tokenizer.save_pretrained(directory)
    return weights
