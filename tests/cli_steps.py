"""Commands run in this process: what they say, and what they refuse."""

import json

from click.testing import CliRunner

from fewshot.cli import main


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def ok(*words):
    """What a command that succeeds says on stdout."""
    result = run(*words)
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return result.stdout


def lines(*words):
    """The JSON objects of a command that succeeds."""
    return [json.loads(line) for line in ok(*words, "--json").splitlines()]


def fails(exit_code, code, *words):
    """The message and hint of a command that must fail, checked to be the same for people and for programs."""
    plain = run(*words)
    assert plain.exit_code == exit_code, (plain.stdout, plain.stderr, plain.exception)
    assert "Traceback" not in plain.output
    as_json = run(*words, "--json")
    assert as_json.exit_code == exit_code
    (line,) = as_json.stdout.splitlines()
    error = json.loads(line)["error"]
    assert list(error) == ["code", "message", "hint"]
    assert error["code"] == code
    assert plain.stderr.splitlines()[-1 if not error["hint"] else -2] == f"error: {error['message']}"
    if error["hint"]:
        assert plain.stderr.splitlines()[-1] == f"hint:  {error['hint']}"
    return f"{error['message']} | {error['hint']}"
