"""A folder -> the photos in it, and the classes its sub-folders name."""

import os
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fewshot.errors import EmptyFolderError, LabelError, MissingFolderError, NestedFolderError
from fewshot.records import UNKNOWN

MAX_LABEL_LENGTH = 200
BACKSLASH = "\\"
# What operating systems leave behind in every folder; nobody means to enroll it.
LITTER = frozenset({"thumbs.db", "desktop.ini", "icon\r"})
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"})
# Not read here, but not to be overlooked either: they are answered with what is wrong with them.
REFUSED_SUFFIXES = frozenset({".heic", ".heif", ".avif"})
PHOTO_ENDINGS = tuple(sorted(PHOTO_SUFFIXES | REFUSED_SUFFIXES))


@dataclass(frozen=True, slots=True)
class ClassFolder:
    """The photos of one class-to-be: files in name order, and what the folder holds beside them."""

    label: str
    photos: tuple[Path, ...]
    n_sub_folders: int = 0


def legible(text: str) -> str:
    r"""A file's name, or a message that names it, as text that can be kept, sent and shown.

    Linux allows names of any bytes; those that are no UTF-8 become `\xff`.

    >>> print(legible(os.fsdecode(b"caf\xe9.png")))
    caf\xe9.png
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def checked_label(label: str) -> str:
    """A label as it is stored: NFC-normalised, without white space around it; see `normal_label`.

    Raises:
        LabelError: empty, over 200 characters, with a slash, a line break or a control character, `.`, `..`, or
            `unknown`, which is the answer that names no class.

    >>> checked_label(" corn rust ")
    'corn rust'
    """
    clean = normal_label(label)
    if len(clean) > MAX_LABEL_LENGTH:
        raise LabelError(
            f"the label has {len(clean)} characters; at most {MAX_LABEL_LENGTH} are kept.",
            hint="Shorten it; notes belong beside the index.",
        )
    for character in clean:
        category = unicodedata.category(character)
        if category == "Cs":  # what Python makes of a byte that is no UTF-8
            shown = clean.encode("utf-8", "backslashreplace").decode().replace("\\udc", "\\x")
            raise LabelError(f"the label '{shown}' is not UTF-8.", hint="Write or rename it in UTF-8.")
        if category in ("Cc", "Zl", "Zp"):
            raise LabelError(
                f"the label {clean!r} holds the control character or line break U+{ord(character):04X}.",
                hint="A label is one line of visible characters.",
            )
        if character in ("/", BACKSLASH):
            raise LabelError(
                f"the label {clean!r} holds a slash.",
                hint=f"Write {clean.replace('/', '-').replace(BACKSLASH, '-')!r} instead.",
            )
    # Also of nothing but zero-width characters: such a label could not be told from another.
    if not any(unicodedata.category(character)[0] not in "CZ" for character in clean):
        raise LabelError("the label is empty.", hint="Give the class a name, such as 'corn-rust'.")
    if clean in (".", ".."):
        raise LabelError(f"the label {clean!r} is a folder's name for itself.", hint="Give the class a name.")
    if clean.casefold() == UNKNOWN:
        raise LabelError(
            f"the label {clean!r} is the answer that names no class.", hint="Choose another, such as 'unidentified-1'."
        )
    return clean


def normal_label(name: str) -> str:
    """A name in the form that labels have, whether or not it can be one.

    Normalised because macOS names folders in decomposed form: the same name typed and read from disk must be one.
    """
    return unicodedata.normalize("NFC", name).strip()


def class_folder(label: str, folder: Path, *, on_passed_over: Callable[[str], None] | None = None) -> ClassFolder:
    """The photos of one class: those in `folder` (or the one file that it is), not those in its sub-folders.

    Args:
        label: what the class is called.
        folder: a file that is named is taken, whatever it is; in a folder those that end like a photo, or not at all.
        on_passed_over: told of the others.

    Raises:
        LabelError: the label cannot be stored.
        MissingFolderError: there is nothing there.
        EmptyFolderError: no photos, no sub-folders.
        NestedFolderError: no photos but sub-folders, so `--each` was meant.
    """
    label = checked_label(label)
    if os.path.isfile(folder):  # unlike Path.is_file, False and no error for a name too long or a folder barred
        return ClassFolder(label, (folder,))
    files, folders = _listing(folder)
    photos, passed_over = _parted(files)
    if not photos and folders:
        raise NestedFolderError(
            f"{folder} holds no photos but {_n_folders(folders)}.",
            hint=f"If each is a class, use `fewshot enroll --each {folder}`; else name one of them.",
        )
    if not photos:
        what = f"no photos but {len(files)} files that do not end like one ({_names(files)})" if files else "no photos"
        raise EmptyFolderError(f"{folder} holds {what}.", hint="Put 5 to 20 photos of the class into it.")
    _tell(passed_over, on_passed_over)
    return ClassFolder(label, tuple(photos), len(folders))


def class_folders(
    folder: Path,
    *,
    enrolling: bool = False,
    on_warning: Callable[[str], None] | None = None,
    on_passed_over: Callable[[str], None] | None = None,
) -> list[ClassFolder]:
    """Every sub-folder as a class named after it, in name order; one without photos comes with none.

    Args:
        folder: the folder above the classes.
        enrolling: a hint may say how a single class is enrolled; no other command takes one.
        on_warning: told of photos beside the sub-folders, which are of no class.
        on_passed_over: told of files in the sub-folders that do not end like a photo; None: `on_warning` is.

    Raises:
        MissingFolderError: there is nothing there.
        EmptyFolderError: no sub-folders.
        NestedFolderError: no sub-folder holds photos, and some hold folders: the classes lie a level below.
        LabelError: a sub-folder's name cannot be a label, or two names are the same label.
    """
    files, folders = _listing(folder)
    if not folders:
        raise _without_classes(folder, len(files), enrolling)
    inside = {sub_folder: _listing(sub_folder) for sub_folder in folders}
    if not any(_may_be_photo(path) for inner_files, _ in inside.values() for path in inner_files):
        above = {sub_folder: inner for sub_folder, (_, inner) in inside.items() if inner}
        if above:
            raise _too_high(folder, above)
    classes: dict[str, ClassFolder] = {}
    passed_over: list[Path] = []
    for sub_folder, (inner_files, inner_folders) in inside.items():
        label = checked_label(sub_folder.name)
        if label in classes:
            raise LabelError(
                f"two sub-folders of {folder} are named {label!r} (they differ in spaces or in how accents are coded).",
                hint="Merge or rename one of them.",
            )
        photos, others = _parted(inner_files)
        passed_over += others
        classes[label] = ClassFolder(label, tuple(photos), len(inner_folders))
    _tell(passed_over, on_passed_over or on_warning)
    n_loose = sum(map(_ends_like_photo, files))
    if n_loose and on_warning is not None:
        lie, they = ("photo lies", "it is") if n_loose == 1 else ("photos lie", "they are")
        on_warning(f"{n_loose} {lie} in {folder} itself, in no class; {they} not read.")
    return list(classes.values())


def _without_classes(folder: Path, n_files: int, enrolling: bool) -> EmptyFolderError:
    if not n_files:
        hint = "Make a sub-folder for each class, with its photos in it."
    elif enrolling:
        hint = f"To enroll the photos of a single class: `fewshot enroll LABEL {folder}`."
    else:
        above = folder / ".." if folder.name in ("", "..") else folder.parent
        hint = f"If it is one class, name the folder above, {above}."
    what = f"{n_files} files but no sub-folders" if n_files else "nothing"
    return EmptyFolderError(f"{folder} holds {what}; wanted one sub-folder a class, named after it.", hint=hint)


def _too_high(folder: Path, above: dict[Path, list[Path]], most: int = 3) -> NestedFolderError:
    """The refusal of a folder whose sub-folders hold folders: one of those was meant."""
    shown = list(above)[:most]
    held = [f"{sub_folder} holds no photos but {_n_folders(above[sub_folder])}" for sub_folder in shown]
    more = len(above) - len(shown)
    return NestedFolderError(
        f"{'; '.join(held)}{f'; and so do {more} more' if more else ''}. Wanted one sub-folder of photos a class.",
        hint=f"Did you mean {' or '.join(map(str, shown))}?",
    )


def _n_folders(folders: list[Path]) -> str:
    return f"{len(folders)} {'folder' if len(folders) == 1 else 'folders'} ({_names(folders)})"


def query_photos(targets: list[Path], *, on_warning: Callable[[str], None] | None = None) -> list[Path]:
    """The photos to answer: files as named, and of folders every photo in them and below, in name order.

    A file that is named is always asked, whatever it is; in a folder only files with a picture's ending or none count,
    so that notes and tables lying beside the photos are not answered. Links to folders are not followed below.

    Args:
        targets: files and folders.
        on_warning: told of each folder below a named one that cannot be read, and is left out, and of the files that
            were passed over for their endings: a camera's raw photos may be among them.

    Raises:
        MissingFolderError: a target does not exist, or is a folder that cannot be read.
        EmptyFolderError: a folder holds no photo.
    """
    photos: list[Path] = []
    passed_over: list[Path] = []
    for target in targets:
        if not os.path.isdir(target):
            if not os.path.lexists(target):
                raise MissingFolderError(
                    f"there is no file or folder {target}.", hint="Check the name and where you are."
                )
            photos.append(target)
            continue
        files = sorted(_files_below(target, on_warning))
        found, others = _parted(files)
        passed_over += others
        if not found:
            raise EmptyFolderError(
                f"{target} holds no photos.", hint=f"Photos end in {', '.join(sorted(PHOTO_SUFFIXES))}."
            )
        photos.extend(found)
    _tell(passed_over, on_warning)
    return photos


def _parted(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """The files that may be photos, and those that are passed over for their endings."""
    return [path for path in files if _may_be_photo(path)], [path for path in files if not _may_be_photo(path)]


def _tell(passed_over: list[Path], on_warning: Callable[[str], None] | None) -> None:
    if passed_over and on_warning is not None:
        one = len(passed_over) == 1
        on_warning(
            f"{len(passed_over)} {'file that does' if one else 'files that do'} not end like a photo "
            f"{'was' if one else 'were'} passed over: {_names(passed_over)}{'' if len(passed_over) > 3 else '.'}"
        )


def _files_below(folder: Path, on_warning: Callable[[str], None] | None) -> Iterator[Path]:
    waiting = [folder]
    while waiting:
        at = waiting.pop()
        try:
            entries = _entries(at)
        except MissingFolderError as error:
            if at == folder:
                raise
            if on_warning is not None:
                on_warning(f"{error.message} What is in it is left out.")
            continue
        for path in entries:
            if os.path.isdir(path):
                if not path.is_symlink():
                    waiting.append(path)
            else:
                yield path


def _listing(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files in a folder and the folders in it, each in name order."""
    files: list[Path] = []
    folders: list[Path] = []
    for path in sorted(_entries(folder)):
        (folders if os.path.isdir(path) else files).append(path)
    return files, folders


