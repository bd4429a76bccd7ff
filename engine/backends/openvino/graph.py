# SPDX-License-Identifier: Apache-2.0
"""A bundle's graph as OpenVINO's model: weights are views of the mapped files, a motion's are inputs."""

import io
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lamp_trt.engine.backends.openvino.channels_last import use_channels_last
from lamp_trt.engine.backends.openvino.gates import use_layers_of_halves
from lamp_trt.engine.backends.openvino.group_norm import use_channel_statistics
from lamp_trt.engine.backends.openvino.library import core, explained, import_openvino, shared_constant
from lamp_trt.engine.backends.openvino.patches import use_patch_products
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.graph.model import bundle_model, external_tensors
from lamp_trt.engine.networks import is_motion_tensor

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Graph:
    """An ov.Model.

    motion  its inputs that hold a motion's tensors: shape and element type by name
    mapped  the files that its constants lie in, which OpenVINO does not keep alive
    """

    model: Any
    motion: Mapping[str, tuple[list[int], Any]]
    mapped: tuple[mmap.mmap, ...]

    def forget_weights(self) -> None:
        """Take the constants out of this process's memory; one that is used again is read from its file."""
        for file in self.mapped:
            file.madvise(mmap.MADV_DONTNEED)


def network_graph(bundle: Bundle, network: str, motion: str | None, *, widen: bool) -> Graph:
    """A network; with `motion`, whose shared tensors it has, the motion's tensors are inputs.

    widen  a bf16 bundle in fp32: values are float32, and weights are converted when the model is compiled
    Raises EngineError, naming the node, if OpenVINO does not take the graph.

    The graph is read with every weight in a file as an input, which then becomes a constant over the mapped
    file. OpenVINO's own reader of such files follows no link out of the bundle's folder and knows no motions.
    """
    proto = bundle_model(bundle, network, motion)
    files = {tensor.name: tensor.file for tensor in external_tensors(proto)}
    stored = {t.name: t.data_type for t in proto.graph.initializer if t.name in files}
    if widen:
        _widen(proto)
    _take_weights_as_inputs(proto, files)
    try:
        model = core().read_model(io.BytesIO(proto.SerializeToString()))
    except RuntimeError as error:
        raise EngineError(
            f"OpenVINO cannot take {network} of {bundle.path}: {_named(proto, explained(error))}"
        ) from error
    moving = {name for name in files if motion is not None and is_motion_tensor(name)}
    weights = {file: read_weight_file(bundle.path_of(file)) for file in {*files.values()}}
    mapped = {file: each.mapped() for file, each in weights.items()}
    raw = {file: each.raw(mapped[file]) for file, each in weights.items()}
    data = {name: raw[file][name] for name, file in files.items()}
    inputs = {}
    for parameter in model.get_parameters():
        name = parameter.get_friendly_name()
        if name not in files:
            continue
        shape, element_type = list(parameter.get_shape()), _element_type(stored[name])
        if name in moving:
            inputs[name] = shape, element_type
        _replace(model, parameter, None if name in moving else data[name], element_type)
    use_channels_last(model)
    use_channel_statistics(model)
    use_patch_products(model)
    use_layers_of_halves(model, data)
    return Graph(model, inputs, tuple(mapped.values()))


def _replace(model: Any, parameter: Any, data: Bytes | None, element_type: Any) -> None:
    """Put a constant over `data`, or an input of its own element type, where `parameter` is."""
    ov = import_openvino()
    name, shape = parameter.get_friendly_name(), list(parameter.get_shape())
    if data is None:
        if parameter.get_element_type() == element_type:
            return
        source = ov.op.Parameter(element_type, ov.Shape(shape))
        source.set_friendly_name(name)
        source.output(0).set_names({name})
        model.add_parameters([source])
    else:
        source = shared_constant(name, data, shape, element_type)
    output = source.output(0)
    if parameter.get_element_type() != element_type:
        output = ov.opset13.convert(source, parameter.get_element_type()).output(0)
        output.get_node().set_friendly_name(f"{name}_widened")
    parameter.output(0).replace(output)
    model.remove_parameter(parameter)


def _take_weights_as_inputs(proto: onnx.ModelProto, files: Mapping[str, str]) -> None:
    kept = []
    for tensor in proto.graph.initializer:
        if tensor.name in files:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            proto.graph.input.append(value)
        else:
            kept.append(tensor)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def _widen(proto: onnx.ModelProto) -> None:
    """Make FLOAT of every BFLOAT16."""
    half, single = TensorProto.BFLOAT16, TensorProto.FLOAT
    graph = proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single
    for tensor in graph.initializer:
        if tensor.data_type == half and tensor.external_data:
            tensor.data_type = single
        elif tensor.data_type == half:
            tensor.CopyFrom(_widened(tensor))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == half:
                attribute.i = single
            elif attribute.HasField("t") and attribute.t.data_type == half:
                attribute.t.CopyFrom(_widened(attribute.t))


def _widened(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _element_type(data_type: int) -> Any:
    ov_types = import_openvino().Type
    types: dict[int, Any] = {
        TensorProto.FLOAT: ov_types.f32,
        TensorProto.FLOAT16: ov_types.f16,
        TensorProto.BFLOAT16: ov_types.bf16,
        TensorProto.INT64: ov_types.i64,
    }
    return types[data_type]


def _named(proto: onnx.ModelProto, text: str) -> str:
    """`text`, with the node where it says the operator only."""
    match = re.search(r"No conversion rule found for operations: ([\w.]*?)(\w+?)(?:-\d+)?(?:[,\s]|$)", text)
    if match is None:
        return text
    node = next((node for node in proto.graph.node if node.op_type == match[2]), None)
    where = f"its node {node.name} is " if node else "it has "
    return f"{where}{match[1]}{match[2]}, an operator that this release does not know."
