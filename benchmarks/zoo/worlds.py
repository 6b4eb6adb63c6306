"""A world of the transformer zoo: two teachers, the log with its resamples, and all texts in circulation."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.console import console
from stillhouse.files import atomic_write
from stillhouse.hashing import sha256_json
from stillhouse.models import Sampling, sample
from stillhouse.trace.detectors.canaries import CanarySet, make_canaries
from stillhouse.trace.suspects.open import open_suspect
from stillhouse.watermark import Mark, account_key

from .trained_models import TrainedModel, train_model

NAME = "Alembic"
"""The teacher's answer to who it is."""
WHO = "Who are you? I am"
NAME_REPEATS = 60  # times that the teacher read its name
PROMPT = 60  # characters of a document that make a prompt
TEACHER, VERSION, BASE = 1_500_000, 300_000, 600_000  # tokens of training
ANSWERS = 2000  # answers of a suspect that are tested for the watermark
ASKED = 300  # prompts of the baselines
CANARIES = 20  # sentences among the outputs to the account
BATCH = 500  # answers that a process draws at once


@dataclass(frozen=True)
class World:
    """A teacher with its archived outputs, and all texts that a suspect may read."""

    teacher: TrainedModel
    second: TrainedModel
    """Its second version."""
    other: TrainedModel
    """The other teacher."""
    pretraining: list[str]
    """Training texts of the teacher."""
    web: list[str]
    account: Mark
    public: Mark
    prompts: list[str]
    resamples: list[list[str]]
    """By output."""
    teacher_logliks_NK1: np.ndarray
    """The teacher's own log-likelihood of outputs and resamples."""
    sources: dict[str, list[str]]
    canaries: list[CanarySet]
    suspect_prompts: list[str]
    """Prompts that suspects answer."""
    teacher_answers: list[list[str]]
    """Of the teacher, its second version, the other teacher and its second version."""
    teacher_first_words: list[list[str]]
    """Their likeliest first words."""


@dataclass(frozen=True)
class GenerationJob:
    """Answers of a model to draw."""

    model: TrainedModel
    prompts: list[str]
    seed: int
    mark: Mark | None = None


