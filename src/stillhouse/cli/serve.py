"""``still serve``: models behind an OpenAI-compatible API and a chat page, on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from stillhouse.cli.options import Output, OutputFlags
from stillhouse.errors import UsageError

KEY = "STILLHOUSE_API_KEY"
KEY_ENV = "OPENAI_API_KEY"
EXAMPLES = """\
Examples:
  still serve embedded:smollm2
  still serve runs/quickstart/student
  still serve mine=runs/mine/student big=models/big.gguf --port 9000
  still serve student.gguf --host 0.0.0.0
  still serve student.gguf big=api:http://gpu.example:8000/v1#org/model"""


def serve(
    *models: Annotated[str, Parameter(metavar="MODEL")],
    host: str = "127.0.0.1",
    port: int = 8765,
    queue: int = 64,
    idle: Annotated[float, Parameter(metavar="MINUTES")] = 0.0,
    name: Annotated[tuple[str, ...], Parameter(metavar="HOST", negative="", show_default=False)] = (),
    api_key_env: Annotated[
        tuple[str, ...], Parameter(metavar="[MODEL=]VARIABLE", negative="", show_default=False)
    ] = (),
    watermark: Annotated[Path | None, Parameter(metavar="KEYFILE")] = None,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Serve models to a chat page and to OpenAI clients, on this machine only.

    With STILLHOUSE_API_KEY in the environment, clients must send it as their key.
    Nothing that is asked or answered is logged or leaves the machine; only what is asked of an `api:`
    model goes on to its server.

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
    api_key_env
        Environment variable with the key for the servers of `api:` models, or of one of them;
        OPENAI_API_KEY where nothing is said.
    watermark
        Mark every answer (green list, window 2) with the key in this file: 64 hexadecimal digits.
        Only safetensors models; answers at temperature 0 stay as they are.
    """
    from stillhouse.serve import serve as listen
    from stillhouse.watermark import Mark, read_key

    if not models:
        raise UsageError("no model was named", hint="Try: still serve embedded:smollm2")
    key = os.environ.get(KEY) or None
    references = _named(models)
    listen(
        references,
        api_key_envs=_key_variables(references, api_key_env),
        host=host,
        port=port,
        queue=queue,
        idle_s=60 * idle,
        api_key=key,
        names=name,
        marker=None if watermark is None else Mark(read_key(watermark)),
    )


def _named(models: tuple[str, ...]) -> dict[str, str]:
    """Name -> reference; a run's student brings its teacher, where that is a model on this machine."""
    from stillhouse.models import parse_reference

    named: dict[str, str] = {}
    for text in models:
        name, equals, reference = text.partition("=")
        if not equals or "/" in name or ":" in name:
            name, reference = "", text
        parsed = parse_reference(reference)
        name = name or _short_name(reference, parsed.name, parsed.path)
        if name in named:
            raise UsageError(f"two models are named {name!r}", hint="Write NAME=REFERENCE for one of them.")
        named[name] = reference
    for text in list(named.values()):
        teacher = _teacher(Path(text).parent)
        if teacher and teacher not in named.values():
            named.setdefault("teacher" if len(models) == 1 else f"{Path(text).parent.name}-teacher", teacher)
    return named


def _key_variables(references: dict[str, str], given: tuple[str, ...]) -> dict[str, str]:
    """Name of an `api:` model -> environment variable with the key for its server."""
    from stillhouse.models import parse_reference

    forwarded = [name for name, text in references.items() if parse_reference(text).kind == "api"]
    variables = dict.fromkeys(forwarded, KEY_ENV)
    for text in sorted(given, key=lambda text: "=" in text):  # one for all of them gives way to one's own
        model, _, variable = text.rpartition("=")
        if model and model not in forwarded:
            raise UsageError(
                f"--api-key-env {text}: no api: model is named {model!r}",
                hint=f"There is {', '.join(forwarded) or 'none'}.",
            )
        variables |= {model: variable} if model else dict.fromkeys(forwarded, variable)
    return variables


def _short_name(reference: str, name: str | None, path: Path | None) -> str:
    if name:
        return name.rpartition("/")[2]
    assert path is not None
    if path.name == "student":
        return path.resolve().parent.name
    return path.stem if path.suffix == ".gguf" else path.resolve().name


def _teacher(run: Path) -> str | None:
    """The teacher of a run, where it is a local model that is still there."""
    from stillhouse.errors import StillhouseError
    from stillhouse.models import parse_reference
    from stillhouse.recipe.load import load_recorded_recipe

    if not ((run / "recipe.yaml").is_file() and (run / "manifest.json").is_file()):
        return None
    try:
        teacher = load_recorded_recipe(run / "recipe.yaml")[0].teacher.model
        return teacher if parse_reference(teacher).kind != "api" else None
    except StillhouseError:
        return None
