"""Merging evidence and deciding claims: closed forms, properties, and the error rate by simulation."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from stillhouse.stats import clopper_pearson
from stillhouse.trace.finding import Finding
from stillhouse.trace.verdict import WeightedFinding, decide_claims, merge_evidence, verdict, weights_claims

E_VALUES = st.floats(0.0, 1e6)


def weighed(test, level, e, weight=1.0, **effect):
    finding = Finding(test, level, null="", n=10, e_value=e, effect=effect)
    return WeightedFinding(test, level, weight, finding)


def claimed(claims):
    return [claim.level for claim in claims if claim.claimed]


def test_the_mean_is_weighted_and_counts_what_did_not_finish_as_one():
    tests = [
        weighed("a", "L2", 7.0, weight=2.0),
        WeightedFinding("b", "L2", 1.0, None),
        weighed("c", "L1", 40.0),
        weighed("d", "L0", 1e9),
        weighed("e", "exhibit", 1e9, weight=0.0),
    ]
    assert merge_evidence(tests, "L2") == (5.0, ("a", "b"))
    assert merge_evidence(tests, "L1") == ((2 * 7 + 1 + 40) / 4, ("a", "b", "c"))
    assert merge_evidence([weighed("d", "L0", 1e9)], "L1") is None


def test_a_finding_without_an_e_value_is_no_evidence():
    finding = Finding("a", "L2", null="", n=0, p_value=1e-9)
    assert merge_evidence([WeightedFinding("a", "L2", 1.0, finding)], "L2") == (1.0, ("a",))


def test_level_two_is_claimed_only_where_level_one_is():
    """E at L2 alone over the threshold, drowned at L1 by a test of larger weight: nothing is claimed."""
    tests = [weighed("a", "L2", 1500.0), weighed("b", "L1", 0.0, weight=9.0)]
    assert claimed(decide_claims({"t": tests}, 1000)["t"]) == []
    assert claimed(decide_claims({"t": [weighed("a", "L2", 1500.0)]}, 1000)["t"]) == ["L1", "L2"]
    assert claimed(decide_claims({"t": [weighed("b", "L1", 1500.0)]}, 1000)["t"]) == ["L1"]


def holm(ps):
    """Holm's adjusted p-values (1979), in the order given: reject those ≤ α, with familywise error ≤ α."""
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = highest
    return adjusted


@given(st.lists(E_VALUES, min_size=1, max_size=5))
def test_with_one_claim_each_it_is_holm_on_one_over_e(es):
    """Against Holm's adjusted p-values, a different algorithm."""
    hard = 100.0
    found = decide_claims({str(i): [weighed("a", "L1", e)] for i, e in enumerate(es)}, hard)
    adjusted = holm([min(1.0, 1 / e) if e else 1.0 for e in es])
    for i, p in enumerate(adjusted):
        if not 0.999 / hard < p < 1.001 / hard:  # rounding decides on the edge
            assert bool(claimed(found[str(i)])) == (p <= 1 / hard)


@given(st.lists(st.tuples(E_VALUES, E_VALUES), min_size=1, max_size=4), st.randoms())
def test_the_order_of_teachers_does_not_matter(pairs, random):
    teachers = {str(i): [weighed("a", "L1", a), weighed("b", "L2", b)] for i, (a, b) in enumerate(pairs)}
    shuffled = list(teachers)
    random.shuffle(shuffled)
    one, other = decide_claims(teachers, 50), decide_claims({name: teachers[name] for name in shuffled}, 50)
    assert {name: claimed(claims) for name, claims in one.items()} == {
        name: claimed(claims) for name, claims in other.items()
    }


@given(st.lists(st.tuples(E_VALUES, E_VALUES), min_size=1, max_size=4), E_VALUES)
@settings(max_examples=50)
def test_more_evidence_never_loses_a_claim(pairs, more):
    def teachers(extra):
        return {
            str(i): [weighed("a", "L1", a), weighed("b", "L2", b + extra * (i == 0))]
            for i, (a, b) in enumerate(pairs)
        }

    before, after = decide_claims(teachers(0.0), 50), decide_claims(teachers(more), 50)
    for name in before:
        assert set(claimed(before[name])) <= set(claimed(after[name]))


def test_false_claims_over_all_teachers_and_levels_are_rarer_than_one_in_hard():
    """One teacher was used (L1 true, L2 false), one not at all; e-values of two points, the worst case.

    Under the null E is `hard` times 1, 2 or 4 with just the probability that keeps its mean at 1.
    """
    rng, hard, trials = np.random.default_rng(0), 20.0, 20_000
    wrong = 0
    for _ in range(trials):
        one, two, three = (
            k * hard if rng.random() < 1 / (k * hard) else 0.0 for k in rng.choice([1.0, 2.0, 4.0], 3)
        )
        used = [weighed("a", "L1", 1e9), weighed("b", "L2", one)]
        unused = [weighed("a", "L1", two), weighed("b", "L2", three)]
        found = decide_claims({"used": used, "unused": unused}, hard)
        wrong += "L2" in claimed(found["used"]) or bool(claimed(found["unused"]))
    assert clopper_pearson(wrong, trials, 0.999)[0] <= 1 / hard


def test_the_verdicts_are_the_words_that_were_fixed():
    def headline(*tests, share=0.05):
        claims = decide_claims({"t": list(tests)}, 1000)["t"]
        return verdict(claims, list(tests), share=share, alpha=0.05).headline

    assert headline(weighed("a", "L2", 5e3)) == "Hard evidence at level L2"
    assert headline(weighed("a", "L1", 5e3)) == "Hard evidence at level L1"
    assert headline(weighed("a", "L0", 1e9)) == "Inconclusive (power unknown)"
    assert headline(weighed("a", "L2", 1.0, f_high=0.03, power=0.9)) == "Bound: f below 0.03"
    assert headline(weighed("a", "L2", 1.0, f_high=0.3, power=0.41)) == "Inconclusive (power 41%)"
    assert headline(weighed("a", "L2", 5e3, f_high=0.03)) == "Hard evidence at level L2"
    assert headline() == "Inconclusive (power unknown)"


def test_the_weights_are_a_claim_of_their_own():
    teachers = {
        "ours": [weighed("weights", "weights", 9e3), weighed("training_order", "weights", 1.0)],
        "other": [weighed("weights", "weights", 1.9e3)],
        "api": [weighed("a", "L2", 9e9)],
    }
    found = weights_claims(teachers, 1000)
    assert list(found) == ["ours"], "two teachers with weights: each needs twice as much"
    assert "E = 4,500" in found["ours"] and "2,000 is called hard" in found["ours"]
    assert list(weights_claims({"other": teachers["other"]}, 1000)) == ["other"]
    claims = decide_claims(teachers, 1000)["ours"]
    conclusion = verdict(claims, teachers["ours"], share=0.05, alpha=0.05, of_weights=found["ours"])
    assert (
        claims == [] and conclusion.outcome == "inconclusive" and conclusion.sentence.endswith(found["ours"])
    )


@pytest.mark.parametrize("e", [0.0, 1.0, 30.0, 5e3])
def test_no_verdict_speaks_of_guilt_or_innocence(e):
    for tests in itertools.chain(
        [[weighed("a", level, e)] for level in ("L0", "L1", "L2")], [[weighed("a", "L2", e, f_high=0.01)]]
    ):
        found = verdict(decide_claims({"t": tests}, 1000)["t"], tests, share=0.05, alpha=0.05)
        assert not re.search(
            r"innocen|guilt|probability that the suspect", found.headline + found.sentence, re.I
        )
