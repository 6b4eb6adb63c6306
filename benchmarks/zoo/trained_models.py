"""Small transformers of three architectures and tokenizers, trained here on two cores.

Every model is stored under a hash of what it was made from (texts, sizes, seed, start), so that a second run
trains nothing.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging as transformers_logging

from stillhouse.distill.training.environment import choose_device
from stillhouse.hashing import sha256_json

from .vocabulary import byte_level_bpe

transformers_logging.disable_progress_bar()  # one bar for each model

LENGTH = 128  # tokens of a training row
ROWS = 32  # rows of a step


@dataclass(frozen=True)
class Kind:
    """An architecture, its size, and the size of its tokenizer."""

    architecture: str
    vocabulary: int
    hidden: int
    layers: int


KINDS = {
    "llama": Kind("llama", 1024, 128, 4),
    "qwen3": Kind("qwen3", 1536, 112, 4),
    "gpt2": Kind("gpt2", 2048, 96, 4),
}


@dataclass(frozen=True)
class TrainedModel:
    """One trained model in the store."""

    path: Path
    kind: str

    @property
    def model(self) -> PreTrainedModel:
        return _model(self.path)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return _tokenizer(self.path)


@cache
def _model(path: Path) -> PreTrainedModel:
    return _to_device(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)).eval()


def _to_device(model: PreTrainedModel) -> PreTrainedModel:
    """Moves the model to the accelerator, if there is one."""
    return model.to(choose_device("auto"))  # pyright: ignore[reportArgumentType]


@cache
def _tokenizer(path: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(path)


def train_model(
    store: Path,
    kind: str,
    texts: Sequence[str],
    *,
    tokens: int,
    seed: int,
    start: TrainedModel | None = None,
    like: TrainedModel | None = None,
) -> TrainedModel:
    """Trains a model of ``kind`` on ``tokens`` tokens of ``texts``, in several epochs if they have fewer.

    Args:
        start: the model to continue from, with its tokenizer; None trains from scratch, with a tokenizer
            trained on the same texts.
        like: the model whose tokenizer a model trained from scratch uses.
    """
    made_of = [asdict(KINDS[kind]), list(texts), tokens, seed, start.path.name if start else None, 1]
    if like:
        made_of.append(like.path.name)
    path = store / f"{kind}-{sha256_json(made_of)[:16]}"
    if not path.exists():
        source = start or like
        tokenizer = source.tokenizer if source else _train_tokenizer(texts, KINDS[kind].vocabulary)
        torch.manual_seed(seed)
        model = (
            AutoModelForCausalLM.from_pretrained(start.path, dtype=torch.float32)
            if start
            else _initialise(KINDS[kind], tokenizer)
        )
        _train(_to_device(model), tokenizer, texts, tokens, seed, rate=1.5e-3 if start else 4e-3)
        partial = Path(tempfile.mkdtemp(prefix=f"{path.name}.", dir=store))
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        try:
            partial.rename(path)
        except OSError:  # another process trained the same model
            shutil.rmtree(partial)
    return TrainedModel(path, kind)


def _train_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    inner = byte_level_bpe(list(texts)[:8000], size, ["<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", bos_token="<|end|>")


def _initialise(kind: Kind, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    size = len(tokenizer)
    heads = kind.hidden // 32 if kind.hidden % 32 == 0 else kind.hidden // 16
    common = {
        "vocab_size": size,
        "max_position_embeddings": 4 * LENGTH,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": True,
    }
    if kind.architecture == "gpt2":
        common["n_positions"] = common.pop("max_position_embeddings")
        return GPT2LMHeadModel(
            GPT2Config(
                n_embd=kind.hidden,
                n_layer=kind.layers,
                n_head=heads,
                resid_pdrop=0,
                embd_pdrop=0,
                attn_pdrop=0,
                **common,
            )
        )
    sizes = {
        "hidden_size": kind.hidden,
        "intermediate_size": 3 * kind.hidden,
        "num_hidden_layers": kind.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }
    if kind.architecture == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(head_dim=kind.hidden // heads, **sizes, **common))
    return LlamaForCausalLM(LlamaConfig(**sizes, **common))


def reading_order(lengths: Sequence[int], tokens: int, seed: int) -> list[int]:
    """Indices of the texts in the order of training, epoch after epoch, until there are enough tokens."""
    generator, order, count = torch.Generator().manual_seed(seed), [], 0
    while count < tokens + LENGTH:
        order += torch.randperm(len(lengths), generator=generator).tolist()
        count += sum(lengths)
    return order


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    tokens: int,
    seed: int,
    *,
    rate: float,
) -> None:
    """Cross-entropy on rows packed from the texts in random order; cosine decay to ``rate`` / 10."""
    ids = [[*row, 0] for row in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    order = reading_order([len(row) for row in ids], tokens, seed)
    packed = [token for index in order for token in ids[index]]
    packed_N = torch.tensor(packed, device=model.device)
    steps = max(1, tokens // (LENGTH * ROWS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    model.train()
    for step in range(steps):
        warmup = min(1.0, (step + 1) / 20)
        for group in optimizer.param_groups:
            group["lr"] = rate * warmup * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
        start = step * LENGTH * ROWS
        ids_BT = packed_N[start : start + LENGTH * ROWS].view(ROWS, LENGTH)
        loss = model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
