"""An app at an address: the socket, and a stop that finishes what was accepted."""

import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from fewshot.errors import AddressError, TlsError
from fewshot.service.protocol import Protocol

# What a request that does not end may delay a stop by. With what `app.END_S` grants the threads after that, a stop
# takes at most 30 s, which the documentation promises and more than which what starts services grants (deploy/).
GRACE_S = 26
BACKLOG = 1024
# What the system keeps of an answer beyond what is on its way; left to itself, 4 MB for each client that does not read.
UNSENT_BYTES = 128 * 1024


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
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)  # of its connections too
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


def address_of(bound: socket.socket, host: str, tls: "Tls | None" = None) -> str:
    """The URL under which a socket answers."""
    shown = f"[{host}]" if ":" in host else host
    return f"http{'s' if tls else ''}://{shown}:{bound.getsockname()[1]}"


@dataclass(frozen=True, slots=True)
class Tls:
    """The certificate (with its chain) and the key, both PEM files, that a service speaks TLS with."""

    cert: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """What a server needs of them: TLS 1.2 and above.

        Raises:
            TlsError: a file cannot be read, is none, asks for a password, or the two do not belong together.
        """
        for path in (self.cert, self.key):
            try:
                path.read_bytes()
            except OSError as error:
                raise TlsError(f"{path} cannot be read: {error.strerror}.") from error
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.cert, self.key, password=_no_password)
        except ssl.SSLError as error:
            reason = (error.reason or "they are no PEM files").replace("_", " ").lower()
            raise TlsError(f"{self.cert} and {self.key} cannot be used together: {reason}.") from error
        return context


def _no_password() -> str:
    raise TlsError(
        "the key is encrypted, and a service that starts by itself has nobody to ask for its password.",
        hint="Decrypt it into a file that only the service may read: `openssl pkey -in KEY -out NEW`.",
    )


def made_server(
    app: ASGIApp, on_started: Callable[[], None], *, tls: Tls | None = None, proxies: Sequence[str] = ()
) -> uvicorn.Server:
    """A server of an app; `run(sockets=[...])` serves until SIGTERM or SIGINT, then answers what was accepted.

    Args:
        app: what is served.
        on_started: called when it answers.
        tls: speak TLS with this.
        proxies: addresses or networks whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed; nobody else's are.

    Raises:
        TlsError: see `Tls.context`.
    """
    context = tls.context() if tls is not None else None
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        ssl_context_factory=(lambda _config, _default: context) if context is not None else None,
        log_level="warning",
        access_log=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
        lifespan="on",
    )
    return _Server(config, on_started)


def serve(
    app: ASGIApp,
    bound: socket.socket,
    *,
    on_started: Callable[[], None],
    tls: Tls | None = None,
    proxies: Sequence[str] = (),
) -> bool:
    """Serve until SIGTERM or SIGINT, then answer what was accepted; False if the app could not start."""
    server = made_server(app, on_started, tls=tls, proxies=proxies)
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
        if self.force_exit:  # of everything that it cuts off then, uvicorn logs a traceback
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.should_exit = True
