"""Counters of one server, in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from stillhouse.serve.engines.base import TextDelta

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DURATION_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the histogram of durations, in seconds."""


class TokenUsage:
    """Counts the tokens of all answers of one request."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens, self.completion_tokens, self.cached_tokens = prompt_tokens, 0, 0

    def add(self, delta: TextDelta) -> None:
        """Counts one delta."""
        self.completion_tokens += delta.tokens
        self.cached_tokens += delta.cached_tokens


class ServerMetrics:
    """Counts requests and tokens since the server started. Nothing here identifies a client or a prompt."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._prompt_tokens: Counter[str] = Counter()
        self._cached_tokens: Counter[str] = Counter()
        self._generated_tokens: Counter[str] = Counter()
        self._durations: dict[str, list[float]] = {}
        """Model -> counts of answers by bucket (not cumulative; the last is +Inf), then the sum."""

    def count_request(self, path: str, status: int) -> None:
        """Counts a response; ``path`` is a route, not what the client sent."""
        self._requests[path, status] += 1

    def count_embeddings(self, model: str, tokens: int) -> None:
        """Counts the tokens of a request for embeddings."""
        self._prompt_tokens[model] += tokens

    @contextlib.contextmanager
    def measure(self, model: str, usage: TokenUsage, started: float) -> Iterator[None]:
        """Counts the tokens of a request's answers, and the time since ``started``, at its exit.

        Args:
            started: of ``time.monotonic()``.
        """
        try:
            yield
        finally:
            self._prompt_tokens[model] += usage.prompt_tokens
            self._cached_tokens[model] += usage.cached_tokens
            self._generated_tokens[model] += usage.completion_tokens
            seconds = time.monotonic() - started
            counts = self._durations.setdefault(model, [0.0] * (len(DURATION_BUCKETS_S) + 2))
            counts[sum(seconds > bound for bound in DURATION_BUCKETS_S)] += 1
            counts[-1] += seconds

    def to_text(self, *, answers: int, queue_size: int, loaded: Sequence[tuple[str, bool]]) -> str:
        """Returns all metrics.

        Args:
            answers: places in the queue that are taken.
            loaded: the models' names, and whether each is in memory.
        """
        lines = [
            *_metric(
                "still_requests_total",
                "counter",
                "HTTP responses by route and status.",
                [
                    ({"path": path, "status": str(status)}, count)
                    for (path, status), count in sorted(self._requests.items())
                ],
            ),
            *_by_model(
                "still_prompt_tokens_total", "Tokens of prompts, cached ones too.", self._prompt_tokens
            ),
            *_by_model(
                "still_cached_prompt_tokens_total",
                "Tokens of prompts that were found in the cache.",
                self._cached_tokens,
            ),
            *_by_model("still_generated_tokens_total", "Tokens of answers.", self._generated_tokens),
            *self._duration_lines(),
            *_metric("still_answers_in_progress", "gauge", "Answers running or waiting.", [({}, answers)]),
            *_metric(
                "still_queue_size", "gauge", "Answers that may be running or waiting.", [({}, queue_size)]
            ),
            *_metric(
                "still_model_loaded",
                "gauge",
                "1 for models in memory, 0 for others.",
                [({"model": name}, int(is_loaded)) for name, is_loaded in loaded],
            ),
        ]
        return "\n".join(lines) + "\n"

    def _duration_lines(self) -> Iterable[str]:
        name = "still_answer_duration_seconds"
        yield f"# HELP {name} Seconds from a request for answers to its end, by model."
        yield f"# TYPE {name} histogram"
        for model, (*counts, total) in sorted(self._durations.items()):
            cumulative = 0.0
            for bound, count in zip((*map(str, DURATION_BUCKETS_S), "+Inf"), counts, strict=True):
                cumulative += count
                yield _sample(f"{name}_bucket", {"model": model, "le": bound}, cumulative)
            yield _sample(f"{name}_sum", {"model": model}, total)
            yield _sample(f"{name}_count", {"model": model}, cumulative)


def _by_model(name: str, description: str, counts: Counter[str]) -> list[str]:
    return _metric(
        name, "counter", description, [({"model": model}, n) for model, n in sorted(counts.items())]
    )


def _metric(
    name: str, kind: str, description: str, samples: Sequence[tuple[dict[str, str], float]]
) -> list[str]:
    return [
        f"# HELP {name} {description}",
        f"# TYPE {name} {kind}",
        *(_sample(name, labels, value) for labels, value in samples),
    ]


def _sample(name: str, labels: dict[str, str], value: float) -> str:
    escaped = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{name}{{{escaped}}} {value:g}" if escaped else f"{name} {value:g}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
