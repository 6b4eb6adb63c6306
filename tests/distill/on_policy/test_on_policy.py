"""The on-policy loop on a tiny model: rising rewards, falling divergence, resuming and failures."""

from __future__ import annotations

import json
import os
import signal as signals
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import ARCHITECTURES, VOCABULARY, WINDOW, documents_of, llama

from stillhouse.distill.on_policy import sampler
from stillhouse.distill.on_policy.config import OnPolicyConfig
from stillhouse.distill.on_policy.learner import OffPolicyData, OnPolicyLearner
from stillhouse.distill.on_policy.loop import train_on_policy
from stillhouse.distill.on_policy.rollouts import Rollout, RolloutBatch, TeacherPrompt, TokenizedPrompt
from stillhouse.distill.targets.teacher_signal import OnlineSignal
from stillhouse.errors import EmptyCorpusError, NonFiniteLossError, StillhouseError
from stillhouse.recipe import Objective, Train
from stillhouse.recipe.on_policy import OnPolicy, Policy

END = 1
TRAIN = Train(learning_rate=3e-3, micro_tokens=200, dtype="float32", schedule="constant", warmup=0.0)
REWARD = OnPolicy(rounds=30, prompts=4, samples=8, max_tokens=6, teacher=0.0, reward=1.0)
TAUGHT = OnPolicy(rounds=25, prompts=4, samples=4, max_tokens=8, teacher=1.0)
REVERSE = Objective(kind="reverse_kl")


def prompts(count: int = 8, *, teacher_prefix: tuple[int, ...] = ()) -> list[TokenizedPrompt]:
    generator = np.random.default_rng(0)
    asked = [generator.integers(2, VOCABULARY, int(generator.integers(2, 6))).tolist() for _ in range(count)]
    return [
        TokenizedPrompt(f"q{i}", ids, (TeacherPrompt(0, 1.0, [*teacher_prefix, *ids]),))
        for i, ids in enumerate(asked)
    ]


