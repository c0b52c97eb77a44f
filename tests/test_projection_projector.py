import io
import json
import socket
import urllib.request

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from tensorboard.plugins.projector.projector_plugin import _read_tensor_binary_file, _read_tensor_tsv_file

from fewshot import images
from fewshot.errors import PortInUseError, ProjectionError
from fewshot.projection.folder import OutputFolder
from fewshot.projection.projector import COLUMNS, SPRITE_LIMIT_PX, check_port, serve, sprite_tile_px, write_projector
from fewshot.projection.spaces import TILE_PX, Point, Space


def made_space(vectors=None, points=None):
    vectors = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32) if vectors is None else vectors
    points = points or tuple(
        Point("support", f"class-{i % 2}", f"{i}.jpg", f"class-{i % 2}", 0.5 + i / 100, i != 3, i == 3, i)
        for i in range(len(vectors))
    )
    return Space("made", "colours@1", vectors, points, len(vectors), 0, 2)


def coloured(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (TILE_PX, TILE_PX), colour).save(buffer, "WEBP")
    return buffer.getvalue()


@pytest.fixture
def written(tmp_path):
    """A folder of projector files, the space in it, and the projector's own reading of its configuration."""

    def write(space, tiles=None):
        folder = OutputFolder(tmp_path / "out")
        write_projector(folder, [space], [tiles or [None] * len(space.points)])
        config = text_format.Parse((tmp_path / "out/projector/projector_config.pbtxt").read_text(), ProjectorConfig())
        return tmp_path / "out" / "projector", config.embeddings[0]

    return write


def test_tensorboard_reads_back_the_vectors(written):
    space = made_space()
    folder, entry = written(space)
    assert list(entry.tensor_shape) == [5, 8]
    with pytest.raises(UnicodeDecodeError):  # by which alone TensorBoard tells binary files from text
        _read_tensor_tsv_file(str(folder / entry.tensor_path))
    assert np.array_equal(_read_tensor_binary_file(str(folder / entry.tensor_path), entry.tensor_shape), space.vectors)


def test_vectors_whose_bytes_are_text_by_chance_are_written_as_text(written):
    vectors = np.zeros((5, 8), np.float32)
    vectors[:, 0] = np.frombuffer(b"abcd", np.float32)
    folder, entry = written(made_space(vectors))
    assert entry.tensor_path.endswith(".tsv")
    assert np.array_equal(_read_tensor_tsv_file(str(folder / entry.tensor_path)), vectors)


def test_metadata_has_a_row_a_point_and_the_columns_asked_for(written):
    folder, entry = written(made_space())
    lines = (folder / entry.metadata_path).read_text().splitlines()
    assert tuple(lines[0].split("\t")) == COLUMNS
    assert len(lines) == 6
    assert lines[4].split("\t") == ["class-1", "3.jpg", "support", "class-1", "0.5300", "no", "yes"]


def test_names_with_tabs_and_line_breaks_cannot_shift_the_table(written):
    points = tuple(Point("query", "", f"a\tb\nc {i}.jpg", "x", 0.5) for i in range(5))
    folder, entry = written(made_space(points=points))
    lines = (folder / entry.metadata_path).read_text().split("\n")
    assert len(lines) == 7
    assert {line.count("\t") for line in lines[:-1]} == {len(COLUMNS) - 1}
    assert lines[1].startswith("-\ta b c 0.jpg\tquery")


def test_the_sprite_shows_each_photo_in_its_place(written):
    colours = ["#ff0000", "#00ff00", "#0000ff", "#ffff00"]
    folder, entry = written(made_space(), [*map(coloured, colours), None])
    assert list(entry.sprite.single_image_dim) == [64, 64]
    sheet = Image.open(folder / entry.sprite.image_path)
    assert sheet.size == (3 * 64, 3 * 64)  # 5 points: the smallest square of places that holds them
    for place, colour in enumerate([*colours, "#bbbbbb"]):
        found = sheet.getpixel((place % 3 * 64 + 32, place // 3 * 64 + 32))
        wanted = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
        assert np.abs(np.subtract(found, wanted)).max() < 12


@pytest.mark.parametrize("n", [1, 2, 1000, 16384, 16385, 100_000, 200_000])
def test_no_sprite_is_wider_than_browsers_take(n):
    n_across = int(np.ceil(np.sqrt(n)))
    side_px = sprite_tile_px(n)
    assert n_across * side_px <= SPRITE_LIMIT_PX
    assert side_px == 64 or n_across * (side_px + 1) > SPRITE_LIMIT_PX


def test_a_sheet_as_large_as_the_limit_can_be_made():
    sheet = images.sheet([None] * 16384, 64)
    assert Image.open(io.BytesIO(sheet)).size == (8192, 8192)


def test_a_port_in_use_is_told_before_any_work_and_when_serving(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"port {port} of 127.0.0.1 is in use") as caught:
            check_port(port)
        assert "--port" in caught.value.hint
        with pytest.raises(PortInUseError, match=str(port)):
            serve(tmp_path, port)
    check_port(port)
    check_port(0)


def test_tensorboard_is_shown_once_it_has_read_the_files(written, tmp_path, monkeypatch):
    written(made_space())
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # of no use for this machine itself
    address = serve(tmp_path / "out", 0).removesuffix("#projector")
    monkeypatch.delenv("http_proxy")
    with urllib.request.urlopen(f"{address}data/plugin/projector/runs", timeout=30) as answer:
        assert json.load(answer) == ["."]
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("fewshot.projection.projector.READ_WAIT_S", 1)
    with pytest.raises(ProjectionError, match="did not find the projector's files within 1 s"):
        serve(tmp_path / "empty", 0)
