"""The plan of a trace: the question, the tests and their parameters, fixed before the first query.

A YAML file like a recipe. It holds everything that affects the verdict: the tests with their weights and
parameters, the threshold of hard evidence, and the share of the log that would matter. A resolved plan also
names the models and logs; it is saved in the bundle, and its hash is committed before the suspect is queried.
Reading a plan opens no model and no log.

The settings of each test are here and not in the detector's file: a plan is read, checked and documented
without numpy, scipy and pyarrow (0.2 s instead of 1.3 s), and detectors take the whole plan as an argument.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt, Le

from stillhouse.errors import RecipeError, UsageError
from stillhouse.recipe.field_types import (
    NonNegativeInt,
    PathText,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Text,
)
from stillhouse.recipe.load import read_text, validate
from stillhouse.recipe.paths import resolve_paths, shorten_paths
from stillhouse.recipe.validation import directory_name
from stillhouse.recipe.yaml_lines import Origins, dump_yaml, read_yaml

ScoreName = Literal["loglik", "min_k", "reference", "teacher", "overlap"]
DEFAULT_QUESTION = "Was the suspect trained on outputs that the teacher delivered to these accounts?"


@dataclass(frozen=True, kw_only=True)
class TeacherPlan:
    """One model whose outputs may have been used for training, and the log of what it delivered."""

    name: Text
    """Short name: letters, digits, `.`, `_` and `-`."""
    log: PathText
    """Delivered outputs: parquet, a corpus directory, or JSON lines."""
    model: PathText | None = None
    """The archived teacher: reference of a model. Without it the exchangeable test needs `resamples`."""
    resamples: PathText | None = None
    """Fresh outputs for the same prompts, made by `still trace resample`; by default the trace draws them."""
    accounts: tuple[Text, ...] = ()
    """Accounts of the log to test; an empty list selects all."""
    placebo_accounts: tuple[Text, ...] = ()
    """Accounts whose outputs the suspect cannot have seen; tested in the same way, and expected to show
    nothing."""
    watermark_key: PathText | None = None
    """File with the secret key of the watermark in these outputs, in hexadecimal."""
    canaries: PathText | None = None
    """File with the canaries and their decoys."""


@dataclass(frozen=True, kw_only=True)
class Exchangeable:
    """Compares delivered outputs with fresh resamples of the teacher (level L2)."""

    weight: PositiveFloat = 1.0
    """Weight of its e-value in the mean of its level."""
    score: ScoreName = "loglik"
    """Score that ranks a delivered output among its resamples: the suspect's log-likelihood (`loglik`), that
    of the least likely tokens (`min_k`), its difference from a reference model's (`reference`) or from the
    teacher's own (`teacher`), or, with text only, the overlap with what the suspect writes (`overlap`)."""
    draws: PositiveInt = 3
    """Resamples of each delivered output."""
    surrogate_auc: tuple[Annotated[float, Gt(0.5), Le(1.0)], ...] = ()
    """How well the score separates used outputs from resamples in a surrogate model that was trained on them
    (AUC), or the ends of an interval for it. Required for an interval of the share of the log that was
    used."""


@dataclass(frozen=True, kw_only=True)
class Radioactivity:
    """Looks for the watermark of the teacher's outputs in the suspect's (level L1; L2 with an account's own
    key)."""

    weight: PositiveFloat = 1.0
    """Weight of its e-value in the mean of its level."""
    level: Literal["L1", "L2"] = "L2"
    """L2 if the key marked only the outputs to these accounts, L1 if it marked those to all accounts."""
    mode: Literal["open", "closed"] = "closed"
    """`open` uses the suspect's predictions on the delivered texts, `closed` only the text that it writes."""
    scheme: Literal["kgw", "gumbel", "tournament"] = "kgw"
    """Watermarking scheme: green list (`kgw`), Gumbel race (`gumbel`) or tournament sampling
    (`tournament`)."""
    gamma: PositiveShare = 0.25
    """Share of the vocabulary on the green list (kgw)."""
    delta: PositiveFloat = 2.0
    """Logit bias of green tokens, in nats (kgw); used if the trace draws the resamples."""
    depth: PositiveInt = 30
    """Layers of the tournament (tournament)."""
    window: PositiveInt = 2
    """Number of preceding tokens that seed the mark of a token."""


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """Compares texts made for one account with decoys that were never delivered (level L2)."""

    weight: PositiveFloat = 1.0
    """Weight of its e-value in the mean of its level."""


