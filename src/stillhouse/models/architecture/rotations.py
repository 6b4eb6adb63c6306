"""Rotary position embeddings whose frequencies depend on the length of the whole sequence.

LongRoPE (Ding et al. 2024, arXiv:2402.13753; Phi-3 and later) has one set of frequencies for sequences up to
the original context and another for longer ones; dynamic NTK changes them with every token beyond the
context. Every token of a sequence is rotated by the set for its whole length, so sequences on both sides of
the switch cannot share a forward pass.
"""

from __future__ import annotations

from typing import Any


def rotation_switch(config: Any) -> int | None:
    """The length in tokens beyond which a model rotates differently; None where it never does.

    Args:
        config: of transformers.
    """
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    # Some models have one set of parameters, others one for each kind of layer.
    nested = [entry for entry in parameters.values() if isinstance(entry, dict) and "rope_type" in entry]
    switches = []
    for rotation in nested or [parameters]:
        kind = str(rotation.get("rope_type", "default"))
        if kind == "longrope":
            switches.append(rotation["original_max_position_embeddings"])
        elif "dynamic" in kind:
            switches.append(text.max_position_embeddings)
    return min(switches, default=None)
