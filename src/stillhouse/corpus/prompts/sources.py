"""Expands `prompts.source` to the files it names: one file, a directory, a glob, or several with commas."""

from __future__ import annotations

import glob
import re
from collections import Counter
from pathlib import Path

from stillhouse.corpus.prompts.files import FORMATS, file_format
from stillhouse.errors import CorpusError
from stillhouse.files import read_json

_SAVED_DATASET, _SAVED_SPLITS = "state.json", "dataset_dict.json"
_METADATA = {_SAVED_DATASET, _SAVED_SPLITS, "dataset_info.json", "dataset_infos.json"}
"""Files that `datasets` writes beside the data."""
_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?![a-z])", re.IGNORECASE)
"""A split's name at the start of a file's or folder's name."""


def source_files(source: str) -> list[Path]:
    """The files that ``source`` names, in order.

    Raises:
        CorpusError: it names no file, or a directory with files of several kinds or splits.
    """
    if "\0" in source:
        raise CorpusError(f"{source!r} is not a file name")
    path = Path(source)
    try:
        exists, is_directory = path.exists(), path.is_dir()
    except OSError as error:  # e.g. a name that is too long
        raise CorpusError(f"{source[:200]} cannot be read: {error.strerror or error}") from error
    if is_directory:
        return _files_of_directory(path)
    if exists:
        return [path]
    if re.search(r"[*?\[]", source):
        matches = [Path(name) for name in sorted(glob.glob(source, recursive=True))]  # noqa: PTH207  (absolute patterns)
        files = [match for match in matches if match.is_file()]
        if not files:
            raise CorpusError(f"no file matches {source}")
        return files
    parts = [part.strip() for part in source.split(",") if part.strip()]
    if len(parts) < 2:
        return [path]
    # A recipe's paths are relative to its file: the first name carries the directory, the others follow it.
    folder = Path(parts[0]).parent
    beside = [str(folder / part) if (folder / part).exists() else part for part in parts]
    return [file for part in beside for file in source_files(part)]


def _files_of_directory(directory: Path) -> list[Path]:
    """The data files of a directory, those of `datasets.save_to_disk` included."""
    if (directory / _SAVED_SPLITS).is_file():
        splits = _listed(directory / _SAVED_SPLITS, "splits")
        if len(splits) != 1:
            raise CorpusError(
                f"{directory} holds several splits: {', '.join(map(str, splits))}",
                hint=f"Name one of them, e.g. {directory / str(splits[0] if splits else 'train')}.",
            )
        return _files_of_directory(directory / str(splits[0]))
    if (directory / _SAVED_DATASET).is_file():
        return [
            directory / str(item["filename"]) for item in _listed(directory / _SAVED_DATASET, "_data_files")
        ]
    files = sorted(path for path in directory.rglob("*") if _is_data(path, directory))
    kinds = Counter(str(file_format(path)) for path in files)
    if not files:
        raise CorpusError(f"{directory} is a directory without a file of prompts ({', '.join(FORMATS)})")
    if len(kinds) > 1:
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        raise CorpusError(
            f"{directory} holds files of several kinds: {found}",
            hint=f"Name the files with a pattern, e.g. {directory}/*{min(kinds)}.",
        )
    splits = sorted({split for path in files if (split := _split_of(path, directory))})
    if len(splits) > 1:
        raise CorpusError(
            f"{directory} holds files of several splits: {', '.join(splits)}",
            hint=f"Name the files with a pattern, e.g. {directory}/**/{splits[-1]}*.",
        )
    return files


def _listed(path: Path, key: str) -> list:
    """The list under ``key`` in a metadata file of `datasets`."""
    try:
        value = read_json(path)[key]
    except (ValueError, OSError, KeyError, TypeError, RecursionError) as error:
        raise CorpusError(f"{path} is not what `datasets` writes: it lists no {key}") from error
    if not isinstance(value, list):
        raise CorpusError(f"{path} is not what `datasets` writes: {key} is no list")
    return value


def _is_data(path: Path, directory: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
    return not hidden and path.name not in _METADATA and file_format(path) is not None and path.is_file()


def _split_of(path: Path, directory: Path) -> str | None:
    for part in path.relative_to(directory).parts:
        if match := _SPLIT.match(part):
            return match[1].lower()
    return None
