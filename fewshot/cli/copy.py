"""`fewshot copy` and `fewshot search-index`: an index that moves to a database, and is large there."""

from contextlib import ExitStack

import click
from click.core import ParameterSource

from fewshot.cli.options import common, index_place, notice, open_gallery, warn
from fewshot.cli.output import json_line, progress, table
from fewshot.cli.terminal import echo
from fewshot.errors import IndexMissingError, NotAnIndexError, UsageError


@click.command()
@click.argument("source")
@click.argument("target")
@common
def copy(source: str, target: str, index: str, as_json: bool) -> None:
    """Copy the index SOURCE to TARGET: each a folder, a name under indexes/, or postgresql://USER@HOST/DATABASE.

    Everything goes along: photos, embeddings, ids, history; not the tokens of a service. TARGET must hold no index
    yet, and holds none before the copy is whole and every row was compared with its source by checksum. An
    interrupted copy goes on with the same command.
    """
    from fewshot.store import copy_index, open_store, shown_place

    if click.get_current_context().get_parameter_source("index") is ParameterSource.COMMANDLINE:
        raise UsageError(f"copy reads no --index ({index!r} was given).", hint="Name the index as SOURCE or as TARGET.")
    try:
        store = open_store(index_place(source))
    except (IndexMissingError, NotAnIndexError) as error:
        raise type(error)(
            error.message, hint="Check SOURCE, the index that is copied; TARGET comes after it."
        ) from error
    try:
        with ExitStack() as stack:
            steps = []

            def begin(n: int) -> None:
                steps.append(stack.enter_context(progress("copying", n)))

            try:
                done = copy_index(store, index_place(target), on_begin=begin, on_row=lambda: steps[0]())
            except KeyboardInterrupt:
                warn("interrupted; the source is as it was. The same command goes on from here.")
                raise
    finally:
        store.close()
    if as_json:
        json_line(
            {
                "source": shown_place(index_place(source)),
                "target": shown_place(index_place(target)),
                "rows": done.n_rows,
                "rows_before": done.n_before,
                "checksums": done.checksums,
            }
        )
        return
    earlier = f", {done.n_before} of them by an earlier run" if done.n_before else ""
    echo(
        f"{done.n_rows} rows copied{earlier} and compared: {shown_place(index_place(source))} -> "
        f"{shown_place(index_place(target))}"
    )


@click.command(name="search-index")
@click.option(
    "--recall",
    type=click.FloatRange(0.5, 1.0),
    default=0.99,
    show_default=True,
    help="The share of the truly nearest photos that a search shall find.",
)
@click.option("--nearest", "n_results", type=click.IntRange(1, 100), default=5, show_default=True, help="Of how many.")
@click.option("--asked", "n_asked", type=click.IntRange(1), default=200, show_default=True, help="Photos asked.")
@click.option("--drop", is_flag=True, help="Go back to the exact scan.")
@common
def search_index(recall: float, n_results: int, n_asked: int, drop: bool, index: str, as_json: bool) -> None:
    """Build a search index (HNSW) in the database of an index that holds more photos than this machine's memory.

    Enrolled photos are asked with more and more candidates (hnsw.ef_search) until --recall is reached by comparison
    with an exact scan; the database then answers with so many. Nothing can be enrolled meanwhile. Needed only above
    $FEWSHOT_SUPPORTS_IN_MEMORY photos (a million); below, every machine searches its own copy.
    """
    from fewshot.store import shown_place

    with open_gallery(index) as gallery:
        if not gallery.is_shared:
            raise UsageError(
                f"{shown_place(gallery.place)} is a folder, whose photos are searched in memory.",
                hint="An index in a database can have a search index: `fewshot copy` makes one of a folder.",
            )
        if drop:
            gallery.drop_search_index()
            if as_json:
                json_line({"search_index": False})
            else:
                echo(f"{gallery.name}: photos are searched by an exact scan")
            return
        measured = gallery.build_search_index(recall, n_results, n_asked, notice)
    reached = measured[-1].recall >= recall
    if as_json:
        json_line(
            {
                "wanted": recall,
                "reached": reached,
                "nearest": n_results,
                "measured": [{"ef_search": each.ef_search, "recall": each.recall} for each in measured],
            }
        )
    else:
        cells = [[str(each.ef_search), f"{each.recall:.4f}"] for each in measured]
        for line in table(["ef_search", f"recall of {n_results}"], cells, right=(0, 1)):
            echo(line)
    if not reached:
        warn(f"a recall of {recall} was not reached; searches use the best measured. `--drop` goes back to exact.")
