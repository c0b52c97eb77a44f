"""The folder that results go to: made, checked and written so that a killed run leaves no half file."""

from pathlib import Path

from fewshot.errors import OutputFolderError, is_disk_full

# What a run writes last, and an empty file that it writes first: by either a folder of ours is known, and may be
# written again.
MARK = "numbers.json"
BEGUN = ".fewshot-project"


class OutputFolder:
    """A folder of results, new, empty or from an earlier run, finished or not.

    Args:
        path: where; made if it does not exist.

    Raises:
        OutputFolderError: it holds other things, is a file, or cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written: list[str] = []
        try:
            if path.exists() and not path.is_dir():
                raise OutputFolderError(f"{path} is a file; wanted a folder for the results.", hint="Name another.")
            is_ours = any((path / mark).is_file() for mark in (MARK, BEGUN))
            if path.is_dir() and any(path.iterdir()) and not is_ours:
                raise OutputFolderError(
                    f"{path} is a folder with other things in it; results would be mixed with them.",
                    hint="Name a new or an empty folder, or that of an earlier `fewshot project`.",
                )
            path.mkdir(parents=True, exist_ok=True)
            probe = path / ".fewshot-probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise _unwritable(path, error) from error

    def write(self, name: str, content: bytes | str) -> None:
        """Write a file of the folder, whole or not at all; `name` may hold folders.

        Raises:
            OutputFolderError: it cannot be written, or the disk is full.
        """
        file = self.path / name
        partial = file.with_name(f".{file.name}.partial")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if not self.written:
                (self.path / BEGUN).touch()
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
            partial.replace(file)
        except OSError as error:
            raise _unwritable(file, error) from error
        finally:
            if self.path.is_dir():
                partial.unlink(missing_ok=True)
        self.written.append(name)

    def write_figures(self, name: str, files: dict[str, bytes]) -> None:
        """Write a figure in each of its formats: `figures/NAME.FORMAT`."""
        for kind, content in files.items():
            self.write(f"figures/{name}.{kind}", content)


def _unwritable(path: Path, error: OSError) -> OutputFolderError:
    if is_disk_full(error):
        return OutputFolderError(f"there is no space left to write {path}.", hint="Free some, or choose another --out.")
    return OutputFolderError(
        f"{path} cannot be written: {error.strerror}.", hint="Choose another folder with --out, or change permissions."
    )
