"""The models of one server: each is loaded at its first request, and unloaded after some idle time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from stillhouse.console import console
from stillhouse.errors import CapabilityError, ModelNotFoundError, StillhouseError
from stillhouse.serve.engines.base import Engine
from stillhouse.serve.engines.open import ModelSizes, model_sizes, open_engine
from stillhouse.serve.upstream import Upstream


@dataclass
class _PooledModel:
    reference: str
    engine: Engine | None = None
    loading: asyncio.Task[Engine] | None = None
    users: int = 0
    last_used: float = 0.0
    sizes: asyncio.Task[ModelSizes | None] | None = None


class ModelPool:
    """Engines by model name.

    Args:
        references: name -> model reference, or the server that has the model; listed in this order.
        idle_s: seconds after its last answer for which a model stays loaded; 0 never unloads it.
        load: opens the engine of a reference.
    """

    def __init__(
        self,
        references: Mapping[str, str | Upstream],
        *,
        idle_s: float,
        load: Callable[[str], Engine] = open_engine,
    ) -> None:
        self.names = list(references)
        """Names of all models, in order."""
        self.upstreams = {name: model for name, model in references.items() if isinstance(model, Upstream)}
        """The models of other servers; they are not loaded."""
        self.references = {name: model for name, model in references.items() if isinstance(model, str)}
        """References of the models that are loaded here."""
        self._models = {
            name: _PooledModel(reference)
            for name, reference in references.items()
            if isinstance(reference, str)
        }
        self._idle_s, self._load = idle_s, load
        self._load_lock = asyncio.Lock()  # transformers' lazy imports break when two threads load models

    def loaded_engine(self, name: str) -> Engine | None:
        """Returns the engine of ``name`` if it is in memory; does not load it."""
        return self._models[name].engine if name in self._models else None

    async def sizes(self, name: str) -> ModelSizes | None:
        """Returns a model's sizes without loading it; None where they are unknown. They are read once."""
        model = self._models.get(name)
        if model is None:
            return None
        if model.sizes is None:
            model.sizes = asyncio.create_task(asyncio.to_thread(_sizes_or_none, model.reference))
        return await asyncio.shield(model.sizes)

    @contextlib.asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Engine]:
        """Yields the engine of ``name``, loading it if necessary; it is not unloaded while in use.

        Raises:
            ModelNotFoundError: there is no model of this name.
            CapabilityError: another server has it.
            StillhouseError: it cannot be loaded.
        """
        if name in self.upstreams:
            raise CapabilityError(f"{name} is a model of another server, which this path does not ask")
        model = self._models.get(name)
        if model is None:
            raise ModelNotFoundError(f"there is no model {name!r} here; there is {', '.join(self.names)}")
        model.users += 1
        try:
            yield model.engine or await self._loaded(name, model)
        finally:
            model.users -= 1
            model.last_used = time.monotonic()

    async def _loaded(self, name: str, model: _PooledModel) -> Engine:
        """Waits for the engine, which all waiting requests share."""
        if model.loading is None:
            model.loading = asyncio.create_task(self._open(name, model))
        # A client that disconnects must not cancel the loading: others may wait for it, and the loading
        # thread cannot be stopped anyway, so its engine would stay in memory with no owner.
        return await asyncio.shield(model.loading)

    async def _open(self, name: str, model: _PooledModel) -> Engine:
        try:
            async with self._load_lock:
                started = time.monotonic()
                model.engine = await asyncio.to_thread(self._load, model.reference)
        finally:
            model.loading = None  # after a failure the next request tries again
        model.last_used = time.monotonic()
        seconds = model.last_used - started
        context = f"{model.engine.context_length:,} tokens {model.engine.prompts.context_note}".rstrip()
        console.info(f"{name}: loaded in {seconds:.1f} s, context {context}")
        return model.engine

    async def unload_idle(self) -> None:
        """Unloads idle models, until cancelled."""
        while True:
            await asyncio.sleep(min(self._idle_s / 4, 30.0) if self._idle_s else 3600.0)
            for name, model in self._models.items():
                idle = time.monotonic() - model.last_used
                if self._idle_s and model.engine and not model.users and idle > self._idle_s:
                    # Removed before the await: a request that arrives meanwhile must load it again.
                    engine, model.engine = model.engine, None
                    await engine.close()
                    console.info(f"{name}: unloaded after {idle:.0f} s without a request")

    async def close(self) -> None:
        """Unloads all models and closes connections to other servers."""
        for upstream in self.upstreams.values():
            await upstream.close()
        for model in self._models.values():
            if model.loading:
                await asyncio.wait([model.loading])
            if model.engine:
                engine, model.engine = model.engine, None
                await engine.close()


def _sizes_or_none(reference: str) -> ModelSizes | None:
    try:
        return model_sizes(reference)
    except StillhouseError:  # the first request that uses the model reports what is wrong with it
        return None
