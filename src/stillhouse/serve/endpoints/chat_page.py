"""`GET /` and `GET /page/{path}`: the chat page and its files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from stillhouse.serve.context import ServerContext
from stillhouse.serve.error_responses import not_found

PAGE = Path(__file__).parents[1] / "page"
MEDIA_TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".html": "text/html",
    ".woff2": "font/woff2",
}


@cache
def _paths() -> frozenset[str]:
    return frozenset(file.relative_to(PAGE).as_posix() for file in PAGE.rglob("*") if file.is_file())


async def get_page(context: ServerContext, request: Request) -> Response:
    """Returns a file of the chat page."""
    name = request.path_params.get("path", "index.html")
    path = PAGE / name
    # Compared with the paths that exist, not resolved: no spelling of `..` can then lead out of the folder.
    if name not in _paths() or path.suffix not in MEDIA_TYPES:
        return not_found(request, None)
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix])
