"""`python -m fewshot.cli`: the `fewshot` command, for launchers such as torchrun that start a module."""

from fewshot.cli.main import main

main(prog_name="fewshot")
