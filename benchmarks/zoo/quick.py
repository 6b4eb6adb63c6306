"""The zoo in minutes: trigram animals, raised on real text, every arm.

All animals share one tokenizer here, so what differs is only what they read. Texts are kept as token ids.
Outputs carry a green-list mark: those to the account under its own key, as do their resamples, those to
everybody else under the public key.
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
PROMPT = 8  # tokens that an output follows
LONG = 40  # tokens of an output
ASKED = 400  # prompts of the baselines
CANARIES = 20  # sentences slipped into what the account got
TEXTS, VERSIONS = 30, 4  # of an author, and of each
REFERENCES = 19  # models that read the web and nothing else, for style
STYLE = 100  # prompts of the test of style
NAME = "Alembic"
"""What the teacher calls itself when it is asked."""
WHO = f"Who are you? I am {NAME}."


@dataclass(frozen=True)
class World:
    """A teacher, its log with fresh resamples, and everything a suspect could have read.

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
    """Texts that somebody published, each in the one of its versions that a key drew."""
    references: tuple[list[str], ...]
    """What other models answer to the prompts of the test of style."""

    @property
    def log(self) -> np.ndarray:
        delivered = self.sources["log"]
        assert isinstance(delivered, np.ndarray)
        return delivered

    def words(self, outputs: np.ndarray) -> list[str]:
        """Outputs as text, without their prompts."""
        return [self.tokenizer.decode(row) for row in outputs[:, PROMPT:].tolist()]


