"""Token ids against the rows of a model's embedding.

A tokenizer can have added tokens that the model lacks: Gemma 3's text models share one with the models that
read images. Such a tokenizer is accepted, and a text that uses such a token is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillhouse.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def embedding_rows(model: PreTrainedModel) -> int:
    """The number of token ids that the model's embedding has."""
    embedding: Any = model.get_input_embeddings()
    return embedding.weight.shape[0]


def require_rows(path: Path, tokenizer: PreTrainedTokenizerFast, rows: int) -> None:
    """Raises ModelError where a token, other than an added one, has no row in an embedding of ``rows``."""
    added = tokenizer.added_tokens_decoder
    beyond = [number for number in tokenizer.get_vocab().values() if number >= rows and number not in added]
    if beyond:
        raise ModelError(f"{path}: the tokenizer has ids beyond the {rows} rows of the embedding")


def require_ids(ids: Sequence[int] | np.ndarray, rows: int, *, where: str) -> None:
    """Raises ModelError where one of ``ids`` is beyond the ``rows`` of the model's embedding.

    Args:
        where: what has the ids, for the error.
    """
    if (largest := int(np.max(ids, initial=0))) >= rows:
        raise ModelError(
            f"{where} has the token {largest}, and the model's embedding {rows} rows",
            hint="Remove the text of that token; it belongs to a model that also reads images.",
        )
