"""Tasks, a tokenizer and random starting weights: everything that the miniature needs of a seed.

Three families of reasoning-gym whose answers need several steps: sums of chains of numbers, legs of animals,
one bits of a number. Each has three difficulties: one that is learned, a harder one of which only the "web"
of the base models has a little, and one that no model was ever trained on. A worked solution is written for
each task by a program; most documents of the web give the answer without one.

The same seed gives the same files, and two seeds share no draw. No question of a test or of reinforcement is
in any other file.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Kinds = dict[str, dict[str, int]]

LEARNED: Kinds = {
    "chain_sum": {"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 1},
    "leg_counting": {"min_animals": 2, "max_animals": 3, "max_instances": 9},
    "count_bits": {"min_n": 8, "max_n": 2047},
}
HARDER: Kinds = {
    "chain_sum": {"min_terms": 5, "max_terms": 5, "min_digits": 1, "max_digits": 1},
    "leg_counting": {"min_animals": 4, "max_animals": 4, "max_instances": 9},
    "count_bits": {"min_n": 2048, "max_n": 8191},
}
"""Longer chains, more animals, larger numbers: a little of the web, and of nothing else."""
LONGEST: Kinds = {
    "chain_sum": {"min_terms": 6, "max_terms": 7, "min_digits": 1, "max_digits": 1},
    "leg_counting": {"min_animals": 5, "max_animals": 6, "max_instances": 9},
    "count_bits": {"min_n": 8192, "max_n": 32767},
}
"""Longer than anything that a model was trained on."""
APART = 1_000_000
"""reasoning-gym draws task *i* of a set with the generator of seed + *i*: sets must begin this far apart."""

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|user|>' + message['content'] + '<|assistant|>' }}"
    "{% elif message['role'] == 'assistant' %}{% generation %}"
    "{% if message['reasoning_content'] %}"
    "{{ '<think>' + message['reasoning_content'] + '</think>' }}{% endif %}"
    "{{ message['content'] + '<|end|>' }}{% endgeneration %}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Sizes:
    """How much is made; ``settings`` of the study may change any of it."""

    web: int = 24_000
    """Documents for the base models."""
    worked: float = 0.3
    """Share of those that show the working."""
    harder_web: float = 0.1
    """Share of those that are about the harder tasks."""
    cold: int = 200
    """Worked examples for the cold start."""
    prompts: int = 2_400
    """Questions for reinforcement and for the corpus."""
    test: int = 90
    """Questions of each test, in equal parts of the three families."""
    vocabulary: int = 512
    teacher: tuple[int, int] = (192, 5)
    """Width and layers of the large model."""
    student: tuple[int, int] = (64, 4)
    """Width and layers of the small ones."""
    learned: Kinds = field(default_factory=lambda: LEARNED)
    """Families and their settings, in training and in the first test …"""
    harder: Kinds = field(default_factory=lambda: HARDER)
    """… in a part of the web and in the second …"""
    longest: Kinds = field(default_factory=lambda: LONGEST)
    """… and in the third alone."""


def make(directory: Path, seed: int, settings: dict[str, Any]) -> None:
    """Writes the corpora, the tests and the starting weights of one seed into ``directory``."""
    sizes = Sizes(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    )
    draw = random.Random(seed)
    seen: set[str] = set()
    first = 10 * APART * seed
    tests = {
        name: list(_tasks(kinds, sizes.test, first + number * APART, seen))
        for number, (name, kinds) in enumerate(
            [("learned", sizes.learned), ("harder", sizes.harder), ("longest", sizes.longest)]
        )
    }
    cold = list(_tasks(sizes.learned, sizes.cold, first + 3 * APART, seen))
    prompts = list(_tasks(sizes.learned, sizes.prompts, first + 4 * APART, seen))
    hard = round(sizes.harder_web * sizes.web)
    web = list(_tasks(sizes.learned, sizes.web - hard, first + 5 * APART, seen, repeat=True))
    web += _tasks(sizes.harder, hard, first + 6 * APART, seen, repeat=True)
    draw.shuffle(web)

    directory.mkdir(parents=True, exist_ok=True)
    for name, tasks in tests.items():
        _write(directory / f"{name}.jsonl", tasks)
    _write(directory / "prompts.jsonl", prompts)
    _write(directory / "cold.jsonl", [_exchange(task, worked=True) for task in cold])
    _write(directory / "web.jsonl", [_exchange(task, worked=draw.random() < sizes.worked) for task in web])
    (directory / "sizes.json").write_text(json.dumps(asdict(sizes)))
    tokenizer = _tokenizer(web[:4000], sizes.vocabulary)
    for name, family, (width, layers) in (
        ("start", "qwen3", sizes.teacher),
        ("start-llama", "llama", sizes.student),
        ("start-qwen", "qwen3", sizes.student),
    ):
        _weights(directory / name, family, width, layers, tokenizer, seed)


def _tasks(
    kinds: Kinds, count: int, seed: int, seen: set[str], repeat: bool = False
) -> Iterator[dict[str, Any]]:
    """``count`` tasks of the families in turn, none of whose questions is in ``seen``, with their solution.

    What is given is added to ``seen``, unless tasks may ``repeat``.
    """
    from reasoning_gym import create_dataset

    given = dict.fromkeys(kinds, 0)
    sets = {
        name: create_dataset(name, size=4 * count + 200, seed=seed, **settings)
        for name, settings in kinds.items()
    }
    for number in range(count):
        name = list(kinds)[number % len(kinds)]
        entry = sets[name][given[name]]
        while entry["question"] in seen:
            given[name] += 1
            assert given[name] < len(sets[name]), f"{name} has not enough different questions"
            entry = sets[name][given[name]]
        given[name] += 1
        if not repeat:
            seen.add(entry["question"])
        yield {
            "question": entry["question"],
            "answer": str(entry["answer"]),
            "dataset": name,
            "entry": json.dumps(entry),
            "working": WORKING[name](entry["metadata"]),
        }


def _exchange(task: dict[str, Any], *, worked: bool) -> dict[str, Any]:
    """A finished exchange: the answer, with its working or without."""
    answer = {"role": "assistant", "content": task["answer"]}
    if worked:
        answer["reasoning_content"] = task["working"]
    return {"messages": [{"role": "user", "content": task["question"]}, answer]}


def work_chain_sum(found: dict[str, Any]) -> str:
    """``57 + 87 - 70``: ``57+87=144 144-70=74``."""
    first, *rest = found["expression"].split()
    total, steps = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        after = total + int(term) if sign == "+" else total - int(term)
        steps.append(f"{total}{sign}{term}={after}")
        total = after
    return " ".join(steps)


def work_leg_counting(found: dict[str, Any]) -> str:
    """``3 cats, 2 ants``: ``3*4=12 2*6=12 12+12=24``."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    total, steps = 0, []
    for number, (animal, count) in enumerate(found["animals"].items()):
        legs = count * ANIMALS[animal]
        steps.append(f"{count}*{ANIMALS[animal]}={legs}")
        if number:
            steps.append(f"{total}+{legs}={total + legs}")
        total += legs
    return " ".join(steps)


def work_count_bits(found: dict[str, Any]) -> str:
    """``45``: halved again and again, with the odd ones counted: ``45,1 22,1 11,2 5,3 2,3 1,4``."""
    number, odd, steps = found["number"], 0, []
    while number:
        odd += number % 2
        steps.append(f"{number},{odd}")
        number //= 2
    return " ".join(steps)


WORKING = {"chain_sum": work_chain_sum, "leg_counting": work_leg_counting, "count_bits": work_count_bits}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({key: value for key, value in row.items() if key != "working"}) + "\n")


def _tokenizer(tasks: list[dict[str, Any]], vocabulary: int) -> Any:
    """Byte-level BPE that keeps digits and signs apart and makes recurring phrases one token."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|[-+*=,?:]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((task["question"] + task["working"] for task in tasks), trainer)
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _weights(directory: Path, family: str, width: int, layers: int, tokenizer: Any, seed: int) -> None:
    """A model with random weights of the family, saved with the tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family,
        hidden_size=width,
        intermediate_size=8 * width // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        head_dim=32,
        vocab_size=-(-len(tokenizer) // 64) * 64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
