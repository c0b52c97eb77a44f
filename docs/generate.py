"""Write anew what follows from the code: the module table in README.md and the command reference docs/cli.md.

    python docs/generate.py [--check]

With --check nothing is written; the exit code is 1 if something is out of date.
"""

import ast
import sys
from pathlib import Path

import click
from click.testing import CliRunner

from fewshot.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fewshot"
ENVIRONMENT = {
    "FEWSHOT_INDEX": "the index where `--index` is not given",
    "FEWSHOT_USER": "who a change is noted under in the history; by default `$USER`",
    "FEWSHOT_CACHE": "where prepared backbones and searches of databases are kept; by default the user's cache folder",
    "FEWSHOT_THREADS": "the threads a process uses; by default as many as it may use cores",
    "FEWSHOT_MAX_MEGAPIXELS": "the largest photo that is decoded; by default 100",
    "FEWSHOT_SUPPORTS_IN_MEMORY": "up to how many photos a database's index is searched here and not there; a million",
    "FEWSHOT_RAY": "the cluster where `--ray` is not given",
    "FEWSHOT_POST_TOKEN": "the token that `fewshot watch --to URL` sends",
}
BEGIN, END = "<!-- modules: begin (make docs) -->", "<!-- modules: end -->"
# The order in which a photo meets them; imports point upwards only.
FLOW = [
    "errors",
    "records",
    "sealed",
    "extras",
    "memory",
    "recipes",
    "images",
    "decoding",
    "datasets",
    "samples",
    "transforms",
    "backbones",
    "portable",
    "networks",
    "losses",
    "engines",
    "tuning",
    "embedder",
    "cluster",
    "store",
    "backup",
    "search",
    "classifier",
    "gallery",
    "training",
    "evaluation",
    "projection",
    "service",
    "watching",
    "cli",
]


def module_table() -> str:
    """One line a module, in the order of the flow: its name and the first line of its docstring."""
    names = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if _is_module(path)}
    unknown = names - set(FLOW)
    if unknown:
        sys.exit(f"error: {', '.join(sorted(unknown))} stands in no place of the flow; add it to docs/generate.py.")
    rows = [f"| `{_shown(name)}` | {_first_line(name)} |" for name in FLOW if name in names]
    return "\n".join(["| module | what belongs in it |", "|---|---|", *rows])


def readme() -> str:
    """README.md with a fresh table."""
    text = (ROOT / "README.md").read_text()
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{module_table()}\n{END}{rest.split(END)[1]}"


def cli_reference() -> str:
    """The help of every command."""
    parts = ["# The command line\n\nWritten by `make docs` from `--help`; do not edit by hand.\n"]
    for words in ([], *([name] for name in COMMANDS)):
        result = CliRunner().invoke(main, [*words, "--help"], prog_name="fewshot", terminal_width=100)
        title = " ".join(["fewshot", *words])
        parts.append(f"## {title}\n\n```\n{click.unstyle(result.output).rstrip()}\n```\n")
    return "\n".join([*parts, environment()])


def environment() -> str:
    """What can be set outside the commands."""
    rows = "\n".join(f"| `${name}` | {what} |" for name, what in ENVIRONMENT.items())
    return f"## Environment\n\n| variable | what it sets |\n|---|---|\n{rows}\n"


def _is_module(path: Path) -> bool:
    return (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").is_file()


def _shown(name: str) -> str:
    return f"{name}/" if (PACKAGE / name).is_dir() else f"{name}.py"


def _first_line(name: str) -> str:
    path = PACKAGE / name
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines()[0]


def run() -> int:
    """Write or check; the exit code."""
    stale = []
    for path, text in ((ROOT / "README.md", readme()), (ROOT / "docs" / "cli.md", cli_reference())):
        if not path.exists() or path.read_text() != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(text)
    if stale:
        click.echo(f"{'out of date' if '--check' in sys.argv else 'written'}: {', '.join(stale)}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(run())
