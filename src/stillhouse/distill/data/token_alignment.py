"""Alignment of two tokenisations of one answer: the shortest spans that end a token on both sides.

Teacher and student each read a conversation in their own template and tokens. They share the assistant's
messages: these are located in both, byte by byte, and split wherever a token ends on both sides at once. Such
a span has one or several tokens on each side; a character split into several tokens lies inside one span.

Templates differ around the text of a message (`<think>` headings, stripped white space); text that only one
side has is left out. The tokens that end an answer correspond to each other however they are spelled.

Shapes: T tokens of a document, N rows (tokens that are learned), S spans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stillhouse.distill.data.documents import Document, messages_of
from stillhouse.errors import TokenizerMismatchError
from stillhouse.models import token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillhouse.models import ChatTemplate, Message

Span = tuple[int, int, int, int]
"""The teacher's first token and its number of tokens, the student's first token and its number of tokens."""
TokenRange = range
"""Positions of the tokens of one assistant turn."""


class ChatTokenizer:
    """A tokenizer with its chat template, and the bytes of its tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: ChatTemplate) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.token_bytes = token_bytes(tokenizer)
        self._ends = template.end_token_ids(tokenizer)

    def encode(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[list[int], dict[int, TokenRange]]:
        """Token ids of the conversation, and the positions of each learned turn by its message's index."""
        return self.template.encode_turns(self.tokenizer, messages, tools=tools)

    def ends_answer(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return token in self._ends

    def end_id(self) -> int | None:
        """The token with which the template ends an answer; None if it ends one with text or with nothing."""
        ids, turns = self.encode([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])
        last = ids[turns[1][-1]] if turns.get(1) else -1
        return last if self.ends_answer(last) else None


@dataclass(frozen=True, eq=False)
class AlignedDocuments:
    """The teacher's documents for the student's documents, and the spans that align them.

    Args:
        documents: the teacher's, one for each of the student's documents; only tokens in a span are learned.
        spans_S4: for each document, int64 [S, 4]: the teacher's first row and its number of rows, the
            student's first row and its number of rows. Row r is the r-th learned token of that side's
            document.
        facts: how much was aligned, as JSON values.
    """

    documents: list[Document]
    spans_S4: list[np.ndarray]
    facts: dict[str, Any]


def align_documents(
    rows: Iterable[Mapping[str, Any]],
    documents: Sequence[Document],
    *,
    teacher: ChatTokenizer,
    student: ChatTokenizer,
    by: Literal["tokens", "spans"] = "spans",
    teacher_view: Callable[[list[Message]], list[Message]] | None = None,
) -> AlignedDocuments:
    """Aligns the assistant's messages in each of ``documents`` with the teacher's tokenisation of them.

    Args:
        rows: the corpus rows that ``documents`` were made from, in the same order; some may have been
            dropped.
        documents: the student's, learned on the assistant's tokens.
        by: ``spans``, or ``tokens``: the n-th token of an answer with the n-th, whatever their text, up to
            the length of the shorter side (Boizard et al. 2024).
        teacher_view: returns the conversation as the teacher reads it, if it has a context of its own.

    Raises:
        TokenizerMismatchError: there is no span at all.
    """
    remaining = iter(documents)
    document = next(remaining, None)
    teacher_documents, spans = [], []
    for row in rows:
        if document is None:
            break
        if str(row["id"]) != document.id:
            continue
        messages = messages_of(row)
        teacher_messages = messages if teacher_view is None else teacher_view(messages)
        teacher_document, spans_S4 = _align(
            messages, teacher_messages, document, teacher, student, by, row.get("tools")
        )
        teacher_documents.append(teacher_document)
        spans.append(spans_S4)
        document = next(remaining, None)
    assert len(teacher_documents) == len(documents), "the documents were made from other rows"
    return AlignedDocuments(teacher_documents, spans, _facts(documents, spans))


def _facts(documents: Sequence[Document], spans: Sequence[np.ndarray]) -> dict[str, Any]:
    all_spans = np.concatenate([*spans, np.zeros((0, 4), dtype=np.int64)])
    if not len(all_spans):
        raise TokenizerMismatchError(
            "no text of the assistant is in both the teacher's and the student's tokens",
            hint="Compare the two chat templates, or learn from the text: objective.kind=cross_entropy.",
        )
    counted = sum(document.counted for document in documents)
    return {
        "spans": len(all_spans),
        "teacher_tokens_per_span": round(float(all_spans[:, 1].mean()), 3),
        "student_tokens_per_span": round(float(all_spans[:, 3].mean()), 3),
        "aligned_share": round(float(all_spans[:, 3].sum()) / counted, 4),
    }


def _align(
    messages: Sequence[Message],
    teacher_messages: Sequence[Message],
    document: Document,
    teacher: ChatTokenizer,
    student: ChatTokenizer,
    by: str,
    tools: Sequence[Mapping[str, Any]] | None,
) -> tuple[Document, np.ndarray]:
    """The teacher's document, and the spans as rows, int64 [S, 4]."""
    teacher_ids, teacher_turns = teacher.encode(teacher_messages, tools)
    student_ids, student_turns = student.encode(messages, tools)
    assert np.array_equal(document.ids, student_ids[: len(document)]), "the document was made in another way"
    spans: list[Span] = []
    # The examples that only the teacher reads come first. A turn that one of the two templates makes context
    # (without its reasoning, say) has no counterpart.
    more = len(teacher_messages) - len(messages)
    for index, student_turn in student_turns.items():
        message, teacher_turn = messages[index], teacher_turns.get(index + more)
        if teacher_turn is None:
            continue
        if by == "tokens":
            spans += [(t, 1, s, 1) for t, s in zip(teacher_turn, student_turn, strict=False)]
        else:
            spans += _turn_spans(
                message, (teacher, teacher_ids, teacher_turn), (student, student_ids, student_turn)
            )
    # No position predicts token 0, and tokens beyond the end of a cut document are not learned.
    learnable = [s for s in spans if s[0] > 0 and s[2] > 0 and s[2] + s[3] <= len(document)]
    return _as_rows(document, teacher_ids, learnable)


def _as_rows(
    document: Document, teacher_ids: Sequence[int], spans: list[Span]
) -> tuple[Document, np.ndarray]:
    """The teacher's document with the spans' tokens marked, and the spans as numbers of rows, [S, 4]."""
    length = max((t + count for t, count, *_ in spans), default=1)
    learned = np.zeros(length, dtype=bool)
    for t, count, *_ in spans:
        learned[t : t + count] = True
    teacher_document = Document(document.id, np.asarray(teacher_ids[:length], dtype=np.int32), learned)
    teacher_row = np.cumsum(learned) - 1
    student_row = np.cumsum(document.loss & (np.arange(len(document)) > 0)) - 1
    rows = [(teacher_row[t], t_count, student_row[s], s_count) for t, t_count, s, s_count in spans]
    return teacher_document, np.array(rows, dtype=np.int64).reshape(-1, 4)


TokenizedTurn = tuple[ChatTokenizer, list[int], TokenRange]


def _turn_spans(message: Message, teacher: TokenizedTurn, student: TokenizedTurn) -> Iterator[Span]:
    """The spans of one turn, in order."""
    end = None
    last = teacher[2][-1], student[2][-1]
    if teacher[0].ends_answer(teacher[1][last[0]]) and student[0].ends_answer(student[1][last[1]]):
        end = (last[0], 1, last[1], 1)
        teacher, student = ((tokenizer, ids, turn[:-1]) for tokenizer, ids, turn in (teacher, student))
    teacher_text, student_text = _TurnText(*teacher), _TurnText(*student)
    for a, b, length in _common_text(message, teacher_text.text, student_text.text):
        shared = sorted(teacher_text.boundaries(a, length) & student_text.boundaries(b, length))
        for start, stop in pairwise(shared):
            yield *teacher_text.tokens(a + start, a + stop), *student_text.tokens(b + start, b + stop)
    if end:
        yield end


class _TurnText:
    """The bytes of a turn, and the offsets of its tokens."""

    def __init__(self, tokenizer: ChatTokenizer, ids: Sequence[int], turn: TokenRange) -> None:
        tokens = [tokenizer.token_bytes[ids[t]] or b"" for t in turn]
        self.text = b"".join(tokens)
        self._turn = turn
        self._starts = np.concatenate([[0], np.cumsum([len(token) for token in tokens], dtype=np.int64)])

    def boundaries(self, start: int, length: int) -> set[int]:
        """Offsets from ``start``, up to ``length``, at which a token begins or the text ends."""
        inside = self._starts[(self._starts >= start) & (self._starts <= start + length)]
        return set((inside - start).tolist())

    def tokens(self, start: int, stop: int) -> tuple[int, int]:
        """The first token of the bytes from ``start`` to ``stop``, and their number of tokens."""
        first, last = np.searchsorted(self._starts, [start, stop])
        return self._turn[int(first)], int(last - first)


def _common_text(message: Message, a: bytes, b: bytes) -> Iterator[tuple[int, int, int]]:
    """Ranges with the same bytes in ``a`` and ``b``, in order: the offset in each, and the length.

    Each contains the thoughts or the content of the message, and extends to both sides as far as the texts
    agree.
    """
    texts = [str(message.get(key) or "").strip().encode() for key in ("reasoning_content", "content")]
    from_a = from_b = 0
    for text in filter(None, texts):
        at_a, at_b = a.find(text, from_a), b.find(text, from_b)
        if at_a < 0 or at_b < 0:
            continue
        before = _common_prefix(a[from_a:at_a][::-1], b[from_b:at_b][::-1])
        after = _common_prefix(a[at_a + len(text) :], b[at_b + len(text) :])
        yield at_a - before, at_b - before, before + len(text) + after
        from_a, from_b = at_a + len(text) + after, at_b + len(text) + after


def _common_prefix(a: bytes, b: bytes) -> int:
    """Length of the common prefix."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
