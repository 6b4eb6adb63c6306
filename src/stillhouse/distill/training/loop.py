"""The training loop: from documents and what the teacher thought of them to a changed student.

On the processor the same model, documents, settings, seed and number of threads give
the same student bit for bit, whether the run was killed and resumed or left alone.
On a GPU they do not quite: its kernels add in varying order. Another number of
threads adds in another order too.

It does not evaluate, and it does not save the student: the caller does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stillhouse.console import console
from stillhouse.distill.data.batches import Step, plan_steps
from stillhouse.distill.data.documents import Document, documents_hash
from stillhouse.distill.forward.forward_pass import model_digest
from stillhouse.distill.training.checkpoint import (
    CheckpointManager,
    generator_states,
    restore_generators,
    warn_of_environment_changes,
)
from stillhouse.distill.training.learner import Learner
from stillhouse.distill.training.lr_schedule import learning_rate_factor
from stillhouse.distill.training.optimizer import frozen_embeddings
from stillhouse.distill.training.runtime import choose_device, memory_errors, reproducible, uninterrupted
from stillhouse.distill.training.tracking import MetricsLog, open_tracker
from stillhouse.errors import ContextLengthError, EmptyCorpusError, NonFiniteLossError
from stillhouse.recipe import Objective, Train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stillhouse.distill.targets.signal import TeacherSignal

# Train settings that change where or how often something is written, not what the student becomes.
NOT_IDENTITY = ("train.checkpoint_every", "train.trackers")


@dataclass(frozen=True)
class TrainResult:
    """What a run did, earlier sittings included.

    Args:
        tokens: tokens read.
        counted: tokens learned.
        steps: optimizer steps.
        seconds: time in the loop.
        losses: of each step, nats per counted token.
        facts: threads, device, compute type and layout, which the exact bits depend on.
    """

    tokens: int
    counted: int
    steps: int
    seconds: float
    losses: list[float]
    facts: dict[str, Any]


@dataclass(frozen=True)
class TrainingProgress:
    """How far a run has come."""

    steps: int = 0
    tokens: int = 0
    counted: int = 0
    seconds: float = 0.0

    def after(self, step: Step, counted: int, seconds: float) -> TrainingProgress:
        """One step further."""
        return TrainingProgress(
            self.steps + 1, self.tokens + step.tokens, self.counted + counted, self.seconds + seconds
        )


def train(
    model: PreTrainedModel,
    documents: Sequence[Document],
    signal: TeacherSignal | None,
    *,
    objective: Objective,
    settings: Train,
    directory: Path,
    seed: int,
    label: str = "train",
) -> TrainResult:
    """Trains ``model`` in place on ``documents``, going on from the last checkpoint where there is one.

    Writes ``directory/checkpoints`` and one line a step to ``directory/metrics.jsonl``.

    Args:
        model: float32; what requires a gradient learns (with adapters in place: they alone).
        signal: the teacher's distributions over the same documents; None for cross-entropy alone.
        label: what the run is called in progress and trackers.

    Raises:
        EmptyCorpusError: there is no document.
        ContextLengthError: a document is longer than the student can read.
        NonFiniteLossError: loss or gradient norm is not finite; the weights are those before the step.
        CheckpointError: the checkpoints are damaged or belong to other settings, data or weights.
        OutOfMemoryError: a pass does not fit; smaller ``train.micro_tokens`` do the same in less memory.
        StorageError: the disk is full; the last checkpoint is whole.
        KeyboardInterrupt: after a checkpoint of the last finished step.
    """
    if not documents:
        raise EmptyCorpusError("there is no document to train on")
    _require_context(model, documents)
    plan = plan_steps([len(document) for document in documents], settings, seed=seed)
    checkpoints = CheckpointManager(
        directory / "checkpoints", _identity(model, documents, objective, settings, seed)
    )
    home = model.device
    with (
        memory_errors(settings),
        reproducible(seed),
        frozen_embeddings(model, frozen=not settings.embeddings),
    ):
        model.to(choose_device(settings.device))  # pyright: ignore[reportArgumentType]
        learner = Learner(model, documents, signal, objective, settings)
        facts = {
            "threads": torch.get_num_threads(),
            "device": str(learner.device),
            "dtype": str(learner.dtype).removeprefix("torch."),
            "layout": learner.layout,
        }
        done = _resume(learner, checkpoints, facts)
        trackers = [open_tracker(name, directory, label) for name in settings.trackers]
        metrics = MetricsLog(directory / "metrics.jsonl", steps_done=done.steps, trackers=trackers)
        with contextlib.closing(metrics), learner.training():
            done = _loop(learner, plan, done, checkpoints, metrics, facts, label)
        model.to(home)  # pyright: ignore[reportArgumentType]
    return TrainResult(done.tokens, done.counted, done.steps, done.seconds, metrics.losses, facts)


def _loop(
    learner: Learner,
    plan: Sequence[Step],
    done: TrainingProgress,
    checkpoints: CheckpointManager,
    metrics: MetricsLog,
    facts: dict[str, Any],
    label: str,
) -> TrainingProgress:
    settings = learner.settings
    generators = generator_states()

    def save() -> None:
        position = plan[done.steps - 1]
        state = dataclasses.asdict(done) | {"epoch": position.epoch, "index": position.index} | facts
        checkpoints.save(done.steps, learner.state(), state, generators)

    total_tokens = sum(step.tokens for step in plan)
    with console.progress(label, total_tokens, "tokens", done=done.tokens) as progress:
        try:
            for step in plan[done.steps :]:
                started = time.perf_counter()
                rate = settings.learning_rate * learning_rate_factor(done.steps, len(plan), settings)
                parts = learner.backward(step)
                norm = learner.clip().item()  # .item() waits for the device, once a step
                loss = sum(part.item() for _, part in parts)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise _non_finite(done.steps + 1, loss, norm, parts, learner.documents)
                # An interrupt inside would leave half the weights updated, or a step without its line.
                with uninterrupted():
                    learner.update(rate)
                    generators = generator_states()
                    seconds = time.perf_counter() - started
                    counted = learner.counted(step)
                    done = done.after(step, counted, seconds)
                    line = {
                        "loss": loss,
                        "learning_rate": rate,
                        "grad_norm": norm,
                        "tokens": step.tokens,
                        "counted": counted,
                        "tokens_per_s": round(step.tokens / seconds, 1),
                        "elapsed_s": round(done.seconds, 3),
                        "epoch": step.epoch,
                    }
                    metrics.log(done.steps, line)
                progress.advance(step.tokens, loss=loss)
                if done.steps % settings.checkpoint_every == 0 or done.steps == len(plan):
                    save()
        except KeyboardInterrupt:
            if done.steps:
                save()
                console.info(
                    f"stopped after step {done.steps} of {len(plan)}; the same command goes on there"
                )
            raise
    return done


def _resume(learner: Learner, checkpoints: CheckpointManager, facts: dict[str, Any]) -> TrainingProgress:
    """Puts the newest whole checkpoint's state back; how far it had come."""
    saved = checkpoints.load()
    if saved is None:
        return TrainingProgress()
    learner.load_state(saved.tensors)
    restore_generators(saved.generators)
    warn_of_environment_changes(saved.facts, facts)
    done = TrainingProgress(*(saved.facts[field.name] for field in dataclasses.fields(TrainingProgress)))
    console.info(f"going on after step {done.steps}")
    return done


