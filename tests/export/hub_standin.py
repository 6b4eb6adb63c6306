"""A stand-in of the Hugging Face Hub on loopback: the part of its HTTP API that an upload uses.

The real huggingface_hub client drives it, without xet. Large files go through the LFS protocol.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TOKEN = "hf_writer"
READ_TOKEN = "hf_reader"


def refusal(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers={"X-Error-Message": message})


@dataclass
class HubStandIn:
    """Repositories, and every large file that arrived."""

    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Repository -> committed files."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 -> large file; kept also if no commit follows."""
    sent: list[str] = field(default_factory=list)
    """SHA-256 of each large file that a client sent."""
    fail_commits: int = 0
    requests: int = 0

    @property
    def app(self) -> Starlette:
        repository = "{owner}/{name}"
        routes = [
            ("POST", "/api/repos/create", self.create),
            ("POST", "/api/validate-yaml", self.validate),
            ("GET", f"/api/models/{repository}", self.info),
            ("POST", f"/api/models/{repository}/preupload/main", self.preupload),
            ("POST", f"/{repository}.git/info/lfs/objects/batch", self.batch),
            ("PUT", "/lfs/{oid}", self.put),
            ("POST", f"/api/models/{repository}/commit/main", self.commit),
        ]
        return Starlette(
            routes=[Route(path, self.guarded(f), methods=[method]) for method, path, f in routes]
        )

    def guarded(self, handler):
        async def handle(request: Request) -> Response:
            self.requests += 1
            token = request.headers.get("authorization", "").removeprefix("Bearer ")
            if token not in (TOKEN, READ_TOKEN) and not request.url.path.startswith("/lfs/"):
                return refusal(401, "Invalid user token.")
            if token == READ_TOKEN and request.method == "POST":
                return refusal(403, "You don't have the rights to create a model under this namespace")
            return await handler(request)

        return handle

    async def create(self, request: Request) -> Response:
        body = await request.json()
        repository = f"{body.get('organization') or 'me'}/{body['name']}"
        if repository in self.private:
            url = f"{request.base_url}{repository}"
            return JSONResponse({"error": "You already created this model repo", "url": url}, 409)
        self.private[repository] = body.get("visibility") == "private" or bool(body.get("private"))
        self.files[repository] = {}
        return JSONResponse({"url": f"{request.base_url}{repository}"})

    async def validate(self, request: Request) -> Response:
        content = (await request.json())["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no front matter"}]
        return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)

    async def info(self, request: Request) -> Response:
        repository = _repository(request)
        if repository not in self.private:
            return refusal(404, "Repository not found")
        return JSONResponse({"id": repository, "sha": "0" * 40, "private": self.private[repository]})

    async def preupload(self, request: Request) -> Response:
        files = (await request.json())["files"]
        return JSONResponse({"files": [
            {
                "path": file["path"], "shouldIgnore": False,
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
            }
            for file in files
        ]})  # fmt: skip

    async def batch(self, request: Request) -> Response:
        objects: list[dict[str, Any]] = []
        for item in (await request.json())["objects"]:
            entry: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.objects:
                entry["actions"] = {"upload": {"href": f"{request.base_url}lfs/{item['oid']}"}}
            objects.append(entry)
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def put(self, request: Request) -> Response:
        content, oid = await request.body(), request.path_params["oid"]
        assert hashlib.sha256(content).hexdigest() == oid
        self.objects[oid] = content
        self.sent.append(oid)
        return Response()

    async def commit(self, request: Request) -> Response:
        if self.fail_commits:
            self.fail_commits -= 1
            return refusal(400, "the commit was lost")
        repository = _repository(request)
        for line in (await request.body()).splitlines():
            record = json.loads(line)
            value = record["value"]
            if record["key"] == "file":
                self.files[repository][value["path"]] = base64.b64decode(value["content"])
            elif record["key"] == "lfsFile":
                self.files[repository][value["path"]] = self.objects[value["oid"]]
        oid = "c" * 40
        url = f"{request.base_url}{repository}/commit/{oid}"
        return JSONResponse({"success": True, "commitUrl": url, "commitOid": oid, "hookOutput": ""})


def _repository(request: Request) -> str:
    return f"{request.path_params['owner']}/{request.path_params['name']}"
