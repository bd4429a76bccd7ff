# SPDX-License-Identifier: Apache-2.0
"""Networks exported at full size, without weights. As a program, which prints what one cost as JSON:
`python full_size_graph.py NETWORK PRECISION`."""

import json
import math
import resource
import sys
import time

from torch import nn

from lamp_trt.engine.bundle.weights import DTYPE_SIZES, TensorRef
from lamp_trt.engine.networks import COMPONENT_PRECISION, NETWORKS, PRECISIONS, Precision
from lamp_trt.export.convert import DTYPES, STORED_DTYPES
from lamp_trt.export.networks import LampUnetNetwork, empty_module, wrap
from lamp_trt.export.onnx import Location, export_graph
from lamp_trt.export.published import config_of, published_shapes
from lamp_trt.export.sizes import first_frame_sizes, video_sizes

COMPONENTS = (
    "text_encoder",
    "vae",
    "unet",
    "sdxl_text_encoder",
    "sdxl_text_encoder_2",
    "sdxl_unet",
    "sdxl_vae",
)


def locations(component: str, stored: str) -> dict[str, Location]:
    """Places in a file that need not exist."""
    places, offset = {}, 0
    for name, shape in published_shapes(component).items():
        if component.endswith("text_encoder"):
            name = name.removeprefix("text_model.")
        length = math.prod(shape) * DTYPE_SIZES[stored]
        places[name] = Location("weights.safetensors", TensorRef(stored, shape, offset, length))
        offset += length
    return places


def full_size_sizes() -> dict[str, int]:
    """Of the default build: 512x320, 16 frames, first frame 1024x640."""
    configs = {name: config_of(name) for name in COMPONENTS}
    sizes = video_sizes(configs, 320, 512, 16)
    return sizes | first_frame_sizes(configs, sizes, None, None)


def full_size_graph(network: str, precision: Precision, official: bool = False) -> bytes:
    """A serialized graph; `official`: of the LAMP UNet in the official formulation."""
    spec = NETWORKS[network]
    kept = COMPONENT_PRECISION.get(spec.component, precision)
    module = empty_module(spec.component, config_of(spec.component), DTYPES[kept])
    exported: nn.Module = LampUnetNetwork(module) if official else wrap(network, module)
    places = locations(spec.component, STORED_DTYPES[kept])
    return export_graph(exported, *spec.resolve(full_size_sizes(), kept), places)


def main(network: str, precision: str) -> None:
    assert precision in PRECISIONS
    start = time.monotonic()
    graph = full_size_graph(network, precision)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {"seconds": time.monotonic() - start, "peak_bytes": peak_kib * 1024, "graph_bytes": len(graph)}
    print(json.dumps({"network": network, "precision": precision, **figures}))


if __name__ == "__main__":
    main(*sys.argv[1:])
