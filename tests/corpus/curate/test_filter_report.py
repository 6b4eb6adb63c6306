"""The filter's table adds up, and a large share of dropped exchanges is a warning that names the setting."""

from __future__ import annotations

from stillhouse.corpus.curate.filter_report import drop_warnings, filter_rows
from stillhouse.recipe.load import parse_recipe

RECIPE = parse_recipe(
    "name: n\nteacher: {model: embedded:smollm2}\nprompts: {source: q.jsonl, held_out: 5}\n"
    "student: {init: prune, layers: 2}\ncollect: {max_tokens: 24}\n"
)
KEPT = {"train": 10, "held_out": 2}
REJECTED = {"train": {"truncated": 15, "refusal": 1}, "held_out": {"truncated": 3}}


def test_every_row_adds_up():
    rows = filter_rows(KEPT, REJECTED, ["empty", "truncated", "refusal"])
    assert rows == [["training", "26", "10", "0", "15", "1"], ["held out", "5", "2", "0", "3", "0"]]
    for _, asked, *counts in rows:
        assert int(asked) == sum(map(int, counts))


def test_a_large_share_is_warned_of_with_the_reason_and_the_setting():
    training, held_out = drop_warnings(RECIPE, KEPT, REJECTED)
    assert (
        "training: 26 exchanges became 10; 15 were dropped because they are cut off at max_tokens 24"
        in training
    )
    assert "held out: 5 exchanges became 2; 3 were dropped" in held_out
    for words in (training, held_out):
        assert "cut off at max_tokens 24" in words
        assert "raise collect.max_tokens or set filter.truncated: false" in words


def test_a_quarter_is_not_a_large_share_and_overlapping_prompts_do_not_count():
    assert not list(drop_warnings(RECIPE, {"train": 30, "held_out": 5}, {"train": {"truncated": 10}}))
    overlap = {"train": {"prompt overlaps a held-out one": 50}}
    assert not list(drop_warnings(RECIPE, {"train": 3, "held_out": 5}, overlap))
