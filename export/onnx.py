# SPDX-License-Identifier: Apache-2.0
"""Export of a torch module to an ONNX graph that references its weights in the bundle's safetensors files.

Graphs are exported without weights in memory. Every initializer that is a parameter becomes a reference
(file, offset, length) under its checkpoint name. Parameter values are hidden from the optimizer, which would
otherwise merge equal parameters and drop zero ones.
"""

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import nn

from lamp_trt.engine.bundle.weights import TensorRef
from lamp_trt.engine.dtypes import BY_STORED
from lamp_trt.engine.errors import CheckpointError
from lamp_trt.engine.networks import IOTensor

OPSET = 23


@dataclass(frozen=True)
class Location:
    """Location of one tensor: a file relative to the graph's folder, and the place in that file."""

    file: str
    ref: TensorRef


def export_graph(
    network: nn.Module,
    inputs: tuple[IOTensor, ...],
    outputs: tuple[IOTensor, ...],
    locations: Mapping[str, Location],
    *,
    metadata: Mapping[str, str] | None = None,
    weights_prefix: str = "model.",
) -> bytes:
    """Export `network` at the static shapes of `inputs` and point its parameters at `locations`.

    network          a wrapper of export/networks.py; the values of its parameters are not read
    locations        one entry for each parameter of the network, by name without `weights_prefix`
    metadata         goes into the model's metadata_props
    returns          a serialized ModelProto (opset 23); equal inputs give equal bytes
    Raises CheckpointError if a parameter has no location, or one of another dtype or element count.
    """
    arguments = tuple(torch.zeros(t.shape, dtype=getattr(torch, t.dtype)) for t in inputs)
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            network,
            arguments,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            input_names=[t.name for t in inputs],
            output_names=[t.name for t in outputs],
        )
    assert program is not None
    model = program.model
    parameters = {name for name, _ in network.named_parameters()}
    with _opaque(model, parameters), _quiet_exporter():
        _simplify(model)
    _attach(model, parameters, weights_prefix, locations)
    _strip(model)
    model.metadata_props.update(metadata or {})
    _check_io(model, inputs, outputs)
    serialized: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return serialized


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings: it emits one per parameter without a value."""
    loggers = [logging.getLogger(n) for n in ("onnx_ir", "onnxscript", "torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _simplify(model: ir.Model) -> None:
    """Fold constants and apply the rewrite rules that change these networks.

    The optimizer's full rule set takes 18 s on the LAMP UNet for the same graph, and has rules that drop zero
    biases.
    """
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer
    from onnxscript.rewriter import RewritePass
    from onnxscript.rewriter.rules import common as rules

    optimizer.fold_constants_ir(model)
    used = [
        rules.no_op_cast_rule,
        rules.no_op_expand_rule,
        rules.mul_by_1_rule,
        rules.transpose_transpose_rule,
        rules.reshape_reshape_rule,
        rules.unsqueeze_unsqueeze_rule,
        rules.normalize_pad_format_conv_rule,
        rules.fuse_pad_into_conv_rule,
    ]
    for simplify in (
        RewritePass(used),
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
    ):
        simplify(model)


@contextlib.contextmanager
def _opaque(model: ir.Model, parameters: set[str]) -> Iterator[None]:
    """Hide the values of `parameters` from the optimizer inside the block.

    Raises RuntimeError if the optimizer removed any of them.
    """
    hidden = {n: v for n, v in model.graph.initializers.items() if n in parameters}
    values = {name: value.const_value for name, value in hidden.items()}
    for value in hidden.values():
        value.const_value = None
    try:
        yield
    finally:
        for name, value in hidden.items():
            value.const_value = values[name]
    lost = [name for name in hidden if name not in model.graph.initializers]
    if lost:
        raise RuntimeError(f"the ONNX optimizer removed {len(lost)} parameters, first {lost[0]}")


def _attach(model: ir.Model, parameters: set[str], prefix: str, locations: Mapping[str, Location]) -> None:
    for name in [n for n in model.graph.initializers if n in parameters]:
        key = name.removeprefix(prefix)
        value = model.graph.initializers[name]
        assert value.const_value is not None
        dtype, shape = value.const_value.dtype, value.const_value.shape
        if key not in locations:
            raise CheckpointError(f"the weights lack the tensor {key}, which the network needs.")
        file, ref = locations[key].file, locations[key].ref
        stored = ir.DataType[BY_STORED[ref.dtype].onnx]
        if stored != dtype or ref.length != math.prod(shape.numpy()) * dtype.itemsize:
            raise CheckpointError(
                f"tensor {key} is {ref.dtype} {list(ref.shape)} in {file}, "
                f"the network needs {dtype.name} {list(shape.numpy())}."
            )
        value.const_value = ir.ExternalTensor(
            file, ref.offset, ref.length, dtype, shape=ir.Shape(shape.numpy()), name=key
        )
        value.name = key


def _strip(model: ir.Model) -> None:
    """Remove the exporter's metadata (nine tenths of the graph's size)."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.producer_name, model.producer_version = "lamp-trt", None
    for value in (*model.graph.initializers.values(), *model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


def _check_io(model: ir.Model, inputs: tuple[IOTensor, ...], outputs: tuple[IOTensor, ...]) -> None:
    for wanted, values in ((inputs, model.graph.inputs), (outputs, model.graph.outputs)):
        for tensor, value in zip(wanted, values, strict=True):
            found = (value.name, tuple(value.shape or ()), value.dtype and value.dtype.numpy().name)
            assert found == (tensor.name, tensor.shape, tensor.dtype), (found, tensor)
