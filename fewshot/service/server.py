"""An app at an address: the socket, and a stop that finishes what was accepted."""

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from fewshot.errors import AddressError

# What a client that never finishes its request may delay a stop by.
GRACE_S = 30
BACKLOG = 1024


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one.

    Raises:
        AddressError: the port is taken, or the host is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise AddressError(
            f"the service cannot listen at {host}, port {port}: {error.strerror or error}.",
            hint="Give another --port (0 takes a free one), or a --host of this machine.",
        ) from error
    return bound


def address_of(bound: socket.socket, host: str) -> str:
    """The URL under which a socket answers."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{bound.getsockname()[1]}"


def made_server(app: ASGIApp, on_started: Callable[[], None]) -> uvicorn.Server:
    """A server of an app; `run(sockets=[...])` serves until SIGTERM or SIGINT, then answers what was accepted."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
        lifespan="on",
    )
    return _Server(config, on_started)


def serve(app: ASGIApp, bound: socket.socket, *, on_started: Callable[[], None]) -> bool:
    """Serve until SIGTERM or SIGINT, then answer what was accepted; False if the app could not start."""
    server = made_server(app, on_started)
    server.run(sockets=[bound])
    return server.started


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop after the running requests; at once when asked again. Being asked to stop is no failure."""
        self.force_exit = self.should_exit
        self.should_exit = True
