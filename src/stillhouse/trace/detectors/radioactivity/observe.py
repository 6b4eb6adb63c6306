"""The transcript of the radioactivity test: what the suspect writes, or predicts, on the teacher's tokens.

Shapes: T tokens of a text, B texts of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from stillhouse.errors import StillhouseError
from stillhouse.hashing import seed_for_item
from stillhouse.models import Reply, Request, Sampling, Weights, tokenizer_difference
from stillhouse.trace.delivered_log import Delivered
from stillhouse.trace.detectors.transcript import empty_transcript
from stillhouse.trace.suspects.base import GenerateFn

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("account", pa.string()),
        ("mode", pa.string()),
        ("context", pa.list_(pa.int32())),  # ids before the text: the prompt
        ("tokens", pa.list_(pa.int32())),  # ids of the text
        ("predicted", pa.list_(pa.int32())),  # open: the suspect's likeliest next token after each of them
        (
            "text",
            pa.string(),
        ),  # the answer (closed) or the delivered text (open); null with an error
        ("error", pa.string()),
    ]
)
FORWARD_TOKENS = 2048
"""Tokens of one forward pass in open mode, including padding."""


def observe_closed(
    ask: GenerateFn,
    rows: Sequence[Delivered],
    tokenizer: PreTrainedTokenizerFast,
    *,
    sampling: Sampling = Sampling(max_tokens=256),  # noqa: B008  frozen
    seed: int = 0,
) -> pa.Table:
    """The suspect's answers, in a table of :data:`SCHEMA`; one row for each prompt and account.

    Args:
        ask: sends requests to the suspect.
        rows: delivered outputs, of which only the prompts are used.
        tokenizer: the teacher's; the watermark is in its tokens.
        sampling: settings of the answers.
        seed: seed of the answers.
    """
    distinct = list({(row.account, str(row.prompt)): row for row in rows if row.prompt}.values())
    if not distinct:
        return empty_transcript(
            SCHEMA, "the log has texts without prompts, so there is nothing to ask the suspect"
        )
    requests = [
        Request(row.id, list(row.prompt), replace(sampling, seed=seed_for_item(seed, row.id)))
        for row in distinct
    ]
    answers = [reply.text if isinstance(reply, Reply) else reply for reply in ask(requests)]
    return closed_transcript(distinct, answers, tokenizer)


def observe_open(
    suspect: Weights,
    rows: Sequence[Delivered],
    tokenizer: PreTrainedTokenizerFast,
    *,
    progress: Callable[[int], None] | None = None,
) -> pa.Table:
    """The suspect's likeliest next tokens throughout the delivered texts, in a table of :data:`SCHEMA`.

    Args:
        tokenizer: the teacher's; the suspect must have the same.
        progress: called with the number of texts of each batch.
    """
    if difference := tokenizer_difference(suspect.tokenizer, tokenizer):
        return empty_transcript(
            SCHEMA,
            f"open mode needs the teacher's tokenizer in the suspect, and it has another: {difference}. "
            "Closed mode works with any.",
        )
    longest = getattr(suspect.model.config, "max_position_embeddings", None)
    texts = []
    for row in rows:
        context = suspect.template.encode_prompt(tokenizer, row.prompt) if row.prompt else []
        ids = _encode(tokenizer, row.output)
        texts.append((context[:longest], ids[: None if longest is None else max(0, longest - len(context))]))
    predicted: list[list[int]] = [[] for _ in texts]
    # By length, so that batches need little padding.
    order = sorted((i for i, (_, ids) in enumerate(texts) if ids), key=lambda i: _length(texts[i]))
    for batch in _batches(order, [_length(text) for text in texts]):
        likeliest = _likeliest(suspect, [texts[i][0] + texts[i][1] for i in batch])
        for i, ids_T in zip(batch, likeliest, strict=True):
            predicted[i] = ids_T[len(texts[i][0]) : _length(texts[i])].tolist()
        if progress:
            progress(len(batch))
    transcript = [
        {
            "id": row.id,
            "account": row.account,
            "mode": "open",
            "context": context,
            "tokens": ids,
            "predicted": likely,
            "text": row.output,
        }
        for row, (context, ids), likely in zip(rows, texts, predicted, strict=True)
    ]
    return pa.Table.from_pylist(transcript, SCHEMA)


def closed_transcript(
    rows: Sequence[Delivered],
    answers: Sequence[str | StillhouseError],
    tokenizer: PreTrainedTokenizerFast,
) -> pa.Table:
    """The transcript of closed mode from the suspect's answer to the prompt of each row."""
    transcript = []
    for row, answer in zip(rows, answers, strict=True):
        text = answer if isinstance(answer, str) else None
        prompt = "\n".join(str(turn.get("content") or "") for turn in row.prompt)
        transcript.append(
            {
                "id": row.id,
                "account": row.account,
                "mode": "closed",
                "context": _encode(tokenizer, prompt),
                "tokens": [] if text is None else _encode(tokenizer, text),
                "text": text,
                "error": str(answer) if text is None else None,
            }
        )
    return pa.Table.from_pylist(transcript, SCHEMA)


def _length(text: tuple[list[int], list[int]]) -> int:
    return len(text[0]) + len(text[1])


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Splits ``order``, which is sorted by length, into batches that fill one forward pass with padding."""
    batch: list[int] = []
    for index in order:
        if batch and lengths[index] * (len(batch) + 1) > FORWARD_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _likeliest(suspect: Weights, texts: Sequence[list[int]]) -> torch.Tensor:
    """The suspect's likeliest next token [B, T] after each token; entries at the padding are arbitrary."""
    import torch

    width = max(map(len, texts))
    ids_BT = torch.tensor([ids + [0] * (width - len(ids)) for ids in texts], device=suspect.model.device)
    mask_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in texts]).to(ids_BT)
    with torch.inference_mode():
        return suspect.model(input_ids=ids_BT, attention_mask=mask_BT).logits.argmax(-1).cpu()


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
