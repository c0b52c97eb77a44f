"""Runs a backbone fast on this machine: OpenVINO on CPU, torch on a GPU or by choice."""

import errno
import importlib.util
import io
import os
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from fewshot.backbones import Backbone, Preprocessing
from fewshot.errors import CacheDamagedError, EngineError, UsageError, WeightsDamagedError
from fewshot.records import Float32s, Pixels
from fewshot.sealed import read_facts, read_sealed, temporary_beside, write_sealed

if TYPE_CHECKING:
    import torch

PRECISIONS = ("f32", "bf16")
ENGINES = ("auto", "openvino", "torch")
THREADS_VARIABLE = "FEWSHOT_THREADS"
MOST_THREADS = 1024


class Engine(Protocol):
    """A backbone that runs: pixels in, raw features out."""

    batch_size: int  # photos a call; every call but the last of a run gets exactly so many
    n_parallel: int  # calls that may run at once

    def run(self, pixels: Pixels) -> Float32s:
        """Features of a batch: (n, size, size, 3) uint8 RGB -> (n, dim) float32, not of unit length."""
        ...


@dataclass(frozen=True, slots=True)
class BulkSettings:
    """How many photos go into a call, and how many calls run at once; None leaves the latter to OpenVINO."""

    batch_size: int = 1
    n_streams: int | None = None

    def __str__(self) -> str:
        streams = "OpenVINO's own choice" if self.n_streams is None else f"{self.n_streams} at once"
        return f"{self.batch_size} a call, {streams}"


def n_threads() -> int:
    """How many threads this process may compute with: `$FEWSHOT_THREADS`, else one a core that it may use.

    Raises:
        UsageError: `$FEWSHOT_THREADS` is no whole number from 1 to `MOST_THREADS`.
    """
    return _thread_limit() or n_cores()


def n_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _thread_limit() -> int | None:
    given = os.environ.get(THREADS_VARIABLE, "")
    if not given:
        return None
    if not given.isdecimal() or len(given) > 9 or not 0 < int(given) <= MOST_THREADS:
        raise UsageError(
            f"{THREADS_VARIABLE} is {given!r}; wanted a whole number from 1 to {MOST_THREADS:,}.",
            hint="Leave it out to use every core.",
        )
    return int(given)


def native_precision() -> str:
    """`bf16` where this CPU computes it in hardware, else `f32`."""
    return "bf16" if "BF16" in cpu_capabilities() else "f32"


