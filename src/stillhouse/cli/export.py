"""``still export``: exports a student to GGUF for llama.cpp and Ollama."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from stillhouse.cli.options import Output, OutputFlags
from stillhouse.console import console

if TYPE_CHECKING:
    from stillhouse.export import ExportedFile

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
    """Export a student to GGUF, checked against the original, with an Ollama Modelfile.

    Parameters
    ----------
    directory
        A student's directory, a finished run's, or a LoRA adapter's.
    to
        The format.
    quantize
        The type of the weights; each type gives one file. f16 and q8_0 are closest to the original, the k
        types are smaller and less exact (measured in docs/export.md).
    out
        The file, or a directory for several files (default: gguf/NAME-TYPE.gguf in DIR, or in its run's
        directory).
    replace
        Overwrite existing files.
    """
    from stillhouse.export import export_gguf

    files = export_gguf(directory, tuple(dict.fromkeys(quantize)), out, replace=replace)
    rows = [
        [file.type, str(file.path), f"{file.bytes / 1e6:,.1f}", f"{max(file.comparison.divergence, 0):.2g}"]
        for file in files
    ]
    console.table("Exported", ["type", "file", "MB", "KL, nats/token"], rows)
    console.data({"directory": str(directory), "files": [_to_json(file) for file in files]})
    if files[0].comparison.runtime_divergence is None:
        console.info("xllamacpp is not installed, so llama.cpp did not check the file; Stillhouse did")
    if files[0].window is not None:
        console.info(
            f"llama.cpp has no sliding window for this architecture, so the context ends where it would "
            f"begin: at {files[0].window:,} tokens"
        )
    if stripping := files[0].stripping:
        console.info(
            f"beside {len(stripping)} tokens ({stripping[0]} …) transformers drops white space that "
            "llama.cpp and Ollama keep; still serve drops it"
        )
    if files[0].template == "file":
        console.info(
            "a Modelfile cannot express the chat template; Ollama must recognise the one in the GGUF file"
        )
    console.hint(f"ollama create NAME -f {files[0].modelfile}")


def _to_json(file: ExportedFile) -> dict[str, Any]:
    return {
        "type": file.type,
        "path": str(file.path),
        "bytes": file.bytes,
        "modelfile": str(file.modelfile),
        "template": file.template,
        "context_length": file.context_length,
        "divergence": file.comparison.divergence,
        "checked_with_llama_cpp": file.comparison.runtime_divergence is not None,
    }