def even_share(answers) -> list[float]:
    """Rewards even tokens."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for _, ids in answers]


def run(model, directory, **changes):
    options = {
        "teachers": [], "reward_function": even_share, "end_ids": {END},
        "objective": Objective(kind="cross_entropy"), "settings": REWARD, "train": TRAIN, "seed": 0,
        "prompts": prompts(),
    }  # fmt: skip
    options |= changes
    asked = options.pop("prompts")
    arguments = {key: options.pop(key, None) for key in ("reward_function", "off_policy")}
    arguments["teachers"] = options.pop("teachers")
    return train_on_policy(model, asked, OnPolicyConfig(**options), directory, **arguments)


def lines(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def state(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        Policy(normalise="std", aggregate="sequence", clip_high=0.2, reference_kl=0.01),
        Policy(aggregate="constant", inner_steps=2, dynamic_sampling=True, entropy=1e-3),
    ],
    ids=["dapo-like", "grpo", "dr-grpo, dynamic, inner steps"],
)
def test_the_reward_rises(tmp_path, policy):
    settings = OnPolicy(**{**vars(REWARD), "policy": policy})
    run(llama(), tmp_path, settings=settings)
    found = [line["reward"] for line in lines(tmp_path)]
    assert len(found) == 30
    assert np.mean(found[-5:]) > np.mean(found[:5]) + 0.2
    for key in ("entropy", "clipped", "length", "groups_without_signal", "tokens_per_s", "old_kl"):
        assert np.isfinite(lines(tmp_path)[-1][key])


@torch.no_grad()
def own_text_kl(student, teacher) -> float:
    """Mean reverse KL on greedy text of the student, from both models' own logits."""
    values = []
    for prompt in prompts():
        ids = torch.tensor([prompt.ids])
        for _ in range(6):
            ids = torch.cat([ids, student(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
        q, p = (m(input_ids=ids).logits[0, len(prompt.ids) - 1 :].log_softmax(-1) for m in (student, teacher))
        values.append((q.exp() * (q - p)).sum(-1).mean().item())
    return float(np.mean(values))


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd"])
def test_the_student_comes_near_its_teacher_on_its_own_text(tmp_path, kind):
    student, teacher = llama(), llama(initializer_range=0.2)
    torch.manual_seed(9)
    for parameter in teacher.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    before = own_text_kl(student, teacher)
    run(
        student,
        tmp_path,
        teachers=[teacher],
        settings=TAUGHT,
        objective=Objective(kind=kind),
        reward_function=None,
    )
    assert own_text_kl(student, teacher) < 0.6 * before
    assert lines(tmp_path)[-1]["teacher"] < lines(tmp_path)[0]["teacher"]


def test_the_teacher_may_read_another_prompt(tmp_path):
    """Context distillation: the teacher sees three tokens more, and is matched at the same answer tokens."""
    asked = prompts(teacher_prefix=(5, 9, 11))
    student, teacher = llama(), llama()
    run(
        student,
        tmp_path,
        prompts=asked,
        teachers=[teacher],
        settings=TAUGHT,
        objective=REVERSE,
        reward_function=None,
    )
    found = [line["teacher"] for line in lines(tmp_path)]
    assert found[0] > 0.01  # the same weights, and yet not the same distribution
    assert np.mean(found[-5:]) < 0.7 * np.mean(found[:5])


def test_reward_and_teacher_together(tmp_path):
    settings = OnPolicy(**{**vars(REWARD), "teacher": 0.05})
    run(llama(), tmp_path, teachers=[llama()], settings=settings, objective=REVERSE)
    found = [line["reward"] for line in lines(tmp_path)]
    assert np.mean(found[-5:]) > np.mean(found[:5]) + 0.1


def test_equal_rewards_change_nothing(tmp_path):
    model = llama()
    before = state(model)
    run(
        model,
        tmp_path,
        reward_function=lambda answers: [1.0] * len(answers),
        settings=OnPolicy(**{**vars(REWARD), "rounds": 3}),
    )
    assert same(before, state(model))
    assert lines(tmp_path)[-1]["groups_without_signal"] == 1.0


def test_a_verifier_that_always_fails_stops_the_run_and_says_so(tmp_path):
    model = llama()
    before = state(model)
    for tries in (1, 2):  # started again, it gives the verifier as many rounds more
        with pytest.raises(StillhouseError, match="no sample of the last 5 rounds got any reward"):
            run(model, tmp_path, reward_function=lambda answers: [0.0] * len(answers))
        assert same(before, state(model))
        assert len(lines(tmp_path)) == 5 * tries


def test_a_length_penalty_does_not_make_rewards_disappear(tmp_path):
    """Every sample is right and as long as allowed: 0.5 - 1 is below 0, and yet a reward."""
    policy = Policy(overlong=5)
    settings = OnPolicy(**{**vars(REWARD), "rounds": 4, "patience": 2, "policy": policy})
    right = {"reward_function": lambda answers: [0.5] * len(answers), "end_ids": set()}
    run(llama(), tmp_path, settings=settings, **right)
    assert [line["reward"] for line in lines(tmp_path)] == [-0.5] * 4


def test_going_on_with_another_number_of_threads_is_said(tmp_path, monkeypatch, capsys):
    nothing = {"reward_function": lambda answers: [0.0] * len(answers)}
    with pytest.raises(StillhouseError):
        run(llama(), tmp_path, **nothing)
    capsys.readouterr()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.raises(StillhouseError):
        run(llama(), tmp_path, **nothing)
    assert "not be bit-identical" in (said := capsys.readouterr().err)
    assert "is 77" in said


def test_rewards_that_are_not_finite_count_as_nothing(tmp_path):
    def score(answers):
        return [
            float("nan") if i == 0 else float("inf") if i == 1 else v
            for i, v in enumerate(even_share(answers))
        ]

    run(llama(), tmp_path, reward_function=score, settings=OnPolicy(**{**vars(REWARD), "rounds": 2}))
    assert [line["unscored"] for line in lines(tmp_path)] == [2, 2]
    assert all(np.isfinite(line["loss"]) for line in lines(tmp_path))


def test_a_sample_that_never_ends_is_cut_and_counted(tmp_path):
    run(llama(), tmp_path, end_ids=set(), settings=OnPolicy(**{**vars(REWARD), "rounds": 1}))
    assert lines(tmp_path)[0]["cut"] == 1.0
    assert lines(tmp_path)[0]["length"] == 6


def test_an_answer_ends_where_a_stop_text_was_said(tmp_path):
    run(
        llama(),
        tmp_path,
        end_ids=set(),
        stopping_criterion=lambda ids: len(ids) == 2 or ids[0] % 2 == 0,
        settings=OnPolicy(**{**vars(REWARD), "rounds": 1}),
    )
    assert lines(tmp_path)[0]["cut"] == 0
    assert 1 < lines(tmp_path)[0]["length"] < 2


@pytest.mark.parametrize(
    "settings", [REWARD, OnPolicy(**{**vars(TAUGHT), "off_policy": 0.5})], ids=["reward", "both"]
)
def test_interrupted_while_sampling_it_ends_bit_identical(tmp_path, monkeypatch, settings):
    settings = OnPolicy(**{**vars(settings), "rounds": 6})

    def options():
        documents = documents_of((12, 5, 9, 20))
        teacher = llama(initializer_range=0.3) if settings.teacher else None
        objective = REVERSE if teacher else Objective(kind="cross_entropy")
        off = OffPolicyData(documents, OnlineSignal(teacher, documents, "float32")) if teacher else None
        return {
            "teachers": [teacher] if teacher else [],
            "settings": settings,
            "objective": objective,
            "off_policy": off,
        }

    whole, broken = llama(), llama()
    run(whole, tmp_path / "whole", **options())
    calls = []
    original = sampler.roll_out

    def interrupts(*arguments, **named):
        calls.append(1)
        found = original(*arguments, **named)
        if len(calls) == 2:
            os.kill(os.getpid(), signals.SIGINT)
        return found

    monkeypatch.setattr(sampler, "roll_out", interrupts)
    with pytest.raises(KeyboardInterrupt):
        run(broken, tmp_path / "broken", **options())
    assert 0 < len(lines(tmp_path / "broken")) < 6
    fresh = llama()
    run(fresh, tmp_path / "broken", **options())
    assert same(state(whole), state(fresh))
    assert [line["step"] for line in lines(tmp_path / "broken")] == [1, 2, 3, 4, 5, 6]


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path):
    model = llama()
    before = state(model)
    model.model.layers[0].mlp.down_proj.register_full_backward_hook(
        lambda module, into, out: tuple(None if g is None else g * float("nan") for g in into)
    )
    with pytest.raises(NonFiniteLossError, match="q"):
        run(model, tmp_path)
    assert same(before, state(model))


def test_without_a_prompt_it_fails(tmp_path):
    with pytest.raises(EmptyCorpusError):
        run(llama(), tmp_path, prompts=[])


@pytest.mark.parametrize("name", ["qwen2_window", "gemma3"])
def test_samples_beyond_a_window_have_the_probabilities_that_the_learner_computes(tmp_path, name):
    """The samples of the first round are on-policy, so nothing separates old and new probabilities."""
    settings = replace(REWARD, rounds=1, prompts=3, samples=2, max_tokens=4 * WINDOW)
    run(ARCHITECTURES[name](), tmp_path, settings=settings, end_ids={-1})
    assert lines(tmp_path)[0]["old_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("aggregate", "same_loss"), [("sequence", True), ("constant", True), ("token", False)]
)
def test_groups_without_signal_that_are_left_out_still_count_as_answers(aggregate, same_loss):
    draws = np.random.default_rng(4)
    rollouts = [
        Rollout(prompt, draws.integers(2, VOCABULARY, 3 + n).tolist(), [-3.0] * (3 + n), "stop")
        for prompt in prompts(3)
        for n in range(2)
    ]
    every = RolloutBatch(rollouts, torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), 0)
    settings = OnPolicy(**{**vars(REWARD), "samples": 2, "policy": Policy(aggregate=aggregate)})
    objective = Objective(kind="cross_entropy")

    def loss(samples, kept):
        learner = OnPolicyLearner(llama(), [], objective, settings, TRAIN, None)
        return learner.learn(samples, [0.0], kept)["loss"]

    whole, less = loss(every, 1.0), loss(every.select_groups(torch.tensor([True, False, False])), 1 / 3)
    assert (less == pytest.approx(whole, rel=1e-4)) is same_loss
    assert whole != 0
