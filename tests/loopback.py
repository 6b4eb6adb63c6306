"""An application on loopback, served from a thread while a test asks it."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn


def bound_server(app, port: int = 0) -> tuple[uvicorn.Server, socket.socket, str]:
    """A server of ``app`` bound to 127.0.0.1, its socket, and its address."""
    bound = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    return uvicorn.Server(config), bound, f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextlib.contextmanager
def running(runner: uvicorn.Server, bound: socket.socket) -> Iterator[None]:
    """Serves from a thread meanwhile."""
    thread = threading.Thread(target=lambda: asyncio.run(runner.serve([bound])), daemon=True)
    thread.start()
    try:
        yield
    finally:
        runner.should_exit = True
        thread.join(10)
        bound.close()
