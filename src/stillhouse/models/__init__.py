"""Who speaks: references, facts, chat templates, tokenizers, and the backends that answer.

The front door. Names are loaded when first used, so that importing it costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api_backend import lacks_key
    from .byte_tokens import token_bytes
    from .facts import describe
    from .gguf_file import GgufFile, read_gguf
    from .local import cut_at_stop, has_stop
    from .open import open_model
    from .origin import recipe_terms, terms_of
    from .pretokenizers import pre_tokenizer_name
    from .processor import cpu_has_bfloat16
    from .reference import Reference, parse_reference
    from .template import ChatTemplate, compare_templates
    from .thoughts import split_reasoning
    from .tokenizer import normal_merges, same_tokenizer, tokenizer_difference, tokenizer_from_gguf
    from .torch_backend import TorchModel
    from .types import Can, Message, Model, ModelFacts, Reply, Request, Sampling, Weights
    from .weights import load_tokenizer, load_weights, require_rows, require_safetensors

_HOME = {
    "Can": "types",
    "ChatTemplate": "template",
    "GgufFile": "gguf_file",
    "Message": "types",
    "Model": "types",
    "ModelFacts": "types",
    "Reference": "reference",
    "Reply": "types",
    "Request": "types",
    "Sampling": "types",
    "TorchModel": "torch_backend",
    "Weights": "types",
    "compare_templates": "template",
    "cpu_has_bfloat16": "processor",
    "cut_at_stop": "local",
    "describe": "facts",
    "has_stop": "local",
    "lacks_key": "api_backend",
    "load_tokenizer": "weights",
    "load_weights": "weights",
    "normal_merges": "tokenizer",
    "open_model": "open",
    "parse_reference": "reference",
    "pre_tokenizer_name": "pretokenizers",
    "read_gguf": "gguf_file",
    "recipe_terms": "origin",
    "require_rows": "weights",
    "require_safetensors": "weights",
    "same_tokenizer": "tokenizer",
    "split_reasoning": "thoughts",
    "terms_of": "origin",
    "token_bytes": "byte_tokens",
    "tokenizer_difference": "tokenizer",
    "tokenizer_from_gguf": "tokenizer",
}

__all__ = [
    "Can",
    "ChatTemplate",
    "GgufFile",
    "Message",
    "Model",
    "ModelFacts",
    "Reference",
    "Reply",
    "Request",
    "Sampling",
    "TorchModel",
    "Weights",
    "compare_templates",
    "cpu_has_bfloat16",
    "cut_at_stop",
    "describe",
    "has_stop",
    "lacks_key",
    "load_tokenizer",
    "load_weights",
    "normal_merges",
    "open_model",
    "parse_reference",
    "pre_tokenizer_name",
    "read_gguf",
    "recipe_terms",
    "require_rows",
    "require_safetensors",
    "same_tokenizer",
    "split_reasoning",
    "terms_of",
    "token_bytes",
    "tokenizer_difference",
    "tokenizer_from_gguf",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
