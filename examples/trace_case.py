"""Makes a case to practise `still trace` on, in about a minute: python examples/trace_case.py case

A small teacher is trained on this repository's own documentation. It answers two accounts, and every answer
is logged. Two models are trained on such answers in the same way: the `suspect` on a fifth of what the
account `acme` received, the `innocent` on as many answers to the same prompts that were never logged. Both
sound alike; a trace should find only the first. A third model, the `surrogate`, is our own and was trained on
answers of the teacher on purpose: it measures how well a trace finds the use of answers.

Writes teacher/, suspect/, innocent/, surrogate/, delivered.jsonl, surrogate.jsonl (the surrogate's training
answers), and a plan for each of the first two models.
"""

from __future__ import annotations

import asyncio
import copy
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models as tokenizer_models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.models import Request, Sampling, TorchModel, fingerprint_of, load_weights

OUTPUTS, PLACEBO_OUTPUTS, USED = 800, 200, 0.2
PRETRAIN_STEPS, FINE_TUNE_EPOCHS = 120, 10
CONTEXT, BATCH, LONGEST = 64, 16, 32
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<|ask|>{{ message['content'] }}"
    "{% else %}<|say|>{{ message['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|say|>{% endif %}"
)
PLAN = """\
name: {name}
question: Was {name} trained on the answers that acme was given?
suspect: {name}
teachers:
- name: ours
  model: teacher
  log: delivered.jsonl
  accounts: [acme]
  placebo_accounts: [zeta]
tests:
  radioactivity: null   # the teacher's answers carry no mark
  canaries: null        # and acme received none
  style: null
"""


def main(directory: Path) -> None:
    began, rng = time.monotonic(), random.Random(0)
    torch.manual_seed(0)
    directory.mkdir(parents=True)
    text = documentation()
    tokenizer = make_tokenizer(text)
    ids = torch.tensor(tokenizer.encode(text))
    save(pretrain(tokenizer, ids, seed=1), tokenizer, directory / "teacher")
    print(f"teacher trained, {time.monotonic() - began:.0f} s", file=sys.stderr)

    words = text.split()
    starts = rng.sample(range(len(words) - 8), OUTPUTS + PLACEBO_OUTPUTS)
    prompts = [" ".join(words[start : start + 6]) for start in starts]
    delivered = answers(directory / "teacher", prompts, seed=0)
    private = answers(directory / "teacher", prompts[:OUTPUTS], seed=1)
    write_log(directory, "delivered", prompts, delivered)
    print(f"{len(prompts):,} answers logged, {time.monotonic() - began:.0f} s", file=sys.stderr)

    used = rng.sample(range(OUTPUTS), int(USED * OUTPUTS))
    base = pretrain(tokenizer, ids, seed=2)
    for name, outputs in (("suspect", delivered), ("innocent", private)):
        student = copy.deepcopy(base)
        fine_tune(student, tokenizer, [(prompts[i], outputs[i]) for i in used])
        save(student, tokenizer, directory / name)
        (directory / f"{name}.yaml").write_text(PLAN.format(name=name))
    surrogate_prompts = rng.sample(prompts, len(used))
    surrogate_answers = answers(directory / "teacher", surrogate_prompts, seed=2)
    write_log(directory, "surrogate", surrogate_prompts, surrogate_answers)
    student = pretrain(tokenizer, ids, seed=3)
    fine_tune(student, tokenizer, list(zip(surrogate_prompts, surrogate_answers, strict=True)))
    save(student, tokenizer, directory / "surrogate")
    print(f"suspect, innocent and surrogate trained, {time.monotonic() - began:.0f} s", file=sys.stderr)


def documentation() -> str:
    root = Path(__file__).parent.parent
    files = [root / "README.md", root / "CHANGELOG.md", *sorted((root / "docs").glob("*.md"))]
    return "\n".join(file.read_text("utf-8") for file in files)


def make_tokenizer(text: str) -> PreTrainedTokenizerFast:
    inner = Tokenizer(tokenizer_models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=["<|ask|>", "<|say|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([text], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|ask|>", eos_token="<|end|>", pad_token="<|end|>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def pretrain(tokenizer: PreTrainedTokenizerFast, ids: torch.Tensor, *, seed: int) -> LlamaForCausalLM:
    """A small Llama trained on the documentation."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    rows = (torch.randint(len(ids) - CONTEXT, (BATCH,)) for _ in range(PRETRAIN_STEPS))
    train(model, (torch.stack([ids[start : start + CONTEXT] for start in row]) for row in rows), lr=2e-3)
    return model


def fine_tune(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]]
) -> None:
    """Trains the model on pairs of prompt and answer."""
    documents = [
        tokenizer.encode(f"<|ask|>{prompt}<|say|>{answer}<|end|>")[:CONTEXT] for prompt, answer in pairs
    ]
    batches = []
    for epoch in range(FINE_TUNE_EPOCHS):
        order = random.Random(epoch).sample(documents, len(documents))
        for start in range(0, len(order), BATCH):
            rows = [torch.tensor(row) for row in order[start : start + BATCH]]
            batches.append(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100))
    train(model, batches, lr=1e-3)


def train(model: LlamaForCausalLM, batches, *, lr: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    model.train()
    for labels_BT in batches:
        ids_BT = labels_BT.clamp(min=0)
        loss = model(input_ids=ids_BT, attention_mask=(labels_BT >= 0).long(), labels=labels_BT).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def answers(model: Path, prompts: Sequence[str], *, seed: int) -> list[str]:
    """The model's answer to each prompt at temperature 1."""
    requests = []
    for number, prompt in enumerate(prompts):
        sampling = Sampling(max_tokens=LONGEST, seed=seed * 10**6 + number)
        requests.append(Request(str(number), [{"role": "user", "content": prompt}], sampling))
    replies = asyncio.run(TorchModel(load_weights(str(model)), seed=seed).generate(requests))
    return [reply.text for reply in replies]  # pyright: ignore[reportAttributeAccessIssue]


def write_log(directory: Path, name: str, prompts: Sequence[str], delivered: Sequence[str]) -> None:
    teacher = fingerprint_of(str(directory / "teacher"))
    with open(directory / f"{name}.jsonl", "w", encoding="utf-8") as file:
        for number, (prompt, output) in enumerate(zip(prompts, delivered, strict=True)):
            row = {
                "id": f"{number:05d}",
                "account": "acme" if number < OUTPUTS else "zeta",
                "prompt": prompt,
                "output": output,
                "temperature": 1.0,
                "max_tokens": LONGEST,
                "teacher_hash": teacher,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
