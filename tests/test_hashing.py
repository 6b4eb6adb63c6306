"""Seeds from hashes: what was recorded can be drawn again."""

import pytest

from stillhouse.hashing import seed_for_item, seed_from


# Computed by version 0.1.0, which had the second formula in two places.
@pytest.mark.parametrize(("text", "seed"), [("resample 0 00001 1", 1529018292), ("é\ud800", 1419386481)])
def test_the_seed_of_a_text_is_that_of_recorded_runs(text, seed):
    assert seed_from(text) == seed


@pytest.mark.parametrize(
    ("run", "name", "seed"), [(0, "x", 1843849874), (7, "prompt/3", 1130284802), (123, "é", 705789991)]
)
def test_the_seed_of_an_item_is_that_of_recorded_runs(run, name, seed):
    assert seed_for_item(run, name) == seed
