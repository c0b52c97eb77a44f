"""How many photos at once the engine takes fastest on this machine: measured once and kept."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fewshot import engines
from fewshot.engines import BulkSettings, OpenVinoEngine
from fewshot.errors import CacheDamagedError, EngineError
from fewshot.records import Pixels
from fewshot.sealed import read_facts, write_sealed

# Below so many photos a measurement takes longer than the best settings could save.
MEASURED_FROM = 500
# A round gives each candidate so many photos a core; the first is not counted. The fastest few get more rounds, and
# the fastest round of each counts: other work can only lengthen one.
ROUNDS, MORE_ROUNDS, N_FINALISTS, PHOTOS_A_CORE = 2, 4, 2, 16
# What OpenVINO chooses by itself stays unless something else is faster by more than chance.
LEAST_GAIN = 1.03
BATCH = 8
_PATTERN = "bulk-*.chosen"


def candidates(n_threads: int) -> list[BulkSettings]:
    """What is tried on so many threads, OpenVINO's own choice first.

    >>> [(each.batch_size, each.n_streams) for each in candidates(2)]
    [(1, None), (1, 1), (1, 2), (8, 1), (8, 2)]
    """
    streams = sorted({1, max(1, n_threads // 4), max(1, n_threads // 2), n_threads})
    return [BulkSettings(), *(BulkSettings(batch, n) for batch in (1, BATCH) for n in streams)]


def chosen(ir: Path, precision: str) -> BulkSettings:
    """What was measured to be fastest for a prepared backbone here, else OpenVINO's own choice."""
    facts = _kept(_file(ir, precision), ir)
    return BulkSettings() if facts is None else BulkSettings(**facts["chosen"])


def is_measured(ir: Path, precision: str) -> bool:
    """Whether `measure` was done for a prepared backbone on this machine."""
    return _kept(_file(ir, precision), ir) is not None


def measure(ir: Path, precision: str) -> dict[str, Any]:
    """Try all candidates in turn on made-up photos and keep the fastest; a few seconds.

    Two processes that do so at once disturb each other's candidates alike, and the last one's finding stays.

    Returns:
        `chosen` (a `BulkSettings` as a dict), `photos_per_s` by candidate, and what they hold for (`made_for`).

    Raises:
        CacheDamagedError: the prepared backbone is missing or damaged.
        EngineError: not even OpenVINO's own choice runs here.
    """
    facts = read_facts(ir)
    side = facts["backbone"]["preprocessing"]["image_size_px"]
    n = PHOTOS_A_CORE * engines.n_threads()
    pixels = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    opened: dict[BulkSettings, OpenVinoEngine] = {}
    for settings in candidates(engines.n_threads()):
        try:
            opened[settings] = OpenVinoEngine(ir, precision, settings, keep=False)
        except EngineError:
            if settings == BulkSettings():
                raise
            # a network that takes one photo a call only, or too many streams
    rates = dict.fromkeys(opened, 0.0)

    def compare(tried: Iterable[BulkSettings]) -> None:
        for settings in tried:
            rates[settings] = max(rates[settings], n / _seconds(opened[settings], pixels))

    for engine in opened.values():
        _seconds(engine, pixels)
    for _ in range(ROUNDS):
        compare(opened)
    fastest = sorted(opened, key=lambda settings: -rates[settings])[:N_FINALISTS]
    finalists = list(dict.fromkeys([BulkSettings(), *fastest]))
    for _ in range(MORE_ROUNDS):
        compare(finalists)
    best = max(finalists, key=lambda settings: rates[settings])
    if rates[best] < LEAST_GAIN * rates[BulkSettings()]:
        best = BulkSettings()
    found = {
        "backbone": facts["backbone"]["name"],
        "precision": precision,
        "chosen": asdict(best),
        "photos_per_s": {str(settings): round(rate, 1) for settings, rate in rates.items()},
        "made_for": _made_for(ir),
    }
    try:
        write_sealed(_file(ir, precision), lambda path: path.write_bytes(b""), found)
    except OSError:
        pass  # a read-only or full cache: measured again next time
    return found


def found_here(backbones: Path) -> list[dict[str, Any]]:
    """What was measured on this machine: the facts that `measure` gave, of each prepared backbone in a folder.

    `prepared` names the prepared backbone's folder: backbones of one name may differ in weights, size or quality.
    """
    files = sorted(backbones.glob(f"*/{_PATTERN}"))
    kept = ((file, _kept(file, file.with_name("model.ir"))) for file in files)
    return [{**facts, "prepared": file.parent.name} for file, facts in kept if facts is not None]


def _kept(file: Path, ir: Path) -> dict[str, Any] | None:
    """What a file says, if it was measured for this backbone on this machine."""
    try:
        facts = read_facts(file)
        return facts if facts["made_for"] == _made_for(ir) else None
    except CacheDamagedError:
        return None  # never measured, or damaged: what it says is worth a few percent of speed, nothing else


def _seconds(engine: OpenVinoEngine, pixels: Pixels) -> float:
    size = engine.batch_size
    parts = [pixels[start : start + size] for start in range(0, len(pixels), size)]
    with ThreadPoolExecutor(engine.n_parallel) as pool:
        list(pool.map(engine.run, parts[: engine.n_parallel]))  # each thread gets its request
        started = time.perf_counter()
        list(pool.map(engine.run, parts))
        return time.perf_counter() - started


def _file(ir: Path, precision: str) -> Path:
    return ir.with_name(_PATTERN.replace("*", f"{precision}-{engines.n_threads()}"))


def _made_for(ir: Path) -> dict[str, Any]:
    return engines.made_for(read_facts(ir), {"n_threads": engines.n_threads()})
