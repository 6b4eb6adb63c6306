"""Cost and detectability of a watermark, on SmolLM2-135M.

    python benchmarks/watermark.py
    python benchmarks/watermark.py --prompts 32 --tokens 128 --out watermark.json

The model answers every prompt at temperature 1, without a mark and with each mark, under one key.

- perplexity: the model's own on the sampled text, without the mark.
- kl: from the unmarked to the marked distribution at each token, in nats, for the green list only (the other
  schemes leave almost one token, a different one for each key).
- surprise: how much less likely, in nats, the model finds tokens drawn with the mark than without it,
expected
  at each token (0 over keys for gumbel and tournament).
- found: the share of single answers with p below 1e-6; p_together is the p-value of all answers together.

Speeds are those of one token's mark over a vocabulary of 49,152 without top-k or top-p, and of detection.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from stillhouse.models import Sampling, load_weights
from stillhouse.models.sampling.batch import sample
from stillhouse.watermark import Mark, detect

KEY = bytes(range(32))
VOCABULARY = 49_152
MARKS = {
    "none": None,
    "kgw, δ 1": Mark(KEY, "kgw", delta=1.0),
    "kgw, δ 2": Mark(KEY, "kgw", delta=2.0),
    "kgw, δ 3": Mark(KEY, "kgw", delta=3.0),
    "gumbel": Mark(KEY, "gumbel"),
    "tournament": Mark(KEY, "tournament"),
}


class MeasuredMark:
    """A mark that sums its KL divergence and its surprise over tokens."""

    def __init__(self, mark: Mark) -> None:
        self.mark, self.kl, self.surprise, self.tokens = mark, 0.0, 0.0, 0

    def __call__(self, ids: Sequence[int], weights_V: np.ndarray) -> np.ndarray:
        marked_V = self.mark(ids, weights_V)
        before_V, after_V = weights_V / weights_V.sum(), marked_V / marked_V.sum()
        possible = after_V > 0
        self.kl += float((after_V[possible] * np.log(after_V[possible] / before_V[possible])).sum())
        likely = before_V > 0
        self.surprise -= float(((after_V - before_V)[likely] * np.log(before_V[likely])).sum())
        self.tokens += 1
        return marked_V


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    weights = load_weights("embedded:smollm2", dtype="bfloat16")
    text = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    ids = weights.tokenizer(text)["input_ids"]
    prompts = [ids[40 * n : 40 * n + 40] for n in range(arguments.prompts)]
    rows = {}
    for name, mark in MARKS.items():
        rows[name] = measure(weights.model, prompts, arguments.tokens, mark)
        show(name, rows[name])
    for scheme in ("kgw", "gumbel", "tournament"):
        rows[f"speed, {scheme}"] = speeds(Mark(KEY, scheme))
        show(f"speed, {scheme}", rows[f"speed, {scheme}"])
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


def show(name: str, row: dict[str, float]) -> None:
    print(f"{name:22}", json.dumps({key: float(f"{value:.3g}") for key, value in row.items()}), flush=True)


def measure(model, prompts: list[list[int]], tokens: int, mark: Mark | None) -> dict[str, float]:
    settings = [Sampling(max_tokens=tokens, seed=seed) for seed in range(len(prompts))]
    marks = [mark and MeasuredMark(mark) for _ in prompts]
    answers = sample(model, prompts, settings, ends=set(), markers=marks)
    row = {"perplexity": math.exp(-np.mean([one.logp for one in answers]))}
    if mark is None:
        return row
    tokens = sum(one.tokens for one in marks if one)
    row["surprise"] = sum(one.surprise for one in marks if one) / tokens
    if mark.scheme == "kgw":
        row["kl"] = sum(one.kl for one in marks if one) / tokens
    together = detect(mark, [one.ids for one in answers])
    detected = [detect(mark, [one.ids]).p_value < 1e-6 for one in answers]
    return row | {
        "mean_score": together.mean, "found": float(np.mean(detected)), "p_together": together.p_value
    }  # fmt: skip


def speeds(mark: Mark, pairs: int = 100_000) -> dict[str, float]:
    """Milliseconds of one token's mark, and distinct pairs a second in detection; the best of several."""
    rng = np.random.default_rng(0)
    weights_V = rng.gamma(0.05, size=VOCABULARY) + 1e-12
    ids = rng.integers(0, VOCABULARY, pairs + 2).tolist()
    marking = [seconds(lambda: mark([1, 2, 3], weights_V)) for _ in range(30)]
    detecting = [seconds(lambda: detect(mark, [ids])) for _ in range(3)]
    return {"mark_ms": 1e3 * min(marking), "pairs_per_s": pairs / min(detecting)}


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
