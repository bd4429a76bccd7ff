# SPDX-License-Identifier: Apache-2.0
"""One network at full size through TensorRT's parser, without a GPU or real weights. Run in a process
of its own, prints what it cost as JSON: `python full_size_plan.py FOLDER NETWORK parse|build`.

The bundle that it makes holds one fp16 network. For the parser its weight files are holes, zeros that take no
disk; for the builder, which stores equal weights once, they are filled with noise.
"""

import json
import os
import resource
import sys
import threading
import time
from pathlib import Path

import numpy as np
from full_size_graph import full_size_sizes
from test_full_size import anonymous_bytes

from lamp_trt.engine.backends.tensorrt import trt
from lamp_trt.engine.backends.tensorrt.build import build_engines
from lamp_trt.engine.backends.tensorrt.network import parse_network
from lamp_trt.engine.backends.tensorrt.options import TensorRtOptions
from lamp_trt.engine.bundle.manifest import FileEntry, Manifest, MotionEntry, NetworkEntry
from lamp_trt.engine.bundle.paths import graph_path, motion_path, weights_path
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.networks import COMPONENT_PRECISION, NETWORKS, Precision, is_motion_tensor
from lamp_trt.export.convert import DTYPES, STORED_DTYPES
from lamp_trt.export.networks import empty_module, wrap
from lamp_trt.export.onnx import Location, export_graph
from lamp_trt.export.published import config_of, published_shapes, write_sparse

MOTION = "rain"
NOISE_VALUES = 1_000_003
"""A prime, so that no two tensors begin with the same noise."""


def sparse_bundle(folder: Path, network: str) -> Bundle:
    """A bundle of one full-size fp16 network, the LAMP UNet with a motion. Its digests are not real."""
    spec = NETWORKS[network]
    precision: Precision = COMPONENT_PRECISION.get(spec.component, "fp16")
    shapes = {
        name.removeprefix("text_model.") if spec.component.endswith("text_encoder") else name: shape
        for name, shape in published_shapes(spec.component).items()
    }
    files = {weights_path(spec.component): shapes}
    if network == "lamp_unet":
        moved = {name: shape for name, shape in shapes.items() if is_motion_tensor(name)}
        shared = {name: shape for name, shape in shapes.items() if name not in moved}
        files = {weights_path(spec.component): shared, motion_path(MOTION): moved}
    places = {}
    for file, tensors in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        write_sparse(folder / file, tensors, STORED_DTYPES[precision])
        found = read_weight_file(folder / file).tensors
        places |= {name: Location(file, ref) for name, ref in found.items()}
    module = empty_module(spec.component, config_of(spec.component), DTYPES[precision])
    inputs, outputs = spec.resolve(full_size_sizes(), precision)
    graph = export_graph(wrap(network, module), inputs, outputs, places)
    (folder / graph_path(network)).write_bytes(graph)
    sizes = {file: (folder / file).stat().st_size for file in (*files, graph_path(network))}
    motions = {MOTION: MotionEntry(motion_path(MOTION), "motion", "0" * 64)} if len(files) == 2 else {}
    manifest = Manifest(
        networks={network: NetworkEntry(graph_path(network), spec.component, precision, inputs, outputs)},
        sizes=full_size_sizes(),
        scheduler={},
        scaling_factors={},
        motions=motions,
        default_motion=next(iter(motions), None),
        files={file: FileEntry(size, "0" * 64, "") for file, size in sizes.items()},
    )
    return Bundle(folder, manifest, "0" * 64, {})


def fill(path: Path) -> None:
    """Put normal noise of deviation 0.02 behind the header of an fp16 weight file."""
    rng = np.random.default_rng(0)
    block = (0.02 * rng.standard_normal(NOISE_VALUES, np.float32)).astype(np.float16).tobytes()
    start = min(ref.offset for ref in read_weight_file(path).tensors.values())
    left = path.stat().st_size - start
    with path.open("r+b") as file:
        file.seek(start)
        while left:
            left -= file.write(block[:left])


class PeakMemory:
    """By how much this process's anonymous memory grows while the block runs, at most, in bytes; mapped files
    are not counted, for the kernel may drop them."""

    def __enter__(self) -> "PeakMemory":
        self.nbytes, self._done = 0, threading.Event()
        self._before = anonymous_bytes(os.getpid())
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.nbytes = max(self.nbytes, anonymous_bytes(os.getpid()) - self._before)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def main(folder: str, network: str, what: str) -> None:
    bundle = sparse_bundle(Path(folder), network)
    weights = sum(e.size for name, e in bundle.manifest.files.items() if name.endswith(".safetensors"))
    figures = {"network": network, "weight_bytes": weights}
    start = time.monotonic()
    parsed = parse_network(bundle, trt.tensorrt(), network, bundle.manifest.default_motion)
    figures |= {"parse_seconds": time.monotonic() - start, "layers": parsed.network.num_layers}
    figures["marked"] = parsed.mark_motion() if network == "lamp_unet" else 0
    del parsed
    if what == "build":
        for name in bundle.manifest.files:
            if name.endswith(".safetensors"):
                fill(bundle.path / name)
        start = time.monotonic()
        with PeakMemory() as peak:
            (plan,) = build_engines(bundle, TensorRtOptions(networks=(network,)))
        figures |= {"build_seconds": time.monotonic() - start, "peak_anonymous_bytes": peak.nbytes}
        figures["plan_bytes"] = plan.path.stat().st_size
    figures["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
