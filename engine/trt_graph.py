# SPDX-License-Identifier: Apache-2.0
"""TensorRT's copy of a network's graph, the weights that it points at, and what identifies it.

Nothing of it is written to disk: there the graph stays plain ONNX, which every other tool can read.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.bundle import Bundle
from lamp_trt.engine.errors import BundleError
from lamp_trt.engine.ort_session import bundle_model


@dataclass(frozen=True)
class ExternalTensor:
    """An initializer whose bytes lie in a file of the bundle."""

    name: str
    file: str
    offset: int
    length: int


def tensorrt_model(bundle: Bundle, network: str, motion: str | None) -> Any:
    """The network's ModelProto as TensorRT parses it; with `motion`, pointing at that motion's tensors.

    TensorRT imports Attention as one block that is not to be taken apart, and gives up where it has no fused
    kernel for one (seen: head width 8 in fp32). TRT_decomposable allows it to; other tools refuse the attribute.
    """
    from onnx import helper

    model = bundle_model(bundle, network, motion)
    for node in model.graph.node:
        if node.op_type == "Attention" and not node.domain:
            node.attribute.append(helper.make_attribute("TRT_decomposable", 1))
    return model


def external_tensors(model: Any) -> Iterator[ExternalTensor]:
    """The initializers of `model` that lie in files."""
    for initializer in model.graph.initializer:
        place = {entry.key: entry.value for entry in initializer.external_data}
        if place:
            yield ExternalTensor(
                initializer.name, place["location"], int(place["offset"]), int(place["length"])
            )


def graph_digest(model: Any) -> str:
    """sha256 of `model` without the places of its weights, which move when motions change."""
    copy = type(model)()
    copy.CopyFrom(model)
    for initializer in copy.graph.initializer:
        del initializer.external_data[:]
    return hashlib.sha256(copy.SerializeToString(deterministic=True)).hexdigest()


class MappedFiles:
    """Files of a bundle, mapped when first asked for. The addresses are good while this object lives."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._maps: dict[str, NDArray[np.uint8]] = {}

    def address(self, tensor: ExternalTensor) -> int:
        """Where a tensor's bytes are. BundleError if its file does not reach so far."""
        if tensor.file not in self._maps:
            self._maps[tensor.file] = np.memmap(self._bundle.path_of(tensor.file), np.uint8, mode="r")
        mapped = self._maps[tensor.file]
        if tensor.offset < 0 or tensor.offset + tensor.length > len(mapped):
            raise BundleError(
                f"{tensor.name} lies beyond the end of {tensor.file} in {self._bundle.path}: build it anew"
            )
        return int(mapped.ctypes.data) + tensor.offset
