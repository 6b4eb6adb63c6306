"""Writes a model as checked GGUF files with Modelfiles.

Each file is written under a temporary name in the same directory, read back, checked, and only then renamed.
A crash or a full disk leaves no file behind, or the previous one.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from stillhouse.console import console
from stillhouse.errors import MissingExtraError, StorageError, UsageError
from stillhouse.export.check_gguf import check_file
from stillhouse.export.check_logits import LogitComparison
from stillhouse.export.header import add_header, context_length
from stillhouse.export.modelfile import TemplateLocation, modelfile, readme
from stillhouse.export.quantise import QUANTISATIONS, quantise, require_type, stored_bytes, tensor_types
from stillhouse.export.source import STUDENT, Source, open_source
from stillhouse.export.tensors import ExportedTensor, exported_tensors
from stillhouse.export.tokenizer import Vocabulary, vocabulary_of
from stillhouse.files import atomic_path, atomic_write, storage_errors
from stillhouse.models import MODEL_TYPES, Architecture

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType as GgmlType, GGUFWriter

    from stillhouse.models import Weights


GgufType = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"]


@dataclass(frozen=True)
class ExportedFile:
    """One written file."""

    type: str
    path: Path
    bytes: int
    modelfile: Path
    template: TemplateLocation
    """Where the chat template is: in the Modelfile, too; in the GGUF file only; or none exists."""
    comparison: LogitComparison
    """How near the file is to the model."""
    context_length: int
    """The longest context for which the file computes what the model computes."""
    window: int | None
    """The model's sliding window where llama.cpp has none, so that it ends the context."""
    stripping: list[str]
    """Tokens beside which transformers drops white space that llama.cpp keeps."""


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
        ``path``, ``bytes``, ``modelfile`` (for Ollama), ``comparison`` with the model …

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


def export_gguf(
    directory: Path, types: Sequence[str], out: Path | None = None, *, replace: bool = False
) -> list[ExportedFile]:
    """Writes the model in ``directory`` as GGUF, once for each of ``types``.

    Args:
        directory: a model's directory, a finished run's, or an adapter's.
        types: keys of `QUANTISATIONS`.
        out: a .gguf file for one type, or a directory; by default gguf/ in the model's or run's directory.
        replace: whether to overwrite existing files.

    Raises:
        ModelError, ModelNotFoundError: the model cannot be exported, or the file differs from it.
        UsageError: a target exists, or ``out`` is one file for several types.
        StorageError: the disk is full, or the target is not writable.
        MissingExtraError: a package that a type needs is not installed.
    """
    try:
        import gguf  # noqa: F401  fail before reading a model
    except ImportError as error:
        raise MissingExtraError(
            "writing GGUF needs the gguf package", hint="pip install 'stillhouse[gguf]'"
        ) from error
    for name in types:
        require_type(name)
    with console.progress("read", 2, "steps") as progress:
        source = open_source(directory)
        architecture = MODEL_TYPES[source.config.model_type]
        progress.advance()
        vocabulary = vocabulary_of(source)
        progress.advance()
    targets = {name: _target(source, name, out, many=len(types) > 1) for name in types}
    if not replace:
        _require_absent(targets.values())
    tensors = list(exported_tensors(source, architecture))
    exported = [
        _export(source, architecture, vocabulary, tensors, name, path) for name, path in targets.items()
    ]
    _add_card(source, exported)
    return exported


def _target(source: Source, name: str, out: Path | None, *, many: bool) -> Path:
    if out is not None and out.suffix == ".gguf":
        if many:
            raise UsageError(
                f"{out} is one file, but --quantize names several types", hint="Give --out a directory."
            )
        return out
    # A run's manifest holds the hashes of its student's folder, so no file may be added there.
    parent = source.path.parent if source.path.name == STUDENT else source.path
    return (out or parent / "gguf") / f"{source.name}-{name}.gguf"


def _modelfile_of(path: Path) -> Path:
    return path.with_suffix(".Modelfile")


def _require_absent(paths: Iterable[Path]) -> None:
    for path in paths:
        for file in (path, _modelfile_of(path)):
            with storage_errors(file):
                exists = file.exists()
            if exists:
                raise UsageError(
                    f"{file} exists already",
                    hint="Choose another path with --out, or overwrite it with --replace.",
                )


def _export(
    source: Source,
    architecture: Architecture,
    vocabulary: Vocabulary,
    tensors: Sequence[ExportedTensor],
    name: str,
    path: Path,
) -> ExportedFile:
    kinds = tensor_types(tensors, QUANTISATIONS[name])
    with atomic_path(path) as temporary:
        _require_disk_space(path, sum(stored_bytes(t.shape, k) for t, k in zip(tensors, kinds, strict=True)))
        with _detect_short_writes(path):
            _write(temporary, source, vocabulary, tensors, kinds, name)
        sizes = {tensor.name: math.prod(tensor.shape) for tensor in tensors}
        comparison = check_file(temporary, source, architecture, vocabulary, sizes, name)
    # Only now does the file have its name, which the Modelfile refers to.
    context = context_length(source.config)
    window = context if context < source.config.max_position_embeddings else None
    text, template = modelfile(source, path.name, add_bos=vocabulary.add_bos, max_context=window)
    atomic_write(_modelfile_of(path), text)
    return ExportedFile(
        name,
        path,
        path.stat().st_size,
        _modelfile_of(path),
        template,
        comparison,
        context,
        window,
        vocabulary.stripping,
    )


def _write(
    path: Path,
    source: Source,
    vocabulary: Vocabulary,
    tensors: Sequence[ExportedTensor],
    kinds: Sequence[GgmlType],
    name: str,
) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, MODEL_TYPES[source.config.model_type].name)
    _add_general(writer, source, name)
    add_header(writer, source.config)
    vocabulary.add_to(writer)
    if source.template.declared:
        named = {"default": source.template.source, **source.named_templates}
        writer.add_chat_template([{"name": name, "template": text} for name, text in named.items()])
    for tensor, kind in zip(tensors, kinds, strict=True):
        size = stored_bytes(tensor.shape, kind)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        weights = sum(math.prod(tensor.shape) for tensor in tensors)
        with console.progress(f"export {name}", weights, "weights") as progress:
            for tensor, kind in zip(tensors, kinds, strict=True):
                writer.write_tensor_data(quantise(tensor.read(), kind, tensor.name))
                progress.advance(math.prod(tensor.shape))
    finally:
        writer.close()


def _add_general(writer: GGUFWriter, source: Source, name: str) -> None:
    from gguf import GGML_QUANT_VERSION

    writer.add_type("model")
    writer.add_name(source.name)
    if source.license:
        writer.add_license(source.license)
    writer.add_file_type(QUANTISATIONS[name].file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)


def _require_disk_space(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise StorageError(
            f"the disk is too full: {path} takes {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free",
            hint="Free some space, choose a smaller type with --quantize, or another path with --out.",
        )


@contextmanager
def _detect_short_writes(path: Path) -> Iterator[None]:
    """Turns numpy's error for an incomplete write, which has no errno, into StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise StorageError(
            f"the disk is full: could not write {path}", hint="Free some space, or choose another path."
        ) from error


def _add_card(source: Source, exported: Sequence[ExportedFile]) -> None:
    """Adds the model's own card, or a short one, to each directory without a README.md."""
    for directory in {file.path.parent for file in exported}:
        if (directory / "README.md").exists():
            continue
        own = source.path / "README.md"
        names = [file.path.name for file in exported if file.path.parent == directory]
        atomic_write(directory / "README.md", own.read_bytes() if own.is_file() else readme(source, names))
