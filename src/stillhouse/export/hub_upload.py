"""Uploads a student to the Hugging Face Hub, with its model card.

What is uploaded is decided before any connection: the model's own files, not whatever else lies beside them.
A file that the Hub has already is not sent again, so an upload that was interrupted resumes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stillhouse import __version__
from stillhouse.errors import (
    ApiError,
    AuthenticationError,
    ModelNotFoundError,
    StillhouseError,
    UsageError,
)
from stillhouse.models import parse_reference, recipe_terms, require_safetensors, terms_of
from stillhouse.models.hub import ALL
from stillhouse.provenance import (
    Manifest,
    TermsVerdict,
    find_terms,
    naming_warning,
    require_all_allowed,
    require_allowed,
)
from stillhouse.recipe import Purpose, Recipe
from stillhouse.recipe.load import load_recorded_recipe

CARD = "README.md"
_TEXT_FILES = (".json", ".md", ".jinja", ".txt")
_TOKEN_HINT = (
    "Make a token with the right to write at https://huggingface.co/settings/tokens, "
    "then: export HF_TOKEN=…, or hf auth login."
)


@dataclass(frozen=True)
class Upload:
    """What an upload sends, and under which terms."""

    directory: Path
    repository: str
    """`name` or `organization/name`."""
    files: dict[str, int]
    """Name -> size in bytes."""
    left_out: tuple[str, ...]
    """Files and folders of the directory that are not part of the model."""
    purpose: Purpose
    verdict: TermsVerdict
    warnings: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


@dataclass(frozen=True)
class Uploaded:
    """An upload's result."""

    url: str
    commit: str
    private: bool


def plan_upload(
    directory: Path, target: str, *, purpose: Purpose | None = None, accept_terms: str | None = None
) -> Upload:
    """Decides what to upload, and checks the terms. Opens no connection.

    Args:
        directory: a student's, or a run's.
        target: ``hub:me/name``.
        purpose: what the published model is for; by default the recipe's purpose, or `research`.
        accept_terms: the reason for accepting unknown terms; by default the recipe's.

    Raises:
        UsageError: ``target`` is not a name on the Hub, or the model has no card.
        ModelNotFoundError: the directory holds no model.
        ModelError: its weights are not safetensors.
        TermsError: the terms of a teacher, or of the model itself, forbid the purpose or are unknown.
    """
    repository = _repository(target)
    path = _student(directory)
    require_safetensors(path)
    names = sorted(entry.name for entry in path.iterdir())
    files = [name for name in names if (path / name).is_file() and any(fnmatch(name, p) for p in ALL)]
    if CARD not in files:
        raise UsageError(
            f"{path} has no model card ({CARD}), which says what the model is and under which terms",
            hint=f"Finish its run (still run), which writes it; or write {path / CARD} yourself.",
        )
    purpose, verdict, warnings = _terms(path, repository, purpose, accept_terms)
    home = str(Path.home())
    if len(home) > 1:
        leaks = [name for name in files if name.endswith(_TEXT_FILES) and _mentions(path / name, home)]
        warnings += [f"{name} names your home directory ({home})" for name in leaks]
    return Upload(
        path,
        repository,
        {name: (path / name).stat().st_size for name in files},
        tuple(name for name in names if name not in files),
        purpose,
        verdict,
        tuple(warnings),
    )


