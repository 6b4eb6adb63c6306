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
    """The suspect that ``reference`` names.

    Args:
        journal: where an API's answers are kept as they come, so that nothing is asked twice; models on this
            machine need none.
        max_tokens: tokens that an API may count in all; None is no limit.
        api_key_env: environment variable with the key of an API.
        seed: of draws whose request has none.

    Raises:
        StillhouseError: as :func:`stillhouse.models.open_model`.
    """
    if parse_reference(reference).kind == "api":
        from stillhouse.trace.suspects.api import open_api_suspect

        return open_api_suspect(reference, journal, max_tokens=max_tokens, api_key_env=api_key_env, seed=seed)
    from stillhouse.trace.suspects.local import TorchSuspect

    return TorchSuspect(reference, seed=seed)
