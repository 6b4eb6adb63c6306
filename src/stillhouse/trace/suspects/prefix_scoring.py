"""Log-probabilities of many texts that share prompts: a delivered output and its resamples.

A prompt group is one prompt and its texts. Groups of similar length go through the model together: first all
but the end of their prompts, once each, then all texts after copies of the prompts' keys and values. The ends
of prompts that are longer than the shortest in the batch are read again with each text, so no position is
padded on the left and no mask is needed; no scored position sees the padding on the right. Logits exist for a
tile of tokens at a time.

Equal texts of a group are read once, so that their scores are equal to the last bit: a tie is a tie. The
order in which texts are read follows from their tokens, never from which was delivered.

Shapes: F groups, B texts of a batch, P shared prompt tokens, T tokens after them, N scored tokens, E hidden
size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.distill.loss.lm_head import lm_head_of
from stillhouse.models import rotation_switch

PASS_TOKENS = 4096
"""Tokens after the prompts in one pass, padding included."""
MIN_SHARED_PROMPT = 8
"""A prompt of fewer tokens is not worth a pass of its own."""
TILE_ENTRIES = 2**20
"""Logits that exist at once: 4 MB, which the processor's cache holds."""
TILE_TOKENS = 128
"""Fewest tokens of a tile: with fewer, reading the head's weights takes longer than multiplying by them."""
ACCELERATOR_SCALE = 32
"""Passes and tiles are this much larger on an accelerator, where the number of passes is the cost."""
LENGTH_BUCKET = 8
"""Prompts whose lengths differ by less than this may share a batch."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.1}
"""Largest mean difference in nats between shared and separate prompts."""

Ids = tuple[int, ...]


@dataclass(frozen=True)
class PromptGroup:
    """One prompt and its distinct texts, each with the indices of its jobs."""

    prompt: Ids
    texts: dict[Ids, list[int]]

    @property
    def width(self) -> int:
        """Tokens of its longest row: a text, and the part of the prompt that is read again with each."""
        reread = LENGTH_BUCKET if self.is_worth_sharing else len(self.prompt)
        return reread + max(map(len, self.texts))

    @property
    def is_worth_sharing(self) -> bool:
        return len(self.prompt) > MIN_SHARED_PROMPT and len(self.texts) > 1


class PrefixScorer:
    """Scores texts with one model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.head = lm_head_of(model)
        self._scale = 1 if model.device.type == "cpu" else ACCELERATOR_SCALE
        self._shares: bool | None = None
        """Whether shared prompts give the scores of separate prompts; None before the first comparison."""

    @torch.inference_mode()
    def token_logps(self, jobs: Sequence[tuple[Ids, Ids]]) -> list[np.ndarray]:
        """For each (prompt, text) the log-probabilities of the text's tokens in nats, float32.

        Without a prompt the first token follows nothing and is not scored.
        """
        logps_by_job: list[np.ndarray] = [np.zeros(0, np.float32)] * len(jobs)
        groups_by_prompt = group_by_prompt(jobs)
        batches = make_batches(groups_by_prompt, self._scale * PASS_TOKENS)
        if rotation_switch(self.model.config) is not None:  # one long text would rotate all of its batch
            batches = ([alone] for group in groups_by_prompt for alone in _split(group, 0))
        for groups in batches:
            for (group, text), logps in self._score_batch(groups):
                for job in group.texts[text]:
                    logps_by_job[job] = logps
        return logps_by_job

    def _score_batch(self, groups: Sequence[PromptGroup]) -> list[tuple[tuple[PromptGroup, Ids], np.ndarray]]:
        if not groups[0].is_worth_sharing:
            return self._read(groups, 0)
        # One token stays back: the hidden state before a text's first token comes from the second pass.
        shared = min(len(group.prompt) for group in groups) - 1
        if self._shares is None:
            self._shares = self._sharing_works(groups[:1], len(groups[0].prompt) - 1)
        return self._read(groups, shared if self._shares else 0)

    def _sharing_works(self, groups: Sequence[PromptGroup], shared: int) -> bool:
        """Whether the architecture's keys and values can be copied, found by comparing both ways."""
        try:
            with_sharing = self._read(groups, shared)
        except (AttributeError, NotImplementedError, TypeError, RuntimeError):
            return False
        without = self._read(groups, 0)
        difference = np.concatenate([a[1] - b[1] for a, b in zip(with_sharing, without, strict=True)])
        return bool(np.abs(difference).mean() <= TOLERANCE[self.model.dtype])

    def _read(
        self, groups: Sequence[PromptGroup], shared: int
    ) -> list[tuple[tuple[PromptGroup, Ids], np.ndarray]]:
        """One or two passes over a batch whose prompts have ``shared`` tokens read once."""
        device, decoder = self.model.device, self.model.get_decoder()
        members = [(number, text) for number, group in enumerate(groups) for text in sorted(group.texts)]
        rows = [[*groups[number].prompt[shared:], *text[:-1]] for number, text in members]
        width = max(1, *map(len, rows))
        ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
        for row, ids in enumerate(rows):
            ids_BT[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        cache = None
        if shared:
            prompts_FP = torch.tensor([group.prompt[:shared] for group in groups], device=device)
            cache = decoder(input_ids=prompts_FP, use_cache=True).past_key_values
            cache.batch_select_indices(torch.tensor([number for number, _ in members], device=device))
        output = decoder(input_ids=ids_BT.to(device), past_key_values=cache, use_cache=cache is not None)
        positions, labels, counts = [], [], []
        for row, (number, text) in enumerate(members):
            before = len(groups[number].prompt) - shared
            scored = text if before else text[1:]
            first = row * width + max(before, 1) - 1
            positions += range(first, first + len(scored))
            labels += scored
            counts.append(len(scored))
        hidden_NE = output.last_hidden_state.flatten(0, 1)[
            torch.tensor(positions, dtype=torch.long, device=device)
        ]
        logps_N = self._label_logps(hidden_NE, torch.tensor(labels, dtype=torch.long, device=device)).numpy()
        logps_by_member = np.split(logps_N, np.cumsum(counts)[:-1])
        return [
            ((groups[number], text), logps)
            for (number, text), logps in zip(members, logps_by_member, strict=True)
        ]

    def _label_logps(self, hidden_NE: Tensor, labels_N: Tensor) -> Tensor:
        """The log-probability of each label after its hidden state, float32 [N] on the CPU."""
        tile = max(TILE_TOKENS, self._scale * TILE_ENTRIES // self.head.vocab_size)
        tiles = [hidden_NE.new_zeros(0, dtype=torch.float32)]
        for hidden_nE, labels_n in zip(hidden_NE.split(tile), labels_N.split(tile), strict=True):
            logits_nV = self.head.logits(hidden_nE)
            tiles.append(logits_nV.gather(1, labels_n[:, None])[:, 0] - logits_nV.logsumexp(1))
        return torch.cat(tiles).float().cpu()


def group_by_prompt(jobs: Sequence[tuple[Ids, Ids]]) -> list[PromptGroup]:
    """The jobs by prompt, equal texts together; omits texts without a token that can be scored."""
    groups: dict[Ids, PromptGroup] = {}
    for index, (prompt, text) in enumerate(jobs):
        if len(text) > (not prompt):
            group = groups.setdefault(prompt, PromptGroup(prompt, {}))
            group.texts.setdefault(text, []).append(index)
    return list(groups.values())


def make_batches(groups: Sequence[PromptGroup], tokens: int) -> Iterator[list[PromptGroup]]:
    """Groups of similar length, up to so many tokens of texts in a batch; larger groups are split."""
    batch: list[PromptGroup] = []
    rows = 0
    split = [piece for group in groups for piece in _split(group, tokens)]
    # Widths rise within a length bucket, so the last group of a batch is its widest.
    for group in sorted(split, key=lambda piece: (_bucket(piece), piece.width, piece.prompt)):
        rows += len(group.texts)
        if batch and (_bucket(group) != _bucket(batch[0]) or rows * group.width > tokens):
            yield batch
            batch, rows = [], len(group.texts)
        batch.append(group)
    if batch:
        yield batch


def _split(group: PromptGroup, tokens: int) -> Iterator[PromptGroup]:
    """Splits a group into groups of up to so many tokens; without sharing, into single texts.

    So ten thousand answers to one prompt make no larger pass than others.
    """
    texts = sorted(group.texts)
    size = max(1, tokens // group.width) if group.is_worth_sharing else 1
    for start in range(0, len(texts), size):
        yield PromptGroup(group.prompt, {text: group.texts[text] for text in texts[start : start + size]})


def _bucket(group: PromptGroup) -> int:
    """Groups of one bucket may share a batch: prompts of similar length, or prompts that are not shared."""
    return 1 + len(group.prompt) // LENGTH_BUCKET if group.is_worth_sharing else 0
