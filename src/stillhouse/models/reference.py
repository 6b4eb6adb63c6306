"""Parses references, the names of models in a recipe or on the command line.

`directory` · `file.gguf` · `embedded:smollm2` · `hub:org/name` · `api:https://host/v1#model`

A run's directory names its student. Parsing checks that local paths exist, but reads no file and opens no
connection. `describe` and `load_weights` check the model itself.
"""

from __future__ import annotations

import difflib
import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from stillhouse.errors import InvalidReferenceError, ModelNotFoundError
from stillhouse.models.embedded import EMBEDDED, embedded_path

Kind = Literal["directory", "gguf", "embedded", "hub", "api"]

_FORMS = "a directory, file.gguf, embedded:smollm2, hub:org/name, or api:https://host/v1#model"
_SCHEMES = ("embedded", "hub", "api")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Reference:
    """A parsed reference."""

    kind: Kind
    text: str
    """As the user wrote it."""
    path: Path | None = None
    """`directory`, `gguf`, `embedded`: the path of the files."""
    url: str | None = None
    """`api`: the base address, without the model's name; it may have a query."""
    name: str | None = None
    """`hub`: org/name, optionally with @revision; `api`: the model's name; `embedded`: its short name."""

    @property
    def is_gguf(self) -> bool:
        """Whether the weights are one GGUF file."""
        return self.kind in ("gguf", "embedded")

    @property
    def is_remote(self) -> bool:
        """Whether it is an API on another machine."""
        return self.kind == "api" and urlsplit(self.url or "").hostname not in _LOOPBACK

    def endpoint(self, path: str) -> str:
        """`api`: the address of ``path`` below the base; the base's query (Azure's version) follows it."""
        parts = urlsplit(self.url or "")
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}{path}"))


def parse_reference(text: str) -> Reference:
    """Parses a reference.

    Raises:
        InvalidReferenceError: it is malformed; the hint gives the nearest valid form.
        ModelNotFoundError: there is no model of this name.
    """
    text = text.strip()
    scheme, colon, rest = text.partition(":")
    if colon and scheme in _SCHEMES:
        return {"embedded": _embedded, "hub": _hub, "api": _api}[scheme](text, rest)
    if text.startswith(("http://", "https://")):
        raise InvalidReferenceError(
            f"{text!r} is not a model reference", hint=f"For an API, write api:{text}#MODEL."
        )
    return _local(text)


def _embedded(text: str, name: str) -> Reference:
    if name not in EMBEDDED:
        near = difflib.get_close_matches(name.lower(), EMBEDDED, n=1, cutoff=0.4)
        raise InvalidReferenceError(
            f"there is no embedded model {name!r}",
            hint=f"Did you mean embedded:{near[0]}?" if near else f"Known: {', '.join(EMBEDDED)}.",
        )
    path = embedded_path(name)
    if path is None:
        raise ModelNotFoundError(
            f"the embedded model {name!r} is not on this machine", hint=f"still fetch-embedded {name}"
        )
    return Reference("embedded", text, path=path, name=name)


def _hub(text: str, name: str) -> Reference:
    if not _HUB_NAME.fullmatch(name):
        raise InvalidReferenceError(
            f"{text!r} is not a hub name", hint="Write hub:org/name or hub:org/name@revision."
        )
    return Reference("hub", text, name=name)


def _api(text: str, rest: str) -> Reference:
    url, _, model = rest.partition("#")
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  urlsplit validates the port only when it is read
    except ValueError as error:
        raise InvalidReferenceError(f"{text!r} has no valid address: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InvalidReferenceError(
            f"{text!r} has no address",
            hint="Write api:https://host/v1#model, with the model's name after '#'.",
        )
    if not model:
        raise InvalidReferenceError(f"{text!r} names no model", hint=f"Write {text.rstrip('#')}#MODEL.")
    return Reference("api", text, url=url.rstrip("/"), name=model)


def _local(text: str) -> Reference:
    path = _path(text)
    if text and path.is_dir():
        student = path / "student"
        is_run = not (path / "config.json").is_file() and (student / "config.json").is_file()
        return Reference("directory", text, path=student if is_run else path)
    if path.is_file():
        if path.suffix == ".gguf":
            return Reference("gguf", text, path=path)
        raise InvalidReferenceError(
            f"{text} is a file but not a GGUF file",
            hint="Name the model's directory (config.json and safetensors), or a .gguf file.",
        )
    raise ModelNotFoundError(f"no model at {text!r}", hint=_nearest(text, path))


def _path(text: str) -> Path:
    """``text`` as a path that the operating system accepts, whether or not it exists."""
    path = Path(text)
    try:
        path = path.expanduser()
        path.stat()
    except (RuntimeError, ValueError) as error:  # ~nobody; a null character, half a surrogate pair
        raise InvalidReferenceError(f"no model at {text!r}: {error}") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidReferenceError(f"no model at {text[:60]!r}…: {error.strerror}") from error
    return path


def _nearest(text: str, path: Path) -> str:
    """A hint with the likeliest intended reference."""
    scheme, colon, rest = text.partition(":")
    if colon and (near := difflib.get_close_matches(scheme.lower(), _SCHEMES, n=1, cutoff=0.6)):
        return f"Did you mean {near[0]}:{rest}?"
    if near := difflib.get_close_matches(text.lower(), EMBEDDED, n=1, cutoff=0.7):
        return f"Did you mean embedded:{near[0]}?"
    if path.parent.is_dir():
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir() or p.suffix == ".gguf"]
        if near := difflib.get_close_matches(path.name, siblings, n=1):
            return f"Did you mean {path.parent / near[0]}?"
    if _HUB_NAME.fullmatch(text):
        return f"For the model hub, write hub:{text}. A reference is {_FORMS}."
    return f"A reference is {_FORMS}."
