"""Keys that left the recipe: old runs resume and verify, and other recipes learn what to write instead."""

import hashlib

import pytest

from stillhouse.errors import RecipeError
from stillhouse.pipeline.resume import compare_recipes
from stillhouse.provenance import Manifest, recipe_section_hash, verify_run
from stillhouse.recipe.load import dump_recipe, load_recipe, load_recorded_recipe, parse_recipe, recipe_hash

SMALL = "name: n\nteacher: {model: m}\nprompts: {source: s}\nstudent: {init: prune, layers: 2}\n"
OLD_DEFAULTS = "9911370071c8cad2a78d14d6a185af8946c2ed1c219049ccf657bf5370f12a01"
"""The hash of the section `filter` that version 0.1.0 recorded for SMALL, before its keys were retired."""
OLD_CHANGED = "da7034332fd4ccfa9d623558e28bed84877501ae7bae9a58cf5964725a5410f7"
"""The same with `empty: false` and `verifier: 'a:b'`."""
ADDED_LATER = (
    "  enable_thinking: null\n",
    "  reasoning_effort: null\n",
    "  extra_body: {}\n",
    "  content_filter: true\n",
)
"""The lines of keys that came later, with their defaults."""


def old_recipe(empty: str = "true", verifier: str = "null") -> str:
    """The resolved recipe as an older version wrote it."""
    lines = dump_recipe(parse_recipe(SMALL)).splitlines(keepends=True)
    new = "".join(line for line in lines if line not in ADDED_LATER)
    assert new.count("\nfilter:\n") == new.count("\nverifiers:") == 1
    return new.replace("\nfilter:\n", f"\nfilter:\n  empty: {empty}\n").replace(
        "\nverifiers:", f"\n  verifier: {verifier}\nverifiers:"
    )


def old_run(directory, recipe: str, filter_hash: str):
    """A run whose stage `filter` an older version finished."""
    (directory / "recipe.yaml").write_text(recipe)
    (directory / "corpus").mkdir()
    (directory / "corpus" / "kept.parquet").write_bytes(b"rows")
    manifest = Manifest.load(directory)
    inputs = {"stillhouse": "0.1.0", "recipe.filter": filter_hash}
    manifest.record("filter", inputs, [directory / "corpus" / "kept.parquet"], {"kept": 4})
    return inputs


def test_old_defaults_are_accepted_and_leave_nothing(tmp_path):
    (tmp_path / "recipe.yaml").write_text(old_recipe())
    recipe = parse_recipe((tmp_path / "recipe.yaml").read_text())
    assert recipe == parse_recipe(SMALL)
    assert "empty" not in dump_recipe(recipe)
    assert parse_recipe(SMALL, overrides=["filter.empty=true", "filter.verifier=null"]) == recipe


@pytest.mark.parametrize(
    ("line", "override", "named", "instead"),
    [
        ("filter: {empty: false}", None, "r.yaml:5: filter.empty: ", "remove this line"),
        ("filter: {empty: 1}", None, "r.yaml:5: filter.empty: ", "always dropped"),
        ("filter: {verifier: 'a:b'}", None, "r.yaml:5: filter.verifier: ", "kind: function"),
        ("", "filter.verifier=a:b", "--filter.verifier: ", "per_prompt: null"),
        ("", "filter.empty=false", "--filter.empty: ", "truncated: false"),
    ],
)
def test_other_values_are_refused_with_their_replacement(line, override, named, instead):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(SMALL + line + "\n", name="r.yaml", overrides=[override] if override else [])
    assert str(caught.value).startswith(named)
    assert instead in str(caught.value)


def test_the_complaint_comes_with_all_others():
    with pytest.raises(RecipeError) as caught:
        parse_recipe(SMALL + "filter:\n  empty: false\n  min_chars: -1\nseed: x\n", name="r.yaml")
    places = [line.split(": ")[0] for line in str(caught.value).splitlines()]
    assert places == ["r.yaml:6", "r.yaml:7", "r.yaml:8"]


def test_what_an_older_version_finished_counts_as_finished(tmp_path):
    inputs = old_run(tmp_path, old_recipe(), OLD_DEFAULTS)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe_section_hash(recipe, "filter") == OLD_DEFAULTS
    assert Manifest.load(tmp_path).finished(
        "filter", inputs | {"recipe.filter": recipe_section_hash(recipe, "filter")}
    )
    recorded, _ = load_recorded_recipe(tmp_path / "recipe.yaml")
    assert compare_recipes(recorded, parse_recipe(SMALL), tmp_path).refused == []


@pytest.mark.parametrize(
    ("recipe", "filter_hash"),
    [(old_recipe(), OLD_DEFAULTS), (old_recipe("false", "a:b"), OLD_CHANGED)],
    ids=["defaults", "changed"],
)
def test_an_old_run_verifies_whatever_its_retired_keys_held(tmp_path, recipe, filter_hash):
    old_run(tmp_path, recipe, filter_hash)
    assert verify_run(tmp_path).differences == []
    harmed = recipe.replace("min_chars: 1", "min_chars: 2")
    (tmp_path / "recipe.yaml").write_text(harmed)
    assert verify_run(tmp_path).differences == ["recipe.yaml: filter differs from what stage filter used"]


@pytest.mark.parametrize("retired", [("false", "null"), ("true", "a:b"), ("1", "null")])
def test_a_retired_value_that_was_changed_later_is_found(tmp_path, retired):
    old_run(tmp_path, old_recipe(*retired), OLD_DEFAULTS)
    assert verify_run(tmp_path).differences == ["recipe.yaml: filter differs from what stage filter used"]


def test_the_hash_of_a_whole_recipe_is_that_of_the_old_text(tmp_path):
    """Studies compare it before they resume an arm."""
    assert recipe_hash(parse_recipe(SMALL)) == hashlib.sha256(old_recipe().encode()).hexdigest()


def test_a_recorded_recipe_gives_the_retired_values(tmp_path):
    (tmp_path / "recipe.yaml").write_text(old_recipe("false", "a:b"))
    recipe, retired = load_recorded_recipe(tmp_path / "recipe.yaml")
    assert recipe == parse_recipe(SMALL)
    assert retired == {"filter": {"empty": False, "verifier": "a:b"}}
