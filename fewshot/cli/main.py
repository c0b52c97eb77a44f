"""The `fewshot` group: which commands there are, and how an error becomes a message and an exit code."""

import importlib
import os
from typing import Any

import click

from fewshot import __version__
from fewshot.cli.terminal import echo, json_safe, visible, write_line
from fewshot.errors import FewshotError, OutputError, UsageError

# name: (module, the line that `fewshot --help` shows). A command's module is imported when it is called, so that
# help and typing errors answer at once.
COMMANDS = {
    "enroll": ("fewshot.cli.enroll", "Enroll a class from a folder of photos, or add photos to it."),
    "query": ("fewshot.cli.query", "Recognise photos."),
    "classes": ("fewshot.cli.classes", "List the enrolled classes."),
    "remove": ("fewshot.cli.classes", "Remove a class and its photos."),
    "rename": ("fewshot.cli.classes", "Give a class another label."),
    "inspect": (
        "fewshot.cli.classes",
        "Show classes from inside: spread, confusable pairs, suspicious photos.",
    ),
    "project": ("fewshot.cli.project", "Draw the space: PCA, t-SNE, UMAP, TensorBoard's projector, doubtful photos."),
    "copy": ("fewshot.cli.copy", "Copy an index between a folder and a database."),
    "search-index": ("fewshot.cli.copy", "Let a database search many photos fast, as well as measured."),
    "reindex": ("fewshot.cli.reindex", "Embed all photos of an index anew, with another backbone."),
    "evaluate": ("fewshot.cli.evaluate", "Measure how well classes are told apart from a few photos."),
    "watch": ("fewshot.cli.watch", "Answer each photo that comes into a folder once: what, where, who goes."),
    "train": ("fewshot.cli.train", "Train a backbone from a recipe, with a report."),
    "serve": ("fewshot.cli.serve", "Serve an index: a web page and an HTTP API."),
    "token": ("fewshot.cli.serve", "Create, list or revoke the tokens of a served index."),
    "backup": ("fewshot.cli.backup", "Write a verified backup of an index, also while it is in use."),
    "restore": ("fewshot.cli.backup", "Make an index from a backup, or take one back to an earlier state."),
    "backbones": ("fewshot.cli.system", "List the backbones that can be used."),
    "doctor": ("fewshot.cli.system", "Show what runs here, and whether the index is sound."),
    "sample-data": ("fewshot.cli.system", "Render pictures of leaves to try the program with."),
}


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from fewshot.errors import did_you_mean

            hint = did_you_mean(args[0], COMMANDS)
            raise click.UsageError(f"there is no command {args[0]!r}. {hint}".strip(), ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        as_json = "--json" in [*ctx._protected_args, *ctx.args]
        if os.environ.get("NO_COLOR"):  # no-color.org: whatever its value
            ctx.color = False
        try:
            return super().invoke(ctx)
        except FewshotError as error:
            show_error(error, as_json=as_json or bool(ctx.meta.get("fewshot.json")))
            ctx.exit(error.exit_code)
        except click.UsageError as error:  # a command whose words cannot be read has no options to look at
            if not as_json:
                raise
            show_error(UsageError(error.format_message(), hint=f"See `{_path(error)} --help`."), as_json=True)
            ctx.exit(UsageError.exit_code)


def _path(error: click.UsageError) -> str:
    return error.ctx.command_path if error.ctx is not None else "fewshot"


def show_error(error: FewshotError, *, as_json: bool) -> None:
    """Tell a user what went wrong: on stderr for people, on stdout as `{"error": ...}` for programs.

    That stdout itself cannot be written is told on stderr.
    """
    if as_json:
        import json

        line = json_safe(json.dumps({"error": error.as_dict()}, ensure_ascii=False))
        try:
            write_line(line, err=isinstance(error, OutputError))
        except OutputError:
            write_line(line, err=True)
        return
    echo(f"{click.style('error:', fg='red', bold=True)} {visible(error.message)}", err=True)
    if error.hint:
        echo(f"{click.style('hint:', fg='cyan')}  {visible(error.hint)}", err=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fewshot")
def main() -> None:
    """Recognise a new plant disease from 5-20 photos, without retraining.

    Enroll photos of each class once, then ask about new ones:

    \b
      fewshot enroll corn-rust photos/corn-rust
      fewshot query new-photo.jpg
    """
