"""Published versions against those held back: exact when drawn by lot, and honest when not."""

import itertools
import json
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from stillhouse.errors import CorpusError, UsageError
from stillhouse.trace.detectors import rephrasings
from stillhouse.trace.detectors.rephrasings import TextVersions, draw_version, paired_t, read_versions

KEY = bytes(range(16))


@dataclass
class Answer:
    tokens: int
    loglik: float


class Reader:
    """A suspect with tastes of its own (long versions, version 2) and a memory."""

    def __init__(self, remembered=(), gain=1.0, taste=1.0, silent=()):
        self.remembered, self.gain, self.taste, self.silent = set(remembered), gain, taste, set(silent)

    def loglik(self, prompts, texts):
        return [self._one(text) for text in texts]

    def _one(self, text):
        if text in self.silent:
            return Answer(10, float("-inf"))
        noise = np.random.default_rng(abs(int.from_bytes(text.encode()[-8:], "big")) % 2**32).normal()
        score = -3 + noise + self.taste * ("version 2" in text) + self.gain * (text in self.remembered)
        return Answer(10, 10 * float(score))


def texts(n, k=3, key=KEY):
    made = []
    for number in range(n):
        versions = tuple(
            f"text {number} in version {version} {number * 31 + version}" for version in range(k + 1)
        )
        published = 2 if key is None else draw_version(key, f"t{number}", k + 1)
        made.append(TextVersions(f"t{number}", versions, published, None if key is None else key.hex()))
    return made


def judged(reader, given, **more):
    return rephrasings.judge(rephrasings.observe(reader, given, **more), {"seed": 0})


def test_the_draw_is_fair_and_fixed_by_the_key():
    drawn = np.bincount([draw_version(KEY, str(number), 4) for number in range(4000)])
    assert stats.chisquare(drawn).pvalue > 1e-4
    assert draw_version(KEY, "a", 4) == draw_version(KEY, "a", 4)
    with pytest.raises(UsageError, match="guessed"):
        draw_version(b"short", "a", 4)


def test_a_reader_is_found_and_a_stranger_is_not():
    given = texts(40)
    read = {text.versions[text.published] for text in given}
    finding = judged(Reader(read), given)
    assert finding.p_value < 1e-4
    assert finding.e_value > 10
    assert judged(Reader(), given).p_value > 0.01


def test_the_p_value_is_that_of_all_draws_counted():
    """Brute force over all 3^5 versions that could have been published of five texts."""
    given = texts(5, k=2)
    finding = judged(Reader({text.versions[text.published] for text in given}), given)
    totals = []
    table = rephrasings.observe(Reader({text.versions[text.published] for text in given}), given)
    score = {(row["id"], row["version"]): row["loglik"] for row in table.to_pylist()}
    wins = {
        place: sum(np.sign(score[place] - score[place[0], other]) for other in range(3)) for place in score
    }
    for choice in itertools.product(range(3), repeat=5):
        totals.append(sum(wins[f"t{number}", version] for number, version in enumerate(choice)))
    assert finding.value == totals[0]
    assert finding.p_value == pytest.approx(np.mean([total >= totals[0] for total in totals]))


def test_size_over_keys_whatever_the_suspect_likes():
    ps = np.array(
        [judged(Reader(taste=3), texts(6, key=key.to_bytes(16, "big"))).p_value for key in range(300)]
    )
    for alpha in (0.5, 0.1, 0.05):
        assert stats.binom.sf((ps <= alpha).sum() - 1, len(ps), alpha) > 1e-3, alpha
    assert (ps <= 0.2).mean() > 0.1


def test_where_the_author_chose_it_is_an_assumption_and_never_evidence():
    """The stranger likes what was published: the t-test is fooled, and the finding hides nothing."""
    finding = judged(Reader(taste=3), texts(30, key=None))
    assert finding.p_value < 1e-6
    assert finding.e_value is None
    unverifiable = next(a for a in finding.assumptions if "equally likely" in a.text)
    assert unverifiable.held is None and "Unverifiable" in unverifiable.evidence
    assert next(a for a in finding.assumptions if "by lot" in a.text).held is False
    assert any("reads differently" in rival for rival in finding.rivals)
    assert next(a for a in finding.assumptions if "any number" in a.text).held is False


