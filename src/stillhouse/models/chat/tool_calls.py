"""Detects how a model writes a tool call, from its chat template.

The template renders a probe call. The text before and after the JSON of that call, and the key of its
arguments, are the format that the model was trained on. No template is recognised by name.

Two formats are supported: one JSON object between two delimiters
(`<tool_call>{"name": …, "arguments": …}</tool_call>`, as in Qwen, Hermes and SmolLM3), and an answer that is
one such object (Llama 3.1, with `parameters`). Lists of calls, XML, and names outside of the JSON are not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError
from stillhouse.models.chat.reasoning import REASONING_END

if TYPE_CHECKING:
    from stillhouse.models.types import RenderMessages

_PROBE_NAME, _PROBE_ARGUMENTS, _PROBE_ANSWER = "probe_tool", {"probe_key": 1}, "probe answer"
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": _PROBE_NAME,
        "description": "probe",
        "parameters": {"type": "object", "properties": {"probe_key": {"type": "integer"}}},
    },
}
_PROBE_CALL = {
    "id": "call00000",  # nine letters and digits: Mistral's templates refuse any other id
    "type": "function",
    "function": {"name": _PROBE_NAME, "arguments": _PROBE_ARGUMENTS},
}


@dataclass(frozen=True)
class ToolCallFormat:
    """The text of one call: ``prefix``, a JSON object of `name` and arguments, ``suffix``."""

    prefix: str
    """With the whitespace that the template writes; empty where an answer is the object itself."""
    suffix: str
    arguments_key: str

    @property
    def delimiters(self) -> tuple[str, ...]:
        """Prefix and suffix without whitespace; empty where the format has none."""
        return (self.prefix.strip(), self.suffix.strip()) if self.prefix.strip() else ()

    def schema(self, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The JSON schema of a call of one of ``tools`` (the API's `function` objects)."""
        return {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {
                        "name": {"const": tool["name"]},
                        self.arguments_key: _rebased(
                            tool.get("parameters") or {"type": "object"},
                            f"#/anyOf/{index}/properties/{self.arguments_key}",
                        ),
                    },
                    "required": ["name", self.arguments_key],
                    "additionalProperties": False,
                }
                for index, tool in enumerate(tools)
            ]
        }


def detect_tool_call_format(render: RenderMessages) -> ToolCallFormat | None:
    """The format in which the template behind ``render`` writes calls; None where it is not supported."""
    question = {"role": "user", "content": "probe question"}
    call = {"role": "assistant", "content": "", "tool_calls": [_PROBE_CALL]}
    answer = {"role": "assistant", "content": _PROBE_ANSWER}
    try:
        prompt = render([question], add_generation_prompt=True, tools=[_PROBE_TOOL])
        called = render([question, call], tools=[_PROBE_TOOL])
        answered = render([question, answer], tools=[_PROBE_TOOL])
    except ModelError:
        return None
    # A template that ignores tools renders the probe without an error, but leaves its name out.
    if _PROBE_NAME not in prompt or _PROBE_ANSWER not in answered:
        return None
    # The call begins where the conversation departs from the prompt, not at the prompt's end: some prompts
    # end with text (an empty thought) that a finished turn does not have.
    common = next((n for n, (a, b) in enumerate(zip(prompt, called, strict=False)) if a != b), len(prompt))
    turn = called[common:]
    start = turn.find("{")
    try:
        body, end = json.JSONDecoder().raw_decode(turn, start) if start >= 0 else (None, 0)
    except ValueError:
        return None
    keys = [key for key, value in body.items() if value == _PROBE_ARGUMENTS] if isinstance(body, dict) else []
    # Any further field would have to be generated, too; arguments as a JSON string would need another parser.
    if len(keys) != 1 or body != {"name": _PROBE_NAME, keys[0]: _PROBE_ARGUMENTS}:
        return None
    # A plain answer shows what ends a turn, so that the end-of-turn token does not become part of the suffix.
    suffix, end_of_turn, rest = turn[end:].partition(answered.rpartition(_PROBE_ANSWER)[2])
    prefix = turn[:start].rpartition(REASONING_END)[2].lstrip("\n")
    one_sided = bool(prefix.strip()) != bool(suffix.strip())
    if rest or not end_of_turn or one_sided or prefix.rstrip().endswith("["):
        return None
    return ToolCallFormat(prefix, suffix, keys[0])


def _rebased(schema: Any, pointer: str) -> Any:
    """A schema nested in another one at the JSON ``pointer``, with its own `$ref`s adjusted to that."""
    if isinstance(schema, Mapping):
        return {
            key: pointer + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _rebased(value, pointer)
            for key, value in schema.items()
        }
    return [_rebased(value, pointer) for value in schema] if isinstance(schema, list) else schema
