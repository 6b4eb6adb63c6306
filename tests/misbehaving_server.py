"""An OpenAI-compatible teacher on loopback that misbehaves on purpose.

    python tests/misbehaving_server.py --port 0 --faults 0.3 --seed 1 --log served.jsonl

prints its address (``http://127.0.0.1:PORT/v1``) on the first line of stdout and serves until it is ended.
Its answer depends on the prompt and the sampling seed alone, so a test can say what the corpus must hold.
Whether a try fails depends on the server's seed, the prompt and the number of the try; after
``--most-faults`` failures a prompt is always answered.

A prompt can also order its own fate: ``[fault:401]`` anywhere in the last message gives that fault every
time, ``[fault:500x2]`` twice and then an answer. Faults: see FAULTS.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import email.utils
import hashlib
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from loopback import bound_server, running
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

MODEL = "misbehaving-1"
TRANSIENT = ("429", "429date", "500", "503", "hang", "cut", "json", "empty")
FAULTS = (
    *TRANSIENT,
    *("401", "402", "403", "404", "400", "context", "policy", "silent"),
    *("error200", "halfway", "quota"),
)
WORDS = (
    "the still takes a large spirit apart and keeps what matters so that a small model learns from it".split()
)
_ORDER = re.compile(r"\[fault:(\w+?)(?:x(\d+))?\]")


@dataclass
class Teacher:
    """What the server does, and what it did."""

    faults: float = 0.0
    """Share of tries that fail."""
    kinds: tuple[str, ...] = TRANSIENT
    seed: int = 0
    most_faults: int = 3
    """Failures of one prompt after which it is answered."""
    retry_after: str = "0"
    """Seconds in the Retry-After header of a 429."""
    hang_s: float = 30.0
    delay_s: float = 0.0
    """Time that every answer takes."""
    credit: int | None = None
    """Answers after which the account has no credit left (402)."""
    refuses: dict[tuple[str, ...], Response] = field(default_factory=dict)
    """The response to a request that has all these fields."""
    shape: Callable[[dict[str, Any]], None] = lambda answer: None
    """Changes the answer before it is sent."""
    log: Path | None = None
    """JSON lines: id, prompt and outcome of every try."""
    tries: Counter[str] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)
    """Prompt -> how often it was answered."""
    arrivals: list[tuple[str, float]] = field(default_factory=list)
    """Prompt and monotonic time of every try."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    addresses: list[tuple[str, str, Any]] = field(default_factory=list)
    """Path, query and headers of every try."""
    most_at_once: int = 0
    _now: int = 0

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        prompt = body["messages"][-1]["content"]
        key = f"{prompt}|{body.get('seed')}"
        number = self.tries[key]
        self.tries[key] += 1
        self.arrivals.append((prompt, time.monotonic()))
        self.bodies.append(body)
        self.addresses.append((request.url.path, request.url.query, request.headers))
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await asyncio.sleep(self.delay_s)
            fault = self.fault(prompt, key, number)
            for names, refusal in self.refuses.items():
                if set(names) <= body.keys():
                    return refusal
            if self.credit is not None and sum(self.served.values()) >= self.credit:
                fault = "402"
            name = f"req-{digest(key)[:8]}-{number}"
            self.note(name, prompt, fault or "ok")
            if fault and fault != "silent":
                return await self.fail(fault, body)
            self.served[prompt] += 1
            answer = completion(body, silent=fault == "silent")
            self.shape(answer)
            return JSONResponse(answer, headers={"x-request-id": name})
        finally:
            self._now -= 1

    def fault(self, prompt: str, key: str, number: int) -> str | None:
        if order := _ORDER.search(prompt):
            kind, times = order.groups()
            return kind if times is None or number < int(times) else None
        drawn = digest(f"{self.seed}|{key}|{number}")
        if number < self.most_faults and int(drawn[:8], 16) / 16**8 < self.faults:
            return self.kinds[int(drawn[8:12], 16) % len(self.kinds)]
        return None

    async def fail(self, fault: str, body: dict[str, Any]) -> Response:
        if fault == "hang":
            await asyncio.sleep(self.hang_s)
            return error(504, "too late")
        if fault == "cut":
            return _Cut(json.dumps(completion(body)))
        if fault in ("429", "429date"):
            wait = self.retry_after
            if fault == "429date":
                then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=float(wait))
                wait = email.utils.format_datetime(then, usegmt=True)
            return error(429, "slow down", headers={"retry-after": wait})
        plain = {
            "json": Response('{"choices": [{"mess', media_type="application/json"),
            "empty": JSONResponse({"id": "x", "choices": [], "model": MODEL}),
            "error200": JSONResponse({"error": {"code": 502, "message": "upstream failed"}}),
            "context": error(
                400, "This model's maximum context length is 10 tokens", "context_length_exceeded"
            ),
            "halfway": JSONResponse(_broken_off(completion(body))),
            "policy": error(400, "The prompt was blocked by our content policy", "content_policy_violation"),
            "402": error(402, "Insufficient Balance", "invalid_request_error"),
            "quota": error(429, "You exceeded your current quota", "insufficient_quota"),
        }
        return plain[fault] if fault in plain else error(int(fault), f"as ordered: {fault}")

    def note(self, name: str, prompt: str, outcome: str) -> None:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(json.dumps({"id": name, "prompt": prompt, "outcome": outcome}) + "\n")


