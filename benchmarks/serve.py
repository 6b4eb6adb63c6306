"""Tokens per second and time to first token of ``still serve``, compared with the libraries below it.

    python benchmarks/serve.py
    python benchmarks/serve.py --cases GGUF own --rounds 5 --out serve.json
    python benchmarks/serve.py --cases transformers --counts 32 --transformers /some/venv/bin/python

SmolLM2-135M, 2 threads, chats of 31 to 60 prompt tokens and 64 new tokens at temperature 0, each streamed by
its own concurrent client. The contestants alternate, after one uncounted turn each, and take turns in going
first. llama.cpp falls to a tenth of its speed beside another busy process, so a round in which other
processes take more than ``OTHER_LOAD`` of a core is discarded and repeated (Linux only).

- GGUF at 1 and 8 chats: ours against the server inside xllamacpp, 8 slots each.
- safetensors (bfloat16, or float32 on a processor that only emulates it) at 8 and 32 chats: ours against
  ``transformers.generate``, one request after the other, without a server around it. This favours the peer:
  its first token counts as one step after the prompt.
- transformers: the same weights at 8 and 32 chats against ``transformers serve`` with continuous batching, as
  its documentation recommends (``--continuous-batching --attn-implementation sdpa``). It needs
  ``transformers[serving]``; ``--transformers`` is the Python that has it.
- own: the server's overhead: milliseconds of a request to an engine that answers immediately, over a
  connection that stays open; and microseconds of processor time for one streamed token at 8 chats, with a
  fake llama.cpp that emits one token every 20 ms.
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
OTHER_LOAD = 0.1
"""Cores that other processes may use in a round that counts."""
MAX_DISCARDED = 5
"""Discarded rounds, at most, for each round that counts."""
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
    cases = {"GGUF": gguf, "safetensors": safetensors, "transformers": transformers, "own": own_overhead}
    parser.add_argument("--cases", nargs="*", choices=cases, default=list(cases))
    parser.add_argument("--counts", nargs="*", type=int, help="concurrent chats, instead of a case's own")
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
    """Ours and xllamacpp's own server, both over HTTP; one process each, idle while the other works."""
    with Ours("embedded:smollm2") as ours, LlamaServer() as theirs:
        return compare({"ours": ours, "xllamacpp": theirs}, arguments.counts or [1, 8], arguments.rounds)


def safetensors(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ours over HTTP, and ``transformers.generate`` one request after the other."""
    with exported() as (directory, weights), Ours(f"smollm2={directory}") as ours:
        contestants = {"ours": ours, "generate": Sequential(weights)}
        return compare(contestants, arguments.counts or [8, 32], arguments.rounds)


def transformers(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ours and ``transformers serve``, both over HTTP; skipped if that is not installed."""
    python = arguments.transformers
    check = (
        "from transformers.utils import import_utils; raise SystemExit(not import_utils.is_serve_available())"
    )
    if subprocess.run([python, "-c", check], check=False, stderr=subprocess.DEVNULL).returncode:
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
    """SmolLM2's weights as a directory and in memory, in the type that the server uses."""
    from smollm2 import saved

    from stillhouse.models import cpu_has_bfloat16

    with tempfile.TemporaryDirectory() as directory:
        yield directory, saved(directory, "bfloat16" if cpu_has_bfloat16() else "float32")


def compare(contestants: dict[str, Any], counts: list[int], rounds: int) -> dict[str, Any]:
    """Medians over rounds for each number of chats, and of the rounds' ratios of tokens per second."""
    results: dict[str, Any] = {}
    names = list(contestants)
    for count in counts:
        for contestant in contestants.values():
            contestant.chats(min(count, 8))
        counted, discarded = list[dict[str, Any]](), 0
        while len(counted) < rounds and discarded < MAX_DISCARDED * rounds:
            order = names if len(counted) % 2 == 0 else names[::-1]
            turns = {name: run_undisturbed(contestants[name], count) for name in order}
            if all(turns.values()):
                counted.append(turns)
            else:
                discarded += 1
        assert counted, f"other processes are busy: {discarded} rounds discarded"
        results[f"{count} chats"] = {
            name: {
                key: round(statistics.median(turn[name][key] for turn in counted), 3)
                for key in counted[0][name]
            }
            for name in names
        } | {
            "ratio": round(
                statistics.median(
                    turn[names[0]]["tokens_per_s"] / turn[names[1]]["tokens_per_s"] for turn in counted
                ),
                3,
            ),
            "rounds": len(counted),
            "thrown": discarded,
        }
    return results


def run_undisturbed(contestant: Any, count: int) -> dict[str, float] | None:
    """Runs one round of ``contestant``; None if processes other than it and this one were busy."""
    pids = {os.getpid(), contestant.pid}
    started, other = time.perf_counter(), busy_seconds() - sum(map(seconds_of, pids))
    measured = contestant.chats(count)
    other = busy_seconds() - sum(map(seconds_of, pids)) - other
    return measured if other < OTHER_LOAD * (time.perf_counter() - started) else None


def busy_seconds() -> float:
    """Processor seconds of all processes so far, with those that a virtual machine's host took (proc(5))."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def seconds_of(pid: int) -> float:
    """Processor seconds of one process so far (proc(5): utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def figures(started: float, ended: float, firsts: list[float], tokens: int) -> dict[str, float]:
    ordered = sorted(firsts)
    return {
        "tokens_per_s": tokens / (ended - started),
        "first_token_p50_s": statistics.median(ordered),
        "first_token_p99_s": ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))],
    }


