"""Spaces -> the files of TensorBoard's embedding projector, written without tensorflow; and TensorBoard on them."""

import json
import logging
import math
import socket
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewshot import images
from fewshot.errors import PortInUseError, ProjectionError
from fewshot.projection.folder import OutputFolder
from fewshot.projection.spaces import Point, Space

FOLDER = "projector"
HOST = "127.0.0.1"
DEFAULT_PORT = 6006
READ_WAIT_S = 30
SPRITE_LIMIT_PX = 8192  # what browsers' graphics take as one picture
SPRITE_TILE_PX = 64
COLUMNS = ("label", "file", "role", "nearest label", "similarity", "agrees", "suspicious")


def sprite_tile_px(n_points: int) -> int:
    """How large a thumbnail may be for so many to fit into one sprite picture: 64 px, from 16,385 points on less.

    >>> sprite_tile_px(1000), sprite_tile_px(100_000)
    (64, 25)
    """
    return min(SPRITE_TILE_PX, SPRITE_LIMIT_PX // max(1, math.ceil(math.sqrt(n_points))))


def write_projector(folder: OutputFolder, spaces: Sequence[Space], tiles: Sequence[Sequence[bytes | None]]) -> None:
    """Write tensors, metadata.tsv, sprite and projector_config.pbtxt of each space into the folder `projector`.

    Args:
        folder: where.
        spaces: each becomes a tensor that the projector lets one choose.
        tiles: of each space a small square picture of each point.
    """
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    config = ProjectorConfig()
    for number, (space, pictures) in enumerate(zip(spaces, tiles, strict=True)):
        part = "" if len(spaces) == 1 else f"-{number + 1}"
        tensors, kind = _tensors(space)
        side_px = sprite_tile_px(len(space.points))
        folder.write(f"{FOLDER}/tensors{part}.{kind}", tensors)
        folder.write(f"{FOLDER}/metadata{part}.tsv", _metadata(space.points))
        folder.write(f"{FOLDER}/sprite{part}.png", images.sheet(pictures, side_px))
        entry = config.embeddings.add()
        entry.tensor_name = f"{space.name}: {space.embedder}"
        entry.tensor_shape.extend(space.vectors.shape)
        entry.tensor_path = f"tensors{part}.{kind}"
        entry.metadata_path = f"metadata{part}.tsv"
        entry.sprite.image_path = f"sprite{part}.png"
        entry.sprite.single_image_dim.extend([side_px, side_px])
    folder.write(f"{FOLDER}/projector_config.pbtxt", text_format.MessageToString(config))


def check_port(port: int) -> None:
    """See whether TensorBoard could listen, before work is done that it shall show; 0 stands for any free port.

    Raises:
        PortInUseError: another program listens there.
    """
    with socket.socket() as probe:
        if port and probe.connect_ex((HOST, port)) == 0:
            raise _port_in_use(port)


def serve(folder: Path, port: int = DEFAULT_PORT) -> str:
    """Start TensorBoard on 127.0.0.1, in a thread that ends with the process; the address of its projector.

    Args:
        folder: one that `write_projector` wrote to.
        port: 0 takes any that is free.

    Raises:
        PortInUseError: another program listens there.
        ProjectionError: TensorBoard cannot listen there for another reason, or finds nothing to show in the folder.
    """
    from tensorboard import default, program

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # that tensorflow is absent is no news
    board = program.TensorBoard(plugins=default.get_plugins())
    # The projector needs none of the event files that the faster reader is for.
    board.configure(logdir=str(folder / FOLDER), host=HOST, port=port, load_fast="false")
    try:
        address = board.launch()
    except program.TensorBoardPortInUseError as error:
        raise _port_in_use(port) from error
    except program.TensorBoardServerException as error:
        raise ProjectionError(f"TensorBoard cannot serve on port {port} of {HOST}: {error.msg}") from error
    _wait_until_read(address)
    # Asked for the first time, it only begins to look whether there is anything to show, and calls the tab inactive.
    _get(f"{address}data/plugins_listing")
    return f"{address}#projector"


def _wait_until_read(address: str) -> None:
    """TensorBoard listens before it has read the folder, and shows whoever comes too soon that there is no data."""
    deadline_s = time.monotonic() + READ_WAIT_S
    while not _get(f"{address}data/plugin/projector/runs"):
        if time.monotonic() > deadline_s:
            raise ProjectionError(
                f"TensorBoard did not find the projector's files within {READ_WAIT_S} s.",
                hint="Is the folder still there? Try again, or run tensorboard --logdir on it.",
            )
        time.sleep(0.05)


def _get(url: str) -> Any:
    no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is this machine that is asked
    with no_proxy.open(url, timeout=READ_WAIT_S) as answer:
        return json.load(answer)


def _port_in_use(port: int) -> PortInUseError:
    return PortInUseError(
        f"port {port} of {HOST} is in use by another program.",
        hint="Choose another with --port, or --port 0 for any that is free.",
    )


def _tensors(space: Space) -> tuple[bytes, str]:
    """The vectors as TensorBoard reads them: float32 in binary, or text, and the file's ending.

    TensorBoard first tries to read text and takes the file for binary only if it is not UTF-8. Bytes that happen to be
    UTF-8, which a handful of vectors can be, are therefore written as text.
    """
    binary = np.ascontiguousarray(space.vectors, "<f4").tobytes()
    try:
        binary.decode("utf-8")
    except UnicodeDecodeError:
        return binary, "bytes"
    rows = ["\t".join(f"{value:.9g}" for value in row) for row in space.vectors.tolist()]
    return ("\n".join(rows) + "\n").encode(), "tsv"


def _metadata(points: Sequence[Point]) -> str:
    rows = ["\t".join(COLUMNS)]
    for point in points:
        agrees = "-" if point.agrees is None else "yes" if point.agrees else "no"
        similarity = "-" if point.similarity is None else f"{point.similarity:.4f}"
        cells = (point.label or "-", point.file, point.role, point.nearest or "-", similarity, agrees)
        rows.append("\t".join([*map(_cell, cells), "yes" if point.suspicious else "no"]))
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()) or "-"
