# SPDX-License-Identifier: Apache-2.0
"""The bundle under measurement: inputs of its networks, and the counted work of its graphs."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lamp_trt.benchmarks.bench.options import BenchOptions
from lamp_trt.benchmarks.verify.network_inputs import Arrays, bundle_ids, seeded_inputs
from lamp_trt.engine.backends.backend import Backend, parse_device
from lamp_trt.engine.backends.registry import backends, backends_on, choose_backend
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.families import FIRST_FRAME_NETWORKS, LAMP, NETWORKS, SAFETY_CHECKER, VIDEO_NETWORKS
from lamp_trt.engine.networks import IOTensor
from lamp_trt.engine.precompute import precompute_networks
from lamp_trt.runtime.cuda.memory import memory_need

USES = {
    "video from an image": VIDEO_NETWORKS,
    "video from a prompt": (*FIRST_FRAME_NETWORKS, *VIDEO_NETWORKS),
}
"""Uses of a bundle, and the networks that each needs."""


@dataclass(frozen=True)
class Work:
    """Counted work of one run of a network. bytes_moved: weights, inputs and outputs, each once, which
    every implementation moves (the weights of a bundle exceed every cache)."""

    flops: int
    bytes_moved: int


@dataclass(frozen=True, eq=False)
class Subject:
    """An open bundle and the options of its measurement."""

    bundle: Bundle
    options: BenchOptions

    @property
    def ordinal(self) -> int | None:
        """Ordinal of the CUDA device; None for the CPU."""
        return parse_device(self.options.device)

    @property
    def networks(self) -> tuple[str, ...]:
        return tuple(self.bundle.manifest.networks)

    @property
    def makes_videos(self) -> bool:
        return set(VIDEO_NETWORKS) <= set(self.networks)

    @property
    def backends(self) -> tuple[str, ...]:
        """The requested backend. Else all that run the bundle as asked and, if they compile engines,
        have some for this bundle or else are ready."""
        if self.options.backend != "auto":
            return (self.options.backend,)
        able = [backend for backend in backends_on(self.ordinal) if self._runs(backend)]
        return tuple(backend.name for backend in able if self._can_be_measured(backend))

    def _can_be_measured(self, backend: Backend) -> bool:
        if backend.build:
            return backend.name not in self.backends_without_engines
        runner = backend.on(self.ordinal)
        return runner is not None and runner.ready(self.bundle, self._engine_folder)

    @property
    def _engine_folder(self) -> Path:
        return self.options.engine_dir or self.bundle.engine_folder

    def _runs(self, backend: Backend) -> bool:
        precision = self.options.cpu_precision
        return backend.runs(self.bundle) and backend.computes(self.bundle, precision)

    @cached_property
    def backends_without_engines(self) -> tuple[str, ...]:
        """Backends that need compiled engines and have none for this bundle."""
        return tuple(
            backend.name
            for backend in backends()
            if backend.build and not any(self._engine_folder.glob(f"*.{backend.build.suffix}"))
        )

    @property
    def pipeline_backend(self) -> str:
        """Backend of a pipeline, chosen as by `lamp_trt.load`, with the same errors."""
        options = self.options
        return choose_backend(
            self.ordinal, options.backend, self.bundle, options.engine_dir, options.cpu_precision
        )

    def motion_of(self, network: str) -> str | None:
        return self.bundle.manifest.default_motion if network == LAMP.unet else None

    def weight_bytes(self, network: str) -> int:
        """Return the bytes of the network's weights, with one motion."""
        return memory_need(self.bundle.manifest, [network]).weights

    @cached_property
    def work(self) -> dict[str, Work]:
        """Counted work of each network's graph."""
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
        """Return arrays for a network: the prompt's token ids, TIMESTEP, an image's range, else normal
        numbers. Both halves of `sample` are equal, as with guidance."""
        return self._arrays(network, self.bundle.network(network).inputs)

    def original_inputs(self, network: str) -> Arrays:
        """Return such arrays for the network with nothing hoisted out of it, as PyTorch has it."""
        precision = self.bundle.network(network).precision
        return self._arrays(network, NETWORKS[network].resolve(self.bundle.manifest.sizes, precision)[0])

    def is_plain(self, network: str) -> bool:
        """Return whether nothing is hoisted out of the network, so that it takes PyTorch's inputs."""
        manifest = self.bundle.manifest
        return network in NETWORKS and not precompute_networks(manifest, network)

    def _arrays(self, network: str, tensors: tuple[IOTensor, ...]) -> Arrays:
        prompts = ("", self.options.prompt)
        return seeded_inputs(
            tensors,
            self.bundle.manifest.sizes,
            self.options.seed,
            lambda: bundle_ids(self.bundle, network, prompts),
        )

    def summary(self) -> dict[str, Any]:
        """Return JSON values for a report, without paths and names of hosts and users."""
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
        """Return the networks that are loaded together, and the bytes of their weights and arrays."""
        manifest = self.bundle.manifest
        precompute = [name for network in networks for name in precompute_networks(manifest, network)]
        loaded = [*networks, *precompute, *[SAFETY_CHECKER] * (manifest.safety is not None)]
        need = memory_need(manifest, loaded)
        return {"networks": loaded, "weights": need.weights, "arrays": need.arrays}
