"""Export from Python."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stillhouse.errors import UsageError
from stillhouse.export.write import ExportedFile, export_gguf

if TYPE_CHECKING:
    from stillhouse.models import Weights

GgufType = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"]


def export(
    model: str | os.PathLike[str] | Weights,
    out: str | os.PathLike[str] | None = None,
    *,
    to: Literal["gguf"] = "gguf",
    quantize: GgufType = "q8_0",
    replace: bool = False,
) -> ExportedFile:
    """Exports a model to a GGUF file for llama.cpp and Ollama, checked against the original.

    Example::

        file = st.export("runs/mine", quantize="q4_k_m")
        file.path, file.bytes, file.modelfile   # `ollama create NAME -f MODELFILE`

    Args:
        model: the directory of a model, a run or a LoRA adapter; or a model from `load`.
        out: the file (default: gguf/NAME-TYPE.gguf beside the model; required for a model in memory).
        to: the format.
        quantize: type of the weights; docs/export.md has their measured losses.
        replace: overwrite existing files.

    Returns:
        ``path``, ``bytes``, ``modelfile`` (for Ollama), ``type``, ``checked_with_llama_cpp`` …

    Raises:
        ModelNotFoundError, ModelError: there is no model, or it cannot be exported.
        UsageError: the file exists, or a model in memory has no ``out``.
        MissingExtraError: the extra `gguf` is not installed.
    """
    if to != "gguf":
        raise UsageError(f"there is no format {to!r}", hint="Use to='gguf'.")
    file = None if out is None else Path(out)
    if isinstance(model, str | os.PathLike):
        return export_gguf(Path(model), (quantize,), file, replace=replace)[0]
    if file is None:
        raise UsageError("a model in memory needs a file to export to", hint="st.export(model, 'model.gguf')")
    from stillhouse.distill import save

    with tempfile.TemporaryDirectory(prefix="stillhouse-") as temporary:
        # The name in the file's header is that of the directory.
        directory = save(model, Path(temporary) / file.stem, dtype="float32")
        return export_gguf(directory, (quantize,), file, replace=replace)[0]
