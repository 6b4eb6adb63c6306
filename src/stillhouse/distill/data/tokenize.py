"""Conversations to documents, from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stillhouse.corpus.conversations import Conversations, read_conversations
from stillhouse.distill.data.documents import Document, make_documents
from stillhouse.errors import EmptyCorpusError

if TYPE_CHECKING:
    from stillhouse.models import Weights


def tokenize(
    conversations: Conversations,
    weights: Weights,
    *,
    loss_on: Literal["assistant", "all"] = "assistant",
    max_length: int = 1024,
) -> list[Document]:
    """Renders conversations with a model's chat template and marks the tokens to learn.

    Example::

        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        documents = st.tokenize([turns], student)
        documents[0].ids    # int32 [T], as the student reads them
        documents[0].loss   # bool [T]: the answer and its end mark

    Use the student's tokenizer: `cache_targets` makes the teacher read the same tokens. The mask follows from
    the template; special tokens that a message spells stay plain text.

    Args:
        conversations: lists of messages, records (`messages`, or `prompt` with `completion`), the rows of
            `collect`, or a file of them.
        weights: the student, from `load`.
        loss_on: ``assistant`` learns the assistant's turns, ``all`` every token.
        max_length: tokens; longer documents are cut, with a message.

    Raises:
        CorpusError: a conversation is malformed; the message has its number.
        EmptyCorpusError: no document has a token to learn.
        ModelError: the chat template refuses a conversation.
    """
    rows = [
        {"id": prompt.id, "messages": prompt.messages, "tools": prompt.tools}
        for prompt in read_conversations(conversations)
    ]
    documents = make_documents(
        rows, weights.tokenizer, weights.template, loss_on=loss_on, max_length=max_length
    )
    if not documents:
        raise EmptyCorpusError(
            "no conversation has a token to learn",
            hint="Each must contain an assistant's message; or use loss_on='all'.",
        )
    return documents
