"""A student while it learns from its own samples: the step from a round of samples to changed weights.

Decides nothing about order, rates, checkpoints or stopping; :mod:`.on_policy` does.

Shapes: N tokens of a pass that the student wrote, D hidden size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.distill.data.batches import Step
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

    from stillhouse.distill.on_policy.loop import OffPolicyData


Thought = dict[int, tuple[Tensor, float]]
"""A teacher's hidden states on a sample, [N, D], and its weight there, by the sample's place in the round."""


class OnPolicyLearner(Learner):
    """The student, its teachers and its reference, ready to learn from rounds of samples.

    Args:
        model: float32, on its device.
        teachers: by number, each run on the samples that it reads; none where the reward alone teaches.
        off_policy: corpus rows for rounds that learn from those.
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
        self._kinds = [_kind(objective, teacher.head, min(sizes)) for teacher in self._teachers]
        self._shared = min(sizes)
        self._reference = None
        if settings.reward and settings.policy.reference_kl:
            start = copy.deepcopy(model).requires_grad_(False)
            self._reference = ForwardPass(start, [], dtype)

    def learn(self, samples: RolloutBatch, rates: Sequence[float], kept: float = 1.0) -> dict[str, Any]:
        """One optimizer step for each of ``rates``, each on its share of the groups; the round's metrics.

        Args:
            kept: the share of the round's groups that these are, where those without signal were left out.
        """
        policy = self.on_policy.policy
        advantages_GS = group_advantages(samples.rewards_GS, policy.normalise)
        documents = samples.documents()
        thoughts = [self._thought(teacher, samples.read_by(n)) for n, teacher in enumerate(self._teachers)]
        references = self._reference_logp(documents)
        groups, size = advantages_GS.shape
        found: list[dict[str, float]] = []
        for share, rate in zip(np.array_split(np.arange(groups), len(rates)), rates, strict=True):
            members = [int(g) * size + s for g in share for s in range(size)]
            if members:
                found.append(
                    self._step(
                        members, samples, documents, advantages_GS.flatten(), thoughts, references, kept
                    )
                )
                self._update(rate, found[-1], documents)
        return {key: float(np.mean([one[key] for one in found])) for key in found[0]}

    def _step(
        self,
        members: Sequence[int],
        samples: RolloutBatch,
        documents: Sequence[Document],
        advantages: Tensor,
        thoughts: list[Thought],
        references: list[Tensor] | None,
        kept: float,
    ) -> dict[str, float]:
        """Adds up the gradient over the samples ``members``; returns what was measured."""
        settings = self.on_policy
        lengths = [documents[i].counted for i in members]
        weights = token_weights(lengths, settings.policy.aggregate, settings.max_tokens, kept)
        weight = dict(zip(members, weights, strict=True))
        loss = 0.0
        measured: dict[str, list[Tensor]] = {}
        with self.training():
            for indices in split_into_passes(members, documents, self.settings.micro_tokens, self.layout):
                batch = collate([documents[i] for i in indices], self.layout, self.device)
                hidden_ND = hidden_states(self.working.module.get_decoder(), batch)
                counts = torch.tensor([documents[i].counted for i in indices])

                def spread(values: Sequence[float], counts: Tensor = counts) -> Tensor:
                    return torch.tensor(values).repeat_interleave(counts).to(self.device)

                rows = PolicyRows(
                    settings.policy,
                    settings.temperature,
                    settings.reward,
                    torch.tensor([x for i in indices for x in samples.rollouts[i].logp]).to(self.device),
                    spread([advantages[i].item() for i in indices]),
                    None
                    if references is None
                    else torch.cat([references[i] for i in indices]).to(self.device),
                )
                part = fused_loss(
                    hidden_ND,
                    self.head,
                    batch.labels_N,
                    self._teacher_rows(thoughts, indices, counts.tolist()),
                    self.objective,
                    weights_N=spread([weight[i] for i in indices]),
                    policy=rows,
                    teacher_weight=settings.teacher,
                )
                part.backward()
                loss += part.item()
                for name, values in rows.measured.items():
                    measured.setdefault(name, []).extend(values)
        return {"loss": loss, **{name: torch.cat(values).mean().item() for name, values in measured.items()}}

    def _update(self, rate: float, found: dict[str, float], documents: Sequence[Document]) -> None:
        norm = self.clip().item()
        found["grad_norm"] = norm
        if not (math.isfinite(found["loss"]) and math.isfinite(norm)):
            self.optimizer.zero_grad()
            names = ", ".join(dict.fromkeys(document.id for document in documents))
            raise NonFiniteLossError(
                f"loss {found['loss']:.6g}, gradient norm {norm:.6g} on samples of the prompts {names}",
                hint="Lower the learning rate or on_policy.policy.clip_high; the last checkpoint is good.",
            )
        self.update(rate)

    def learn_corpus(self, number: int, seed: int, rates: Sequence[float]) -> dict[str, Any]:
        """One round on corpus rows instead of samples: about as many rows as a round has samples."""
        assert self.off_policy is not None
        rng = np.random.default_rng([seed, number, 11])
        wanted = self.on_policy.prompts * self.on_policy.samples
        found: dict[str, float] = {}
        counts = {"read": 0, "learned": 0}
        for rate in rates:
            chosen = rng.choice(len(self.documents), min(wanted, len(self.documents)), replace=False)
            step = Step(0, 0, tuple(int(i) for i in chosen), sum(self.lengths[i] for i in chosen))
            with self.training():
                found["loss"] = sum(part.item() for _, part in self.backward(step))
            self._update(rate, found, [self.documents[i] for i in step.documents])
            counts["read"] += step.tokens
            counts["learned"] += sum(len(self.documents[i].predicting) for i in step.documents)
        return {**found, **counts, "tokens": 0, "off_policy": 1}

    def _thought(self, teacher: ForwardPass, read: dict[int, tuple[Document, float]]) -> Thought:
        """A teacher's hidden states on the samples that it reads."""
        hidden = teacher.for_documents([document for document, _ in read.values()]).hidden(range(len(read)))
        return {place: (h, read[place][1]) for place, h in zip(read, hidden, strict=True)}

    def _teacher_rows(
        self, thoughts: list[Thought], indices: Sequence[int], counts: Sequence[int]
    ) -> TeacherRows | None:
        """What the teachers say of the samples ``indices``, which have ``counts`` tokens."""
        starts = np.cumsum([0, *counts])
        said = []
        for thought, teacher, kind in zip(thoughts, self._teachers, self._kinds, strict=True):
            own = [number for number, i in enumerate(indices) if i in thought]
            if own:
                hidden_ND = torch.cat([thought[indices[n]][0] for n in own]).to(self.device)
                where = np.concatenate([np.arange(starts[n], starts[n + 1]) for n in own])
                weight = thought[indices[own[0]]][1]
                where_N = torch.from_numpy(where).to(self.device)
                said.append((kind.rows(hidden_ND, teacher.head), where_N, weight))
        if len(thoughts) < 2:
            return said[0][0] if said else None
        return join_rows(said, int(starts[-1]), self._shared)

    def _hidden(self, model: ForwardPass | None, documents: list[Document]) -> list[Tensor] | None:
        return None if model is None else model.for_documents(documents).hidden(range(len(documents)))

    @torch.no_grad()
    def _reference_logp(self, documents: list[Document]) -> list[Tensor] | None:
        """What the student at the start would have given each token, at the sampling temperature."""
        hidden = self._hidden(self._reference, documents)
        if hidden is None or self._reference is None:
            return None
        head = self._reference.head
        found = []
        for document, hidden_ND in zip(documents, hidden, strict=True):
            logq_NV = (head.logits(hidden_ND) / self.on_policy.temperature).log_softmax(-1)
            labels_N = torch.from_numpy(document.labels.astype(np.int64)).to(logq_NV.device)
            found.append(logq_NV.gather(1, labels_N[:, None])[:, 0])
        return found


def _kind(objective: Objective, teacher: LMHead, shared: int) -> HiddenFormat | TopKFormat:
    """How a teacher's rows are told: its k likeliest ids and their tail, or (the default) all of them."""
    return TopKFormat(objective, shared) if objective.targets == "topk" else HiddenFormat(teacher)
