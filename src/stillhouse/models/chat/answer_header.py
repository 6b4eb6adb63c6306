"""Special tokens between a prompt and the text of its answer, such as gpt-oss's channels.

They disappear when special tokens are skipped, and would leave their names and the reasoning in the answer.
The template renders an answer with and without reasoning; what it writes before and between is the header.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillhouse.errors import ModelError

if TYPE_CHECKING:
    from stillhouse.models.types import RenderMessages

_PROBE, _THOUGHT_PROBE = "\ufdd4", "\ufdd5"  # noncharacters, which no template writes


@dataclass(frozen=True)
class AnswerHeader:
    """What a model writes around its reasoning and before its answer."""

    before_reasoning: str
    before_answer: str
    """After the reasoning."""
    without_reasoning: str
    """Before an answer without reasoning."""

    def split(self, text: str) -> tuple[str, str | None]:
        """The answer in ``text``, and its reasoning or None; reasoning that was cut off has no answer."""
        if self.without_reasoning and text.startswith(self.without_reasoning):
            return text[len(self.without_reasoning) :], None
        if not text.startswith(self.before_reasoning):
            return text, None
        reasoning, _, answer = text[len(self.before_reasoning) :].partition(self.before_answer)
        return answer.strip("\n"), reasoning.strip() or None


def find_answer_header(render: RenderMessages, special_tokens: Sequence[str]) -> AnswerHeader | None:
    """The header of a template's answers; None where it has no special tokens, or cannot be told."""
    question = {"role": "user", "content": "x"}
    answer = {"role": "assistant", "content": _PROBE}
    try:
        prompt = render([question], add_generation_prompt=True)
        plain = render([question, answer])
        thoughtful = render([question, answer | {"reasoning_content": _THOUGHT_PROBE}])
    except ModelError:
        return None
    if not (thoughtful.startswith(prompt) and plain.startswith(prompt)):
        return None
    before, found, rest = thoughtful[len(prompt) :].partition(_THOUGHT_PROBE)
    header = AnswerHeader(before, rest.partition(_PROBE)[0], plain[len(prompt) :].partition(_PROBE)[0])
    texts = (header.before_reasoning, header.before_answer, header.without_reasoning)
    has_special = any(token in text for text in texts for token in special_tokens)
    return header if found and has_special and header.before_reasoning and header.before_answer else None