def cpu_capabilities() -> list[str]:
    """What OpenVINO says this CPU can do, such as FP32, BF16, INT8."""
    return list(_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def cpu_name() -> str:
    """What the CPU calls itself."""
    return str(_openvino().Core().get_property("CPU", "FULL_DEVICE_NAME"))


def gpu_name() -> str:
    """What the first CUDA device calls itself; call only where `cuda_available`."""
    import torch

    return str(torch.cuda.get_device_name(0))


def cuda_available() -> bool:
    """Whether torch is installed and sees a CUDA device (torch is imported only where an NVIDIA driver is)."""
    if not Path("/proc/driver/nvidia").exists() and shutil.which("nvidia-smi") is None:
        return False
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


# ---- OpenVINO


def _openvino() -> Any:
    """The module `openvino`, without the converter of other frameworks' models, which would be a third of the import.

    OpenVINO itself imports its converter only where that is installed, and does without where it is not: for the time
    of the import it is not. Whoever asks for `openvino.convert_model` later in this process gets it.
    """
    with _IMPORTING:
        if "openvino" not in sys.modules and _CONVERTER not in sys.modules:
            sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # Python's own sign of what is not to be found
            try:
                import openvino
            finally:
                del sys.modules[_CONVERTER]
            openvino.__getattr__ = _late_attribute
        import openvino

        return openvino


_CONVERTER = "openvino.tools.ovc"
_IMPORTING = threading.Lock()


def _late_attribute(name: str) -> Any:
    """What `_openvino` left out of the module, when it is asked for after all."""
    if name != "convert_model":
        raise AttributeError(f"module 'openvino' has no attribute {name!r}")
    from openvino.tools.ovc import convert_model

    return convert_model


def _reason(error: RuntimeError) -> str:
    """The end of what OpenVINO says; the lines before it name places in its own source."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def export_openvino(backbone: Backbone, onnx: bytes, path: Path, facts: dict[str, Any]) -> None:
    """Write a network as OpenVINO IR that takes uint8 RGB photos; the normalisation becomes part of it.

    Args:
        backbone: says the input size, mean and std.
        onnx: the network: (1, 3, size, size) float32, normalised, to (1, dim) float32; size is that of a view.
        path: the sealed file to write.
        facts: what `read_facts(path)` shall give back later.

    Raises:
        WeightsDamagedError: the network cannot be read, or is not the one that is described.
        OSError: the file cannot be written.
    """
    openvino = _openvino()
    prepared = backbone.preprocessing
    size = prepared.view_size_px
    try:
        model = openvino.Core().read_model(io.BytesIO(onnx))
    except RuntimeError as error:
        raise WeightsDamagedError(
            f"the ONNX network of backbone {backbone.name!r} cannot be read: {_reason(error)}"
        ) from error
    found, wanted = [tuple(model.input().shape), tuple(model.output().shape)], [(1, 3, size, size), (1, backbone.dim)]
    if found != wanted:
        raise WeightsDamagedError(
            f"the ONNX network of backbone {backbone.name!r} makes {found[1]} of {found[0]}; its description says "
            f"{wanted[1]} of {wanted[0]}."
        )
    if prepared.views > 1:
        model = _in_views(model, prepared)
    steps = openvino.preprocess.PrePostProcessor(model)
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(openvino.Type.f32).mean([m * 255 for m in prepared.mean]).scale(
        [s * 255 for s in prepared.std]
    )
    model = steps.build()

    # On the disk that the file is for, which has room for it: that of temporary files may be small, or full.
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = temporary_beside(path)
    try:
        folder.mkdir()
        xml = folder / "model.xml"
        openvino.save_model(model, xml, compress_to_fp16=False)
        text, weights = xml.read_bytes(), xml.with_suffix(".bin").read_bytes()
    except RuntimeError as error:
        raise OSError(errno.EIO, _reason(error), str(path)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write_sealed(path, lambda target: target.write_bytes(text + weights), {**facts, "xml_bytes": len(text)})


def _in_views(model: Any, prepared: Preprocessing) -> Any:
    """A network that takes whole photos and gives the mean of what `model` gives for each of their views."""
    openvino, ops = _openvino(), importlib.import_module("openvino.opset13")
    passes = importlib.import_module("openvino.passes")
    folding = passes.Manager()
    folding.register_pass(passes.ConstantFolding())  # shapes that are computed from others become plain numbers
    folding.run_passes(model)
    size, whole = prepared.view_size_px, prepared.image_size_px
    photo = ops.parameter([1, 3, whole, whole], np.float32, name="photo")
    scaled = ops.interpolate(photo, [size, size], "bicubic_pillow", "sizes", axes=[2, 3], cube_coeff=-0.5)
    corners = [
        ops.slice(photo, [top, left], [top + size, left + size], [1, 1], [2, 3]) for top, left in prepared.corners_px
    ]
    features = _features_of(model, [scaled, *corners])
    unit = ops.normalize_l2(features, [1], 1e-12, "max")
    views = ops.reshape(unit, [prepared.views, -1, model.output().partial_shape[1].get_length()], False)
    return openvino.Model([ops.reduce_mean(views, [0])], [photo])


def _features_of(model: Any, views: list[Any]) -> Any:
    """What a network for one picture gives for each of several: one after the other, (n, dim).

    All in one call where the network can be made to take them; else by as many copies of it, which share their weights
    (a vision transformer puts its class token before the patches of one picture).
    """
    ops = importlib.import_module("openvino.opset13")
    together = model.clone()
    try:
        reshape_to_batch(together, len(views))
    except RuntimeError:
        return ops.concat([_connected(model.clone(), view) for view in views], 0)
    return _connected(together, ops.concat(views, 0))


def _connected(model: Any, pictures: Any) -> Any:
    model.input().get_node().output(0).replace(pictures.output(0))
    return model.output().get_node().input_value(0)


class OpenVinoEngine:
    """OpenVINO on the CPU.

    Args:
        ir: the sealed file that `export_openvino` wrote.
        precision: `f32` or `bf16`; `bf16` is emulated, slowly, where the CPU lacks it.
        bulk: compile for the most answers a second, so (see `fewshot.tuning`); None: for the first answer.
        keep: leave what is compiled in the cache, for the next start.

    Raises:
        CacheDamagedError: the IR does not fit its checksum.
        EngineError: OpenVINO cannot run it at this precision, or so many photos a call, here.
    """

    def __init__(self, ir: Path, precision: str, bulk: BulkSettings | None = None, *, keep: bool = True) -> None:
        self.batch_size = 1 if bulk is None else bulk.batch_size
        core = _openvino().Core()
        told = {
            "PERFORMANCE_HINT": "LATENCY" if bulk is None else "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": precision,
        }
        if bulk is not None and bulk.n_streams is not None:
            told["NUM_STREAMS"] = str(bulk.n_streams)
        limit = _thread_limit()
        if limit is not None:  # without one, OpenVINO knows best which cores to use
            told["INFERENCE_NUM_THREADS"] = str(limit)
            # A process of few threads has others beside it, and each of them would bind its own to the first cores.
            told["ENABLE_CPU_PINNING"] = "NO"
        self._compile: Callable[[int], Any] = lambda batch_size: _compiled(core, ir, precision, told, batch_size, keep)
        self._opening = threading.Lock()
        try:
            self._compiled = {self.batch_size: self._compile(self.batch_size)}
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO cannot run this backbone at {precision} on this CPU: {_reason(error)}",
                hint="Try `--precision f32`, or `--engine torch`.",
            ) from error
        _leave_the_cores()
        network = self._compiled[self.batch_size]
        self.n_parallel = int(network.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._local = threading.local()

    def run(self, pixels: Pixels) -> Float32s:
        """Features of a batch; may be called from several threads at once, each with a request of its own."""
        if not _FIRST_RUN.done:
            with _FIRST_RUN.lock:
                features = self._infer(pixels)
                _FIRST_RUN.done = True
                return features
        return self._infer(pixels)

    def _infer(self, pixels: Pixels) -> Float32s:
        if len(pixels) == self.batch_size > 1:
            return np.array(self._request(self.batch_size).infer([pixels])[0], np.float32)
        one = self._request(1)
        rows = [np.array(one.infer([pixels[i : i + 1]])[0][0], np.float32) for i in range(len(pixels))]
        return np.stack(rows)

    def _request(self, batch_size: int) -> Any:
        """This thread's request for so many photos a call; what is left of a run goes one by one."""
        own = self._local.__dict__.setdefault("requests", {})
        if batch_size not in own:
            with self._opening:
                if batch_size not in self._compiled:
                    self._compiled[batch_size] = self._compile(batch_size)
            own[batch_size] = self._compiled[batch_size].create_infer_request()
        return own[batch_size]


@lru_cache(maxsize=1)
def _leave_the_cores() -> None:
    """Let NumPy multiply with one thread in this process from now on.

    Its further threads go on spinning for tens of milliseconds after each product, to be there for the next one, and
    take from the engine the core that it has a thread on: a single embedding takes a fifth longer.
    """
    threadpool_limits(1, "blas")


class _FirstRun:
    """The first inference of a process runs alone.

    OpenVINO's binding sets up static tables in its first call; two threads that enter it together can each wait for
    ever, one for the table with the interpreter lock held, the other for the interpreter lock.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.done = False


_FIRST_RUN = _FirstRun()


def made_for(ir_facts: dict[str, Any], more: dict[str, Any], core: Any = None) -> dict[str, Any]:
    """What something holds for that was compiled or measured here: the backbone, OpenVINO, the machine, and `more`."""
    core = core or _openvino().Core()
    return {
        "ir": ir_facts["payload_xxh3"],
        "openvino": _openvino().get_version(),
        "cpu": core.get_property("CPU", "FULL_DEVICE_NAME"),
        "capabilities": sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        "n_cpus": n_cores(),
        **more,
    }


def _compiled(
    core: Any, ir: Path, precision: str, settings: dict[str, str], batch_size: int = 1, keep: bool = True
) -> Any:
    """The compiled network, from the blob that an earlier run left beside the IR where there is a sound one."""
    holds_for = made_for(read_facts(ir), {"settings": settings}, core)
    # Processes with a limit of threads live beside those without: each kind has its own blob.
    parts = [precision, settings["PERFORMANCE_HINT"].lower(), settings.get("INFERENCE_NUM_THREADS", "")]
    if "NUM_STREAMS" in settings or batch_size > 1:
        parts.append(f"{batch_size}x{settings.get('NUM_STREAMS', '')}")
    blob = ir.with_name(f"compiled-{'-'.join(filter(None, parts))}.blob")
    try:
        if read_facts(blob).get("made_for") == holds_for:
            payload, _ = read_sealed(blob)
            return core.import_model(payload, "CPU", settings)
    except (CacheDamagedError, RuntimeError):
        pass  # missing, damaged or of another build: compiled afresh below, which is what the blob was made from
    payload, facts = read_sealed(ir)
    model = _read_model(core, payload[: facts["xml_bytes"]], payload[facts["xml_bytes"] :])
    if batch_size > 1:
        reshape_to_batch(model, batch_size)
    compiled = core.compile_model(model, "CPU", settings)
    if not keep:
        return compiled
    exported = compiled.export_model()
    content = exported.getvalue() if hasattr(exported, "getvalue") else bytes(exported)
    try:
        write_sealed(blob, lambda target: target.write_bytes(content), {"made_for": holds_for})
    except OSError:
        pass  # a read-only or full cache costs the next start 0.2 s, nothing else
    return compiled


def reshape_to_batch(model: Any, batch_size: int) -> None:
    """Let a network that was written for one photo a call take several: where it names the 1, it shall not."""
    ops = importlib.import_module("openvino.opset13")
    for node in model.get_ops():
        if node.get_type_name() == "Reshape":
            to = node.input_value(1).get_node()
            if to.get_type_name() == "Constant" and to.data.tolist()[:1] == [1]:
                free = ops.constant(np.array([-1, *to.data.tolist()[1:]], np.int64))
                node.input(1).replace_source_output(free.output(0))
    model.reshape([batch_size, *list(model.input(0).shape)[1:]])


def _read_model(core: Any, xml: bytes, weights: bytes) -> Any:
    tensor = _openvino().Tensor(np.frombuffer(weights, np.uint8).copy())
    return core.read_model(model=xml, weights=tensor)


# ---- torch


class TorchEngine:
    """torch on CUDA where there is one, else on the CPU. `$FEWSHOT_THREADS` limits torch's threads in all this process.

    Raises:
        EngineError: a precision other than f32 and bf16.
        UsageError: `$FEWSHOT_THREADS` is no number of threads.
    """

    def __init__(self, backbone: Backbone, network: "torch.nn.Module", precision: str, *, device: str) -> None:
        import torch

        if precision not in PRECISIONS:
            raise EngineError(f"the torch engine knows no precision {precision!r}; it has {', '.join(PRECISIONS)}.")
        limit = _thread_limit()
        if limit is not None:
            torch.set_num_threads(limit)
        self._is_bf16 = precision == "bf16"
        self.batch_size = 64 if device == "cuda" else 16
        self.n_parallel = 1
        self._torch = torch
        self._device = device
        self._network = network.to(device).to(memory_format=torch.channels_last).eval()
        prepared = backbone.preprocessing
        self._mean = torch.tensor(prepared.mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(prepared.std, device=device).view(1, 3, 1, 1) * 255
        self._view_size_px, self._corners_px = prepared.view_size_px, prepared.corners_px

    def run(self, pixels: Pixels) -> Float32s:
        """Features of a batch: (n, size, size, 3) uint8 RGB -> (n, dim) float32, not of unit length."""
        torch = self._torch
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device).permute(0, 3, 1, 2).float()
            batch = ((batch - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
            with torch.autocast(self._device, torch.bfloat16, enabled=self._is_bf16):
                features = [self._network(view) for view in self._views(batch)]
            if len(features) > 1:
                features = [torch.nn.functional.normalize(each.float()) for each in features]
            result: Float32s = torch.stack(features).float().mean(0).cpu().numpy()
        return result

    def _views(self, batch: "torch.Tensor") -> "list[torch.Tensor]":
        """What the network looks at: the photos as they are, or whole and at each of four corners."""
        if not self._corners_px:
            return [batch]
        size = self._view_size_px
        scaled = self._torch.nn.functional.interpolate(batch, (size, size), mode="bicubic", antialias=True)
        return [scaled, *(batch[..., top : top + size, left : left + size] for top, left in self._corners_px)]
