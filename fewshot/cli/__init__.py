"""Words in, a table or JSON out: the `fewshot` command, one module a verb group."""

from fewshot.cli.main import main

__all__ = ["main"]
