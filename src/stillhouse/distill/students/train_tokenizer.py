"""Trains a tokenizer on the corpus, for a student from scratch.

A small student with its teacher's vocabulary is mostly embeddings: 49,152 rows of 128 numbers are 6.3 million
parameters, more than four layers of that width have. A vocabulary trained on the corpus is smaller and fits
its text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from stillhouse.errors import EmptyCorpusError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def train_tokenizer(
    texts: Iterable[str], size: int, *, like: PreTrainedTokenizerFast
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer of at most ``size`` tokens, which can encode any text.

    The same texts give the same tokenizer.

    Args:
        texts: the training corpus.
        size: including bytes and added tokens; fewer if the texts have no more pairs that occur twice.
        like: its added tokens (including turn marks) are copied, so that its chat template works.

    Raises:
        EmptyCorpusError: there is no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    known = list(texts)
    if not any(known):
        raise EmptyCorpusError("there is no text to train the student's tokenizer on")
    added = [like.added_tokens_decoder[number] for number in sorted(like.added_tokens_decoder)]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=added,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(known, trainer)
    roles = {f"{role}_token": getattr(like, f"{role}_token") for role in ("bos", "eos", "pad", "unk")}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **{role: token for role, token in roles.items() if token is not None},
    )
