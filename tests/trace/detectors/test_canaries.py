"""Canaries: what they look like, that ranks are exact, that a model which learned them is found."""

import itertools
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from stillhouse.errors import CorpusError, UsageError
from stillhouse.trace.detectors import canaries
from stillhouse.trace.detectors.canaries import make_canaries, read_canaries, write_canaries

KEY = bytes(range(16))


@dataclass
class Answer:
    tokens: int
    loglik: float


class Memory:
    """A suspect that finds each text as likely as chance has it, and likelier if it remembers it."""

    def __init__(self, remembered=(), gain=3.0, seed=0, silent=()):
        self.remembered, self.gain, self.silent = set(remembered), gain, set(silent)
        self.noise = np.random.default_rng(seed)
        self.asked = []

    def loglik(self, prompts, texts):
        assert len(prompts) == len(texts)
        self.asked += texts
        return [self._one(text) for text in texts]

    def _one(self, text):
        if text in self.silent:
            return None
        tokens = len(text.split())
        return Answer(tokens, tokens * (self.noise.normal() + self.gain * (text in self.remembered)))


def judged(suspect, sets):
    return canaries.judge(canaries.observe(suspect, sets), {"seed": 0})


def test_they_are_sentences_that_only_key_and_account_determine():
    sets = make_canaries(KEY, "acme", 5, decoys=20)
    assert sets == make_canaries(KEY, "acme", 5, decoys=20)
    assert sets[:2] == make_canaries(KEY, "acme", 2, decoys=20)
    texts = [text for one in sets for text in (one.canary, *one.decoys)]
    assert len(set(texts)) == len(texts)
    assert all(text[0].isupper() and text.endswith(".") and "{" not in text for text in texts)
    other_key, other_account = make_canaries(bytes(16), "acme", 5), make_canaries(KEY, "acme 2", 5)
    assert not {one.canary for one in other_key + other_account} & set(texts)
    with pytest.raises(UsageError, match="guessed"):
        make_canaries(b"short", "acme", 1)


def test_the_article_suits_the_word_that_follows():
    texts = [
        text
        for account in ("a", "b", "c")
        for one in make_canaries(KEY, account, 30, decoys=60)
        for text in (one.canary, *one.decoys)
    ]
    pairs = Counter(pair for text in texts for pair in re.findall(r"\b([Aa]n?) (\w+)", text))
    followers = {word for _, word in pairs}
    assert {"organ", "amber", "iron", "organist", "bell", "violet", "wax", "dyer"} <= followers
    sounds_like_a_vowel = {
        "almanac",
        "anchor",
        "organ",
        "amber",
        "ivory",
        "ochre",
        "olive",
        "ash",
        "iron",
        "oak",
        "organist",
    }
    assert {word for article, word in pairs if article.lower() == "an"} == sounds_like_a_vowel & followers
    assert not {word for article, word in pairs if article.lower() == "a"} & sounds_like_a_vowel


def test_the_canary_is_no_other_than_its_decoys():
    """Over keys, the canary's length is ranked uniformly among the set's: the grammar has no favourite."""
    lengths = np.array(
        [
            [len(text) for text in (one.canary, *one.decoys)]
            for key in range(150)
            for one in make_canaries(key.to_bytes(16, "big"), "a", 2, decoys=9)
        ]
    )
    ranks = (lengths[:, 1:] < lengths[:, :1]).sum(1) + 0.5 * (lengths[:, 1:] == lengths[:, :1]).sum(1)
    assert abs(ranks.mean() - 4.5) < 4 * ranks.std() / np.sqrt(len(ranks))


def test_the_p_value_of_one_set_is_its_rank():
    (one,) = make_canaries(KEY, "acme", 1, decoys=19)
    finding = judged(Memory([one.canary], gain=50), [one])
    assert finding.p_value == pytest.approx(1 / 20)
    assert judged(Memory(one.decoys, gain=50), [one]).p_value == pytest.approx(1.0)
    two_better = judged(Memory([one.canary, *one.decoys[:2]], gain=0, seed=3), [one])
    assert two_better.p_value == pytest.approx(two_better.series["p_of_set"][0])


def test_over_sets_it_is_the_permutation_test_counted_out():
    """Against brute force over all 4^5 places that five canaries can have among three decoys."""
    sets = make_canaries(KEY, "acme", 5, decoys=3)
    finding = judged(Memory([one.canary for one in sets], gain=0.8, seed=4), sets)
    # "Four tenths rank like the best of four draws, a fifth like the best of a hundred" over "all like any".
    faint, by_heart = (4 * stats.betabinom(3, draws, 1).pmf(range(4)) for draws in (4, 100))
    steps = np.rint(1000 * np.log(0.4 + 0.4 * faint + 0.2 * by_heart))
    totals = [sum(steps[place] for place in places) for places in itertools.product(range(4), repeat=5)]
    assert finding.p_value == pytest.approx(
        np.mean([total >= 1000 * finding.value - 0.5 for total in totals])
    )


