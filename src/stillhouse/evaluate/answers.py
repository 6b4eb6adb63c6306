"""The same held-out prompts answered by every model, to be read side by side.

Greedy, and nothing is done about repetition: where a student loops, the report shows it.
A handful of answers is an impression and no measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ..models import Message, Weights


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
    tokenizer, model = weights.tokenizer, weights.model
    prompts = [weights.template.render(list(turns), add_generation_prompt=True) for turns in conversations]
    rows = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    stops = _stop_tokens(weights)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (stops[0] if stops else 0)
    length = max(map(len, rows))
    ids_BT = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows])
    mask_BT = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_tokens,
        repetition_penalty=1.0,
        eos_token_id=stops or None,
        pad_token_id=pad,
    )
    output_BT = model.generate(  # pyright: ignore[reportCallIssue]
        input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device), generation_config=greedy
    )
    return [_text(weights, row[length:].tolist(), stops) for row in output_BT]


def _stop_tokens(weights: Weights) -> list[int]:
    """Ids that end an answer, by the model's generation settings and by its tokenizer."""
    settings = weights.model.generation_config
    own = settings.eos_token_id if settings is not None else None
    ids = own if isinstance(own, list) else [own]
    return sorted({int(i) for i in [*ids, weights.tokenizer.eos_token_id] if i is not None})


def _text(weights: Weights, ids: list[int], stops: list[int]) -> str:
    """The answer up to its first stop token."""
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    text = str(weights.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()
    return text if end is not None else f"{text} …"
