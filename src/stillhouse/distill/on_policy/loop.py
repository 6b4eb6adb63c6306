"""Learning from the student's own samples: the teacher's divergence on them, a reward, or both.

Each round the student answers some prompts several times; the teacher (where there is one) says what it
would have said at every token of those answers (on-policy distillation: Agarwal et al. 2024, GKD,
arXiv:2306.13649, algorithm 1; Gu et al. 2024, MiniLLM, arXiv:2306.08543), a verifier says which are right
(Shao et al. 2024, GRPO, arXiv:2402.03300), and the student learns from either or both. The samples are data:
no gradient flows through the drawing of them.

Like :mod:`.training` it ends bit for bit the same on the processor whether it was interrupted or not, and it
neither evaluates nor saves the student.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stillhouse.console import console
from stillhouse.distill.forward.forward_pass import model_digest
from stillhouse.distill.loss.policy_loss import has_signal
from stillhouse.distill.on_policy.curriculum import PassRates
from stillhouse.distill.on_policy.learner import OnPolicyLearner
from stillhouse.distill.on_policy.rollouts import (
    RewardFunction,
    RolloutBatch,
    StoppingCriterion,
    TokenizedPrompt,
    join,
    roll_out,
)
from stillhouse.distill.training.checkpoint import (
    CheckpointManager,
    generator_states,
    restore_generators,
    warn_of_environment_changes,
)
from stillhouse.distill.training.lr_schedule import learning_rate_factor
from stillhouse.distill.training.optimizer import frozen_embeddings
from stillhouse.distill.training.runtime import choose_device, memory_errors, reproducible, uninterrupted
from stillhouse.distill.training.tracking import MetricsLog, open_tracker
from stillhouse.errors import CapabilityError, EmptyCorpusError, StillhouseError
from stillhouse.hashing import sha256_json
from stillhouse.models import can_sample
from stillhouse.recipe import Objective, Train
from stillhouse.recipe.on_policy import OnPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stillhouse.distill.data.documents import Document
    from stillhouse.distill.targets.signal import TeacherSignal

REFILLS = 4
"""Dynamic sampling asks for at most this many times the round's prompts."""


@dataclass(frozen=True)
class OnPolicyResult:
    """What a run did, earlier sittings included."""

    rounds: int
    tokens: int
    """Tokens that the student wrote and learned from."""
    seconds: float
    facts: dict[str, Any]


