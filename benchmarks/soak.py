"""``still serve`` under mixed load for minutes: whether requests are lost, and whether memory grows.

    python benchmarks/soak.py --minutes 10 --out soak.json
    python benchmarks/soak.py --minutes 0.3 --idle 2 tiny=DIRECTORY smollm2=embedded:smollm2

Concurrent clients use two models, one in GGUF and one in safetensors: whole and streamed chats, completions
with log-probabilities, embeddings, answers cancelled before the first token and in the middle, slow readers,
and invalid requests. For a third of the time clients use both models, and for a third each one alone, so that
the other is unloaded and loaded again.

A request counts as answered (completely), told (the expected 4xx, 429 included) or given up by its client.
Everything else is lost: another status, a broken connection, an incomplete answer, two minutes without any.
Memory is that of the server and its children (Linux: VmRSS), sampled every second. Its growth is the slope of
a line through the medians of whole rounds of three thirds, after a warm-up of a fifth of the time.

Exit status: 1 if a request was lost, a place in the queue was not released, the server did not exit normally,
or memory grows faster than --growth.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

QUEUE = 10
TIMEOUT_S = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", help="NAME=REFERENCE: first safetensors, then GGUF")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--idle", type=float, default=12, help="idle seconds after which a model is unloaded")
    parser.add_argument(
        "--growth", type=float, default=5, help="maximum growth in MB per minute; inf for any"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if not arguments.models:
            from smollm2 import saved

            saved(directory, "bfloat16")
        models = arguments.models or [f"own={directory}", "smollm2=embedded:smollm2"]
        report = asyncio.run(run_soak(models, arguments))
    print(json.dumps(report, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(bool(report["faults"]))


async def run_soak(models: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs server and load; returns the report."""
    command = [sys.executable, "-m", "stillhouse", "serve", *models, "--port", "0", "--queue", str(QUEUE)]
    command += ["--idle", str(arguments.idle / 60)]
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
        try:
            address = await first_line(process, stderr)
            names = [model.partition("=")[0] for model in models]
            load = Load(address, names, arguments)
            samples: list[tuple[float, float]] = []
            memory = asyncio.create_task(sample_memory(process.pid, time.monotonic(), samples))
            started = time.monotonic()
            await load.run()
            took = time.monotonic() - started
            memory.cancel()
            unreleased = await load.unreleased_places()
            process.send_signal(signal.SIGTERM)
            status = process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()
        stderr.seek(0)
        log = stderr.read()
    round_s = 3 * load.third_s
    growth, medians = slope(samples, round_s, 0.2 * took)
    faults = [f"lost: {what} ({count})" for what, count in load.lost.items()]
    faults += [line for line in log.splitlines() if "internal error" in line or "the model failed" in line]
    if unreleased:
        faults.append(f"{unreleased} places in the queue were not released")
    if status or "Traceback" in log:
        faults.append(f"the server exited with status {status}: {log[-500:]}")
    if growth is None and arguments.growth < math.inf:
        faults.append(f"fewer than three whole rounds of {round_s:.0f} s: the growth of memory is unknown")
    if growth is not None and growth > arguments.growth:
        faults.append(f"memory grows by {growth:.2f} MB per minute; the limit is {arguments.growth:g}")
    totals = collections.Counter(outcome for counts in load.counts.values() for outcome in counts.elements())
    return {
        "minutes": round(took / 60, 2),
        "sent": sum(totals.values()),
        **totals,
        "by_kind": {kind: dict(counts) for kind, counts in sorted(load.counts.items())},
        "models_loaded": log.count(": loaded in"),
        "models_unloaded": log.count(": unloaded after"),
        "memory_mb": {
            "rounds": [round(value) for value in medians],
            "peak": round(max(size for _, size in samples)),
            "growth_a_minute": growth and round(growth, 2),
        },
        "faults": faults,
    }


