"""Canaries and published versions in a transformer that really read them, byte by byte."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from stillhouse.trace.detectors import canaries, rephrasings
from stillhouse.trace.detectors.canaries import make_canaries
from stillhouse.trace.detectors.rephrasings import TextVersions, draw_version

KEY = bytes(range(16))


@dataclass
class Answer:
    tokens: int
    loglik: float


class Bytes:
    """A model of bytes that has read given texts."""

    def __init__(self, texts, steps, seed):
        torch.manual_seed(seed)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=128,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=128,
            )
        )
        ids, _ = self._ids(texts)
        optimizer = torch.optim.Adam(self.model.parameters(), 1e-2)
        for step in range(steps):
            batch = ids[torch.arange(step * 8, step * 8 + 8) % len(ids)]
            loss = F.cross_entropy(
                self.model(batch).logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), ignore_index=0
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def loglik(self, prompts, texts):
        ids, lengths = self._ids(texts)
        logps = self.model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        return [Answer(n - 1, float(row[: n - 1].sum())) for n, row in zip(lengths, logps, strict=True)]

    @staticmethod
    def _ids(texts):
        rows = [list(text.encode("ascii"))[:120] for text in texts]
        width = max(map(len, rows))
        return torch.tensor([row + [0] * (width - len(row)) for row in rows]), [len(row) for row in rows]


@pytest.fixture(scope="module")
def sets():
    return [one for account in ("acme", "placebo") for one in make_canaries(KEY, account, 12, decoys=9)]


def other_sentences(n):
    return [one.canary for one in make_canaries(bytes(16), "somebody else", n, decoys=1)]


def test_canaries_are_found_in_a_model_that_read_them_and_in_no_other(sets):
    told = [one.canary for one in sets if one.account == "acme"]
    common = other_sentences(36)
    reader, stranger = Bytes(common + told, 90, 0), Bytes(common, 90, 0)

    def p(model, account):
        rows = canaries.observe(model, [one for one in sets if one.account == account])
        return canaries.judge(rows, {}).p_value

    assert p(reader, "acme") < 1e-3
    assert p(reader, "placebo") > 0.01
    assert p(stranger, "acme") > 0.01


def test_the_published_versions_are_found_in_a_model_that_read_them_and_in_no_other(sets):
    given = [
        TextVersions(str(number), (one.canary, *one.decoys[:4]), draw_version(KEY, str(number), 5), KEY.hex())
        for number, one in enumerate(sets)
    ]
    published = [text.versions[text.published] for text in given]
    common = other_sentences(24)
    reader, stranger = Bytes(common + published, 90, 0), Bytes(common, 90, 0)

    def p(model):
        return rephrasings.judge(rephrasings.observe(model, given), {}).p_value

    assert p(reader) < 1e-3
    assert p(stranger) > 0.01
