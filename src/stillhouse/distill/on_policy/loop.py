"""The on-policy loop: the student learns from its own samples, by a teacher's divergence, a reward or both.

In each round the student answers some prompts several times. The teacher, if there is one, computes its
distribution at every token of those answers (on-policy distillation: Agarwal et al. 2024, GKD,
arXiv:2306.13649, algorithm 1; Gu et al. 2024, MiniLLM, arXiv:2306.08543), verifiers score the answers
(Shao et al. 2024, GRPO, arXiv:2402.03300), and the student learns from either or both. The samples are data:
no gradient flows through sampling.

Like :mod:`stillhouse.distill.training.loop`, a run on a CPU ends bit-identical whether it was interrupted or
not. Evaluating the student and saving it are up to the caller.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stillhouse.console import console
from stillhouse.distill.forward.forward_pass import model_digest
from stillhouse.distill.loss.policy_loss import has_signal
from stillhouse.distill.on_policy.config import OnPolicyConfig, OnPolicyProgress
from stillhouse.distill.on_policy.curriculum import PassRates
from stillhouse.distill.on_policy.learner import OffPolicyData, OnPolicyLearner
from stillhouse.distill.on_policy.rollouts import RewardFunction, RolloutBatch, TokenizedPrompt
from stillhouse.distill.on_policy.sampler import sample_round
from stillhouse.distill.training.checkpoint import CheckpointManager, generator_states
from stillhouse.distill.training.environment import choose_device, memory_errors, reproducible, uninterrupted
from stillhouse.distill.training.lr_schedule import learning_rate_factor
from stillhouse.distill.training.optimizer import frozen_embeddings
from stillhouse.distill.training.tracking import MetricsLog, open_tracker
from stillhouse.errors import EmptyCorpusError, StillhouseError
from stillhouse.hashing import sha256_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Settings that change what is written or when a run gives up, not what the student becomes.
NOT_IDENTITY = ("train.checkpoint_every", "train.trackers", "on_policy.patience")


@dataclass(frozen=True)
class OnPolicyResult:
    """The totals of an on-policy run, including what earlier processes did before it was resumed."""

    rounds: int
    tokens: int
    """Tokens that the student wrote and learned from."""
    seconds: float
    environment: dict[str, Any]


def train_on_policy(
    model: PreTrainedModel,
    prompts: Sequence[TokenizedPrompt],
    config: OnPolicyConfig,
    directory: Path,
    *,
    teachers: Sequence[PreTrainedModel] = (),
    reward_function: RewardFunction | None = None,
    off_policy: OffPolicyData | None = None,
) -> OnPolicyResult:
    """Trains ``model`` in place on its own samples; resumes from the last checkpoint if there is one.

    Writes ``directory/checkpoints`` and one line per round to ``directory/metrics.jsonl``.

    Args:
        model: float32; parameters that require a gradient are trained.
        prompts: used again and again; see ``OnPolicy.order``.
        teachers: by the numbers in the prompts' ``teacher_prompts``; needed if ``settings.teacher`` is above
            0; not changed.
        reward_function: needed if ``settings.reward`` is above 0.
        off_policy: documents for the share ``settings.off_policy`` of rounds.

    Raises:
        EmptyCorpusError: there are no prompts.
        RecipeError: ``top_k`` is not below the vocabulary size.
        StillhouseError: no sample of ``settings.patience`` rounds got any reward.
        NonFiniteLossError, CheckpointError, OutOfMemoryError, StorageError, KeyboardInterrupt: as in
            :func:`stillhouse.distill.training.loop.train`.
    """
    config = config.resolved()
    assert teachers or not config.settings.teacher
    assert reward_function is not None or not config.settings.reward
    if not prompts:
        raise EmptyCorpusError("there is no prompt for the student to answer")
    # Before the model moves and training changes it: the identity includes a digest of the initial weights.
    checkpoints = CheckpointManager(directory / "checkpoints", _identity(model, teachers, prompts, config))
    original_device = model.device
    with (
        memory_errors(config.train),
        reproducible(config.seed),
        frozen_embeddings(model, frozen=not config.train.embeddings),
    ):
        model.to(choose_device(config.train.device))  # pyright: ignore[reportArgumentType]
        learner = OnPolicyLearner(
            model, teachers, config.objective, config.settings, config.train, off_policy
        )
        environment = {
            "threads": torch.get_num_threads(),
            "device": str(learner.device),
            "layout": learner.layout,
        }
        progress = OnPolicyProgress.from_state(learner.resume(checkpoints, environment))
        if progress.rounds:
            console.info(f"resuming after round {progress.rounds}")
        trackers = [open_tracker(name, directory, config.label) for name in config.train.trackers]
        metrics = MetricsLog(directory / "metrics.jsonl", steps_done=progress.rounds, trackers=trackers)
        with contextlib.closing(metrics):
            progress = _run_rounds(
                learner, prompts, config, reward_function, progress, checkpoints, metrics, environment
            )
        model.to(original_device)  # pyright: ignore[reportArgumentType]
    return OnPolicyResult(progress.rounds, progress.tokens, progress.seconds, environment)


def _run_rounds(
    learner: OnPolicyLearner,
    prompts: Sequence[TokenizedPrompt],
    config: OnPolicyConfig,
    reward_function: RewardFunction | None,
    progress: OnPolicyProgress,
    checkpoints: CheckpointManager,
    metrics: MetricsLog,
    environment: dict[str, Any],
) -> OnPolicyProgress:
    """Runs the rounds that are left; returns the progress after the last."""
    settings = config.settings
    generators = generator_states()

    def save() -> None:
        state = dataclasses.asdict(progress) | environment
        checkpoints.save(progress.rounds, learner.state(), state, generators)

    with console.progress(config.label, settings.rounds, "rounds", done=progress.rounds) as bar:
        try:
            while progress.rounds < settings.rounds:
                started = time.perf_counter()

                # Sample and score.
                batch = None
                if not _uses_corpus(learner, config, progress.rounds):
                    module = learner.working.module
                    batch = sample_round(module, prompts, config, progress, reward_function)
                sampling_s = time.perf_counter() - started

                # Learn and log. An interrupt in between would leave half the weights updated, or a round
                # without its line. Sampling takes the longest and can be interrupted: the round's seeds
                # depend on the progress alone, so the resumed run draws the same samples.
                with uninterrupted():
                    values, progress = _learn(learner, config, progress, batch)
                    generators = generator_states()
                    seconds = time.perf_counter() - started
                    progress = dataclasses.replace(progress, seconds=progress.seconds + seconds)
                    timing = {
                        "tokens_per_s": round(values["tokens"] / seconds, 1),
                        "sampling_s": round(sampling_s, 3),
                        "elapsed_s": round(progress.seconds, 3),
                    }
                    metrics.log(progress.rounds, values | timing)
                bar.advance(1, **{key: values[key] for key in ("reward", "loss") if key in values})

                # Checkpoint.
                if progress.rounds % config.train.checkpoint_every == 0 or progress.rounds == settings.rounds:
                    save()

                # Stop if nothing is ever rewarded.
                if settings.reward and (fruitless := progress.fruitless) >= settings.patience:
                    # Saved with a count of 0, so that a resumed run gets as many rounds again.
                    progress = dataclasses.replace(progress, fruitless=0)
                    save()
                    raise StillhouseError(
                        f"no sample of the last {fruitless} rounds got any reward: nothing to learn",
                        hint="Check the verifiers, ask easier prompts, raise "
                        "on_policy.samples or max_tokens, or begin with a few right answers (train.epochs).",
                    )
        except KeyboardInterrupt:
            if progress.rounds:
                save()
                console.info(f"stopped after round {progress.rounds}; run the same command to resume")
            raise
    return progress


def _uses_corpus(learner: OnPolicyLearner, config: OnPolicyConfig, round_number: int) -> bool:
    """Whether a round learns from the corpus: a draw that depends on seed and round alone."""
    draw = np.random.default_rng([config.seed, round_number, 7]).random()
    return learner.off_policy is not None and draw < config.settings.off_policy


def _learn(
    learner: OnPolicyLearner, config: OnPolicyConfig, progress: OnPolicyProgress, batch: RolloutBatch | None
) -> tuple[dict[str, Any], OnPolicyProgress]:
    """Takes the optimizer steps of one round, on ``batch`` or (None) on the corpus.

    Returns:
        The round's metrics, and the progress after it but for its seconds.
    """
    learning_rates = _learning_rates(config, progress.steps)
    after = dataclasses.replace(
        progress, rounds=progress.rounds + 1, steps=progress.steps + len(learning_rates)
    )
    if batch is None:
        return learner.learn_corpus(progress.rounds, config.seed, learning_rates), after
    values = _learn_from_samples(learner, config, batch, learning_rates)
    answers = progress.answers
    if config.settings.order != "shuffled":
        rates = PassRates(config.pass_rates, answers)
        ids = [rollout.prompt.id for rollout in batch.rollouts]
        # Before the round's own answers are added: the expectation by which its prompts were chosen.
        values["expected_reward"] = round(float(np.mean([rates.rate(id) for id in ids])), 5)
        answers = rates.after(ids, batch.rewards_GS.flatten().tolist()).answers
    rewarded = not config.settings.reward or batch.any_reward
    return values, dataclasses.replace(
        after,
        asked=progress.asked + len(batch.rewards_GS),
        tokens=progress.tokens + values["tokens"],
        fruitless=0 if rewarded else progress.fruitless + 1,
        answers=answers,
    )


def _learn_from_samples(
    learner: OnPolicyLearner, config: OnPolicyConfig, batch: RolloutBatch, learning_rates: Sequence[float]
) -> dict[str, Any]:
    """Learns from the groups of ``batch`` that have a gradient; returns the round's metrics."""
    settings = config.settings
    used = batch
    if _needs_signal(config):
        # Groups of equal rewards have advantage 0, so no gradient: leaving them out saves their passes.
        used = batch.select_groups(has_signal(batch.rewards_GS))
    values: dict[str, Any] = {"loss": 0.0, "grad_norm": 0.0}
    if used.rollouts:
        # A mean over answers still counts those left out (loss 0), unless dynamic sampling replaced them.
        dynamic = settings.policy.dynamic_sampling
        kept_share = 1.0 if dynamic else len(used.rollouts) / len(batch.rollouts)
        values = learner.learn(used, learning_rates, kept_share)
    values["learned"] = sum(len(rollout.ids) for rollout in used.rollouts)
    values["read"] = values["learned"] + sum(len(rollout.prompt.ids) for rollout in used.rollouts)
    # Rewards and lengths are those of all samples, used or not.
    return values | batch.metrics(rewarded=bool(settings.reward)) | {"learning_rate": learning_rates[-1]}


