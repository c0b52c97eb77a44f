"""An index in a folder that cannot be written: refused with what to do, which works."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gallery_steps import enroll

# Root may write everywhere; without these capabilities it is held to permissions as anybody.
AS_ANYBODY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]


@pytest.fixture
def read_only(gallery, leaves):
    """An index that its owner has closed against writing."""
    enroll(gallery, leaves(n=2))
    gallery.close()
    paths = [gallery.folder, *gallery.folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield gallery.folder
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)


def listed(folder):
    prefix = AS_ANYBODY if os.geteuid() == 0 else []
    if prefix and shutil.which(prefix[0]) is None:
        pytest.skip("no setpriv (util-linux) to hold root to permissions")
    command = [sys.executable, "-m", "fewshot.cli", "classes", "--index", str(folder)]
    return subprocess.run([*prefix, *command], capture_output=True, text=True)


def test_it_cannot_be_read_and_a_copy_of_the_folder_can(read_only, tmp_path):
    done = listed(read_only)
    assert done.returncode == 1, done.stdout
    assert f"index 'index' at {read_only} cannot be opened for use" in done.stderr
    assert "copy the folder to where you may write" in done.stderr
    shutil.copytree(read_only, tmp_path / "copy")
    for path in [tmp_path / "copy", *(tmp_path / "copy").rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert listed(tmp_path / "copy").returncode == 0


def test_the_documentation_says_so():
    text = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text()
    assert "An index that cannot be written cannot be read either" in text
