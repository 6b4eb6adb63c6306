"""The judge of the exchangeable test: arithmetic on transcripts, its bounds, its complaints."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from exchangeable_sample import TEXT, transcript, used_log

from stillhouse.errors import UsageError
from stillhouse.stats import clopper_pearson, log_betting_process, rank_payoffs, rank_test
from stillhouse.trace.detectors.exchangeable.judge import in_words, judge, mean_lower_bound
from stillhouse.trace.detectors.exchangeable.scores import SCORES, min_k, ngram_overlap, split_in_half

MIN_K = {"score": "min_k"}


def held(finding, words):
    return next(a.held for a in finding.assumptions if words in a.text)


def test_a_used_log_is_found_and_an_unused_one_is_not():
    rng = np.random.default_rng(1)
    guilty = judge(transcript(used_log(rng, 3000, 4, 0.3, 1.5)), MIN_K)
    assert guilty.level == "L2" and guilty.n == 3000
    assert guilty.p_value < 1e-6 and guilty.e_value > 1000
    assert 0 < guilty.effect["f_low"] < 0.3
    innocent = judge(transcript(rng.normal(size=(3000, 5))), MIN_K)
    assert innocent.p_value > 0.001 and innocent.e_value < 20
    assert innocent.effect["f_low"] == 0 and innocent.effect["f_high"] is None
    assert "unknown without a surrogate" in in_words(innocent) and "innocent" not in in_words(innocent)


def test_the_finding_is_that_of_ranks_and_bets():
    scores = used_log(np.random.default_rng(2), 300, 3, 0.2, 1.0)
    finding = judge(transcript(scores), MIN_K | {"seed": 5})
    assert finding.p_value == rank_test(scores).p_exact == finding.effect["p_exact"]
    log_e = log_betting_process(rank_payoffs(scores)[:, :, 0])[-1]
    assert finding.e_value == pytest.approx(math.exp(log_e))
    assert sum(finding.series["rank_counts"]) == 300
    assert finding.series["log10_e"][-1] == pytest.approx(math.log10(finding.e_value))
    json.dumps([finding.parameters, finding.effect, finding.series])


def test_size_of_p_and_e_over_transcripts():
    rng = np.random.default_rng(3)
    draws = 500
    findings = [judge(transcript(rng.normal(size=(12, 3))), MIN_K) for _ in range(draws)]
    for alpha in (0.05, 0.01):
        for rejected in (
            sum(f.p_value <= alpha for f in findings),
            sum(f.e_value >= 1 / alpha for f in findings),
        ):
            assert clopper_pearson(rejected, draws, 0.998)[0] <= alpha


def test_stopping_early_saves_and_its_p_is_one_over_e():
    scores = used_log(np.random.default_rng(4), 4000, 4, 0.5, 1.5)
    whole = judge(transcript(scores), MIN_K)
    early = judge(transcript(scores), MIN_K | {"stop_at": 1000.0})
    process = np.exp(log_betting_process(rank_payoffs(scores)[:, :, 0]))
    first = int(np.argmax(process >= 1000)) + 1
    assert early.n == early.effect["stopped_after"] == first
    assert early.effect["saved"] == pytest.approx(1 - first / 4000) and early.effect["saved"] > 0.5
    assert early.e_value == pytest.approx(process[first - 1])
    assert early.p_value == pytest.approx(1 / early.e_value)
    assert "p_exact" not in early.effect
    assert whole.p_value < early.p_value, "early stopping may not report a fixed-size p-value"
    cut = judge(transcript(scores[:first]), MIN_K | {"stop_at": 1000.0})
    assert cut.e_value == early.e_value, "whoever stops asking there sees the same"


def test_the_lower_bound_of_a_mean_covers_and_is_not_idle():
    rng = np.random.default_rng(5)
    means = np.where(np.arange(400) < 100, 0.8, 0.5)  # a quarter used: average 0.575
    covered, width = 0, []
    for _ in range(1000):
        values = rng.binomial(4, means) / 4
        low = mean_lower_bound(values, 0.05)
        covered += low <= means.mean()
        width.append(means.mean() - low)
    assert clopper_pearson(1000 - covered, 1000, 0.998)[0] <= 0.05
    normal = 1.645 * math.sqrt(np.var(rng.binomial(4, 0.575, 400) / 4) / 400)
    assert np.mean(width) < 2.5 * normal, "a finite-sample bound costs something, but not everything"


def test_f_is_bounded_with_a_surrogate_and_covered():
    rng = np.random.default_rng(6)
    shift, f, covered = 1.5, 0.3, 0
    auc = scipy.stats.norm.cdf(shift / math.sqrt(2))
    for _ in range(120):
        effect = judge(
            transcript(used_log(rng, 800, 3, f, shift)), MIN_K | {"surrogate_auc": auc, "alpha": 0.1}
        ).effect
        assert effect["f_low"] <= effect["f"] <= effect["f_high"]
        covered += effect["f_low"] <= f <= effect["f_high"]
    assert covered >= 100
    wide = judge(transcript(used_log(rng, 800, 3, f, shift)), MIN_K | {"surrogate_auc": [0.8, 0.95]}).effect
    assert wide["f_low"] <= wide["f"] <= wide["f_high"]


def test_nothing_found_with_a_surrogate_is_a_bound_with_its_power():
    innocent = np.random.default_rng(7).normal(size=(20_000, 5))
    finding = judge(transcript(innocent), MIN_K | {"surrogate_auc": 0.9, "share": 0.05, "hard": 1000.0})
    assert finding.effect["f_high"] < 0.05
    assert finding.effect["power"] > 0.9 and 0 < finding.effect["detectable_f"] < 0.05
    assert in_words(finding).startswith("Bound: f below")


@pytest.mark.parametrize(
    ("table", "parameters", "words"),
    [
        (transcript([[1.0], [2.0]]), MIN_K, "delivered outputs but no resamples"),
        (transcript([[1.0, 2.0]]).filter(pa.array([False, True])), MIN_K, "resamples but no delivered"),
        (transcript([[1.0, 2.0]]), {"score": "loglik"}, "log-probabilities of given text"),
        (transcript([[1.0, 2.0]]), {"score": "overlap"}, "a suspect that continues a text"),
        (transcript([[np.inf, 0.0], [1.0, -np.inf]]), MIN_K, "missing or infinite"),
        (transcript([[np.nan, np.nan]]), MIN_K, "no values of min_k"),
    ],
)
def test_what_cannot_be_judged_has_a_reason_and_no_number(table, parameters, words):
    finding = judge(table, parameters)
    assert not finding.ran and words in finding.reason
    assert finding.p_value is None and finding.e_value is None
    assert "says nothing about the suspect" in in_words(finding)


def test_an_unknown_score_is_refused_with_the_nearest():
    with pytest.raises(UsageError) as refused:
        judge(transcript([[1.0, 2.0]]), {"score": "min-k"})
    assert "min_k" in refused.value.hint
    with pytest.raises(UsageError, match="not above"):
        judge(transcript([[1.0, 2.0]]), MIN_K | {"surrogate_auc": [0.5, 0.8]})


def test_missing_and_infinite_scores_are_left_out_alike_and_told():
    scores = np.random.default_rng(8).normal(size=(50, 4))
    scores[0, 0], scores[1, 2], scores[2, 1] = np.nan, -np.inf, np.nan
    finding = judge(transcript(scores), MIN_K)
    by_hand = np.where(np.isfinite(scores), scores, np.nan)[1:]
    assert finding.n == 49 and finding.p_value == rank_test(by_hand).p_exact
    assert held(finding, "same number of resamples") is False
    told = next(a for a in finding.assumptions if "has a score" in a.text)
    assert told.held is False and "1 delivered" in told.evidence and "2 resamples" in told.evidence


def test_resamples_too_short_to_have_been_logged_are_left_out():
    rng = np.random.default_rng(9)
    scores = rng.normal(size=(30, 3))
    texts = [TEXT] * 90
    texts[1] = "short"
    finding = judge(transcript(scores, texts=texts), MIN_K)
    scores[0, 1] = np.nan
    assert finding.p_value == rank_test(scores).p_exact


def test_truncated_outputs_break_an_assumption_and_equal_lengths_do_not():
    rng = np.random.default_rng(10)
    scores = rng.normal(size=(300, 4))
    lengths = rng.integers(30, 400, size=(300, 4))
    alike = judge(transcript(scores, texts=["x" * length for length in lengths.ravel()]), MIN_K)
    lengths[:, 0] = np.minimum(lengths[:, 0], 150)
    cut = judge(transcript(scores, texts=["x" * length for length in lengths.ravel()]), MIN_K)
    assert held(alike, "like length") is True
    assert held(cut, "like length") is False


def test_a_reference_that_prefers_the_delivered_outputs_breaks_an_assumption():
    rng = np.random.default_rng(11)
    scores, reference = rng.normal(size=(300, 4)), rng.normal(size=(300, 4))
    fair = judge(transcript(scores, reference_loglik=reference.ravel()), MIN_K)
    reference[:, 0] += 1
    unfair = judge(transcript(scores, reference_loglik=reference.ravel()), MIN_K)
    assert held(fair, "reference model") is True
    assert held(unfair, "reference model") is False


def test_facts_of_log_and_resamples_reach_the_assumptions():
    scores = np.random.default_rng(12).normal(size=(20, 3))
    bare = judge(transcript(scores), MIN_K)
    assert held(bare, "same teacher") is None and held(bare, "not public") is None
    facts = {
        "log_size": 20, "left_out": {"temperature 0": 3}, "log_teachers": ["a" * 64],
        "resample_teachers": ["b" * 64], "public": {"found": 2, "outputs": 20, "texts": 5, "words": 13},
    }  # fmt: skip
    told = judge(transcript(scores, facts=facts), MIN_K)
    assert held(told, "same teacher") is False and held(told, "not public") is False
    assert held(told, "temperature above 0") is True
    facts |= {"resample_teachers": ["a" * 64], "public": {"found": 0, "outputs": 20, "texts": 5, "words": 13}}
    clean = judge(transcript(scores, facts=facts), MIN_K)
    assert held(clean, "same teacher") is True and held(clean, "not public") is True


def test_every_score_is_what_its_words_say():
    loglik, reference, tokens = np.array([-30.0, -20.0]), np.array([-40.0, -20.0]), np.array([10, 8])
    length = len(TEXT)
    computed = {
        "loglik": SCORES["loglik"].compute(loglik, tokens),
        "total": SCORES["total"].compute(loglik),
        "per_character": SCORES["per_character"].compute(loglik, np.array([length, length])),
        "reference": SCORES["reference"].compute(loglik, reference, np.array([length, length])),
        "teacher": SCORES["teacher"].compute(loglik, reference, np.array([5, 0])),
    }
    assert computed["loglik"].tolist() == [-3.0, -2.5]
    assert computed["total"].tolist() == [-30.0, -20.0]
    assert computed["per_character"].tolist() == [-30.0 / length, -20.0 / length]
    assert computed["reference"].tolist() == [10.0 / length, 0.0]
    assert computed["teacher"][0] == 2.0 and np.isnan(computed["teacher"][1])
    assert min_k([-1, -9, -2, -7, -3, -4, -5, -6, -8, -10]) == -9.5
    assert min_k([-1.0]) == -1.0


def test_overlap_counts_shared_runs_of_words():
    assert ngram_overlap("the cat sat on the mat", "The cat sat on the mat.") == 1.0
    assert ngram_overlap("nothing alike here at all", "the cat sat on the mat") == 0.0
    # 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, 0 of 1 run of four
    assert ngram_overlap("one two three five", "one two three four") == pytest.approx(
        (3 / 4 + 2 / 3 + 1 / 2) / 4
    )
    assert ngram_overlap("", "one two") == 0.0 and ngram_overlap("one", "…") == 0.0
    beginning, rest = split_in_half("one two three four five six")
    assert beginning + rest == "one two three four five six" and beginning.split()[-1] == "three"
    assert split_in_half("oneword") == ("one", "word")
