"""``still serve``: models behind an OpenAI-compatible API and a chat page, on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..errors import UsageError
from .options import Output, OutputFlags

KEY = "STILLHOUSE_API_KEY"
EXAMPLES = """\
Examples:
  still serve embedded:smollm2
  still serve runs/quickstart/student
  still serve mine=runs/mine/student big=models/big.gguf --port 9000
  still serve student.gguf --host 0.0.0.0"""


def serve(
    *models: Annotated[str, Parameter(metavar="MODEL")],
    host: str = "127.0.0.1",
    port: int = 8765,
    queue: int = 64,
    idle: Annotated[float, Parameter(metavar="MINUTES")] = 0.0,
    name: Annotated[tuple[str, ...], Parameter(metavar="HOST", negative="", show_default=False)] = (),
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Serve models to a chat page and to OpenAI clients, on this machine only.

    With STILLHOUSE_API_KEY in the environment, clients must send it as their key.
    Nothing that is asked or answered is logged or leaves the machine.

    Parameters
    ----------
    models
        Model references, each perhaps with a name before it: NAME=REFERENCE. The student of a run
        brings its teacher, where that is a model on this machine.
    host
        Address to listen on; any but loopback lets other machines in.
    port
        Port to listen on; 0 takes any that is free.
    queue
        Answers under way or waiting; more are told to come again (429).
    idle
        Unload a model after so many minutes without a question; 0 never.
    name
        Another name by which clients call this server, e.g. that of a proxy.
    """
    from ..serve import serve as listen

    if not models:
        raise UsageError("no model was named", hint="Try: still serve embedded:smollm2")
    key = os.environ.get(KEY) or None
    listen(_named(models), host=host, port=port, queue=queue, idle_s=60 * idle, api_key=key, names=name)


def _named(models: tuple[str, ...]) -> dict[str, str]:
    """Name -> reference; a run's student brings its teacher, where that is a model on this machine."""
    from ..models import parse_reference

    named: dict[str, str] = {}
    for text in models:
        name, equals, reference = text.partition("=")
        if not equals or "/" in name or ":" in name:
            name, reference = "", text
        parsed = parse_reference(reference)
        if parsed.kind == "api":
            raise UsageError(
                f"{reference} is served elsewhere already", hint="Let your client call that address itself."
            )
        name = name or _short_name(reference, parsed.name, parsed.path)
        if name in named:
            raise UsageError(f"two models are named {name!r}", hint="Write NAME=REFERENCE for one of them.")
        named[name] = reference
    for text in list(named.values()):
        teacher = _teacher(Path(text).parent)
        if teacher and teacher not in named.values():
            named.setdefault("teacher" if len(models) == 1 else f"{Path(text).parent.name}-teacher", teacher)
    return named


def _short_name(reference: str, name: str | None, path: Path | None) -> str:
    if name:
        return name.rpartition("/")[2]
    assert path is not None
    if path.name == "student":
        return path.resolve().parent.name
    return path.stem if path.suffix == ".gguf" else path.resolve().name


def _teacher(run: Path) -> str | None:
    """The teacher of a run, where it is a local model that is still there."""
    from ..errors import StillhouseError
    from ..models import parse_reference
    from ..recipe_file import load_recipe

    if not ((run / "recipe.yaml").is_file() and (run / "manifest.json").is_file()):
        return None
    try:
        teacher = load_recipe(run / "recipe.yaml").teacher.model
        return teacher if parse_reference(teacher).kind != "api" else None
    except StillhouseError:
        return None
