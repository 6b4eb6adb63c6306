"""Near duplicates against a brute-force comparison of every pair."""

from __future__ import annotations

import random

import pytest

from stillhouse.corpus.curate.near_duplicates import (
    MISS_PROBABILITY,
    PERMUTATIONS,
    NearDuplicates,
    rows_per_band,
)


def jaccard(a: str, b: str) -> float:
    """The definition, word by word, for plain ASCII text without punctuation."""

    def grams(text):
        found = text.lower().split()
        return {tuple(found[i : i + 3]) for i in range(len(found) - 2)}

    first, second = grams(a), grams(b)
    return len(first & second) / len(first | second)


def families(seed: int, count: int) -> list[str]:
    """Texts in families: an original of 60 to 200 words, and copies with more and more words changed."""
    draw = random.Random(seed)
    vocabulary = [f"word{n}" for n in range(2000)]
    texts = []
    while len(texts) < count:
        original = draw.choices(vocabulary, k=draw.randint(60, 200))
        for changed in (0, 1, 2, 4, 8, 16):
            copy = list(original)
            for place in draw.sample(range(len(copy)), changed):
                copy[place] = draw.choice(vocabulary)
            texts.append(" ".join(copy))
    draw.shuffle(texts)
    return texts[:count]


def keep(texts: list[str], threshold: float, directory) -> tuple[list[int], dict[int, int]]:
    """Numbers of the kept texts, and for each dropped one the text it repeats."""
    index = NearDuplicates(threshold, directory)
    kept, dropped = [], {}
    for number, text in enumerate(texts):
        earlier = index.find_or_add(str(number), f"prompt{number}", text)
        if earlier is None:
            kept.append(number)
        else:
            dropped[number] = int(earlier)
    index.close()
    return kept, dropped


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_as_comparing_every_pair(tmp_path, threshold):
    """No false drop at all; pairs at the threshold may be missed with a chance of 1 in 1,000 each."""
    texts = families(7, 240)
    kept, dropped = keep(texts, threshold, tmp_path)
    for number, earlier in dropped.items():
        assert jaccard(texts[number], texts[earlier]) >= threshold
    missed = sum(
        1 for place, a in enumerate(kept) for b in kept[:place] if jaccard(texts[a], texts[b]) >= threshold
    )
    assert missed <= 1  # some 100 pairs with a chance of 1e-3 at most: 2 or more in 1 of 200 runs of any seed
    assert len(dropped) > 40


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_bands_miss_at_most_what_is_stated(threshold):
    """By simulation: two signatures agree in each place with a chance that is the similarity."""
    draw = random.Random(1)
    rows = rows_per_band(threshold)
    trials, missed = 3000, 0
    for _ in range(trials):
        agree = [draw.random() < threshold for _ in range(PERMUTATIONS)]
        bands = (agree[start : start + rows] for start in range(0, PERMUTATIONS, rows))
        missed += not any(all(band) for band in bands)
    assert (
        missed <= trials * MISS_PROBABILITY + 4 * (trials * MISS_PROBABILITY) ** 0.5
    )  # four standard deviations


def test_signatures_agree_as_often_as_texts_are_similar():
    """rensa's estimate against the exact index: within 5 standard deviations for each pair."""
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

    from stillhouse.corpus.curate.near_duplicates import shingles

    texts = families(3, 60)
    signatures = RMinHash.from_token_sets([sorted(shingles(t)) for t in texts], num_perm=PERMUTATIONS, seed=0)
    for a in range(0, 60, 3):
        for b in range(a + 1, 60):
            exact = jaccard(texts[a], texts[b])
            deviation = max(0.02, (exact * (1 - exact) / PERMUTATIONS) ** 0.5)
            assert abs(signatures[a].jaccard(signatures[b]) - exact) <= 5 * deviation


def test_short_answers_repeat_only_to_the_same_prompt(tmp_path):
    index = NearDuplicates(0.9, tmp_path)
    assert index.find_or_add("1", "p", "The answer is (B).") is None
    assert index.find_or_add("2", "q", "The answer is (B).") is None
    assert index.find_or_add("3", "p", "The answer is: b!") == "1"
    assert index.find_or_add("4", "p", "The answer is (C).") is None
    index.close()


@pytest.mark.parametrize(("a", "b"), [("5", "-5"), ("😀", "😢"), ("x > 3", "x < 3"), ("", "?")])
def test_answers_that_differ_only_in_signs_are_two(tmp_path, a, b):
    index = NearDuplicates(0.9, tmp_path)
    assert index.find_or_add("1", "p", a) is None
    assert index.find_or_add("2", "p", b) is None
    assert index.find_or_add("3", "p", f" {a}\n") == "1"
    index.close()


def test_same_text_is_a_duplicate_at_threshold_one(tmp_path):
    text = " ".join(f"w{n}" for n in range(50))
    kept, dropped = keep([text, text.upper() + "!", text + " more"], 1.0, tmp_path)
    assert (kept, dropped) == ([0, 2], {1: 0})


def test_the_temporary_file_goes(tmp_path):
    keep(families(1, 12), 0.9, tmp_path)
    assert list(tmp_path.iterdir()) == []
