"""A student while it learns: one step's loss, its gradient, and the update.

Decides nothing about order, rates, checkpoints or stopping; the loop does.

Shapes: N positions of a pass that predict a counted token, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stillhouse.distill.data.batches import Step
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
from stillhouse.distill.training.optimizer import make_optimizer
from stillhouse.recipe import Objective, Train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stillhouse.distill.targets.signal import TeacherSignal


class Learner:
    """The student's weights, the copy that makes the passes, and the optimizer.

    Args:
        model: float32, on its device; those of its parameters that require a gradient
            change in place.
        signal: what the teacher thought; None for cross-entropy alone.
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
        self.working = WorkingCopy(model, self.dtype)
        self.head = lm_head_of(self.working.module)
        self.optimizer = make_optimizer(self.working.masters.values(), settings)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Dropout on and the layout's attention in place, inside the block."""
        module = self.working.module
        with use_attention(module, self.layout):
            module.train()
            try:
                yield
            finally:
                module.eval()

    def counted(self, step: Step) -> int:
        """How many tokens a step learns."""
        return sum(self.documents[i].counted for i in step.documents)

    def backward(self, step: Step) -> list[tuple[tuple[int, ...], Tensor]]:
        """Adds up the gradient of the step's loss: the sum over all its counted tokens over their number.

        Returns:
            The documents of each pass and what they add to the loss (not yet read from the device).
        """
        counted = self.counted(step)
        parts = []
        for indices in split_into_passes(
            step.documents, self.documents, self.settings.micro_tokens, self.layout
        ):
            loss = self._loss(indices) / counted
            loss.backward()
            parts.append((indices, loss.detach()))
        return parts

    def _loss(self, indices: Sequence[int]) -> Tensor:
        """The objective, summed over the counted tokens of the documents ``indices``."""
        documents = [self.documents[i] for i in indices]
        batch = collate(documents, self.layout, self.device)
        hidden_ND = hidden_states(self.working.module.get_decoder(), batch)
        rows = None
        if self.signal is not None:
            parts = [(i, self.documents[i].predicting) for i in indices]
            rows = self.signal.rows(parts, self.device)
        if isinstance(rows, SpanRows):
            return span_loss(hidden_ND, self.head, batch.labels_N, rows, self.objective)
        return fused_loss(hidden_ND, self.head, batch.labels_N, rows, self.objective)

    def clip(self) -> Tensor:
        """Scales the gradient down to the recipe's largest norm; returns the norm before."""
        return torch.nn.utils.clip_grad_norm_(self.working.masters.values(), self.settings.clip)

    def update(self, learning_rate: float) -> None:
        """One step of the optimizer; the gradient is used up."""
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
        """Puts back what :meth:`state` returned."""
        for name, master in self.working.masters.items():
            master.copy_(state["model"][name])
        for full_name, value in state["optimizer"].items():
            key, name = full_name.split(".", 1)
            self.optimizer.state[self.working.masters[name]][key] = value.to(self.device)
        self.working.refresh()
