"""The curriculum: estimates in closed form, sampling by chi-squared, and the loop that uses them."""

from __future__ import annotations

import itertools
import os
import signal as signals

import numpy as np
import pytest
from scipy import stats
from test_on_policy import REWARD, even_share, lines, prompts, run, same, state
from tiny_training import llama

from stillhouse.distill.on_policy import sampler
from stillhouse.distill.on_policy.curriculum import LEAST_WEIGHT, PassRates
from stillhouse.errors import CheckpointError, RecipeError
from stillhouse.recipe.load import parse_recipe
from stillhouse.recipe.on_policy import OnPolicy

IDS = ["never", "half", "often", "always", "new"]
KNOWN = PassRates({"often": 0.75}, {"never": (8, 0.0), "half": (8, 4.0), "always": (8, 8.0)})
RATES = {"never": 0.1, "half": 0.5, "often": 0.75, "always": 0.9, "new": 0.5}


def test_rates_are_the_mean_of_a_beta_distribution_around_what_was_measured_before():
    """Beta(2·b + right, 2·(1 − b) + wrong), by scipy, for whole rewards."""
    for id in IDS:
        count, right = KNOWN.answers.get(id, (0, 0.0))
        b = KNOWN.before.get(id, 0.5)
        assert KNOWN.rate(id) == pytest.approx(stats.beta(2 * b + right, 2 * (1 - b) + count - right).mean())
        assert KNOWN.rate(id) == pytest.approx(RATES[id])


def test_a_round_is_counted_in_and_what_is_no_share_is_clamped():
    found = KNOWN.after(["new", "half", "new", "new"], [1.0, 0.5, -1.0, 0.25])
    assert found.answers["new"] == (3, 1.25)
    assert found.answers["half"] == (9, 4.5)
    assert KNOWN.answers["half"] == (8, 4.0)  # the old one stays: a round may have to be done again


def test_draws_without_replacement_in_proportion_to_p_times_not_p():
    """Chi-squared of 40,000 ordered pairs; 1 in 10,000 correct orders would fail."""
    rng = np.random.default_rng(0)
    pairs = list(itertools.permutations(range(len(IDS)), 2))
    observed = dict.fromkeys(pairs, 0)
    for _ in range(40_000):
        first, second, *_ = KNOWN.order(IDS, "uncertain", rng)
        observed[first, second] += 1
    weights = [max(RATES[id] * (1 - RATES[id]), LEAST_WEIGHT) for id in IDS]
    total = sum(weights)
    expected = [40_000 * weights[a] / total * weights[b] / (total - weights[a]) for a, b in pairs]
    assert stats.chisquare(list(observed.values()), expected).pvalue > 1e-4


def test_what_is_never_or_always_right_is_still_asked_now_and_then():
    certain = PassRates({"never": 0.0, "always": 1.0})
    rng = np.random.default_rng(0)
    firsts = {certain.order(IDS, "uncertain", rng)[0] for _ in range(2000)}
    assert firsts == set(range(len(IDS)))


def test_easy_ones_come_first_in_each_pass():
    rng = np.random.default_rng(0)
    assert [IDS[i] for i in KNOWN.order(IDS, "easy_first", rng)] == [
        "often",
        "new",
        "always",
        "half",
        "never",
    ]
    ties = {tuple(PassRates().order(IDS, "easy_first", rng)) for _ in range(50)}
    assert len(ties) > 20  # by lot


HOPELESS = {f"q{i}" for i in (0, 1, 2)}
SOLVED = {f"q{i}" for i in (3, 4, 5)}


def mostly_certain(answers) -> list[float]:
    """Six of eight prompts have the same reward for every answer; the other two can be learned."""
    return [
        0.0 if prompt.id in HOPELESS else 1.0 if prompt.id in SOLVED else even_share([(prompt, ids)])[0]
        for prompt, ids in answers
    ]


def settings(order: str, **changes) -> OnPolicy:
    return OnPolicy(**{**vars(REWARD), "order": order, "prompts": 2, **changes})


def test_prompts_that_teach_nothing_are_asked_less(tmp_path):
    wasted = {}
    for order in ("shuffled", "uncertain"):
        run(llama(), tmp_path / order, settings=settings(order), reward_function=mostly_certain)
        found = [line["groups_without_signal"] for line in lines(tmp_path / order)]
        wasted[order] = np.mean(found[10:])
    assert wasted["shuffled"] == pytest.approx(0.75, abs=0.1)
    assert wasted["uncertain"] < 0.6


def test_each_pass_goes_from_easy_to_hard(tmp_path):
    """Rates measured before the run order the first pass, and no prompt is asked twice in it."""
    asked = []

    def score(answers):
        asked.append([prompt.id for prompt, _ in answers[::8]])
        return mostly_certain(answers)

    before = {prompt.id: number / 10 for number, prompt in enumerate(prompts())}
    run(
        llama(), tmp_path, settings=settings("easy_first", rounds=5), reward_function=score, pass_rates=before
    )
    assert [id for part in asked[:4] for id in part] == [f"q{i}" for i in (7, 6, 5, 4, 3, 2, 1, 0)]
    assert set(asked[4]) <= SOLVED  # the second pass goes by what the student has shown
    expected = [line["expected_reward"] for line in lines(tmp_path)]
    assert expected[:4] == pytest.approx([0.65, 0.45, 0.25, 0.05])


@pytest.mark.parametrize("order", ["easy_first", "uncertain"])
def test_interrupted_it_ends_bit_identical(tmp_path, monkeypatch, order):
    chosen = settings(order, rounds=6)
    whole, broken, fresh = llama(), llama(), llama()
    run(whole, tmp_path / "whole", settings=chosen, reward_function=mostly_certain)
    calls = []
    original = sampler.roll_out

    def interrupts(*arguments, **named):
        calls.append(1)
        found = original(*arguments, **named)
        if len(calls) == 3:
            os.kill(os.getpid(), signals.SIGINT)
        return found

    monkeypatch.setattr(sampler, "roll_out", interrupts)
    with pytest.raises(KeyboardInterrupt):
        run(broken, tmp_path / "broken", settings=chosen, reward_function=mostly_certain)
    run(fresh, tmp_path / "broken", settings=chosen, reward_function=mostly_certain)
    assert same(state(whole), state(fresh))
    found = [[line["expected_reward"] for line in lines(tmp_path / place)] for place in ("whole", "broken")]
    assert found[0] == found[1]


def test_other_rates_from_before_are_another_run(tmp_path):
    run(llama(), tmp_path, settings=settings("uncertain", rounds=1), pass_rates={"q1": 0.5})
    with pytest.raises(CheckpointError, match="pass rates"):
        run(llama(), tmp_path, settings=settings("uncertain", rounds=1), pass_rates={"q1": 0.6})


def test_an_order_by_rewards_needs_rewards():
    text = "name: n\nteacher: {model: m}\nprompts: {source: p}\nstudent: {model: m}\n"
    with pytest.raises(RecipeError, match=r"on_policy.order: `uncertain` orders by rewards"):
        parse_recipe(text + "on_policy: {order: uncertain}\nobjective: {kind: reverse_kl}\n")
