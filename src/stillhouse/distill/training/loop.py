"""The training loop: a student learns from documents and its teacher's distributions over them.

On a CPU, the same model, documents, settings, seed and number of threads give the same student bit for bit,
interrupted and resumed or not. On a GPU results differ slightly: its kernels add in varying order. Another
number of threads also adds in another order.

Resuming: :mod:`.checkpoint` has the format, ``Learner.resume`` restores the newest one. Evaluating the
student and saving it are up to the caller.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stillhouse.console import console
from stillhouse.distill.data.batch_schedule import Step, plan_steps
from stillhouse.distill.data.documents import Document, documents_hash
from stillhouse.distill.forward.forward_pass import model_digest, model_of, require_readable
from stillhouse.distill.training.checkpoint import CheckpointManager, generator_states
from stillhouse.distill.training.environment import choose_device, memory_errors, reproducible, uninterrupted
from stillhouse.distill.training.learner import Learner
from stillhouse.distill.training.lr_schedule import learning_rate_factor
from stillhouse.distill.training.optimizer import frozen_embeddings
from stillhouse.distill.training.tracking import MetricsLog, open_tracker
from stillhouse.errors import EmptyCorpusError, ModelError, NonFiniteLossError, RecipeError
from stillhouse.recipe import Objective, Train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stillhouse.distill.targets.teacher_signal import TeacherSignal
    from stillhouse.models import Weights

# Train settings that change where or how often something is written, not what the student becomes.
NOT_IDENTITY = ("train.checkpoint_every", "train.trackers")


@dataclass(frozen=True)
class TrainResult:
    """The totals of a training run, including what earlier processes did before it was resumed.

    Args:
        tokens: tokens read.
        counted: tokens with a loss.
        steps: optimizer steps.
        seconds: time in the loop.
        losses: of each step, in nats per counted token.
        environment: threads, device, compute type and layout, which the exact bits depend on.
    """

    tokens: int
    counted: int
    steps: int
    seconds: float
    losses: list[float]
    environment: dict[str, Any]


@dataclass(frozen=True)
class TrainingProgress:
    """The position of a run. Checkpoints store the fields by name."""

    steps: int = 0
    tokens: int = 0
    counted: int = 0
    seconds: float = 0.0

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None) -> TrainingProgress:
        """The progress in a checkpoint's state; zero without a checkpoint."""
        return cls() if state is None else cls(*(state[field.name] for field in dataclasses.fields(cls)))

    def advance(self, step: Step, counted: int, seconds: float) -> TrainingProgress:
        """The progress after one more step."""
        return TrainingProgress(
            self.steps + 1, self.tokens + step.tokens, self.counted + counted, self.seconds + seconds
        )


