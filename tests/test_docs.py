import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fewshot.cli.main import COMMANDS, main
from fewshot.gallery.neighbours import EXACT_NUMBERS
from fewshot.samples import write_samples
from fewshot.search.bases import CELLS_LIMIT, EXACT_LIMIT
from fewshot.store.schema import FORMAT_VERSION

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_page_on_reliability_is_what_its_results_say():
    code = "import reliability_page; assert reliability_page.page() == reliability_page.PAGE.read_text()"
    for seed in ("1", "2"):  # sets are in another order
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code], cwd=ROOT / "benchmarks", env=environment, check=True)


def test_generated_pages_are_fresh():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr} Run: make docs"


def test_readme_shows_every_command_and_no_other():
    shown = set(re.findall(r"^(?:\$ )?fewshot ([a-z-]+)", README, re.MULTILINE))
    assert shown == set(COMMANDS)


def test_every_option_that_the_documentation_gives_a_command_is_one_of_it():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    spans = {span for page in pages for span in re.findall(r"`(fewshot [a-z][^`\n]*)`", page.read_text())}
    assert len(spans) > 25
    for span in spans:
        name = span.split()[1]
        if name not in COMMANDS:
            continue  # a pattern, as in "fewshot COMMAND"
        command = main.get_command(click.Context(main), name)
        groups = [command, *getattr(command, "commands", {}).values()]
        known = {option for each in groups for parameter in each.params for option in parameter.opts} | {"--help"}
        assert set(re.findall(r"(?<=\s)--[a-z-]+", span)) <= known, span


def test_every_variable_of_the_environment_is_documented():
    read = {
        name
        for path in (ROOT / "fewshot").rglob("*.py")
        for name in re.findall(r'"(FEWSHOT_[A-Z_]+)"', path.read_text())
    }
    assert set(re.findall(r"^\| `\$(\w+)`", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE)) == read


def test_the_specification_names_the_format_that_is_written():
    (named,) = re.findall(r"Format version: \*\*(\d+)\*\*", (ROOT / "indexes" / "README.md").read_text())
    assert int(named) == FORMAT_VERSION


def test_readme_targets_exist_in_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets


def test_bare_make_prints_its_help():
    done = subprocess.run(["make", "-s", "-C", str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0
    assert re.search(r"^ *make demo +\w", done.stdout, re.MULTILINE)
    assert re.search(r"^ *make test +\w", done.stdout, re.MULTILINE)


def test_the_format_names_the_sizes_from_which_search_files_are_of_another_kind():
    text = " ".join((ROOT / "indexes" / "README.md").read_text().split())
    assert f"up to {EXACT_LIMIT:,} prototypes" in text
    assert f"supports of together {EXACT_NUMBERS // 10**6} million numbers" in text
    assert f"if they are more than {CELLS_LIMIT:,}" in text


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "indexes/README.md",
    "docs/benchmarks.md",
    "docs/cluster.md",
    "docs/projection.md",
    "docs/reliability.md",
    "docs/scale.md",
    "docs/service.md",
    "docs/shared-store.md",
    "docs/threat-model.md",
    "docs/watching.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{page} links to {target}"


@pytest.mark.weights
def test_python_example_of_the_readme_runs(tmp_path, capsys):
    write_samples(tmp_path / "photos", n_support=10, n_query=1)
    (tmp_path / "photos" / "support" / "rust").rename(tmp_path / "photos" / "corn-rust")
    (tmp_path / "photos" / "query" / "rust" / "rust-00.jpg").rename(tmp_path / "IMG_2041.jpg")
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("10 ()\ncorn-rust (Match(label='corn-rust'")


def alike(printed, shown):
    """Whether a line begins as it is printed: the same words, bars aside, and figures that differ by little."""
    words, others = (re.sub("[█▏▎▍▌▋▊▉]", " ", line).split() for line in (printed, shown))
    if len(others) < len(words):
        return False
    for word, other in zip(words, others, strict=False):
        figures = [re.fullmatch(r"([\d.]+)(%?)[,)]*", each) for each in (word, other)]
        if all(figures):
            (one, percent), (two, _) = (each.groups() for each in figures)
            if abs(float(one) - float(two)) > (3 if percent else 0.03):
                return False
        elif word != other:
            return False
    return True


@pytest.mark.weights
@pytest.mark.parametrize("precision", ["f32", None])
def test_first_example_of_the_readme_comes_out_as_printed(precision):
    example = re.search(r"^```\n(\$ fewshot sample-data.*?)^```", README, re.MULTILINE | re.DOTALL)[1]
    steps = re.findall(r"^\$ fewshot (.*)\n((?:[^$].*\n)*)", example, re.MULTILINE)
    assert len(steps) == 4
    for command, printed in steps:
        words = command.split()
        if precision and words[0] == "enroll":
            words += ["--precision", precision]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
        shown = [*done.stdout.splitlines(), *done.stderr.splitlines()]
        for line in printed.splitlines():
            start = line.split(" ... ")[0]
            assert line == "..." or any(alike(start, each) for each in shown), (line, shown)


def test_a_line_is_alike_only_with_the_same_words_and_nearly_the_same_figures():
    assert alike("rust  96% ███▌ 0.56", "rust  95% ██▍  0.54 more")
    assert not alike("rust  96% ███▌ 0.56", "scab  96% ███▌ 0.56")
    assert not alike("rust  96% ███▌ 0.56", "rust  92% ███▌ 0.56")
    assert not alike("rust  96% ███▌ 0.56", "rust  96% ███▌ 0.50")
    assert not alike("rust  96% ███▌ 0.56", "rust  96%")


@pytest.mark.weights
def test_demo_runs_on_rendered_leaves_and_says_what_to_type_next(tmp_path, monkeypatch):
    monkeypatch.delenv("FEWSHOT_DATA", raising=False)
    done = subprocess.run(
        ["sh", str(ROOT / "benchmarks" / "demo.sh")],
        capture_output=True,
        text=True,
        cwd=tmp_path,  # nothing beside it, so the program renders its own photos
        env={**os.environ, "BIN": str(Path(sys.executable).parent)},
    )
    assert done.returncode == 0, done.stderr
    for label in ("healthy", "rust", "powdery-mildew", "blight", "mosaic", "shot-hole"):
        assert f"{label}: 10 enrolled" in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].strip().startswith("fewshot --help")


def test_the_demo_of_watching_says_so_where_there_are_no_scenes(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "watch_demo.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "FEWSHOT_DATA": str(tmp_path / "nothing")},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("skipped: no street scenes here")