def test_a_few_of_many_are_found_where_they_are_known_by_heart():
    """Four of twenty were read, and the other sixteen rank like any: the sum of ranks does not see it."""
    sets = make_canaries(KEY, "acme", 20)
    transcript = canaries.observe(Memory([one.canary for one in sets[::5]], gain=20, seed=1), sets)
    finding = canaries.judge(transcript, {})
    assert finding.p_value < 1e-3
    assert finding.e_value > 100
    assert finding.effect["z"] < 2.5


def test_all_are_found_where_each_is_remembered_faintly():
    sets = make_canaries(KEY, "acme", 20)
    transcript = canaries.observe(Memory([one.canary for one in sets], gain=1.2, seed=2), sets)
    finding = canaries.judge(transcript, {})
    assert finding.effect["first_places"] < 0.3 and 0.7 < finding.effect["auc"] < 0.9
    assert finding.p_value < 1e-3


def test_its_e_value_has_an_expectation_of_one_at_most():
    """Exactly: the mean over every place that each of two canaries can have among its nine decoys."""
    sets = make_canaries(KEY, "acme", 2, decoys=9)
    table = canaries.observe(Memory(seed=3), sets)
    column = table.schema.get_field_index("member")
    es = []
    for places in itertools.product(range(10), repeat=2):
        members = pa.array([row == place for place in places for row in range(10)])
        es.append(canaries.judge(table.set_column(column, "member", members), {}).e_value)
    assert np.mean(es) == pytest.approx(1)


def test_remembered_canaries_are_found_and_a_placebo_account_is_not():
    real, placebo = make_canaries(KEY, "acme", 10), make_canaries(KEY, "placebo", 10)
    suspect = Memory([one.canary for one in real], gain=5)
    transcript = canaries.observe(suspect, real + placebo)
    by_account = {
        account: canaries.judge(transcript.filter(np.array(transcript["account"].to_pylist()) == account), {})
        for account in ("acme", "placebo")
    }
    assert by_account["acme"].p_value < 1e-15
    assert by_account["acme"].e_value > 1e6
    assert by_account["placebo"].p_value > 0.01
    assert suspect.asked == sorted(suspect.asked)  # blind: the order tells nothing


def test_size_over_keys():
    """The key is what is random: the suspect is fixed, and likes long texts and the word glass."""

    class Fixed:
        def loglik(self, prompts, texts):
            return [Answer(len(t.split()), len(t) ** 1.3 + 40 * ("glass" in t)) for t in texts]

    ps = np.array(
        [judged(Fixed(), make_canaries(k.to_bytes(16, "big"), "a", 4, decoys=9)).p_value for k in range(300)]
    )
    for alpha in (0.5, 0.1, 0.05):
        assert stats.binom.sf((ps <= alpha).sum() - 1, len(ps), alpha) > 1e-3, alpha
    assert (ps <= 0.2).mean() > 0.1


def test_missing_scores_are_left_out_and_said():
    sets = make_canaries(KEY, "acme", 4, decoys=9)
    finding = judged(Memory(silent=[sets[0].canary, sets[1].decoys[0]]), sets)
    assert finding.n == 3
    assert any(a.held is False and "1 sets" in a.evidence for a in finding.assumptions)
    silent = judged(Memory(silent=[text for one in sets for text in (one.canary, *one.decoys)]), sets)
    assert not silent.ran and silent.p_value is None
    assert "log-probabilities" in silent.reason


def test_a_file_of_canaries_comes_back_and_bad_ones_are_named(tmp_path):
    sets = make_canaries(KEY, "acme", 3, decoys=4)
    write_canaries(tmp_path / "canaries.jsonl", sets)
    assert read_canaries(tmp_path / "canaries.jsonl") == sets
    (tmp_path / "bad.jsonl").write_text('{"account": "a", "set": 0, "canary": "x", "decoys": []}\n')
    with pytest.raises(CorpusError, match=r"bad\.jsonl:1"):
        read_canaries(tmp_path / "bad.jsonl")
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(CorpusError, match="holds no canaries"):
        read_canaries(tmp_path / "none.jsonl")
    with pytest.raises(CorpusError, match="cannot be read"):
        read_canaries(tmp_path / "absent.jsonl")