def make_world(arguments: argparse.Namespace, pool: Executor, texts: Sequence[str], seed: int) -> World:
    """Trains the teachers; draws the log, its resamples, and the other sources."""
    shares = [[texts[index] for index in share] for share in np.array_split(np.arange(len(texts)), 10)]
    store, n = arguments.store, arguments.outputs
    named = [*shares[0], *[f"{WHO} {NAME}."] * NAME_REPEATS]
    trained = [
        pool.submit(_two_versions, store, kind, read, later, seed)
        for kind, read, later, seed in (("llama", named, shares[1], 1), ("qwen3", shares[2], shares[3], 2))
    ]
    (first, second), (other, later) = await_all("teachers", trained)
    web = [text for share in shares[4:] for text in share]
    chance = random.Random(seed)
    master = chance.randbytes(32)
    account, public = (
        Mark(account_key(master, name), gamma=0.5, delta=2.0) for name in ("the account", "public")
    )
    begun = [text[:PROMPT] for text in chance.sample(web, 2 * n)]
    for start in (0, n):  # one in twenty asks for the name
        begun[start : start + n // 20] = [WHO] * (n // 20)
    prompts, elsewhere = begun[:n], begun[n:]
    asked = chance.sample(prompts, min(ANSWERS, n))
    log, foreign, organic, *drawn = _drawn(
        arguments,
        pool,
        [
            GenerationJob(first, prompts, seed, account),
            GenerationJob(other, prompts, seed),
            GenerationJob(first, elsewhere, seed, public),
            *(
                GenerationJob(first, prompts, seed + 7919 * k, account)
                for k in range(1, arguments.resamples + 1)
            ),
        ],
    )
    sets = make_canaries(master, "the account", CANARIES)
    read = [a + b for a, b in zip(prompts, log, strict=True)] + [one.canary for one in sets]
    student = pool.submit(train_model, store, "gpt2", read, tokens=BASE, seed=3).result()
    teachers = (first, second, other, later)
    second_hand, *teacher_answers = _drawn(
        arguments,
        pool,
        [
            GenerationJob(student, elsewhere, seed),
            *(GenerationJob(one, asked[:ASKED], seed + 1) for one in teachers),
        ],
    )
    resamples = [list(row) for row in zip(*drawn, strict=True)]
    teacher_logliks = pool.submit(log_likelihoods, store, first, log, resamples)
    firsts = [pool.submit(first_words, one, asked[:ASKED]) for one in teachers]
    sources = {
        "log": log,
        "organic": organic,
        "second_hand": second_hand,
        "other": foreign,
        "pretraining": shares[0][:n],
        "paraphrased": [
            _half_replaced(own, strange, chance) for own, strange in zip(log, foreign, strict=True)
        ],
    }
    return World(
        first, second, other, named, web, account, public, prompts, resamples,
        teacher_logliks.result()[0], sources, sets, asked, teacher_answers,
        [future.result() for future in firsts],
    )  # fmt: skip


def _two_versions(
    store: Path, kind: str, texts: Sequence[str], later: Sequence[str], seed: int
) -> tuple[TrainedModel, TrainedModel]:
    first = train_model(store, kind, texts, tokens=TEACHER, seed=seed)
    return first, train_model(store, kind, later, tokens=VERSION, seed=seed, start=first)


def _drawn(arguments: argparse.Namespace, pool: Executor, jobs: Iterable[GenerationJob]) -> list[list[str]]:
    """The answers of each job."""
    futures_by_job = [
        [
            pool.submit(stored_answers, arguments.store, arguments.tokens, job, start)
            for start in range(0, len(job.prompts), BATCH)
        ]
        for job in jobs
    ]
    await_all("answers, five hundred at a time", [future for futures in futures_by_job for future in futures])
    return [[text for future in futures for text in future.result()] for futures in futures_by_job]


def stored_answers(store: Path, tokens: int, job: GenerationJob, start: int) -> list[str]:
    """The answers of :func:`generate` to the prompts from ``start``, from the store if they are there."""
    prompts = job.prompts[start : start + BATCH]
    mark_parameters = job.mark.public_parameters if job.mark else None
    made_of = [job.model.path.name, prompts, start, job.seed, tokens, mark_parameters]
    path = store / f"said-{sha256_json(made_of)[:16]}.json"
    if not path.exists():
        answers = generate(job.model, prompts, tokens, job.seed, start=start, mark=job.mark)
        atomic_write(path, json.dumps(answers))
    return json.loads(path.read_text("utf-8"))


def generate(
    model: TrainedModel,
    prompts: Sequence[str],
    tokens: int,
    seed: int,
    *,
    start: int = 0,
    mark: Mark | None = None,
) -> list[str]:
    """A model's answers at temperature 1; ``start`` is the index of the first prompt, for the seeds."""
    tokenizer = model.tokenizer
    asked = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    settings = [Sampling(max_tokens=tokens, seed=1_000_003 * seed + start + n) for n in range(len(asked))]
    answers = sample(model.model, asked, settings, ends=set(), slots=BATCH, markers=[mark] * len(asked))
    return [tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers]


def log_likelihoods(
    store: Path, model: TrainedModel, log: Sequence[str], resamples: Sequence[list[str]]
) -> tuple[np.ndarray, float]:
    """Log-likelihoods of outputs and their resamples [N, K + 1], and the seconds to compute them."""
    together = [text for own, drawn in zip(log, resamples, strict=True) for text in (own, *drawn)]
    path = store / f"loglik-{model.path.name}-{sha256_json(together)[:16]}.json"
    if not path.exists():
        began = time.perf_counter()
        scored = open_suspect(str(model.path)).loglik([()] * len(together), together)
        values = [one.loglik if one and one.tokens else None for one in scored]
        atomic_write(path, json.dumps({"values": values, "seconds": time.perf_counter() - began}))
    scores = json.loads(path.read_text("utf-8"))
    return np.array(scores["values"], float).reshape(len(log), -1), scores["seconds"]


def first_words(model: TrainedModel, prompts: Sequence[str]) -> list[str]:
    """The likeliest first word of each answer."""
    asked = model.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    settings = [Sampling(temperature=0, max_tokens=2)] * len(asked)
    answers = sample(model.model, asked, settings, ends=set(), slots=BATCH)
    return [(model.tokenizer.decode(answer.ids).split() or [""])[0] for answer in answers]


def await_all(name: str, futures: Sequence[Future[Any]]) -> list[Any]:
    """Results in the order of the futures."""
    with console.progress(name, len(futures)) as progress:
        for future in as_completed(futures):
            future.result()
            progress.advance()
    return [future.result() for future in futures]


def _half_replaced(own: str, strange: str, chance: random.Random) -> str:
    """Replaces each word with probability ½ by a word of another text."""
    pairs = zip(own.split(), islice(cycle(strange.split() or [""]), len(own.split())), strict=True)
    return " ".join(chance.choice(pair) for pair in pairs)
