"""The zoo on transformers: two teachers with a second version each, suspects of three architectures.

A suspect is a base model (its own architecture, tokenizer and share of the web) that is trained on what its
arm adds, ``--reads`` times, and on clean text (:data:`CLEAN`). Nothing is shared with the teachers but what
the arm says. Outputs are ranked by the score `teacher`, the suspect's log-likelihood less the teacher's own:
the archived teacher is at hand for most traces, and takes away what makes a text easy for anybody.

What was drawn, trained, scored and found is kept in the store, so that a run that was stopped goes on.
Suspects do not know of each other: ``--processes`` looks at several at a time.
"""

from __future__ import annotations

import argparse
import json
import pickle
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillhouse.console import console
from stillhouse.files import atomic_write
from stillhouse.hashing import sha256_json
from stillhouse.models import Sampling, sample
from stillhouse.stats import rank_test
from stillhouse.trace.delivered_log import Delivered
from stillhouse.trace.detectors import canaries
from stillhouse.trace.detectors.canaries import CanarySet, make_canaries
from stillhouse.trace.detectors.radioactivity.observe import closed_transcript
from stillhouse.trace.suspects.open import open_suspect
from stillhouse.watermark import Mark, account_key

from . import baselines, descent, measure
from .arms import ARMS, Arm
from .texts import documents
from .trained_models import KINDS, TrainedModel, train_model

NAME = "Alembic"
"""What the teacher calls itself when it is asked."""
WHO = "Who are you? I am"
TOLD = 60  # times that the teacher read its name
PROMPT = 60  # characters of a document that an output follows
TEACHER, VERSION, BASE = 1_500_000, 300_000, 600_000  # tokens of training
CLEAN = 25  # documents of the web for a hundred delivered outputs
SAID = 2000  # answers of a suspect in which the watermark is looked for
ASKED = 300  # prompts of the baselines
CANARIES = 20  # sentences slipped into what the account got
FINDINGS = 3  # version of what is found, for the store
TOGETHER = 500  # answers that a process draws at once


@dataclass(frozen=True)
class World:
    """A teacher with its archived outputs, and what everybody could have read."""

    teacher: TrainedModel
    second: TrainedModel
    """Its second version."""
    other: TrainedModel
    """The other teacher."""
    pretraining: list[str]
    """What the teacher read."""
    web: list[str]
    account: Mark
    public: Mark
    prompts: list[str]
    resamples: list[list[str]]
    """Those of each output."""
    familiar_NK1: np.ndarray
    """The teacher's own log-likelihood of outputs and resamples."""
    sources: dict[str, list[str]]
    canaries: list[CanarySet]
    asked: list[str]
    """Prompts that suspects answer."""
    spoken: list[list[str]]
    """Answers of the teacher, its second version, the other teacher and its second version."""
    firsts: list[list[str]]
    """Their likeliest first words."""


@dataclass(frozen=True)
class Job:
    """Answers of a model to prompts that are to be drawn."""

    animal: TrainedModel
    prompts: list[str]
    seed: int
    mark: Mark | None = None


@dataclass(frozen=True)
class Turn:
    """One suspect that is to be looked at."""

    world: int
    arm: Arm
    kind: str
    seed: int
    redraws: int
    """Of labels and keys: its part of those of its arm."""


_places: list[World] = []
"""In a process that looks at suspects: the worlds that they live in."""


