# SPDX-License-Identifier: Apache-2.0
"""A copy of a bundle in fp16, made without exporting it anew: types and values are converted.

For builders only. The manifest's digests are those of the original, so that `Bundle.open` would refuse it.
"""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lamp_trt.engine.backends.tensorrt.graph import external_tensors
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import TensorRef, read_weight_file, write_weight_file
from lamp_trt.engine.graph.locate import relocate_initializers
from lamp_trt.engine.networks import IOTensor


def recast(bundle: Bundle, folder: Path) -> Bundle:
    """An fp32 bundle in fp16, in the new `folder`; the timestep stays in float32."""
    shutil.copytree(bundle.path, folder)
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.safetensors"))}
    for path in files.values():
        _recast_weights(path)
    networks = {}
    for name, entry in bundle.manifest.networks.items():
        model = onnx.load(bundle.graph_path(name), load_external_data=False)
        _recast_graph(model, keep={t.name for t in entry.inputs if t.name == "timestep"})
        for file in sorted({tensor.file for tensor in external_tensors(model)}):
            relocate_initializers(model, file, read_weight_file(files[file]).tensors)
        (folder / entry.graph).write_bytes(model.SerializeToString())
        networks[name] = dataclasses.replace(
            entry, inputs=_recast_io(entry.inputs), outputs=_recast_io(entry.outputs)
        )
    manifest = dataclasses.replace(bundle.manifest, networks=networks)
    return Bundle(folder, manifest, bundle.digest, {})


def _recast_io(tensors: tuple[IOTensor, ...]) -> tuple[IOTensor, ...]:
    return tuple(
        dataclasses.replace(t, dtype="float16") if t.dtype == "float32" and t.name != "timestep" else t
        for t in tensors
    )


def _recast_graph(model: onnx.ModelProto, keep: set[str]) -> None:
    """float32 becomes float16 but for scales of Resize and the inputs of `keep`, which are cast behind it."""
    graph, target = model.graph, TensorProto.FLOAT16
    scales = {name for node in graph.node if node.op_type == "Resize" for name in node.input[1:]}
    for initializer in graph.initializer:
        if initializer.data_type != TensorProto.FLOAT or initializer.name in scales:
            continue
        if initializer.external_data:
            initializer.data_type = target
        else:
            values = numpy_helper.to_array(initializer).astype(np.float16)
            raw = helper.make_tensor(initializer.name, target, values.shape, values.tobytes(), raw=True)
            initializer.CopyFrom(raw)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name not in keep:
            value.type.tensor_type.elem_type = target
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = target
        for index, name in enumerate(node.input):
            if name in keep:
                node.input[index] = f"{name}_cast"
    casts = [helper.make_node("Cast", [name], [f"{name}_cast"], to=target) for name in sorted(keep)]
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _recast_weights(path: Path) -> None:
    """The safetensors file at `path` with every float32 tensor in float16."""
    old = read_weight_file(path)
    data = path.read_bytes()
    tensors = {n: ("F16" if t.dtype == "F32" else t.dtype, t.shape) for n, t in old.tensors.items()}

    def values(ref: TensorRef) -> bytes:
        raw = data[ref.offset : ref.offset + ref.length]
        return np.frombuffer(raw, np.float32).astype(np.float16).tobytes() if ref.dtype == "F32" else raw

    with path.open("wb") as file:
        write_weight_file(file, tensors, ((n, values(t)) for n, t in old.tensors.items()), old.metadata)
