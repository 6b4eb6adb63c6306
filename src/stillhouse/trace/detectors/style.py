"""Style: attributes the suspect's style to a candidate teacher or to none (level L0, never hard evidence).

Every model answers the same prompts. The style of a model is its frequency of each run of one to three words
or punctuation marks (multinomial naive Bayes). For a model m and a candidate c the score is the
log-likelihood ratio, in nats per run,

    s(m, c) = mean over m's answers of log P(run | c) − mean over other models o of log P(run | o)

where every distribution comes from answers to *other* prompts (cross-fitting), so that the topic of a prompt
does not count. The other models are the suspect and the references without m, one by one and not pooled: a
pool is larger and smoother than any single model, and a model with few mannerisms would resemble every
candidate.

Then the suspect's score is ranked among those of the references (conformal p-value):

    p = (1 + #{references scoring at least as high}) / (references + 1)

It is at least 1 / (references + 1), and it assumes that a suspect that was trained on no candidate's outputs
is exchangeable with the references. That cannot be verified: models of the same age learn the same phrases
from each other's texts on the web. So style can be a lead but never proof.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from stillhouse.errors import StillhouseError
from stillhouse.hashing import sha256_json
from stillhouse.models import Message, Reply, Request, Sampling
from stillhouse.stats import e_from_p
from stillhouse.trace.access import Access
from stillhouse.trace.delivered_log import Delivered
from stillhouse.trace.detectors.base import Detector
from stillhouse.trace.detectors.case import Case
from stillhouse.trace.finding import Assumption, Finding, Level
from stillhouse.trace.plan import TracePlan
from stillhouse.trace.suspects.base import GenerateFn
from stillhouse.trace.suspects.open import open_suspect

NAME = "style"
LEVEL: Level = "L0"

Group = Literal["suspect", "candidate", "reference"]
SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("group", pa.string()),  # suspect, candidate or reference
        ("prompt_id", pa.string()),
        ("text", pa.string()),  # null without an answer
    ]
)
NULL = (
    "The suspect was not trained on any candidate's outputs, and is one more draw from the population of "
    "models that the references were drawn from. The references make that distribution, by assumption."
)
RIVALS = (
    "the suspect and the candidate learned from the same texts or from the same people's taste",
    "the suspect learned the candidate's phrases from the web",
    "the references are of another age or kind than the suspect",
)
FOLDS = 5
FEWEST_PROMPTS = 10
ANSWERS = Sampling(max_tokens=256)
MOST_RUNS = 20_000
"""Number of distinct runs that count: those that occur in the most answers."""
PRIOR = 0.5
"""Pseudocount added to every count."""
_MARK = re.compile(r"\w+|[^\w\s]|\n+")


def observe(
    models: Mapping[str, tuple[Group, GenerateFn]],
    prompts: Mapping[str, Sequence[Message]],
    sampling: Sampling = ANSWERS,
) -> pa.Table:
    """Collects every model's answer to every prompt.

    Args:
        models: by name; one of them is the suspect. For a candidate whose answers a log already holds, the
            `GenerateFn` may look them up.
        prompts: conversations by id.
    """
    rows = []
    for name, (group, ask) in models.items():
        replies = ask([Request(id, list(messages), sampling) for id, messages in prompts.items()])
        for id, reply in zip(prompts, replies, strict=True):
            rows.append((name, group, id, reply.text if isinstance(reply, Reply) else None))
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)


def judge(transcript: pa.Table, parameters: Mapping[str, Any]) -> Finding:
    """Ranks the suspect's similarity to its nearest candidate among that of the references.

    `seed` assigns prompts to folds; `alpha` is the p-value below which the nearest candidate is named.
    """
    answers = _answers(transcript)
    if (reason := answers.insufficient()) is not None:
        return Finding(NAME, LEVEL, NULL, 0, parameters=dict(parameters), reason=reason)
    scores_MC = likelihood_ratios(answers, int(parameters["seed"]))
    spread_C = scores_MC.std(axis=0)
    z_MC = (scores_MC - scores_MC.mean(axis=0)) / np.where(spread_C > 0, spread_C, 1)
    p = conformal_p(z_MC.max(axis=1))
    nearest = answers.candidates[int(z_MC[0].argmax())]
    references = len(answers.tested) - 1
    verdict = nearest if p <= float(parameters["alpha"]) else "none of them"
    effect: dict[str, float | None] = {"floor": 1 / (references + 1), "references": float(references)}
    for column, name in enumerate(answers.candidates):
        effect[f"ratio_{name}"] = float(scores_MC[0, column])
        effect[f"p_{name}"] = conformal_p(scores_MC[:, column])
    return Finding(
        NAME,
        LEVEL,
        NULL,
        n=references + 1,
        statistic=(
            "log-likelihood ratio for the nearest candidate, in standard deviations among all models tested; "
            f"nearest: {nearest}; attributed to: {verdict}"
        ),
        value=float(z_MC[0].max()),
        p_value=p,
        e_value=e_from_p(p),
        effect=effect,
        assumptions=_assumptions(answers),
        rivals=RIVALS,
        parameters=dict(parameters),
        series={"suspect": z_MC[0].tolist(), "references": np.sort(z_MC[1:].max(axis=1)).tolist()[:300]},
    )


def _assumptions(answers: StyleAnswers) -> tuple[Assumption, ...]:
    references = len(answers.tested) - 1
    return (
        Assumption(
            "A suspect that used no candidate's outputs is exchangeable with the references.",
            None,
            "Unverifiable: so this test is of level L0 and never hard evidence, whatever its p-value.",
        ),
        Assumption(
            "There are references enough for a small p-value.",
            references >= 19,
            f"With {references} references p cannot be below {1 / (references + 1):.3g}.",
        ),
        Assumption(
            "Every model answered every prompt.",
            not answers.left_out,
            f"All answered {len(answers.prompts)} prompts; {answers.left_out} others are left out.",
        ),
    )


def conformal_p(scores_M: np.ndarray) -> float:
    """The rank of the first score among all: (1 + #{others at least as high}) / M."""
    return float((1 + (scores_M[1:] >= scores_M[0]).sum()) / len(scores_M))


@dataclass(frozen=True)
class StyleAnswers:
    """Texts by model and prompt."""

    texts: Mapping[str, Mapping[str, str]]
    tested: tuple[str, ...]
    """The suspect, then the references."""
    candidates: tuple[str, ...]
    prompts: tuple[str, ...]
    """Prompts that every model answered."""
    left_out: int

    def insufficient(self) -> str | None:
        """Why there are too few models or prompts; None if there are enough."""
        if not self.candidates or not self.tested or len(self.tested) < 3:
            return (
                "Style needs the suspect, at least one candidate teacher, and at least two reference models."
            )
        if len(self.prompts) < FEWEST_PROMPTS:
            return (
                f"Only {len(self.prompts)} prompts were answered by every model, and style needs at least "
                f"{FEWEST_PROMPTS}. Ask more, or leave out the model that does not answer."
            )
        return None


def likelihood_ratios(answers: StyleAnswers, seed: int) -> np.ndarray:
    """The scores s(m, c) of the module docstring, [M tested models, C candidates].

    Shapes: F folds of prompts, R distinct runs.
    """
    runs = {(name, id): _runs(answers.texts[name][id]) for name in answers.texts for id in answers.prompts}
    answers_with = Counter(run for counter in runs.values() for run in counter)
    # Ties are broken by the run itself, so that the columns do not depend on the order of the models.
    most_common = sorted(answers_with.items(), key=lambda item: (-item[1], item[0]))[:MOST_RUNS]
    column_of = {run: column for column, (run, _) in enumerate(most_common)}
    folds = {id: _fold(id, seed) for id in answers.prompts}
    counts = {name: np.zeros((FOLDS, len(column_of))) for name in answers.texts}
    for (name, id), counter in runs.items():
        for run, count in counter.items():
            if run in column_of:
                counts[name][folds[id], column_of[run]] += count
    sizes_M = np.array([max(counts[name].sum(), 1) for name in answers.tested])

    def loglik_M(teacher: str) -> np.ndarray:
        logps_FR = _held_out_logps(counts[teacher])
        return np.array([(counts[name] * logps_FR).sum() for name in answers.tested]) / sizes_M

    by_candidate_MC = np.stack([loglik_M(name) for name in answers.candidates], axis=1)
    by_other_MM = np.stack([loglik_M(name) for name in answers.tested], axis=1)
    np.fill_diagonal(by_other_MM, 0)
    return by_candidate_MC - by_other_MM.sum(axis=1, keepdims=True) / (len(answers.tested) - 1)


def _held_out_logps(counts_FR: np.ndarray) -> np.ndarray:
    """Log-probabilities of runs for each fold, from the counts of all other folds."""
    rest_FR = counts_FR.sum(axis=0) - counts_FR + PRIOR
    return np.log(rest_FR / rest_FR.sum(axis=1, keepdims=True))


def _runs(text: str) -> Counter[str]:
    """Runs of one to three words or marks as written: case, punctuation and line breaks are style."""
    marks = _MARK.findall(text)
    return Counter(" ".join(marks[i : i + n]) for n in (1, 2, 3) for i in range(len(marks) - n + 1))


def _fold(prompt_id: str, seed: int) -> int:
    return int(sha256_json([seed, prompt_id])[:8], 16) % FOLDS


def _answers(transcript: pa.Table) -> StyleAnswers:
    texts: dict[str, dict[str, str]] = {}
    groups: dict[str, str] = {}
    prompt_ids: dict[str, None] = {}
    for row in transcript.to_pylist():
        groups[row["model"]] = row["group"]
        prompt_ids[row["prompt_id"]] = None
        answered = texts.setdefault(row["model"], {})
        if row["text"] is not None and row["text"].strip():
            answered[row["prompt_id"]] = row["text"]
    prompts = tuple(id for id in prompt_ids if all(id in answered for answered in texts.values()))
    of = {group: tuple(sorted(n for n in groups if groups[n] == group)) for group in Group.__args__}
    tested = (*of["suspect"], *of["reference"]) if len(of["suspect"]) == 1 else ()
    return StyleAnswers(texts, tested, of["candidate"], prompts, len(prompt_ids) - len(prompts))


def _unmet_requirement(plan: TracePlan, access: Access) -> str | None:
    if access.references < 2:
        return "needs at least two reference models (--reference) to be compared with."
    return access.suspect_lacks("generate")


def _observe(case: Case) -> pa.Table:
    """The answers of suspect, references and other teachers; the log holds this teacher's."""
    plan, rows = case.plan, _sampled_rows(case)
    others = {name: open_suspect(name, seed=plan.seed) for name in plan.references}
    others |= {
        other.name: open_suspect(other.model, seed=plan.seed)
        for other in plan.teachers
        if other.model is not None and other.name != case.teacher.name
    }

    def delivered(requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        return [Reply(rows[request.id].output, None, "stop", 0, 0) for request in requests]

    models: dict[str, tuple[Group, GenerateFn]] = {"suspect": ("suspect", case.resumable(NAME, case.suspect))}
    models[case.teacher.name] = ("candidate", delivered)
    for number, (name, model) in enumerate(others.items(), 1):
        group = "reference" if name in plan.references else "candidate"
        models[name] = (group, case.resumable(NAME, model, number=number))
    table = observe(models, {id: row.prompt for id, row in rows.items()})
    for model in others.values():
        model.close()
    return table


def _sampled_rows(case: Case) -> dict[str, Delivered]:
    """Random rows of the tested accounts that have a prompt, by id; as many as the plan asks for."""
    section = case.plan.tests.style
    assert section is not None
    rows = [row for row in case.log_of(case.teacher.accounts).rows if row.prompt]
    order = np.random.default_rng(case.plan.seed).permutation(len(rows))[: section.prompts]
    return {rows[index].id: rows[index] for index in order}


STYLE = Detector(
    name=NAME,
    level=LEVEL,
    title="Whom the suspect sounds like",
    explanation=(
        "The suspect's answers are compared with those of several models. Models sound alike for many "
        "reasons, so this alone never shows that one was trained on another."
    ),
    unmet_requirement=_unmet_requirement,
    observe=_observe,
    judge=judge,
)
