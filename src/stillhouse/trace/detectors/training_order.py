"""Training order: tests whether the suspect descends from a model whose training order is known (weights).

After "palimpsestic memorisation" (Kuditipudi et al. 2025, arXiv:2510.19796): a model remembers best what it
read last, and its descendants inherit this. If the training texts were shuffled, their order is independent
of any model that does not descend from the trained one, so that

    later in training ↔ likelier to the suspect than to a reference model

shows descent. The paper uses Spearman's correlation. This test uses Kendall's count of concordant pairs,
whose distribution under a random order is known exactly: the sum of independent uniform variables on
{0, …, i}, i < n.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.errors import CorpusError
from stillhouse.files import read_json_lines
from stillhouse.stats import e_from_p, p_from_log
from stillhouse.trace.access import Access
from stillhouse.trace.detectors.base import Detector
from stillhouse.trace.detectors.case import Case
from stillhouse.trace.detectors.transcript import per_token, score_blind
from stillhouse.trace.finding import Assumption, Finding, Level
from stillhouse.trace.plan import TracePlan
from stillhouse.trace.suspects.base import Suspect

NAME = "training_order"
LEVEL: Level = "weights"

SCHEMA = pa.schema(
    [
        ("place", pa.int64()),  # position in training, from 0
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("loglik", pa.float64()),
        ("reference_loglik", pa.float64()),
    ]
)
NULL = (
    "The suspect does not descend from the model that was trained in this order. The shuffle of its training "
    "texts makes the distribution: every order was as likely as the one that was used."
)
RIVALS = (
    "another model was trained on the same texts in the same order, as where the order is published",
    "the suspect was trained on outputs of our model that quote what it read last",
)
EXACT = 500
"""Largest number of texts for which the distribution is computed exactly."""
_ROUNDING = 1e-9
"""Below this probability the exact computation has lost its digits, and the bound replaces it."""


def observe(suspect: Suspect, texts: Sequence[str], *, reference: Suspect | None = None) -> pa.Table:
    """Log-likelihoods of training texts, by the suspect and optionally by a reference model.

    Args:
        texts: in the order of training, first to last; a sample is enough.
        reference: a model that does not descend from the trained one. Subtracting its score removes what
            makes a text likely to any model.
    """
    tokens, logliks = score_blind(suspect, texts)
    references = [None] * len(texts) if reference is None else score_blind(reference, texts)[1]
    columns = [range(len(texts)), texts, tokens, logliks, references]
    return pa.Table.from_arrays(
        [pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA
    )


def judge(transcript: pa.Table, parameters: Mapping[str, Any]) -> Finding:
    """Counts the pairs of texts whose later one is likelier; `seed` breaks ties."""
    with_reference = transcript.num_rows > 0 and transcript["reference_loglik"].null_count == 0
    score_N = per_token(transcript) - (per_token(transcript, "reference_loglik") if with_reference else 0.0)
    known_N = np.isfinite(score_N)
    n, left_out = int(known_N.sum()), int((~known_N).sum())
    if n < 2:
        return Finding(
            NAME,
            LEVEL,
            NULL,
            n,
            parameters=dict(parameters),
            reason="Fewer than two training texts have a log-likelihood. The test needs the order of "
            "training and a suspect that gives log-probabilities of given text.",
        )
    order = np.argsort(transcript["place"].to_numpy()[known_N], kind="stable")
    score_N = score_N[known_N][order]
    concordant = concordant_pairs(score_N, int(parameters["seed"]))
    pairs = n * (n - 1) // 2
    log_p = concordant_log_p(concordant, n)
    z = (concordant - pairs / 2) / math.sqrt(n * (n - 1) * (2 * n + 5) / 72)
    return Finding(
        NAME,
        LEVEL,
        NULL,
        n=n,
        statistic="pairs of texts of which the one read later is the likelier",
        value=float(concordant),
        p_value=p_from_log(log_p),
        e_value=e_from_p(p_from_log(log_p)),
        effect={
            "tau": 2 * concordant / pairs - 1,
            "spearman": _spearman(score_N),
            "z": z,
            "log10_p": log_p / math.log(10),
        },
        assumptions=_assumptions(left_out, with_reference=with_reference),
        rivals=RIVALS,
        parameters=dict(parameters),
        series={"score_by_tenth": [float(tenth.mean()) for tenth in np.array_split(score_N, min(10, n))]},
    )


def _assumptions(left_out: int, *, with_reference: bool) -> tuple[Assumption, ...]:
    return (
        Assumption("The texts were shuffled before training.", None, "Known to whoever trained the model."),
        Assumption("Every text was scored.", not left_out, f"{left_out:,} texts were left out."),
        Assumption(
            "A reference model's score was taken away from the suspect's.",
            with_reference,
            "p holds either way; with a reference more is found.",
        ),
    )


def concordant_pairs(score_N: np.ndarray, seed: int) -> int:
    """Number of pairs i < j with score i < score j; ties are ordered at random, as under the null."""
    from scipy.stats import kendalltau

    n = len(score_N)
    rank_N = np.empty(n, np.int64)
    rank_N[np.lexsort((np.random.default_rng(seed).random(n), score_N))] = np.arange(n)
    tau: Any = kendalltau(np.arange(n), rank_N, method="asymptotic")
    return round((float(tau.statistic) + 1) * n * (n - 1) / 4)


def concordant_log_p(concordant: int, n: int) -> float:
    """log P(at least ``concordant`` concordant pairs) in a uniformly random order of ``n``.

    Exact up to :data:`EXACT` texts within floating-point precision; otherwise Chernoff's bound, which is
    never too small (and about z times too large at z standard deviations).
    """
    assert 0 <= concordant <= n * (n - 1) // 2
    if n <= EXACT:
        exact = float(_distribution(n)[concordant:].sum())
        if exact > _ROUNDING:
            return min(0.0, math.log(exact))
    return _chernoff(concordant, n)


def _distribution(n: int) -> np.ndarray:
    """Probabilities of 0, 1, … concordant pairs: a convolution of uniforms on {0, …, i}."""
    mass = np.ones(1)
    for size in range(2, n + 1):
        sums = np.cumsum(np.concatenate([mass, np.zeros(size - 1)]))
        sums[size:] -= sums[:-size].copy()
        mass = sums / size
    return mass


def _chernoff(concordant: int, n: int) -> float:
    """min over t ≥ 0 of log E[exp(t S)] − t · concordant, where S is the sum of the uniforms."""
    from scipy.optimize import minimize_scalar

    size = np.arange(2, n + 1, dtype=np.float64)
    mean, most = n * (n - 1) / 4, n * (n - 1) / 2
    if concordant <= mean:
        return 0.0
    if concordant == most:
        return -math.lgamma(n + 1)

    def exponent(log_t: float) -> float:
        t = math.exp(log_t)
        # log((e^{tm} − 1) / (m (e^t − 1))), written so that nothing overflows
        moment = t * (size - 1) + np.log(-np.expm1(-t * size)) - np.log(size) - math.log(-math.expm1(-t))
        return float(moment.sum()) - t * concordant

    best: Any = minimize_scalar(exponent, bounds=(-40.0, 5.0), method="bounded")
    return min(0.0, float(best.fun))


def _spearman(score_N: np.ndarray) -> float | None:
    from scipy.stats import rankdata

    ranks = np.asarray(rankdata(score_N), np.float64)
    if ranks.std() == 0:
        return None
    return float(np.corrcoef(np.arange(len(ranks)), ranks)[0, 1])


def _unmet_requirement(plan: TracePlan, access: Access) -> str | None:
    assert plan.tests.training_order is not None
    if plan.tests.training_order.texts is None:
        return "needs the teacher's training texts in their order (`tests.training_order.texts` in the plan)."
    return access.suspect_lacks("logprobs")


def _observe(case: Case) -> pa.Table:
    section = case.plan.tests.training_order
    assert section is not None and section.texts is not None
    try:
        texts = [str(line["text"]) for line in read_json_lines(section.texts)]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CorpusError(f"{section.texts} does not hold JSON lines with `text`: {error}") from error
    with case.open_reference() as reference:
        return observe(case.suspect, texts, reference=reference)


TRAINING_ORDER = Detector(
    name=NAME,
    level=LEVEL,
    title="Whether it remembers the teacher's order of training",
    explanation=(
        "A model remembers best what it read last, and so do models made from it. The test asks whether the "
        "suspect remembers the teacher's training texts in the order in which the teacher read them."
    ),
    unmet_requirement=_unmet_requirement,
    observe=_observe,
    judge=judge,
)
