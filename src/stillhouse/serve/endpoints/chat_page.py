"""`GET /` and `GET /page/{name}`: the chat page and its files."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from stillhouse.serve.context import ServerContext
from stillhouse.serve.error_responses import not_found

PAGE = Path(__file__).parents[1] / "page"
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}


async def get_page(context: ServerContext, request: Request) -> Response:
    """Returns a file of the chat page."""
    name = request.path_params.get("name", "index.html")
    path = PAGE / name
    # Compared with the names that exist, not resolved: no spelling of `..` can then lead out of the folder.
    if name not in {file.name for file in PAGE.iterdir()} or path.suffix not in MEDIA_TYPES:
        return not_found(request, None)
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix])
