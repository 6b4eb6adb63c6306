"""GGUF's token types and its names of special tokens."""

from __future__ import annotations

from enum import IntEnum

SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
"""transformers' name of a special token -> GGUF's (`tokenizer.ggml.<name>_token_id`)."""

STRIP_KEYS = {"lstrip": "stillhouse.tokenizer.lstrip", "rstrip": "stillhouse.tokenizer.rstrip"}
"""Our own header fields: ids of added tokens that swallow the white space before or after them (Phi's do).
llama.cpp has no such field and ignores these."""


class TokenType(IntEnum):
    """The values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6
