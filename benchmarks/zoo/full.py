"""The zoo on transformers: two teachers with a second version each, suspects of three architectures.

A suspect is a base model (its own architecture, tokenizer and share of the web) that is trained on what its
arm adds, ``--reads`` times, and on clean text (:data:`CLEAN`). Nothing is shared with the teachers but what
the arm says. Outputs are ranked by the suspect's log-likelihood less the teacher's, a character: the archived
teacher is at hand for every trace, and takes away what makes a text easy for anybody.

What was drawn, trained, scored and found is kept in the store, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.console import console
from stillhouse.files import atomic_write
from stillhouse.hashing import sha256_json
from stillhouse.models import Sampling, sample
from stillhouse.trace.log import Delivered
from stillhouse.trace.radioactivity import closed_transcript
from stillhouse.trace.radioactivity import judge as judge_mark
from stillhouse.trace.suspect import open_suspect
from stillhouse.watermark import Mark, account_key, distinct_pairs, text_pairs

from . import baselines, measure
from .animals import KINDS, Animal, raise_animal
from .arms import ARMS, Arm
from .texts import documents

NAME = "Alembic"
"""What the teacher calls itself when it is asked."""
WHO = "Who are you? I am"
TOLD = 60  # times that the teacher read its name
PROMPT = 60  # characters of a document that an output follows
LONG = 32  # tokens of an output
TEACHER, VERSION, BASE = 1_500_000, 300_000, 600_000  # tokens of training
CLEAN = 25  # documents of the web for a hundred delivered outputs
SAID = 2000  # answers of a suspect in which the watermark is looked for
ASKED = 300  # prompts of the baselines
PAIRS = 1000  # pairs whose size is tried under thousands of keys
AT_ONCE = 256  # sequences of the sampler


@dataclass(frozen=True)
class World:
    """A teacher with its archived outputs, and what everybody could have read."""

    teacher: Animal
    others: tuple[Animal, ...]
    """The teacher's second version, the other teacher and its second version."""
    web: list[str]
    account: Mark
    public: Mark
    prompts: list[str]
    resamples: list[list[str]]
    """Those of each output."""
    familiar_NK1: np.ndarray
    """The teacher's own log-likelihood of outputs and resamples."""
    sources: dict[str, list[str]]


