"""`fewshot project`."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fewshot.cli.options import EmbedderOptions, common, embedding, index_place, notice, open_gallery, warn
from fewshot.cli.output import json_line, progress, table
from fewshot.cli.terminal import echo
from fewshot.extras import need

if TYPE_CHECKING:
    from fewshot.embedder import EmbedderChoice
    from fewshot.gallery import Gallery
    from fewshot.projection.project import Result, Source
    from fewshot.records import Refused

NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}


@click.command()
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="Where everything is written."
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Draw the photos of FOLDER, each sub-folder a class, instead of an index.",
)
@click.option(
    "--query",
    "queries",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Draw these photos as queries; a sub-folder's name is the label of the photos in it.",
)
@click.option(
    "--compare",
    nargs=2,
    metavar="A B",
    help="Draw the same photos in two spaces: two indexes, or two backbones for the photos of --images or --index.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(list(NAMES)),
    help="Only this projection; may be repeated. By default all three.",
)
@click.option(
    "--max-photos",
    type=click.IntRange(4, 100_000),
    default=5000,
    show_default=True,
    help="Draw at most so many, chosen at random in proportion to the classes.",
)
@click.option(
    "--neighbours",
    "n_neighbours",
    type=int,
    metavar="K",
    help="How many neighbours t-SNE (as its perplexity) and UMAP hold a photo against. By default 15, or fewer where "
    "there are fewer photos.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="The same seed draws the same pictures.",
)
@click.option("--serve", is_flag=True, help="Then show TensorBoard's projector on 127.0.0.1, until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), default=6006, show_default=True, help="For --serve; 0: any.")
@embedding
@common
def project(
    out: Path,
    images: Path | None,
    queries: Path | None,
    compare: tuple[str, str] | None,
    methods: tuple[str, ...],
    max_photos: int,
    n_neighbours: int | None,
    seed: int,
    serve: bool,
    port: int,
    index: str,
    as_json: bool,
    embedder: EmbedderOptions,
) -> None:
    """See the space: draw how photos lie to each other, and list which look mislabelled.

    Writes into --out: index.html (a report to begin with), space.html (interactive, needs no network), figures as PNG
    and SVG, coordinates as CSV and Parquet, tables, and the files of TensorBoard's projector. docs/projection.md shows
    what one can see in them.
    """
    need("project", "`fewshot project`")
    from fewshot.datasets import query_photos
    from fewshot.projection import projector
    from fewshot.projection.folder import OutputFolder
    from fewshot.projection.project import Plan, n_steps
    from fewshot.projection.project import project as run

    plan = Plan(
        tuple(name for name in NAMES if not methods or name in methods), max_photos, seed, n_neighbours, queries
    )
    if queries is not None:
        query_photos([queries], on_warning=warn)  # what is wrong with the folder is said before the work
    if serve:
        projector.check_port(port)
    with _sources(index, images, compare, embedder) as sources:
        folder = OutputFolder(out)
        with progress("drawing", n_steps(sources, plan)) as on_step:
            result = run(folder, sources, plan, on_step=on_step)
    if as_json:
        json_line(result.as_dict())
    else:
        _say(result)
    if serve:
        _serve(out, port)


@contextmanager
def _sources(
    index: str, images: Path | None, compare: tuple[str, str] | None, given: EmbedderOptions
) -> Iterator[list["Source"]]:
    """The opened index or indexes to draw, with their names; temporary ones are gone afterwards."""
    from fewshot.embedder import EmbedderChoice
    from fewshot.projection.project import Source

    with ExitStack() as stack:
        if compare is None:
            if images is None:
                gallery = stack.enter_context(open_gallery(index, given))
            else:
                gallery = stack.enter_context(_folder(images, EmbedderChoice(*given)))
            yield [Source(gallery, gallery.name)]
            return
        are_indexes = [_is_index(name) for name in compare]
        if all(are_indexes):
            if images is not None:
                raise click.UsageError("--compare with two indexes draws their photos; leave --images out.")
            galleries = [stack.enter_context(open_gallery(name)) for name in compare]
            names = [gallery.name for gallery in galleries]
            same = names[0] == names[1]
            yield [Source(g, str(g.place) if same else n) for g, n in zip(galleries, names, strict=True)]
            return
        if any(are_indexes):
            known, other = compare if are_indexes[0] else compare[::-1]
            from fewshot.store import shown_place

            known = shown_place(known)
            raise click.UsageError(f"{known!r} is an index and {other!r} is not; give two indexes, or two backbones.")
        if given.backbone is not None:
            raise click.UsageError("--compare names the backbones; leave --backbone out.")
        choices = [EmbedderChoice(name, given.precision, given.engine, given.quality) for name in compare]
        if images is not None:
            pair = [stack.enter_context(_folder(images, choice)) for choice in choices]
        else:
            pair = stack.enter_context(_with_backbones(index, choices))
        short = [Path(name).name for name in compare]
        shown = compare if short[0] == short[1] else short  # as exp1/tswv and exp2/tswv
        yield [Source(gallery, name) for gallery, name in zip(pair, shown, strict=True)]


@contextmanager
def _folder(folder: Path, choice: "EmbedderChoice") -> Iterator["Gallery"]:
    from fewshot.datasets import class_folders
    from fewshot.projection.spaces import folder_as_index

    def on_refused(refused: "Refused") -> None:
        warn(f"refused {refused.file}: {refused.message}")

    with ExitStack() as stack:
        n_photos = sum(len(each.photos) for each in class_folders(folder, on_warning=warn))
        with progress("embedding", n_photos) as on_photo:
            made = folder_as_index(folder, choice, on_notice=notice, on_refused=on_refused, on_photo=on_photo)
            gallery = stack.enter_context(made)
        yield gallery


@contextmanager
def _with_backbones(index: str, choices: Sequence["EmbedderChoice"]) -> Iterator[list["Gallery"]]:
    from fewshot.projection.comparison import with_backbones

    with ExitStack() as stack:
        gallery = stack.enter_context(open_gallery(index))
        with progress("embedding", len(choices) * sum(each.supports for each in gallery.classes())) as on_photo:
            copies = stack.enter_context(with_backbones(gallery, choices, on_notice=notice, on_photo=on_photo))
        yield copies


def _is_index(name: str) -> bool:
    from fewshot.store import FILE_NAME

    place = index_place(name)
    return isinstance(place, str) or (place / FILE_NAME).is_file()


def _say(result: "Result") -> None:
    for note in result.notes:
        warn(note)
    for space in result.spaces:
        echo(f"{click.style(space.name, bold=True)}: {space.stated}; {space.embedder}")
    names = [space.name for space in result.spaces]
    rows = [
        [f"trustworthiness, {NAMES[method]} {n_dims}-D"]
        + [f"{each.trust:.3f}" for each in result.pictures if (each.method, each.n_dims) == (method, n_dims)]
        for method, n_dims in dict.fromkeys((each.method, each.n_dims) for each in result.pictures)
    ]
    for what, name in (
        ("silhouette", "silhouette"),
        ("nearest photo is of the same class", "neighbour_agreement"),
        ("nearest class is the photo's own", "class_agreement"),
    ):
        values = [getattr(numbers, name) for numbers in result.numbers]
        rows.append([what, *("-" if value is None else f"{value:.3f}" for value in values)])
    for line in table(["", *(names if len(names) > 1 else ["value"])], rows, right=(1, 2)):
        echo(line)
    if result.shared is not None:
        echo(f"the two have {result.shared[1]:.0%} of each photo's {result.shared[0]} nearest neighbours in common")
    n = len(result.doubts)
    echo(f"{n} photo{'' if n == 1 else 's'} to check for a wrong label")
    echo(f"begin with {result.folder / 'index.html'}")


def _serve(out: Path, port: int) -> None:
    from fewshot.projection import projector

    echo(f"TensorBoard's projector: {projector.serve(out, port)} (Ctrl-C ends it)", err=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:  # the way to end it
        pass
