"""``still serve``: serves models to OpenAI clients and a chat page, on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from stillhouse.cli.options import Output, OutputFlags
from stillhouse.errors import UsageError

SERVER_KEY_ENV = "STILLHOUSE_API_KEY"
UPSTREAM_KEY_ENV = "OPENAI_API_KEY"
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
    Prompts and answers are not logged and do not leave the machine, except that requests for an
    `api:` model are passed on to its server.

    Parameters
    ----------
    models
        Model references, optionally with a name: NAME=REFERENCE. With the student of a run, its
        teacher is served too, if that is a model on this machine.
    host
        Address to listen on; any other than loopback lets other machines connect.
    port
        Port to listen on; 0 chooses a free one.
    queue
        Answers that may be running or waiting; further requests get HTTP 429.
    idle
        Unload a model after this many minutes without a request; 0 never unloads.
    name
        Another name by which clients call this server, e.g. that of a proxy.
    api_key_env
        Environment variable with the key for the servers of all `api:` models, or of MODEL;
        OPENAI_API_KEY by default.
    watermark
        Watermark every answer (green list, window 2) with the key in this file: 64 hexadecimal
        digits. Only for safetensors models; answers at temperature 0 are not changed.
    """
    from stillhouse.serve import run_server
    from stillhouse.watermark import Mark, read_key

    if not models:
        raise UsageError("no model is given", hint="Try: still serve embedded:smollm2")
    references = _named_references(models)
    run_server(
        references,
        api_key_envs=_key_variables(references, api_key_env),
        host=host,
        port=port,
        queue=queue,
        idle_s=60 * idle,
        api_key=os.environ.get(SERVER_KEY_ENV) or None,
        names=name,
        marker=None if watermark is None else Mark(read_key(watermark)),
    )


def _named_references(models: tuple[str, ...]) -> dict[str, str]:
    """Returns name -> reference, with the teachers of runs whose student is served."""
    from stillhouse.models import parse_reference

    named: dict[str, str] = {}
    for argument in models:
        name, equals, reference = argument.partition("=")
        # A path or an address may contain an equals sign; a name contains neither slash nor colon.
        if not equals or "/" in name or ":" in name:
            name, reference = "", argument
        parsed = parse_reference(reference)
        name = name or _short_name(reference, parsed.name, parsed.path)
        if name in named:
            raise UsageError(f"two models are named {name!r}", hint="Write NAME=REFERENCE for one of them.")
        named[name] = reference
    for reference in list(named.values()):
        run = Path(reference).parent
        teacher = _local_teacher(run)
        if teacher and teacher not in named.values():
            named.setdefault("teacher" if len(models) == 1 else f"{run.name}-teacher", teacher)
    return named


def _key_variables(references: dict[str, str], options: tuple[str, ...]) -> dict[str, str]:
    """Returns the name of each `api:` model -> environment variable with the key for its server."""
    from stillhouse.models import parse_reference

    api_models = [name for name, reference in references.items() if parse_reference(reference).kind == "api"]
    variables = dict.fromkeys(api_models, UPSTREAM_KEY_ENV)
    # Options for all models come first, so that those for a single model override them.
    for option in sorted(options, key=lambda option: "=" in option):
        model, _, variable = option.rpartition("=")
        if model and model not in api_models:
            raise UsageError(
                f"--api-key-env {option}: no api: model is named {model!r}",
                hint=f"The api: models are {', '.join(api_models)}."
                if api_models
                else "There is no api: model.",
            )
        variables |= {model: variable} if model else dict.fromkeys(api_models, variable)
    return variables


def _short_name(reference: str, name: str | None, path: Path | None) -> str:
    if name:
        return name.rpartition("/")[2]
    assert path is not None
    if path.name == "student":
        return path.resolve().parent.name
    return path.stem if path.suffix == ".gguf" else path.resolve().name


def _local_teacher(run: Path) -> str | None:
    """Returns the teacher of a run; None if ``run`` is not a run or its teacher is not on this machine."""
    from stillhouse.errors import StillhouseError
    from stillhouse.models import parse_reference
    from stillhouse.recipe.load import load_run_recipe

    if not ((run / "recipe.yaml").is_file() and (run / "manifest.json").is_file()):
        return None
    try:
        teacher = load_run_recipe(run).teacher.model
        return teacher if parse_reference(teacher).kind != "api" else None
    except StillhouseError:
        return None
