"""`fewshot serve` and `fewshot token`: an index for apps, colleagues and phones."""

import gc
import ipaddress
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fewshot.cli.options import EmbedderOptions, common, embedding, open_gallery, warn
from fewshot.cli.output import json_line, table
from fewshot.cli.terminal import echo

if TYPE_CHECKING:
    from fewshot.decoding.guard import Guard
    from fewshot.gallery import Gallery
    from fewshot.service.settings import Settings
    from fewshot.service.tokens import Tokens


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at; 0.0.0.0 is all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--create", is_flag=True, help="Make the index if there is none.")
@click.option(
    "--read-token/--no-read-token",
    default=None,
    help="Whether reading needs a token too; by default only where others than this machine can reach the service.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name that requests may call this service by, such as a proxy's; may be repeated.",
)
@click.option(
    "--tls-cert", type=click.Path(path_type=Path), metavar="FILE", help="Speak TLS with this certificate (PEM, chain)."
)
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="FILE", help="The certificate's private key (PEM).")
@click.option(
    "--trust-proxy",
    "proxies",
    multiple=True,
    metavar="ADDRESS",
    help="A proxy, or a network of them, whose X-Forwarded-For names the client; may be repeated.",
)
@click.option("--max-body-mb", type=click.IntRange(1), default=128, show_default=True, help="The largest request.")
@click.option("--max-files", type=click.IntRange(1, 256), default=64, show_default=True, help="Photos a request.")
@click.option("--max-megapixels", type=click.IntRange(1), default=50, show_default=True, help="Of a photo.")
@click.option(
    "--max-waiting",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Photos that wait; more are told to come again (503).",
)
@click.option(
    "--rate",
    type=click.IntRange(0),
    default=1200,
    show_default=True,
    help="Requests a minute of each token, and of each address without one; 0: no limit.",
)
@embedding
@common
def serve(
    host: str,
    port: int,
    create: bool,
    read_token: bool | None,
    hosts: tuple[str, ...],
    tls_cert: Path | None,
    tls_key: Path | None,
    proxies: tuple[str, ...],
    max_body_mb: int,
    max_files: int,
    max_megapixels: int,
    max_waiting: int,
    rate: int,
    index: str,
    as_json: bool,
    embedder: EmbedderOptions,
) -> None:
    """Serve an index: a web page, and an HTTP API for apps (docs/service.md).

    Reachable from this machine only, unless --host says otherwise. Changing the index needs a token that `fewshot
    token create NAME` makes. Ctrl-C or SIGTERM stops the service after it has answered what it accepted.
    """
    from fewshot.service.settings import is_loopback, settings_of

    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together.")
    _check_networks(proxies)
    here_only = is_loopback(host)
    needs_token = not here_only if read_token is None else read_token
    names = {name.lower() for name in hosts}
    settings = settings_of(
        needs_token,
        frozenset({"localhost", "127.0.0.1", "::1", host.lower(), *names}) if here_only or names else None,
        max_body_mb=max_body_mb,
        max_files=max_files,
        max_megapixels=max_megapixels,
        max_waiting=max_waiting,
        rate=rate,
    )
    tls = None
    if tls_cert is not None and tls_key is not None:
        from fewshot.service.server import Tls

        tls = Tls(tls_cert, tls_key)
        tls.context()  # what is wrong with it is told before anything is opened
    with (
        _starting() as all_is_loaded,
        _decoding(settings) as guard,  # first: its processes start while this one opens the index
        open_gallery(index, embedder, create=create) as gallery,
    ):
        gallery.embedder()  # what cannot be had is told now, and not to the first who asks
        gallery.open_ahead()  # while the libraries of the service are imported, which takes as long
        from fewshot.service.app import create_app
        from fewshot.service.server import address_of, listening_socket
        from fewshot.service.server import serve as run

        _check_reach(gallery, host, here_only, needs_token, has_tls=tls is not None)
        with listening_socket(host, port) as bound:
            url = address_of(bound, host, tls)

            def started() -> None:
                all_is_loaded()
                n_classes, n_supports = gallery.size()
                if as_json:
                    json_line({"url": url, "index": gallery.name, "classes": n_classes, "supports": n_supports})
                    return
                size = f"{n_classes} classes, {n_supports} photos"
                echo(f"{click.style(url, bold=True)}  {gallery.name}: {size}. Ctrl-C stops it.")

            done = run(create_app(gallery, settings, guard), bound, on_started=started, tls=tls, proxies=proxies)
    if not done:
        click.get_current_context().exit(1)


