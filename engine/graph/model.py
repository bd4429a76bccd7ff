# SPDX-License-Identifier: Apache-2.0
"""A bundle's graphs as ModelProtos without weights, and the files that hold their weights.

onnx is imported when a graph is read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.bundle.paths import weights_path
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.families import LAMP


@dataclass(frozen=True)
class ExternalTensor:
    """An initializer whose bytes are in a file of the bundle."""

    name: str
    file: str
    offset: int
    length: int


def bundle_model(bundle: Bundle, network: str, motion: str | None) -> Any:
    """The network's ModelProto without weights; with `motion`, pointing at that motion's tensors."""
    import onnx

    from lamp_trt.engine.graph.locate import point_at_motion

    model = onnx.load_from_string(bundle.graph_bytes(network))
    if motion is not None:
        files = (weights_path(bundle.network(network).component), bundle.manifest.motions[motion].file)
        base, own = ((file, read_weight_file(bundle.path_of(file))) for file in files)
        point_at_motion(model, base, own)
    return model


def external_tensors(model: Any) -> Iterator[ExternalTensor]:
    """The initializers of `model` that are stored in files."""
    for initializer in model.graph.initializer:
        place = {entry.key: entry.value for entry in initializer.external_data}
        if place:
            yield ExternalTensor(
                initializer.name, place["location"], int(place["offset"]), int(place["length"])
            )


def shared_file(bundle: Bundle, motion: str) -> str:
    """The file of the LAMP UNet's tensors that all motions share; a full motion has its own."""
    entry = bundle.manifest.motions[motion]
    return entry.file if entry.kind == "full" else weights_path(bundle.network(LAMP.unet).component)


def motion_arrays(
    bundle: Bundle, motion: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.generic]]:
    """A motion's tensors in the shapes of `take_motion_as_inputs`, views of the mapped file."""
    arrays = read_weight_file(bundle.motion_path(motion)).arrays()
    return {name: arrays[name].reshape(shape) for name, shape in shapes.items()}
