"""One answer in two tokenisations: which stretches of it both sides end a token with.

Teacher and student each read a conversation in their own template and tokens. What they have in common is
what the assistant said: it is found in both, byte by byte, and cut wherever a token ends on both sides at
once. Such a span has one token on each side, or several; a character cut into several tokens lies inside one
span.

Templates differ around the words of a message (`<think>` headings, blank space stripped), and what only one
side wrote is left out. The tokens that end an answer stand for each other however they are spelled.

Shapes: T tokens of a document, N rows (tokens that are learned), S spans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stillhouse.distill.data.documents import Document
from stillhouse.errors import TokenizerMismatchError
from stillhouse.models import token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillhouse.models import ChatTemplate, Message

Span = tuple[int, int, int, int]
"""The teacher's first token and how many, the student's first token and how many."""
Run = range
"""Tokens that the assistant wrote in one turn."""


class ChatTokenizer:
    """One side: how it tokenizes a conversation, and what its tokens stand for."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: ChatTemplate) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.token_bytes = token_bytes(tokenizer)
        self._ends = template.end_token_ids(tokenizer)

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], list[Run]]:
        """Token ids of the conversation, and the assistant's turns in it."""
        ids, written = self.template.encode(self.tokenizer, messages)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], written, [False]]).astype(np.int8)))
        return ids, [range(int(a), int(b)) for a, b in edges.reshape(-1, 2)]

    def ends_answer(self, number: int) -> bool:
        """Whether a token ends an answer."""
        return number in self._ends

    def end_id(self) -> int | None:
        """The token that the template ends an answer with; None where it ends with words or with nothing."""
        ids, turns = self.encode([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])
        return ids[turns[-1][-1]] if turns and self.ends_answer(ids[turns[-1][-1]]) else None


@dataclass(frozen=True, eq=False)
class AlignedDocuments:
    """The teacher's reading of the student's documents.

    Args:
        documents: what the teacher reads, one for each of the student's documents; only tokens that lie in a
            span are marked to be learned.
        spans_S4: for each document, int64 [S, 4]: the teacher's first row and how many, the student's first
            row and how many. Row r is the r-th learned token of the document of that side.
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
    shown: Callable[[list[Message]], list[Message]] | None = None,
) -> AlignedDocuments:
    """Aligns what the assistant wrote in each of ``documents`` with the teacher's reading of it.

    Args:
        rows: the corpus rows that ``documents`` were made from, in the same order; some may have been
        dropped.
        documents: the student's, learned on the assistant's tokens.
        by: ``spans``, or ``tokens``: the n-th token of an answer with the n-th, whatever they say, as far as
            the shorter reading goes (Boizard et al. 2024).
        shown: the conversation as the teacher reads it, where it is shown more than the student.

    Raises:
        TokenizerMismatchError: not one span was found.
    """
    wanted = iter(documents)
    document = next(wanted, None)
    read, spans = [], []
    for row in rows:
        if document is None:
            break
        if str(row["id"]) != document.id:
            continue
        messages = [{k: v for k, v in message.items() if v is not None} for message in row["messages"]]
        heard = messages if shown is None else shown(messages)
        teacher_document, found = _align(messages, heard, document, teacher, student, by)
        read.append(teacher_document)
        spans.append(found)
        document = next(wanted, None)
    assert len(read) == len(documents), "the documents were made from other rows"
    return AlignedDocuments(read, spans, _facts(documents, spans))


def _facts(documents: Sequence[Document], spans: Sequence[np.ndarray]) -> dict[str, Any]:
    together = np.concatenate([*spans, np.zeros((0, 4), dtype=np.int64)])
    if not len(together):
        raise TokenizerMismatchError(
            "nothing that the assistant wrote could be found in both the teacher's and the student's reading",
            hint="Look at the two chat templates, or learn from the text: objective.kind=cross_entropy.",
        )
    counted = sum(document.counted for document in documents)
    return {
        "spans": len(together),
        "teacher_tokens_per_span": round(float(together[:, 1].mean()), 3),
        "student_tokens_per_span": round(float(together[:, 3].mean()), 3),
        "aligned_share": round(float(together[:, 3].sum()) / counted, 4),
    }


def _align(
    messages: Sequence[Message],
    heard: Sequence[Message],
    document: Document,
    teacher: ChatTokenizer,
    student: ChatTokenizer,
    by: str,
) -> tuple[Document, np.ndarray]:
    """The teacher's document, and the spans as rows, int64 [S, 4]."""
    teacher_ids, teacher_turns = teacher.encode(heard)
    student_ids, student_turns = student.encode(messages)
    assert np.array_equal(document.ids, student_ids[: len(document)]), "the document was made in another way"
    said = [message for message in messages if message.get("role") == "assistant"]
    spans: list[Span] = []
    # From the last turn back: a template may leave out the thoughts of earlier ones, and then their turns,
    # and what only the teacher is shown stands first.
    turns = zip(reversed(said), reversed(teacher_turns), reversed(student_turns), strict=False)
    for message, teacher_turn, student_turn in reversed(list(turns)):
        if by == "tokens":
            together = zip(teacher_turn, student_turn, strict=False)
            spans += [(t, 1, s, 1) for t, s in together]
        else:
            spans += _turn_spans(
                message, (teacher, teacher_ids, teacher_turn), (student, student_ids, student_turn)
            )
    # Token 0 is predicted by nothing; what the student's document was cut off is not learned.
    inside = [s for s in spans if s[0] > 0 and s[2] > 0 and s[2] + s[3] <= len(document)]
    return _as_rows(document, teacher_ids, inside)