@contextmanager
def _starting() -> Iterator[Callable[[], None]]:
    """Nothing is looked through for garbage until all is loaded, which stays: it would take a tenth of the start."""

    def all_is_loaded() -> None:
        gc.freeze()
        gc.enable()

    gc.disable()
    try:
        yield all_is_loaded
    finally:
        gc.enable()
        gc.unfreeze()


@contextmanager
def _decoding(settings: "Settings") -> "Iterator[Guard]":
    """The processes that decode strangers' photos, from now on."""
    from fewshot.service.settings import guard_of

    guard = guard_of(settings)
    try:
        guard.start()
        yield guard
    finally:
        guard.close()


@click.command()
@click.argument("action", type=click.Choice(["create", "list", "revoke"]))
@click.argument("name", required=False)
@click.option(
    "--scope",
    type=click.Choice(["read", "write"]),
    default="write",
    show_default=True,
    help="What a new token may do; write includes read.",
)
@common
def token(action: str, name: str | None, scope: str, index: str, as_json: bool) -> None:
    """Create, list or revoke the tokens of an index, which `fewshot serve` asks for.

    `create NAME` prints the token, this once: the index keeps only a hash of it. `revoke` takes a NAME or an id. A
    running service sees the change at once.
    """
    from fewshot.service.shared_tokens import tokens_of

    if (name is None) != (action == "list"):
        raise click.UsageError("`list` takes no NAME; `create` and `revoke` take one.")
    with open_gallery(index) as gallery:
        _token(tokens_of(gallery), action, name, scope, as_json)


def _token(tokens: "Tokens", action: str, name: str | None, scope: str, as_json: bool) -> None:
    if action == "list":
        rows = [each.as_dict() for each in tokens.all()]
        if as_json:
            for row in rows:
                json_line(row)
            return
        cells = [[each.name, each.token_id, ", ".join(each.scopes), each.created_at] for each in tokens.all()]
        for line in table(["name", "id", "may", "created"], cells):
            echo(line)
        return
    assert name is not None
    if action == "revoke":
        gone = tokens.revoke(name)
        if as_json:
            json_line({**gone.as_dict(), "revoked": True})
        else:
            echo(f"{click.style(gone.name, bold=True)}: revoked")
        return
    made, word = tokens.create(name, (scope,))
    if as_json:
        json_line({**made.as_dict(), "token": word})
        return
    echo(word)
    warn("this is shown once; keep it where passwords are kept.")


def _check_networks(proxies: tuple[str, ...]) -> None:
    """Refuse what is no address: "*" would let every client say that it is another, and a slip would trust nobody."""
    for proxy in proxies:
        try:
            network = ipaddress.ip_network(proxy, strict=False)
        except ValueError as error:
            raise click.UsageError(
                f"--trust-proxy {proxy!r} is no address and no network, such as 127.0.0.1 or 10.0.0.0/8."
            ) from error
        address = proxy.partition("/")[0]
        if "/" in proxy and ipaddress.ip_address(address) != network.network_address:
            raise click.UsageError(
                f"--trust-proxy {proxy!r} is an address inside a network, and could mean either; wanted {address} for "
                f"that one proxy, or {network} for the network."
            )


def _check_reach(gallery: "Gallery", host: str, here_only: bool, needs_token: bool, *, has_tls: bool) -> None:
    """Refuse or warn where strangers could reach what they should not."""
    from fewshot.errors import UsageError
    from fewshot.service.shared_tokens import tokens_of

    if here_only:
        return
    if not needs_token:
        warn(f"whoever can reach {host} can ask and see every enrolled photo. Leave --no-read-token out to prevent it.")
    elif not tokens_of(gallery).all():
        raise UsageError(
            f"{host} can be reached from other machines, and the index has no token that would let anyone in.",
            hint="Make one with `fewshot token create NAME`, or let everyone read with --no-read-token.",
        )
    if not has_tls:
        warn("what is sent here can be read on the way; give --tls-cert and --tls-key, or put a TLS proxy before it.")