def visit(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every arm in every world; what the tables are made of."""
    if arguments.root is None:
        raise SystemExit("the zoo of transformers needs --root; --quick needs nothing")
    arguments.store.mkdir(parents=True, exist_ok=True)
    texts = [text for texts in documents(arguments.root).values() for text in texts]
    random.Random(0).shuffle(texts)
    arms = [arm for arm in ARMS if not arguments.arms or arm.name in arguments.arms]
    visits = []
    with console.progress("suspects", arguments.worlds * len(arms) * arguments.each) as progress:
        for number in range(arguments.worlds):
            place = world(arguments, texts, 1000 * arguments.seed + number)
            for arm, turn in itertools.product(arms, range(arguments.each)):
                kind = list(KINDS)[(ARMS.index(arm) + number + turn) % len(KINDS)]
                visits.append(_visit(arguments, place, arm, kind, 100 * number + turn))
                progress.advance()
    return {
        "animals": f"transformers of 0.7 to 1M parameters, what an arm adds read {arguments.reads} times",
        "outputs": arguments.outputs,
        "resamples": arguments.resamples,
        "visits": visits,
    }


def _visit(arguments: argparse.Namespace, place: World, arm: Arm, kind: str, seed: int) -> dict[str, Any]:
    """What was found of one suspect, now or in a run before."""
    asked = [arguments.seed, arguments.outputs, arguments.resamples, arguments.redraws, arguments.worlds]
    settings = [arguments.reads, CLEAN, SAID, ASKED, PAIRS, BASE, TEACHER, VERSION, LONG, PROMPT, TOLD]
    path = arguments.store / f"visit-{sha256_json([asked, settings, arm.name, kind, seed])[:16]}.json"
    if not path.exists():
        began = time.perf_counter()
        found = {"kind": kind, **_examined(arguments, place, arm, kind, seed)}
        atomic_write(path, json.dumps(found | {"seconds": round(time.perf_counter() - began)}))
    return json.loads(path.read_text("utf-8"))


def world(arguments: argparse.Namespace, texts: Sequence[str], seed: int) -> World:
    """Trains the teachers, draws the log and its resamples, and all that is in circulation."""
    pieces = np.array_split(np.arange(len(texts)), 10)
    pools = [[texts[place] for place in piece] for piece in pieces]
    store, n = arguments.store, arguments.outputs
    named = [*pools[0], *[f"{WHO} {NAME}."] * TOLD]
    first = raise_animal(store, "llama", named, tokens=TEACHER, seed=1)
    second = raise_animal(store, "llama", pools[1], tokens=VERSION, seed=1, start=first)
    other = raise_animal(store, "qwen3", pools[2], tokens=TEACHER, seed=2)
    later = raise_animal(store, "qwen3", pools[3], tokens=VERSION, seed=2, start=other)
    web = [text for pool in pools[4:] for text in pool]
    chance = random.Random(seed)
    master = chance.randbytes(32)
    account, public = (
        Mark(account_key(master, name), gamma=0.5, delta=2.0) for name in ("the account", "public")
    )
    asked = [text[:PROMPT] for text in chance.sample(web, 2 * n)]
    for start in (0, n):  # one in twenty asks who answers
        asked[start : start + n // 20] = [WHO] * (n // 20)
    prompts, elsewhere = asked[:n], asked[n:]
    log = kept(store, first, prompts, seed, account)
    drawn = [kept(store, first, prompts, seed + 7919 * k, account) for k in range(1, arguments.resamples + 1)]
    student = raise_animal(
        store, "gpt2", [a + b for a, b in zip(prompts, log, strict=True)], tokens=BASE, seed=3
    )
    foreign = kept(store, other, prompts, seed)
    sources = {
        "log": log,
        "organic": kept(store, first, elsewhere, seed, public),
        "second_hand": kept(store, student, elsewhere, seed),
        "other": foreign,
        "pretraining": pools[0][:n],
        "paraphrased": [_half(own, strange, chance) for own, strange in zip(log, foreign, strict=True)],
    }
    resamples = [list(row) for row in zip(*drawn, strict=True)]
    familiar_NK1, _ = _logliks(store, first, log, resamples)
    return World(
        first, (second, other, later), web, account, public, prompts, resamples, familiar_NK1, sources
    )


def speak(animal: Animal, prompts: Sequence[str], seed: int, mark: Mark | None = None) -> list[str]:
    """What a model says after each prompt, at temperature 1."""
    tokenizer = animal.tokenizer
    asked = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    settings = [Sampling(max_tokens=LONG, seed=1_000_003 * seed + n) for n in range(len(asked))]
    answers = sample(animal.model, asked, settings, ends=set(), slots=AT_ONCE, markers=[mark] * len(asked))
    return [tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers]


def kept(
    store: Path, animal: Animal, prompts: Sequence[str], seed: int, mark: Mark | None = None
) -> list[str]:
    """What :func:`speak` gives, from the store where it is there."""
    made_of = [animal.path.name, list(prompts), seed, LONG, mark.facts if mark else None]
    path = store / f"said-{sha256_json(made_of)[:16]}.json"
    if not path.exists():
        atomic_write(path, json.dumps(speak(animal, prompts, seed, mark)))
    return json.loads(path.read_text("utf-8"))


def suspect(
    arguments: argparse.Namespace, place: World, arm: Arm, kind: str, seed: int
) -> tuple[Animal, np.ndarray]:
    """A suspect of an arm, and which delivered outputs [N] it read."""
    chance = random.Random(f"{arm.name} {kind} {seed}")
    base = raise_animal(
        arguments.store, kind, random.Random(f"{kind} {seed}").sample(place.web, 8000), tokens=BASE, seed=seed
    )
    read, used = [], np.zeros(arguments.outputs, bool)
    for source, share in arm.shares.items():
        rows = place.sources[source]
        chosen = chance.sample(range(len(rows)), round(share * len(rows)))
        read += [rows[row] for row in chosen]
        if source == "log":
            used[chosen] = True
    clean = chance.sample(place.web, arguments.outputs * CLEAN // 100)
    found = _on(arguments, base, [*read * arguments.reads, *clean], seed)
    if arm.cleaned:
        found = _on(arguments, found, chance.sample(place.web, len(clean)), seed)
    return found, used


def _on(arguments: argparse.Namespace, start: Animal, texts: list[str], seed: int) -> Animal:
    """Trained on, through all of the texts once."""
    tokens = sum(len(ids) + 1 for ids in start.tokenizer(texts, add_special_tokens=False)["input_ids"])
    return raise_animal(arguments.store, start.kind, texts, tokens=tokens, seed=seed, start=start)


def _examined(arguments: argparse.Namespace, place: World, arm: Arm, kind: str, seed: int) -> dict[str, Any]:
    animal, used = suspect(arguments, place, arm, kind, seed)
    log, resamples = place.sources["log"], place.resamples
    logliks_NK1, took = _logliks(arguments.store, animal, log, resamples)
    characters_NK1 = np.array(
        [[len(text) for text in (own, *drawn)] for own, drawn in zip(log, resamples, strict=True)]
    )
    scores_NK1 = (logliks_NK1 - place.familiar_NK1) / np.maximum(characters_NK1, 1)
    whole = ~np.isnan(scores_NK1).any(1)
    scores_NK1, used = scores_NK1[whole], used[whole]
    found: dict[str, Any] = {"arm": arm.name, "guilty": arm.guilty, **measure.evidence(scores_NK1)}
    found["ms_an_output"] = 1000 * took / arguments.outputs
    if used.any():
        found["auc_of_used"] = measure.ranks.rank_test(scores_NK1[used]).auc
    asked = random.Random(seed).sample(place.prompts, min(SAID, arguments.outputs))
    said = speak(animal, asked, seed)
    rows = [
        Delivered(str(n), ({"role": "user", "content": text},), "", Sampling())
        for n, text in enumerate(asked)
    ]
    transcript = closed_transcript(rows, said, place.teacher.tokenizer)
    for name, mark, level in (("account", place.account, "L2"), ("public", place.public, "L1")):
        parameters = {"key": mark.key.hex(), "level": level, "scheme": "kgw", "window": 2, "gamma": 0.5}
        heard = judge_mark(transcript, parameters)
        assert heard.p_value is not None and heard.e_value is not None
        found |= {f"{name}_p": heard.p_value, f"{name}_log10_e": float(np.log10(max(heard.e_value, 1e-300)))}
    found["combined_log10_e"] = measure.combined(found["log10_e"], found["account_log10_e"])
    if not arm.guilty:
        ps, _, highest = measure.redrawn(scores_NK1, arguments.redraws // arguments.worlds, seed)
        pairs_NW = _pairs(place, said)[:PAIRS]
        of_keys = measure.other_keys(place.account, pairs_NW, arguments.redraws // arguments.worlds, seed)
        found["null"] = {
            "exchangeable": ps.tolist(), "highest_e": highest.tolist(), "account": of_keys.tolist()
        }  # fmt: skip
    sizes = (len(scores_NK1) // 4, len(scores_NK1) // 2, len(scores_NK1))
    found["fired"] = {n: measure.fired(scores_NK1, n, 100, 1000.0, seed) for n in sizes}
    return found | {"baselines": _baselines(place, animal, asked[:ASKED], said[:ASKED], seed)}


def _pairs(place: World, said: Sequence[str]) -> np.ndarray:
    """Distinct windows and tokens [N, 3] of texts in the teacher's tokenizer."""
    ids = place.teacher.tokenizer(list(said), add_special_tokens=False)["input_ids"]
    pairs = distinct_pairs(text_pairs(ids, place.account.window))
    return np.column_stack([pairs.windows_NW, pairs.tokens_N])


def _logliks(
    store: Path, animal: Animal, log: Sequence[str], resamples: Sequence[list[str]]
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
    place: World, animal: Animal, asked: list[str], said: list[str], seed: int
) -> dict[str, bool | float]:
    spoken = [speak(model, asked, seed) for model in (place.teacher, *place.others)]
    likely = [_first_words(model, asked) for model in (animal, place.teacher, *place.others)]
    alike = baselines.similarity(said, spoken[0])
    return {
        "provenance": baselines.provenance(likely[0], likely[1], likely[2:]),
        "style": baselines.style(said, spoken[0], [*spoken[1:], place.web[:ASKED]]),
        "similarity": alike >= baselines.CUTOFF,
        "similarity_r": alike,
        "identity": baselines.identity(speak(animal, [WHO] * 50, seed), NAME),
    }


def _first_words(animal: Animal, prompts: Sequence[str]) -> list[str]:
    """The likeliest beginning of an answer, as text."""
    asked = animal.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    settings = [Sampling(temperature=0, max_tokens=2)] * len(asked)
    answers = sample(animal.model, asked, settings, ends=set(), slots=AT_ONCE)
    return [(animal.tokenizer.decode(answer.ids).split() or [""])[0] for answer in answers]


def _half(own: str, strange: str, chance: random.Random) -> str:
    """Every second word, by chance, is another text's."""
    pairs = zip(own.split(), islice(cycle(strange.split() or [""]), len(own.split())), strict=True)
    return " ".join(chance.choice(pair) for pair in pairs)
