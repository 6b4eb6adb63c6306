"""Tokens a second and time to the first token of ``still serve`` beside what it is built on.

    python benchmarks/serve.py
    python benchmarks/serve.py --cases GGUF own --rounds 5 --out serve.json
    python benchmarks/serve.py --cases transformers --counts 32 --transformers /some/venv/bin/python

SmolLM2-135M, 2 threads, chats of 31 to 60 prompt tokens and 64 new ones at temperature 0, streamed by as many
clients at once as a case says. The contestants take turns, after one uncounted turn each, and go first by
turns. llama.cpp falls to a tenth of its speed beside another busy process, so a round in which processes
other than these took more than ``ELSEWHERE`` of a core is thrown away and repeated (Linux only).

- GGUF at 1 and 8 chats: ours against the server inside xllamacpp, 8 slots each.
- safetensors (bfloat16, or float32 on a processor that only emulates that) at 8 and 32 chats: ours against
  ``transformers.generate`` one request after the other, without a server around it, which is kind to the
  peer: its first token is counted as one step after the prompt.
- transformers: the same weights at 8 and 32 chats against ``transformers serve`` with continuous batching, as
  its documentation recommends (``--continuous-batching --attn-implementation sdpa``). It needs
  ``transformers[serving]``; ``--transformers`` names the Python that has it.
- own: the server's own share: milliseconds of a request to an engine that answers at once, over a connection
  that stays open; and microseconds of processor time for one streamed token at 8 chats, behind a llama.cpp
  that only says one token after the other, every 20 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

NEW = 64
ELSEWHERE = 0.1
"""Cores that other processes may take in a round that counts."""
TRIES = 5
"""Rounds that are thrown away at most, for each that counts."""
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
    cases = {"GGUF": gguf, "safetensors": safetensors, "transformers": transformers, "own": own_share}
    parser.add_argument("--cases", nargs="*", choices=cases, default=list(cases))
    parser.add_argument("--counts", nargs="*", type=int, help="chats at once, instead of a case's own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--transformers", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "2"
    results: dict[str, Any] = {}
    for name in arguments.cases:
        results[name] = cases[name](arguments)
        print(name, json.dumps(results[name]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"load": os.getloadavg(), **results}, indent=1) + "\n")


def gguf(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ours and xllamacpp's own server, over HTTP both; one process each, idle while the other works."""
    with Ours("embedded:smollm2") as ours, LlamaServer() as theirs:
        return compare({"ours": ours, "xllamacpp": theirs}, arguments.counts or [1, 8], arguments.rounds)


