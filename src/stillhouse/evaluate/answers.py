"""Answers of every model to the same held-out prompts, for reading side by side.

Decoding is greedy and has no repetition penalty: if a student loops, the report shows it.
A handful of answers is an impression, not a measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from stillhouse.models import Message, Weights


@torch.no_grad()
def generate_answers(
    weights: Weights, conversations: Sequence[Sequence[Message]], *, max_tokens: int
) -> list[str]:
    """The model's next turn in each conversation, generated greedily in one padded batch.

    Args:
        conversations: each ends with a user's turn.
        max_tokens: longest answer; a longer one is cut and ends with " …".
    """
    from transformers import GenerationConfig

    if not conversations:
        return []
    tokenizer, model, template = weights.tokenizer, weights.model, weights.template
    prompts = [template.encode_prompt(tokenizer, list(turns)) for turns in conversations]
    ends = sorted(weights.end_ids)
    length = max(map(len, prompts))
    padding_id = ends[0] if ends else 0
    # padding on the left: every prompt then ends where generation starts
    ids_BT = torch.tensor([[padding_id] * (length - len(ids)) + ids for ids in prompts])
    mask_BT = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts])
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_tokens,
        repetition_penalty=1.0,
        eos_token_id=ends or None,
        pad_token_id=padding_id,
    )
    output_BT = model.generate(  # pyright: ignore[reportCallIssue]
        input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device), generation_config=greedy
    )
    return [_text(weights, row[length:].tolist(), ends) for row in output_BT]


def _text(weights: Weights, ids: list[int], ends: list[int]) -> str:
    """The answer up to its first end token or stop text."""
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    text = str(weights.tokenizer.decode(ids[:end], skip_special_tokens=True))
    stop_offsets = [text.index(stop) for stop in weights.template.stops if stop in text]
    if stop_offsets:
        return text[: min(stop_offsets)].strip()
    return text.strip() if end is not None else f"{text.strip()} …"
