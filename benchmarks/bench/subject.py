# SPDX-License-Identifier: Apache-2.0
"""The bundle under measurement: its networks' inputs, and what their graphs count."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.benchmarks.bench.options import BenchOptions
from lamp_trt.engine.backends import DEVICE_ENGINES, ENGINE_SUFFIX, HOST_ENGINES, parse_device
from lamp_trt.engine.bundle import Bundle
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.networks import VIDEO_NETWORKS, IOTensor
from lamp_trt.runtime.memory_plan import memory_need
from lamp_trt.runtime.stages import TokenIds
from lamp_trt.runtime.tokenizer import load_tokenizer

Arrays = dict[str, NDArray[Any]]

TIMESTEP = 501
"""The UNets are timed at one time; their work is the same at every other."""

_TOKENIZERS = {
    "text_encoder": "tokenizer",
    "sdxl_text_encoder": "sdxl_tokenizer",
    "sdxl_text_encoder_2": "tokenizer_2",
}


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

    @classmethod
    def of(cls, bundle: Bundle, options: BenchOptions) -> "Subject":
        """InputError for an unknown device or backend."""
        subject = cls(bundle, options)
        known = HOST_ENGINES if subject.ordinal is None else DEVICE_ENGINES
        if options.backend != "auto" and options.backend not in known:
            raise InputError(f"backend is {options.backend!r}; choose 'auto', {', '.join(known)}.")
        return subject

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
        """The one that was asked for, or all but those that `backends_without_engines` names."""
        if self.options.backend != "auto":
            return (self.options.backend,)
        known = HOST_ENGINES if self.ordinal is None else DEVICE_ENGINES
        return tuple(name for name in known if name not in self.backends_without_engines)

    @cached_property
    def backends_without_engines(self) -> tuple[str, ...]:
        """Backends that compile engines beforehand, and have none for this bundle."""
        folder = self.options.engine_dir or self.bundle.engine_folder
        return tuple(name for name, suffix in ENGINE_SUFFIX.items() if not any(folder.glob(f"*{suffix}")))

    def motion_of(self, network: str) -> str | None:
        return self.bundle.manifest.default_motion if network == "lamp_unet" else None

    def weight_bytes(self, network: str) -> int:
        """Of the network's weight file, with one motion."""
        return memory_need(self.bundle.manifest, [network]).weights

    @cached_property
    def work(self) -> dict[str, Work]:
        """By network, counted from the graphs."""
        import onnx

        from lamp_trt.benchmarks.flops import graph_bytes, graph_flops

        counted = {}
        for name in self.networks:
            model = onnx.load(self.bundle.graph_path(name), load_external_data=False)
            weights = sum(weight_bytes for weight_bytes, _ in graph_bytes(model).values())
            arrays = memory_need(self.bundle.manifest, [name]).arrays
            counted[name] = Work(sum(graph_flops(model).values()), weights + arrays)
        return counted

    def inputs(self, network: str) -> Arrays:
        """Arrays of the network's shapes: the prompt's token ids, TIMESTEP, an image's range, else normal."""
        rng = np.random.default_rng(self.options.seed)
        return {
            tensor.name: self._input(network, tensor, rng) for tensor in self.bundle.network(network).inputs
        }

    def _input(self, network: str, tensor: IOTensor, rng: np.random.Generator) -> NDArray[Any]:
        match tensor.name:
            case "input_ids":
                return self._prompt_ids(_TOKENIZERS[network])
            case "timestep":
                return np.full(tensor.shape, TIMESTEP, tensor.dtype)
            case "time_ids":
                sizes = self.bundle.manifest.sizes
                size = [sizes["first_frame_height"], sizes["first_frame_width"]]
                return np.tile(np.array([*size, 0, 0, *size], tensor.dtype), (tensor.shape[0], 1))
            case "image":
                return rng.uniform(-1, 1, tensor.shape).astype(tensor.dtype)
        return rng.standard_normal(tensor.shape, np.float32).astype(tensor.dtype)

    def _prompt_ids(self, tokenizer: str) -> TokenIds:
        tokens = self.bundle.manifest.sizes["tokens"]
        tokenize = load_tokenizer(self.bundle.tokenizer_folder(tokenizer), tokens)
        return np.concatenate([tokenize(text).input_ids for text in ("", self.options.prompt)])

    def summary(self) -> dict[str, Any]:
        """JSON values for a report: neither paths nor names of hosts and users."""
        manifest = self.bundle.manifest
        return {
            "bundle": self.bundle.digest,
            "sizes": dict(manifest.sizes),
            "networks": {name: entry.precision for name, entry in manifest.networks.items()},
            "motions": {name: manifest.files[m.file].size for name, m in manifest.motions.items()},
            "bytes": sum(entry.size for entry in manifest.files.values()),
        }
