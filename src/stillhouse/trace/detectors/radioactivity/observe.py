"""The transcript of the radioactivity test: what the suspect writes, or predicts, on the teacher's tokens.

Shapes: T tokens of a text, B texts of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from stillhouse.errors import StillhouseError
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
        ("predicted", pa.list_(pa.int32())),  # open: the suspect's likeliest token after each of them
        ("text", pa.string()),  # what the suspect wrote (closed) or was shown (open); null with an error
        ("error", pa.string()),
    ]
)
FORWARD_TOKENS = 2048
"""Of one pass in open mode, padding included."""


def observe_closed(
    ask: GenerateFn,
    rows: Sequence[Delivered],
    tokenizer: PreTrainedTokenizerFast,
    *,
    sampling: Sampling = Sampling(max_tokens=256),  # noqa: B008  frozen
    seed: int = 0,
) -> pa.Table:
    """What the suspect writes, in a table of :data:`SCHEMA`; a row for each prompt and account.

    Args:
        ask: puts requests to the suspect.
        rows: delivered outputs, of which only the prompts are used.
        tokenizer: the teacher's, in whose tokens the mark is.
        sampling: of the answers.
        seed: of these answers.
    """
    asked = list({(row.account, str(row.prompt)): row for row in rows if row.prompt}.values())
    if not asked:
        return empty_transcript(
            SCHEMA, "the log has texts without prompts, so there is nothing to ask the suspect"
        )
    requests = [
        Request(row.id, list(row.prompt), replace(sampling, seed=_seed(seed, row.id))) for row in asked
    ]
    answers = [reply.text if isinstance(reply, Reply) else reply for reply in ask(requests)]
    return closed_transcript(asked, answers, tokenizer)


def observe_open(
    suspect: Weights,
    rows: Sequence[Delivered],
    tokenizer: PreTrainedTokenizerFast,
    *,
    progress: Callable[[int], None] | None = None,
) -> pa.Table:
    """What the suspect finds likeliest after each token of the delivered texts, in a table of :data:`SCHEMA`.

    Args:
        tokenizer: the teacher's, in whose tokens the mark is; the suspect's has to be the same.
        progress: called with the number of texts just read.
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
    order = sorted(
        (place for place, (_, ids) in enumerate(texts) if ids), key=lambda place: _length(texts[place])
    )
    for batch in _batches(order, [_length(text) for text in texts]):
        likeliest = _likeliest(suspect, [texts[place][0] + texts[place][1] for place in batch])
        for place, ids_T in zip(batch, likeliest, strict=True):
            predicted[place] = ids_T[len(texts[place][0]) : _length(texts[place])].tolist()
        if progress:
            progress(len(batch))
    made = [
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
    return pa.Table.from_pylist(made, SCHEMA)


def closed_transcript(
    rows: Sequence[Delivered],
    answers: Sequence[str | StillhouseError],
    tokenizer: PreTrainedTokenizerFast,
) -> pa.Table:
    """The transcript of closed mode from what the suspect answered to the prompt of each row."""
    made = []
    for row, answer in zip(rows, answers, strict=True):
        said = answer if isinstance(answer, str) else None
        prompt = "\n".join(str(turn.get("content") or "") for turn in row.prompt)
        made.append(
            {
                "id": row.id,
                "account": row.account,
                "mode": "closed",
                "context": _encode(tokenizer, prompt),
                "tokens": [] if said is None else _encode(tokenizer, said),
                "text": said,
                "error": str(answer) if said is None else None,
            }
        )
    return pa.Table.from_pylist(made, SCHEMA)


def _length(text: tuple[list[int], list[int]]) -> int:
    return len(text[0]) + len(text[1])


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Runs of ``order``, which goes by length, that fill one pass when padded to their longest."""
    batch: list[int] = []
    for place in order:
        if batch and lengths[place] * (len(batch) + 1) > FORWARD_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _likeliest(suspect: Weights, texts: Sequence[list[int]]) -> torch.Tensor:
    """The suspect's likeliest next token [B, T] after each token; what pads the end means nothing."""
    import torch

    width = max(map(len, texts))
    ids_BT = torch.tensor([ids + [0] * (width - len(ids)) for ids in texts], device=suspect.model.device)
    mask_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in texts]).to(ids_BT)
    with torch.inference_mode():
        return suspect.model(input_ids=ids_BT, attention_mask=mask_BT).logits.argmax(-1).cpu()


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big") >> 1
