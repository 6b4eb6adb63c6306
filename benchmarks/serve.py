"""Tokens a second and time to the first token of ``still serve`` beside what it is built on.

    python benchmarks/serve.py
    python benchmarks/serve.py --cases GGUF own --rounds 5 --out serve.json

SmolLM2-135M, 2 threads, chats of 31 to 60 prompt tokens and 64 new ones at temperature 0, streamed by as many
clients at once as a case says. The contestants take turns, after one uncounted turn each:

- GGUF at 1 and 8 chats: ours against the server inside xllamacpp, 8 slots each, one at a time in memory.
- safetensors (bfloat16) at 8 and 32 chats: ours against ``transformers.generate`` one request after the
  other, without a server around it, which is kind to the peer: its first token is counted as one step after
  the prompt.
- the server's own share: a request to an engine that answers at once, over a connection that stays open.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

NEW = 64
QUESTIONS = [
    f"Write a {kind} about {thing}, and begin at once."
    for kind in ("story", "letter", "short poem", "speech")
    for thing in (
        "the sea",
        "a small still",
        "two old friends",
        "winter",
        "a lost key",
        "bread",
        "a map",
        "rain",
    )
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    cases = {"GGUF": gguf, "safetensors": safetensors, "own": own_share}
    parser.add_argument("--cases", nargs="*", choices=cases, default=list(cases))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "2"
    results: dict[str, Any] = {}
    for name in arguments.cases:
        results[name] = cases[name](arguments.rounds)
        print(name, json.dumps(results[name]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"load": os.getloadavg(), **results}, indent=1) + "\n")


def gguf(rounds: int) -> dict[str, Any]:
    """Ours and xllamacpp's own server, over HTTP both; one process each, idle while the other works."""
    with Ours("embedded:smollm2") as ours, LlamaServer() as theirs:
        return compare({"ours": ours.chats, "xllamacpp": theirs.chats}, [1, 8], rounds)


def safetensors(rounds: int) -> dict[str, Any]:
    """Ours over HTTP and generate in a row."""
    from stillhouse.models import load_weights

    weights = load_weights("embedded:smollm2", dtype="bfloat16")
    with tempfile.TemporaryDirectory() as directory:
        weights.model.save_pretrained(directory)
        weights.tokenizer.chat_template = weights.template.source
        weights.tokenizer.save_pretrained(directory)
        with Ours(f"smollm2={directory}") as ours:
            return compare({"ours": ours.chats, "generate": Sequential(weights).chats}, [8, 32], rounds)


Chats = Callable[[int], dict[str, float]]


def compare(contestants: dict[str, Chats], counts: list[int], rounds: int) -> dict[str, Any]:
    """Medians over rounds for each number of chats, and of the rounds' ratios of tokens a second."""
    found: dict[str, Any] = {}
    for count in counts:
        for chats in contestants.values():
            chats(count)
        taken = [{name: chats(count) for name, chats in contestants.items()} for _ in range(rounds)]
        names = list(contestants)
        found[f"{count} chats"] = {
            name: {key: round(statistics.median(t[name][key] for t in taken), 3) for key in taken[0][name]}
            for name in names
        } | {
            "ratio": round(
                statistics.median(t[names[0]]["tokens_per_s"] / t[names[1]]["tokens_per_s"] for t in taken), 3
            )
        }
    return found


def figures(started: float, ended: float, firsts: list[float], tokens: int) -> dict[str, float]:
    ordered = sorted(firsts)
    return {
        "tokens_per_s": tokens / (ended - started),
        "first_token_p50_s": statistics.median(ordered),
        "first_token_p99_s": ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))],
    }


async def talk(address: str, count: int) -> dict[str, float]:
    """``count`` clients at once, one chat each."""

    async def one(client: httpx.AsyncClient, question: str) -> tuple[float, int]:
        body = {
            "model": "smollm2", "stream": True, "max_tokens": NEW, "temperature": 0,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": question}],
        }  # fmt: skip
        first, tokens, begun = None, 0, time.perf_counter()
        async with client.stream("POST", f"{address}/v1/chat/completions", json=body) as reply:
            assert reply.status_code == 200, await reply.aread()
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                if chunk["choices"] and chunk["choices"][0]["delta"].get("content") and first is None:
                    first = time.perf_counter() - begun
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        assert first is not None and tokens
        return first, tokens

    async with httpx.AsyncClient(timeout=600, trust_env=False) as client:
        started = time.perf_counter()
        told = await asyncio.gather(*(one(client, question) for question in QUESTIONS[:count]))
        ended = time.perf_counter()
    return figures(started, ended, [first for first, _ in told], sum(tokens for _, tokens in told))


