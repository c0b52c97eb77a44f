"""`fewshot reindex`."""

from pathlib import Path

import click

from fewshot.cli.options import EmbedderOptions, common, embedding, guarding, open_gallery, warn
from fewshot.cli.output import json_line, progress
from fewshot.cli.terminal import echo


@click.command()
@click.option(
    "--photos", "folders", multiple=True, metavar="FOLDER", help="Where the original photos are; may be repeated."
)
@guarding
@embedding
@common
def reindex(
    folders: tuple[str, ...],
    guarded: bool,
    index: str,
    as_json: bool,
    embedder: EmbedderOptions,
) -> None:
    """Embed all photos of an index anew, with another backbone or quality (default: the program's own).

    The index keeps every photo at 256 px on its short side and embeds those; originals that are found by content
    under --photos are used instead. The index answers with its old embeddings until all are done; an interrupted
    reindex goes on where it stopped.
    """
    from fewshot.datasets import query_photos

    originals = query_photos([Path(folder) for folder in folders], on_warning=warn) if folders else []
    with open_gallery(index, embedder, guarded=guarded) as gallery:
        before = gallery.about().fingerprint
        n = sum(each.supports for each in gallery.classes())
        try:
            with progress("embedding", n) as on_photo:
                n_photos, n_originals = gallery.reindex(originals=originals, on_photo=on_photo)
        except KeyboardInterrupt:
            warn("interrupted; the index is as it was. The same command goes on from here.")
            raise
        after = gallery.about().fingerprint
    if as_json:
        json_line({"photos": n_photos, "from_originals": n_originals, "before": before, "after": after})
    else:
        echo(f"{n_photos} photos embedded anew ({n_originals} from originals): {before} -> {after}")
