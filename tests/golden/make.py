"""Make a golden index in the present format: `PYTHONPATH=tests python tests/golden/make.py NAME`."""

import json
import sys
import tempfile
from pathlib import Path

import damage
from conftest import colour_embedder
from PIL import Image

from fewshot.datasets import class_folders
from fewshot.gallery import Gallery
from fewshot.samples import write_samples
from fewshot.store.schema import FORMAT_VERSION

HERE = Path(__file__).parent


def main() -> None:
    """Render, enroll, note what is there."""
    folder = HERE / sys.argv[1]
    with tempfile.TemporaryDirectory() as work:
        for photo in write_samples(Path(work), n_support=2, n_query=1, seed=1):
            with Image.open(photo) as image:
                image.convert("RGB").resize((48, 48)).save(photo)
        with Gallery(folder, create=True, embedder=colour_embedder()) as gallery:
            list(gallery.enroll(class_folders(Path(work) / "support")))
            asked = [photo.support_id for photo in gallery.embeddings(1000)[1]]
            found = {
                "format": FORMAT_VERSION,
                "classes": {row.label: row.supports for row in gallery.classes()},
                "actions": [each["action"] for each in gallery.history()],
                "asked": asked,
                "answers": [each[0] for each in damage.answers(gallery, asked)],
            }
            if hasattr(gallery, "backup"):
                gallery.backup(HERE / f"{sys.argv[1]}.backup")
    for cache in (folder / "cache").iterdir():
        cache.unlink()
    (folder / "cache").rmdir()
    (folder / "expected.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