async def first_line(process: subprocess.Popen[bytes], stderr: Any) -> str:
    """Returns the address that the server prints first."""
    for _ in range(2000):
        stderr.seek(0)
        if "\n" in (text := stderr.read()):
            return text.split()[0]
        assert process.poll() is None, text
        await asyncio.sleep(0.1)
    raise TimeoutError("the server prints nothing")


async def sample_memory(pid: int, started: float, samples: list[tuple[float, float]]) -> None:
    """Adds seconds since the start and MB to ``samples`` every second, until cancelled."""
    while True:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        children = {child for task in tasks for child in read(task / "children").split()}
        samples.append((time.monotonic() - started, sum(map(resident_mb, [str(pid), *children]))))
        await asyncio.sleep(1)


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has exited meanwhile
        return ""


def resident_mb(pid: str) -> float:
    """Resident memory of one process in MB."""
    lines = read(Path(f"/proc/{pid}/status")).splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def slope(
    samples: list[tuple[float, float]], round_s: float, warm_s: float
) -> tuple[float | None, list[float]]:
    """Growth of the medians of whole rounds in MB per minute (None for fewer than three), and the medians."""
    rounds: dict[int, list[float]] = collections.defaultdict(list)
    for at, size in samples:
        rounds[int(at / round_s)].append(size)
    whole_rounds = sorted(number for number in rounds if (number + 1) * round_s <= samples[-1][0] + 1)
    kept = [number for number in whole_rounds if number * round_s >= warm_s]
    medians = {number: statistics.median(rounds[number]) for number in whole_rounds}
    if len(kept) < 3:
        return None, list(medians.values())
    minutes = [number * round_s / 60 for number in kept]
    line = statistics.linear_regression(minutes, [medians[number] for number in kept])
    return line.slope, list(medians.values())