class _Process:
    """A server in a process of its own, that prints its address first."""

    command: list[str]

    def __enter__(self) -> Any:
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.address = next(word for word in self.process.stderr.readline().split() if "http" in word)
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait()

    def chats(self, count: int) -> dict[str, float]:
        """One round."""
        return asyncio.run(talk(self.address, count))


class Ours(_Process):
    def __init__(self, model: str) -> None:
        self.command = [sys.executable, "-m", "stillhouse", "serve", model, "--port", "0"]


class LlamaServer(_Process):
    def __init__(self) -> None:
        self.command = [sys.executable, __file__, "llama"]


def llama_server() -> None:
    """xllamacpp's own server with the model and slots that ours has."""
    from xllamacpp import CommonParams, Server

    from stillhouse.models import parse_reference

    params = CommonParams()
    params.model.path = str(parse_reference("embedded:smollm2").path)
    params.n_parallel = 8
    params.n_ctx = 8 * 2048
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.verbosity, params.warmup, params.ui, params.use_jinja = -1, False, False, True
    server = Server(params)
    print(server.listening_address, file=sys.stderr, flush=True)
    while True:
        time.sleep(3600)


class Sequential:
    """``transformers.generate``, one request after the other."""

    def __init__(self, weights: Any) -> None:
        self.weights = weights

    def chats(self, count: int) -> dict[str, float]:
        """One round; each waits for those before it."""
        import torch

        model, tokenizer = self.weights.model, self.weights.tokenizer
        firsts, tokens, started = [], 0, time.perf_counter()
        for question in QUESTIONS[:count]:
            ids = self.weights.template.encode_prompt(tokenizer, [{"role": "user", "content": question}])
            begun = time.perf_counter()
            with torch.inference_mode():
                out = model.generate(
                    torch.tensor([ids]),
                    attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                    max_new_tokens=NEW,
                    do_sample=False,
                    eos_token_id=sorted(self.weights.end_ids),
                    pad_token_id=min(self.weights.end_ids),
                )
            new = out.shape[1] - len(ids)
            firsts.append(begun - started + (time.perf_counter() - begun) / new)
            tokens += new
        return figures(started, time.perf_counter(), firsts, tokens)


def own_share(rounds: int) -> dict[str, float]:
    """Milliseconds of a whole request whose engine answers at once with one token."""
    import uvicorn

    from stillhouse.models import load_tokenizer
    from stillhouse.models.local import Prompts
    from stillhouse.serve.app import Server
    from stillhouse.serve.engines import Piece
    from stillhouse.serve.shelf import Shelf

    tokenizer, template = load_tokenizer("embedded:smollm2")

    async def generate(wish: Any) -> AsyncIterator[Piece]:
        yield Piece("Hello", tokens=1, finish_reason="stop")

    async def close() -> None:
        pass

    engine = SimpleNamespace(
        prompts=Prompts(tokenizer, template, 2048, 0),
        context_length=2048,
        can=frozenset(),
        generate=generate,
        close=close,
    )

    async def measured() -> dict[str, float]:
        shelf = Shelf({"smollm2": "nothing"}, idle_s=0, load=lambda reference: engine)
        app = Server(shelf, queue=8).app(hosts=["127.0.0.1"], api_key=None)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        body = json.dumps({"model": "smollm2", "messages": [{"role": "user", "content": QUESTIONS[0]}]})
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        times = []
        for number in range(400 * rounds):
            begun = time.perf_counter()
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            if number >= 100:
                times.append(1000 * (time.perf_counter() - begun))
        writer.close()
        server.should_exit = True
        await serving
        times.sort()
        return {"p50_ms": statistics.median(times), "p99_ms": times[int(0.99 * len(times))]}

    return {key: round(value, 3) for key, value in asyncio.run(measured()).items()}


if __name__ == "__main__":
    if sys.argv[1:] == ["llama"]:
        llama_server()
    else:
        main()
