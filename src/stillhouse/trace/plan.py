"""The plan of a trace: what is asked and what would answer it, fixed before the first query.

A YAML file like a recipe's. Everything that bears on the verdict is in it: the tests with their weights and
parameters, the threshold of hard evidence, the share of the log that would matter. A resolved plan names the
models and logs too, and is saved in the bundle; its hash is committed before the suspect is asked anything.
Reading a plan opens no model and no log.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Le

from stillhouse.errors import RecipeError, UsageError
from stillhouse.recipe.field_types import NonNegativeInt, PositiveFloat, PositiveInt, PositiveShare, Text
from stillhouse.recipe.load import read_text, validate
from stillhouse.recipe.validation import directory_name
from stillhouse.recipe.yaml_lines import dump_yaml, read_yaml

ScoreName = Literal["loglik", "min_k", "reference", "teacher", "overlap"]
QUESTION = "Was the suspect trained on outputs that the teacher delivered to these accounts?"


@dataclass(frozen=True, kw_only=True)
class TeacherPlan:
    """One model whose outputs may have been used, and the log of what it delivered."""

    name: Text
    """A short name: letters, digits, `.`, `_` and `-`."""
    log: Text
    """Delivered outputs: parquet, a corpus directory, or JSON lines."""
    model: Text | None = None
    """The archived teacher: a model's reference. Without it `resamples` must be there already."""
    resamples: Text | None = None
    """Fresh outputs for the same prompts, drawn by `still trace resample`; else they are drawn at once."""
    accounts: tuple[Text, ...] = ()
    """Accounts of the log that are tested; none means all."""
    placebo_accounts: tuple[Text, ...] = ()
    """Accounts of the log that the suspect cannot have had; tested alike, and expected to show nothing."""
    watermark_key: Text | None = None
    """A file with the secret key of the mark in these outputs, in hexadecimal."""
    canaries: Text | None = None
    """A file with the canaries and their decoys."""


@dataclass(frozen=True, kw_only=True)
class Exchangeable:
    """Delivered outputs against fresh resamples of the teacher (level L2)."""

    weight: PositiveFloat = 1.0
    """Its share in the mean of its level."""
    score: ScoreName = "loglik"
    """What the delivered output and its resamples are ranked by: the suspect's log-likelihood, that of its
    least likely tokens, the difference to a reference model's or to the teacher's own, or (text only) the
    overlap with what it writes."""
    draws: PositiveInt = 3
    """Resamples of each delivered output."""
    surrogate_auc: tuple[Annotated[float, Gt(0.5), Le(1.0)], ...] = ()
    """How well the score tells a used output from a resample in a surrogate model that did use it, or the
    ends of an interval for that; with it there is an interval for the share of the log that was used."""


@dataclass(frozen=True, kw_only=True)
class Radioactivity:
    """The watermark of the teacher's outputs in the suspect's (level L1, or L2 with an account's own key)."""

    weight: PositiveFloat = 1.0
    """Its share in the mean of its level."""
    level: Literal["L1", "L2"] = "L2"
    """L2 where the key marked only the outputs to these accounts, L1 where it marked everybody's."""
    mode: Literal["open", "closed"] = "closed"
    """`open` reads the suspect's predictions on the delivered texts, `closed` only what it writes."""
    scheme: Literal["kgw", "gumbel", "tournament"] = "kgw"
    """The mark: a green list, the Gumbel race, or a tournament."""
    gamma: PositiveShare = 0.25
    """Share of the vocabulary that is green (kgw)."""
    delta: PositiveFloat = 2.0
    """What green tokens gained in their logits, in nats (kgw); resamples that are drawn here need it."""
    depth: PositiveInt = 30
    """Layers of the tournament."""
    window: PositiveInt = 2
    """Tokens before the one that is marked, which decide its colour."""


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """Texts made for one account, against decoys that nobody was given (level L2)."""

    weight: PositiveFloat = 1.0
    """Its share in the mean of its level."""


@dataclass(frozen=True, kw_only=True)
class Rephrasings:
    """Published text against rephrasings of it that were held back (level L2)."""

    weight: PositiveFloat = 1.0
    """Its share in the mean of its level."""
    texts: Text | None = None
    """A file with the published texts and their rephrasings."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """Which teacher the suspect sounds like, among reference models (level L0: never hard)."""

    prompts: PositiveInt = 200
    """Prompts of the log that are put to every model."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who the suspect says it is: an exhibit, not a test."""

    languages: tuple[Text, ...] = ()
    """Codes of the languages it is asked in; none means all that are known."""


@dataclass(frozen=True, kw_only=True)
class WeightsLineage:
    """Whether the suspect is a fine-tune of the teacher's own weights, which is another claim."""


@dataclass(frozen=True, kw_only=True)
class TrainingOrder:
    """Whether the suspect descends from a model whose order of training texts is known."""

    texts: Text | None = None
    """Training texts in the order in which they were read: JSON lines with `text`."""


