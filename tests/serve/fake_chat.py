"""An OpenAI-compatible server on loopback with the chat page and canned answers.

    PYTHONPATH=tests python tests/serve/fake_chat.py --port 8400

A word of the last message selects the answer: see ANSWERS and ``FakeChat.complete``. Any other message is
echoed, with the number of messages in the request, so that a test sees which history a model got.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopback import bound_server, running
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from stillhouse.serve.security import PAGE_POLICY

PAGE = Path(__file__).parents[2] / "src" / "stillhouse" / "serve" / "page"
HOSTILE = """\
<img src=x onerror=document.title='owned'><script>document.title='owned'</script>

[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](data:text/html,x) [d](vbscript:x)
[e]( java&#115;cript:x) [f](https://user:secret@example.org/) <javascript:alert(1)>
[g](//example.org/x) [h](/v1/models)

![pixel](https://tracker.example/pixel.png?leak=1) ![x](javascript:alert(1))
and a [fine link](https://example.org/a_b)

| <svg onload=alert(1)> | b |
|---|---|
| <iframe src=https://example.org> | <br> |

```html"><img src=x onerror=alert(1)>
<script>alert(1)</script>
```
"""
TORTURE = """\
# A heading

Some **bold**, some *italic*, ***both***, ~~gone~~, `code with **stars**`, snake_case_words, 2 * 3 * 4 = 24.
A second line with a [link](https://example.org/path_(x)) and https://example.org/bare.

## Lists

1. First
   - nested *one*
   - nested two
     1. deeper
     2. and deeper
2. Second, with code:

   ```python
   def still(spirit):
       return [part for part in spirit if part.matters]  # a comment that is long enough to scroll sideways
   ```
3. Third

- [x] done
- [ ] to do

> A quote with **bold**
> over two lines
>
> - and a list

---

| Model | Parameters | Accuracy |
|:------|-----------:|:--------:|
| teacher | 1,700,000,000 | 0.71 |
| `student` | 135,000,000 | **0.64** |

The end, where $a_1 * b_2$ and \\(x^2\\) stay as they are.
"""
SHOWCASE = """\
Distillation trains a small **student** on what a large *teacher* would have said. \
Instead of one right word, the student learns the teacher's whole distribution at every token.

### In code

```python
def forward_kl(teacher_logits, student_logits, temperature=1.0):
    teacher = (teacher_logits / temperature).softmax(-1)
    student = (student_logits / temperature).log_softmax(-1)
    return (teacher * (teacher.log() - student)).sum(-1).mean()
```

### What it costs

| Model | Parameters | Memory | Tokens/s |
|:--|--:|--:|--:|
| Teacher | 1.7 B | 3.4 GB | 11 |
| Student | 135 M | 0.3 GB | 96 |

1. Collect the teacher's answers.
2. Train the student on its distributions:
   - all of them, if they fit;
   - else the `top_k` likeliest and one tail.
3. Measure both on questions that neither has seen.

> A student that only copies words learns what was said. One of distributions learns what *could have been*.
"""
ANSWERS = {"hostile": HOSTILE, "torture": TORTURE, "distillation": SHOWCASE}


@dataclass
class FakeChat:
    """The server's behaviour, and a record of its requests."""

    models: tuple[str, ...] = ("student", "teacher")
    forwarded: dict[str, str] = field(default_factory=dict)
    """Models of other servers -> host."""
    key: str | None = None
    """The API key that it requires."""
    down: bool = False
    """Whether it responds with 503 to everything but the page's files."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    tries: Counter[tuple[str, str]] = field(default_factory=Counter)

    async def list_models(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        data: list[dict[str, Any]] = [
            {"id": name, "object": "model", "created": 0, "owned_by": "stillhouse"} for name in self.models
        ]
        for entry in data:
            if entry["id"] in self.forwarded:
                entry["forwarded_to"] = self.forwarded[entry["id"]]
        return JSONResponse({"object": "list", "data": data})

    async def complete(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        body = await request.json()
        self.requests.append(body)
        prompt = body["messages"][-1]["content"]
        key = (body["model"], prompt)
        self.tries[key] += 1
        if "busy" in prompt and self.tries[key] == 1:
            return _error(429, "too many answers at once", {"Retry-After": "3"})
        if "refuse" in prompt:
            return _error(400, "the prompt is longer than the model's 2048 tokens")
        return StreamingResponse(self._stream(body, prompt, self.tries[key]), media_type="text/event-stream")

    def _refusal(self, request: Request) -> Response | None:
        if self.down:
            return _error(503, "the model is still loading")
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return _error(401, "no such key")
        return None

    async def _stream(self, body: dict[str, Any], prompt: str, tries: int) -> AsyncIterator[bytes]:
        count = 0
        async for kind, text in _deltas(body, prompt):
            if kind == "cut" and tries == 1:
                raise ConnectionResetError
            if kind == "error":
                yield _event(
                    {"error": {"message": text, "type": "server_error", "param": None, "code": None}}
                )
                return
            if kind == "wait":
                await asyncio.sleep(float(text))
            elif kind != "cut":
                count += 1
                yield _event({"choices": [{"index": 0, "delta": {kind: text}, "finish_reason": None}]})
        reason = "length" if body.get("max_tokens", count) < count else "stop"
        yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        prompt_tokens = sum(len(message["content"].split()) for message in body["messages"])
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": count,
            "total_tokens": prompt_tokens + count,
        }
        yield _event({"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"


async def _deltas(body: dict[str, Any], prompt: str) -> AsyncIterator[tuple[str, str]]:
    """The deltas of a stream: content, reasoning, pauses in seconds, and faults."""
    if "think" in prompt:
        for word in "First I weigh the question, then I **answer** it.".split(" "):
            yield "reasoning_content", word + " "
            yield "wait", "0.02"
        yield "wait", "1.0"
    if "slow" in prompt:
        for number in range(400):
            yield "content", f"word{number} " + ("\n\n" if number % 20 == 19 else "")
            yield "wait", "0.008"
    elif "cut" in prompt or "fault" in prompt:
        yield "content", "This much "
        yield "content", "arrived"
        yield "wait", "0.2"
        yield ("cut", "") if "cut" in prompt else ("error", "the model ran out of memory")
        yield "content", " and then the rest."
    else:
        text = next((answer for word, answer in ANSWERS.items() if word in prompt.lower()), None)
        if text is None:
            text = f"{body['model']} saw {len(body['messages'])} messages, the last: {prompt}"
        for start in range(0, len(text), 7):
            yield "content", text[start : start + 7]
            if start % 70 == 0:
                yield "wait", "0.005"


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": error}, status, {**_HEADERS, **(headers or {})})


_HEADERS = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}


async def _file(request: Request) -> Response:
    name = request.path_params.get("path", "index.html")
    return FileResponse(PAGE / name, headers=_HEADERS)


@contextlib.contextmanager
def serving(fake: FakeChat, port: int = 0) -> Iterator[str]:
    """Serves ``fake`` in a thread; yields its address."""
    app = Starlette(
        routes=[
            Route("/", _file),
            Route("/page/{path:path}", _file),
            Route("/v1/models", fake.list_models),
            Route("/v1/chat/completions", fake.complete, methods=["POST"]),
        ]
    )
    runner, bound, address = bound_server(app, port)
    with running(runner, bound):
        yield address


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8400)
    parser.add_argument("--key")
    options = parser.parse_args()
    with serving(FakeChat(key=options.key), options.port) as url:
        print(url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