class _Cut(Response):
    """Promises a whole body and hangs up in the middle of it."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        half = bytes(self.body)[: len(self.body) // 2]
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": half, "more_body": True})
        raise ConnectionAbortedError("cut off on purpose")


def _broken_off(answer: dict[str, Any]) -> dict[str, Any]:
    """Half an answer and an error, as gateways send with status 200 when their provider hangs up."""
    [choice] = answer["choices"]
    choice["message"]["content"] = choice["message"]["content"][:20]
    choice |= {"finish_reason": "error", "error": {"code": 502, "message": "Provider disconnected"}}
    return answer


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def answer_to(prompt: str, seed: int | None = None) -> str:
    """What the server says to ``prompt``: some twenty words drawn by its hash."""
    drawn = bytes.fromhex(digest(f"{prompt}|{seed}"))
    words = [WORDS[byte % len(WORDS)] for byte in drawn[: 12 + drawn[-1] % 16]]
    return f"{' '.join(words).capitalize()} {digest(prompt)[:6]}."


def completion(body: dict[str, Any], *, silent: bool = False) -> dict[str, Any]:
    """The answer in the API's form; a prompt with ``[think]`` in it is also thought about."""
    prompt = body["messages"][-1]["content"]
    text = "" if silent else answer_to(prompt, body.get("seed"))
    words = text.split()
    limit = body.get("max_tokens") or body.get("max_completion_tokens") or len(words)
    message: dict[str, Any] = {"role": "assistant", "content": " ".join(words[:limit])}
    if "[think]" in prompt:
        message["reasoning_content"] = f"I was asked {prompt!r}."
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "finish_reason": "length" if len(words) > limit else "stop",
        "logprobs": None,
    }
    if body.get("logprobs"):
        likely = [{"token": f"w{n}", "logprob": -1.0 - n, "bytes": None} for n in range(body["top_logprobs"])]
        choice["logprobs"] = {
            "content": [
                {"token": w, "logprob": -0.5, "bytes": None, "top_logprobs": likely} for w in words[:limit]
            ]
        }
    usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": min(len(words), limit)}
    return {
        "id": f"chatcmpl-{digest(prompt)[:8]}",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [choice],
        "usage": usage | {"total_tokens": sum(usage.values())},
    }


def error(status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(
        {"error": {"message": message, "code": code or None}}, status_code=status, headers=headers
    )


def server(teacher: Teacher, port: int = 0) -> tuple[uvicorn.Server, socket.socket, str]:
    """A server bound to 127.0.0.1, its socket, and its address."""
    app = Starlette(routes=[Route("/v1/{_:path}", teacher.complete, methods=["POST"])])
    runner, bound, address = bound_server(app, port)
    return runner, bound, f"{address}/v1"


@contextlib.contextmanager
def serving(teacher: Teacher) -> Iterator[str]:
    """The address of ``teacher``, served from a thread meanwhile."""
    runner, bound, url = server(teacher)
    with running(runner, bound):
        yield url


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--faults", type=float, default=0.0, help="share of tries that fail")
    parser.add_argument(
        "--kinds", default=",".join(TRANSIENT), help=f"comma-separated, of: {', '.join(FAULTS)}"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-faults", type=int, default=3)
    parser.add_argument("--retry-after", default="0")
    parser.add_argument("--hang", type=float, default=30.0, dest="hang_s", help="seconds that a hang lasts")
    parser.add_argument(
        "--delay", type=float, default=0.0, dest="delay_s", help="seconds that an answer takes"
    )
    parser.add_argument("--log", type=Path)
    options = vars(parser.parse_args())
    port = options.pop("port")
    teacher = Teacher(**options | {"kinds": tuple(options["kinds"].split(","))})
    runner, bound, url = server(teacher, port)
    print(url, flush=True)
    asyncio.run(runner.serve([bound]))


if __name__ == "__main__":
    main()
