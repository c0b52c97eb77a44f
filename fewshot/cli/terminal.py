"""Words for a terminal: what a stranger's file or class is named can move no cursor, hide no text, turn no line."""

import errno
import os
import re
import shutil
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import click

from fewshot.errors import OutputError

# The colours that `click.style` gives here; every other sequence that a terminal would obey is shown, not obeyed.
_OUR_STYLES = re.compile("\x1b\\[(?:0|1|2|3[1-6])m")
# Joiners that scripts need to be written, and the no-break spaces; they hide nothing.
_HARMLESS = frozenset("\u200c\u200d\u00ad")


class Bar(Protocol):
    """A line that is drawn again and again at the bottom of the terminal."""

    def start(self) -> None:
        """Draw it."""

    def stop(self) -> None:
        """Wipe it away."""


_drawn: list[Bar] = []  # one at most
_writing = threading.RLock()


@contextmanager
def drawn(bar: Bar) -> Iterator[None]:
    """Keep a bar at the bottom of the terminal: it makes room for every line that `write_line` prints meanwhile."""
    with _writing:
        bar.start()
        _drawn.append(bar)
    try:
        yield
    finally:
        with _writing:
            _drawn.remove(bar)
            bar.stop()


def line_length() -> int | None:
    """How many characters a line of stdout holds; None where it is no terminal, and lines are as long as they are."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def visible(text: str) -> str:
    r"""A text with every character that a terminal would obey, or nobody could see, shown as its number.

    >>> visible("leaf\x1b[2J.jpg"), visible("gpj.\u202efael"), visible("Mehltau \U0001f33f")
    ('leaf<U+001B>[2J.jpg', 'gpj.<U+202E>fael', 'Mehltau 🌿')

    A byte of a file's name that is no UTF-8 is shown as `datasets.legible` keeps it.

    >>> print(visible("caf\udce9.png"))
    caf\xe9.png
    """
    if text.isprintable():
        return text
    return "".join(_shown(character) if _is_obeyed(character) else character for character in text)


def json_safe(text: str) -> str:
    r"""The same JSON with such characters as `\u` escapes: it means what it meant, and a terminal obeys nothing in it.

    >>> json_safe('{"file": "gpj.\u202efael"}')
    '{"file": "gpj.\\u202efael"}'
    """
    if text.isprintable():
        return text
    return "".join(_json_escape(character) if _is_obeyed(character) else character for character in text)


def echo(text: str = "", *, err: bool = False) -> None:
    """Print lines, with our own colours and nothing else that a terminal would obey."""
    parts, at = [], 0
    for match in _OUR_STYLES.finditer(text):
        parts += [_visible_lines(text[at : match.start()]), match.group()]
        at = match.end()
    write_line("".join([*parts, _visible_lines(text[at:])]), err=err)


def write_line(text: str, *, err: bool = False) -> None:
    """Print a line as it is, at once.

    Where stderr cannot be written, its file on a full disk say, nothing is: no work ends for want of a warning.

    Raises:
        OutputError: stdout cannot be written. It is given up, so that nothing is tried again when the process ends.
    """
    try:
        with _writing:
            in_the_way = _drawn if (sys.stderr if err else sys.stdout).isatty() else []
            for bar in in_the_way:
                bar.stop()
            try:
                click.echo(text, err=err)
            finally:
                for bar in in_the_way:
                    bar.start()
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise  # who read has gone: click ends the command without a word
        if err:
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        raise OutputError(f"the answer cannot be written: {error.strerror}.") from error


def _visible_lines(text: str) -> str:
    return "\n".join(map(visible, text.split("\n")))


def _shown(character: str) -> str:
    number = ord(character)
    return f"\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else f"<U+{number:04X}>"


def _is_obeyed(character: str) -> bool:
    category = unicodedata.category(character)
    return category in ("Cc", "Cs", "Zl", "Zp") or (category == "Cf" and character not in _HARMLESS)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{int.from_bytes(units[i : i + 2]):04x}" for i in range(0, len(units), 2))