def _learning_rates(config: OnPolicyConfig, steps_done: int) -> list[float]:
    """The learning rate of each optimizer step of a round; the schedule runs over the steps of all rounds."""
    inner_steps = config.settings.policy.inner_steps
    total = config.settings.rounds * inner_steps
    return [
        config.train.learning_rate * learning_rate_factor(steps_done + i, total, config.train)
        for i in range(inner_steps)
    ]


def _needs_signal(config: OnPolicyConfig) -> bool:
    """Whether only rewards that differ have a gradient: no teacher, KL or entropy term adds one."""
    policy, teacher = config.settings.policy, config.settings.teacher
    return bool(config.settings.reward) and not (teacher or policy.reference_kl or policy.entropy)


def _identity(
    model: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
    prompts: Sequence[TokenizedPrompt],
    config: OnPolicyConfig,
) -> dict[str, Any]:
    """Everything that determines the resulting student, by recipe key where there is one."""
    sections = {"objective": config.objective, "on_policy": config.settings, "train": config.train}
    keys = {
        f"{name}.{key}": value
        for name, section in sections.items()
        for key, value in dataclasses.asdict(section).items()
    }
    return {key: value for key, value in keys.items() if key not in NOT_IDENTITY} | {
        "seed": config.seed,
        "questions": sha256_json([[p.id, p.ids, [astuple(t) for t in p.teacher_prompts]] for p in prompts]),
        "weights at the start": model_digest(model),
        "teacher": [model_digest(teacher) for teacher in teachers],
        "pass rates": config.pass_rates,
    }
