"""Who speaks: references, facts, chat templates, tokenizers, and the backends that answer.

The front door. Names are loaded when first used, so that importing it costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.models.api_backend import lacks_key
    from stillhouse.models.byte_tokens import token_bytes
    from stillhouse.models.constrained import Constraints, checked_schema, guided
    from stillhouse.models.continuous import ContinuousSampler, LiveSequence, TokenScore
    from stillhouse.models.draws import Marker
    from stillhouse.models.facts import describe
    from stillhouse.models.gguf_file import GgufFile, read_gguf
    from stillhouse.models.llama_backend import awake_server, open_llama
    from stillhouse.models.local import Prompts, cut_at_stop, has_stop
    from stillhouse.models.open import open_model
    from stillhouse.models.origin import recipe_terms, terms_of
    from stillhouse.models.pretokenizers import pre_tokenizer_name
    from stillhouse.models.processor import cpu_has_bfloat16
    from stillhouse.models.reference import EMBEDDED, Reference, parse_reference
    from stillhouse.models.sampler import can_sample, sample
    from stillhouse.models.template import ChatTemplate, compare_templates
    from stillhouse.models.template_child import ContainedTemplate
    from stillhouse.models.thoughts import CLOSE_THOUGHTS, OPEN_THOUGHTS, split_reasoning
    from stillhouse.models.tokenizer import (
        normal_merges,
        same_tokenizer,
        tokenizer_difference,
        tokenizer_from_gguf,
    )
    from stillhouse.models.tool_calls import CallForm
    from stillhouse.models.torch_backend import TorchModel
    from stillhouse.models.types import Can, Message, Model, ModelFacts, Reply, Request, Sampling, Weights
    from stillhouse.models.weights import (
        fingerprint_of,
        load_tokenizer,
        load_weights,
        require_rows,
        require_safetensors,
    )

_HOME = {
    "CLOSE_THOUGHTS": "thoughts",
    "CallForm": "tool_calls",
    "Can": "types",
    "ChatTemplate": "template",
    "Constraints": "constrained",
    "ContainedTemplate": "template_child",
    "ContinuousSampler": "continuous",
    "EMBEDDED": "reference",
    "GgufFile": "gguf_file",
    "LiveSequence": "continuous",
    "Marker": "draws",
    "Message": "types",
    "Model": "types",
    "ModelFacts": "types",
    "OPEN_THOUGHTS": "thoughts",
    "Prompts": "local",
    "Reference": "reference",
    "Reply": "types",
    "Request": "types",
    "Sampling": "types",
    "TokenScore": "continuous",
    "TorchModel": "torch_backend",
    "Weights": "types",
    "awake_server": "llama_backend",
    "can_sample": "sampler",
    "checked_schema": "constrained",
    "compare_templates": "template",
    "cpu_has_bfloat16": "processor",
    "cut_at_stop": "local",
    "describe": "facts",
    "fingerprint_of": "weights",
    "guided": "constrained",
    "has_stop": "local",
    "lacks_key": "api_backend",
    "load_tokenizer": "weights",
    "load_weights": "weights",
    "normal_merges": "tokenizer",
    "open_llama": "llama_backend",
    "open_model": "open",
    "parse_reference": "reference",
    "pre_tokenizer_name": "pretokenizers",
    "read_gguf": "gguf_file",
    "recipe_terms": "origin",
    "require_rows": "weights",
    "require_safetensors": "weights",
    "same_tokenizer": "tokenizer",
    "sample": "sampler",
    "split_reasoning": "thoughts",
    "terms_of": "origin",
    "token_bytes": "byte_tokens",
    "tokenizer_difference": "tokenizer",
    "tokenizer_from_gguf": "tokenizer",
}

__all__ = [
    "CLOSE_THOUGHTS",
    "EMBEDDED",
    "OPEN_THOUGHTS",
    "CallForm",
    "Can",
    "ChatTemplate",
    "Constraints",
    "ContainedTemplate",
    "ContinuousSampler",
    "GgufFile",
    "LiveSequence",
    "Marker",
    "Message",
    "Model",
    "ModelFacts",
    "Prompts",
    "Reference",
    "Reply",
    "Request",
    "Sampling",
    "TokenScore",
    "TorchModel",
    "Weights",
    "awake_server",
    "can_sample",
    "checked_schema",
    "compare_templates",
    "cpu_has_bfloat16",
    "cut_at_stop",
    "describe",
    "fingerprint_of",
    "guided",
    "has_stop",
    "lacks_key",
    "load_tokenizer",
    "load_weights",
    "normal_merges",
    "open_llama",
    "open_model",
    "parse_reference",
    "pre_tokenizer_name",
    "read_gguf",
    "recipe_terms",
    "require_rows",
    "require_safetensors",
    "same_tokenizer",
    "sample",
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
