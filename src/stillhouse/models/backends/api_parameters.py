"""The fields of a request to an OpenAI-compatible API, and how they adapt to what a server refuses.

Sampling settings that a recipe leaves open are not sent, so that the server's own defaults apply. Of the
other parameters only two adapt: `seed` is left out where a server refuses it, and `max_tokens` becomes
`max_completion_tokens`. To drop any other would change the answers silently, so its refusal is an error with
the server's words.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from stillhouse.console import console
from stillhouse.errors import ParameterError
from stillhouse.models.backends.server_errors import ServerError
from stillhouse.models.types import Request

_LIMIT_NAMES = ("max_tokens", "max_completion_tokens")
"""OpenAI's newer models know only the second name, most compatible servers only the first."""
_RECIPE_KEYS = {
    "max_tokens": "collect.max_tokens",
    "max_completion_tokens": "collect.max_tokens",
    "temperature": "collect.temperature",
    "top_p": "collect.top_p",
    "top_k": "collect.top_k",
    "logprobs": "collect.top_logprobs",
    "top_logprobs": "collect.top_logprobs",
    "reasoning_effort": "teacher.reasoning_effort",
    "chat_template_kwargs": "teacher.enable_thinking",
}
"""The recipe's keys of parameters; any other comes from `teacher.extra_body`."""


class RequestParameters:
    """Builds the fields of requests to one server, and remembers what it refuses.

    Args:
        variables: of the chat template: `reasoning_effort` is sent as such, others as `chat_template_kwargs`.
        extra_body: further fields of every request; None as a value leaves a field out.
    """

    def __init__(
        self, url: str, name: str, variables: Mapping[str, Any], extra_body: Mapping[str, Any]
    ) -> None:
        self._url, self._name = url, name
        self._extra_body = _extra_body(variables, extra_body)
        is_openai = urlsplit(url).hostname == "api.openai.com"
        self._limit_name = _LIMIT_NAMES[1 if is_openai else 0]
        self._refused: set[str] = set()
        """Parameters that this server has refused and that are no longer sent."""

    def of(self, request: Request) -> dict[str, Any]:
        """The fields of a request, without settings that the recipe leaves open or that have no effect."""
        sampling = request.sampling
        settings: dict[str, Any] = {
            "temperature": sampling.temperature,
            # Greedy decoding has no nucleus, and some servers refuse both settings together.
            "top_p": sampling.top_p if sampling.temperature else None,
            "seed": sampling.seed,
            "stop": list(sampling.stop) or None,
        }
        left_out = {*request.api_defaults, *self._refused}
        parameters: dict[str, Any] = {
            "model": self._name,
            "messages": [{"role": m["role"], "content": m.get("content") or ""} for m in request.messages],
            self._limit_name: sampling.max_tokens,
        }
        parameters |= {
            name: value for name, value in settings.items() if value is not None and name not in left_out
        }
        if sampling.top_logprobs:
            parameters |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
        extra = {"top_k": sampling.top_k, "min_p": sampling.min_p}
        extra_body = {name: value for name, value in extra.items() if value} | self._extra_body
        for name in [name for name, value in extra_body.items() if value is None]:
            del extra_body[name]
            # `max_tokens: null` in a recipe means the limit, whatever this server calls it.
            parameters.pop(self._limit_name if name in _LIMIT_NAMES else name, None)
        return parameters | ({"extra_body": extra_body} if extra_body else {})

    def adapt(self, error: ServerError, parameters: Mapping[str, Any]) -> bool:
        """Whether another attempt with adapted parameters makes sense."""
        refused = error.refused_parameters(parameter_names(parameters))
        if "seed" in refused:
            if "seed" not in self._refused:
                self._refused.add("seed")
                console.warn(f"{self._url} refuses `seed`, so it is no longer sent: {error.message}")
            return True
        limit = next((name for name in _LIMIT_NAMES if name in refused), None)
        if limit is None or not error.says_unsupported:
            return False
        if limit == self._limit_name and limit not in self._refused:
            self._refused.add(limit)
            other = _LIMIT_NAMES[1 - _LIMIT_NAMES.index(limit)]
            if other in self._refused:
                return False
            self._limit_name = other
            console.info(f"{self._url} refuses `{limit}`; sending `{other}`: {error.message}")
        # Another request in flight may have changed the name already.
        return limit != self._limit_name

    def error(self, error: ServerError, parameters: Mapping[str, Any]) -> ParameterError:
        """The error for a refusal that nothing can be adapted to."""
        names = error.refused_parameters(parameter_names(parameters))
        keys = dict.fromkeys(_RECIPE_KEYS.get(name, "teacher.extra_body") for name in names)
        return ParameterError(
            f"{self._url} refuses {', '.join(f'`{name}`' for name in names)} ({error.status}): "
            f"{error.message}",
            hint=f"Change or remove {' or '.join(keys)} in the recipe; `teacher.extra_body: {{NAME: null}}` "
            "leaves a parameter out.",
        )


def _extra_body(variables: Mapping[str, Any], extra_body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that openai's client does not know, or that the recipe sets by itself."""
    others = {name: value for name, value in variables.items() if name != "reasoning_effort"}
    fields = {name: value for name, value in variables.items() if name == "reasoning_effort"}
    if others:
        fields["chat_template_kwargs"] = others
    return fields | dict(extra_body)


def parameter_names(parameters: Mapping[str, Any]) -> Collection[str]:
    """Names of a request's fields, apart from the model and the prompt."""
    return [
        name
        for name in (*parameters, *parameters.get("extra_body", {}))
        if name not in ("model", "messages", "prompt", "extra_body")
    ]
