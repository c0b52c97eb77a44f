"""`fewshot reindex`."""

from pathlib import Path

import click

from fewshot.cli.options import EmbedderOptions, common, embedding_anew, guarding, open_gallery, warn
from fewshot.cli.output import json_line, progress
from fewshot.cli.terminal import echo


@click.command()
@click.option(
    "--photos", "folders", multiple=True, metavar="FOLDER", help="Where the original photos are; may be repeated."
)
@guarding
@embedding_anew
@common
def reindex(
    folders: tuple[str, ...],
    guarded: bool,
    index: str,
    as_json: bool,
    embedder: EmbedderOptions,
) -> None:
    """Embed all photos of an index anew: with another backbone, or with its own in another quality or precision.

    Where none of these is given, that is the program's default backbone, plants-lite0.

    The index keeps every photo at 256 px on its short side and embeds those; originals that are found by content
    under --photos are used instead. The index answers with its old embeddings until all are done; an interrupted
    reindex goes on where it stopped.
    """
    from fewshot.datasets import query_photos

    originals = query_photos([Path(folder) for folder in folders], on_warning=warn) if folders else []
    with open_gallery(index, embedder, guarded=guarded) as gallery:
        before = gallery.about().fingerprint
        had_search_index = gallery.has_search_index
        n = sum(each.supports for each in gallery.classes())
        try:
            with progress("embedding", n) as on_photo:
                n_photos, n_originals = gallery.reindex(originals=originals, on_photo=on_photo)
        except KeyboardInterrupt:
            warn("interrupted; the index is as it was. The same command goes on from here.")
            raise
        after = gallery.about().fingerprint
        lost_search_index = had_search_index and not gallery.has_search_index
    if as_json:
        json_line({"photos": n_photos, "from_originals": n_originals, "before": before, "after": after})
    else:
        was = before or "no backbone yet"
        echo(f"{n_photos} photos embedded anew ({n_originals} from originals): {was} -> {after}")
    if lost_search_index:
        warn(
            "the embeddings have another length, so the database's search index was dropped and photos are searched by "
            "an exact scan; `fewshot search-index` builds it anew."
        )
