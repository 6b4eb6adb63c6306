"""One round of on-policy learning: from a batch of samples to updated weights.

The order of rounds, learning rates, checkpoints and stopping are the loop's business (:mod:`.loop`).

Shapes: N tokens of a pass that the student wrote, D hidden size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.distill.data.batch_schedule import Step
from stillhouse.distill.data.documents import Document
from stillhouse.distill.forward.forward_pass import ForwardPass
from stillhouse.distill.forward.packing import collate, hidden_states, split_into_passes
from stillhouse.distill.loss.fused_loss import fused_loss
from stillhouse.distill.loss.lm_head import LMHead
from stillhouse.distill.loss.policy_loss import PolicyRows, group_advantages, token_weights
from stillhouse.distill.loss.teacher_rows import TeacherRows
from stillhouse.distill.on_policy.rollouts import RolloutBatch
from stillhouse.distill.targets.ensemble import join_rows
from stillhouse.distill.targets.formats import HiddenFormat, TopKFormat
from stillhouse.distill.training.learner import Learner
from stillhouse.errors import NonFiniteLossError
from stillhouse.recipe import Objective, Train
from stillhouse.recipe.on_policy import OnPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stillhouse.distill.targets.teacher_signal import TeacherSignal


@dataclass(frozen=True, eq=False)
class OffPolicyData:
    """Corpus documents that some rounds use instead of samples, and the teacher's distributions over them."""

    documents: Sequence[Document]
    signal: TeacherSignal


TeacherHidden = dict[int, tuple[Tensor, float]]
"""A teacher's hidden states on a sample, [N, D], and its weight there, by the sample's index in the round."""


@dataclass(frozen=True, eq=False)
class _RoundInputs:
    """What all optimizer steps of a round share, computed before the first of them."""

    documents: list[Document]
    sampled_logp: list[list[float]]
    advantages: list[float]
    """Of each sample."""
    teacher_hidden: list[TeacherHidden]
    reference_logp: list[Tensor] | None
    kept_share: float


