"""The zoo in minutes: trigram models trained on real text, every arm.

All models share one tokenizer here, so they differ only in what they read. Texts are kept as token ids.
Outputs carry a green-list mark: outputs to the account and their resamples under the account's key, outputs
to others under the public key.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from typing import Any, cast

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from stillhouse.console import console
from stillhouse.stats import rank_test
from stillhouse.trace.detectors import canaries, rephrasings, style
from stillhouse.trace.detectors.canaries import CanarySet, make_canaries
from stillhouse.trace.detectors.radioactivity import observe as radioactivity
from stillhouse.trace.detectors.rephrasings import TextVersions, draw_versions
from stillhouse.trace.suspects.base import Suspect, TextLikelihood
from stillhouse.watermark import Mark, account_key

from . import baselines, measure
from .arms import ARMS, Arm
from .ngrams import Trigrams
from .python_docs import python_documentation
from .vocabulary import byte_level_bpe

VOCABULARY = 512
PROMPT = 8  # tokens of a prompt
LONG = 40  # tokens of an output
ASKED = 400  # prompts of the baselines
CANARIES = 20  # sentences among the outputs to the account
TEXTS, VERSIONS = 30, 4  # texts of an author, and versions of each
REFERENCES = 19  # models trained on the web only, for style
STYLE = 100  # prompts of the style test
NAME = "Alembic"
"""The teacher's answer to who it is."""
WHO = f"Who are you? I am {NAME}."


@dataclass(frozen=True)
class World:
    """A teacher, its log with fresh resamples, and all texts that a suspect may read.

    Shapes: N outputs of PROMPT + LONG tokens; resamples [N, K, PROMPT + LONG].
    """

    tokenizer: Tokenizer
    teacher: Trigrams
    other_teacher: Trigrams
    web: tuple[Sequence[int], ...]
    account: Mark
    public: Mark
    prompts: np.ndarray
    resamples: np.ndarray
    sources: dict[str, np.ndarray | tuple[Sequence[int], ...]]
    canaries: tuple[CanarySet, ...]
    author: tuple[TextVersions, ...]
    """An author's published texts, each in the version that a key drew."""
    references: tuple[list[str], ...]
    """Answers of other models to the prompts of the style test."""

    @property
    def log(self) -> np.ndarray:
        delivered = self.sources["log"]
        assert isinstance(delivered, np.ndarray)
        return delivered

    def decode(self, outputs: np.ndarray) -> list[str]:
        """Outputs as text, without their prompts."""
        return [self.tokenizer.decode(row) for row in outputs[:, PROMPT:].tolist()]


