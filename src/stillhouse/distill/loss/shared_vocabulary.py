"""Shared vocabulary: maps every token of two tokenizers to a token that both have.

A token that both have (the same bytes) maps to itself. Any other maps to the longest shared token that it
begins with: if the teacher has " unhappiness" and the student must write " un" first, then to the student the
teacher's " unhappiness" is one way to begin with " un". (Byte-Prefix Marginalization, arXiv:2607.22334, maps
the teacher's tokens to the student's in this way; here both sides are mapped and summed.) No probability is
left over on either side, and nothing is compared by rank.

Limits: tokenizers can use a shared token differently. A teacher without " thing" writes " th" before "ing"; a
student that has it does not, and both have " th". And a tokenizer need not begin a word with the longest
token that fits. Mapping to the token with which the other tokenizer really begins, which costs an encoding of
each token, gave no better student (docs/lab-notes.md).

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
    """The shared token of each id of either side.

    Args:
        teacher_V: for the teacher's ids, int64, below ``size``; ``size`` for ids without one (rows of a
            padded embedding).
        student_V: the same for the student's ids.
        size: the number of shared tokens, K.
    """

    teacher_V: Tensor
    student_V: Tensor
    size: int

    def resized(self, shared_V: Tensor, vocab_size: int) -> Tensor:
        """``shared_V`` for a head of ``vocab_size`` rows; rows beyond the tokenizer's ids have none."""
        return F.pad(shared_V[:vocab_size], (0, max(0, vocab_size - len(shared_V))), value=self.size)


def join_vocabularies(
    teacher: PreTrainedTokenizerFast,
    student: PreTrainedTokenizerFast,
    ends: tuple[int | None, int | None] = (None, None),
) -> SharedVocabulary:
    """The shared vocabulary of two tokenizers.

    Args:
        ends: the ids of teacher and student that end an answer; they are one token however they are spelled.

    Raises:
        TokenizerMismatchError: tokens cannot be read as bytes, or the tokenizers share no token.
    """
    teacher_bytes, student_bytes = token_bytes(teacher), token_bytes(student)
    if ends[0] is not None and ends[1] is not None:
        student_bytes[ends[1]] = teacher_bytes[ends[0]]
    both = {b for b in teacher_bytes if b} & {b for b in student_bytes if b}
    if not both:
        raise TokenizerMismatchError("teacher and student have no token in common")
    # In the order of the teacher's ids, so that for equal vocabularies the shared tokens are the ids.
    shared_tokens = {b: n for n, b in enumerate(dict.fromkeys(b for b in teacher_bytes if b in both))}

    def mapping(tokens: Sequence[bytes | None]) -> Tensor:
        return torch.tensor([_longest_prefix(b or b"", shared_tokens) for b in tokens])

    return SharedVocabulary(mapping(teacher_bytes), mapping(student_bytes), len(shared_tokens))


def _longest_prefix(b: bytes, shared_tokens: Mapping[bytes, int]) -> int:
    """The longest shared token that ``b`` begins with; ``len(shared_tokens)`` if there is none."""
    prefixes = (b[:length] for length in range(len(b), 0, -1))
    return next((shared_tokens[prefix] for prefix in prefixes if prefix in shared_tokens), len(shared_tokens))