def _identity(
    model: PreTrainedModel, documents: Sequence[Document], objective: Objective, settings: Train, seed: int
) -> dict[str, Any]:
    """All that decides which student comes out, by recipe key where there is one."""
    sections = {"objective": dataclasses.asdict(objective), "train": dataclasses.asdict(settings)}
    keys = {
        f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()
    }
    return {key: value for key, value in keys.items() if key not in NOT_IDENTITY} | {
        "seed": seed,
        "documents": documents_hash(documents),
        "weights at the start": model_digest(model),
    }


def _require_context(model: PreTrainedModel, documents: Sequence[Document]) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(documents, key=len)
    if context is not None and len(longest) > context:
        raise ContextLengthError(
            f"document {longest.id} has {len(longest)} tokens, and the student reads at most {context}",
            hint=f"Set train.max_length to {context} or less.",
        )


def _non_finite(
    step: int,
    loss: float,
    norm: float,
    parts: Sequence[tuple[tuple[int, ...], Tensor]],
    documents: Sequence[Document],
) -> NonFiniteLossError:
    """Names the documents of the passes whose loss is not finite; all when only the norm is not."""
    bad = [indices for indices, part in parts if not math.isfinite(part.item())]
    names = [documents[i].id for indices in bad or [indices for indices, _ in parts] for i in indices]
    return NonFiniteLossError(
        f"step {step}: loss {loss:.6g}, gradient norm {norm:.6g}; documents of the batch: {', '.join(names)}",
        hint="Lower train.learning_rate or look at these documents; the last checkpoint is good.",
    )
