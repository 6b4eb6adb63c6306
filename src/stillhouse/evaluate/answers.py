"""The same held-out prompts answered by every model, to be read side by side.

Greedy, and nothing is done about repetition: where a student loops, the report shows it.
A handful of answers is an impression and no measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from stillhouse.models import Message, Weights


@torch.no_grad()
def answer(weights: Weights, conversations: Sequence[Sequence[Message]], *, max_tokens: int) -> list[str]:
    """What the model says next in each conversation, in one padded batch.

    Args:
        conversations: each ends with a user's turn.
        max_tokens: longest answer; one that is cut there ends with " …".
    """
    from transformers import GenerationConfig

    if not conversations:
        return []
    tokenizer, model, template = weights.tokenizer, weights.model, weights.template
    prompts = [template.encode_prompt(tokenizer, list(turns)) for turns in conversations]
    ends = sorted(weights.end_ids)
    length = max(map(len, prompts))
    filler = ends[0] if ends else 0
    ids_BT = torch.tensor([[filler] * (length - len(ids)) + ids for ids in prompts])
    mask_BT = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts])
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_tokens,
        repetition_penalty=1.0,
        eos_token_id=ends or None,
        pad_token_id=filler,
    )
    output_BT = model.generate(  # pyright: ignore[reportCallIssue]
        input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device), generation_config=greedy
    )
    return [_text(weights, row[length:].tolist(), ends) for row in output_BT]


def _text(weights: Weights, ids: list[int], ends: list[int]) -> str:
    """The answer up to its first end token or stop text."""
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    text = str(weights.tokenizer.decode(ids[:end], skip_special_tokens=True))
    stopped = [text.index(stop) for stop in weights.template.stops if stop in text]
    if stopped:
        return text[: min(stopped)].strip()
    return text.strip() if end is not None else f"{text.strip()} …"
