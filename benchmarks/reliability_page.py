"""docs/reliability.md from the results of the campaigns: python benchmarks/reliability_page.py."""

from pathlib import Path

from page.hostile import hostile
from page.reliability import damage, faults, oracle, soak

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
HEAD = """# Reliability

Written by `python benchmarks/reliability_page.py` from `benchmarks/results/`; do not edit by hand.

What is promised of an index on a disk that keeps what it said it had synced:

- Once a command or the service has said that photos are enrolled, they outlast a kill, a full disk, an error of the
  disk and a power cut. What was not acknowledged is there as a whole or not at all.
- Damage is noticed: embeddings and kept pictures carry checksums, every other column stands in the file twice or
  more, and derived files are made anew. `fewshot doctor` reads everything and names what is wrong.
- A backup is checked row by row before it gets its name, and byte by byte before it is restored from.

An index that cannot be written cannot be read either: its log (SQLite's WAL) and the caches lie beside it, also while
it is only asked. On a read-only disk, or in somebody else's folder, every command refuses it (`index_unwritable`). Copy
the folder to where you may write, while nobody changes it; or let who may write it run `fewshot backup`, also while it
is served, and make an index of that by `fewshot restore` where you are.

## Backup and restore

```sh
fewshot backup /mnt/backups                            # a new file in a folder: a chain of points to go back to
fewshot backup plants.backup                           # or one file, replaced each time
fewshot restore /mnt/backups --list                    # the points that can be restored
fewshot restore /mnt/backups --index plants            # a new index from the latest
fewshot restore /mnt/backups --replace --at 57         # this index as it was when change 57 was the last backed up
fewshot restore /mnt/backups --replace --at 2026-11-22T14:30
```

A backup is taken while the index is served and changed: it is the index at one moment (SQLite's online backup). It is
the index file followed by a seal with its facts and an XXH3-128 checksum. It does not hold tokens: restoring an old
list would make revoked ones valid again.

*An older point* is one at which a backup was taken: `--at` picks the latest backup that holds no change after the
one, or the moment, named. Changes between that backup and the point are not brought back, since removed photos are in
backups alone; how near one can come to a point is how often one backs up. With `--replace` the index takes on the
content of the backup as one change of its own: whole or not at all, seen at once by a running service, under ids that
go on naming what they named. The history keeps its lines and gets one more (`restore`), and lists what was undone.
What the index held is first kept as a backup in its folder, under `before-restore/`, so that a restore can itself be
undone. Only a backup of this same index can replace it; another goes into a folder of its own. An index that is too
damaged to be opened is moved aside.

## Repair

`fewshot doctor --repair` reads around the damage. Embeddings and pictures are taken if their checksums fit. Every
other column stands in the table and in one or two indexes; what most of them say is taken, and where they contradict
each other evenly the photo is left out and named. A photo whose embedding is damaged is embedded anew from its kept
picture. Prototypes and caches are made anew. Of a damaged log the pages behind the damage are taken too, which SQLite
would drop without a word; therefore let `fewshot doctor` look before anything else opens an index after a crash of
the disk. They add photos and never replace or take away what is sound before the damage: they may be left over from a
change that was killed and never counted. The damaged file stays beside the new one. Photos that cannot be saved are
listed one by one, with the reason. A service goes on with the repaired index.

An index may be moved aside and put back under a running service: what is asked meanwhile is refused
(`index_missing`), and nothing is written that would be in no index. Move it with its `-wal` file, which holds the
latest changes; a bare `index.sqlite` copied over one that is open is what SQLite cannot notice, and what
`fewshot restore` is for.

An index made before these second copies were kept has fewer: damage to a photo's name, size or date is not noticed in
it. A log that was cut off at the end of a change looks whole; what tells is a cache that has seen the later change.
`tokens.json` has no checksum: a damaged token is refused.
"""


def page() -> str:
    """The whole of it."""
    return "\n".join([HEAD, *(section() for section in (oracle, faults, damage, soak, hostile))])


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())
    print(f"written: {PAGE.name}")


if __name__ == "__main__":
    main()
