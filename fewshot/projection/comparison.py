"""Two indexes, or two backbones -> the photos that both hold, in both spaces."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fewshot.embedder import EmbedderChoice
from fewshot.errors import ComparisonError
from fewshot.gallery import Gallery
from fewshot.projection.spaces import chosen

Photos = Mapping[str, list[int]]


@dataclass(frozen=True, slots=True)
class Shared:
    """The same photos in two indexes: label -> ids, in the same order in both; and how many each has beside them."""

    first: Photos
    second: Photos
    n_shared: int
    n_only_one: int


def shared_photos(first: Gallery, second: Gallery, n_most: int, seed: int) -> Shared:
    """At most `n_most` photos that both indexes hold, byte for byte and under the same label.

    Raises:
        ComparisonError: they hold none in common.
    """
    ours, theirs = dict(first.photo_hashes()), dict(second.photo_hashes())
    by_hash = {(label, sha): i for label, members in theirs.items() for i, sha in members.items()}
    partner = {
        i: by_hash[label, sha] for label, some in ours.items() for i, sha in some.items() if (label, sha) in by_hash
    }
    if not partner:
        raise ComparisonError(
            f"indexes {first.name!r} and {second.name!r} hold no photo in common under the same label.",
            hint="Compare two indexes of the same photos, or two backbones: `--compare BACKBONE BACKBONE`.",
        )
    common = {label: [i for i in members if i in partner] for label, members in ours.items()}
    picked = chosen({label: members for label, members in common.items() if members}, n_most, seed)
    n_all = sum(len(members) for index in (ours, theirs) for members in index.values())
    return Shared(
        picked,
        {label: [partner[i] for i in some] for label, some in picked.items()},
        len(partner),
        n_all - 2 * len(partner),
    )


@contextmanager
def with_backbones(
    gallery: Gallery,
    choices: Sequence[EmbedderChoice],
    *,
    on_notice: Callable[[str], None],
    on_photo: Callable[[], None],
) -> Iterator[list[Gallery]]:
    """Copies of an index, each embedded by another backbone, that are gone afterwards.

    All embed the same pixels: the photos that the index keeps.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="fewshot-")))
        copies = []
        for number, choice in enumerate(choices):
            place = folder / f"{number}" / gallery.name
            gallery.copy_to(place)
            copies.append(stack.enter_context(Gallery(place, choice=choice, on_notice=on_notice)))
            copies[-1].reindex(on_photo=on_photo)
        yield copies
