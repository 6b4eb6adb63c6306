"""Compares the tokens per second of our sampler and of transformers' generate, on SmolLM2-135M in bfloat16.

    python benchmarks/sampling.py         # batches of 8, 32, 64; 4 prompts of 8 samples
    python benchmarks/sampling.py --batches 32 --rounds 5

Prompts of 95 to 105 tokens, 64 new tokens each (no end token for ours, ``min_new_tokens`` for
generate), temperature 1, no truncation. The contestants take turns in one process after one warm-up
round each. Reports medians of wall and process time, and of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from stillhouse.models import load_weights
from stillhouse.models.sampling.batch import sample
from stillhouse.models.types import Sampling

NEW = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 32, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    weights = load_weights("embedded:smollm2", dtype="bfloat16")
    text = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")  # it does not change
    ids = weights.tokenizer(text)["input_ids"]
    prompts = [ids[33 * n : 33 * n + 95 + n % 11] for n in range(64)]
    assert all(len(prompt) >= 95 for prompt in prompts)
    cases = {f"{count} prompts": prompts[:count] for count in arguments.batches}
    cases["4 prompts, n = 8"] = [prompt for prompt in prompts[:4] for _ in range(8)]
    results = {}
    for name, batch in cases.items():
        results[name] = compare(weights.model, batch, arguments.rounds)
        print(name, json.dumps(results[name]), flush=True)
        if arguments.out:
            load = os.getloadavg()
            arguments.out.write_text(json.dumps({"load_average": load, "cases": results}, indent=1) + "\n")


def compare(model, batch: list[list[int]], rounds: int) -> dict[str, float]:
    """Medians over ``rounds``: seconds, tokens per second, and how many times faster ours is."""
    contestants = {"generate": lambda: theirs(model, batch), "ours": lambda: ours(model, batch)}
    for run in contestants.values():
        run()
    times_by_round = [{name: seconds(run) for name, run in contestants.items()} for _ in range(rounds)]
    result = {}
    for index, clock in enumerate(("wall", "process")):
        for name in contestants:
            result[f"{name}_{clock}_s"] = statistics.median(times[name][index] for times in times_by_round)
        result[f"{clock}_ratio"] = statistics.median(
            times["generate"][index] / times["ours"][index] for times in times_by_round
        )
    for name in contestants:
        result[f"{name}_tokens_per_s"] = len(batch) * NEW / result[f"{name}_wall_s"]
    return {name: round(value, 3) for name, value in result.items()}


def seconds(run: Callable[[], None]) -> tuple[float, float]:
    """Wall and process seconds."""
    wall, process = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - process


def ours(model, batch: list[list[int]]) -> None:
    settings = [Sampling(max_tokens=NEW, seed=seed) for seed in range(len(batch))]
    answers = sample(model, batch, settings, ends=set())
    assert all(len(answer.ids) == NEW for answer in answers)


def theirs(model, batch: list[list[int]]) -> None:
    length = max(map(len, batch))
    ids_BT = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in batch])
    mask_BT = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in batch])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids_BT, attention_mask=mask_BT, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            min_new_tokens=NEW, max_new_tokens=NEW, pad_token_id=0,
        )  # fmt: skip
    assert out.shape[1] == length + NEW


if __name__ == "__main__":
    main()
