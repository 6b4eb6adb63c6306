"""Small transformers with known parents: independent, fine-tuned, disguised, distilled."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from conftest import CHATML, WORDS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.models import ChatTemplate, Weights

VOCABULARY = ["<|im_start|>", "<|im_end|>", "[UNK]", *dict.fromkeys(WORDS), *"0123456789"]


def tokenizer() -> PreTrainedTokenizerFast:
    """One id a word."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<|im_start|>", eos_token="<|im_end|>")


def texts(seed: int, n: int = 64, length: int = 24) -> list[str]:
    """Sentences of a fixed Markov chain over the words: something that a small model can learn."""
    generator = torch.Generator().manual_seed(7)
    chain = torch.softmax(3 * torch.randn(len(VOCABULARY), len(VOCABULARY), generator=generator), -1)
    generator.manual_seed(seed)
    state, columns = torch.randint(3, len(VOCABULARY), (n,), generator=generator), []
    for _ in range(length):
        columns.append(state)
        state = torch.multinomial(chain[state], 1, generator=generator)[:, 0]
    return [" ".join(VOCABULARY[i] for i in row) for row in torch.stack(columns, 1).tolist()]


def new_model(seed: int, *, hidden: int = 16, units: int = 24, layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=hidden,
        intermediate_size=units,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


def trained(
    model: LlamaForCausalLM,
    words: list[str],
    *,
    steps: int = 40,
    rate: float = 1e-2,
    teacher: LlamaForCausalLM | None = None,
    in_order: bool = False,
    seed: int = 0,
) -> LlamaForCausalLM:
    """A copy of ``model`` after Adam on ``words``, or on the teacher's distributions over them."""
    model = copy.deepcopy(model).train()
    ids = torch.tensor([tokenizer().encode(text) for text in words])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for step in range(steps):
        rows = (
            torch.arange(step * 4, step * 4 + 4)
            if in_order
            else torch.randint(len(ids), (16,), generator=generator)
        )
        batch = ids[rows % len(ids)]
        logits = model(batch).logits[:, :-1].flatten(0, 1)
        if teacher is None:
            loss = F.cross_entropy(logits, batch[:, 1:].flatten())
        else:
            with torch.no_grad():
                wanted = teacher(batch).logits[:, :-1].flatten(0, 1).softmax(-1)
            loss = F.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def disguised(
    model: LlamaForCausalLM, seed: int, *, units: bool = True, signs: bool = False, channels: bool = False
) -> LlamaForCausalLM:
    """The same function with its units permuted, its units' signs flipped, or its channels permuted."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.model.layers:
        gate, up, down = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight, layer.mlp.down_proj.weight
        if units:
            order = torch.randperm(len(up), generator=generator)
            gate.copy_(gate[order].clone())
            up.copy_(up[order].clone())
            down.copy_(down[:, order].clone())
        if signs:
            flips = torch.randint(2, (len(up),), generator=generator) * 2.0 - 1
            up.mul_(flips[:, None])
            down.mul_(flips)
    if channels:
        order = torch.randperm(model.config.hidden_size, generator=generator)
        for name, weight in model.named_parameters():
            if weight.dim() == 1 or name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.copy_(weight[order].clone())
            else:
                weight.copy_(weight[:, order].clone())
    return model


def weights(model: LlamaForCausalLM, words: PreTrainedTokenizerFast | None = None) -> Weights:
    return Weights(str(Path("tiny")), model, words or tokenizer(), ChatTemplate(CHATML, {}), "0" * 64)
