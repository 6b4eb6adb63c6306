"""Shared state of the request handlers: the models, the queue and the threads that read prompts."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from stillhouse.serve.api.errors import QueueFullError
from stillhouse.serve.api.responses import LogprobFormatter
from stillhouse.serve.engines.base import Engine
from stillhouse.serve.model_pool import ModelPool

Result = TypeVar("Result")


class ServerContext:
    """The state of one server.

    Args:
        queue_size: answers that may be running or waiting, of all models together.
    """

    def __init__(self, pool: ModelPool, *, queue_size: int) -> None:
        self.pool, self.queue_size = pool, queue_size
        self.answers_in_progress = 0
        # Weak, so that nothing here keeps an unloaded model's tokenizer in memory.
        self._logprob_formatters: weakref.WeakKeyDictionary[Any, LogprobFormatter] = (
            weakref.WeakKeyDictionary()
        )
        self._prompt_threads: weakref.WeakKeyDictionary[Any, ThreadPoolExecutor] = weakref.WeakKeyDictionary()

    @contextlib.contextmanager
    def reserve(self, answers: int) -> Iterator[None]:
        """Reserves places in the queue.

        Raises:
            QueueFullError: there are not enough.
        """
        if self.answers_in_progress + answers > self.queue_size:
            raise QueueFullError(f"at most {self.queue_size} answers may be running or waiting; retry later")
        self.answers_in_progress += answers
        try:
            yield
        finally:
            self.answers_in_progress -= answers

    async def read_prompt(self, engine: Engine, read: Callable[..., Result], *arguments: Any) -> Result:
        """Runs ``read(*arguments)``, which renders or tokenizes a prompt, in a thread of the engine's own.

        A long prompt or a slow chat template then delays neither the event loop nor other models.
        """
        if engine.prompts not in self._prompt_threads:
            self._prompt_threads[engine.prompts] = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._prompt_threads[engine.prompts], read, *arguments)

    def logprob_formatter(self, engine: Engine) -> LogprobFormatter:
        """Returns the formatter of an engine's log-probabilities; made once, as it reads the vocabulary."""
        if engine.prompts not in self._logprob_formatters:
            self._logprob_formatters[engine.prompts] = LogprobFormatter(engine.prompts.tokenizer)
        return self._logprob_formatters[engine.prompts]