@dataclass(frozen=True, kw_only=True)
class PlannedTests:
    """The tests; `null` leaves one out."""

    exchangeable: Exchangeable | None = Exchangeable()
    """Delivered outputs against fresh resamples (L2)."""
    radioactivity: Radioactivity | None = Radioactivity()
    """The watermark in the suspect's outputs (L1 or L2)."""
    canaries: Canaries | None = Canaries()
    """Texts made for one account (L2)."""
    rephrasings: Rephrasings | None = None
    """Published text against held-back rephrasings (L2)."""
    style: Style | None = Style()
    """Whom the suspect sounds like (L0)."""
    identity: Identity | None = Identity()
    """Who it says it is (exhibit)."""
    weights: WeightsLineage | None = WeightsLineage()
    """Whether it is a fine-tune of the teacher's weights."""
    training_order: TrainingOrder | None = None
    """The same, by the order of training."""

    @classmethod
    def none(cls) -> PlannedTests:
        """A plan without any test."""
        return cls(**dict.fromkeys(field.name for field in dataclasses.fields(cls)))

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the tests that are planned, in order."""
        return tuple(f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None)

    def weight(self, test: str) -> float:
        """The pre-registered weight of a planned test; 0 for one that is never combined."""
        return getattr(getattr(self, test), "weight", 0.0)


@dataclass(frozen=True, kw_only=True)
class TracePlan:
    """A whole plan."""

    name: Text = "trace"
    """A short name."""
    question: Text = QUESTION
    """What is to be found out, in a sentence."""
    suspect: Text | None = None
    """The model in question: a reference."""
    teachers: tuple[TeacherPlan, ...] = ()
    """Models whose outputs may have been used; with several, each has to clear a higher threshold."""
    references: tuple[Text, ...] = ()
    """Models of the suspect's kind and age that had nothing to do with it."""
    public: tuple[Text, ...] = ()
    """Text files that anybody could have read; delivered outputs are searched for in them."""
    seed: NonNegativeInt = 0
    """Of everything that is drawn: resamples, ties, placebos."""
    hard: Annotated[float, Gt(1)] = 1000.0
    """The e-value at which evidence is called hard: at most one false accusation in so many."""
    alpha: PositiveShare = 0.05
    """One minus the confidence of intervals and bounds."""
    share: PositiveShare = 0.05
    """The smallest share of the log whose use would matter: a bound below it, and the power to find it, are
    what an exoneration would need."""
    stop_at: PositiveFloat | None = None
    """The e-value at which the suspect is asked no more; none asks about the whole log."""
    budget: PositiveInt | None = None
    """Tokens that an API of the suspect may count in all; what they do not allow is not asked. None is no
    limit."""
    api_key_env: Text = "OPENAI_API_KEY"
    """Environment variable with the key that an API of the suspect wants."""
    placebos: NonNegativeInt = 20
    """Tests with a resample in the place of the delivered output, or with a key that marked nothing."""
    tests: PlannedTests = PlannedTests()
    """What is done."""


def load_plan(path: str | Path) -> TracePlan:
    """Reads and checks a plan.

    Raises:
        RecipeError: the file cannot be read, or something in it is wrong; all complaints at once, each with
            its line.
    """
    return parse_plan(read_text(Path(path), "plan"), name=str(path))


def parse_plan(text: str, *, name: str = "<text>") -> TracePlan:
    """Like `load_plan`, from text; ``name`` stands for the file in error messages."""
    values, origins = read_yaml(text, name)
    if not isinstance(values, dict):
        raise RecipeError(f"{name}:1: a plan is a mapping of keys (question, teachers, tests, …)")
    return validate(TracePlan, values, origins, _broken_rules)


def dump_plan(plan: TracePlan) -> str:
    """The plan as YAML, defaults included; reading it gives ``plan`` again."""
    return dump_yaml(dataclasses.asdict(plan))


def plan_for_texts(plan: TracePlan, texts: str) -> TracePlan:
    """The plan of an author, who asks about published texts and about nothing else."""
    return dataclasses.replace(
        plan,
        question="Was the suspect trained on the published versions of these texts?",
        teachers=(TeacherPlan(name="texts", log=texts),),
        tests=dataclasses.replace(PlannedTests.none(), rephrasings=Rephrasings(texts=texts)),
    )


def resolve(
    plan: TracePlan,
    *,
    suspect: str | None,
    teachers: Sequence[TeacherPlan],
    references: Sequence[str],
) -> TracePlan:
    """The plan with what the command line names; neither may contradict the other.

    Raises:
        UsageError: the suspect or a log is named nowhere, or plan and command line name different ones.
    """
    given = {"suspect": suspect, "teachers": tuple(teachers), "references": tuple(references)}
    for field, value in given.items():
        planned = getattr(plan, field)
        if value and planned and value != planned:
            raise UsageError(
                f"the plan already names its {field}, and the command line names another",
                hint="Leave the option out, or the key of the plan.",
            )
    named = {field: value for field, value in given.items() if value}
    resolved = dataclasses.replace(plan, **named)
    if resolved.suspect is None:
        raise UsageError("no suspect was named", hint="Give --suspect MODEL, or the plan's key `suspect`.")
    if not resolved.teachers:
        raise UsageError(
            "no log was named", hint="Give --log FILE (and --teacher MODEL), or `teachers` in the plan."
        )
    return resolved


def _broken_rules(plan: TracePlan) -> Iterator[tuple[str, str]]:
    """What is wrong with a plan whose fields fit: key and complaint."""
    names = [teacher.name for teacher in plan.teachers]
    for number, teacher in enumerate(plan.teachers):
        yield from directory_name("teachers", teacher.name)
        if teacher.name in names[:number]:
            yield "teachers", f"two teachers are named `{teacher.name}`"
        if both := set(teacher.accounts) & set(teacher.placebo_accounts):
            yield "teachers", f"account `{min(both)}` of `{teacher.name}` is both tested and a placebo"
        if teacher.placebo_accounts and not teacher.accounts:
            yield "teachers", f"`{teacher.name}` has placebo accounts, so its `accounts` must be named too"
    if not plan.tests.wanted:
        yield "tests", "at least one test must be planned"
    exchangeable = plan.tests.exchangeable
    if exchangeable and len(exchangeable.surrogate_auc) > 2:
        yield "tests.exchangeable.surrogate_auc", "must be one number, or the two ends of an interval"
