"""Two vocabularies made comparable: every token of either counts for one that both have.

A token that both have (the same bytes) counts for itself. Any other counts for the longest shared token that
it begins with: where the teacher has " unhappiness" and the student has to write " un" first, the teacher's
" unhappiness" is, to the student, a way to begin with " un". (Byte-Prefix Marginalization, arXiv:2607.22334,
assigns the teacher's tokens to the student's so; here both sides are added up.) So no probability is left
over on either side, and nothing is compared by rank.

What this does not repair: a token that both have may be used differently. A teacher that lacks " thing"
writes " th" before "ing"; a student that has it does not, and both have " th". And a tokenizer need not begin
a word with the longest token that fits. Counting for what the other tokenizer really begins a token with,
which costs an encoding of each, gave no better student (docs/lab-notes.md).

Shapes: V ids of one side, K shared tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from stillhouse.errors import TokenizerMismatchError
from stillhouse.models import token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, eq=False)
class SharedVocabulary:
    """What each id of either side counts for.

    Args:
        teacher_V: the shared token of each of the teacher's ids, int64, below ``size``; ``size`` itself for
        ids
            that count for none (rows of a padded embedding).
        student_V: the same for the student's ids.
        size: shared tokens, K.
    """

    teacher_V: Tensor
    student_V: Tensor
    size: int

    def resized(self, class_V: Tensor, vocab_size: int) -> Tensor:
        """``class_V`` for a head of ``vocab_size`` rows: rows beyond the tokenizer's ids count for none."""
        return F.pad(class_V[:vocab_size], (0, max(0, vocab_size - len(class_V))), value=self.size)


def join_vocabularies(
    teacher: PreTrainedTokenizerFast,
    student: PreTrainedTokenizerFast,
    ends: tuple[int | None, int | None] = (None, None),
) -> SharedVocabulary:
    """Compares two tokenizers.

    Args:
        ends: the teacher's and the student's id that ends an answer; they count as one token however they are
            spelled.

    Raises:
        TokenizerMismatchError: tokens cannot be read as bytes, or no token is in both.
    """
    teacher_bytes, student_bytes = token_bytes(teacher), token_bytes(student)
    if ends[0] is not None and ends[1] is not None:
        student_bytes[ends[1]] = teacher_bytes[ends[0]]
    both = {b for b in teacher_bytes if b} & {b for b in student_bytes if b}
    if not both:
        raise TokenizerMismatchError("teacher and student have no token in common")
    # In the order of the teacher's ids, so that equal vocabularies are compared id by id.
    number = {b: n for n, b in enumerate(dict.fromkeys(b for b in teacher_bytes if b in both))}

    def classes(side: Sequence[bytes | None]) -> Tensor:
        return torch.tensor([_counts_for(b or b"", number) for b in side])

    return SharedVocabulary(classes(teacher_bytes), classes(student_bytes), len(number))


def _counts_for(b: bytes, number: Mapping[bytes, int]) -> int:
    """The shared token that ``b`` counts for; one more than there are where it counts for none."""
    prefixes = (b[:length] for length in range(len(b), 0, -1))
    return next((number[prefix] for prefix in prefixes if prefix in number), len(number))
