"""Request fields that are not in schema.py: which are harmless, and which are refused.

Every field of a request is one of these:

- honoured: declared in ``schema.py``;
- harmless (:data:`HARMLESS`): it cannot change the answer here, and is ignored;
- refused (:data:`REFUSED`): it would change the answer, and is not supported. Its neutral values, which
  change nothing, are accepted, because some clients always send them;
- unknown: refused too, as the OpenAI API does, because it might change the answer.

A field whose value is null counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillhouse.serve.errors import InvalidRequestError

HARMLESS = frozenset({
    # The OpenAI API: bookkeeping, caching and speed.
    "user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "prompt_cache_options", "prediction",
    # vLLM, SGLang: bookkeeping and choice of a backend.
    "request_id", "priority", "cache_salt", "guided_decoding_backend", "return_token_ids", "rid",
    # llama.cpp and its pages: caching and progress.
    "cache_prompt", "id_slot", "slot_id", "n_keep", "timings_per_token", "return_progress", "return_tokens",
    "sse_ping_interval", "reasoning_format", "samplers_order",
    # Ollama, LM Studio, OpenRouter: how long a model stays loaded, accounting.
    "keep_alive", "ttl", "usage", "session_id",
})  # fmt: skip
"""Fields that are accepted and ignored."""

_SEND_SCHEMA = "send response_format with json_schema"

REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    # Other samplers and their neutral values.
    "typical_p": ((0, 1), ""),
    "tfs_z": ((0, 1), ""),
    "top_a": ((0,), ""),
    "top_n_sigma": ((-1, 0), ""),
    "epsilon_cutoff": ((0,), ""),
    "eta_cutoff": ((0,), ""),
    "xtc_probability": ((0,), ""),
    "xtc_threshold": ((0, 0.1), ""),
    "dynatemp_range": ((0,), ""),
    "dynatemp_exponent": ((1,), ""),
    "dry_multiplier": ((0,), ""),
    "mirostat": ((0,), ""),
    "mirostat_mode": ((0,), ""),
    "smoothing_factor": ((0,), ""),
    "length_penalty": ((1,), ""),
    "repeat_last_n": ((-1,), "the penalty counts the whole conversation"),
    "penalty_last_n": ((-1,), "the penalty counts the whole conversation"),
    "no_repeat_ngram_size": ((0,), ""),
    "samplers": ((), "the order is temperature, top_k, top_p, min_p"),
    "use_beam_search": ((False,), ""),
    "best_of": ((1,), "send n"),
    "early_stopping": ((False,), ""),
    # What ends an answer, and what is in it.
    "min_tokens": ((0,), ""),
    "ignore_eos": ((False,), ""),
    "stop_token_ids": (([],), "send stop"),
    "include_stop_str_in_output": ((False,), ""),
    "skip_special_tokens": ((True,), ""),
    "spaces_between_special_tokens": ((True, False), ""),
    "bad_words": (([],), "send logit_bias"),
    "allowed_token_ids": (([],), "send logit_bias"),
    "logits_processors": (([],), ""),
    "t_max_predict_ms": ((0, -1), ""),
    "verbosity": (("medium",), ""),
    "modalities": ((["text"],), ""),
    "audio": ((), ""),
    "include_reasoning": ((True,), ""),
    "separate_reasoning": ((True,), ""),
    "thinking_budget": ((), ""),
    "reasoning_budget": ((-1,), ""),
    "thinking_token_budget": ((), ""),
    "reasoning": ((), "send reasoning_effort"),
    # The prompt.
    "truncate_prompt_tokens": ((), "shorten the prompt"),
    "truncation": (("disabled",), "shorten the prompt"),
    "add_special_tokens": ((), ""),
    "chat_template": ((), "the model's own template is used"),
    "documents": (([],), "put them into a message"),
    "web_search_options": ((), ""),
    "transforms": (([],), ""),
    "moderation": ((), ""),
    "prompt_logprobs": ((0,), "send echo and logprobs to /v1/completions"),
    "prompt_embeds": ((), ""),
    "input_suffix": (("",), ""),
    # Other forms of constraints.
    "grammar": (("",), _SEND_SCHEMA),
    "grammar_lazy": ((False,), _SEND_SCHEMA),
    "grammar_triggers": (([],), _SEND_SCHEMA),
    "guided_regex": ((), _SEND_SCHEMA + ", of type string with a pattern"),
    "guided_choice": ((), _SEND_SCHEMA + ", an enum"),
    "guided_grammar": ((), _SEND_SCHEMA),
    "guided_whitespace_pattern": ((), ""),
    "regex": ((), _SEND_SCHEMA + ", of type string with a pattern"),
    "ebnf": ((), _SEND_SCHEMA),
    "structural_tag": ((), _SEND_SCHEMA),
    "strict_tools": ((False,), ""),
    # What the answer reports.
    "post_sampling_probs": ((False,), "log-probabilities are the model's own"),
    "n_probs": ((0,), "send logprobs"),
    "n_predict": ((-1,), "send max_tokens"),
    "logprobs_mode": ((), ""),
    "return_hidden_states": ((False,), ""),
    # Old and misplaced ones.
    "functions": ((), "send tools"),
    "function_call": ((), "send tool_choice"),
    "suffix": (("",), "filling in the middle of a text is not supported"),
    "image_data": (([],), "only text is supported"),
    "images": (([],), "only text is supported"),
    "lora": (([],), ""),
    "kv_transfer_params": ((), ""),
}  # fmt: skip
"""Field -> its neutral values, and what to do instead (empty: nothing)."""


def check_extra_fields(fields: Mapping[str, Any]) -> None:
    """Checks the fields of a body that its class does not declare.

    Raises:
        InvalidRequestError: one would change the answer, or is unknown.
    """
    for name, value in fields.items():
        if value is None or name in HARMLESS:
            continue
        if name not in REFUSED:
            raise InvalidRequestError(
                f"the field {name!r} is unknown; leave it out", name, "unknown_parameter"
            )
        neutral, hint = REFUSED[name]
        # A boolean equals 0 or 1 in Python, and is another value in JSON.
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
            hint = f"; {hint}" if hint else "; leave it out"
            raise InvalidRequestError(f"the field {name!r} is not supported{hint}", name, "unsupported")