@dataclass(frozen=True)
class OnPolicyProgress:
    """How far a run has come."""

    rounds: int = 0
    steps: int = 0
    asked: int = 0
    """Questions taken from the shuffled stream."""
    tokens: int = 0
    seconds: float = 0.0
    fruitless: int = 0
    """Rounds in a row without any reward."""
    answers: Mapping[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    """Of each question, where the order goes by it: answers given, and the sum of their rewards."""


@dataclass(frozen=True, eq=False)
class OffPolicyData:
    """Corpus rows that some rounds learn from instead, with what the teacher thought of them."""

    documents: Sequence[Document]
    signal: TeacherSignal


def train_on_policy(
    model: PreTrainedModel,
    questions: Sequence[TokenizedPrompt],
    *,
    teachers: Sequence[PreTrainedModel],
    score: RewardFunction | None,
    ends: set[int],
    objective: Objective,
    settings: OnPolicy,
    train: Train,
    directory: Path,
    seed: int,
    off_policy: OffPolicyData | None = None,
    pass_rates: Mapping[str, float] | None = None,
    stopped: StoppingCriterion | None = None,
    label: str = "on-policy",
) -> OnPolicyResult:
    """Trains ``model`` in place, going on from the last checkpoint where there is one.

    Writes ``directory/checkpoints`` and one line a round to ``directory/metrics.jsonl``.

    Args:
        model: float32; what requires a gradient learns.
        questions: what is asked, again and again; see ``settings.order``.
        teachers: by the numbers that questions' teacher prompts name; needed when ``settings.teacher`` is
            above 0; left as they are.
        score: needed when ``settings.reward`` is above 0.
        ends: ids that end an answer.
        stopped: whether an answer's ids so far end it, where a template ends answers by a text.
        objective: the divergence on the student's samples. The teacher is run on each; ``targets: topk``
            compares its ``top_k`` likeliest ids and their tail, any other the whole distributions.
        train: optimizer, type, device, passes; its epochs and tokens are not used.
        pass_rates: rates of questions (by id) that were measured before, for `order`.

    Raises:
        EmptyCorpusError: there is no question.
        RecipeError: ``top_k`` is not below the vocabulary.
        CapabilityError: the student's layers cannot be sampled from here (sliding windows, state spaces).
        StillhouseError: no sample of ``settings.patience`` rounds got any reward.
        NonFiniteLossError, CheckpointError, OutOfMemoryError, StorageError, KeyboardInterrupt: as in
            :func:`.training.train`.
    """
    assert teachers or not settings.teacher
    assert score is not None or not settings.reward
    if not questions:
        raise EmptyCorpusError("there is no prompt for the student to answer")
    if not can_sample(model):
        raise CapabilityError(
            f"a {model.config.model_type} student with sliding windows cannot be sampled from here",
            hint="Take a student whose layers all attend to the whole sequence.",
        )
    before = dict(pass_rates or {}) if settings.order != "shuffled" else {}
    if settings.learning_rate is not None:
        train = dataclasses.replace(train, learning_rate=settings.learning_rate)
    checkpoints = CheckpointManager(
        directory / "checkpoints",
        _identity(model, teachers, questions, objective, settings, train, seed) | {"pass rates": before},
    )
    home = model.device
    with memory_errors(train), reproducible(seed), frozen_embeddings(model, frozen=not train.embeddings):
        model.to(choose_device(train.device))  # pyright: ignore[reportArgumentType]
        learner = OnPolicyLearner(model, teachers, objective, settings, train, off_policy)
        facts = {"threads": torch.get_num_threads(), "device": str(learner.device), "layout": learner.layout}
        done = OnPolicyProgress()
        saved = checkpoints.load()
        if saved is not None:
            learner.load_state(saved.tensors)
            restore_generators(saved.generators)
            warn_of_environment_changes(saved.facts, facts)
            done = OnPolicyProgress(
                *(saved.facts[field.name] for field in dataclasses.fields(OnPolicyProgress))
            )
            console.info(f"going on after round {done.rounds}")
        trackers = [open_tracker(name, directory, label) for name in train.trackers]
        metrics = MetricsLog(directory / "metrics.jsonl", steps_done=done.rounds, trackers=trackers)
        run = _Rounds(learner, questions, score, ends, stopped, settings, train, seed, before)
        with contextlib.closing(metrics):
            done = _loop(run, done, checkpoints, metrics, facts, label)
        model.to(home)  # pyright: ignore[reportArgumentType]
    return OnPolicyResult(done.rounds, done.tokens, done.seconds, facts)


def _loop(
    run: _Rounds,
    done: OnPolicyProgress,
    checkpoints: CheckpointManager,
    metrics: MetricsLog,
    facts: dict[str, Any],
    label: str,
) -> OnPolicyProgress:
    settings, train = run.settings, run.train
    generators = generator_states()

    def save() -> None:
        state = dataclasses.asdict(done) | facts
        checkpoints.save(done.rounds, run.learner.state(), state, generators)

    with console.progress(label, settings.rounds, "rounds", done=done.rounds) as progress:
        try:
            for number in range(done.rounds, settings.rounds):
                started = time.perf_counter()
                samples, asked = run.samples(number, done)
                sampling_s = time.perf_counter() - started
                # An interrupt inside would leave half the weights updated, or a round without its line.
                with uninterrupted():
                    found, after = run.learn(number, done, samples, asked)
                    generators = generator_states()
                    seconds = time.perf_counter() - started
                    done = dataclasses.replace(after, seconds=done.seconds + seconds)
                    line = found | {
                        "tokens_per_s": round(found["tokens"] / seconds, 1),
                        "sampling_s": round(sampling_s, 3),
                        "elapsed_s": round(done.seconds, 3),
                    }
                    metrics.log(done.rounds, line)
                shown = {key: found[key] for key in ("reward", "loss") if key in found}
                progress.advance(1, **shown)
                if done.rounds % train.checkpoint_every == 0 or done.rounds == settings.rounds:
                    save()
                if settings.reward and (fruitless := done.fruitless) >= settings.patience:
                    done = dataclasses.replace(done, fruitless=0)  # who starts it again wants as many more
                    save()
                    raise StillhouseError(
                        f"no sample of the last {fruitless} rounds got any reward: nothing to learn",
                        hint="Check the verifiers, ask easier prompts, raise "
                        "on_policy.samples or max_tokens, or begin with a few right answers (train.epochs).",
                    )
        except KeyboardInterrupt:
            if done.rounds:
                save()
                console.info(f"stopped after round {done.rounds}; the same command goes on there")
            raise
    return done


@dataclass(eq=False)
class _Rounds:
    """What every round needs. A round depends on its number, how much was asked before, and the weights."""

    learner: OnPolicyLearner
    questions: Sequence[TokenizedPrompt]
    score: RewardFunction | None
    ends: set[int]
    stopped: StoppingCriterion | None
    settings: OnPolicy
    train: Train
    seed: int
    before: Mapping[str, float]

    def samples(self, number: int, done: OnPolicyProgress) -> tuple[RolloutBatch | None, int]:
        """What the student says in this round, and how many questions that took; None for a corpus round."""
        drawn = np.random.default_rng([self.seed, number, 7]).random()
        if self.learner.off_policy is not None and drawn < self.settings.off_policy:
            return None, 0
        return self._samples(number, done)

    def learn(
        self, number: int, done: OnPolicyProgress, samples: RolloutBatch | None, asked: int
    ) -> tuple[dict[str, Any], OnPolicyProgress]:
        """Learns from them; the round's metrics, and how far the run has come after it."""
        inner = self.settings.policy.inner_steps
        steps = self.settings.rounds * inner
        rates = [
            self.train.learning_rate * learning_rate_factor(done.steps + i, steps, self.train)
            for i in range(inner)
        ]
        further = dataclasses.replace(done, rounds=done.rounds + 1, steps=done.steps + inner)
        if samples is None:
            return self.learner.learn_corpus(number, self.seed, rates), further
        every = samples.rewards_GS
        used = samples.groups(has_signal(every)) if self._needs_signal else samples
        found: dict[str, Any] = {"loss": 0.0, "grad_norm": 0.0}
        if used.rollouts:
            dynamic = self.settings.policy.dynamic_sampling  # replaces groups without signal
            kept = 1.0 if dynamic else len(used.rollouts) / len(samples.rollouts)
            found = self.learner.learn(used, rates, kept)
        found["learned"] = sum(len(rollout.ids) for rollout in used.rollouts)
        found["read"] = found["learned"] + sum(len(rollout.question.ids) for rollout in used.rollouts)
        found |= self._measures(samples) | {"learning_rate": rates[-1]}
        answers = done.answers
        if self.settings.order != "shuffled":
            known = PassRates(self.before, answers)
            ids = [rollout.question.id for rollout in samples.rollouts]
            found["expected_reward"] = round(float(np.mean([known.rate(id) for id in ids])), 5)
            answers = known.after(ids, every.flatten().tolist()).answers
        rewarded = not self.settings.reward or bool((every > 0).any())
        return found, dataclasses.replace(
            further,
            asked=done.asked + asked,
            tokens=done.tokens + found["tokens"],
            fruitless=0 if rewarded else done.fruitless + 1,
            answers=answers,
        )

    @property
    def _needs_signal(self) -> bool:
        """Groups of equal rewards teach nothing where the reward is all that is learned from."""
        policy, others = self.settings.policy, self.settings.teacher
        return bool(self.settings.reward) and not (others or policy.reference_kl or policy.entropy)

    def _samples(self, number: int, done: OnPolicyProgress) -> tuple[RolloutBatch, int]:
        """The round's groups and how many questions it took; dynamic sampling leaves equal rewards out."""
        wanted, dynamic = self.settings.prompts, self.settings.policy.dynamic_sampling
        question = self._stream(number, done)
        rounds: list[RolloutBatch] = []
        asked = full = 0
        while not rounds or (dynamic and full < wanted and asked < REFILLS * wanted):
            module = self.learner.working.module
            found = roll_out(
                module,
                [question(asked + i) for i in range(wanted)],
                self.settings,
                ends=self.ends,
                stopped=self.stopped,
                score=self.score,
                seed=f"{self.seed} {number} {len(rounds)}",
            )
            asked += wanted
            rounds.append(found)
            full += int(has_signal(found.rewards_GS).sum())
        return join(rounds), asked

    def _stream(self, number: int, done: OnPolicyProgress) -> Callable[[int], TokenizedPrompt]:
        """The round's questions by their place in it, without end."""
        count = len(self.questions)
        if self.settings.order != "shuffled":
            rng, ids = np.random.default_rng([self.seed, number, 13]), [q.id for q in self.questions]
            order = PassRates(self.before, done.answers).order(ids, self.settings.order, rng)
            return lambda place: self.questions[order[place % count]]

        def shuffled(place: int) -> TokenizedPrompt:
            epoch, index = divmod(done.asked + place, count)
            return self.questions[int(np.random.default_rng([self.seed, epoch]).permutation(count)[index])]

        return shuffled

    def _measures(self, samples: RolloutBatch) -> dict[str, Any]:
        lengths = [len(rollout.ids) for rollout in samples.rollouts]
        rewards_GS = samples.rewards_GS
        found: dict[str, Any] = {
            "tokens": sum(lengths),
            "prompt_tokens": sum(len(r.question.ids) for r in samples.rollouts[:: rewards_GS.shape[1]]),
            "length": round(sum(lengths) / len(lengths), 2),
            "cut": round(sum(r.finish_reason == "length" for r in samples.rollouts) / len(lengths), 4),
        }
        if self.settings.reward:
            found |= {
                "reward": round(rewards_GS.mean().item(), 5),
                "reward_std": round(rewards_GS.std(dim=1, correction=0).mean().item(), 5),
                "groups_without_signal": round(1 - has_signal(rewards_GS).float().mean().item(), 4),
            }
            if samples.unscored:
                found["unscored"] = samples.unscored
        return found


def _identity(
    model: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
    questions: Sequence[TokenizedPrompt],
    objective: Objective,
    settings: OnPolicy,
    train: Train,
    seed: int,
) -> dict[str, Any]:
    """All that decides which student comes out, by recipe key where there is one."""
    sections = {"objective": objective, "on_policy": settings, "train": train}
    keys = {
        f"{name}.{key}": value
        for name, section in sections.items()
        for key, value in dataclasses.asdict(section).items()
    }
    neutral = ("train.checkpoint_every", "train.trackers", "on_policy.patience")
    return {key: value for key, value in keys.items() if key not in neutral} | {
        "seed": seed,
        "questions": sha256_json([[q.id, q.ids, [astuple(r) for r in q.teacher_prompts]] for q in questions]),
        "weights at the start": model_digest(model),
        "teacher": [model_digest(teacher) for teacher in teachers],
    }