class OnPolicyLearner(Learner):
    """A student in training with its teachers and its reference model.

    Args:
        model: float32, on its device.
        teachers: by number, each run on the samples that it scores; empty if only the reward teaches.
        off_policy: documents for rounds that learn from the corpus.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        teachers: Sequence[PreTrainedModel],
        objective: Objective,
        settings: OnPolicy,
        train: Train,
        off_policy: OffPolicyData | None,
    ) -> None:
        documents = [] if off_policy is None else off_policy.documents
        super().__init__(model, documents, off_policy and off_policy.signal, objective, train)
        self.on_policy, self.off_policy = settings, off_policy
        dtype = "bfloat16" if self.dtype == torch.bfloat16 else "float32"
        self._teachers = [ForwardPass(teacher, [], dtype) for teacher in teachers if settings.teacher]
        sizes = [self.head.vocab_size, *(teacher.head.vocab_size for teacher in self._teachers)]
        self._shared_vocabulary = min(sizes)
        self._formats = [_teacher_format(objective, teacher.head, min(sizes)) for teacher in self._teachers]
        self._reference = None
        if settings.reward and settings.policy.reference_kl:
            initial = copy.deepcopy(model).requires_grad_(False)
            self._reference = ForwardPass(initial, [], dtype)

    def learn(
        self, batch: RolloutBatch, learning_rates: Sequence[float], kept_share: float = 1.0
    ) -> dict[str, Any]:
        """Takes one optimizer step per learning rate, each on its share of the groups; returns the metrics.

        Args:
            kept_share: the share of the round's groups that are in ``batch``, if those without signal were
                left out.
        """
        # Teachers, reference and advantages are those of the samples: no step of the round changes them.
        inputs = self._round_inputs(batch, kept_share)
        groups, size = batch.rewards_GS.shape
        metrics: list[dict[str, float]] = []
        shares = np.array_split(np.arange(groups), len(learning_rates))
        for share, learning_rate in zip(shares, learning_rates, strict=True):
            members = [int(g) * size + s for g in share for s in range(size)]
            if members:  # fewer groups than steps
                metrics.append(self._backward(members, inputs))
                self._update(learning_rate, metrics[-1], inputs.documents)
        return {key: float(np.mean([step[key] for step in metrics])) for key in metrics[0]}

    def learn_corpus(self, round_number: int, seed: int, learning_rates: Sequence[float]) -> dict[str, Any]:
        """Takes the steps of one round on corpus documents, about as many as a round has samples."""
        assert self.off_policy is not None
        rng = np.random.default_rng([seed, round_number, 11])
        count = min(self.on_policy.prompts * self.on_policy.samples, len(self.documents))
        metrics: dict[str, float] = {}
        totals = {"read": 0, "learned": 0}
        for learning_rate in learning_rates:
            chosen = rng.choice(len(self.documents), count, replace=False)
            step = Step(0, 0, tuple(int(i) for i in chosen), sum(self.lengths[i] for i in chosen))
            with self.training():
                metrics["loss"] = sum(loss.item() for _, loss in self.backward(step))
            self._update(learning_rate, metrics, [self.documents[i] for i in step.documents])
            totals["read"] += step.tokens
            totals["learned"] += sum(len(self.documents[i].predicting) for i in step.documents)
        return {**metrics, **totals, "tokens": 0, "off_policy": 1}

    def _round_inputs(self, batch: RolloutBatch, kept_share: float) -> _RoundInputs:
        documents = batch.documents()
        advantages_GS = group_advantages(batch.rewards_GS, self.on_policy.policy.normalise)
        return _RoundInputs(
            documents,
            [rollout.logp for rollout in batch.rollouts],
            advantages_GS.flatten().tolist(),
            [self._hidden(teacher, batch.teacher_documents(n)) for n, teacher in enumerate(self._teachers)],
            self._reference_logp(documents),
            kept_share,
        )

    def _backward(self, members: Sequence[int], inputs: _RoundInputs) -> dict[str, float]:
        """Accumulates the gradient over the samples ``members``; returns the loss and other metrics."""
        settings, documents = self.on_policy, inputs.documents
        lengths = [documents[i].counted for i in members]
        weights = token_weights(lengths, settings.policy.aggregate, settings.max_tokens, inputs.kept_share)
        weight = dict(zip(members, weights, strict=True))
        loss = 0.0
        measured: dict[str, list[Tensor]] = {}
        with self.training():
            for indices in split_into_passes(
                members, documents, self.settings.micro_tokens, self.layout, switch=self.switch
            ):
                batch = collate([documents[i] for i in indices], self.layout, self.device)
                hidden_ND = hidden_states(self.working.module.get_decoder(), batch)
                counts = [documents[i].counted for i in indices]
                rows = self._policy_rows(indices, counts, inputs)
                pass_loss = fused_loss(
                    hidden_ND,
                    self.head,
                    batch.labels_N,
                    self._teacher_rows(indices, counts, inputs.teacher_hidden),
                    self.objective,
                    weights_N=self._per_token([weight[i] for i in indices], counts),
                    policy=rows,
                    teacher_weight=settings.teacher,
                )
                pass_loss.backward()
                # .item() is a sync point, after each pass.
                loss += pass_loss.item()
                for name, values in rows.measured.items():
                    measured.setdefault(name, []).extend(values)
        return {"loss": loss, **{name: torch.cat(values).mean().item() for name, values in measured.items()}}

    def _policy_rows(self, indices: Sequence[int], counts: Sequence[int], inputs: _RoundInputs) -> PolicyRows:
        """What the policy loss needs for each token of the samples ``indices``."""
        reference_logp_N = None
        if inputs.reference_logp is not None:
            reference_logp_N = torch.cat([inputs.reference_logp[i] for i in indices]).to(self.device)
        return PolicyRows(
            self.on_policy.policy,
            self.on_policy.temperature,
            self.on_policy.reward,
            torch.tensor([logp for i in indices for logp in inputs.sampled_logp[i]]).to(self.device),
            self._per_token([inputs.advantages[i] for i in indices], counts),
            reference_logp_N,
        )

    def _per_token(self, values: Sequence[float], counts: Sequence[int]) -> Tensor:
        """One value per sample as one per token, [N]."""
        return torch.tensor(values).repeat_interleave(torch.tensor(counts)).to(self.device)

    def _teacher_rows(
        self, indices: Sequence[int], counts: Sequence[int], teacher_hidden: Sequence[TeacherHidden]
    ) -> TeacherRows | None:
        """The teachers' distributions over the tokens of the samples ``indices``, which have ``counts``."""
        starts = np.cumsum([0, *counts])
        rows = []
        for hidden, teacher, format in zip(teacher_hidden, self._teachers, self._formats, strict=True):
            scored = [n for n, i in enumerate(indices) if i in hidden]
            if scored:
                hidden_ND = torch.cat([hidden[indices[n]][0] for n in scored]).to(self.device)
                positions = np.concatenate([np.arange(starts[n], starts[n + 1]) for n in scored])
                positions_N = torch.from_numpy(positions).to(self.device)
                weight = hidden[indices[scored[0]]][1]
                rows.append((format.rows(hidden_ND, teacher.head), positions_N, weight))
        if len(teacher_hidden) < 2:
            return rows[0][0] if rows else None
        return join_rows(rows, int(starts[-1]), self._shared_vocabulary)

    def _hidden(self, teacher: ForwardPass, scored: dict[int, tuple[Document, float]]) -> TeacherHidden:
        """A teacher's hidden states on the samples that it scores."""
        hidden = teacher.for_documents([document for document, _ in scored.values()]).hidden(
            range(len(scored))
        )
        return {index: (h, scored[index][1]) for index, h in zip(scored, hidden, strict=True)}

    @torch.no_grad()
    def _reference_logp(self, documents: list[Document]) -> list[Tensor] | None:
        """The initial student's log-probability of each token, at the sampling temperature."""
        if self._reference is None:
            return None
        logp = []
        hidden = self._reference.for_documents(documents).hidden(range(len(documents)))
        for document, hidden_ND in zip(documents, hidden, strict=True):
            logits_NV = self._reference.head.logits(hidden_ND)
            logq_NV = (logits_NV / self.on_policy.temperature).log_softmax(-1)
            labels_N = torch.from_numpy(document.labels.astype(np.int64)).to(logq_NV.device)
            logp.append(logq_NV.gather(1, labels_N[:, None])[:, 0])
        return logp

    def _update(self, learning_rate: float, metrics: dict[str, float], documents: Sequence[Document]) -> None:
        """Clips and takes the optimizer step, unless loss or gradient is not finite; adds ``grad_norm``."""
        norm = self.clip().item()
        metrics["grad_norm"] = norm
        if not (math.isfinite(metrics["loss"]) and math.isfinite(norm)):
            self.optimizer.zero_grad()
            names = ", ".join(dict.fromkeys(document.id for document in documents))
            raise NonFiniteLossError(
                f"loss {metrics['loss']:.6g}, gradient norm {norm:.6g} on samples of the prompts {names}",
                hint="Lower the learning rate or on_policy.policy.clip_high; the last checkpoint is good.",
            )
        self.update(learning_rate)


def _teacher_format(objective: Objective, teacher: LMHead, shared: int) -> HiddenFormat | TopKFormat:
    """The form of a teacher's rows: its k likeliest ids and their tail, or (by default) all ids."""
    return TopKFormat(objective, shared) if objective.targets == "topk" else HiddenFormat(teacher)