def _as_rows(
    document: Document, teacher_ids: Sequence[int], spans: list[Span]
) -> tuple[Document, np.ndarray]:
    used = max((t + count for t, count, *_ in spans), default=1)
    learned = np.zeros(used, dtype=bool)
    for t, count, *_ in spans:
        learned[t : t + count] = True
    read = Document(document.id, np.asarray(teacher_ids[:used], dtype=np.int32), learned)
    teacher_row, student_row = (
        np.cumsum(learned) - 1,
        np.cumsum(document.loss & (np.arange(len(document)) > 0)) - 1,
    )
    found = [(teacher_row[t], many, student_row[s], few) for t, many, s, few in spans]
    return read, np.array(found, dtype=np.int64).reshape(-1, 4)


TokenizedTurn = tuple[ChatTokenizer, list[int], Run]


def _turn_spans(message: Message, teacher: TokenizedTurn, student: TokenizedTurn) -> Iterator[Span]:
    """The spans of one turn, in order."""
    end = None
    last = teacher[2][-1], student[2][-1]
    if teacher[0].ends_answer(teacher[1][last[0]]) and student[0].ends_answer(student[1][last[1]]):
        end = (last[0], 1, last[1], 1)
        teacher, student = ((reader, ids, run[:-1]) for reader, ids, run in (teacher, student))
    ours, theirs = _TurnText(*teacher), _TurnText(*student)
    for a, b, length in _common(message, ours.text, theirs.text):
        shared = sorted(ours.cuts(a, length) & theirs.cuts(b, length))
        for start, stop in pairwise(shared):
            first, many = ours.tokens(a + start, a + stop)
            student_first, few = theirs.tokens(b + start, b + stop)
            yield first, many, student_first, few
    if end:
        yield end


class _TurnText:
    """The bytes of a turn, and where its tokens begin."""

    def __init__(self, reader: ChatTokenizer, ids: Sequence[int], turn: Run) -> None:
        pieces = [reader.token_bytes[ids[t]] or b"" for t in turn]
        self.text = b"".join(pieces)
        self._turn = turn
        self._starts = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces], dtype=np.int64)])

    def cuts(self, start: int, length: int) -> set[int]:
        """Offsets from ``start`` at which a token begins or the text ends, as far as ``length``."""
        inside = self._starts[(self._starts >= start) & (self._starts <= start + length)]
        return set((inside - start).tolist())

    def tokens(self, start: int, stop: int) -> tuple[int, int]:
        """The first token of the bytes from ``start`` to ``stop``, and how many there are."""
        first, last = np.searchsorted(self._starts, [start, stop])
        return self._turn[int(first)], int(last - first)


def _common(message: Message, a: bytes, b: bytes) -> Iterator[tuple[int, int, int]]:
    """Stretches that are the same in ``a`` and ``b``: where each begins, and how long it is, in order.

    Each holds thoughts or words of the message, and goes on to both sides as far as the texts agree.
    """
    said = [str(message.get(key) or "").strip().encode() for key in ("reasoning_content", "content")]
    from_a = from_b = 0
    for words in filter(None, said):
        at_a, at_b = a.find(words, from_a), b.find(words, from_b)
        if at_a < 0 or at_b < 0:
            continue
        before = _agreement(a[from_a:at_a][::-1], b[from_b:at_b][::-1])
        after = _agreement(a[at_a + len(words) :], b[at_b + len(words) :])
        yield at_a - before, at_b - before, before + len(words) + after
        from_a, from_b = at_a + len(words) + after, at_b + len(words) + after


def _agreement(a: bytes, b: bytes) -> int:
    """Length of the common prefix."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