@dataclass(frozen=True, kw_only=True)
class Rephrasings:
    """Compares published texts with rephrasings of them that were held back (level L2)."""

    weight: PositiveFloat = 1.0
    """Weight of its e-value in the mean of its level."""
    texts: PathText | None = None
    """File with the published texts and their rephrasings."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """Finds the teacher whose style is closest to the suspect's, among reference models (level L0: never hard
    evidence)."""

    prompts: PositiveInt = 200
    """Number of the log's prompts that every model answers."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Asks the suspect who it is: an exhibit, not a test."""

    languages: tuple[Text, ...] = ()
    """Codes of the languages of the questions; an empty list selects all."""


@dataclass(frozen=True, kw_only=True)
class WeightsLineage:
    """Tests whether the suspect is a fine-tune of the teacher's own weights, which is a separate claim."""


@dataclass(frozen=True, kw_only=True)
class TrainingOrder:
    """Tests whether the suspect descends from a model whose order of training texts is known."""

    texts: PathText | None = None
    """File with training texts in the order of training: JSON lines with `text`."""


@dataclass(frozen=True, kw_only=True)
class PlannedTests:
    """The tests; `null` switches one off."""

    exchangeable: Exchangeable | None = Exchangeable()
    """Compares delivered outputs with fresh resamples (L2)."""
    radioactivity: Radioactivity | None = Radioactivity()
    """Looks for the watermark in the suspect's outputs (L1 or L2)."""
    canaries: Canaries | None = Canaries()
    """Compares texts made for one account with decoys (L2)."""
    rephrasings: Rephrasings | None = None
    """Compares published texts with held-back rephrasings (L2)."""
    style: Style | None = Style()
    """Compares the suspect's style with that of the teachers (L0)."""
    identity: Identity | None = Identity()
    """Asks the suspect who it is (exhibit)."""
    weights: WeightsLineage | None = WeightsLineage()
    """Tests for a fine-tune of the teacher's weights."""
    training_order: TrainingOrder | None = None
    """Tests whether the suspect descends from a model, by the order of its training texts."""

    @classmethod
    def none(cls) -> PlannedTests:
        """A plan without any test."""
        return cls(**dict.fromkeys(field.name for field in dataclasses.fields(cls)))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the planned tests, in order."""
        return tuple(f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None)

    def weight(self, test: str) -> float:
        """The pre-registered weight of a planned test; 0 if it is never combined with others."""
        return getattr(getattr(self, test), "weight", 0.0)


@dataclass(frozen=True, kw_only=True)
class TracePlan:
    """The plan of one trace."""

    name: Text = "trace"
    """Short name."""
    question: Text = DEFAULT_QUESTION
    """The question that the trace answers, in one sentence."""
    suspect: PathText | None = None
    """The model under test: a reference."""
    teachers: tuple[TeacherPlan, ...] = ()
    """Models whose outputs may have been used. With more than one, each must reach a higher threshold."""
    references: tuple[PathText, ...] = ()
    """Unrelated models of the suspect's kind and age."""
    public: tuple[PathText, ...] = ()
    """Publicly available text files, which are searched for delivered outputs."""
    seed: NonNegativeInt = 0
    """Seed of all random choices: resamples, ties, placebos."""
    hard: Annotated[float, Gt(1)] = 1000.0
    """The e-value of hard evidence: at most one trace in this many makes a false accusation."""
    alpha: PositiveShare = 0.05
    """One minus the confidence level of intervals and bounds."""
    share: PositiveShare = 0.05
    """The smallest share of the log whose use would matter. The verdict states a bound if it is at most this
    share, and otherwise the power to find this share."""
    stop_at: PositiveFloat | None = None
    """The e-value at which the suspect is no longer queried. By default the whole log is tested."""
    budget: PositiveInt | None = None
    """Limit on the tokens that the suspect's API may count in total; requests beyond it are not sent. By
    default there is no limit."""
    api_key_env: Text = "OPENAI_API_KEY"
    """Environment variable with the key of the suspect's API."""
    placebos: NonNegativeInt = 20
    """Number of placebo tests: with a resample in place of the delivered output, or with a key that marked
    nothing."""
    tests: PlannedTests = PlannedTests()
    """The tests to run."""


