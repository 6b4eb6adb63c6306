"""Tokenised exchanges: the student's input, and the mask of the tokens that it learns.

The chat template marks the tokens of an answer; nothing here guesses where it begins. Documents are kept in
memory (5 bytes a token); texts are not.

Shapes: T tokens of a document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stillhouse.console import console
from stillhouse.errors import ModelError
from stillhouse.hashing import sha256_bytes, sha256_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillhouse.models import ChatTemplate, Message


@dataclass(frozen=True, eq=False)
class Document:
    """One conversation, ready to train on.

    Args:
        id: the exchange's id in the corpus.
        ids: token ids, int32 [T].
        loss: bool [T]; ``loss[t]`` means that token t is learned. Position t-1 predicts it, so ``loss[0]``
            never counts.
    """

    id: str
    ids: np.ndarray
    loss: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def predicting(self) -> np.ndarray:
        """Positions whose next token is learned, ascending, int64 [N], each in 0 … T-2."""
        return np.flatnonzero(self.loss[1:])

    @property
    def labels(self) -> np.ndarray:
        """The tokens that :attr:`predicting` must predict, int32 [N]."""
        return self.ids[1:][self.loss[1:]]

    @property
    def counted(self) -> int:
        """The number of tokens that are learned."""
        return int(np.count_nonzero(self.loss[1:]))


def messages_of(row: Mapping[str, Any]) -> list[Message]:
    """The conversation of a corpus row."""
    # The corpus stores absent fields as None, but chat templates test whether a field is present.
    return [
        {key: value for key, value in message.items() if value is not None} for message in row["messages"]
    ]


def encode_for_training(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerFast,
    template: ChatTemplate,
    *,
    loss_on: Literal["assistant", "all"],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[list[int], np.ndarray]:
    """Token ids [T] of a conversation, and whether each is learned, bool [T].

    A turn with a `weight` of 0 is not learned, even where everything else is.

    Raises:
        ModelError: the template cannot render the conversation, or hides where such a turn is.
    """
    if loss_on == "assistant":
        ids, mask = template.encode(tokenizer, messages, tools=tools)
        return ids, np.asarray(mask, dtype=bool)
    unlearned = [index for index, message in enumerate(messages) if message.get("weight") == 0]
    weighed = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    ids, turns = template.encode_turns(tokenizer, weighed, tools=tools)
    loss = np.ones(len(ids), dtype=bool)
    for index in unlearned:
        if index not in turns:
            raise ModelError(f"the chat template hides where message {index}, with a weight of 0, is")
        loss[turns[index].start : turns[index].stop] = False
    return ids, loss


def make_documents(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerFast,
    template: ChatTemplate,
    *,
    loss_on: Literal["assistant", "all"],
    max_length: int,
) -> list[Document]:
    """Turns corpus rows into documents, in the same order.

    A document longer than ``max_length`` tokens is cut at its end. A document without a token to learn, and
    one that the template cannot render, are left out; the number of each is reported on stderr.

    Args:
        rows: each with ``id`` and ``messages``; values of None inside a message count as absent.
        loss_on: ``assistant`` learns the tokens that the template marks as the assistant's, ``all`` every
            token but those of turns with a weight of 0.
        max_length: tokens.

    Raises:
        ModelError: the template cannot render any of the conversations.
    """
    documents = []
    cut = dropped = 0
    refused: list[str] = []
    hint = None
    for row in rows:
        try:
            ids, loss = encode_for_training(
                messages_of(row), tokenizer, template, loss_on=loss_on, tools=row.get("tools")
            )
        except ModelError as error:
            refused.append(f"{row['id']}: {error}")
            hint = error.hint
            continue
        cut += len(ids) > max_length
        document = Document(
            id=str(row["id"]),
            ids=np.asarray(ids[:max_length], dtype=np.int32),
            loss=loss[:max_length],
        )
        if document.counted:
            documents.append(document)
        else:
            dropped += 1
    if refused and not documents:
        raise ModelError(
            f"the chat template cannot render any of {len(refused)} conversations; first {refused[0]}",
            hint=hint,
        )
    _report(len(documents), cut, dropped, max_length)
    if refused:
        console.warn(
            f"{len(refused)} of {len(documents) + dropped + len(refused)} conversations cannot be rendered "
            f"with the chat template and were left out; first {refused[0]}"
        )
    return documents


def _report(kept: int, cut: int, dropped: int, max_length: int) -> None:
    if cut:
        console.info(f"{cut} of {kept + dropped} documents are longer than {max_length} tokens and were cut")
    if dropped:
        console.warn(f"{dropped} of {kept + dropped} documents have no token to learn and were left out")


def documents_hash(documents: Iterable[Document]) -> str:
    """The SHA-256 over ids, tokens and loss masks of ``documents``, in order."""
    return sha256_json(
        [
            [d.id, sha256_bytes(d.ids.tobytes()), sha256_bytes(np.packbits(d.loss).tobytes())]
            for d in documents
        ]
    )
