"""One optimizer step: the loss of a batch, its gradient, and the update of the student's weights.

The order of batches, learning rates, checkpoints and stopping are the loop's business.

Shapes: N positions of a pass that predict a counted token, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stillhouse.distill.data.batch_schedule import Step
from stillhouse.distill.data.documents import Document
from stillhouse.distill.forward.packing import (
    choose_layout,
    collate,
    hidden_states,
    split_into_passes,
    use_attention,
)
from stillhouse.distill.forward.precision import WorkingCopy, compute_dtype
from stillhouse.distill.loss.cross_tokenizer import SpanRows, span_loss
from stillhouse.distill.loss.fused_loss import fused_loss
from stillhouse.distill.loss.lm_head import lm_head_of
from stillhouse.distill.training.checkpoint import (
    CheckpointManager,
    restore_generators,
    warn_of_environment_changes,
)
from stillhouse.distill.training.optimizer import make_optimizer
from stillhouse.models import rotation_switch
from stillhouse.recipe import Objective, Train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stillhouse.distill.targets.teacher_signal import TeacherSignal


class Learner:
    """A student in training: float32 weights, the copy that computes the passes, and the optimizer.

    Args:
        model: float32, on its device; its parameters that require a gradient change in place.
        signal: the teacher's distributions over ``documents``; None for cross-entropy alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        documents: Sequence[Document],
        signal: TeacherSignal | None,
        objective: Objective,
        settings: Train,
    ) -> None:
        self.documents, self.signal = documents, signal
        self.objective, self.settings = objective, settings
        self.lengths = [len(document) for document in documents]
        self.device = model.device
        self.dtype = compute_dtype(settings.dtype, model.device)
        self.layout = choose_layout(model, self.dtype)
        self.switch = rotation_switch(model.config)
        self.working = WorkingCopy(model, self.dtype)
        self.head = lm_head_of(self.working.module)
        self.optimizer = make_optimizer(self.working.masters.values(), settings)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Turns dropout on and the layout's attention in, inside the block."""
        module = self.working.module
        with use_attention(module, self.layout):
            module.train()
            try:
                yield
            finally:
                module.eval()

    def counted(self, step: Step) -> int:
        """The number of tokens in a step that have a loss."""
        return sum(self.documents[i].counted for i in step.documents)

    def backward(self, step: Step) -> list[tuple[tuple[int, ...], Tensor]]:
        """Accumulates the gradient of the step's loss, the mean over all its counted tokens.

        Returns:
            For each pass, the indices of its documents and its share of the loss, still on the device.
        """
        # Divided by the tokens of the whole step, not of the pass: a token weighs the same in every pass.
        counted = self.counted(step)
        losses = []
        for indices in split_into_passes(
            step.documents,
            self.documents,
            self.settings.micro_tokens,
            self.layout,
            switch=self.switch,
        ):
            loss = self._loss(indices) / counted
            loss.backward()
            losses.append((indices, loss.detach()))
        return losses

    def _loss(self, indices: Sequence[int]) -> Tensor:
        """The objective, summed over the counted tokens of the documents ``indices``."""
        documents = [self.documents[i] for i in indices]
        batch = collate(documents, self.layout, self.device)
        hidden_ND = hidden_states(self.working.module.get_decoder(), batch)
        rows = None
        if self.signal is not None:
            positions = [(i, self.documents[i].predicting) for i in indices]
            rows = self.signal.rows(positions, self.device)
        if isinstance(rows, SpanRows):
            return span_loss(hidden_ND, self.head, batch.labels_N, rows, self.objective)
        return fused_loss(hidden_ND, self.head, batch.labels_N, rows, self.objective)

    def clip(self) -> Tensor:
        """Clips the gradient to the norm ``train.clip``; returns the norm before clipping."""
        return torch.nn.utils.clip_grad_norm_(self.working.masters.values(), self.settings.clip)

    def update(self, learning_rate: float) -> None:
        """Takes one optimizer step and sets the gradient to zero."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.working.refresh()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The trained weights and the optimizer's averages, by parameter name."""
        masters = self.working.masters
        averages = {
            f"{key}.{name}": value
            for name, master in masters.items()
            for key, value in self.optimizer.state[master].items()
        }
        return {"model": dict(masters), "optimizer": averages}

    @torch.no_grad()
    def load_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restores what :meth:`state` returned."""
        for name, master in self.working.masters.items():
            master.copy_(state["model"][name])
        for full_name, value in state["optimizer"].items():
            key, name = full_name.split(".", 1)
            self.optimizer.state[self.working.masters[name]][key] = value.to(self.device)
        self.working.refresh()

    def resume(self, checkpoints: CheckpointManager, environment: Mapping[str, Any]) -> dict[str, Any] | None:
        """Restores weights, optimizer and generators from the newest intact checkpoint.

        Returns:
            The checkpoint's state (progress and environment), or None if there is no checkpoint.
        """
        checkpoint = checkpoints.load()
        if checkpoint is None:
            return None
        self.load_state(checkpoint.tensors)
        restore_generators(checkpoint.generators)
        warn_of_environment_changes(checkpoint.state, environment)
        return checkpoint.state
