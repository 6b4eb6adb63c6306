"""The zoo on transformers: two teachers with a second version each, suspects of three architectures.

A suspect is a base model (its own architecture, tokenizer and share of the web) that is trained on what its
arm adds, ``--reads`` times, and on clean text (:data:`CLEAN`). It shares nothing with the teachers except
what the arm states. Outputs are ranked by the score `teacher`, the suspect's log-likelihood minus the
teacher's own: most traces have the archived teacher, and it removes what makes a text easy for any model.

Outputs, models, scores and results are kept in the store, so that a stopped run resumes. Suspects are
independent of each other: ``--processes`` evaluates several at a time.
"""

from __future__ import annotations

import argparse
import json
import pickle
import random
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillhouse.files import atomic_write
from stillhouse.hashing import sha256_json
from stillhouse.models import Sampling
from stillhouse.stats import rank_test
from stillhouse.trace.delivered_log import Delivered
from stillhouse.trace.detectors import canaries
from stillhouse.trace.detectors.radioactivity.observe import closed_transcript
from stillhouse.trace.suspects.open import open_suspect

from . import baselines, descent, measure
from .arms import ARMS, Arm
from .texts import documents
from .trained_models import KINDS, TrainedModel, train_model
from .worlds import (
    ANSWERS,
    ASKED,
    BASE,
    CANARIES,
    NAME,
    NAME_REPEATS,
    PROMPT,
    TEACHER,
    VERSION,
    WHO,
    World,
    await_all,
    first_words,
    generate,
    log_likelihoods,
    make_world,
)

CLEAN = 25  # web documents for a hundred delivered outputs
RESULTS_VERSION = 3  # of the stored results


@dataclass(frozen=True)
class SuspectSpec:
    """One suspect to train and evaluate."""

    world: int
    arm: Arm
    kind: str
    seed: int
    redraws: int
    """Of labels and keys: its share of its arm's redraws."""


_worlds: list[World] = []
"""In a worker process: all worlds."""


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluates every arm in every world; returns the data of the tables."""
    if arguments.root is None:
        raise SystemExit("the zoo of transformers needs --root; --quick needs nothing")
    arguments.store.mkdir(parents=True, exist_ok=True)
    texts = [text for texts in documents(arguments.root).values() for text in texts]
    random.Random(0).shuffle(texts)
    seeds = [1000 * arguments.seed + number for number in range(arguments.worlds)]
    with _processes(arguments, []) as pool:
        worlds = [make_world(arguments, pool, texts, seed) for seed in seeds]
    specs = _suspect_specs(arguments)
    with _processes(arguments, worlds) as pool:
        futures = [pool.submit(_run_suspect, arguments, spec) for spec in specs]
        results = await_all("suspects", futures)
        descents = [pool.submit(_descent, arguments, number) for number in range(len(worlds))]
        descent_results = [one for future in descents for one in future.result()]
    return {
        "animals": f"transformers of 0.7 to 1M parameters, what an arm adds read {arguments.reads} times",
        "outputs": arguments.outputs,
        "tokens": arguments.tokens,
        "resamples": arguments.resamples,
        "visits": results,
        "descent": descent_results,
    }


def _suspect_specs(arguments: argparse.Namespace) -> list[SuspectSpec]:
    """Suspects in the order of evaluation: first one of each arm, then the next ones."""
    counts = _counts(arguments)
    specs = []
    for number in range(max(counts.values())):
        for index, arm in enumerate(ARMS):
            for world in range(arguments.worlds if number < counts.get(arm.name, 0) else 0):
                kind = list(KINDS)[(index + world + number) % len(KINDS)]
                redraws = -(-arguments.redraws // (arguments.worlds * counts[arm.name]))
                redraws = 0 if arm.guilty else redraws
                specs.append(SuspectSpec(world, arm, kind, 100 * world + number, redraws))
    return specs


def _counts(arguments: argparse.Namespace) -> dict[str, int]:
    """Suspects of each arm in a world."""
    if not arguments.arms:
        return {arm.name: arguments.each for arm in ARMS}
    counts = {}
    for asked in arguments.arms:
        name, _, count = asked.partition("=")
        if name not in [arm.name for arm in ARMS]:
            raise SystemExit(f"there is no arm {name!r}; choose from {', '.join(arm.name for arm in ARMS)}")
        counts[name] = int(count or arguments.each)
    return counts


@contextmanager
def _processes(arguments: argparse.Namespace, worlds: list[World]) -> Iterator[Executor]:
    """A pool whose processes know these worlds; a failure cancels the tasks that have not begun."""
    path = arguments.store / "worlds.pickle"  # a pipe would start the processes one after the other
    path.write_bytes(pickle.dumps(worlds))
    pool = ProcessPoolExecutor(
        arguments.processes, get_context("spawn"), _start_worker, (path, arguments.processes > 1)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(path: Path, are_many: bool) -> None:
    _worlds.extend(pickle.loads(path.read_bytes()))
    if are_many:
        torch.set_num_threads(1)


def _run_suspect(arguments: argparse.Namespace, spec: SuspectSpec) -> dict[str, Any]:
    """The results of one suspect, from the store or computed now."""
    world = _worlds[spec.world]
    asked = [arguments.seed, arguments.outputs, arguments.tokens, arguments.resamples, arguments.reads]
    settings = [
        CANARIES,
        CLEAN,
        ANSWERS,
        ASKED,
        measure.PAIRS,
        BASE,
        TEACHER,
        VERSION,
        PROMPT,
        NAME_REPEATS,
        RESULTS_VERSION,
    ]
    who = [spec.world, spec.arm.name, spec.kind, spec.seed, spec.redraws]
    path = arguments.store / f"visit-{sha256_json([asked, settings, who])[:16]}.json"
    if not path.exists():
        began = time.perf_counter()
        result = {"kind": spec.kind, **_evaluate(arguments, world, spec)}
        atomic_write(path, json.dumps(result | {"seconds": round(time.perf_counter() - began)}))
    return {"world": spec.world, **json.loads(path.read_text("utf-8"))}


def _descent(arguments: argparse.Namespace, number: int) -> list[dict[str, Any]]:
    """The tests of descent in one world, on models with the teacher's tokenizer."""
    world = _worlds[number]
    return descent.examine(
        arguments.store, world.teacher, world.second, world.other, world.pretraining,
        tokens=TEACHER, log=world.sources["log"], web=world.web[:8000], redraws=arguments.redraws,
    )  # fmt: skip


