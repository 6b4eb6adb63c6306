"""Runs the server: opens its socket before any model is loaded, and closes it after the last answer."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from stillhouse.console import console
from stillhouse.errors import AddressError, MissingExtraError, UsageError
from stillhouse.models import parse_reference
from stillhouse.serve.engines.open import open_engine
from stillhouse.serve.model_pool import ModelPool
from stillhouse.serve.upstream import Upstream

if TYPE_CHECKING:
    import uvicorn

    from stillhouse.models import Marker, Reference
    from stillhouse.serve.engines.base import Engine

LOOPBACK = ("localhost", "127.0.0.1", "::1")
DRAIN_S = 30
"""Seconds that answers in progress have to finish after a termination signal."""
TERMINATION_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_server(
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
    """Serves models until ctrl-C or SIGTERM; then it finishes the answers in progress and returns.

    Args:
        references: name -> model reference, in the order in which they are listed.
        api_key_envs: name -> environment variable with the key for the server behind an `api:` reference.
        host: address to listen on.
        port: port to listen on; 0 chooses a free one.
        queue: answers that may be running or waiting; further requests get HTTP 429.
        idle_s: seconds without a request after which a model is unloaded; 0 never unloads.
        api_key: key that clients must send as a bearer token; None requires none.
        names: further names by which clients may call the server (the `Host` header).
        marker: watermark for every answer of the models that are loaded here.

    Raises:
        AddressError: the address is not available.
        UsageError: the port is out of range, or a model's answers cannot be watermarked.
    """
    if marker is not None:
        _require_watermarkable({name: parse_reference(reference) for name, reference in references.items()})
    server, listener = bind_server(
        references,
        api_key_envs=api_key_envs,
        host=host,
        port=port,
        queue=queue,
        idle_s=idle_s,
        api_key=api_key,
        names=names,
        load=lambda reference: open_engine(reference, marker),
    )
    with listener:
        _handle_signals(server).run(sockets=[listener])


def bind_server(
    references: Mapping[str, str],
    *,
    api_key_envs: Mapping[str, str],
    host: str,
    port: int,
    queue: int,
    idle_s: float,
    api_key: str | None,
    load: Callable[[str], Engine],
    names: Collection[str] = (),
    in_memory: Collection[str] = (),
) -> tuple[uvicorn.Server, socket.socket]:
    """A server that is ready to run, and its bound socket; prints its address.

    Args:
        load: opens the engine of a reference.
        in_memory: names of models that are loaded already; ``load`` gets their entry in ``references``.
        references, api_key_envs, host, port, queue, idle_s, api_key, names: as of :func:`run_server`.
    """
    try:
        import uvicorn

        from stillhouse.serve.app import create_app
        from stillhouse.serve.uvicorn_protocol import IDLE_S, LimitedHttpProtocol
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"serving needs {error.name}", hint="pip install 'stillhouse[serve]'"
        ) from error
    parsed_references = {
        name: parse_reference(reference) for name, reference in references.items() if name not in in_memory
    }
    upstreams = {
        name: Upstream(name, reference, api_key_env=api_key_envs[name])
        for name, reference in parsed_references.items()
        if reference.kind == "api"
    }
    # Before the models, so that a port in use is reported at once.
    listener = _open_socket(host, port)
    address, port = listener.getsockname()[:2]
    pool = ModelPool({**references, **upstreams}, idle_s=idle_s, load=load)
    app = create_app(pool, queue_size=queue, hosts={*LOOPBACK, host, address, *names}, api_key=api_key)
    _announce(f"[{host}]" if ":" in host else host, port, references, upstreams)
    if address not in LOOPBACK:
        _warn_of_remote_access(api_key)
    settings = uvicorn.Config(
        app,
        http=LimitedHttpProtocol,
        loop="asyncio",  # uvloop uses io_uring, through which a user's strace sees no connections
        log_level="warning",
        access_log=False,  # addresses and times of requests are private
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=IDLE_S,
    )
    return uvicorn.Server(settings), listener


def _announce(host: str, port: int, references: Mapping[str, str], upstreams: Mapping[str, Upstream]) -> None:
    """Prints the server's address, its models, and where prompts go."""
    console.info(f"http://{host}:{port}  (ctrl-C stops it)")
    console.info(f"models: {', '.join(references)}; each is loaded at its first request")
    for upstream in upstreams.values():
        upstream.announce()


def _handle_signals(server: Any) -> Any:
    """Makes ctrl-C and SIGTERM end ``server`` normally; uvicorn would raise the signals again afterwards."""

    @contextlib.contextmanager
    def capture_signals() -> Iterator[None]:
        previous = {number: signal.signal(number, server.handle_exit) for number in TERMINATION_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    server.capture_signals = capture_signals
    return server


def _require_watermarkable(references: Mapping[str, Reference]) -> None:
    """Raises if any model's answers cannot be watermarked: no unmarked answers beside marked ones."""
    for name, reference in references.items():
        if reference.kind == "api" or reference.is_gguf:
            raise UsageError(
                f"the answers of {name!r} cannot be watermarked: only safetensors models are sampled here",
                hint="Serve its safetensors directory, or omit --watermark.",
            )


def _warn_of_remote_access(api_key: str | None) -> None:
    if api_key is None:
        console.warn(
            "other machines can reach this server and use it without a key; "
            "set STILLHOUSE_API_KEY, or omit --host"
        )
    console.warn("requests of other machines are not encrypted; put a TLS proxy in front of this server")


def _open_socket(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:  # getaddrinfo would take it modulo 65536
        raise UsageError(f"cannot listen on {host}:{port}: a port is between 0 and 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as opened:
            listener = opened.enter_context(socket.socket(family, kind))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            opened.pop_all()  # closed here only if the address is not available
    except OSError as error:
        raise AddressError(
            f"cannot listen on {host}:{port}: {error}",
            hint="Choose another --port; 0 chooses a free one.",
        ) from error
    return listener
