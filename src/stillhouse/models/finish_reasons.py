"""Why an answer ended: one table from the words of all providers to a few classes.

OpenAI's words (`stop`, `length`, `content_filter`, `tool_calls`) name the classes. Gemini, Anthropic,
Mistral, GLM, DeepSeek, vLLM and gateways have words of their own, in either case.
"""

from __future__ import annotations

STOP, LENGTH, CONTENT_FILTER, TOOL_CALLS = "stop", "length", "content_filter", "tool_calls"
ERROR = "error"
"""The provider failed in the middle of the answer; asking again may succeed."""
UNKNOWN = "unknown"
"""The provider gives no reason, or a word that this table does not have."""

_WORDS: dict[str, tuple[str, ...]] = {
    STOP: ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token", "completed", "complete"),
    LENGTH: (
        "length",
        "max_tokens",
        "max_length",
        "max_output_tokens",
        "max_completion_tokens",
        "max_new_tokens",
        "model_length",
        "model_context_window_exceeded",
        "token_limit",
        "incomplete",
    ),
    CONTENT_FILTER: (
        "content_filter",
        "content_filtered",
        "content_policy",
        "safety",
        "sensitive",
        "recitation",
        "prohibited_content",
        "blocklist",
        "spii",
        "image_safety",
        "refusal",
        "guardrail_intervened",
    ),
    TOOL_CALLS: ("tool_calls", "tool_call", "tool_use", "function_call"),
    ERROR: (
        "error",
        "network_error",
        "server_error",
        "insufficient_system_resource",
        "malformed_function_call",
        "abort",
        "aborted",
        "cancelled",
        "canceled",
        "timeout",
        "failed",
    ),
}
_CLASSES = {word: name for name, words in _WORDS.items() for word in words}


def finish_class(reason: str | None) -> str:
    """The class of a provider's finish reason, in any case: one of this module's constants."""
    word = (reason or "").strip().lower().replace("-", "_").removeprefix("finish_reason_")
    return _CLASSES.get(word, UNKNOWN)


def normalised(reason: str | None) -> str:
    """The class where the table knows the word, the provider's own word otherwise; `unknown` for none."""
    found = finish_class(reason)
    return (reason or UNKNOWN) if found == UNKNOWN else found
