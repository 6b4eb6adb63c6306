"""``still push``: uploads a student to the Hugging Face Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from stillhouse.cli.options import AcceptTerms, Output, OutputFlags
from stillhouse.console import console
from stillhouse.pages.numbers import format_bytes
from stillhouse.recipe import Purpose

if TYPE_CHECKING:
    from stillhouse.export import Upload, Uploaded

EXAMPLES = """\
Examples:
  still push runs/quickstart hub:me/quickstart --dry-run
  still push runs/quickstart hub:me/quickstart
  still push runs/mine/student hub:lab/mine --public --purpose commercial"""


def push(
    directory: Annotated[Path, Parameter(metavar="DIR")],
    target: Annotated[str, Parameter(metavar="hub:ME/NAME")],
    /,
    *,
    public: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    purpose: Annotated[Purpose | None, Parameter(show_default=False)] = None,
    accept_terms: AcceptTerms = None,
    dry_run: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Upload a student with its model card to the Hugging Face Hub, privately by default.

    The files and their size are listed before anything is sent. The teachers' terms are checked
    for the purpose; if they forbid it, nothing is sent. The token comes from HF_TOKEN or
    `hf auth login`. After an interruption the same command resumes.

    Parameters
    ----------
    directory
        A student's directory, or that of a finished run.
    target
        The repository, e.g. hub:me/my-student; it is created if it does not exist.
    public
        Make a new repository public. An existing one keeps its visibility.
    purpose
        What the published model is for (default: the recipe's purpose, or research).
    dry_run
        List files, size and terms, and send nothing.
    """
    from stillhouse.export import hub_endpoint, plan_upload

    upload = plan_upload(directory, target, purpose=purpose, accept_terms=accept_terms)
    record = _list(upload, public=public)
    if dry_run:
        console.data(record | {"dry_run": True})
        console.info("nothing was sent (--dry-run)")
        return
    endpoint = hub_endpoint()
    if endpoint != "https://huggingface.co":
        console.info(f"HF_ENDPOINT is set: files and token go to {endpoint}")
    result = _send(upload, public=public)
    console.data(record | {"url": result.url, "commit": result.commit, "private": result.private})
    if public and result.private:
        console.warn("the repository existed and is private; make it public in its settings on the Hub")
    if not public and not result.private:
        console.warn("the repository existed and is public")
    console.info(f"{'private' if result.private else 'public'}: {result.url}")


def _send(upload: Upload, *, public: bool) -> Uploaded:
    """Uploads with progress: on a terminal the client's own bar, which counts the bytes of each file."""
    from huggingface_hub.utils import disable_progress_bars

    from stillhouse.export import upload_files

    if sys.stderr.isatty() and not console.quiet:
        return upload_files(upload, public=public)
    disable_progress_bars()
    with console.progress("upload", len(upload.files), "files") as progress:
        return upload_files(upload, public=public, on_file=lambda name: progress.advance())


def _list(upload: Upload, *, public: bool) -> dict[str, Any]:
    """Prints what would be sent; returns it for --json."""
    rows = [[name, format_bytes(size)] for name, size in upload.files.items()]
    total = f"{len(rows)} files, {format_bytes(upload.bytes)}"
    visibility = "public" if public else "private"
    console.table(f"{upload.directory} → hub:{upload.repository} ({visibility})", ["file", "size"], rows)
    console.info(total)
    if upload.left_out:
        console.info(f"not part of the model, left out: {', '.join(upload.left_out)}")
    console.info(f"terms, for {upload.purpose}: {upload.verdict.reason}")
    for duty in upload.verdict.duties:
        console.info(f"  duty: {duty}")
    for warning in upload.warnings:
        console.warn(warning)
    return {
        "directory": str(upload.directory),
        "repository": upload.repository,
        "files": upload.files,
        "bytes": upload.bytes,
        "left_out": list(upload.left_out),
        "purpose": upload.purpose,
        "terms": upload.verdict.reason,
        "duties": list(upload.verdict.duties),
        "warnings": list(upload.warnings),
    }
