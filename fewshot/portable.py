"""A backbone's network as an ONNX file: written beside its weights, run where there is no torch."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

INPUT, OUTPUT = "photos", "features"


def export_onnx(network: "torch.nn.Module", image_size_px: int) -> bytes:
    """The network as ONNX, its weights under the names that they have in torch.

    Weights that are float16 numbers already, as those of a trained backbone are, are stored as such: the file has
    half the size, and no number in it is another.

    Args:
        network: in eval mode; takes (1, 3, size, size) float32, normalised.
        image_size_px: the size.
    """
    import torch

    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's, about its own way of tracing
        example = torch.zeros(1, 3, image_size_px, image_size_px, device=next(network.parameters()).device)
        # Not optimised: that would melt batch norms into convolutions, and torch could not read the weights back.
        program = torch.onnx.export(
            network, (example,), dynamo=True, optimize=False, input_names=[INPUT], output_names=[OUTPUT], verbose=False
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _store_halves(model)
    for node in model.graph.node:  # where in which file torch met it: of no use elsewhere, and half of a small file
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def onnx_weights(data: bytes) -> dict[str, NDArray[np.generic]]:
    """The weights in an ONNX file that `export_onnx` made, by their names in torch.

    Raises:
        ValueError: the bytes are no ONNX file.
    """
    try:
        model = onnx.load_from_string(data)
    except Exception as error:  # protobuf's own, which is no ValueError in all releases
        raise ValueError(f"no ONNX file: {error}") from error
    return {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}


def _store_halves(model: onnx.ModelProto) -> None:
    """Store float32 weights that are float16 numbers as those, each with the cast that gives it back."""
    casts = []
    renamed = {}
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.array_equal(halves.astype(np.float32), values):
            continue
        name = renamed[tensor.name] = f"{tensor.name}.float32"
        tensor.CopyFrom(onnx.numpy_helper.from_array(halves, tensor.name))
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:], model.graph.value_info[:]  # the latter notes the types that the weights had
    model.graph.node.extend(nodes)
