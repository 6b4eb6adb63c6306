"""The tokens with which a chat template ends the assistant's turn, and their place in a rendered text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillhouse.errors import ModelError

if TYPE_CHECKING:
    from stillhouse.models.types import RenderMessages

Turn = tuple[int, int, int]
"""A message's index in the conversation, and the span in the text that the assistant wrote for it."""

_PROBE = "\ufdd4"  # a noncharacter, which no template writes


@dataclass(frozen=True)
class EndMarks:
    """How a template ends the assistant's turn."""

    tokens: tuple[str, ...] = ()
    """The added tokens that end it, in order; empty where it ends with text or with nothing."""
    begin_next_turn: bool = False
    """Whether the token is the mark of the next turn's role (GLM), which follows only if there is a turn."""


def texts_after_answer(render: RenderMessages) -> tuple[str, str]:
    """The text that a template puts after an answer: at the end, and before another question.

    The second is empty where the template refuses a second question.

    Raises:
        ModelError: the template refuses a question and an answer.
    """
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}]
    at_end = render(turns).rpartition(_PROBE)[2]
    try:
        return at_end, render([*turns, turns[0]]).rpartition(_PROBE)[2]
    except ModelError:
        return at_end, ""


def end_marks(after_answer: tuple[str, str], added_tokens: Sequence[str]) -> EndMarks:
    """The tokens that end an answer, from what :func:`texts_after_answer` returns."""
    at_end, before_question = after_answer
    end = through_first_token(at_end, added_tokens)
    tokens = [token for token in added_tokens if end.endswith(token)][:1]
    if not tokens:
        mark = "" if end else _leading_token(before_question, added_tokens)
        return EndMarks((mark,), begin_next_turn=True) if mark else EndMarks()
    rest = at_end[len(end) :]
    while token := _leading_token(rest, added_tokens):  # Command R ends the response, then the turn
        tokens.append(token)
        rest = rest[len(token) :]
    return EndMarks(tuple(tokens))


def with_end_marks(
    text: str, turns: Sequence[Turn], marks: EndMarks, turn_tokens: Sequence[str]
) -> tuple[str, list[Turn]]:
    """The text and its turns, each with all end marks of its turn.

    Where the mark of the next turn's role ends a turn, one is added to the text after a last answer, so that
    the answer's end can be learned.

    Args:
        turn_tokens: the added tokens that delimit turns.
    """
    extended = []
    for index, start, end in turns:
        if marks.begin_next_turn:
            text += marks.tokens[0] if end == len(text) else ""
            end += len(_leading_token(text[end:], turn_tokens))
        for previous, token in itertools.pairwise(marks.tokens):
            if text[start:end].endswith(previous) and text.startswith(token, end):
                end += len(token)
        extended.append((index, start, end))
    return text, extended


def through_first_token(after: str, added_tokens: Iterable[str]) -> str:
    """``after`` up to and including its first added token; without one, its text before whitespace."""
    ends = [after.index(token) + len(token) for token in added_tokens if token in after]
    if ends:
        return after[: min(ends)]
    return re.match(r"\S*", after).group()  # pyright: ignore[reportOptionalMemberAccess]  (matches always)


def _leading_token(text: str, added_tokens: Iterable[str]) -> str:
    """The longest of ``added_tokens`` with which ``text`` begins, or an empty string."""
    return max((token for token in added_tokens if text.startswith(token)), key=len, default="")
