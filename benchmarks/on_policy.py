"""On-policy training: Stillhouse and TRL 1.16 on the same model, prompts and tokens, on CPU.

    python -m venv benchmarks/peers/.venv
    benchmarks/peers/.venv/bin/pip install -r benchmarks/peers/trl.txt
    GOMP_SPINCOUNT=0 python benchmarks/on_policy.py

TRL's GRPOTrainer, DistillationTrainer (reverse KL) and GKDTrainer (lmbda 1, beta 0.5), each compared with
``train_on_policy`` with the same objective: SmolLM2-135M is student and teacher, 4 MMLU prompts of at most
160 tokens per step, 8 answers to each of exactly 64 tokens, one AdamW step on all 32, all weights trained,
float32 master weights. Both sides read one safetensors directory and one file of prompts. Every run is a
separate process; the sides alternate; the first step is a warm-up. Medians over rounds, ratios within rounds.

TRL runs as its documentation advises for speed (bfloat16, no activation checkpointing, no logging, answers of
equal length in a pass), with 8 rows per pass: measured as fast as 16, faster than 4 and 32. With
``--precisions weights`` its weights are bfloat16, which is faster and loses small updates.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers.shared import WARM_UP

from stillhouse.console import console
from stillhouse.corpus import load_prompts
from stillhouse.distill import save_student
from stillhouse.models import load_weights

HERE = Path(__file__).parent
PEER = HERE / "peers" / ".venv" / "bin" / "python"
LONGEST_PROMPT = 160
METHODS = ("grpo", "distillation", "gkd")
PRECISIONS = ("autocast", "float32", "weights")
OURS = "ours"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peer", type=Path, default=PEER, help="Python of the environment with TRL")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--precisions", nargs="*", choices=PRECISIONS, default=["autocast"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each process")
    parser.add_argument("--prompts", type=int, default=4, help="prompts per step")
    parser.add_argument("--samples", type=int, default=8, help="answers per prompt")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8, help="TRL's rows per pass")
    parser.add_argument("--micro-tokens", type=int, default=2048, help="our tokens per pass")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "on_policy.json")
    options = parser.parse_args()
    if not options.peer.exists():
        sys.exit(
            f"{options.peer} does not exist. Create it with:\n"
            f"  python -m venv {HERE}/peers/.venv\n"
            f"  {HERE}/peers/.venv/bin/pip install -r {HERE}/peers/trl.txt\n"
            "or name another environment's python with --peer."
        )
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        task = prepare(options, Path(directory))
        for method in options.methods:
            results[method] = compare(task | {"method": method}, options)
            show(method, results[method])
            options.out.parent.mkdir(parents=True, exist_ok=True)
            settings = {key: str(value) for key, value in vars(options).items()}
            results_file = {"settings": settings, "load_average": os.getloadavg(), "methods": results}
            options.out.write_text(json.dumps(results_file, indent=1) + "\n", encoding="utf-8")


def prepare(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Writes the model and the prompts for both sides; returns the task for every run."""
    weights = load_weights("embedded:smollm2")
    model = directory / "model"
    save_student(weights.model, weights.tokenizer, weights.template, model)
    conversations = [prompt.question for prompt in load_prompts("package:mmlu", limit=200, seed=0)]
    short = [
        conversation
        for conversation in conversations
        if len(weights.template.encode_prompt(weights.tokenizer, conversation)) <= LONGEST_PROMPT
    ]
    count = options.prompts * (options.steps + WARM_UP)
    if count > len(short):
        sys.exit(
            f"{count} prompts are needed, but only {len(short)} are short enough: lower --prompts or --steps"
        )
    prompts = directory / "prompts.jsonl"
    lines = [json.dumps({"prompt": conversation}) for conversation in short[:count]]
    prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "model": str(model),
        "prompts": str(prompts),
        "prompts_per_step": options.prompts,
        "samples": options.samples,
        "max_tokens": options.max_tokens,
        "steps": options.steps,
        "threads": options.threads,
        "learning_rate": 1e-6,
        "seed": 0,
        "ours": {"micro_tokens": options.micro_tokens},
        "peer": {"batch": options.batch, "precision": "autocast"},
    }


def compare(task: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Alternates runs of both sides for one method; returns the runs, medians and ratios."""
    runs: dict[str, list[dict[str, Any]]] = {OURS: []} | {f"TRL {name}": [] for name in options.precisions}
    for _ in range(options.rounds):
        for name, done in runs.items():
            done.append(run(name, task, options.peer))
            print(task["method"], name, json.dumps(done[-1]), flush=True)
            require_same_work(runs[OURS][0], done[-1])
    peers = [name for name in runs if name != OURS]
    return {
        "runs": runs,
        "medians": {name: medians(done) for name, done in runs.items()},
        "ratios": {name: ratios(runs[name], runs[OURS]) for name in peers},
    }


def run(name: str, task: dict[str, Any], peer: Path) -> dict[str, Any]:
    """Runs one process; returns the JSON of its last line."""
    python, worker = (sys.executable, "our_worker.py") if name == OURS else (peer, "trl_worker.py")
    if name != OURS:
        task = task | {"peer": task["peer"] | {"precision": name.removeprefix("TRL ")}}
    environment = os.environ | {"OMP_NUM_THREADS": str(task["threads"]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(python), str(HERE / "peers" / worker), json.dumps(task)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def require_same_work(ours: dict[str, Any], other: dict[str, Any]) -> None:
    """Exits unless samples, tokens generated and trained on, and optimizer steps are equal."""
    if ours["counts"] != other["counts"]:
        sys.exit(f"the work differs: {ours['counts']} and {other['counts']}")


def medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the runs of one side; memory is the maximum."""
    counts = runs[0]["counts"]
    steps, wall = counts["optimizer steps"], statistics.median(run["wall_s"] for run in runs)
    parts = {
        f"{part}_s": statistics.median(run["parts_s"].get(part, 0.0) for run in runs) / steps
        for part in ("sampling", "teacher")
    }
    return {
        "samples_per_s": counts["samples"] / wall,
        "tokens_per_s": counts["generated"] / wall,
        "step_s": wall / steps,
        "step_process_s": statistics.median(run["process_s"] for run in runs) / steps,
        **parts,
        "rest_s": wall / steps - sum(parts.values()),
        "peak_mb": max(run["peak_mb"] for run in runs),
    }


def ratios(peer: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, float]:
    """The peer's time and memory divided by ours, medians over the rounds."""
    return {
        name: statistics.median(one[name] / other[name] for one, other in zip(peer, ours, strict=True))
        for name in ("wall_s", "process_s", "peak_mb")
    }


def show(method: str, result: dict[str, Any]) -> None:
    columns = ("samples_per_s", "tokens_per_s", "step_s", "sampling_s", "teacher_s", "rest_s", "peak_mb")
    rows = []
    for name, values in result["medians"].items():
        ratio = result["ratios"].get(name, {})
        times = [f"{ratio[key]:.2f}" if ratio else "" for key in ("wall_s", "process_s", "peak_mb")]
        rows.append([name, *(f"{values[column]:.2f}" for column in columns), *times])
    console.table(method, ["", *columns, "wall × ours", "process × ours", "memory × ours"], rows)


if __name__ == "__main__":
    main()
