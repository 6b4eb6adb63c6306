"""What tests of several packages need: a teacher of a few thousand weights, and questions for it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported: one thread in each of several processes is quicker than several threads in one,
# whose small products wait for each other.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does, for the forkserver too
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it; output is then wrapped as on a terminal
os.environ.pop("STILLHOUSE_API_KEY", None)  # servers of tests require the key that a test gives them

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a shell, which makes us and our children deaf to ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing on a machine that other work shares.
settings.register_profile("stillhouse", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("stillhouse")

MOST_PROCESSES = 8
HEAVIEST = ("tests/system", "tests/serve", "tests/trace", "tests/export", "tests/models")
"""Folders that take most of the time."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process for each core, but none beside this one where files are named or a debugger is wanted."""
    named = config.invocation_params.args
    files = [argument for argument in named if ".py" in str(argument)]
    if files or config.option.usepdb or config.option.capture == "no":
        return 0
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest first, so that no worker is left alone with a long test at the end."""

    def rank(item: pytest.Item) -> tuple[bool, int]:
        folder = item.nodeid.rpartition("/")[0]
        heavy = [number for number, name in enumerate(HEAVIEST) if folder.startswith(name)]
        return item.get_closest_marker("slow") is None, heavy[0] if heavy else len(HEAVIEST)

    items.sort(key=rank)  # stable: files stay together, and so do the fixtures that they share


CHATML = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
WORDS = (
    "the still takes a large spirit apart and keeps what matters so that a small model learns from it "
    "every question has an answer and some answers are right while others only sound as if they were"
).split()


def make_tiny_teacher(directory: Path, *, hidden: int = 32, layers: int = 4, seed: int = 0) -> Path:
    """A random Llama with a real byte-level BPE tokenizer and a ChatML template, as a directory."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    fast.chat_template = CHATML
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    return make_tiny_teacher(tmp_path_factory.mktemp("tiny") / "teacher")


@pytest.fixture(scope="session")
def questions(tmp_path_factory) -> Path:
    """Forty short questions, each different from the first word on."""
    path = tmp_path_factory.mktemp("prompts") / "questions.jsonl"
    lines = [
        {"prompt": f"{number} {' '.join(WORDS[(number * 7 + k) % len(WORDS)] for k in range(5))}?"}
        for number in range(40)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
