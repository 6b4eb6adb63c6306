"""A model's directory in, checked GGUF files with their Modelfiles out.

Each file is written under another name beside its place, read back and checked, and only then takes
its name: a crash or a full disk leaves nothing there, or the file that was there before.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stillhouse.console import console
from stillhouse.errors import MissingExtraError, StorageError, UsageError
from stillhouse.export.check import check_file
from stillhouse.export.header import add_header, architecture_of
from stillhouse.export.modelfile import Template, modelfile, readme
from stillhouse.export.quantise import MIXES, kinds_of, quantise, require_type, stored_bytes
from stillhouse.export.source import STUDENT, Source, open_source
from stillhouse.export.tensors import ExportedTensor, exported_tensors
from stillhouse.export.tokenizer import Vocabulary, vocabulary_of
from stillhouse.files import atomic_path, atomic_write, storage_errors

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType as Kind, GGUFWriter


@dataclass(frozen=True)
class ExportedFile:
    """One written file."""

    type: str
    path: Path
    bytes: int
    modelfile: Path
    template: Template
    """Where the chat template is: in the Modelfile too, in the file alone, or nowhere (there is none)."""
    checked_with_llama_cpp: bool
    """Whether llama.cpp loaded the file and cut the sample texts the same (xllamacpp was there)."""


def export_gguf(
    directory: Path, types: Sequence[str], out: Path | None = None, *, replace: bool = False
) -> list[ExportedFile]:
    """Writes the model in ``directory`` as GGUF, once for each of ``types``.

    Args:
        directory: a model's directory, a finished run's, or an adapter's.
        types: keys of `MIXES`.
        out: a .gguf file for one type, else a directory; by default gguf/ in the model's or run's directory.
        replace: whether files that are there already are replaced.

    Raises:
        ModelError, ModelNotFoundError: the model cannot be exported, or what came out is not it.
        UsageError: a target exists, or one file is named for several types.
        StorageError: the disk is full, or the place may not be written.
        MissingExtraError: a package that a type takes is not installed.
    """
    try:
        import gguf  # noqa: F401  asked for before anything is read
    except ImportError as error:
        raise MissingExtraError(
            "writing GGUF needs the gguf package", hint="pip install 'stillhouse[gguf]'"
        ) from error
    for name in types:
        require_type(name)
    with console.progress("read", 2, "steps") as progress:
        source = open_source(directory)
        architecture = architecture_of(source.config)
        progress.advance()
        vocabulary = vocabulary_of(source)
        progress.advance()
    targets = {name: _target(source, name, out, several=len(types) > 1) for name in types}
    if not replace:
        _require_free(targets.values())
    tensors = list(exported_tensors(source, architecture))
    done = [_export(source, vocabulary, tensors, name, path) for name, path in targets.items()]
    _add_card(source, done)
    return done


def _target(source: Source, name: str, out: Path | None, *, several: bool) -> Path:
    if out is not None and out.suffix == ".gguf":
        if several:
            raise UsageError(
                f"{out} is one file, but several types are to be written", hint="Give --out a directory."
            )
        return out
    beside = source.path.parent if source.path.name == STUDENT else source.path  # a run's student is sealed
    return (out or beside / "gguf") / f"{source.name}-{name}.gguf"


def _modelfile_of(path: Path) -> Path:
    return path.with_suffix(".Modelfile")


def _require_free(paths: Iterable[Path]) -> None:
    for path in paths:
        for file in (path, _modelfile_of(path)):
            with storage_errors(file):
                exists = file.exists()
            if exists:
                raise UsageError(
                    f"{file} exists already",
                    hint="Choose another place with --out, or write over it with --replace.",
                )


def _export(
    source: Source, vocabulary: Vocabulary, tensors: Sequence[ExportedTensor], name: str, path: Path
) -> ExportedFile:
    kinds = kinds_of(tensors, MIXES[name])
    with atomic_path(path) as temporary:
        _require_room(path, sum(stored_bytes(t.shape, k) for t, k in zip(tensors, kinds, strict=True)))
        with _short_writes(path):
            _write(temporary, source, vocabulary, tensors, kinds, name)
        sizes = {tensor.name: math.prod(tensor.shape) for tensor in tensors}
        asked = check_file(temporary, source, vocabulary, sizes)
    text, template = modelfile(source, path.name, add_bos=vocabulary.add_bos)
    atomic_write(_modelfile_of(path), text)
    return ExportedFile(name, path, path.stat().st_size, _modelfile_of(path), template, asked)


def _write(
    path: Path,
    source: Source,
    vocabulary: Vocabulary,
    tensors: Sequence[ExportedTensor],
    kinds: Sequence[Kind],
    name: str,
) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture_of(source.config).name)
    _add_general(writer, source, name)
    add_header(writer, source.config)
    vocabulary.add_to(writer)
    if source.template.declared:
        writer.add_chat_template(source.template.source)
    for tensor, kind in zip(tensors, kinds, strict=True):
        size = stored_bytes(tensor.shape, kind)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        numbers = sum(math.prod(tensor.shape) for tensor in tensors)
        with console.progress(f"export {name}", numbers, "weights") as progress:
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
    writer.add_file_type(MIXES[name].file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)


def _require_room(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise StorageError(
            f"the disk is too full: {path} takes {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free",
            hint="Free some space, choose a smaller type with --quantize, or another place with --out.",
        )


@contextmanager
def _short_writes(path: Path) -> Iterator[None]:
    """Says that the disk is full where numpy only says that it wrote less than it should (no errno)."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise StorageError(
            f"the disk is full: could not write {path}", hint="Free some space, or choose another place."
        ) from error


def _add_card(source: Source, done: Sequence[ExportedFile]) -> None:
    """The model's own card, or a short one, in each directory that has none."""
    for place in {exported.path.parent for exported in done}:
        if (place / "README.md").exists():
            continue
        own = source.path / "README.md"
        files = [exported.path.name for exported in done if exported.path.parent == place]
        atomic_write(place / "README.md", own.read_bytes() if own.is_file() else readme(source, files))
