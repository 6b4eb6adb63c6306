"""``still export``: a student as GGUF, for llama.cpp and Ollama."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from stillhouse.cli.options import Output, OutputFlags
from stillhouse.console import console

EXAMPLES = """\
Examples:
  still export runs/quickstart --to gguf
  still export runs/quickstart --to gguf --quantize q4_k_m --out small.gguf
  still export runs/mine/student --to gguf --quantize f16 q8_0 --out models"""

Type = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"]


def export(
    directory: Annotated[Path, Parameter(metavar="DIR")],
    /,
    *,
    to: Literal["gguf"],
    quantize: Annotated[
        tuple[Type, ...], Parameter(consume_multiple=True, negative="", show_default=" ".join)
    ] = ("q8_0",),
    out: Annotated[Path | None, Parameter(metavar="FILE|DIR")] = None,
    replace: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Write a student as GGUF, checked against the original, with an Ollama Modelfile.

    Parameters
    ----------
    directory
        A student's directory, a finished run's, or a LoRA adapter's.
    to
        The format.
    quantize
        How weights are stored; several types make several files. f16 and q8_0 are nearest to the original,
        the k types are smaller and less exact (measured in docs/export.md).
    out
        The file, or a directory for several (default: gguf/NAME-TYPE.gguf in DIR, or in its run's directory).
    replace
        Write over files that are there already.
    """
    from stillhouse.export import export_gguf

    done = export_gguf(directory, tuple(dict.fromkeys(quantize)), out, replace=replace)
    rows = [[found.type, str(found.path), f"{found.bytes / 1e6:,.1f}"] for found in done]
    console.table("Exported", ["type", "file", "MB"], rows)
    console.data({"directory": str(directory), "files": [_facts(found) for found in done]})
    if not done[0].checked_with_llama_cpp:
        console.info("llama.cpp was not asked (xllamacpp is not installed); the tokenizer was checked here")
    if done[0].template == "file":
        console.info(
            "the chat template says more than a Modelfile can; Ollama has to know the one in the file"
        )
    console.hint(f"ollama create NAME -f {done[0].modelfile}")


def _facts(found: Any) -> dict[str, Any]:
    return {
        "type": found.type,
        "path": str(found.path),
        "bytes": found.bytes,
        "modelfile": str(found.modelfile),
        "template": found.template,
        "checked_with_llama_cpp": found.checked_with_llama_cpp,
    }
