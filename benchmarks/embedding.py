"""Embedding one photo and many, against the bare engine and the fastest decoding there is.

    python benchmarks/embedding.py [--data DIR] [--photos 256] [--runs 7]

*One photo, warm*: the time from bytes through decoding, preparing and the engine, and that to the whitened embedding,
against the bare engine call on pixels in memory plus the fastest of several decoders, each scaling as it may while
decoding to no less than the network's input; in turn. A photo of 256 px as in the data, and one enlarged to 12
megapixels. *Many*: photos in memory as files' bytes, and as prepared
pixels, against the engine alone with every batch and number of streams; in turn. The program's own choice of these is
made anew before, as the first large command on a machine makes it. *Growth*: 64, 128 and 256 photos.
"""

import argparse
import io
import itertools
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import data_folder, in_turn, keep
from PIL import Image

from fewshot import tuning
from fewshot.backbones import resolve, source_key
from fewshot.embedder import EmbedderChoice, cache_folder, open_embedder
from fewshot.engines import BulkSettings, reshape_to_batch
from fewshot.records import LoadedPhoto, NamedBytes
from fewshot.sealed import read_sealed

BACKBONE = "plants-lite0"
BIG = (4000, 3000)


def decoders(side_px: int) -> dict[str, Callable[[bytes], object]]:
    """Pillow's ways to decode a JPEG to no less than `side_px` on its short side."""

    def pillow(data: bytes, margin: int) -> object:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (side_px * margin, side_px * margin))
        return image.load()

    return {
        "Pillow, scaled": lambda data: pillow(data, 1),
        "Pillow": lambda data: Image.open(io.BytesIO(data)).load(),
    }