def load_plan(path: str | Path) -> TracePlan:
    """Reads and validates a plan; its paths are relative to the file.

    Raises:
        RecipeError: the file cannot be read, or the plan is invalid; lists every error with its line.
    """
    path = Path(path)
    values, origins = _read_mapping(read_text(path, "plan"), str(path))
    values = resolve_paths(TracePlan, values, origins, path.parent)
    return validate(TracePlan, values, origins, _broken_rules)


def load_bundled_plan(path: Path) -> TracePlan:
    """Reads the plan of a bundle; paths stay as written: relative to where the trace ran, or absolute."""
    return parse_plan(read_text(path, "plan"), name=str(path))


def parse_plan(text: str, *, name: str = "<text>") -> TracePlan:
    """Like :func:`load_plan`, from text, with paths as written; ``name`` is the file name in messages."""
    return validate(TracePlan, *_read_mapping(text, name), _broken_rules)


def _read_mapping(text: str, name: str) -> tuple[dict[str, Any], Origins]:
    values, origins = read_yaml(text, name)
    if not isinstance(values, dict):
        raise RecipeError(f"{name}:1: a plan is a mapping of keys (question, teachers, tests, …)")
    return values, origins


def dump_plan(plan: TracePlan) -> str:
    """The plan as YAML, defaults included; parsing it returns an equal plan."""
    return dump_yaml(dataclasses.asdict(plan))


def plan_for_texts(plan: TracePlan, texts: str) -> TracePlan:
    """An author's plan: the rephrasings test of published texts, and no other test."""
    return dataclasses.replace(
        plan,
        question="Was the suspect trained on the published versions of these texts?",
        teachers=(TeacherPlan(name="texts", log=texts),),
        tests=dataclasses.replace(PlannedTests.none(), rephrasings=Rephrasings(texts=texts)),
    )


def teacher_name(reference: str) -> str:
    """A short name for a teacher: the last component of its reference, or of its log's path."""
    last = re.split(r"[/\\:#]", reference.rstrip("/\\"))[-1]
    last = last.removesuffix(".parquet").removesuffix(".gguf")
    return re.sub(r"[^\w.-]", "-", last).lstrip(".-") or "teacher"


def resolve_plan(
    plan: TracePlan,
    *,
    suspect: str | None,
    teachers: Sequence[TeacherPlan],
    references: Sequence[str],
) -> TracePlan:
    """The plan completed with the models and logs that the command line names; its paths contain no `..`.

    Raises:
        UsageError: neither names the suspect or a log, or they name different ones.
    """
    from_options = {"suspect": suspect, "teachers": tuple(teachers), "references": tuple(references)}
    for field, value in from_options.items():
        planned = getattr(plan, field)
        if value and planned and value != planned:
            raise UsageError(
                f"the plan already names its {field}, and the command line names another",
                hint="Leave the option out, or the key of the plan.",
            )
    named = {field: value for field, value in from_options.items() if value}
    resolved = dataclasses.replace(plan, **named)
    if resolved.suspect is None:
        raise UsageError("no suspect was named", hint="Give --suspect MODEL, or the plan's key `suspect`.")
    if not resolved.teachers:
        raise UsageError(
            "no log was named", hint="Give --log FILE (and --teacher MODEL), or `teachers` in the plan."
        )
    return shorten_paths(resolved)


def _broken_rules(plan: TracePlan) -> Iterator[tuple[str, str]]:
    """Rules across fields that a plan breaks: key and error message."""
    names = [teacher.name for teacher in plan.teachers]
    for number, teacher in enumerate(plan.teachers):
        yield from directory_name("teachers", teacher.name)
        if teacher.name in names[:number]:
            yield "teachers", f"two teachers are named `{teacher.name}`"
        if both := set(teacher.accounts) & set(teacher.placebo_accounts):
            yield "teachers", f"account `{min(both)}` of `{teacher.name}` is both tested and a placebo"
        if teacher.placebo_accounts and not teacher.accounts:
            yield "teachers", f"`{teacher.name}` has placebo accounts, so its `accounts` must be named too"
    if not plan.tests.names:
        yield "tests", "at least one test must be planned"
    exchangeable = plan.tests.exchangeable
    if exchangeable and len(exchangeable.surrogate_auc) > 2:
        yield "tests.exchangeable.surrogate_auc", "must be one number, or the two ends of an interval"
