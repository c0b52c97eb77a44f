"""The options that commands share, and how they become an opened index."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from fewshot.cli.terminal import echo, visible
from fewshot.extras import need

if TYPE_CHECKING:
    from fewshot.cluster.spreading import Cluster
    from fewshot.gallery import Gallery

Function = TypeVar("Function", bound=Callable[..., Any])
DEFAULT_INDEX = "indexes/default"


class EmbedderOptions(NamedTuple):
    """`--backbone`, `--precision`, `--engine` and `--quality` as given."""

    backbone: str | None = None
    precision: str | None = None
    engine: str = "auto"
    quality: str | None = None


AS_PINNED = EmbedderOptions()


def common(function: Function) -> Function:
    """`--index` and `--json`, which every command takes."""

    @click.option(
        "--index",
        "index",
        metavar="NAME_OR_PATH",
        envvar="FEWSHOT_INDEX",
        default=DEFAULT_INDEX,
        show_default=True,
        show_envvar=True,
        help="The index: a folder, the name of one under indexes/, or postgresql://USER@HOST/DATABASE.",
    )
    @click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout; the rest on stderr.")
    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        click.get_current_context().meta["fewshot.json"] = kwargs["as_json"]
        return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def _embedding(backbone: str, precision: str, quality: str) -> Callable[[Function], Function]:
    """Options whose help says what they are by default."""

    def decorate(function: Function) -> Function:
        @wraps(function)
        def wrapped(
            *args: Any, backbone: str | None, precision: str | None, engine: str, quality: str | None, **kwargs: Any
        ) -> Any:
            return function(*args, embedder=EmbedderOptions(backbone, precision, engine, quality), **kwargs)

        decorated: Any = wrapped
        for option in (
            click.option(
                "--engine",
                default="auto",
                show_default=True,
                help="auto, openvino or torch; auto is torch on a CUDA GPU and OpenVINO elsewhere.",
            ),
            click.option(
                "--quality",
                help="fast or best: best looks at each photo in five views, takes five times as long to embed it and "
                f"recognises somewhat more; by default {quality}.",
            ),
            click.option("--precision", help=f"f32 or bf16; by default {precision}."),
            click.option(
                "--backbone",
                metavar="NAME",
                help="A shipped or installed backbone, a trained one's folder, a timm model, or "
                f"[ARCHITECTURE:]FILE.safetensors; by default {backbone}.",
            ),
        ):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


# `--backbone`, `--precision`, `--engine` and `--quality`, which commands that embed take as `embedder`.
embedding = _embedding(
    backbone="the index's own, in a new index plants-lite0",
    precision="the index's own, in a new index the CPU's best",
    quality="the index's own, in a new index fast",
)
# The same where an index is embedded anew, and leaves its own behind.
embedding_anew = _embedding(
    backbone="plants-lite0; with --precision or --quality alone the index's own",
    precision="the CPU's best; with --quality alone the index's own",
    quality="fast; with --precision alone the index's own",
)


guarding = click.option(
    "--guarded",
    is_flag=True,
    help="Decode photos in processes of their own, under limits of memory and time: for photos from strangers.",
)


def spreading(function: Function) -> Function:
    """`--ray`, which commands that can spread their embedding over a cluster take as `ray`."""
    decorated: Any = click.option(
        "--ray",
        metavar="ADDRESS",
        envvar="FEWSHOT_RAY",
        show_envvar=True,
        help="Decode and embed on a Ray cluster: HOST:PORT of its head, `auto` for the one this machine is part of, or "
        "`local` to start one here (docs/cluster.md).",
    )(function)
    return decorated  # type: ignore[no-any-return]


@contextmanager
def open_cluster(address: str | None, embedder: EmbedderOptions, *, guarded: bool) -> Iterator["Cluster | None"]:
    """The cluster that `--ray` names; None: this process does the work."""
    if address is None:
        yield None
        return
    if guarded:
        raise click.UsageError("--guarded decodes photos here, and --ray on a cluster; give one of the two.")
    need("ray", "a Ray cluster")
    from fewshot.cluster.spreading import Cluster

    with Cluster(address, engine=embedder.engine) as cluster:
        notice(f"embedding on {cluster.n_cores()} cores of the cluster at {address}")
        yield cluster


def index_folder(name_or_path: str) -> Path:
    """The folder that `--index` names: a bare name stands for one under indexes/.

    >>> index_folder("plants").as_posix(), index_folder("./plants").as_posix()
    ('indexes/plants', 'plants')
    """
    is_bare = "/" not in name_or_path and "\\" not in name_or_path
    return Path("indexes") / name_or_path if is_bare and name_or_path not in (".", "..") else Path(name_or_path)


def index_place(name_or_path: str) -> Path | str:
    """What `--index` names: a folder, or the address of a database.

    >>> index_place("postgresql://ada@db.example/plants")
    'postgresql://ada@db.example/plants'
    """
    return name_or_path if "://" in name_or_path else index_folder(name_or_path)


def open_gallery(
    index: str, embedder: EmbedderOptions = AS_PINNED, *, create: bool = False, guarded: bool = False
) -> "Gallery":
    """The index that a command works on; `guarded`: it decodes photos as a service does (docs/threat-model.md)."""
    from fewshot.embedder import EmbedderChoice
    from fewshot.gallery import Gallery

    guard = None
    if guarded:
        from fewshot.decoding.guard import default_guard
        from fewshot.engines import n_threads

        guard = default_guard(n_threads())
    choice = EmbedderChoice(*embedder)
    return Gallery(index_place(index), create=create, choice=choice, on_notice=notice, guard=guard)


def notice(text: str) -> None:
    """Tell the user, on stderr, of something that takes a while."""
    echo(click.style(f"{visible(text)} ...", dim=True), err=True)


def warn(text: str) -> None:
    """Tell the user, on stderr, of something to look at."""
    echo(f"{click.style('warning:', fg='yellow')} {visible(text)}", err=True)