class Load:
    """Concurrent clients, and a count of the outcomes of their requests."""

    def __init__(self, address: str, names: list[str], arguments: argparse.Namespace) -> None:
        self.address, self.names = address, names
        self.seconds, self.clients, self.seed = 60 * arguments.minutes, arguments.clients, arguments.seed
        self.third_s = 2.5 * arguments.idle
        self.counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.lost: collections.Counter[str] = collections.Counter()

    async def run(self) -> None:
        """Sends requests until the time is over, and waits for those in progress."""
        limits = httpx.Limits(max_connections=None)
        self.began = time.monotonic()
        async with httpx.AsyncClient(
            base_url=self.address, timeout=TIMEOUT_S, limits=limits, trust_env=False
        ) as self.http:
            await asyncio.gather(*(self.client(number) for number in range(self.clients)))

    async def unreleased_places(self) -> int:
        """Answers that the server still counts as in progress, after up to 10 s."""
        async with httpx.AsyncClient(base_url=self.address, trust_env=False) as http:
            answers = 0
            for _ in range(100):
                answers = (await http.get("/health")).json()["answers"]
                if not answers:
                    break
                await asyncio.sleep(0.1)
        return answers

    async def client(self, number: int) -> None:
        kinds: list[Callable[[str, random.Random], Awaitable[str]]] = [
            self.chat, self.chat, self.streamed, self.streamed, self.completion, self.embedding,
            self.given_up_at_once, self.given_up_in_the_middle, self.slowly_read, self.wrong, self.page,
        ]  # fmt: skip
        rng = random.Random(f"{self.seed}:{number}")
        while (now := time.monotonic() - self.began) < self.seconds:
            third = int(now / self.third_s) % 3
            model = self.names[third - 1] if third else rng.choice(self.names)
            kind = rng.choice(kinds)
            try:
                outcome = await kind(model, rng)
            except Exception as error:  # whatever it is, this request is lost and the others continue
                outcome = "lost"
                self.lost[f"{kind.__name__}: {type(error).__name__}: {error}"[:200]] += 1
            self.counts[kind.__name__][outcome] += 1
            if outcome == "told":
                await asyncio.sleep(0.5)

    async def chat(self, model: str, rng: random.Random) -> str:
        reply = await self.http.post("/v1/chat/completions", json=chat_body(model, rng))
        return outcome_of(reply, lambda answer: answer["choices"][0]["finish_reason"] in ("stop", "length"))

    async def streamed(self, model: str, rng: random.Random, pause_s: float = 0) -> str:
        body = chat_body(model, rng) | {"stream": True}
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                await reply.aread()
                return outcome_of(reply, lambda answer: False)
            last = ""
            async for line in reply.aiter_lines():
                last = line or last
                await asyncio.sleep(pause_s)
        assert last == "data: [DONE]", f"the stream ended with {last[:80]}"
        return "answered"

    async def slowly_read(self, model: str, rng: random.Random) -> str:
        return await self.streamed(model, rng, pause_s=0.05)

    async def completion(self, model: str, rng: random.Random) -> str:
        body = {"model": model, "prompt": ["The sea is", "One, two,"], "max_tokens": 12, "logprobs": 3}
        reply = await self.http.post("/v1/completions", json=body | {"seed": rng.randrange(2**31)})
        return outcome_of(reply, lambda answer: len(answer["choices"][1]["logprobs"]["tokens"]) > 0)

    async def embedding(self, model: str, rng: random.Random) -> str:
        body = {"model": model, "input": ["a cat", "a dog"]}
        reply = await self.http.post("/v1/embeddings", json=body)
        return outcome_of(reply, lambda answer: len(answer["data"]) == 2)

    async def given_up_at_once(self, model: str, rng: random.Random) -> str:
        body = chat_body(model, rng) | {"max_tokens": 400, "stream": rng.random() < 0.5}
        try:
            async with asyncio.timeout(rng.uniform(0.01, 0.2)):
                await self.http.post("/v1/chat/completions", json=body)
        except TimeoutError:
            pass
        return "given up"

    async def given_up_in_the_middle(self, model: str, rng: random.Random) -> str:
        body = chat_body(model, rng) | {"max_tokens": 400, "stream": True}
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                await reply.aread()
                return outcome_of(reply, lambda answer: False)
            lines, last = reply.aiter_lines(), ""
            for _ in range(rng.randint(1, 20)):
                line = await anext(lines, None)
                if line is None:  # the answer was short
                    assert last == "data: [DONE]", f"the stream ended with {last[:80]}"
                    return "answered"
                last = line or last
        return "given up"

    async def wrong(self, model: str, rng: random.Random) -> str:
        body, status = rng.choice([
            ({"model": model}, 400),
            ({"model": model, "messages": [{"role": "king", "content": "x"}]}, 400),
            (chat_body(model, rng) | {"temperature": 9}, 400),
            (chat_body(model, rng) | {"messages": [{"role": "user", "content": "word " * 20_000}]}, 400),
            (chat_body("gone", rng), 404),
        ])  # fmt: skip
        reply = await self.http.post("/v1/chat/completions", json=body)
        return outcome_of(reply, lambda answer: False, status)

    async def page(self, model: str, rng: random.Random) -> str:
        reply = await self.http.get(rng.choice(["/", "/v1/models", "/openapi.json"]))
        return "answered" if reply.status_code == 200 else outcome_of(reply, lambda answer: False)


def chat_body(model: str, rng: random.Random) -> dict[str, Any]:
    """The body of a short chat."""
    topic = rng.choice(["the sea", "a small still", "two old friends", "winter", "bread"])
    return {
        "model": model,
        "messages": [{"role": "user", "content": f"Write about {topic}, number {rng.randrange(100)}."}],
        "max_tokens": rng.randint(4, 40),
        "seed": rng.randrange(2**31),
    }


def outcome_of(
    reply: httpx.Response, is_complete: Callable[[Any], bool], expected_status: int | None = None
) -> str:
    """Returns ``answered`` or ``told``; raises AssertionError for anything else."""
    if reply.status_code == 429 or reply.status_code == expected_status:
        assert reply.json()["error"]["message"]
        return "told"
    assert reply.status_code == 200 and expected_status is None, (
        f"status {reply.status_code}: {reply.text[:100]}"
    )
    assert is_complete(reply.json()), f"incomplete answer: {reply.text[:100]}"
    return "answered"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main()