def train(
    model: Weights | PreTrainedModel,
    documents: Sequence[Document],
    signal: TeacherSignal | None = None,
    *,
    objective: Objective | None = None,
    settings: Train | None = None,
    directory: str | Path | None = None,
    seed: int = 0,
    label: str = "train",
) -> TrainResult:
    """Trains ``model`` in place on ``documents``; resumes from the last checkpoint if there is one.

    Writes ``directory/checkpoints`` and one line per step to ``directory/metrics.jsonl``.

    Args:
        model: a model, or what `load` and `load_weights` return; float32. Parameters that require a gradient
            are trained (with adapters: only those).
        signal: the teacher's distributions over the same documents (`cache_targets`); None for cross-entropy
            alone.
        objective: what to minimise; by default the one that the targets were made for, or cross-entropy.
        settings: epochs, learning rate, batch size …; by default those of a recipe.
        directory: of checkpoints and metrics; by default nothing is kept, and an interrupted run starts anew.
        seed: of the order of documents, and of dropout.
        label: name of the run in the progress bar and trackers.

    Raises:
        EmptyCorpusError: there are no documents.
        ModelError: the weights are not float32, or lack a token of the documents.
        RecipeError: the objective needs a teacher and there is no ``signal``, or it needs other targets.
        ContextLengthError: a document exceeds the student's context.
        NonFiniteLossError: loss or gradient norm is not finite; the weights are those before the step.
        CheckpointError: the checkpoints are damaged or belong to other settings, data or weights.
        OutOfMemoryError: a pass does not fit; a smaller ``train.micro_tokens`` gives the same result.
        StorageError: the disk is full; the last checkpoint is intact.
        KeyboardInterrupt: after a checkpoint of the last finished step.
    """
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="stillhouse-") as temporary:
            return train(
                model, documents, signal,
                objective=objective, settings=settings, directory=temporary, seed=seed, label=label,
            )  # fmt: skip
    model, directory = model_of(model), Path(directory)
    objective, settings = _objective(objective, signal), settings or Train()
    if not documents:
        raise EmptyCorpusError("there is no document to train on")
    _require_float32(model)
    require_readable(model, documents, role="student")
    plan = plan_steps([len(document) for document in documents], settings, seed=seed)
    # Before the model moves and training changes it: the identity includes a digest of the initial weights.
    checkpoints = CheckpointManager(
        directory / "checkpoints", _identity(model, documents, objective, settings, seed)
    )
    original_device = model.device
    with (
        memory_errors(settings),
        reproducible(seed),
        frozen_embeddings(model, frozen=not settings.embeddings),
    ):
        model.to(choose_device(settings.device))  # pyright: ignore[reportArgumentType]
        learner = Learner(model, documents, signal, objective, settings)
        environment = {
            "threads": torch.get_num_threads(),
            "device": str(learner.device),
            "dtype": str(learner.dtype).removeprefix("torch."),
            "layout": learner.layout,
        }
        progress = TrainingProgress.from_state(learner.resume(checkpoints, environment))
        if progress.steps:
            console.info(f"resuming after step {progress.steps}")
        trackers = [open_tracker(name, directory, label) for name in settings.trackers]
        metrics = MetricsLog(directory / "metrics.jsonl", steps_done=progress.steps, trackers=trackers)
        with contextlib.closing(metrics), learner.training():
            progress = _run_steps(learner, plan, progress, checkpoints, metrics, environment, label)
        model.to(original_device)  # pyright: ignore[reportArgumentType]
    return TrainResult(
        progress.tokens, progress.counted, progress.steps, progress.seconds, metrics.losses, environment
    )


def _objective(objective: Objective | None, signal: TeacherSignal | None) -> Objective:
    """The objective, by default that of the targets; raises where the targets do not fit it."""
    made_for: Objective | None = getattr(signal, "objective", None)
    if objective is None:
        return made_for or (Objective() if signal else Objective(kind="cross_entropy"))
    if signal is None and objective.needs_teacher:
        raise RecipeError(
            f"the objective {objective.kind} needs the teacher's targets",
            hint="Pass the result of cache_targets(), or use Objective(kind='cross_entropy').",
        )
    # Lists of ids are stored for one temperature; hidden states serve any.
    depends = ("targets", *(("temperature", "top_k") if objective.targets in ("topk", "sampled") else ()))
    for field in depends if made_for is not None and objective.needs_teacher else ():
        if getattr(made_for, field) != getattr(objective, field):
            raise RecipeError(
                f"the targets were made for objective.{field} {getattr(made_for, field)}, "
                f"not {getattr(objective, field)}",
                hint="Pass the same objective to cache_targets() and train().",
            )
    return objective


def _require_float32(model: PreTrainedModel) -> None:
    other = next((p.dtype for p in model.parameters() if p.requires_grad and p.dtype != torch.float32), None)
    if other is not None:
        raise ModelError(
            f"the student's weights are {str(other).removeprefix('torch.')}; training needs float32 weights",
            hint="Load it in float32, or call model.float(); passes run in bfloat16 all the same.",
        )


