"""Log-probabilities of many texts that share prompts: a delivered output and its resamples.

A family is one prompt and its texts. Families of like length go through the model together: first all but the
end of their prompts, once each, then all texts after copies of the prompts' keys and values. The ends of the
prompts that are longer than the shortest in the batch are read again with each text, so that no position is
padded on the left and no mask is needed; padding on the right is never looked at by what is scored. Logits
exist for a tile of tokens at a time.

Equal texts of a family are read once, so that they have equal scores to the last bit: a tie is a tie. The
order in which texts are read follows from their tokens, never from which was delivered.

Shapes: F families, B texts of a batch, P shared prompt tokens, T tokens after them, N scored tokens, E hidden
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

PASS_TOKENS = 4096
"""Tokens after the prompts in one pass, padding included."""
SHORTEST = 8
"""Prompts of fewer tokens are not worth a pass of their own."""
TILE_ENTRIES = 2**20
"""Logits that exist at once: 4 MB, which the processor's cache holds."""
TILE_TOKENS = 128
"""Tokens of a tile at least: with fewer, reading the head's weights takes longer than multiplying by them."""
WIDER = 32
"""By how much more of both an accelerator takes at once: it is the number of its passes that costs."""
ROUGH = 8
"""Prompts whose lengths differ by less than this may share a batch."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.1}
"""By how much, on average over tokens, shared and separate prompts may differ in nats."""

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """One prompt and its different texts, each with the places in the list of jobs that want it."""

    prompt: Ids
    texts: dict[Ids, list[int]]

    @property
    def width(self) -> int:
        """Tokens of its longest row: a text, and what of the prompt is read again with each."""
        again = ROUGH if self.is_worth_sharing else len(self.prompt)
        return again + max(map(len, self.texts))

    @property
    def is_worth_sharing(self) -> bool:
        return len(self.prompt) > SHORTEST and len(self.texts) > 1


class PrefixScorer:
    """Scores texts with one model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.head = lm_head_of(model)
        self._wider = 1 if model.device.type == "cpu" else WIDER
        self._shares: bool | None = None
        """Whether sharing prompts gives what separate prompts give; None until it was tried."""

    @torch.inference_mode()
    def token_logps(self, jobs: Sequence[tuple[Ids, Ids]]) -> list[np.ndarray]:
        """For each (prompt, text) the log-probabilities of the text's tokens in nats, float32.

        Without a prompt the first token follows nothing and is not scored.
        """
        found: list[np.ndarray] = [np.zeros(0, np.float32)] * len(jobs)
        for families in batches(families_of(jobs), self._wider * PASS_TOKENS):
            for (family, text), logps in self._batch(families):
                for place in family.texts[text]:
                    found[place] = logps
        return found

    def _batch(self, families: Sequence[Family]) -> list[tuple[tuple[Family, Ids], np.ndarray]]:
        if not families[0].is_worth_sharing:
            return self._read(families, 0)
        shared = min(len(family.prompt) for family in families) - 1
        if self._shares is None:
            self._shares = self._tried(families[:1], len(families[0].prompt) - 1)
        return self._read(families, shared if self._shares else 0)

    def _tried(self, families: Sequence[Family], shared: int) -> bool:
        """Whether an architecture's keys and values can be copied, found out by comparing."""
        try:
            ours = self._read(families, shared)
        except (AttributeError, NotImplementedError, TypeError, RuntimeError):
            return False
        theirs = self._read(families, 0)
        difference = np.concatenate([a[1] - b[1] for a, b in zip(ours, theirs, strict=True)])
        return bool(np.abs(difference).mean() <= TOLERANCE[self.model.dtype])

    def _read(self, families: Sequence[Family], shared: int) -> list[tuple[tuple[Family, Ids], np.ndarray]]:
        """One or two passes over a batch whose prompts have ``shared`` tokens read once."""
        device, decoder = self.model.device, self.model.get_decoder()
        members = [(number, text) for number, family in enumerate(families) for text in sorted(family.texts)]
        rows = [[*families[number].prompt[shared:], *text[:-1]] for number, text in members]
        width = max(1, *map(len, rows))
        ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
        for row, ids in enumerate(rows):
            ids_BT[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        cache = None
        if shared:
            prompts_FP = torch.tensor([family.prompt[:shared] for family in families], device=device)
            cache = decoder(input_ids=prompts_FP, use_cache=True).past_key_values
            cache.batch_select_indices(torch.tensor([number for number, _ in members], device=device))
        output = decoder(input_ids=ids_BT.to(device), past_key_values=cache, use_cache=cache is not None)
        places, labels, counts = [], [], []
        for row, (number, text) in enumerate(members):
            before = len(families[number].prompt) - shared
            scored = text if before else text[1:]
            first = row * width + max(before, 1) - 1
            places += range(first, first + len(scored))
            labels += scored
            counts.append(len(scored))
        hidden_NE = output.last_hidden_state.flatten(0, 1)[
            torch.tensor(places, dtype=torch.long, device=device)
        ]
        logps_N = self._label_logps(hidden_NE, torch.tensor(labels, dtype=torch.long, device=device)).numpy()
        parts = np.split(logps_N, np.cumsum(counts)[:-1])
        return [((families[number], text), part) for (number, text), part in zip(members, parts, strict=True)]

    def _label_logps(self, hidden_NE: Tensor, labels_N: Tensor) -> Tensor:
        """The log-probability of each label after its hidden state, float32 [N] on the CPU."""
        tile = max(TILE_TOKENS, self._wider * TILE_ENTRIES // self.head.vocab_size)
        parts = [hidden_NE.new_zeros(0, dtype=torch.float32)]
        for hidden_nE, labels_n in zip(hidden_NE.split(tile), labels_N.split(tile), strict=True):
            logits_nV = self.head.logits(hidden_nE)
            parts.append(logits_nV.gather(1, labels_n[:, None])[:, 0] - logits_nV.logsumexp(1))
        return torch.cat(parts).float().cpu()


def families_of(jobs: Sequence[tuple[Ids, Ids]]) -> list[Family]:
    """The jobs by prompt, equal texts together; texts without a token that can be scored are left out."""
    families: dict[Ids, Family] = {}
    for place, (prompt, text) in enumerate(jobs):
        if len(text) > (not prompt):
            family = families.setdefault(prompt, Family(prompt, {}))
            family.texts.setdefault(text, []).append(place)
    return list(families.values())


def _pieces(family: Family, tokens: int) -> Iterator[Family]:
    """What of a family is read together: texts after a prompt that nobody shares each alone, others in parts
    of up to so many tokens. So ten thousand answers to one prompt are no larger pass than others."""
    texts = sorted(family.texts)
    size = max(1, tokens // family.width) if family.is_worth_sharing else 1
    for start in range(0, len(texts), size):
        yield Family(family.prompt, {text: family.texts[text] for text in texts[start : start + size]})


def _kind(family: Family) -> int:
    """Families of one kind may share a batch: prompts of like length, or prompts that nobody shares."""
    return 1 + len(family.prompt) // ROUGH if family.is_worth_sharing else 0


def batches(families: Sequence[Family], tokens: int) -> Iterator[list[Family]]:
    """Families of like length, up to so many tokens of texts in a batch; larger ones in parts."""
    batch: list[Family] = []
    rows = 0
    pieces = [piece for family in families for piece in _pieces(family, tokens)]
    # Widths rise within a kind, so the last family of a batch is its widest.
    for family in sorted(pieces, key=lambda piece: (_kind(piece), piece.width, piece.prompt)):
        rows += len(family.texts)
        if batch and (_kind(family) != _kind(batch[0]) or rows * family.width > tokens):
            yield batch
            batch, rows = [], len(family.texts)
        batch.append(family)
    if batch:
        yield batch
