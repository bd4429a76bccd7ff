# SPDX-License-Identifier: Apache-2.0
"""The bundle under measurement: its networks' inputs, and what their graphs count."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lamp_trt.benchmarks.bench.options import BenchOptions
from lamp_trt.benchmarks.verify.network_inputs import Arrays, bundle_ids, seeded_inputs
from lamp_trt.engine.backends.backend import parse_device
from lamp_trt.engine.backends.registry import backends, backends_on, choose_backend
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.families import FIRST_FRAME_NETWORKS, LAMP, NETWORKS, SAFETY_CHECKER, VIDEO_NETWORKS
from lamp_trt.engine.networks import IOTensor
from lamp_trt.engine.precompute import HOISTED, networks_beside
from lamp_trt.runtime.cuda.memory import memory_need

USES = {
    "video from an image": VIDEO_NETWORKS,
    "video from a prompt": (*FIRST_FRAME_NETWORKS, *VIDEO_NETWORKS),
}
"""What a bundle is loaded for, and the networks that it takes."""


@dataclass(frozen=True)
class Work:
    """Of one run of a network, counted. bytes_moved: weights and the network's own inputs and outputs, each
    once, which no way of computing it avoids (the weights of a bundle exceed every cache)."""

    flops: int
    bytes_moved: int


@dataclass(frozen=True, eq=False)
class Subject:
    """An open bundle and what is asked about it."""

    bundle: Bundle
    options: BenchOptions

    @property
    def ordinal(self) -> int | None:
        """Of the CUDA device; None for the CPU."""
        return parse_device(self.options.device)

    @property
    def networks(self) -> tuple[str, ...]:
        return tuple(self.bundle.manifest.networks)

    @property
    def makes_videos(self) -> bool:
        return set(VIDEO_NETWORKS) <= set(self.networks)

    @property
    def backends(self) -> tuple[str, ...]:
        """The one that was asked for, or all that run the bundle's precision, but for those that
        `backends_without_engines` names."""
        if self.options.backend != "auto":
            return (self.options.backend,)
        able = (backend.name for backend in backends_on(self.ordinal) if backend.runs(self.bundle))
        return tuple(name for name in able if name not in self.backends_without_engines)

    @cached_property
    def backends_without_engines(self) -> tuple[str, ...]:
        """Backends that compile engines beforehand, and have none for this bundle."""
        folder = self.options.engine_dir or self.bundle.engine_folder
        return tuple(
            backend.name
            for backend in backends()
            if backend.build and not any(folder.glob(f"*.{backend.build.suffix}"))
        )

    @property
    def pipeline_backend(self) -> str:
        """What a pipeline runs on, as `lamp_trt.load` chooses it, and with the same errors."""
        return choose_backend(self.ordinal, self.options.backend, self.bundle, self.options.engine_dir)

    def motion_of(self, network: str) -> str | None:
        return self.bundle.manifest.default_motion if network == LAMP.unet else None

    def weight_bytes(self, network: str) -> int:
        """Of the network's weight file, with one motion."""
        return memory_need(self.bundle.manifest, [network]).weights

    @cached_property
    def work(self) -> dict[str, Work]:
        """By network, counted from the graphs."""
        import onnx

        from lamp_trt.benchmarks.bench.flops import graph_bytes, graph_flops

        counted = {}
        for name in self.networks:
            model = onnx.load(self.bundle.graph_path(name), load_external_data=False)
            weights = sum(weight_bytes for weight_bytes, _ in graph_bytes(model).values())
            arrays = memory_need(self.bundle.manifest, [name]).arrays
            counted[name] = Work(sum(graph_flops(model).values()), weights + arrays)
        return counted

    def inputs(self, network: str) -> Arrays:
        """Arrays for a network: the prompt's token ids, TIMESTEP, an image's range, else normal numbers; the
        same sample in both halves, as guidance has it."""
        return self._arrays(network, self.bundle.network(network).inputs)

    def plain_inputs(self, network: str) -> Arrays:
        """Likewise for the network as PyTorch has it, where nothing is hoisted out of it."""
        precision = self.bundle.network(network).precision
        return self._arrays(network, NETWORKS[network].resolve(self.bundle.manifest.sizes, precision)[0])

    def is_plain(self, network: str) -> bool:
        """Whether nothing is hoisted out of the network, so that it takes PyTorch's inputs."""
        manifest = self.bundle.manifest
        return network in NETWORKS and not (network in HOISTED and networks_beside(manifest, network))

    def _arrays(self, network: str, tensors: tuple[IOTensor, ...]) -> Arrays:
        prompts = ("", self.options.prompt)
        return seeded_inputs(
            tensors,
            self.bundle.manifest.sizes,
            self.options.seed,
            lambda: bundle_ids(self.bundle, network, prompts),
        )

    def summary(self) -> dict[str, Any]:
        """JSON values for a report: neither paths nor names of hosts and users."""
        manifest = self.bundle.manifest
        return {
            "bundle": self.bundle.digest,
            "sizes": dict(manifest.sizes),
            "networks": {name: entry.precision for name, entry in manifest.networks.items()},
            "motions": {name: manifest.files[m.file].size for name, m in manifest.motions.items()},
            "bytes": sum(entry.size for entry in manifest.files.values()),
            "uses": {name: self._use(networks) for name, networks in USES.items() if self._has(networks)},
        }

    def _has(self, networks: tuple[str, ...]) -> bool:
        return set(networks) <= set(self.networks)

    def _use(self, networks: tuple[str, ...]) -> dict[str, Any]:
        """The networks that are loaded together, and the bytes of their weights and arrays."""
        manifest = self.bundle.manifest
        beside = [name for unet in networks if unet in HOISTED for name in networks_beside(manifest, unet)]
        beside += [SAFETY_CHECKER] * (manifest.safety is not None)
        need = memory_need(manifest, [*networks, *beside])
        return {"networks": [*networks, *beside], "weights": need.weights, "arrays": need.arrays}
