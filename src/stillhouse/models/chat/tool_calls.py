"""How a model writes a call of a tool, learned from its chat template.

The template is asked to write one: what stands before and after the JSON of the call, and under which key the
arguments are, is the form that the model was trained on. No template is known by name here. Read are
calls of one JSON object between two marks (`<tool_call>{"name": …, "arguments": …}</tool_call>`, as of Qwen,
Hermes and SmolLM3), and answers that are one such object (Llama 3.1, with `parameters`). Calls in lists, in
XML or with the name outside of the JSON are not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError
from stillhouse.models.chat.reasoning import REASONING_END

if TYPE_CHECKING:
    from stillhouse.models.chat.template import ChatTemplate

_NAME, _ARGUMENTS, _ANSWER = "probe_tool", {"probe_key": 1}, "probe answer"
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "probe",
        "parameters": {"type": "object", "properties": {"probe_key": {"type": "integer"}}},
    },
}
_CALL = {"id": "call00000", "type": "function", "function": {"name": _NAME, "arguments": _ARGUMENTS}}


@dataclass(frozen=True)
class ToolCallFormat:
    """The text of one call: ``prefix``, a JSON object of `name` and arguments, ``suffix``."""

    prefix: str
    """With the whitespace that the template writes; empty where an answer is the object itself."""
    suffix: str
    arguments_key: str
    """The arguments' key."""

    @property
    def delimiters(self) -> tuple[str, ...]:
        """What stands around a call, without whitespace; empty where nothing does."""
        return (self.prefix.strip(), self.suffix.strip()) if self.prefix.strip() else ()

    def schema(self, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The JSON schema of a call of one of ``tools`` (the API's `function` objects)."""
        return {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {
                        "name": {"const": tool["name"]},
                        self.arguments_key: _moved(
                            tool.get("parameters") or {"type": "object"},
                            f"#/anyOf/{place}/properties/{self.arguments_key}",
                        ),
                    },
                    "required": ["name", self.arguments_key],
                    "additionalProperties": False,
                }
                for place, tool in enumerate(tools)
            ]
        }


def detect_tool_call_format(template: ChatTemplate) -> ToolCallFormat | None:
    """The form of ``template``'s calls; None where it knows no tools or its form is not read here."""
    question = {"role": "user", "content": "probe question"}
    call = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
    answer = {"role": "assistant", "content": _ANSWER}
    try:
        prompt = template.render([question], add_generation_prompt=True, tools=[_TOOL])
        called = template.render([question, call], tools=[_TOOL])
        answered = template.render([question, answer], tools=[_TOOL])
    except ModelError:
        return None
    if _NAME not in prompt or _ANSWER not in answered:
        return None
    same = next((n for n, (a, b) in enumerate(zip(prompt, called, strict=False)) if a != b), len(prompt))
    turn = called[same:]
    place = turn.find("{")
    try:
        found, end = json.JSONDecoder().raw_decode(turn, place) if place >= 0 else (None, 0)
    except ValueError:
        return None
    keys = [key for key, value in found.items() if value == _ARGUMENTS] if isinstance(found, dict) else []
    if len(keys) != 1 or found != {"name": _NAME, keys[0]: _ARGUMENTS}:
        return None
    close, end_of_turn, more = turn[end:].partition(answered.rpartition(_ANSWER)[2])
    opening = turn[:place].rpartition(REASONING_END)[2].lstrip("\n")
    one_sided = bool(opening.strip()) != bool(close.strip())
    if more or not end_of_turn or one_sided or opening.rstrip().endswith("["):
        return None
    return ToolCallFormat(opening, close, keys[0])


def _moved(schema: Any, to: str) -> Any:
    """A schema as part of another, at the JSON pointer ``to``: its own references lead there."""
    if isinstance(schema, Mapping):
        return {
            key: to + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, to)
            for key, value in schema.items()
        }
    return [_moved(value, to) for value in schema] if isinstance(schema, list) else schema
