# SPDX-License-Identifier: Apache-2.0
"""Export one network at full size, without weights, and print what it cost as JSON. Run in a process of its
own: `python full_size_graph.py NETWORK PRECISION`."""

import json
import math
import resource
import sys
import time

from published import config_of, published_shapes

from lamp_trt.engine.networks import COMPONENT_PRECISION, NETWORKS, PRECISIONS
from lamp_trt.engine.weights import DTYPE_SIZES, TensorRef
from lamp_trt.export.convert import DTYPES, STORED_DTYPES
from lamp_trt.export.networks import empty_network
from lamp_trt.export.onnx_export import Location, export_graph
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


def main(network: str, precision: str) -> None:
    configs = {name: config_of(name) for name in COMPONENTS}
    sizes = video_sizes(configs, 320, 512, 16)
    sizes |= first_frame_sizes(configs, sizes, None, None)
    spec = NETWORKS[network]
    kept = COMPONENT_PRECISION.get(spec.component, precision)
    assert kept in PRECISIONS
    start = time.monotonic()
    module = empty_network(network, spec.component, configs[spec.component], DTYPES[kept])
    places = locations(spec.component, STORED_DTYPES[kept])
    graph = export_graph(module, *spec.resolve(sizes, kept), places)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {"seconds": time.monotonic() - start, "peak_bytes": peak_kib * 1024, "graph_bytes": len(graph)}
    print(json.dumps({"network": network, "precision": kept, **figures}))


if __name__ == "__main__":
    main(*sys.argv[1:])
