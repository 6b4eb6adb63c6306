"""The overhead of the training loop over its bare passes, and the gain from packing and bfloat16.

    python benchmarks/train_loop.py                       # the quickstart's student: half of SmolLM2's layers
    python benchmarks/train_loop.py --layers 4 --steps 5  # quicker

Weights are random (speed does not depend on their values); documents have random lengths
around the quickstart's mean of 205 tokens; all of their tokens count.

1. Loop. After each step of `train()` (with AdamW, clipping, metrics and progress), a bare step runs on the
   same documents in the same process, so that both are timed under the same conditions. A bare step is the
   forward pass of the bfloat16 (or float32) module on the same packed row with the same attention, the head
   on the same positions, `F.cross_entropy` on the whole [N, V] logits in float32, and backward. It has no
   optimizer, no clipping, no chunking, and reads no numbers back. A second bare step with `fused_loss`
   (chunked, gradient in closed form) in place of the logits and `F.cross_entropy` isolates the loop. Ratios
   are medians over steps, of wall and of process time (which varies less if other work shares the machine),
   without the first step. Writing the checkpoint is timed separately.
2. Layout. Forward and backward of one step's documents: packed with attention per document (ours), padded to
   the longest with documents of similar length together, and packed under a dense block mask (the default of
   transformers).
3. Type. The bare step above with a bfloat16 working copy (ours; its gradients go to float32 masters),
   `torch.autocast` over float32 weights, or float32.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from stillhouse.console import console
from stillhouse.distill.data.batch_schedule import Step, micro_batches, plan_steps
from stillhouse.distill.data.documents import Document
from stillhouse.distill.forward import packed_attention
from stillhouse.distill.forward.packing import PADDED, collate, hidden_states, use_attention
from stillhouse.distill.forward.precision import WorkingCopy, compute_dtype
from stillhouse.distill.loss.fused_loss import fused_loss
from stillhouse.distill.loss.lm_head import LMHead
from stillhouse.distill.training import loop as training
from stillhouse.distill.training.learner import Learner
from stillhouse.recipe import Objective, Train

CPU = torch.device("cpu")
TEXT = Objective(kind="cross_entropy")
PACKED = packed_attention.NAME
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
Times = tuple[float, float]
"""Wall and process seconds."""


def clock() -> Times:
    return time.perf_counter(), time.process_time()


def since(start: Times) -> Times:
    wall, cpu = clock()
    return wall - start[0], cpu - start[1]


def student(layers: int) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMOLLM2, num_hidden_layers=layers)).eval()


def corpus(tokens: int) -> list[Document]:
    """Documents of 40 to 512 tokens, 205 on average, with at least `tokens` in total."""
    generator = np.random.default_rng(0)
    documents: list[Document] = []
    while sum(map(len, documents)) < tokens:
        length = int(np.clip(generator.lognormal(5.2, 0.5), 40, 512))
        ids = generator.integers(0, SMOLLM2["vocab_size"], length, dtype=np.int32)
        documents.append(Document(str(len(documents)), ids, np.ones(length, dtype=bool)))
    return documents


def bare_pass(module: PreTrainedModel, documents: list[Document], *, fused: bool = False) -> None:
    """Forward and backward without the loop; computes the logits of the whole pass unless ``fused``."""
    with use_attention(module, PACKED):
        batch = collate(documents, PACKED, CPU)
        hidden_ND = hidden_states(module.get_decoder(), batch)
    if fused:
        head = LMHead(module.lm_head.weight)
        loss = fused_loss(hidden_ND, head, batch.labels_N, None, TEXT) / len(hidden_ND)
    else:
        loss = F.cross_entropy(module.lm_head(hidden_ND).float(), batch.labels_N)
    loss.backward()


class Meter:
    """A tracker that times each step of the loop, and then the same step bare."""

    def __init__(self, *bare: Callable[[int], Times]) -> None:
        self.bare = bare
        self.steps: list[tuple[Times, ...]] = []
        self.start = clock()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        ours = since(self.start)
        self.steps.append((ours, *(variant(step) for variant in self.bare)))
        self.start = clock()

    def close(self) -> None:
        pass


def measure_loop(layers: int, settings: Train, steps: int, directory: Path) -> dict[str, Any]:
    documents = corpus(settings.batch_tokens * (steps + 1))
    lengths = [len(document) for document in documents]
    plan = plan_steps(lengths, settings, seed=0)
    model = student(layers)
    if not settings.embeddings:
        model.get_input_embeddings().requires_grad_(False)
    bare_module = WorkingCopy(model, compute_dtype(settings.dtype, CPU)).module.train()
    model.requires_grad_(True)

    def bare(step: int, fused: bool = False) -> Times:
        start = clock()
        for indices in micro_batches(plan[step - 1].documents, lengths, settings.micro_tokens, padded=False):
            bare_pass(bare_module, [documents[i] for i in indices], fused=fused)
        bare_module.zero_grad()
        return since(start)

    meter = Meter(bare, lambda step: bare(step, fused=True))
    training.open_tracker = lambda *_: meter
    save, saved = training.CheckpointManager.save, []

    def timed_save(*arguments: Any, **options: Any) -> None:
        start = clock()
        save(*arguments, **options)
        saved.append(since(start)[0])

    training.CheckpointManager.save = timed_save
    result = training.train(
        model, documents, None, objective=TEXT, settings=settings, directory=directory, seed=0
    )
    loop, naive, ours = zip(*meter.steps[1:], strict=True)
    return result.environment | {
        "steps": len(loop),
        "loop_s": statistics.median(wall for wall, _ in loop),
        "bare_s": statistics.median(wall for wall, _ in naive),
        "wall": median_ratio(loop, naive, 0),
        "process": median_ratio(loop, naive, 1),
        "process, our head": median_ratio(loop, ours, 1),
        "checkpoint_s": statistics.median(saved),
    }


def median_ratio(loop: Sequence[Times], bare: Sequence[Times], which: int) -> float:
    return statistics.median(a[which] / b[which] for a, b in zip(loop, bare, strict=True))


def alternate(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median process seconds of each variant, run alternately, without the first round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, variant in variants.items():
            start = clock()
            variant()
            seconds[name].append(since(start)[1])
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def measure_layouts(layers: int, settings: Train, rounds: int) -> dict[str, float]:
    documents = corpus(settings.batch_tokens)
    step = Step(0, 0, tuple(range(len(documents))), sum(map(len, documents)))

    def variant(layout: str) -> Callable[[], object]:
        learner = learners[layout]

        def run() -> None:
            with learner.training():
                learner.backward(step)
            learner.optimizer.zero_grad()

        return run

    learners = {}
    for layout in (PACKED, PADDED, "sdpa"):
        learners[layout] = Learner(student(layers), documents, None, TEXT, settings)
        learners[layout].layout = layout
    names = {
        PACKED: "packed, attention per document",
        PADDED: "padded",
        "sdpa": "packed, dense mask",
    }
    return alternate({names[layout]: variant(layout) for layout in learners}, rounds)


def measure_types(layers: int, settings: Train, rounds: int) -> dict[str, float]:
    documents = corpus(settings.batch_tokens)
    wide = student(layers)
    wide.get_input_embeddings().requires_grad_(settings.embeddings)
    copied = WorkingCopy(wide, torch.bfloat16)

    def variant(module: PreTrainedModel, scope: Callable[[], Any]) -> Callable[[], object]:
        def run() -> None:
            with scope():
                bare_pass(module, documents)
            wide.zero_grad()

        return run

    return alternate(
        {
            "bfloat16 working copy": variant(copied.module, contextlib.nullcontext),
            "autocast to bfloat16": variant(wide, lambda: torch.autocast("cpu", torch.bfloat16)),
            "float32": variant(wide, contextlib.nullcontext),
        },
        rounds,
    )


def print_variants(title: str, seconds: dict[str, float]) -> None:
    first = next(iter(seconds.values()))
    rows = [[name, f"{value:.2f}", f"{value / first:.2f}"] for name, value in seconds.items()]
    console.table(title, ["", "process s", "of ours"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/train_loop.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    quickstart = Train(
        tokens=arguments.batch_tokens * arguments.steps,
        batch_tokens=arguments.batch_tokens,
        micro_tokens=arguments.batch_tokens,
        max_length=512,
        embeddings=False,
        trackers=("tensorboard",),
        checkpoint_every=10**9,
    )
    results: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        **{key: getattr(arguments, key) for key in ("layers", "batch_tokens", "threads")},
    }
    for name, settings in (
        ("frozen embeddings", quickstart),
        ("all weights", replace(quickstart, embeddings=True)),
    ):
        with tempfile.TemporaryDirectory() as directory:
            results[name] = measure_loop(arguments.layers, settings, arguments.steps, Path(directory))
    keys = ("loop_s", "bare_s", "wall", "process", "process, our head", "checkpoint_s")
    rows = [
        [name, *(f"{results[name][key]:.3f}" for key in keys)]
        for name in ("frozen embeddings", "all weights")
    ]
    console.table("Loop over bare passes (goal: at most 1.10)", ["", *keys], rows)
    results["layouts"] = measure_layouts(arguments.layers, quickstart, arguments.rounds)
    print_variants("Layout", results["layouts"])
    results["types"] = measure_types(arguments.layers, quickstart, arguments.rounds)
    print_variants("Compute type", results["types"])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