def threaded_decoders(photo: bytes, side_px: int) -> dict[str, Callable[[bytes], object]]:
    """What other libraries that are here decode a JPEG with, to no less than `side_px` where they can scale."""
    found: dict[str, Callable[[bytes], object]] = {}
    try:
        import torch
        import torchvision

        found["torchvision"] = lambda data: torchvision.io.decode_jpeg(
            torch.frombuffer(bytearray(data), dtype=torch.uint8)
        )
    except ImportError:
        pass
    try:
        import cv2

        ways = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2}
        ways |= {4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
        short_side = min(Image.open(io.BytesIO(photo)).size)
        way = max(by for by in ways if by == 1 or short_side // by >= side_px)
        found["OpenCV, scaled"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), ways[way])
    except ImportError:
        pass
    return found


def _asked(decode: Callable[[bytes], object], data: bytes) -> Callable[[int], object]:
    return lambda _: decode(data)


def one(data: bytes, n_runs: int) -> dict[str, Any]:
    """One photo, from its bytes to its embedding."""
    embedder = open_embedder(EmbedderChoice(BACKBONE, "f32"))
    photo = NamedBytes("photo.jpg", data)
    loaded = embedder.prepare(photo)
    assert isinstance(loaded, LoadedPhoto)
    (_first,) = embedder.embed_photos([photo], n_photos=1)
    engine, pixels = embedder._engine(1), loaded.pixels[None]
    ways = decoders(embedder.backbone.preprocessing.short_side_px)

    def features() -> None:
        found = embedder.prepare(photo)
        assert isinstance(found, LoadedPhoto)
        engine.run(found.pixels[None])

    seconds = in_turn(
        20 * n_runs,
        lambda _: features(),
        lambda _: list(embedder.embed_photos([photo], n_photos=1)),
        lambda _: engine.run(pixels),
        lambda _: embedder.prepare(photo),
        *[_asked(decode, data) for decode in ways.values()],
    )
    features_ms, whole, bare, prepared, *decoded = (1e3 * median(found) for found in seconds)
    return {
        "features_ms": features_ms,
        "whole_ms": whole,
        "engine_ms": bare,
        "prepare_ms": prepared,
        "decode_ms": dict(zip(ways, decoded, strict=True)),
    }


def compared(row: dict[str, Any], data: bytes, side_px: int, n_runs: int) -> dict[str, Any]:
    """What `one` found, against the engine and the fastest of all decoders.

    Called when all else is measured: these libraries bring threads of their own, which stand in the engine's way.
    """
    more = threaded_decoders(data, side_px)
    seconds = in_turn(20 * n_runs, *[_asked(decode, data) for decode in more.values()])
    decoded = {name: 1e3 * median(found) for name, found in zip(more, seconds, strict=True)}
    limit = row["engine_ms"] + min([*row["decode_ms"].values(), *decoded.values()])
    ratios = {"ratio": row["features_ms"] / limit, "whole_ratio": row["whole_ms"] / limit}
    return {**row, "decode_ms": row["decode_ms"] | decoded, **ratios}


def prepared() -> Path:
    """Where the prepared backbone is."""
    return cache_folder() / "backbones" / source_key(resolve(BACKBONE)) / "model.ir"


def bare_engines(pixels: np.ndarray) -> dict[str, Callable[[], object]]:
    """OpenVINO without us, on pixels in memory: every batch and number of streams."""
    import openvino

    payload, facts = read_sealed(prepared())
    core = openvino.Core()
    weights = openvino.Tensor(np.frombuffer(payload[facts["xml_bytes"] :], np.uint8).copy())
    n_cores = os.cpu_count() or 1
    found = {}
    for batch, n_streams in itertools.product((1, 8, 32), sorted({1, n_cores})):
        model = core.read_model(model=payload[: facts["xml_bytes"]], weights=weights)
        reshape_to_batch(model, batch)
        settings = {"NUM_STREAMS": n_streams, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT"}
        queue = openvino.AsyncInferQueue(core.compile_model(model, "CPU", settings), n_streams)

        def run_all(queue: Any = queue, batch: int = batch) -> None:
            for start in range(0, len(pixels), batch):
                queue.start_async([pixels[start : start + batch]])
            queue.wait_all()

        found[f"batch {batch}, {n_streams} stream{'s' if n_streams > 1 else ''}"] = run_all
    return found


def many(photos: list[NamedBytes], n_runs: int) -> dict[str, Any]:
    """Many photos, as bytes and as pixels, against the engine alone."""
    embedder = open_embedder(EmbedderChoice(BACKBONE, "f32"))
    with ThreadPoolExecutor() as pool:
        loaded = [each for each in pool.map(embedder.prepare, photos) if isinstance(each, LoadedPhoto)]
    pixels = np.stack([each.pixels for each in loaded])
    assert len(pixels) % 32 == 0, "whole batches"
    bare = bare_engines(pixels)
    ours_pixels, ours_bytes, *alone = in_turn(
        n_runs,
        lambda _: embedder.embed_prepared(loaded),
        lambda _: list(embedder.embed_photos(photos, n_photos=len(photos))),
        *[lambda _, run_all=run_all: run_all() for run_all in bare.values()],
    )
    embedder.close()
    speeds = {name: len(pixels) / median(found) for name, found in zip(bare, alone, strict=True)}
    best = max(speeds.values())
    return {
        "n": len(pixels),
        "engine_alone": speeds,
        "from_pixels": len(pixels) / median(ours_pixels),
        "from_bytes": len(pixels) / median(ours_bytes),
        "ratio_from_pixels": len(pixels) / median(ours_pixels) / best,
        "ratio_from_bytes": len(pixels) / median(ours_bytes) / best,
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--photos", default="64,128,256")
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    files = sorted((data_folder(given.data) / "novel" / "query").rglob("*.jpg"))
    small = files[0].read_bytes()
    buffer = io.BytesIO()
    Image.open(io.BytesIO(small)).convert("RGB").resize(BIG, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    result: dict[str, Any] = {"backbone": BACKBONE, "n_runs": given.runs, "one": {}, "many": []}
    photos = {"256 px": small, "12 megapixels": buffer.getvalue()}
    for name, data in photos.items():
        result["one"][name] = one(data, given.runs)
    tried = tuning.measure(prepared(), "f32")
    result["tried"] = {"chosen": str(BulkSettings(**tried["chosen"])), "photos_per_s": tried["photos_per_s"]}
    print(json.dumps(result["tried"]), flush=True)
    for n in map(int, given.photos.split(",")):
        result["many"].append(many([NamedBytes(file.name, file.read_bytes()) for file in files[:n]], given.runs))
        print(json.dumps(result["many"][-1]), flush=True)
    side_px = open_embedder(EmbedderChoice(BACKBONE, "f32")).backbone.preprocessing.short_side_px
    for name, data in photos.items():
        result["one"][name] = compared(result["one"][name], data, side_px, given.runs)
        print(name, json.dumps(result["one"][name]), flush=True)
    keep("embedding", result)


if __name__ == "__main__":
    main()
