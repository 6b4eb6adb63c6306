"""Which changes of its recipe an existing run resumes with, and which keys its hashes leave out."""

import pytest

from stillhouse.pipeline.resume import _affected, compare_recipes
from stillhouse.pipeline.run_context import RunContext
from stillhouse.pipeline.runner import _inputs
from stillhouse.pipeline.stages import STAGES
from stillhouse.provenance import Manifest
from stillhouse.provenance.manifest import RESULT_NEUTRAL
from stillhouse.recipe.load import parse_recipe, recipe_keys

SOUND = (
    "name: n\nteacher: {model: embedded:smollm2}\nprompts: {source: p}\nstudent: {init: prune, layers: 2}\n"
)
BEFORE = parse_recipe(SOUND)
NAMES = [stage.name for stage in STAGES]


def refused(directory, *overrides):
    """The keys whose changes prevent the run in ``directory`` from resuming."""
    return [
        key
        for key, _, _ in compare_recipes(BEFORE, parse_recipe(SOUND, overrides=overrides), directory).refused
    ]


def finish(directory, last, facts=None):
    manifest = Manifest.load(directory)
    for name in NAMES[: NAMES.index(last) + 1]:
        manifest.record(name, {}, [], (facts or {}).get(name, {}))


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}\n")


@pytest.mark.parametrize(
    ("last", "override", "stands"),
    [
        ("collect", "collect.max_tokens=9", False),
        ("collect", "prompts.limit=9", False),
        ("collect", "teacher.system=x", False),
        ("collect", "filter.contamination_ngram=5", False),  # decides which prompts were asked
        ("collect", "train.epochs=2", True),
        ("collect", "student.layers=3", True),
        ("filter", "filter.min_chars=2", True),
        ("targets", "filter.min_chars=2", True),
        ("train", "filter.min_chars=2", False),
        ("student", "student.layers=3", False),
        ("student", "train.max_length=99", False),
        ("student", "objective.kind=reverse_kl", True),
        ("targets", "objective.temperature=2", False),
        ("targets", "train.dtype=float32", False),
        ("targets", "train.learning_rate=1e-3", True),
        ("card", "train.epochs=2", False),
        ("card", "seed=2", False),
        ("card", "evaluate.confidence=0.9", True),
        ("card", "evaluate.control=false", True),
        ("card", "license=mit", True),
        ("card", "purpose=personal", True),
        ("card", "collect.retries=1", True),
        ("card", "collect.max_total_tokens=9", True),
        ("card", "teacher.price_in=1", True),
        ("card", "train.trackers=[tensorboard]", True),
    ],
)
def test_only_what_finished_work_depends_on_is_refused(tmp_path, last, override, stands):
    finish(tmp_path, last)
    assert refused(tmp_path, override) == ([] if stands else [override.partition("=")[0]])


@pytest.mark.parametrize(
    ("left", "override"),
    [
        ("corpus/collected/journal-000000.jsonl", "collect.temperature=0"),
        ("targets/index.json", "objective.temperature=2"),
        ("checkpoints/step-00000050", "train.epochs=2"),
        ("checkpoints/step-00000050", "filter.min_chars=2"),
        ("control/checkpoints/step-00000050", "train.epochs=2"),
    ],
)
def test_what_has_begun_counts(tmp_path, left, override):
    finish(tmp_path, "terms")
    assert refused(tmp_path, override) == []
    put(tmp_path / left)
    assert refused(tmp_path, override) == [override.partition("=")[0]]


def test_collecting_that_a_limit_ended_goes_on_when_the_limit_is_raised(tmp_path):
    stopped = {"collect": {"stopped_by": "max_total_tokens"}}
    finish(tmp_path, "filter", stopped)
    assert refused(tmp_path, "collect.max_total_tokens=9") == []
    finish(tmp_path, "train", stopped)
    assert refused(tmp_path, "collect.max_total_tokens=9") == ["collect.max_total_tokens"]
    assert refused(tmp_path, "collect.retries=9") == []
    other = parse_recipe(SOUND, overrides=["collect.max_total_tokens=9"])
    inputs = [
        [_inputs(STAGES[1], RunContext(recipe, tmp_path), recipe, facts) for recipe in (BEFORE, other)]
        for facts in ({}, stopped["collect"])
    ]
    assert inputs[0][0] == inputs[0][1]
    assert inputs[1][0] != inputs[1][1]


@pytest.mark.parametrize("override", ["collect.retries=9", "train.checkpoint_every=9", "teacher.price_out=9"])
def test_keys_without_a_say_in_the_result_are_in_no_hash(tmp_path, override):
    other = parse_recipe(SOUND, overrides=[override])
    for stage in STAGES:
        assert _inputs(stage, RunContext(other, tmp_path), other, {}) == _inputs(
            stage, RunContext(BEFORE, tmp_path), BEFORE, {}
        )


@pytest.mark.parametrize("key", recipe_keys())
def test_every_key_belongs_to_a_stage(key):
    """A new section that no stage names would change nothing and never be refused."""
    assert key in RESULT_NEUTRAL or _affected(key, None)
