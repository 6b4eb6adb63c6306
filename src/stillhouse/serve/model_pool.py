"""The models of one server: each loaded when it is first asked, and unloaded when nobody has for a while."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from stillhouse.console import console
from stillhouse.errors import ModelNotFoundError
from stillhouse.serve.engine import Engine, open_engine
from stillhouse.serve.upstream import Upstream


@dataclass
class _Place:
    reference: str
    engine: Engine | None = None
    loading: asyncio.Task[Engine] | None = None
    users: int = 0
    used: float = 0.0


class Shelf:
    """Engines by name.

    Args:
        references: name -> model reference, or the server that has the model, in the order in which they are
            shown.
        idle_s: seconds after its last answer for which a model stays loaded; 0 is for ever.
        load: what makes an engine of a reference.
    """

    def __init__(
        self,
        references: Mapping[str, str | Upstream],
        *,
        idle_s: float,
        load: Callable[[str], Engine] = open_engine,
    ) -> None:
        self.names = list(references)
        """The models, the first one first."""
        self.upstreams = {name: one for name, one in references.items() if isinstance(one, Upstream)}
        """Those that other servers have; they are not loaded."""
        self._places = {name: _Place(one) for name, one in references.items() if isinstance(one, str)}
        self._idle_s, self._load = idle_s, load
        self._one_at_a_time = asyncio.Lock()  # transformers' loading is not made for two threads

    @contextlib.asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Engine]:
        """The engine of ``name``, loaded, and not unloaded meanwhile.

        Raises:
            ModelNotFoundError: there is none of this name.
            StillhouseError: it cannot be loaded.
        """
        place = self._places.get(name)
        if place is None:
            raise ModelNotFoundError(f"there is no model {name!r} here; there is {', '.join(self.names)}")
        place.users += 1
        try:
            yield place.engine or await self._loaded(name, place)
        finally:
            place.users -= 1
            place.used = time.monotonic()

    async def _loaded(self, name: str, place: _Place) -> Engine:
        """The engine that all who wait for it get; whoever leaves meanwhile does not end the loading."""
        if place.loading is None:
            place.loading = asyncio.create_task(self._open(name, place))
        return await asyncio.shield(place.loading)

    async def _open(self, name: str, place: _Place) -> Engine:
        try:
            async with self._one_at_a_time:
                started = time.monotonic()
                place.engine = await asyncio.to_thread(self._load, place.reference)
        finally:
            place.loading = None
        place.used = time.monotonic()
        seconds = place.used - started
        console.info(f"{name}: loaded in {seconds:.1f} s, context {place.engine.context_length:,} tokens")
        return place.engine

    async def unload_idle(self) -> None:
        """Runs for as long as the server; unloads what has not been used."""
        while True:
            await asyncio.sleep(min(self._idle_s / 4, 30.0) if self._idle_s else 3600.0)
            for name, place in self._places.items():
                idle = time.monotonic() - place.used
                if self._idle_s and place.engine and not place.users and idle > self._idle_s:
                    engine, place.engine = place.engine, None
                    await engine.close()
                    console.info(f"{name}: unloaded after {idle:.0f} s without a question")

    async def close(self) -> None:
        """Unloads everything."""
        for upstream in self.upstreams.values():
            await upstream.close()
        for place in self._places.values():
            if place.loading:
                await asyncio.wait([place.loading])
            if place.engine:
                engine, place.engine = place.engine, None
                await engine.close()
