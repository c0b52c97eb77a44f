"""The shipped backbone in 8 bits: NNCF's post-training quantisation, its speed and what it costs in accuracy.

    python benchmarks/int8.py [--data DIR] [--n-calibration 300] [--runs 5] [--skip-protocol]

NNCF stands in an environment of its own. It is calibrated on photos that are enrolled (the first of each base class's
training photos and of the novel support photos). Speed is the bare engine's on photos in memory, f32 and int8 in turn.
The protocol is run through the program itself with the quantised network in place of the prepared one, in a cache
folder of its own.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import data_folder, environment, in_turn, keep, run
from protocol import measure

from fewshot.backbones import resolve, source_key
from fewshot.embedder import EmbedderChoice, cache_folder, open_embedder
from fewshot.engines import BulkSettings, OpenVinoEngine
from fewshot.records import LoadedPhoto
from fewshot.sealed import read_sealed, write_sealed

PACKAGES = ("nncf", "openvino==2026.4.1")
BACKBONE = "plants-lite0"


def pixels_of(photos: list[Path]) -> np.ndarray:
    """Prepared photos: (n, size, size, 3) uint8."""
    embedder = open_embedder(EmbedderChoice(BACKBONE))
    found = [embedder.prepare(photo) for photo in photos]
    return np.stack([each.pixels for each in found if isinstance(each, LoadedPhoto)])


def quantised(ir: Path, calibration: np.ndarray, work: Path, target: Path) -> None:
    """The sealed IR with its network in 8 bits, at `target`."""
    payload, facts = read_sealed(ir)
    xml = work / "model.xml"
    xml.write_bytes(payload[: facts["xml_bytes"]])
    xml.with_suffix(".bin").write_bytes(payload[facts["xml_bytes"] :])
    np.save(work / "calibration.npy", calibration)
    run(environment("int8", *PACKAGES), Path(__file__).with_name("quantise.py"), xml, work / "calibration.npy", work)
    text, weights = (work / "int8.xml").read_bytes(), (work / "int8.bin").read_bytes()
    kept = {key: value for key, value in facts.items() if not key.startswith("payload_")}
    write_sealed(target, lambda path: path.write_bytes(text + weights), {**kept, "xml_bytes": len(text)})


def speeds(ir: Path, ir8: Path, pixels: np.ndarray, n_runs: int) -> dict[str, Any]:
    """The bare engine on one photo and on many, f32 and int8 in turn."""
    from concurrent.futures import ThreadPoolExecutor

    found: dict[str, Any] = {}
    for what, bulk in (("one", False), ("many", True)):
        engines = {
            name: OpenVinoEngine(file, "f32", BulkSettings() if bulk else None)
            for name, file in (("f32", ir), ("int8", ir8))
        }

        def all_of(engine: OpenVinoEngine, pool: ThreadPoolExecutor, bulk: bool = bulk) -> None:
            if bulk:
                list(pool.map(lambda i: engine.run(pixels[i : i + 1]), range(len(pixels))))
            else:
                engine.run(pixels[:1])

        with ThreadPoolExecutor(max(engine.n_parallel for engine in engines.values())) as pool:
            calls: list[Callable[[int], object]] = [
                lambda _, engine=engine: all_of(engine, pool) for engine in engines.values()
            ]
            seconds = in_turn(n_runs if bulk else 20 * n_runs, *calls)
        n = len(pixels) if bulk else 1
        found[what] = {name: n / float(np.median(s)) for name, s in zip(engines, seconds, strict=True)}
        found[what]["ratio"] = found[what]["int8"] / found[what]["f32"]
        rows = {name: engine.run(pixels[:64]) for name, engine in engines.items()}
    unit = {name: row / np.linalg.norm(row, axis=1, keepdims=True) for name, row in rows.items()}
    cosines = (unit["f32"] * unit["int8"]).sum(axis=1)
    return found | {"cosine_mean": float(cosines.mean()), "cosine_least": float(cosines.min())}


def protocol(data: Path, ir8: Path, work: Path) -> dict[str, Any]:
    """The protocol's top-1, with the prepared network as it is and in 8 bits."""
    options = ["--backbone", BACKBONE, "--precision", "f32"]
    plain = measure(data, work / "protocol-f32", options)
    own = work / "cache"
    key = source_key(resolve(BACKBONE))
    shutil.copytree(cache_folder() / "backbones" / key, own / "backbones" / key)
    for blob in (own / "backbones" / key).glob("compiled-*"):
        blob.unlink()
    shutil.copyfile(ir8, own / "backbones" / key / "model.ir")
    before = os.environ.get("FEWSHOT_CACHE")
    os.environ["FEWSHOT_CACHE"] = str(own)
    try:
        quantised_answers = measure(data, work / "protocol-int8", options)
    finally:
        del os.environ["FEWSHOT_CACHE"]
        if before is not None:
            os.environ["FEWSHOT_CACHE"] = before
    return {
        name: {"n": row["n"], "f32": row["top1"], "int8": quantised_answers[name]["top1"]}
        for name, row in plain.items()
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--n-calibration", type=int, default=300)
    parser.add_argument("--n-speed", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--skip-protocol", action="store_true")
    given = parser.parse_args()
    data = data_folder(given.data)
    enrolled = sorted((data / "base" / "train").rglob("*.jpg")) + sorted((data / "novel" / "support").rglob("*.jpg"))
    chosen = enrolled[:: max(1, len(enrolled) // given.n_calibration)][: given.n_calibration]
    asked = sorted((data / "novel" / "query").rglob("*.jpg"))[: given.n_speed]
    result: dict[str, Any] = {"backbone": BACKBONE, "n_calibration": len(chosen), "n_runs": given.runs}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        work = Path(folder)
        ir, ir8 = cache_folder() / "backbones" / source_key(resolve(BACKBONE)) / "model.ir", work / "q" / "model.ir"
        calibration = pixels_of(chosen)
        try:
            quantised(ir, calibration, work, ir8)
        except subprocess.CalledProcessError as error:
            result["error"] = f"NNCF cannot be installed: {str(error.stderr).strip().splitlines()[-1]}"
        else:
            copy = work / "f" / "model.ir"
            copy.parent.mkdir()
            shutil.copyfile(ir, copy)
            result |= speeds(copy, ir8, pixels_of(asked), given.runs)
            print(json.dumps(result), flush=True)
            if not given.skip_protocol:
                result["protocol"] = protocol(data, ir8, work)
    print(json.dumps(result, indent=1))
    keep("int8", result)


if __name__ == "__main__":
    main()