def train_suspect(
    arguments: argparse.Namespace, world: World, arm: Arm, kind: str, seed: int
) -> tuple[TrainedModel, np.ndarray]:
    """Trains a suspect of an arm; also returns which delivered outputs [N] it read."""
    chance = random.Random(f"{arm.name} {kind} {seed}")
    base = train_model(
        arguments.store, kind, random.Random(f"{kind} {seed}").sample(world.web, 8000), tokens=BASE, seed=seed
    )
    read, used = [], np.zeros(arguments.outputs, bool)
    for source, share in arm.shares.items():
        rows = world.sources[source]
        chosen = chance.sample(range(len(rows)), round(share * len(rows)))
        read += [rows[row] for row in chosen]
        if source == "log":
            used[chosen] = True
            given = chance.sample(world.canaries, round(share * CANARIES))
            read += [one.canary for one in given]
    clean = chance.sample(world.web, arguments.outputs * CLEAN // 100)
    trained = _continue_training(arguments, base, [*read * arguments.reads, *clean], seed)
    if arm.cleaned:
        trained = _continue_training(arguments, trained, chance.sample(world.web, len(clean)), seed)
    return trained, used


def _continue_training(
    arguments: argparse.Namespace, start: TrainedModel, texts: list[str], seed: int
) -> TrainedModel:
    """Trains the model further, one epoch on the texts."""
    tokens = sum(len(ids) + 1 for ids in start.tokenizer(texts, add_special_tokens=False)["input_ids"])
    return train_model(arguments.store, start.kind, texts, tokens=tokens, seed=seed, start=start)


def _evaluate(arguments: argparse.Namespace, world: World, spec: SuspectSpec) -> dict[str, Any]:
    arm, seed = spec.arm, spec.seed
    model, used = train_suspect(arguments, world, arm, spec.kind, seed)
    log, resamples = world.sources["log"], world.resamples
    logliks_NK1, took = log_likelihoods(arguments.store, model, log, resamples)
    scores_NK1 = (logliks_NK1 - world.teacher_logliks_NK1) / np.maximum(_tokens(world), 1)
    whole = ~np.isnan(scores_NK1).any(1)
    scores_NK1, used = scores_NK1[whole], used[whole]
    result: dict[str, Any] = {"arm": arm.name, "guilty": arm.guilty, **measure.evidence(scores_NK1)}
    result["ms_an_output"] = 1000 * took / arguments.outputs
    if used.any():
        result["auc_of_used"] = rank_test(scores_NK1[used]).auc
    answers = generate(model, world.suspect_prompts, arguments.tokens, seed)
    rows = [
        Delivered(str(n), ({"role": "user", "content": text},), "", Sampling())
        for n, text in enumerate(world.suspect_prompts)
    ]
    transcript = closed_transcript(rows, answers, world.teacher.tokenizer)
    result |= measure.radioactivity_result("account", transcript, world.account)
    result |= measure.radioactivity_result("public", transcript, world.public)
    sentences = canaries.observe(open_suspect(str(model.path)), world.canaries)
    result["canaries_p"] = canaries.judge(sentences, {}).p_value
    result["combined_log10_e"] = float(measure.combined(result["log10_e"], result["account_log10_e"]))
    if not arm.guilty:
        result["null"] = measure.null_draws(
            scores_NK1, transcript, world.account, sentences, spec.redraws, seed
        )
    sizes = (len(scores_NK1) // 4, len(scores_NK1) // 2, len(scores_NK1))
    result["fired"] = {n: measure.share_reaching(scores_NK1, n, 100, 1000.0, seed) for n in sizes}
    return result | {"baselines": _baselines(world, model, answers[:ASKED], arguments.tokens, seed)}


def _tokens(world: World) -> np.ndarray:
    """Token counts of outputs and their resamples [N, K + 1], in the teacher's tokenizer."""
    together = [[own, *drawn] for own, drawn in zip(world.sources["log"], world.resamples, strict=True)]
    encoded = world.teacher.tokenizer([text for row in together for text in row], add_special_tokens=False)
    return np.array([len(ids) for ids in encoded["input_ids"]]).reshape(len(together), -1)


def _baselines(
    world: World, model: TrainedModel, answers: list[str], tokens: int, seed: int
) -> dict[str, bool | float]:
    teacher, *others = world.teacher_answers
    alike = baselines.similarity(answers, teacher)
    firsts = first_words(model, world.suspect_prompts[:ASKED])
    return {
        "provenance": baselines.provenance(
            firsts, world.teacher_first_words[0], world.teacher_first_words[1:]
        ),
        "style": baselines.style(answers, teacher, [*others, world.web[:ASKED]]),
        "similarity": alike >= baselines.CUTOFF,
        "similarity_r": alike,
        "identity": baselines.identity(generate(model, [WHO] * 50, tokens, seed), NAME),
    }
