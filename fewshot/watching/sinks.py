"""Answers -> a JSON-lines or CSV file that gets each exactly once, or whoever writes them on the screen."""

import csv
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from fewshot.datasets import legible
from fewshot.errors import DeliveryError
from fewshot.watching.answers import CSV_COLUMNS, Answer
from fewshot.watching.memory import Memory

FILE_SUFFIXES = (".jsonl", ".ndjson", ".csv")
SCREEN = "screen"


class Sink(Protocol):
    """Where answers go. `name` is the same after a restart: what is due to it is kept under it."""

    name: str

    def deliver(self, memory: Memory) -> None:
        """Hand over what is due.

        Raises:
            DeliveryError: that failed; what was not handed over stays due.
        """


class Screen:
    """Answers shown by the caller's function. Killed between showing and noting that, they are shown once more."""

    name = SCREEN

    def __init__(self, show: Callable[[Sequence[Answer]], None]) -> None:
        self._show = show

    def deliver(self, memory: Memory) -> None:
        """See `Sink.deliver`."""
        while due := memory.due(self.name):
            self._show([answer for _, answer in due])
            memory.handed_over(self.name, [answer_id for answer_id, _ in due])


class AnswerFile:
    """A file that answers are appended to: CSV if it ends so, else JSON lines. Each stands in it exactly once.

    The memory knows how long the file was after the last answers that it noted as written. Whatever stands behind that
    after a kill is the beginning of the very bytes that are due next, since answers do not change; so only the rest of
    them is written. Nothing that stands in the file is ever changed: where it is another's (or the file was moved
    away, or cut), writing goes on at its end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.name = legible(str(self.path))
        self._is_csv = path.suffix.lower() == ".csv"

    def check(self) -> None:
        """Make sure that the file can be appended to.

        Raises:
            DeliveryError: it cannot.
        """
        try:
            with self.path.open("ab"):
                pass
        except OSError as error:
            raise self._problem(error) from error

    def deliver(self, memory: Memory) -> None:
        """See `Sink.deliver`."""
        while due := memory.due(self.name):
            try:
                size = self.path.stat().st_size if self.path.exists() else 0
                noted = memory.position(self.name)
                base = self._line_begun(size) if noted is None or size <= noted else noted
                if base != noted:
                    memory.handed_over(self.name, [], base)  # where the bytes begin, before the first of them
                n_bytes = self._append(self._bytes([answer for _, answer in due], with_heading=base == 0), base)
            except OSError as error:
                raise self._problem(error) from error
            memory.handed_over(self.name, [answer_id for answer_id, _ in due], n_bytes)

    def _line_begun(self, size: int) -> int:
        """End the file's last line if another left it without its end; how long the file is then."""
        if size == 0:
            return 0
        with self.path.open("a+b") as file:
            file.seek(size - 1)
            if file.read(1) == b"\n":
                return size
            file.write(b"\n")
            return size + 1

    def _append(self, wanted: bytes, base: int) -> int:
        """Write what is missing of `wanted` behind the first `base` bytes; how long the file is then."""
        with self.path.open("a+b") as file:
            file.seek(base)
            there = file.read()
            if wanted.startswith(there):
                file.write(wanted[len(there) :])
            elif not there.startswith(wanted):
                file.write((b"" if there.endswith(b"\n") else b"\n") + wanted)
            file.flush()
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def _bytes(self, answers: Sequence[Answer], *, with_heading: bool) -> bytes:
        if not self._is_csv:
            return "".join(f"{answer.as_line()}\n" for answer in answers).encode()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if with_heading:
            writer.writerow(CSV_COLUMNS)
        writer.writerows(answer.as_row() for answer in answers)
        return text.getvalue().encode()

    def _problem(self, error: OSError) -> DeliveryError:
        return DeliveryError(
            f"answers cannot be written to {self.path}: {error.strerror or error}.",
            hint="Check its folder, permissions and disk. The answers are kept until they can be written.",
        )
