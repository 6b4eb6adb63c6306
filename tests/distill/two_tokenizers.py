"""Chat tokenizers with byte-level BPE of different sizes and different template conventions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stillhouse.distill.data.token_alignment import ChatTokenizer
from stillhouse.models import ChatTemplate

TEXT = (
    "The still takes a large spirit apart and keeps what matters. Naïve café owners pay 1,234 € — 你好 世界 "
    "🙂 — for the thing that everything and nothing else is; unhappiness comes from thinking otherwise."
)
OTHER_TEXT = (
    "Nothing is otherwise than the owners think; happiness matters, and cafés in the world keep 12 or 34 "
    "things. 你好 🙂 a spirit still pays for what it takes."
)
CHATML = """\
{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TAGS = """\
{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}</s>{% endfor %}\
{% if add_generation_prompt %}[assistant]{% endif %}"""
THINKING = """\
{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}<think>
{{ m['reasoning_content'] or '' }}
</think>

{% endif %}{{ m['content'] }}<|stop|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""


def make_tokenizer(size: int, specials: list[str], *, text: str = TEXT) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most ``size`` tokens; the first of ``specials`` ends a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=1,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([text] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=specials[0])


def chatml_reader(size: int = 420, *, text: str = TEXT) -> ChatTokenizer:
    """Ends an answer with `<|im_end|>`."""
    return ChatTokenizer(
        make_tokenizer(size, ["<|im_end|>", "<|im_start|>"], text=text), ChatTemplate(CHATML)
    )


def tags_reader(size: int = 300, *, text: str = OTHER_TEXT) -> ChatTokenizer:
    """Ends an answer with `</s>`, and strips blank space around a message."""
    return ChatTokenizer(
        make_tokenizer(size, ["</s>", "[user]", "[assistant]"], text=text), ChatTemplate(TAGS)
    )


def thinking_reader(size: int = 340, *, text: str = OTHER_TEXT) -> ChatTokenizer:
    """Writes thoughts before the answer, and its headings even where there are none."""
    marks = ["<|stop|>", "<|user|>", "<|assistant|>"]
    return ChatTokenizer(make_tokenizer(size, marks, text=text), ChatTemplate(THINKING))


def exchanges_of(answers: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a corpus in which one question has these answers."""
    return [
        {
            "id": str(n),
            "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": answer}],
        }
        for n, answer in enumerate(answers)
    ]
