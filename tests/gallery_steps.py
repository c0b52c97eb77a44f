"""What is done to an index in the tests of one in use."""

from conftest import LEAF_COLOURS, write_leaf

from fewshot.datasets import class_folder, class_folders


def enroll(gallery, folder, label=None, **settings):
    """The reports: of one class if a label is given, else of every sub-folder."""
    folders = class_folders(folder) if label is None else [class_folder(label, folder)]
    return list(gallery.enroll(folders, **settings))


def counts(gallery):
    return {each.label: each.supports for each in gallery.classes()}


def answers(gallery, photos):
    return [prediction.answer for prediction in gallery.query(photos)]


def ask_photos(tmp_path):
    """A new photo of each class, and the labels that are right."""
    photos = [write_leaf(tmp_path / "ask" / f"{label}.png", LEAF_COLOURS[label], 900) for label in LEAF_COLOURS]
    return photos, list(LEAF_COLOURS)


class Interrupter:
    """An `on_photo` that raises at the n-th photo."""

    def __init__(self, at, error=KeyboardInterrupt):
        self.left = at
        self.error = error

    def __call__(self):
        self.left -= 1
        if self.left == 0:
            raise self.error
