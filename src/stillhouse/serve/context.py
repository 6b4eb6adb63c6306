"""Shared state of the request handlers: the models, the queue and the threads that read prompts."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from stillhouse.serve.engines.base import Engine
from stillhouse.serve.errors import QueueFullError
from stillhouse.serve.metrics import ServerMetrics
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
        self.metrics = ServerMetrics()
        self.per_tokenizer: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        """What is made once for each model's prompt encoder. Weak, so that nothing here keeps an unloaded
        model's tokenizer in memory."""
        self._prompt_threads: weakref.WeakKeyDictionary[Any, ThreadPoolExecutor] = weakref.WeakKeyDictionary()

    @contextlib.contextmanager
    def reserve(self, answers: int) -> Iterator[int]:
        """Reserves places in the queue for a request, and yields how many.

        A request for more answers than there are places gets those that are free, and works its answers off
        in them.

        Raises:
            QueueFullError: no place is free.
        """
        places = min(answers, self.queue_size - self.answers_in_progress)
        if places < 1:
            raise QueueFullError(f"at most {self.queue_size} answers may be running or waiting; retry later")
        self.answers_in_progress += places
        try:
            yield places
        finally:
            self.answers_in_progress -= places

    async def read_prompt(self, engine: Engine, read: Callable[..., Result], *arguments: Any) -> Result:
        """Runs ``read(*arguments)``, which renders or tokenizes a prompt, in a thread of the engine's own.

        A long prompt or a slow chat template then delays neither the event loop nor other models.
        """
        if engine.prompts not in self._prompt_threads:
            self._prompt_threads[engine.prompts] = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._prompt_threads[engine.prompts], read, *arguments)
