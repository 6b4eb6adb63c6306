"""Opens a model for generation: which backend, and what is said about its template."""

from __future__ import annotations

import importlib.util

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
) -> Model:
    """The model that ``reference`` names, ready to answer.

    Args:
        backend: `torch`, `llama.cpp`, or `auto`: llama.cpp for GGUF files when it is installed, else torch.
        api_key_env: environment variable with the key of an API.
        timeout_s: seconds without an answer after which an API is asked again.
        retries: tries after the first.
        seed: of draws whose request has none.

    Raises:
        ModelNotFoundError, ModelError, AuthenticationError, MissingExtraError: see the backends.
    """
    parsed = parse_reference(reference)
    if parsed.kind == "api":
        from stillhouse.models.backends.openai_api import open_api

        return open_api(parsed, api_key_env=api_key_env, timeout_s=timeout_s, retries=retries, seed=seed)
    if backend not in ("auto", "torch", "llama.cpp"):
        raise UsageError(f"there is no backend {backend!r}", hint="Choose auto, torch or llama.cpp.")
    if backend == "auto":
        backend = "llama.cpp" if parsed.is_gguf and importlib.util.find_spec("xllamacpp") else "torch"
    if backend == "llama.cpp":
        from stillhouse.models.backends.llama_cpp import open_llama_cpp

        return _told(open_llama_cpp(parsed.text, seed=seed))
    from stillhouse.models.backends.pytorch import open_torch

    return _told(open_torch(parsed.text, seed=seed))


def _told(model: Model) -> Model:
    from stillhouse.models.chat.template import ChatTemplate

    if model.template_hash == ChatTemplate.plain().hash:
        console.warn(
            f"{model.reference} declares no chat template; it is asked in plain text, User: and Assistant:"
        )
    return model