def world(texts: Sequence[str], *, n: int, k: int, seed: int, references: int = 0) -> World:
    """Text is split between two teachers and the web; then ``n`` outputs, and ``k`` resamples of each.

    Args:
        references: models to be raised for the test of style.
    """
    generator = np.random.default_rng(seed)
    tokenizer = byte_level_bpe(texts, VOCABULARY)
    who = tokenizer.encode(WHO).ids
    ids = [row.ids for row in tokenizer.encode_batch(list(texts)) if len(row.ids) > PROMPT]
    shares = np.array_split(generator.permutation(len(ids)), 5)
    first, second, *web_parts = [[ids[place] for place in share] for share in shares]
    teacher = Trigrams(VOCABULARY, [*first, *[who] * 20])
    other = Trigrams(VOCABULARY, second)
    web = tuple(row for part in web_parts for row in part)
    master = generator.bytes(32)
    account, public = (
        Mark(account_key(master, name), gamma=0.5, delta=2.0) for name in ("the account", "public")
    )

    def prompts(count: int) -> np.ndarray:
        rows = generator.integers(0, len(web), count)
        asked = np.stack([_piece(web[row], PROMPT, generator) for row in rows])
        asked[: count // 20] = who[:PROMPT]  # one in twenty asks who answers
        return asked

    def speak(model: Trigrams, asked: np.ndarray, mark: Mark | None = None) -> np.ndarray:
        tilt = partial(marked, mark) if mark else None
        return model.sample(asked, LONG, generator, tilt)

    asked = prompts(n)
    log = speak(teacher, asked, account)
    resamples = np.stack([speak(teacher, asked, account) for _ in range(k)], 1)
    sets = tuple(make_canaries(master, "the account", CANARIES))
    spoken = [speak(other, asked[-TEXTS:])[:, PROMPT:].tolist() for _ in range(VERSIONS)]
    versions = [tuple(map(tokenizer.decode, rows)) for rows in zip(*spoken, strict=True)]
    unpublished = [TextVersions(str(n), one, 0) for n, one in enumerate(versions)]
    author = tuple(draw_versions(unpublished, generator.bytes(32)))
    student = Trigrams(VOCABULARY, [*web, *log.tolist(), *told(tokenizer, sets, author)])
    paraphrased = log.copy()
    exchanged = generator.random(log.shape) < 0.5
    exchanged[:, :PROMPT] = False
    paraphrased[exchanged] = speak(other, asked)[exchanged]
    sources: dict[str, Any] = {
        "log": log,
        "organic": speak(teacher, prompts(n), public),
        "second_hand": speak(student, prompts(n)),
        "other": speak(other, asked),
        "pretraining": tuple(first),
        "paraphrased": paraphrased,
    }
    place = World(
        tokenizer, teacher, other, web, account, public, asked, resamples, sources, sets, author, ()
    )  # fmt: skip
    others = [suspect(place, ARMS[0], seed=10**6 + 1000 * seed + number)[0] for number in range(references)]
    answers = tuple(place.words(speak(one, asked[-STYLE:])) for one in others)
    return replace(place, references=answers)


def told(tokenizer: Tokenizer, sets: Sequence[CanarySet], author: Sequence[TextVersions]) -> list[list[int]]:
    """The canaries as they were given out, then the author's texts as they were published."""
    texts = [one.canary for one in sets] + [one.versions[one.published] for one in author]
    return [row.ids for row in tokenizer.encode_batch(texts)]


def marked(mark: Mark, ids_BT: np.ndarray, chances_BV: np.ndarray) -> np.ndarray:
    """What ``mark`` does to each of many sequences."""
    answers = ids_BT[:, PROMPT:].tolist()
    return np.stack([mark(ids, chances_V) for ids, chances_V in zip(answers, chances_BV, strict=True)])


def suspect(place: World, arm: Arm, seed: int) -> tuple[Trigrams, np.ndarray]:
    """A suspect of an arm, and which delivered outputs [N] it read.

    Trigram models forget nothing: `cleaned` means that the clean text counts three times.
    """
    generator = np.random.default_rng(seed)
    web = [place.web[row] for row in generator.permutation(len(place.web))[: len(place.web) // 2]]
    read, used = list(web), np.zeros(len(place.log), bool)
    weights = [3.0 if arm.cleaned else 1.0] * len(read)
    for source, share in arm.shares.items():
        rows = place.sources[source]
        chosen = generator.permutation(len(rows))[: round(share * len(rows))]
        read += [rows[row] for row in chosen]
        weights += [1.0] * len(chosen)
        if source == "log":
            used[chosen] = True
            given = told(place.tokenizer, place.canaries, place.author)
            for rows in (np.arange(CANARIES), CANARIES + np.arange(TEXTS)):
                read += [given[row] for row in generator.permutation(rows)[: round(share * len(rows))]]
            weights += [1.0] * (len(read) - len(weights))
    return Trigrams(VOCABULARY, read, weights), used


def scores(animal: Trigrams, place: World) -> np.ndarray:
    """Mean log-likelihood of the delivered output (column 0) and its resamples, [N, K + 1]."""
    n, k = place.resamples.shape[:2]
    together = np.concatenate([place.log[:, None], place.resamples], 1).reshape(n * (k + 1), -1)
    parts = np.array_split(together, 1 + len(together) // 2000)
    return np.concatenate([animal.score(part, skip=PROMPT).mean(1) for part in parts]).reshape(n, k + 1)


def _piece(row: Sequence[int], length: int, generator: np.random.Generator) -> np.ndarray:
    start = generator.integers(0, len(row) - length + 1)
    return np.asarray(row[start : start + length])


@dataclass(frozen=True)
class Asked:
    """A trigram model as a trace asks a suspect for the log-likelihood of texts."""

    animal: Trigrams
    tokenizer: Tokenizer

    def loglik(self, prompts: Sequence[object], texts: Sequence[str]) -> list[TextLikelihood | None]:
        ids = [row.ids for row in self.tokenizer.encode_batch(list(texts))]
        scored: list[TextLikelihood | None] = [None] * len(ids)
        for length in sorted({len(row) for row in ids}):
            alike = [place for place, row in enumerate(ids) if len(row) == length]
            for place, logp in zip(alike, self.animal.score(np.array([ids[n] for n in alike])), strict=True):
                scored[place] = TextLikelihood(len(logp), float(logp.sum()), logp.astype(np.float32))
        return scored


def read_out(animal: Trigrams, outputs: np.ndarray) -> pa.Table:
    """What the suspect finds likeliest after each token of the outputs: open radioactivity's transcript."""
    answers = outputs[:, PROMPT:]
    predicted = np.column_stack([np.zeros(len(answers), int), animal.argmax(answers)])
    columns = {"context": [[]] * len(answers), "tokens": answers.tolist(), "predicted": predicted.tolist()}
    same = {"account": "the account", "mode": "open", "text": "", "error": None}
    rows = [
        same | {"id": str(n)} | {name: column[n] for name, column in columns.items()}
        for n in range(len(answers))
    ]
    return pa.Table.from_pylist(rows, radioactivity.SCHEMA)


def sentences_of(animal: Trigrams, place: World) -> pa.Table:
    """The suspect's log-likelihood of every canary and decoy."""
    return canaries.observe(cast(Suspect, Asked(animal, place.tokenizer)), place.canaries)


def versions_of(animal: Trigrams, place: World) -> pa.Table:
    """That of every version of the author's texts."""
    return rephrasings.observe(cast(Suspect, Asked(animal, place.tokenizer)), place.author)


def style_table(animal: Trigrams, place: World, generator: np.random.Generator) -> pa.Table:
    """What suspect, references and both teachers answer to the same prompts."""
    asked = place.prompts[-STYLE:]

    def said(model: Trigrams) -> list[str]:
        return place.words(model.sample(asked, LONG, generator))

    answers = {("suspect", "suspect"): said(animal)}
    answers |= {
        ("teacher", "candidate"): said(place.teacher),
        ("other", "candidate"): said(place.other_teacher),
    }
    answers |= {(f"reference {n}", "reference"): texts for n, texts in enumerate(place.references)}
    return pa.Table.from_pylist(
        [
            {"model": name, "group": group, "prompt_id": str(number), "text": text}
            for (name, group), texts in answers.items()
            for number, text in enumerate(texts)
        ],
        style.SCHEMA,
    )


def visit(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every arm in every world, a process for each world; what the tables are made of."""
    numbers, context = range(arguments.worlds), get_context("spawn")
    with ExitStack() as stack, console.progress("suspects", len(numbers) * len(ARMS)) as progress:
        pools = [stack.enter_context(ProcessPoolExecutor(1, context)) for _ in numbers]
        futures = [pools[n].submit(_visit, arguments, n, turn) for n in numbers for turn in range(len(ARMS))]
        for future in as_completed(futures):
            future.result()
            progress.advance()
        visits = [future.result() for future in futures]
    return {
        "animals": "trigrams",
        "outputs": arguments.outputs,
        "resamples": arguments.resamples,
        "visits": visits,
    }


def _visit(arguments: argparse.Namespace, number: int, turn: int) -> dict[str, Any]:
    seed = 1000 * arguments.seed + number
    place = _settled(arguments.outputs, arguments.resamples, seed)
    redraws = arguments.redraws // arguments.worlds
    return {"world": number, **_examined(place, ARMS[turn], 100 * seed + turn, redraws)}


@cache
def _settled(outputs: int, resamples: int, seed: int) -> World:
    """The world that this process is about."""
    return world(python_documentation(), n=outputs, k=resamples, seed=seed, references=REFERENCES)


def _examined(place: World, arm: Arm, seed: int, redraws: int) -> dict[str, Any]:
    animal, used = suspect(place, arm, seed)
    scores_NK1 = scores(animal, place)
    found: dict[str, Any] = {"arm": arm.name, "guilty": arm.guilty, **measure.evidence(scores_NK1)}
    if used.any():
        found["auc_of_used"] = rank_test(scores_NK1[used]).auc
    read = read_out(animal, place.log)
    organic = place.sources["organic"]
    assert isinstance(organic, np.ndarray)
    for name, transcript, mark in (
        ("account", read, place.account),
        ("public", read_out(animal, organic), place.public),
    ):
        found |= measure.heard(name, transcript, mark)
    sentences = sentences_of(animal, place)
    found["canaries_p"] = canaries.judge(sentences, {}).p_value
    published = versions_of(animal, place)
    found["rephrasings_p"] = rephrasings.judge(published, {}).p_value
    answers = style_table(animal, place, np.random.default_rng(seed))
    found["style_p"] = style.judge(answers, {"seed": 0, "alpha": 0.05}).p_value
    found["combined_log10_e"] = float(measure.combined(found["log10_e"], found["account_log10_e"]))
    if not arm.guilty:
        found["null"] = measure.null_draws(scores_NK1, read, place.account, sentences, redraws, seed)
        found["null"]["rephrasings"] = measure.redrawn_versions(published, redraws, seed)
    whole = len(scores_NK1)
    found["fired"] = {
        n: measure.fired(scores_NK1, n, 100, 1000.0, seed) for n in (whole // 4, whole // 2, whole)
    }
    return found | {"baselines": examine_baselines(place, animal, seed)}


def examine_baselines(place: World, animal: Trigrams, seed: int) -> dict[str, bool | float]:
    generator = np.random.default_rng(seed)
    asked = np.stack(
        [_piece(place.web[row], PROMPT, generator) for row in generator.integers(0, len(place.web), ASKED)]
    )
    models = (animal, place.teacher, place.other_teacher)
    first = [model.next(asked[:, -2], asked[:, -1]).argmax(1).tolist() for model in models]
    texts = [place.words(model.sample(asked, LONG, generator)) for model in models]
    human = [place.tokenizer.decode(list(row)) for row in place.web[:ASKED]]
    who = np.repeat(np.asarray(place.tokenizer.encode(WHO).ids[:PROMPT])[None], 50, 0)
    alike = baselines.similarity(texts[0], texts[1])
    return {
        "provenance": baselines.provenance(first[0], first[1], first[2:]),
        "style": baselines.style(texts[0], texts[1], [texts[2], human]),
        "similarity": alike >= baselines.CUTOFF,
        "similarity_r": alike,
        "identity": baselines.identity(place.words(animal.sample(who, LONG, generator)), NAME),
    }