async def run_clients(address: str, model: str, count: int) -> dict[str, float]:
    """Runs ``count`` concurrent clients with one chat each."""

    async def one(client: httpx.AsyncClient, question: str) -> tuple[float, int]:
        body = {
            "model": model, "stream": True, "max_tokens": NEW, "temperature": 0,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": question}],
        }  # fmt: skip
        first, tokens, sent = None, 0, time.perf_counter()
        async with client.stream("POST", f"{address}/v1/chat/completions", json=body) as reply:
            assert reply.status_code == 200, await reply.aread()
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                if chunk["choices"] and chunk["choices"][0]["delta"].get("content") and first is None:
                    first = time.perf_counter() - sent
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        assert first is not None and tokens
        return first, tokens

    async with httpx.AsyncClient(timeout=600, trust_env=False) as client:
        started = time.perf_counter()
        timings = await asyncio.gather(*(one(client, question) for question in QUESTIONS[:count]))
        ended = time.perf_counter()
    return figures(started, ended, [first for first, _ in timings], sum(tokens for _, tokens in timings))


class _Process:
    """A server in its own process, which prints its address first."""

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
        """Runs one round."""
        return asyncio.run(run_clients(self.address, self.model, count))


class Ours(_Process):
    def __init__(self, model: str) -> None:
        self.command = [sys.executable, "-m", "stillhouse", "serve", model, "--port", "0"]


class TransformersServe(_Process):
    """``transformers serve`` with a cache of 8,192 tokens; its default is 0.6 of the machine's memory."""

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
        raise RuntimeError(f"transformers serve exited: {' '.join(self.command)}")


class LlamaServer(_Process):
    def __init__(self) -> None:
        self.command = [sys.executable, __file__, "llama"]


def llama_server() -> None:
    """Runs xllamacpp's own server with the same model and number of slots as ours."""
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
        """Runs one round; each chat waits for those before it."""
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


def own_overhead(arguments: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of a request whose engine answers immediately, and microseconds of one streamed token."""
    return {**asyncio.run(request_ms(400 * arguments.rounds)), **asyncio.run(token_us())}


@contextlib.asynccontextmanager
async def serving(engine: Callable[[Any], Any]) -> AsyncIterator[int]:
    """Serves the engine that ``engine`` returns for a prompt encoder, in this process; yields the port."""
    import uvicorn

    from stillhouse.models import load_tokenizer
    from stillhouse.models.backends.prompts import PromptEncoder
    from stillhouse.serve.app import create_app
    from stillhouse.serve.model_pool import ModelPool

    loaded_engine = engine(PromptEncoder(*load_tokenizer("embedded:smollm2"), 2048, 0))
    pool = ModelPool({"smollm2": "nothing"}, idle_s=0, load=lambda reference: loaded_engine)
    app = create_app(pool, queue_size=8, hosts=["127.0.0.1"], api_key=None)
    server = uvicorn.Server(uvicorn.Config(app, port=0, loop="asyncio", log_level="error", access_log=False))
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await running


async def request_ms(times: int) -> dict[str, float]:
    """Percentiles over requests whose engine answers immediately with one token."""
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
    milliseconds = []
    async with serving(engine) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(times):
            sent = time.perf_counter()
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            if number >= 100:
                milliseconds.append(1000 * (time.perf_counter() - sent))
        writer.close()
    milliseconds.sort()
    p50, p99 = statistics.median(milliseconds), milliseconds[int(0.99 * len(milliseconds))]
    return {"p50_ms": round(p50, 3), "p99_ms": round(p99, 3)}


async def token_us() -> dict[str, float]:
    """Processor time of this process for one streamed token at 8 chats; the clients are another process."""
    from stillhouse.serve.engines.llama_cpp import LlamaEngine

    async def clients(port: int) -> None:
        command = [sys.executable, __file__, "clients", f"http://127.0.0.1:{port}"]
        process = await asyncio.create_subprocess_exec(*command)
        assert await process.wait() == 0

    async with serving(lambda prompts: LlamaEngine(Metronome(prompts))) as port:
        await clients(port)
        started = time.process_time()
        await clients(port)
        return {"token_us": round(1e6 * (time.process_time() - started) / (8 * METRONOME_TOKENS))}


METRONOME_TOKENS = 300


class Metronome:
    """A fake llama.cpp for :class:`LlamaEngine`: a token every 20 ms, 8 chats half a millisecond apart."""

    context_length = 2048

    def __init__(self, prompts: Any) -> None:
        self.prompts, self.streams = prompts, 0
        self.threads = ThreadPoolExecutor(8)

    def stream(self, ids: Any, sampling: Any, listen: Callable[[Any], bool], **options: Any) -> None:
        self.streams += 1
        self.threads.submit(self.emit, listen, self.streams % 8)

    def emit(self, listen: Callable[[Any], bool], slot: int) -> None:
        due = time.perf_counter() // 0.02 * 0.02 + slot * 0.0005
        for number in range(METRONOME_TOKENS):
            due += 0.02
            time.sleep(max(0.0, due - time.perf_counter()))
            reason = "length" if number == METRONOME_TOKENS - 1 else None
            listen({
                "choices": [{"text": " so", "logprobs": None, "finish_reason": reason}],
                "timings": {"predicted_n": number + 1},
            })  # fmt: skip

    async def close(self) -> None:
        self.threads.shutdown()


if __name__ == "__main__":
    if sys.argv[1:] == ["llama"]:
        llama_server()
    elif sys.argv[1:2] == ["clients"]:
        asyncio.run(run_clients(sys.argv[2], "smollm2", 8))
    else:
        main()