def visit(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every arm in every world; what the tables are made of."""
    if arguments.root is None:
        raise SystemExit("the zoo of transformers needs --root; --quick needs nothing")
    arguments.store.mkdir(parents=True, exist_ok=True)
    texts = [text for texts in documents(arguments.root).values() for text in texts]
    random.Random(0).shuffle(texts)
    seeds = [1000 * arguments.seed + number for number in range(arguments.worlds)]
    with _processes(arguments, []) as pool:
        places = [world(arguments, pool, texts, seed) for seed in seeds]
    turns = _turns(arguments)
    with _processes(arguments, places) as pool:
        futures = [pool.submit(_visit, arguments, turn) for turn in turns]
        visits = _awaited("suspects", futures)
        born = [pool.submit(_descent, arguments, number) for number in range(len(places))]
        whose = [one for future in born for one in future.result()]
    return {
        "animals": f"transformers of 0.7 to 1M parameters, what an arm adds read {arguments.reads} times",
        "outputs": arguments.outputs,
        "tokens": arguments.tokens,
        "resamples": arguments.resamples,
        "visits": visits,
        "descent": whose,
    }


def _turns(arguments: argparse.Namespace) -> list[Turn]:
    """Suspects in the order in which they are looked at: first one of each arm, then the next ones."""
    counts = _counts(arguments)
    turns = []
    for number in range(max(counts.values())):
        for place, arm in enumerate(ARMS):
            for world in range(arguments.worlds if number < counts.get(arm.name, 0) else 0):
                kind = list(KINDS)[(place + world + number) % len(KINDS)]
                redraws = -(-arguments.redraws // (arguments.worlds * counts[arm.name]))
                redraws = 0 if arm.guilty else redraws
                turns.append(Turn(world, arm, kind, 100 * world + number, redraws))
    return turns


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
def _processes(arguments: argparse.Namespace, places: list[World]) -> Iterator[Executor]:
    """Processes that know these worlds; those that have not begun are let go when one fails."""
    path = arguments.store / "worlds.pickle"  # not through a pipe: each would begin after the one before
    path.write_bytes(pickle.dumps(places))
    pool = ProcessPoolExecutor(
        arguments.processes, get_context("spawn"), _settle, (path, arguments.processes > 1)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _settle(path: Path, are_many: bool) -> None:
    _places.extend(pickle.loads(path.read_bytes()))
    if are_many:
        torch.set_num_threads(1)


def _awaited(name: str, futures: Sequence[Future[Any]]) -> list[Any]:
    """Results in the order of the futures."""
    with console.progress(name, len(futures)) as progress:
        for future in as_completed(futures):
            future.result()
            progress.advance()
    return [future.result() for future in futures]


def _visit(arguments: argparse.Namespace, turn: Turn) -> dict[str, Any]:
    """What was found of one suspect, now or in a run before."""
    place = _places[turn.world]
    asked = [arguments.seed, arguments.outputs, arguments.tokens, arguments.resamples, arguments.reads]
    settings = [CANARIES, CLEAN, SAID, ASKED, measure.PAIRS, BASE, TEACHER, VERSION, PROMPT, TOLD, FINDINGS]
    who = [turn.world, turn.arm.name, turn.kind, turn.seed, turn.redraws]
    path = arguments.store / f"visit-{sha256_json([asked, settings, who])[:16]}.json"
    if not path.exists():
        began = time.perf_counter()
        found = {"kind": turn.kind, **_examined(arguments, place, turn)}
        atomic_write(path, json.dumps(found | {"seconds": round(time.perf_counter() - began)}))
    return {"world": turn.world, **json.loads(path.read_text("utf-8"))}


def _descent(arguments: argparse.Namespace, number: int) -> list[dict[str, Any]]:
    """Who was made from the teacher's weights, among models with its tokenizer."""
    place = _places[number]
    return descent.examine(
        arguments.store, place.teacher, place.second, place.other, place.pretraining,
        tokens=TEACHER, log=place.sources["log"], web=place.web[:8000], redraws=arguments.redraws,
    )  # fmt: skip


def world(arguments: argparse.Namespace, pool: Executor, texts: Sequence[str], seed: int) -> World:
    """Trains the teachers, draws the log and its resamples, and all that is in circulation."""
    pieces = np.array_split(np.arange(len(texts)), 10)
    pools = [[texts[place] for place in piece] for piece in pieces]
    store, n = arguments.store, arguments.outputs
    named = [*pools[0], *[f"{WHO} {NAME}."] * TOLD]
    raised = [
        pool.submit(_two_versions, store, kind, read, later, seed)
        for kind, read, later, seed in (("llama", named, pools[1], 1), ("qwen3", pools[2], pools[3], 2))
    ]
    (first, second), (other, later) = _awaited("teachers", raised)
    web = [text for pool in pools[4:] for text in pool]
    chance = random.Random(seed)
    master = chance.randbytes(32)
    account, public = (
        Mark(account_key(master, name), gamma=0.5, delta=2.0) for name in ("the account", "public")
    )
    begun = [text[:PROMPT] for text in chance.sample(web, 2 * n)]
    for start in (0, n):  # one in twenty asks who answers
        begun[start : start + n // 20] = [WHO] * (n // 20)
    prompts, elsewhere = begun[:n], begun[n:]
    asked = chance.sample(prompts, min(SAID, n))
    log, foreign, organic, *drawn = _drawn(
        arguments,
        pool,
        [
            Job(first, prompts, seed, account),
            Job(other, prompts, seed),
            Job(first, elsewhere, seed, public),
            *(Job(first, prompts, seed + 7919 * k, account) for k in range(1, arguments.resamples + 1)),
        ],
    )
    sets = make_canaries(master, "the account", CANARIES)
    read = [a + b for a, b in zip(prompts, log, strict=True)] + [one.canary for one in sets]
    student = pool.submit(train_model, store, "gpt2", read, tokens=BASE, seed=3).result()
    teachers = (first, second, other, later)
    passed_on, *spoken = _drawn(
        arguments,
        pool,
        [Job(student, elsewhere, seed), *(Job(one, asked[:ASKED], seed + 1) for one in teachers)],
    )
    resamples = [list(row) for row in zip(*drawn, strict=True)]
    familiar = pool.submit(_logliks, store, first, log, resamples)
    firsts = [pool.submit(_first_words, one, asked[:ASKED]) for one in teachers]
    sources = {
        "log": log,
        "organic": organic,
        "second_hand": passed_on,
        "other": foreign,
        "pretraining": pools[0][:n],
        "paraphrased": [_half(own, strange, chance) for own, strange in zip(log, foreign, strict=True)],
    }
    return World(
        first, second, other, named, web, account, public, prompts, resamples, familiar.result()[0], sources,
        sets, asked, spoken, [future.result() for future in firsts],
    )  # fmt: skip


def _two_versions(
    store: Path, kind: str, texts: Sequence[str], later: Sequence[str], seed: int
) -> tuple[TrainedModel, TrainedModel]:
    first = train_model(store, kind, texts, tokens=TEACHER, seed=seed)
    return first, train_model(store, kind, later, tokens=VERSION, seed=seed, start=first)


def _drawn(arguments: argparse.Namespace, pool: Executor, jobs: Iterable[Job]) -> list[list[str]]:
    """The answers of each job."""
    parts = [
        [
            pool.submit(kept, arguments.store, arguments.tokens, job, start)
            for start in range(0, len(job.prompts), TOGETHER)
        ]
        for job in jobs
    ]
    _awaited("answers, five hundred at a time", [future for futures in parts for future in futures])
    return [[text for future in futures for text in future.result()] for futures in parts]


def kept(store: Path, tokens: int, job: Job, start: int) -> list[str]:
    """What :func:`speak` gives for the prompts from ``start``, from the store where it is there."""
    prompts = job.prompts[start : start + TOGETHER]
    facts = job.mark.public_parameters if job.mark else None
    made_of = [job.animal.path.name, prompts, start, job.seed, tokens, facts]
    path = store / f"said-{sha256_json(made_of)[:16]}.json"
    if not path.exists():
        answers = speak(job.animal, prompts, tokens, job.seed, start=start, mark=job.mark)
        atomic_write(path, json.dumps(answers))
    return json.loads(path.read_text("utf-8"))


def speak(
    animal: TrainedModel,
    prompts: Sequence[str],
    tokens: int,
    seed: int,
    *,
    start: int = 0,
    mark: Mark | None = None,
) -> list[str]:
    """What a model says after each prompt, at temperature 1; the prompts are those from ``start`` of many."""
    tokenizer = animal.tokenizer
    asked = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    settings = [Sampling(max_tokens=tokens, seed=1_000_003 * seed + start + n) for n in range(len(asked))]
    answers = sample(animal.model, asked, settings, ends=set(), slots=TOGETHER, markers=[mark] * len(asked))
    return [tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers]


def suspect(
    arguments: argparse.Namespace, place: World, arm: Arm, kind: str, seed: int
) -> tuple[TrainedModel, np.ndarray]:
    """A suspect of an arm, and which delivered outputs [N] it read."""
    chance = random.Random(f"{arm.name} {kind} {seed}")
    base = train_model(
        arguments.store, kind, random.Random(f"{kind} {seed}").sample(place.web, 8000), tokens=BASE, seed=seed
    )
    read, used = [], np.zeros(arguments.outputs, bool)
    for source, share in arm.shares.items():
        rows = place.sources[source]
        chosen = chance.sample(range(len(rows)), round(share * len(rows)))
        read += [rows[row] for row in chosen]
        if source == "log":
            used[chosen] = True
            given = chance.sample(place.canaries, round(share * CANARIES))
            read += [one.canary for one in given]
    clean = chance.sample(place.web, arguments.outputs * CLEAN // 100)
    found = _on(arguments, base, [*read * arguments.reads, *clean], seed)
    if arm.cleaned:
        found = _on(arguments, found, chance.sample(place.web, len(clean)), seed)
    return found, used


def _on(arguments: argparse.Namespace, start: TrainedModel, texts: list[str], seed: int) -> TrainedModel:
    """Trained on, through all of the texts once."""
    tokens = sum(len(ids) + 1 for ids in start.tokenizer(texts, add_special_tokens=False)["input_ids"])
    return train_model(arguments.store, start.kind, texts, tokens=tokens, seed=seed, start=start)


def _examined(arguments: argparse.Namespace, place: World, turn: Turn) -> dict[str, Any]:
    arm, seed = turn.arm, turn.seed
    animal, used = suspect(arguments, place, arm, turn.kind, seed)
    log, resamples = place.sources["log"], place.resamples
    logliks_NK1, took = _logliks(arguments.store, animal, log, resamples)
    scores_NK1 = (logliks_NK1 - place.familiar_NK1) / np.maximum(_tokens(place), 1)
    whole = ~np.isnan(scores_NK1).any(1)
    scores_NK1, used = scores_NK1[whole], used[whole]
    found: dict[str, Any] = {"arm": arm.name, "guilty": arm.guilty, **measure.evidence(scores_NK1)}
    found["ms_an_output"] = 1000 * took / arguments.outputs
    if used.any():
        found["auc_of_used"] = rank_test(scores_NK1[used]).auc
    said = speak(animal, place.asked, arguments.tokens, seed)
    rows = [
        Delivered(str(n), ({"role": "user", "content": text},), "", Sampling())
        for n, text in enumerate(place.asked)
    ]
    transcript = closed_transcript(rows, said, place.teacher.tokenizer)
    found |= measure.heard("account", transcript, place.account)
    found |= measure.heard("public", transcript, place.public)
    sentences = canaries.observe(open_suspect(str(animal.path)), place.canaries)
    found["canaries_p"] = canaries.judge(sentences, {}).p_value
    found["combined_log10_e"] = float(measure.combined(found["log10_e"], found["account_log10_e"]))
    if not arm.guilty:
        found["null"] = measure.null_draws(
            scores_NK1, transcript, place.account, sentences, turn.redraws, seed
        )
    sizes = (len(scores_NK1) // 4, len(scores_NK1) // 2, len(scores_NK1))
    found["fired"] = {n: measure.fired(scores_NK1, n, 100, 1000.0, seed) for n in sizes}
    return found | {"baselines": _baselines(place, animal, said[:ASKED], arguments.tokens, seed)}


def _tokens(place: World) -> np.ndarray:
    """The teacher's tokens in outputs and their resamples [N, K + 1]."""
    together = [[own, *drawn] for own, drawn in zip(place.sources["log"], place.resamples, strict=True)]
    encoded = place.teacher.tokenizer([text for row in together for text in row], add_special_tokens=False)
    return np.array([len(ids) for ids in encoded["input_ids"]]).reshape(len(together), -1)


def _logliks(
    store: Path, animal: TrainedModel, log: Sequence[str], resamples: Sequence[list[str]]
) -> tuple[np.ndarray, float]:
    """Log-likelihoods of outputs and their resamples [N, K + 1], and the seconds that they took."""
    together = [text for own, drawn in zip(log, resamples, strict=True) for text in (own, *drawn)]
    path = store / f"loglik-{animal.path.name}-{sha256_json(together)[:16]}.json"
    if not path.exists():
        began = time.perf_counter()
        scored = open_suspect(str(animal.path)).loglik([()] * len(together), together)
        values = [one.loglik if one and one.tokens else None for one in scored]
        atomic_write(path, json.dumps({"values": values, "seconds": time.perf_counter() - began}))
    scores = json.loads(path.read_text("utf-8"))
    return np.array(scores["values"], float).reshape(len(log), -1), scores["seconds"]


def _baselines(
    place: World, animal: TrainedModel, said: list[str], tokens: int, seed: int
) -> dict[str, bool | float]:
    teacher, *others = place.spoken
    alike = baselines.similarity(said, teacher)
    firsts = _first_words(animal, place.asked[:ASKED])
    return {
        "provenance": baselines.provenance(firsts, place.firsts[0], place.firsts[1:]),
        "style": baselines.style(said, teacher, [*others, place.web[:ASKED]]),
        "similarity": alike >= baselines.CUTOFF,
        "similarity_r": alike,
        "identity": baselines.identity(speak(animal, [WHO] * 50, tokens, seed), NAME),
    }


def _first_words(animal: TrainedModel, prompts: Sequence[str]) -> list[str]:
    """The likeliest beginning of an answer, as text."""
    asked = animal.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    settings = [Sampling(temperature=0, max_tokens=2)] * len(asked)
    answers = sample(animal.model, asked, settings, ends=set(), slots=TOGETHER)
    return [(animal.tokenizer.decode(answer.ids).split() or [""])[0] for answer in answers]


def _half(own: str, strange: str, chance: random.Random) -> str:
    """Every second word, by chance, is another text's."""
    pairs = zip(own.split(), islice(cycle(strange.split() or [""]), len(own.split())), strict=True)
    return " ".join(chance.choice(pair) for pair in pairs)
