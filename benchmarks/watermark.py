"""What a watermark costs and what it shows, on SmolLM2-135M.

    python benchmarks/watermark.py
    python benchmarks/watermark.py --prompts 32 --tokens 128 --out watermark.json

Every prompt is answered at temperature 1 without a mark and with each; one key. Perplexity is the model's own
of the sampled text, with the mark left out; KL is that of the marked from the unmarked distribution at each
token, in nats (a gumbel mark leaves one token, so that it has none to state). "found" is the share of single
answers with p below 1e-6; then the p-value of all together. Speeds: of the sampler with the mark, and of
detection.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stillhouse.models import Sampling, load_weights
from stillhouse.models.sampler import sample
from stillhouse.watermark import Mark, detect

KEY = bytes(range(32))
MARKS = {
    "none": None,
    "kgw, δ 1": Mark(KEY, "kgw", delta=1.0),
    "kgw, δ 2": Mark(KEY, "kgw", delta=2.0),
    "kgw, δ 3": Mark(KEY, "kgw", delta=3.0),
    "gumbel": Mark(KEY, "gumbel"),
    "tournament": Mark(KEY, "tournament"),
}


class Watched:
    """A mark that adds up how far it moves the distribution."""

    def __init__(self, mark: Mark) -> None:
        self.mark, self.kl, self.tokens = mark, 0.0, 0

    def __call__(self, ids: Sequence[int], weights_V: np.ndarray) -> np.ndarray:
        marked_V = self.mark(ids, weights_V)
        before_V, after_V = weights_V / weights_V.sum(), marked_V / marked_V.sum()
        there = after_V > 0
        self.kl += float((after_V[there] * np.log(after_V[there] / before_V[there])).sum())
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
    rows = {name: answered(weights.model, prompts, arguments.tokens, mark) for name, mark in MARKS.items()}
    rows |= {
        f"detecting {scheme}": {"pairs_per_s": speed(scheme)} for scheme in ("kgw", "gumbel", "tournament")
    }
    for name, row in rows.items():
        print(f"{name:22}", json.dumps({key: float(f"{value:.3g}") for key, value in row.items()}))
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


def answered(model, prompts: list[list[int]], tokens: int, mark: Mark | None) -> dict[str, float]:
    settings = [Sampling(max_tokens=tokens, seed=seed) for seed in range(len(prompts))]
    started = time.perf_counter()
    answers = sample(model, prompts, settings, ends=set(), markers=[mark] * len(prompts))
    seconds = time.perf_counter() - started
    row = {
        "perplexity": math.exp(-np.mean([one.logp for one in answers])),
        "tokens_per_s": len(prompts) * tokens / seconds,
    }
    if mark is None:
        return row
    if mark.scheme != "gumbel":
        watched = [Watched(mark) for _ in prompts]
        sample(model, prompts, settings, ends=set(), markers=watched)
        row["kl"] = sum(one.kl for one in watched) / sum(one.tokens for one in watched)
    single = [detect(mark, [one.ids]).p_value for one in answers]
    together = detect(mark, [one.ids for one in answers])
    return row | {
        "mean_score": together.mean,
        "found": float(np.mean(np.array(single) < 1e-6)),
        "p_together": together.p_value,
    }


def speed(scheme: str, pairs: int = 100_000) -> float:
    """Distinct pairs a second in detection, the best of three."""
    ids = np.random.default_rng(0).integers(0, 49_152, pairs + 2).tolist()
    mark, taken = Mark(KEY, scheme), []
    for _ in range(3):
        started = time.perf_counter()
        detect(mark, [ids])
        taken.append(time.perf_counter() - started)
    return pairs / min(taken)


if __name__ == "__main__":
    main()
