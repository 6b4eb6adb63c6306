"""Radioactivity: does the suspect prefer the tokens that the teacher's watermark preferred?

A model that learned from marked text goes on in its manner: after a window that it met in training, it tends
to what the key made likely there (Sander et al. 2024, arXiv:2402.14904). Two ways to look:

- closed: the suspect writes answers, and their tokens are scored. Text is all that is needed; it is cut with
  the teacher's tokenizer, whatever the suspect's is. Windows that occur in the prompt are left out.
- open: the teacher's delivered texts pass through the suspect, and its likeliest next token after each window
  is scored. That needs its weights and the teacher's tokenizer, and sees far more (section 4 there). Windows
  that came before in the same context are left out: there the suspect can copy what followed, mark and all,
  without ever having learned it.

Each pair of window and token counts once over the whole transcript. Neither who observes nor the
transcript knows the key; :func:`judge` cuts the pairs from the raw token ids, so whoever is given the key can
count again, with another window too.

A public key (everybody's outputs carry it) shows exposure by any route, L1; a key that marked one account's
outputs only shows those outputs, L2. What neither shows is intent.

Shapes: N pairs, T tokens of a text, B texts of a batch, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stillhouse.errors import StillhouseError
from stillhouse.models import Reply, Request, Sampling, Weights, tokenizer_difference
from stillhouse.trace.delivered_log import Delivered
from stillhouse.trace.detectors.transcript import refusal, refused
from stillhouse.trace.finding import Assumption, Finding, Level
from stillhouse.trace.suspects.base import GenerateFn
from stillhouse.watermark import (
    Detection,
    Mark,
    Pairs,
    detection_from_scores,
    distinct_pairs,
    interval,
    parse_key,
    running_log_e,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

NAME = "radioactivity"
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
PLACEBOS = 20
FORWARD_TOKENS = 2048
"""Of one pass in open mode, padding included."""
POINTS = 200
"""Of a curve in the report."""
_UNITS = {
    "kgw": "green share of distinct (window, token) pairs",
    "gumbel": "mean of −log(1 − r) over distinct (window, token) pairs",
    "tournament": "share of tournament layers won, over distinct (window, token) pairs",
}
_RIVALS: Mapping[str, tuple[str, ...]] = {
    "L1": (
        "The suspect met the teacher's outputs in public: a key that marks everybody's outputs shows "
        "exposure by any route.",
        "The suspect learned from another model that had learned from the teacher.",
        "Somebody who knew the key wrote marked text that the teacher never wrote.",
    ),
    "L2": (
        "The account's outputs reached the suspect through others: a leak, a shared account, a publication.",
        "The suspect learned from another model that had learned from this account's outputs.",
        "Somebody who knew the account's key wrote marked text that the teacher never wrote.",
    ),
}


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
        return refused(SCHEMA, "the log has texts without prompts, so there is nothing to ask the suspect")
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
        return refused(
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


def judge(transcript: pa.Table, parameters: Mapping[str, Any]) -> Finding:
    """Whether the key's mark is in the suspect's tokens.

    Args:
        parameters: `key` (64 hexadecimal digits), `level` (`L1` or `L2`), `scheme` and `window` as of
            :class:`~stillhouse.watermark.Mark`, `gamma` (kgw), `depth` (tournament); optionally
            `placebo_keys` (keys that marked nothing; else :data:`PLACEBOS` are drawn from `seed`) and
            `alpha` (one minus the confidence of the interval).

    Raises:
        UsageError: the key or another parameter is none.
    """
    mark = _mark(parameters)
    level: Level = parameters["level"]
    pairs, left_out = scored_pairs(transcript, mark.window)
    if not len(pairs):
        return Finding(NAME, level, _null(mark), 0, parameters=parameters, reason=_reason(transcript, mark))
    placebos = parameters.get("placebo_keys") or placebo_keys(parameters.get("seed", 0))
    scores_N, found = _weighed(mark, pairs)
    blind = [_weighed(replace(mark, key=parse_key(key, "placebo_keys")), pairs)[1] for key in placebos]
    low, high = interval(mark, scores_N, 1 - parameters.get("alpha", 0.05))
    rank = 1 + sum(other.p_value <= found.p_value for other in blind)
    return Finding(
        test=NAME,
        level=level,
        null=_null(mark),
        n=found.pairs,
        statistic=_UNITS[mark.scheme],
        value=found.mean,
        p_value=found.p_value,
        e_value=found.e_value,
        effect={
            "mean": found.mean,
            "mean_low": low,
            "mean_high": high,
            "expected": found.expected,
            "z": found.z,
            "repeated_pairs": pairs.repeated,
            "left_out_in_context": left_out,
            "placebo_rank": rank,
            "placebo_smallest_p": min(other.p_value for other in blind),
        },
        assumptions=_assumptions(transcript, pairs, left_out, found, blind, rank),
        rivals=_RIVALS[level],
        parameters=parameters,
        series=_series(mark, scores_N),
    )


def placebo_keys(seed: int, count: int = PLACEBOS) -> list[str]:
    """Keys that marked nothing, in hexadecimal: SHA-256 of the seed and their numbers."""
    return [
        hashlib.sha256(f"stillhouse placebo key {seed} {number}".encode()).hexdigest()
        for number in range(count)
    ]


def _mark(parameters: Mapping[str, Any]) -> Mark:
    given = {name: parameters[name] for name in ("gamma", "depth") if name in parameters}
    key = parse_key(parameters["key"], "the parameter `key`")
    return Mark(key, parameters["scheme"], parameters["window"], **given)


def _weighed(mark: Mark, pairs: Pairs) -> tuple[np.ndarray, Detection]:
    scores_N = mark.scores(pairs.windows_NW, pairs.tokens_N)
    return scores_N, detection_from_scores(mark, scores_N)


def scored_pairs(transcript: pa.Table, window: int) -> tuple[Pairs, int]:
    """Distinct pairs of all rows, and how many were left out because their window was in context."""
    windows, tokens, left_out = [], [], 0
    columns = (transcript[name].to_pylist() for name in ("context", "tokens", "predicted"))
    for context, ids, predicted in zip(*columns, strict=True):
        for before, token in _row_pairs(context, ids, predicted, window):
            if before is None:
                left_out += 1
            else:
                windows.append(before)
                tokens.append(token)
    shaped = np.array(windows, np.int64).reshape(len(windows), window)
    return distinct_pairs(Pairs(shaped, np.array(tokens, np.int64))), left_out


def _row_pairs(
    context: list[int], ids: list[int], predicted: list[int] | None, window: int
) -> Iterator[tuple[tuple[int, ...] | None, int]]:
    """Each window of one text with the token after it; None for a window that was in context."""
    seen = {tuple(context[end - window : end]) for end in range(window, len(context) + 1)}
    if predicted is None:
        for end in range(window, len(ids)):
            before = tuple(ids[end - window : end])
            yield None if before in seen else before, ids[end]
        return
    whole, start = context + ids, len(context)
    for end in range(start + 1, len(whole) + 1):
        before = tuple(whole[max(0, end - window) : end])
        if end - start >= window:
            yield None if before in seen else before, predicted[end - start - 1]
        seen.add(before)


def _null(mark: Mark) -> str:
    law = {
        "kgw": f"Binomial(n, γ = {mark.gamma:g})",
        "gumbel": "Gamma(n, 1)",
        "tournament": f"Binomial({mark.depth} n, ½)",
    }[mark.scheme]
    return (
        "The suspect's choices of tokens are independent of the key. The key's own randomness then makes the "
        f"sum of scores over n distinct pairs {law}, whatever the suspect is and whatever it says."
    )


def _reason(transcript: pa.Table, mark: Mark) -> str:
    """Why there is nothing to count."""
    if told := refusal(transcript):
        return told
    if not len(transcript):
        return "the transcript is empty: no output of the log was put to the suspect"
    errors = [error for error in transcript["error"].to_pylist() if error]
    if len(errors) == len(transcript):
        return f"the suspect answered none of {len(errors):,} prompts; the first time: {errors[0]}"
    return (
        f"no token of {len(transcript):,} texts could be counted: each has fewer than {mark.window + 1} "
        "tokens, or repeats its context; longer answers would help"
    )


def _assumptions(
    transcript: pa.Table,
    pairs: Pairs,
    left_out: int,
    found: Detection,
    blind: Sequence[Detection],
    rank: int,
) -> tuple[Assumption, ...]:
    missing = sum(error is not None for error in transcript["error"].to_pylist())
    below = sum(other.p_value <= 0.05 for other in blind)
    smallest = min(other.p_value for other in blind)
    return (
        Assumption(
            "The key was drawn at random, and nobody who made the suspect or its other texts knew it.",
            None,
            "its commitment is older than the first query, or is not; see there",
        ),
        Assumption(
            "No pair counts twice.",
            True,
            f"{pairs.repeated:,} repetitions left out, {len(pairs):,} pairs counted",
        ),
        Assumption(
            "The suspect did not copy the mark from what it was shown.",
            True,
            f"{left_out:,} tokens left out, whose window was in context",
        ),
        Assumption(
            "Keys that marked nothing show nothing: this tests the arithmetic, not the suspect.",
            smallest * len(blind) > 0.001,
            f"{below} of {len(blind)} placebo keys with p ≤ .05, the smallest {smallest:.3g}; the real key's "
            f"rank {rank} of {len(blind) + 1}",
        ),
        Assumption(
            "The suspect answered.",
            missing == 0,
            f"{len(transcript) - missing:,} of {len(transcript):,} texts; silence moves no p-value, it costs "
            "power",
        ),
    )


def _series(mark: Mark, scores_N: np.ndarray) -> dict[str, list[float]]:
    """The e-value as the pairs came in."""
    places = np.unique(np.linspace(1, len(scores_N), min(POINTS, len(scores_N))).astype(int))
    log10_e = running_log_e(mark, scores_N)[places - 1] / np.log(10)
    return {"pairs": places.astype(float).tolist(), "log10_e": log10_e.tolist()}


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