def safetensors(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ours over HTTP and generate in a row."""
    with exported() as (directory, weights), Ours(f"smollm2={directory}") as ours:
        contestants = {"ours": ours, "generate": Sequential(weights)}
        return compare(contestants, arguments.counts or [8, 32], arguments.rounds)


def transformers(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ours and ``transformers serve``, over HTTP both; nothing where that is not installed."""
    python = arguments.transformers
    asks = (
        "from transformers.utils import import_utils; raise SystemExit(not import_utils.is_serve_available())"
    )
    if subprocess.run([python, "-c", asks], check=False, stderr=subprocess.DEVNULL).returncode:
        return {"skipped": f"{python} has no transformers[serving]"}
    with (
        exported() as (directory, _),
        Ours(f"smollm2={directory}") as ours,
        TransformersServe(python, directory) as theirs,
    ):
        contestants = {"ours": ours, "transformers serve": theirs}
        return compare(contestants, arguments.counts or [8, 32], arguments.rounds)


@contextlib.contextmanager
def exported() -> Iterator[tuple[str, Any]]:
    """SmolLM2's weights as a directory and in memory, in the type that the server gives its engine."""
    from smollm2 import saved

    from stillhouse.models import cpu_has_bfloat16

    with tempfile.TemporaryDirectory() as directory:
        yield directory, saved(directory, "bfloat16" if cpu_has_bfloat16() else "float32")


def compare(contestants: dict[str, Any], counts: list[int], rounds: int) -> dict[str, Any]:
    """Medians over rounds for each number of chats, and of the rounds' ratios of tokens a second."""
    found: dict[str, Any] = {}
    names = list(contestants)
    for count in counts:
        for contestant in contestants.values():
            contestant.chats(min(count, 8))
        taken, thrown = list[dict[str, Any]](), 0
        while len(taken) < rounds and thrown < TRIES * rounds:
            order = names if len(taken) % 2 == 0 else names[::-1]
            turns = {name: undisturbed(contestants[name], count) for name in order}
            if all(turns.values()):
                taken.append(turns)
            else:
                thrown += 1
        assert taken, f"other processes are busy: {thrown} rounds thrown away"
        found[f"{count} chats"] = {
            name: {key: round(statistics.median(t[name][key] for t in taken), 3) for key in taken[0][name]}
            for name in names
        } | {
            "ratio": round(
                statistics.median(t[names[0]]["tokens_per_s"] / t[names[1]]["tokens_per_s"] for t in taken), 3
            ),
            "rounds": len(taken),
            "thrown": thrown,
        }
    return found


def undisturbed(contestant: Any, count: int) -> dict[str, float] | None:
    """One round of ``contestant``; None where processes other than it and this one were busy."""
    pids = {os.getpid(), contestant.pid}
    began, other = time.perf_counter(), busy_seconds() - sum(map(seconds_of, pids))
    told = contestant.chats(count)
    other = busy_seconds() - sum(map(seconds_of, pids)) - other
    return told if other < ELSEWHERE * (time.perf_counter() - began) else None


def busy_seconds() -> float:
    """Processor time of all processes so far, and what a virtual machine's host took (proc(5))."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def seconds_of(pid: int) -> float:
    """Processor time that a process has taken so far (proc(5): utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def figures(started: float, ended: float, firsts: list[float], tokens: int) -> dict[str, float]:
    ordered = sorted(firsts)
    return {
        "tokens_per_s": tokens / (ended - started),
        "first_token_p50_s": statistics.median(ordered),
        "first_token_p99_s": ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))],
    }


