"""A server from Python: it runs in a thread, beside the program that started it."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stillhouse.errors import UsageError
from stillhouse.serve.engines.open import open_engine, torch_engine
from stillhouse.serve.server import bind_server

if TYPE_CHECKING:
    from stillhouse.models import Weights

START_S = 30.0
SERVER_KEY_ENV = "STILLHOUSE_API_KEY"


class BackgroundServer:
    """A running server. Use it as a context manager, or call :meth:`close`."""

    def __init__(self, server: Any, listener: Any, models: tuple[str, ...], host: str) -> None:
        self._server, self._listener = server, listener
        self.models = models
        """Names by which clients ask for the models."""
        port = listener.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        """Address of the chat page; the API is below it, at ``/v1``."""
        self._thread = threading.Thread(
            target=lambda: server.run(sockets=[listener]), name="stillhouse server", daemon=True
        )
        self._thread.start()
        # The socket is bound, but refuses connections until the server listens.
        end = time.monotonic() + START_S
        while not server.started and self._thread.is_alive() and time.monotonic() < end:
            time.sleep(0.01)

    def wait(self) -> None:
        """Blocks until ctrl-C, then closes the server."""
        try:
            while self._thread.is_alive():
                self._thread.join(0.2)
        except KeyboardInterrupt:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Finishes the answers in progress, frees the models and stops."""
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()

    def __enter__(self) -> BackgroundServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(
    models: str | os.PathLike[str] | Weights | Mapping[str, str | os.PathLike[str] | Weights],
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    queue: int = 64,
    idle_s: float = 0.0,
    api_key: str | None = None,
    api_key_env: str = "OPENAI_API_KEY",
) -> BackgroundServer:
    """Serves models to OpenAI clients and a chat page, in a thread of this process; returns at once.

    Example::

        with st.serve({"student": student}, port=0) as server:
            client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
            client.chat.completions.create(model="student", messages=[{"role": "user", "content": "Hi"}])

        st.serve("embedded:smollm2").wait()   # until ctrl-C, as `still serve` does

    Args:
        models: one model or name -> model: references, or models from `load`. These are not copied, so do not
            train one while it is served. A single model is called ``model``.
        host: address to listen on; any other than loopback lets other machines connect.
        port: 0 chooses a free one.
        queue: answers that may be running or waiting; further requests get HTTP 429.
        idle_s: seconds without a request after which a model is unloaded; 0 never unloads.
        api_key: key that clients must send; by default STILLHOUSE_API_KEY of the environment, or none.
        api_key_env: environment variable with the key for `api:` models.

    Raises:
        UsageError: the address is not available.
        ModelNotFoundError: a reference names no model.
        MissingExtraError: the extra `serve` is not installed.
    """
    from stillhouse.models import Weights

    named = models if isinstance(models, Mapping) else {"model": models}
    if not named:
        raise UsageError("no model is given", hint='st.serve("embedded:smollm2")')
    references: dict[str, str] = {}
    loaded: dict[str, Weights] = {}
    for name, model in named.items():
        if isinstance(model, Weights):
            # Unlike any path, so that the pool cannot take it for a reference.
            references[name] = f"{model.reference} #{secrets.token_hex(8)}"
            loaded[references[name]] = model
        else:
            references[name] = os.fspath(model)

    server, listener = bind_server(
        references,
        api_key_envs=dict.fromkeys(references, api_key_env),
        host=host,
        port=port,
        queue=queue,
        idle_s=idle_s,
        api_key=api_key or os.environ.get(SERVER_KEY_ENV) or None,
        load=lambda reference: (
            torch_engine(loaded[reference]) if reference in loaded else open_engine(reference)
        ),
        in_memory=[name for name, reference in references.items() if reference in loaded],
    )
    return BackgroundServer(server, listener, tuple(references), host)