def make_world(texts: Sequence[str], *, n: int, k: int, seed: int, references: int = 0) -> World:
    """Splits text between two teachers and the web; draws ``n`` outputs and ``k`` resamples of each.

    Args:
        references: number of reference models for the style test.
    """
    generator = np.random.default_rng(seed)
    tokenizer = byte_level_bpe(texts, VOCABULARY)
    who = tokenizer.encode(WHO).ids
    ids = [row.ids for row in tokenizer.encode_batch(list(texts)) if len(row.ids) > PROMPT]
    shares = np.array_split(generator.permutation(len(ids)), 5)
    first, second, *web_shares = [[ids[index] for index in share] for share in shares]
    teacher = Trigrams(VOCABULARY, [*first, *[who] * 20])
    other = Trigrams(VOCABULARY, second)
    web = tuple(row for share in web_shares for row in share)
    master = generator.bytes(32)
    account, public = (
        Mark(account_key(master, name), gamma=0.5, delta=2.0) for name in ("the account", "public")
    )

    def prompts(count: int) -> np.ndarray:
        rows = generator.integers(0, len(web), count)
        asked = np.stack([_random_span(web[row], PROMPT, generator) for row in rows])
        asked[: count // 20] = who[:PROMPT]  # one in twenty asks for the name
        return asked

    def generate(model: Trigrams, asked: np.ndarray, mark: Mark | None = None) -> np.ndarray:
        tilt = partial(apply_mark, mark) if mark else None
        return model.sample(asked, LONG, generator, tilt)

    asked = prompts(n)
    log = generate(teacher, asked, account)
    resamples = np.stack([generate(teacher, asked, account) for _ in range(k)], 1)
    sets = tuple(make_canaries(master, "the account", CANARIES))
    other_outputs = [generate(other, asked[-TEXTS:])[:, PROMPT:].tolist() for _ in range(VERSIONS)]
    versions = [tuple(map(tokenizer.decode, rows)) for rows in zip(*other_outputs, strict=True)]
    unpublished = [TextVersions(str(n), one, 0) for n, one in enumerate(versions)]
    author = tuple(draw_versions(unpublished, generator.bytes(32)))
    student = Trigrams(VOCABULARY, [*web, *log.tolist(), *canary_and_author_ids(tokenizer, sets, author)])
    paraphrased = log.copy()
    exchanged = generator.random(log.shape) < 0.5
    exchanged[:, :PROMPT] = False
    paraphrased[exchanged] = generate(other, asked)[exchanged]
    sources: dict[str, Any] = {
        "log": log,
        "organic": generate(teacher, prompts(n), public),
        "second_hand": generate(student, prompts(n)),
        "other": generate(other, asked),
        "pretraining": tuple(first),
        "paraphrased": paraphrased,
    }
    world = World(
        tokenizer, teacher, other, web, account, public, asked, resamples, sources, sets, author, ()
    )  # fmt: skip
    others = [
        train_suspect(world, ARMS[0], seed=10**6 + 1000 * seed + number)[0] for number in range(references)
    ]
    answers = tuple(world.decode(generate(one, asked[-STYLE:])) for one in others)
    return replace(world, references=answers)


def canary_and_author_ids(
    tokenizer: Tokenizer, sets: Sequence[CanarySet], author: Sequence[TextVersions]
) -> list[list[int]]:
    """The delivered canaries, then the author's published texts."""
    texts = [one.canary for one in sets] + [one.versions[one.published] for one in author]
    return [row.ids for row in tokenizer.encode_batch(texts)]


def apply_mark(mark: Mark, ids_BT: np.ndarray, chances_BV: np.ndarray) -> np.ndarray:
    """Applies ``mark`` to the next-token probabilities of many sequences."""
    answers = ids_BT[:, PROMPT:].tolist()
    return np.stack([mark(ids, chances_V) for ids, chances_V in zip(answers, chances_BV, strict=True)])


def train_suspect(world: World, arm: Arm, seed: int) -> tuple[Trigrams, np.ndarray]:
    """Trains a suspect of an arm; also returns which delivered outputs [N] it read.

    Trigram models do not forget: `cleaned` means that the clean text counts three times.
    """
    generator = np.random.default_rng(seed)
    web = [world.web[row] for row in generator.permutation(len(world.web))[: len(world.web) // 2]]
    read, used = list(web), np.zeros(len(world.log), bool)
    weights = [3.0 if arm.cleaned else 1.0] * len(read)
    for source, share in arm.shares.items():
        rows = world.sources[source]
        chosen = generator.permutation(len(rows))[: round(share * len(rows))]
        read += [rows[row] for row in chosen]
        weights += [1.0] * len(chosen)
        if source == "log":
            used[chosen] = True
            given = canary_and_author_ids(world.tokenizer, world.canaries, world.author)
            for rows in (np.arange(CANARIES), CANARIES + np.arange(TEXTS)):
                read += [given[row] for row in generator.permutation(rows)[: round(share * len(rows))]]
            weights += [1.0] * (len(read) - len(weights))
    return Trigrams(VOCABULARY, read, weights), used


def scores(model: Trigrams, world: World) -> np.ndarray:
    """Mean log-likelihood of the delivered output (column 0) and its resamples, [N, K + 1]."""
    n, k = world.resamples.shape[:2]
    together = np.concatenate([world.log[:, None], world.resamples], 1).reshape(n * (k + 1), -1)
    chunks = np.array_split(together, 1 + len(together) // 2000)
    return np.concatenate([model.score(chunk, skip=PROMPT).mean(1) for chunk in chunks]).reshape(n, k + 1)


def _random_span(row: Sequence[int], length: int, generator: np.random.Generator) -> np.ndarray:
    start = generator.integers(0, len(row) - length + 1)
    return np.asarray(row[start : start + length])


@dataclass(frozen=True)
class TrigramSuspect:
    """A trigram model with a suspect's interface for log-likelihoods."""

    model: Trigrams
    tokenizer: Tokenizer

    def loglik(self, prompts: Sequence[object], texts: Sequence[str]) -> list[TextLikelihood | None]:
        ids = [row.ids for row in self.tokenizer.encode_batch(list(texts))]
        scored: list[TextLikelihood | None] = [None] * len(ids)
        for length in sorted({len(row) for row in ids}):
            same_length = [index for index, row in enumerate(ids) if len(row) == length]
            for index, logp in zip(
                same_length, self.model.score(np.array([ids[n] for n in same_length])), strict=True
            ):
                scored[index] = TextLikelihood(len(logp), float(logp.sum()), logp.astype(np.float32))
        return scored


def open_transcript(model: Trigrams, outputs: np.ndarray) -> pa.Table:
    """Radioactivity's open-mode transcript: the suspect's likeliest token after each token of the outputs."""
    answers = outputs[:, PROMPT:]
    predicted = np.column_stack([np.zeros(len(answers), int), model.argmax(answers)])
    columns = {"context": [[]] * len(answers), "tokens": answers.tolist(), "predicted": predicted.tolist()}
    same = {"account": "the account", "mode": "open", "text": "", "error": None}
    rows = [
        same | {"id": str(n)} | {name: column[n] for name, column in columns.items()}
        for n in range(len(answers))
    ]
    return pa.Table.from_pylist(rows, radioactivity.SCHEMA)


def canary_transcript(model: Trigrams, world: World) -> pa.Table:
    """The suspect's log-likelihood of every canary and decoy."""
    return canaries.observe(cast(Suspect, TrigramSuspect(model, world.tokenizer)), world.canaries)


def rephrasing_transcript(model: Trigrams, world: World) -> pa.Table:
    """The suspect's log-likelihood of every version of the author's texts."""
    return rephrasings.observe(cast(Suspect, TrigramSuspect(model, world.tokenizer)), world.author)


def style_transcript(model: Trigrams, world: World, generator: np.random.Generator) -> pa.Table:
    """Answers of suspect, references and both teachers to the same prompts."""
    asked = world.prompts[-STYLE:]

    def answer(model: Trigrams) -> list[str]:
        return world.decode(model.sample(asked, LONG, generator))

    answers = {("suspect", "suspect"): answer(model)}
    answers |= {
        ("teacher", "candidate"): answer(world.teacher),
        ("other", "candidate"): answer(world.other_teacher),
    }
    answers |= {(f"reference {n}", "reference"): texts for n, texts in enumerate(world.references)}
    return pa.Table.from_pylist(
        [
            {"model": name, "group": group, "prompt_id": str(number), "text": text}
            for (name, group), texts in answers.items()
            for number, text in enumerate(texts)
        ],
        style.SCHEMA,
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluates every arm in every world, with a process for each world; returns the data of the tables."""
    numbers, context = range(arguments.worlds), get_context("spawn")
    with ExitStack() as stack, console.progress("suspects", len(numbers) * len(ARMS)) as progress:
        pools = [stack.enter_context(ProcessPoolExecutor(1, context)) for _ in numbers]
        futures = [
            pools[n].submit(_run_suspect, arguments, n, arm) for n in numbers for arm in range(len(ARMS))
        ]
        for future in as_completed(futures):
            future.result()
            progress.advance()
        results = [future.result() for future in futures]
    return {
        "animals": "trigrams",
        "outputs": arguments.outputs,
        "resamples": arguments.resamples,
        "visits": results,
    }


def _run_suspect(arguments: argparse.Namespace, number: int, arm: int) -> dict[str, Any]:
    seed = 1000 * arguments.seed + number
    world = _world_of_process(arguments.outputs, arguments.resamples, seed)
    redraws = arguments.redraws // arguments.worlds
    return {"world": number, **_evaluate(world, ARMS[arm], 100 * seed + arm, redraws)}


@cache
def _world_of_process(outputs: int, resamples: int, seed: int) -> World:
    """The world of this process."""
    return make_world(python_documentation(), n=outputs, k=resamples, seed=seed, references=REFERENCES)


def _evaluate(world: World, arm: Arm, seed: int, redraws: int) -> dict[str, Any]:
    model, used = train_suspect(world, arm, seed)
    scores_NK1 = scores(model, world)
    result: dict[str, Any] = {"arm": arm.name, "guilty": arm.guilty, **measure.evidence(scores_NK1)}
    if used.any():
        result["auc_of_used"] = rank_test(scores_NK1[used]).auc
    transcript_of_log = open_transcript(model, world.log)
    organic = world.sources["organic"]
    assert isinstance(organic, np.ndarray)
    for name, transcript, mark in (
        ("account", transcript_of_log, world.account),
        ("public", open_transcript(model, organic), world.public),
    ):
        result |= measure.radioactivity_result(name, transcript, mark)
    sentences = canary_transcript(model, world)
    result["canaries_p"] = canaries.judge(sentences, {}).p_value
    published = rephrasing_transcript(model, world)
    result["rephrasings_p"] = rephrasings.judge(published, {}).p_value
    answers = style_transcript(model, world, np.random.default_rng(seed))
    result["style_p"] = style.judge(answers, {"seed": 0, "alpha": 0.05}).p_value
    result["combined_log10_e"] = float(measure.combined(result["log10_e"], result["account_log10_e"]))
    if not arm.guilty:
        result["null"] = measure.null_draws(
            scores_NK1, transcript_of_log, world.account, sentences, redraws, seed
        )
        result["null"]["rephrasings"] = measure.redrawn_versions(published, redraws, seed)
    whole = len(scores_NK1)
    result["fired"] = {
        n: measure.share_reaching(scores_NK1, n, 100, 1000.0, seed) for n in (whole // 4, whole // 2, whole)
    }
    return result | {"baselines": examine_baselines(world, model, seed)}


def examine_baselines(world: World, model: Trigrams, seed: int) -> dict[str, bool | float]:
    generator = np.random.default_rng(seed)
    asked = np.stack(
        [
            _random_span(world.web[row], PROMPT, generator)
            for row in generator.integers(0, len(world.web), ASKED)
        ]
    )
    models = (model, world.teacher, world.other_teacher)
    first = [model.next(asked[:, -2], asked[:, -1]).argmax(1).tolist() for model in models]
    texts = [world.decode(model.sample(asked, LONG, generator)) for model in models]
    human = [world.tokenizer.decode(list(row)) for row in world.web[:ASKED]]
    who = np.repeat(np.asarray(world.tokenizer.encode(WHO).ids[:PROMPT])[None], 50, 0)
    alike = baselines.similarity(texts[0], texts[1])
    return {
        "provenance": baselines.provenance(first[0], first[1], first[2:]),
        "style": baselines.style(texts[0], texts[1], [texts[2], human]),
        "similarity": alike >= baselines.CUTOFF,
        "similarity_r": alike,
        "identity": baselines.identity(world.decode(model.sample(who, LONG, generator)), NAME),
    }