def _entries(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if is_visible(Path(path.name))]
    except OSError as error:
        raise unlisted_folder(folder, error) from error


def unlisted_folder(folder: Path, error: OSError) -> MissingFolderError:
    """Why what is in a folder cannot be listed."""
    if isinstance(error, FileNotFoundError):
        return MissingFolderError(f"there is no folder {folder}.", hint="Check the name and where you are.")
    if isinstance(error, NotADirectoryError):
        return MissingFolderError(f"{folder} is a file, not a folder.", hint="Name the folder it is in.")
    return MissingFolderError(f"the folder {folder} cannot be read: {error.strerror}.", hint="Check its permissions.")


def _ends_like_photo(path: Path) -> bool:
    return path.suffix.lower() in PHOTO_ENDINGS


def _may_be_photo(path: Path) -> bool:
    # One without an ending may be a photo, one that ends otherwise is a note beside the photos.
    return not path.suffix or _ends_like_photo(path)


def is_visible(path: Path) -> bool:
    """Whether no part of a path is hidden (`.name`) or one of the files that operating systems leave behind."""
    return not any(part.startswith(".") or part.lower() in LITTER for part in path.parts)


def _names(paths: list[Path], most: int = 3) -> str:
    names = ", ".join(path.name for path in paths[:most])
    return names if len(paths) <= most else f"{names}, ..."