def test_a_reference_model_takes_away_what_every_model_likes():
    given = texts(30, key=None)
    finding = judged(Reader(taste=3), given, reference=Reader(taste=3))
    assert finding.p_value == 1.0
    assert finding.effect["mean_gain"] == 0
    read = {text.versions[text.published] for text in texts(12)}
    alone = judged(Reader(read, gain=0.3), texts(12))
    helped = judged(Reader(read, gain=0.3), texts(12), reference=Reader())
    assert helped.p_value < alone.p_value


def test_a_key_that_does_not_draw_what_was_published_makes_no_lot():
    given = texts(20)
    wrong = [TextVersions(t.id, t.versions, (t.published + 1) % 4, t.draw_key) for t in given]
    finding = judged(Reader(), wrong)
    assert finding.e_value is None
    assert "of 0" in next(a for a in finding.assumptions if "by lot" in a.text).evidence


def test_the_t_test_is_scipys():
    scores = np.random.default_rng(0).normal(size=(15, 4))
    scores[3, 2] = np.nan
    p, gain = paired_t(scores)
    others = np.nanmean(scores[:, 1:], axis=1)
    assert p == pytest.approx(stats.ttest_rel(scores[:, 0], others, alternative="greater").pvalue)
    assert gain == pytest.approx((scores[:, 0] - others).mean())
    assert paired_t(scores[:1])[0] == 1.0


def test_longer_published_versions_are_noticed():
    class Long(Reader):
        def _one(self, text):
            answer = super()._one(text)
            extra = 5 * ("version 2" in text)
            return Answer(10 + extra, answer.loglik * (10 + extra) / 10)

    finding = judged(Long(), texts(40, key=None))
    assert next(a for a in finding.assumptions if "as long" in a.text).held is False


def test_what_cannot_be_scored_is_left_out_and_said():
    given = texts(3)
    silent = given[0].versions[given[0].published]
    finding = judged(Reader(silent=[silent]), given)
    assert finding.n == 2
    assert next(a for a in finding.assumptions if "scored" in a.text).held is False
    every = [version for text in given for version in text.versions]
    nothing = judged(Reader(silent=every), given)
    assert not nothing.ran and "log-probabilities" in nothing.reason


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"id": 1, "versions": ["a", "b"]}, "published"),
        ({"id": 1, "versions": ["a", "b"], "published": 2}, "0 to 1"),
        ({"id": 1, "versions": ["a", "a"], "published": 0}, "different"),
        ({"id": 1, "versions": "ab", "published": 0}, "list of texts"),
        ({"id": 1, "versions": ["a", "b"], "published": 0, "draw_key": "00"}, "16 bytes"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, said):
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"id": 0, "versions": ["a", "b"], "published": 1}) + "\n" + json.dumps(line))
    with pytest.raises(CorpusError, match=r"texts\.jsonl:2.*" + said):
        read_versions(path)


def test_files_come_back_or_say_what_is_wrong(tmp_path):
    path = tmp_path / "texts.jsonl"
    one = {"id": "0", "versions": ["a", "b"], "published": 1, "draw_key": KEY.hex()}
    path.write_text(json.dumps(one))
    assert read_versions(path) == [TextVersions("0", ("a", "b"), 1, KEY.hex())]
    path.write_text(json.dumps(one) + "\n" + json.dumps(one))
    with pytest.raises(CorpusError, match="same id"):
        read_versions(path)
    path.write_text("")
    with pytest.raises(CorpusError, match="no texts"):
        read_versions(path)
    with pytest.raises(CorpusError, match="cannot be read"):
        read_versions(tmp_path / "absent.jsonl")
