"""Opens a model for generation with the backend that suits it.

Add a backend:

1. Write a module here: a class that implements :class:`~stillhouse.models.types.Model`, and a function that
   opens it. Import heavy packages inside of functions. Local backends share :class:`.prompts.PromptEncoder`.
2. Choose it in :func:`open_model`, by its name or by the kind of reference.
3. Add its name to `Teacher.backend` in `recipe/sections.py`, and a case to `tests/models/backends/`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from stillhouse.console import console
from stillhouse.errors import UsageError
from stillhouse.models.reference import parse_reference
from stillhouse.models.types import Model


def open_model(
    reference: str,
    *,
    backend: str = "auto",
    api_key_env: str = "OPENAI_API_KEY",
    timeout_s: float = 120.0,
    retries: int = 6,
    seed: int = 0,
    variables: Mapping[str, Any] | None = None,
    extra_body: Mapping[str, Any] | None = None,
) -> Model:
    """Opens the model that ``reference`` names, ready to generate.

    Args:
        backend: `torch`, `llama.cpp`, or `auto`: llama.cpp for GGUF files when it is installed, else torch.
        api_key_env: environment variable with the key of an API.
        timeout_s: seconds without an answer after which a request to an API is repeated.
        retries: attempts after the first.
        seed: for requests without a seed of their own.
        variables: for the chat template, such as `enable_thinking`; a local model's template must read them.
        extra_body: further fields of each request to an API.

    Raises:
        ModelNotFoundError, ModelError, AuthenticationError, MissingExtraError: see the backends.
    """
    parsed = parse_reference(reference)
    if parsed.kind == "api":
        from stillhouse.models.backends.openai_api import open_api

        return open_api(
            parsed,
            api_key_env=api_key_env,
            timeout_s=timeout_s,
            retries=retries,
            seed=seed,
            variables=variables,
            extra_body=extra_body,
        )
    assert not extra_body, "local models have no requests"
    if backend not in ("auto", "torch", "llama.cpp"):
        raise UsageError(f"there is no backend {backend!r}", hint="Choose auto, torch or llama.cpp.")
    if backend == "auto":
        backend = "llama.cpp" if parsed.is_gguf and importlib.util.find_spec("xllamacpp") else "torch"
    if backend == "llama.cpp":
        from stillhouse.models.backends.llama_cpp import open_llama_cpp

        return _warn_without_template(open_llama_cpp(parsed.text, seed=seed, variables=variables))
    from stillhouse.models.backends.pytorch import open_torch

    return _warn_without_template(open_torch(parsed.text, seed=seed, variables=variables))


def _warn_without_template(model: Model) -> Model:
    from stillhouse.models.chat.template import ChatTemplate

    if model.template_hash == ChatTemplate.plain().hash:
        console.warn(
            f"{model.reference} declares no chat template; prompts are plain text with User: and Assistant:"
        )
    return model
