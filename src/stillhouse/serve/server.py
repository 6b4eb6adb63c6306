"""The server's socket: opened before the models, closed after the last answer."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from stillhouse.console import console
from stillhouse.errors import MissingExtraError, UsageError
from stillhouse.models import parse_reference
from stillhouse.serve.engine import open_engine
from stillhouse.serve.model_pool import Shelf
from stillhouse.serve.upstream import Upstream

if TYPE_CHECKING:
    from stillhouse.models import Marker, Reference

LOOPBACK = ("localhost", "127.0.0.1", "::1")
DRAIN_S = 30
"""Seconds that answers under way have when the server is told to end."""
ENDS = (signal.SIGINT, signal.SIGTERM)


def serve(
    references: Mapping[str, str],
    *,
    api_key_envs: Mapping[str, str],
    host: str,
    port: int,
    queue: int,
    idle_s: float,
    api_key: str | None,
    names: Collection[str] = (),
    marker: Marker | None = None,
) -> None:
    """Serves models until it is told to end (ctrl-C, SIGTERM): then it drains and returns.

    Args:
        references: name -> model reference, in the order in which they are shown.
        api_key_envs: name -> environment variable with the key that the server behind an `api:` reference
            wants.
        host: address to listen on.
        port: 0 takes any that is free.
        queue: answers under way or waiting; more are told to come again.
        idle_s: seconds without a question after which a model is unloaded; 0 is never.
        api_key: what clients must send as a bearer token; None asks nothing.
        names: further names by which clients may call the server (the `Host` header).
        marker: a watermark for every answer of the models that are loaded here.

    Raises:
        UsageError: the address cannot be listened on, or a model's answers cannot be marked.
    """
    try:
        import uvicorn

        from stillhouse.serve.app import Server
        from stillhouse.serve.uvicorn_protocol import IDLE_S, PatientProtocol
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"serving needs {error.name}", hint="pip install 'stillhouse[serve]'"
        ) from error
    places = {name: parse_reference(reference) for name, reference in references.items()}
    if marker is not None:
        _check_that_all_can_be_marked(places)
    upstreams = {
        name: Upstream(name, place, api_key_env=api_key_envs[name])
        for name, place in places.items()
        if place.kind == "api"
    }
    listening = _socket(host, port)
    address, port = listening.getsockname()[:2]
    shelf = Shelf(
        {**references, **upstreams}, idle_s=idle_s, load=lambda reference: open_engine(reference, marker)
    )
    app = Server(shelf, queue=queue).app(hosts={*LOOPBACK, host, address, *names}, api_key=api_key)
    shown = f"[{host}]" if ":" in host else host
    console.info(f"http://{shown}:{port}  (ctrl-C ends it)")
    console.info(f"models: {', '.join(references)}; each is loaded when it is first asked")
    for upstream in upstreams.values():
        upstream.announce()
    if address not in LOOPBACK:
        _warn_of_others(api_key)
    settings = uvicorn.Config(
        app,
        http=PatientProtocol,
        loop="asyncio",  # uvloop opens an io_uring, through which a user's strace does not see
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=IDLE_S,
    )
    with listening:
        _ending_in_order(uvicorn.Server(settings)).run(sockets=[listening])


def _ending_in_order(server: Any) -> Any:
    """``server`` with ctrl-C and SIGTERM as the ordinary way to end; uvicorn would raise them again."""

    @contextlib.contextmanager
    def signals() -> Iterator[None]:
        before = {number: signal.signal(number, server.handle_exit) for number in ENDS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    server.capture_signals = signals
    return server


def _check_that_all_can_be_marked(places: Mapping[str, Reference]) -> None:
    """Refuses to serve anything unmarked beside what is marked."""
    for name, place in places.items():
        if place.kind == "api" or place.is_gguf:
            raise UsageError(
                f"the answers of {name!r} cannot be watermarked: only safetensors models are sampled here",
                hint="Serve its safetensors directory, or leave --watermark out.",
            )


def _warn_of_others(api_key: str | None) -> None:
    if api_key is None:
        console.warn(
            "other machines can reach this server and use it without a key; "
            "set STILLHOUSE_API_KEY, or leave --host out"
        )
    console.warn("what other machines send is not encrypted on its way; put a TLS proxy before it")


def _socket(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error}", hint="Choose another --port; 0 takes any free one."
        ) from error
    return listening
