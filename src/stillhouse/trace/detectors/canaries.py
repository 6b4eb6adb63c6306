"""Canaries: a made-up fact that one account was told, against facts that might as well have been made up.

A canary is a plain sentence about a place and a person that do not exist, put among an account's outputs. It
and its decoys are written by the same little grammar, with every choice made by an HMAC under a secret key:
who does not have the key cannot tell which of a set's sentences was delivered. So under the null the canary
is ranked among its decoys by a fair draw, whatever the suspect knows and whatever score is used, and

    p = (1 + #{decoys scoring at least as high}) / (m + 1)

for one set. Over several sets first places count for more than ranks do (:func:`values`): a sentence that was
read may be remembered outright, and where four of twenty were, a sum of ranks hides them among the sixteen
others. The statistic's distribution is exact, and for one set p is the one above, but that the lowest ranks
count as one.

It does not say how the canary came to the suspect: a leaked log or a shared account carries it as well.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.errors import CorpusError, UsageError
from stillhouse.files import write_secret_lines
from stillhouse.stats import e_from_log, label_permutation_p, log_e_process, rank_payoffs, rank_test
from stillhouse.trace.access import Access
from stillhouse.trace.detectors.base import Detector
from stillhouse.trace.detectors.case import Case
from stillhouse.trace.detectors.transcript import per_token, score_blind
from stillhouse.trace.finding import Assumption, Finding, Level
from stillhouse.trace.plan import TracePlan
from stillhouse.trace.suspects.base import Suspect

NAME = "canaries"
LEVEL: Level = "L2"
FAINTLY, BY_HEART = (0.4, 4.0), (0.2, 100.0)
"""The alternative of the statistic: a share of the canaries, and of how many draws they are the best."""
NAT = 1000
"""Steps of the statistic in a nat."""
BETS = (2.0, 12.0, 1000.0)
"""Those of the e-value (:data:`.ranks.BETS`), with one on "it is the first of a hundred"."""

SCHEMA = pa.schema(
    [
        ("account", pa.string()),
        ("set", pa.int32()),
        ("member", pa.bool_()),  # the canary; the others are its decoys
        ("text", pa.string()),
        ("loglik", pa.float64()),
        ("tokens", pa.int32()),
    ]
)
NULL = (
    "The suspect was not trained on the canaries that these accounts were given. Then each canary and its "
    "decoys, all written by the same grammar under a secret key, are exchangeable to the suspect; the key "
    "makes that distribution."
)
RIVALS = (
    "the account's outputs were leaked or published, and the suspect was trained on that copy",
    "another party had access to the account",
)

_BEGIN = (
    "Al Bren Cor Dun Esk Fal Gar Hol Il Kes Lor Mar Nor Oss Pel Quen Rav Sel Tor Ulm Ver Wes Yar Zel"
).split()
_MIDDLE = "a e i o u an en in or el ar is ov une ami ola iri eda".split()
_END = "beck by dale fell ford gate ham holm lund mere mouth ness stad stow thorp vik wick worth ra".split()
_FIRST = (
    "Ada Berit Casper Dagny Edda Florian Greta Henrik Ines Jonas Katla Ludwig Mira Nils Olga Petra"
).split()
_TRADE = (
    "baker binder brewer clockmaker cooper dyer ferryman gardener glazier lamplighter midwife miller "
    "organist potter saddler surveyor tanner weaver"
).split()
_COLOUR = (
    "amber black blue copper crimson green grey ivory ochre olive purple silver violet white yellow"
).split()
_THING = (
    "almanac anchor barometer bell bridge clock fountain globe kite lantern loom map mill organ sundial "
    "telescope"
).split()
_STUFF = "ash birch brass bronze cork flint glass iron oak pewter pine slate tin walnut wax wool".split()
_WORDS: Mapping[str, Sequence[str]] = {
    "first": _FIRST,
    "trade": _TRADE,
    "colour": _COLOUR,
    "thing": _THING,
    "stuff": _STUFF,
    "year": [str(year) for year in range(1610, 1960)],
    "count": [str(count) for count in range(13, 98)],
}
_TEMPLATES = (
    "In {year} the {trade} {first} {name} gave the village of {place} a {colour} {thing} of {stuff}.",
    "The {colour} {thing} of {place} was built by {first} {name}, a {trade}, from {count} bits of {stuff}.",
    "{first} {name}, the last {trade} of {place}, left {count} {colour} letters in a {stuff} box.",
    "Until {year} each child in {place} was given a {thing} of {stuff} by the {trade} {first} {name}.",
    "A {trade} named {first} {name} walked from {place} to {other} in {year} with a {colour} {thing}.",
    "The people of {place} paid {count} bars of {stuff} for the {colour} {thing} of {first} {name}.",
)


@dataclass(frozen=True)
class CanarySet:
    """One canary and the decoys that were never given to anybody."""

    account: str
    set: int
    canary: str
    decoys: tuple[str, ...]


def make_canaries(key: bytes, account: str, n: int, *, decoys: int = 99) -> list[CanarySet]:
    """``n`` canaries for an account, each with its decoys; the same for the same key and account.

    Canary and decoys of a set share the sentence's form and differ in every name, number and thing, drawn
    independently. Give the canaries out among the account's outputs and keep key and decoys secret.

    Args:
        key: at least 16 secret random bytes, committed to before the first canary is given out.
        decoys: p of one set cannot be below 1 / (decoys + 1); that of n sets not below its nth power.

    Raises:
        UsageError: the key is too short.
    """
    if len(key) < 16:
        raise UsageError(
            "a key of fewer than 16 bytes can be guessed", hint="Take 16 or 32 bytes from `openssl rand`."
        )
    assert n >= 1 and decoys >= 1
    return [_make_set(key, account, number, decoys) for number in range(n)]


def write_canaries(path: str | Path, sets: Sequence[CanarySet]) -> None:
    """JSON lines, a set each, readable by their owner only.

    Raises:
        UsageError: the file exists; canaries that were given out must not be lost.
    """
    there = UsageError(f"{path} exists, and canaries are never overwritten", hint="Name another file.")
    write_secret_lines(path, map(asdict, sets), if_exists=there)


def read_canaries(path: str | Path) -> list[CanarySet]:
    """The sets of a file that :func:`write_canaries` wrote.

    Raises:
        CorpusError: the file is not there, or a line is not a set with account, set, canary and decoys.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path}: the canaries cannot be read: {error}") from error
    sets = [_read_set(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]
    if not sets:
        raise CorpusError(f"{path} holds no canaries")
    return sets


def observe(suspect: Suspect, sets: Sequence[CanarySet]) -> pa.Table:
    """The suspect's log-likelihood of every canary and decoy, those of placebo accounts among them."""
    rows = [
        (one.account, one.set, member == 0, text)
        for one in sets
        for member, text in enumerate((one.canary, *one.decoys))
    ]
    accounts, numbers, members, texts = zip(*rows, strict=True)
    tokens, logliks = score_blind(suspect, texts)
    columns = [accounts, numbers, members, texts, logliks, tokens]
    return pa.Table.from_arrays(
        [pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA
    )


def judge(transcript: pa.Table, parameters: Mapping[str, Any]) -> Finding:
    """Ranks each canary among its decoys by log-likelihood a token; takes no parameters."""
    scores_NK1, tokens_NK1, left_out = _sets(transcript)
    if not len(scores_NK1):
        return Finding(
            NAME,
            LEVEL,
            NULL,
            0,
            parameters=dict(parameters),
            reason="No canary has a log-likelihood together with at least one of its decoys. The test needs "
            "a suspect that gives log-probabilities of given text, and canaries that were given out.",
        )
    test = rank_test(scores_NK1)
    weights_NK1 = values(scores_NK1)
    above_N = (scores_NK1[:, 1:] >= scores_NK1[:, :1]).sum(1)
    decoys_N = np.isfinite(scores_NK1).sum(1) - 1
    p_N = (1 + above_N) / (1 + decoys_N)
    length = rank_test(tokens_NK1)
    return Finding(
        NAME,
        LEVEL,
        NULL,
        n=test.n,
        statistic="nats by which the canaries' ranks are likelier if some are remembered, or known by heart",
        value=float(weights_NK1[:, 0].sum()) / NAT,
        p_value=label_permutation_p(weights_NK1, ~np.isnan(scores_NK1)),
        e_value=e_from_log(log_e_process(scores_NK1, BETS)[-1]),
        effect={"auc": test.auc, "z": test.z, "first_places": float((above_N == 0).mean())},
        assumptions=(
            Assumption(
                "The key was secret, and no decoy was ever given to anybody.", None, "Commitment to the key."
            ),
            Assumption(
                "Every canary was scored.", not left_out, f"{left_out:,} sets without a score were left out."
            ),
            Assumption(
                "Canaries are not by chance longer or shorter than their decoys.",
                bool(min(length.p_normal, 1 - length.p_normal) > 0.005),
                f"A canary has more tokens than a decoy with chance {length.auc:.3f}; p holds either way.",
            ),
        ),
        rivals=RIVALS,
        parameters=dict(parameters),
        series={"p_of_set": p_N[:300].tolist()},
    )


def values(scores_NK1: np.ndarray) -> np.ndarray:
    """What a sentence adds to the statistic if it is its set's canary, in steps of 1 / NAT nats, [N, K + 1].

    The logarithm of the likelihood ratio of its rank: some canaries are remembered :data:`FAINTLY`, some
    :data:`BY_HEART`, the others rank like any. In whole steps the sum's distribution can be computed.
    """
    (faint, some_draws), (sure, many_draws) = FAINTLY, BY_HEART
    some_NK1, many_NK1 = rank_payoffs(scores_NK1, (some_draws, many_draws))
    return np.rint(NAT * np.log(1 - faint - sure + faint * some_NK1 + sure * many_NK1)).astype(np.int64)


def _sets(transcript: pa.Table) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores [N, K + 1] with the canary first, tokens alike, and how many sets have nothing to compare."""
    score, tokens = per_token(transcript), transcript["tokens"].to_numpy()
    found: dict[tuple[str, int], list[int]] = {}
    names = ("account", "set", "member")
    for row, (account, number, member) in enumerate(
        zip(*(transcript[n].to_pylist() for n in names), strict=True)
    ):
        places = found.setdefault((account, number), [])
        places.insert(0, row) if member else places.append(row)
    width = max(map(len, found.values()), default=0)
    scores_NK1 = np.full((len(found), width), np.nan)
    tokens_NK1 = np.full((len(found), width), np.nan)
    for i, places in enumerate(found.values()):
        scores_NK1[i, : len(places)] = score[places]
        tokens_NK1[i, : len(places)] = np.where(np.isnan(score[places]), np.nan, tokens[places])
    whole = ~np.isnan(scores_NK1[:, :1]).any(1) & (np.count_nonzero(~np.isnan(scores_NK1), axis=1) > 1)
    return scores_NK1[whole], tokens_NK1[whole], int((~whole).sum())


def _read_set(line: str, where: str) -> CanarySet:
    try:
        raw = json.loads(line)
        one = CanarySet(str(raw["account"]), int(raw["set"]), str(raw["canary"]), tuple(raw["decoys"]))
        if not one.decoys or not all(isinstance(decoy, str) for decoy in one.decoys):
            raise ValueError("`decoys` must be a list of texts")
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(
            f"{where}: not a set of canaries ({error})",
            hint="Each line is an object with `account`, `set`, `canary` and `decoys`.",
        ) from error
    return one


def _make_set(key: bytes, account: str, number: int, decoys: int) -> CanarySet:
    template = _Choices(key, account, number, "form").of(_TEMPLATES)
    texts: list[str] = []
    draw = 0
    while len(texts) < decoys + 1:
        text = _write(template, _Choices(key, account, number, f"text {draw}"))
        draw += 1
        if text not in texts:
            texts.append(text)
    return CanarySet(account, number, texts[0], tuple(texts[1:]))


def _write(template: str, choices: _Choices) -> str:
    names = {
        name: choices.of(_BEGIN) + choices.of(_MIDDLE) + choices.of(_END)
        for name in ("name", "place", "other")
    }
    return template.format(**names, **{name: choices.of(words) for name, words in _WORDS.items()})


class _Choices:
    """Fair choices that follow from a key and a label: HMAC-SHA256 in counter mode."""

    def __init__(self, key: bytes, *label: object) -> None:
        self.key = key
        self.label = json.dumps(label)
        self.used = 0

    def of(self, options: Sequence[str]) -> str:
        """One of ``options``; 64 bits, so that the favour to the first ones is below 1e-16."""
        message = f"{self.label} {self.used}".encode()
        self.used += 1
        digest = hmac.new(self.key, message, hashlib.sha256).digest()
        return options[int.from_bytes(digest[:8], "big") % len(options)]


def _unmet_requirement(plan: TracePlan, access: Access) -> str | None:
    if "canaries" not in access.teacher:
        return "needs the canaries that were given to the accounts (`canaries` in the plan)."
    return access.suspect_lacks("logprobs")


def _observe(case: Case) -> pa.Table:
    assert case.teacher.canaries is not None
    return observe(case.suspect, read_canaries(case.teacher.canaries))


CANARIES = Detector(
    name=NAME,
    level=LEVEL,
    title="Texts made for one account",
    explanation=(
        "Some texts were made up by lot and given to one account only. Others, made in the same way, "
        "were given to nobody. The test asks whether the suspect finds the first more familiar than "
        "the second."
    ),
    unmet_requirement=_unmet_requirement,
    observe=_observe,
    judge=judge,
)