async def talk(address: str, model: str, count: int) -> dict[str, float]:
    """``count`` clients at once, one chat each."""

    async def one(client: httpx.AsyncClient, question: str) -> tuple[float, int]:
        body = {
            "model": model, "stream": True, "max_tokens": NEW, "temperature": 0,
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
    model = "smollm2"

    def __enter__(self) -> Any:
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        self.address = self.read_address()
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait()

    def read_address(self) -> str:
        assert self.process.stderr is not None
        return next(word for word in self.process.stderr.readline().split() if "http" in word)

    def chats(self, count: int) -> dict[str, float]:
        """One round."""
        return asyncio.run(talk(self.address, self.model, count))


class Ours(_Process):
    def __init__(self, model: str) -> None:
        self.command = [sys.executable, "-m", "stillhouse", "serve", model, "--port", "0"]


class TransformersServe(_Process):
    """``transformers serve``; a cache of 8,192 tokens, not of 0.6 of the machine's memory."""

    def __init__(self, python: str, directory: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.model = directory
        self.command = [
            python, "-m", "transformers.cli.transformers", "serve", directory, "--device", "cpu",
            "--continuous-batching", "--attn-implementation", "sdpa",
            "--cb-num-blocks", "256", "--cb-block-size", "32", "--cb-max-batch-tokens", "512",
            "--host", "127.0.0.1", "--port", str(self.port), "--log-level", "error",
        ]  # fmt: skip

    def __enter__(self) -> Any:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.pid = self.process.pid
        self.address = f"http://127.0.0.1:{self.port}"
        while self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{self.address}/health", trust_env=False)
                return self
            time.sleep(0.2)
        raise RuntimeError(f"transformers serve ended: {' '.join(self.command)}")


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
    """``transformers.generate``, one request after the other, in this process."""

    def __init__(self, weights: Any) -> None:
        self.weights, self.pid = weights, os.getpid()

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


def own_share(arguments: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of a whole request whose engine answers at once, microseconds of one streamed token."""
    return {**asyncio.run(a_request(400 * arguments.rounds)), **asyncio.run(a_token())}


@contextlib.asynccontextmanager
async def serving(engine: Callable[[Any], Any]) -> AsyncIterator[int]:
    """The server in this process, with what ``engine`` makes of prompts behind it; its port."""
    import uvicorn

    from stillhouse.models import load_tokenizer
    from stillhouse.models.backends.prompts import PromptEncoder
    from stillhouse.serve.app import create_app
    from stillhouse.serve.model_pool import ModelPool

    made = engine(PromptEncoder(*load_tokenizer("embedded:smollm2"), 2048, 0))
    pool = ModelPool({"smollm2": "nothing"}, idle_s=0, load=lambda reference: made)
    app = create_app(pool, queue_size=8, hosts=["127.0.0.1"], api_key=None)
    server = uvicorn.Server(uvicorn.Config(app, port=0, loop="asyncio", log_level="error", access_log=False))
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await running


async def a_request(times: int) -> dict[str, float]:
    """Percentiles over requests whose engine answers at once with one token."""
    from stillhouse.serve.engines.base import TextDelta

    async def generate(request: Any) -> AsyncIterator[TextDelta]:
        yield TextDelta("Hello", tokens=1, finish_reason="stop")

    async def close() -> None:
        pass

    def engine(prompts: Any) -> Any:
        return SimpleNamespace(
            prompts=prompts, context_length=2048, capabilities=frozenset(), generate=generate, close=close
        )

    body = json.dumps({"model": "smollm2", "messages": [{"role": "user", "content": QUESTIONS[0]}]})
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    taken = []
    async with serving(engine) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(times):
            begun = time.perf_counter()
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            if number >= 100:
                taken.append(1000 * (time.perf_counter() - begun))
        writer.close()
    taken.sort()
    p50, p99 = statistics.median(taken), taken[int(0.99 * len(taken))]
    return {"p50_ms": round(p50, 3), "p99_ms": round(p99, 3)}


async def a_token() -> dict[str, float]:
    """Processor time of this process for one streamed token, at 8 chats; the clients are another process."""
    from stillhouse.serve.engines.llama_cpp import LlamaEngine

    async def clients(port: int) -> None:
        command = [sys.executable, __file__, "talk", f"http://127.0.0.1:{port}"]
        process = await asyncio.create_subprocess_exec(*command)
        assert await process.wait() == 0

    async with serving(lambda prompts: LlamaEngine(Metronome(prompts))) as port:
        await clients(port)
        begun = time.process_time()
        await clients(port)
        return {"token_us": round(1e6 * (time.process_time() - begun) / (8 * METRONOME_TOKENS))}


METRONOME_TOKENS = 300


class Metronome:
    """What :class:`LlamaEngine` asks of llama.cpp; a token every 20 ms, 8 chats half a millisecond apart."""

    context_length = 2048

    def __init__(self, prompts: Any) -> None:
        self.prompts, self.begun = prompts, 0
        self.threads = ThreadPoolExecutor(8)

    def stream(self, ids: Any, sampling: Any, listen: Callable[[Any], bool], **options: Any) -> None:
        self.begun += 1
        self.threads.submit(self.say, listen, self.begun % 8)

    def say(self, listen: Callable[[Any], bool], place: int) -> None:
        at = time.perf_counter() // 0.02 * 0.02 + place * 0.0005
        for number in range(METRONOME_TOKENS):
            at += 0.02
            time.sleep(max(0.0, at - time.perf_counter()))
            reason = "length" if number == METRONOME_TOKENS - 1 else None
            listen({"choices": [{"text": " so", "logprobs": None, "finish_reason": reason}]})

    async def close(self) -> None:
        self.threads.shutdown()


if __name__ == "__main__":
    if sys.argv[1:] == ["llama"]:
        llama_server()
    elif sys.argv[1:2] == ["talk"]:
        asyncio.run(talk(sys.argv[2], "smollm2", 8))
    else:
        main()
