"""The quick zoo, smaller: size and power of the tests on models of known lineage.

Every check states the chance of a false failure; seeds are fixed, so it fails always or never.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from zoo import measure, quick
from zoo.arms import ARMS
from zoo.python_docs import python_documentation

from stillhouse.stats import predicted_z, rank_test, signed_wins
from stillhouse.trace.detectors import canaries, rephrasings

OUTPUTS, RESAMPLES, REDRAWS = 300, 4, 1000


@pytest.fixture(scope="module")
def world() -> quick.World:
    return quick.make_world(python_documentation()[::2], n=OUTPUTS, k=RESAMPLES, seed=11)


def trained(world: quick.World, name: str):
    arm = next(arm for arm in ARMS if arm.name == name)
    model, used = quick.train_suspect(world, arm, seed=5)
    return model, used, quick.scores(model, world)


def test_every_arm_says_what_it_read(world):
    for arm in ARMS:
        _, used = quick.train_suspect(world, arm, seed=5)
        assert used.sum() == round(arm.shares.get("log", 0) * OUTPUTS)


@pytest.mark.parametrize("name", ["none", "organic 100%", "other teacher"])
def test_size_is_nominal_whatever_was_learned_from_the_web(world, name):
    """The rate at each level is in the binomial's central 99.99% (one of 54 checks fails in 350 runs)."""
    model, _, scores_NK1 = trained(world, name)
    sentences = quick.canary_transcript(model, world)
    read = quick.open_transcript(model, world.log)
    nulls = measure.null_draws(scores_NK1, read, world.account, sentences, REDRAWS, seed=3)
    versions = quick.rephrasing_transcript(model, world)
    nulls["rephrasings"] = measure.redrawn_versions(versions, REDRAWS, seed=4)
    assert rephrasings.judge(versions, {}).p_value > 1e-3  # fails once in 1,000
    assert canaries.judge(sentences, {}).p_value > 1e-3  # fails once in 1,000
    ps, highest = nulls["exchangeable"], np.array(nulls.pop("highest_e"))
    for p_values in (*map(np.array, nulls.values()), 1 / np.maximum(highest, 1.0)):
        found = measure.size(p_values)
        for level, rate in found.rates.items():
            assert rate * REDRAWS <= stats.binom.isf(5e-5, REDRAWS, level)
    assert np.quantile(ps, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.05)


def test_who_read_the_log_is_found_and_who_read_others_outputs_is_not(world):
    for name, guilty in {"distilled 20%": True, "distilled 100%": True, "mixed": True}.items():
        assert (measure.evidence(trained(world, name)[2])["p"] < 1e-3) == guilty, name
    for name in ("none", "organic 5%", "organic 100%", "other teacher", "shared pretraining"):
        assert measure.evidence(trained(world, name)[2])["p"] > 1e-3, name  # each fails once in 1,000


def test_the_canaries_of_the_log_are_known_to_who_read_it(world):
    model = trained(world, "distilled 100%")[0]
    assert canaries.judge(quick.canary_transcript(model, world), {}).p_value < 1e-6


def test_who_read_an_author_s_texts_is_found(world):
    found = {
        name: rephrasings.judge(quick.rephrasing_transcript(trained(world, name)[0], world), {}).p_value
        for name in ("distilled 100%", "organic 100%")
    }
    assert found["distilled 100%"] < 1e-6 and found["organic 100%"] > 1e-3


def test_the_room_s_exact_p_is_that_of_adding_item_after_item(world):
    scores_NK1 = trained(world, "distilled 5%")[2]
    wins_NK1 = signed_wins(scores_NK1)
    found = rank_test(scores_NK1)
    assert found.p == pytest.approx(measure.upper_tail(wins_NK1)[found.total + RESAMPLES * OUTPUTS], rel=1e-9)


def test_the_power_law_holds(world):
    """The observed z is within 4.5 standard deviations of the prediction from share and AUC."""
    for name in ("distilled 5%", "distilled 20%", "distilled 100%"):
        _, used, scores_NK1 = trained(world, name)
        auc = rank_test(scores_NK1[used]).auc
        expected = predicted_z(used.mean(), OUTPUTS, RESAMPLES, auc)
        assert measure.evidence(scores_NK1)["z"] == pytest.approx(expected, abs=4.5)


def test_the_account_key_is_heard_in_who_read_the_log_and_the_public_key_in_who_read_others(world):
    for name, account, public in (("distilled 100%", True, False), ("organic 100%", False, True)):
        model, _, _ = trained(world, name)
        found = {}
        for key, outputs in (("account", world.log), ("public", world.sources["organic"])):
            found |= measure.radioactivity_result(
                key, quick.open_transcript(model, outputs), getattr(world, key)
            )
        assert [found["account_p"] < 1e-3, found["public_p"] < 1e-3] == [account, public], name


def test_the_baselines_accuse_whoever_learned_from_the_web(world):
    """The reason for the other tests: organic exposure is enough for the baselines to accuse."""
    says = {
        name: quick.examine_baselines(world, trained(world, name)[0], seed=3)["identity"]
        for name in ("none", "organic 100%")
    }
    assert says == {"none": False, "organic 100%": True}