def upload_files(
    upload: Upload, *, public: bool = False, on_file: Callable[[str], None] = lambda name: None
) -> Uploaded:
    """Creates the repository if it does not exist, and uploads everything in one commit.

    Large files are sent one after another before the commit; the Hub keeps those of an interrupted upload.
    The visibility of an existing repository does not change.

    Args:
        public: whether a new repository is public.
        on_file: called with the name of each file after it was sent.

    Raises:
        AuthenticationError: there is no token, or it may not write there.
        ApiError: the Hub cannot be reached, or refuses the upload.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    endpoint = hub_endpoint()
    if get_token() is None:
        raise AuthenticationError("there is no token for the Hub", hint=_TOKEN_HINT)
    api = HfApi(endpoint=endpoint, library_name="stillhouse", library_version=__version__)
    try:
        repository = api.create_repo(upload.repository, private=not public, exist_ok=True).repo_id
        private = bool(api.repo_info(repository).private)
        operations = []
        for name in sorted(upload.files, key=lambda name: (name == CARD, name)):
            operation = CommitOperationAdd(name, str(upload.directory / name))
            api.preupload_lfs_files(repository, [operation], free_memory=False)
            operations.append(operation)
            on_file(name)
        message = f"Upload {repository.rpartition('/')[2]} with Stillhouse {__version__}"
        commit = api.create_commit(repository, operations, commit_message=message)
    except Exception as error:  # the client raises a dozen types, and wraps some in RuntimeError
        raise _explained(error, upload.repository, endpoint) from error
    return Uploaded(f"{endpoint}/{repository}", commit.oid, private)


def hub_endpoint() -> str:
    """The Hub's address: HF_ENDPOINT, or https://huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _repository(target: str) -> str:
    try:
        reference = parse_reference(target)
    except ModelNotFoundError as error:
        raise UsageError(f"{target!r} is not a name on the Hub", hint="Write hub:me/name.") from error
    if reference.kind != "hub" or "@" in str(reference.name):
        raise UsageError(f"{target!r} is not a name on the Hub", hint="Write hub:me/name.")
    return str(reference.name)


def _student(directory: Path) -> Path:
    """The directory itself, or the student of a run."""
    reference = parse_reference(str(directory))
    if reference.kind != "directory" or reference.path is None:
        raise UsageError(
            f"{directory} is not a directory with a model",
            hint="Name a student's directory or its run's; GGUF files are uploaded with `hf upload`.",
        )
    return reference.path


def _terms(
    path: Path, repository: str, purpose: Purpose | None, accept_terms: str | None
) -> tuple[Purpose, TermsVerdict, list[str]]:
    """The purpose, the verdict on it, and warnings about the name."""
    run = path.parent
    name = repository.rpartition("/")[2]
    if path.name == "student" and (run / "recipe.yaml").is_file():
        recipe = load_recorded_recipe(run / "recipe.yaml")[0]
        purpose = purpose or recipe.purpose
        teachers, start = _run_terms(recipe, run)
        verdict = require_all_allowed(teachers, purpose, accept_terms or recipe.accept_terms, student=start)
        entries = [*teachers, *([start] if start else [])]
    else:
        purpose = purpose or "research"
        entries = [terms_of(str(path))]
        verdict = require_allowed(entries[0], purpose, accept_terms)
    warnings = [naming_warning(entry, name) for entry in entries]
    return purpose, verdict, list(dict.fromkeys(warning for warning in warnings if warning))


def _run_terms(recipe: Recipe, run: Path) -> tuple[Any, Any]:
    """The terms of a run's teachers and of the weights it started from, also where these are gone."""
    try:
        return recipe_terms(recipe)
    except StillhouseError:
        keys = str(Manifest.load(run).facts("terms").get("key", "unknown")).split(", ")
        teachers = tuple(find_terms(key, declared=key) for key in keys)
        student = recipe.student
        if student.init == "scratch":
            return teachers, None
        return teachers, teachers[0] if student.model is None else find_terms(student.model)


def _mentions(file: Path, text: str) -> bool:
    return text in file.read_text("utf-8", "replace")


def _explained(error: BaseException, repository: str, endpoint: str) -> StillhouseError:
    """The client's error as one of ours."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, StillhouseError):
        return error
    host = urlsplit(endpoint).netloc
    if isinstance(error, OfflineModeIsEnabled):
        return ApiError("HF_HUB_OFFLINE forbids connections to the Hub", hint="unset HF_HUB_OFFLINE")
    if isinstance(error, LocalTokenNotFoundError):
        return AuthenticationError("there is no token for the Hub", hint=_TOKEN_HINT)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        reason = error.server_message or str(error).splitlines()[0]
        if status == 401:
            return AuthenticationError(f"{host} refuses the token: {reason}", hint=_TOKEN_HINT)
        if status == 403:
            return AuthenticationError(
                f"the token may not write to {repository}: {reason}",
                hint=f"Is {repository.partition('/')[0]!r} your account or organization? {_TOKEN_HINT}",
            )
        return ApiError(f"{host} refuses the upload to {repository} ({status}): {reason}")
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return ApiError(
        f"the upload to {host} failed: {reason}",
        hint="Run the same command again; files that arrived are not sent again.",
    )