def _run_steps(
    learner: Learner,
    plan: Sequence[Step],
    progress: TrainingProgress,
    checkpoints: CheckpointManager,
    metrics: MetricsLog,
    environment: dict[str, Any],
    label: str,
) -> TrainingProgress:
    """Takes the steps of ``plan`` that are left; returns the progress after the last."""
    settings = learner.settings
    generators = generator_states()

    def save() -> None:
        position = plan[progress.steps - 1]
        state = dataclasses.asdict(progress) | {"epoch": position.epoch, "index": position.index}
        checkpoints.save(progress.steps, learner.state(), state | environment, generators)

    total_tokens = sum(step.tokens for step in plan)
    with console.progress(label, total_tokens, "tokens", done=progress.tokens) as bar:
        try:
            for step in plan[progress.steps :]:
                started = time.perf_counter()
                learning_rate = settings.learning_rate * learning_rate_factor(
                    progress.steps, len(plan), settings
                )

                # Forward and backward. .item() is a sync point: the losses stay on the device until every
                # pass is queued, and are read once a step.
                pass_losses = learner.backward(step)
                norm = learner.clip().item()
                loss = sum(pass_loss.item() for _, pass_loss in pass_losses)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    # Before the update, so that the weights in memory stay usable.
                    raise _non_finite(progress.steps + 1, loss, norm, pass_losses, learner.documents)

                # Update and log. An interrupt in between would leave half the weights updated, or a step
                # without its line.
                with uninterrupted():
                    learner.update(learning_rate)
                    # With dropout, passes draw random numbers: if the next step is interrupted, its
                    # checkpoint needs the state from before it began.
                    generators = generator_states()
                    seconds = time.perf_counter() - started
                    counted = learner.counted(step)
                    progress = progress.advance(step, counted, seconds)
                    values = {
                        "loss": loss,
                        "learning_rate": learning_rate,
                        "grad_norm": norm,
                        "tokens": step.tokens,
                        "counted": counted,
                        "tokens_per_s": round(step.tokens / seconds, 1),
                        "elapsed_s": round(progress.seconds, 3),
                        "epoch": step.epoch,
                    }
                    metrics.log(progress.steps, values)
                bar.advance(step.tokens, loss=loss)

                # Checkpoint.
                if progress.steps % settings.checkpoint_every == 0 or progress.steps == len(plan):
                    save()
        except KeyboardInterrupt:
            if progress.steps:
                save()
                console.info(
                    f"stopped after step {progress.steps} of {len(plan)}; run the same command to resume"
                )
            raise
    return progress


def _identity(
    model: PreTrainedModel, documents: Sequence[Document], objective: Objective, settings: Train, seed: int
) -> dict[str, Any]:
    """Everything that determines the resulting student, by recipe key where there is one."""
    sections = {"objective": dataclasses.asdict(objective), "train": dataclasses.asdict(settings)}
    keys = {
        f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()
    }
    return {key: value for key, value in keys.items() if key not in NOT_IDENTITY} | {
        "seed": seed,
        "documents": documents_hash(documents),
        "weights at the start": model_digest(model),
    }


def _non_finite(
    step: int,
    loss: float,
    norm: float,
    pass_losses: Sequence[tuple[tuple[int, ...], Tensor]],
    documents: Sequence[Document],
) -> NonFiniteLossError:
    """An error that names the documents of passes with a non-finite loss, or all if only the norm is."""
    bad = [indices for indices, pass_loss in pass_losses if not math.isfinite(pass_loss.item())]
    names = [documents[i].id for indices in bad or [indices for indices, _ in pass_losses] for i in indices]
    return NonFiniteLossError(
        f"step {step}: loss {loss:.6g}, gradient norm {norm:.6g}; documents of the batch: {', '.join(names)}",
        hint="Lower train.learning_rate or look at these documents; the last checkpoint is good.",
    )
