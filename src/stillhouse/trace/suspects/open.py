"""Opens the suspect that a reference names: weights on this machine, or an API."""

from __future__ import annotations

from pathlib import Path

from stillhouse.models import parse_reference
from stillhouse.trace.suspects.base import Suspect


def open_suspect(
    reference: str,
    *,
    journal: Path | None = None,
    max_tokens: int | None = None,
    api_key_env: str = "OPENAI_API_KEY",
    seed: int = 0,
) -> Suspect:
    """Opens the suspect ``reference``.

    Args:
        journal: file that keeps an API's answers, so that nothing is requested twice; models on this machine
            need none.
        max_tokens: most tokens that an API may count in all; None is no limit.
        api_key_env: environment variable with the key of an API.
        seed: of requests that have no seed.

    Raises:
        StillhouseError: as :func:`stillhouse.models.open_model`.
    """
    if parse_reference(reference).kind == "api":
        from stillhouse.trace.suspects.api import open_api_suspect

        return open_api_suspect(reference, journal, max_tokens=max_tokens, api_key_env=api_key_env, seed=seed)
    from stillhouse.trace.suspects.local import TorchSuspect

    return TorchSuspect(reference, seed=seed)
