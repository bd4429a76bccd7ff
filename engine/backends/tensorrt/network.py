# SPDX-License-Identifier: Apache-2.0
"""A bundle's network as a TensorRT network definition: parsed, checked against the manifest, marked for
refit."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from lamp_trt.engine.backends.tensorrt import trt
from lamp_trt.engine.backends.tensorrt.graph import placed_weights, tensorrt_model
from lamp_trt.engine.backends.tensorrt.options import ShapeRange, shape_text
from lamp_trt.engine.backends.tensorrt.refit import PlacedWeights
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.dtypes import DTYPES
from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.engine.graph.model import external_tensors
from lamp_trt.engine.networks import IOTensor


@dataclass(frozen=True)
class ParsedNetwork:
    """A TensorRT network definition, which refers to `weights` until it is compiled."""

    module: ModuleType
    name: str
    builder: Any
    network: Any
    parser: Any
    weights: PlacedWeights
    motion_tensors: tuple[str, ...]

    def mark_motion(self) -> int:
        """Mark exactly the motion tensors refittable; return their number. EngineError if TensorRT refuses
        one."""
        refused = [name for name in self.motion_tensors if not self.network.mark_weights_refittable(name)]
        if refused or not self.motion_tensors:
            raise EngineError(
                f"TensorRT does not know {len(refused)} of {self.name}'s {len(self.motion_tensors)} motion "
                f"tensors, first {refused[:1]}: build the bundle again, or engines with --no-refit."
            )
        return len(self.motion_tensors)


def parse_network(bundle: Bundle, module: ModuleType, name: str, motion: str | None) -> ParsedNetwork:
    """Parse a bundle's network. EngineError if its inputs and outputs are not the manifest's.

    motion: the motion whose tensors the LAMP UNet gets.
    """
    entry = bundle.network(name)
    model = tensorrt_model(bundle, name, motion)
    motion_file = None if motion is None else bundle.manifest.motions[motion].file
    logger, weights = trt.logger(module), placed_weights(bundle, model)
    logger.errors.clear()
    builder = module.Builder(logger)
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = module.OnnxParser(network, logger)
    tensors = list(external_tensors(model))
    parsed = parser.load_model_proto(model.SerializeToString())
    for tensor in tensors:
        address = weights.tensors[tensor.name].address
        parsed = parsed and parser.load_initializer(tensor.name, address, tensor.length)
        if not parsed:
            raise EngineError(
                f"TensorRT does not take {tensor.name} of {name}: {trt.taken_errors(module)}; graph and "
                f"weights do not match, build {bundle.path} again."
            )
    if not (parsed and parser.parse_model_proto()):
        raise EngineError(
            f"{trt.compiler(module)} does not take the graph of {name}: "
            f"{parser_errors(parser) or trt.taken_errors(module)}"
        )
    for kind, expected, given in (
        ("inputs", entry.inputs, [network.get_input(i) for i in range(network.num_inputs)]),
        ("outputs", entry.outputs, [network.get_output(i) for i in range(network.num_outputs)]),
    ):
        check_io(module, f"the {kind} of {name}", expected, given)
    names = tuple(tensor.name for tensor in tensors if tensor.file == motion_file)
    return ParsedNetwork(module, name, builder, network, parser, weights, names)


def parser_errors(parser: Any) -> str:
    """The parser's errors, each with its node and operator."""
    errors = (parser.get_error(i) for i in range(parser.num_errors))
    return "; ".join(f"node {e.node_name()} ({e.node_operator()}): {e.desc()}" for e in errors)


def check_io(module: ModuleType, what: str, expected: tuple[IOTensor, ...], given: list[Any]) -> None:
    """EngineError unless TensorRT's tensors match the manifest's; dynamic axes (-1) match any size."""
    names = {trt.data_type(module, dtype): dtype.name for dtype in DTYPES if dtype.tensorrt}
    found = {t.name: (names.get(t.dtype, str(t.dtype)), tuple(t.shape)) for t in given}
    wanted = {t.name: (t.dtype, t.shape) for t in expected}
    fits = found.keys() == wanted.keys() and all(
        dtype == wanted[name][0]
        and len(shape) == len(wanted[name][1])
        and all(axis in (-1, size) for axis, size in zip(shape, wanted[name][1], strict=True))
        for name, (dtype, shape) in found.items()
    )
    if not fits:
        raise EngineError(
            f"{what} are {found} for TensorRT, the bundle says {wanted}: build the bundle again."
        )


def add_profile(builder: Any, config: Any, network: Any, ranges: list[ShapeRange]) -> None:
    """Add an optimization profile if the network has dynamic axes. InputError for ranges that do not match
    it."""
    wanted = {profile.input: profile for profile in ranges}
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    open_inputs = {t.name for t in inputs if -1 in tuple(t.shape)}
    for tensor in inputs:
        shape, profile = tuple(tensor.shape), wanted.get(tensor.name)
        if profile is None and tensor.name in open_inputs:
            raise InputError(f"{tensor.name} has open axes, {shape_text(shape)}: give its --profile.")
        if profile is not None and not all(
            len(shape) == len(given) and all(a in (-1, b) for a, b in zip(shape, given, strict=False))
            for given in (profile.least, profile.optimal, profile.greatest)
        ):
            raise InputError(
                f"profile {profile} does not fit the graph, whose {tensor.name} is {shape_text(shape)}"
                f"{'' if tensor.name in open_inputs else ' and nothing else'}: sizes belong to the bundle."
            )
    if not open_inputs:
        return
    optimization_profile = builder.create_optimization_profile()
    for name in sorted(open_inputs):
        profile = wanted[name]
        optimization_profile.set_shape(name, profile.least, profile.optimal, profile.greatest)
    config.add_optimization_profile(optimization_profile)
