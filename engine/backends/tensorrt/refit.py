# SPDX-License-Identifier: Apache-2.0
"""Refit of loaded TensorRT engines: a motion's weights, or those omitted from a stripped plan.

A switch always writes every tensor of the motion and never a difference, so that the result does not depend
on earlier motions. The engine is built with exactly the motion's tensors refittable, under their names in the
checkpoint. Unproven: no GPU has run this module yet.
"""

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any
from weakref import finalize

import numpy as np

from lamp_trt.engine.backends.backend import Residence
from lamp_trt.engine.backends.cuda.calls import cuda, release
from lamp_trt.engine.backends.tensorrt.trt import data_type
from lamp_trt.engine.bundle.weights import WeightFile
from lamp_trt.engine.dtypes import BY_STORED
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.networks import is_motion_tensor

log = logging.getLogger("lamp_trt")


class RefitFailed(EngineError):
    """A refit failed after it began: the engine may hold a mixture of old and new weights."""


@dataclass(frozen=True)
class PlacedTensor:
    """`count` values at an address; dtype: name in safetensors files."""

    dtype: str
    address: int
    count: int


@dataclass(frozen=True, eq=False)
class PlacedWeights:
    """Tensors by name, on the host or the device, in memory that `owner` keeps."""

    tensors: Mapping[str, PlacedTensor]
    on_device: bool
    owner: Any


def motion_weights(file: WeightFile, residence: Residence = "mapped") -> PlacedWeights:
    """The motion tensors of a motion's file.

    "pinned" and "device" copy the file once (0.5 GB at full size), so that a switch does not read the disk,
    nor, on the device, use the bus. EngineError if memory is insufficient.
    """
    mapped = np.memmap(file.path, np.uint8, mode="r")
    copy = None if residence == "mapped" else _CudaCopy(mapped, residence == "device")
    base = copy.address if copy else mapped.ctypes.data
    tensors = {
        name: PlacedTensor(ref.dtype, base + ref.offset, prod(ref.shape))
        for name, ref in file.tensors.items()
        if is_motion_tensor(name)
    }
    return PlacedWeights(tensors, residence == "device", copy or mapped)


def show_motion(trt: Any, engine: Any, logger: Any, weights: PlacedWeights) -> None:
    """Write a motion's weights into `engine` synchronously; no work may be pending on it.

    EngineError if the engine's tensors are not the motion's: the engine is unchanged. RefitFailed if TensorRT
    fails during the refit: the engine is unusable.
    """
    refitter = trt.Refitter(engine, logger)
    _check_names(set(refitter.get_all_weights()), set(weights.tensors))
    _refit(trt, refitter, weights.tensors, weights)


def restore_weights(trt: Any, engine: Any, logger: Any, weights: PlacedWeights) -> None:
    """Write the omitted weights into an engine from a stripped plan; raises as `show_motion`."""
    refitter = trt.Refitter(engine, logger)
    missing = refitter.get_missing_weights()
    if unknown := [name for name in missing if name not in weights.tensors]:
        raise EngineError(
            f"the stripped plan lacks {unknown[0]!r}, which the bundle does not hold: build it again, "
            "without --weight-stripped."
        )
    _refit(trt, refitter, missing, weights)


def _refit(trt: Any, refitter: Any, names: Collection[str], weights: PlacedWeights) -> None:
    start = time.monotonic()
    location = trt.TensorLocation.DEVICE if weights.on_device else trt.TensorLocation.HOST
    for name in names:
        tensor = weights.tensors[name]
        dtype = data_type(trt, BY_STORED[tensor.dtype])
        wanted = refitter.get_weights_prototype(name)
        if (wanted.dtype, wanted.size) != (dtype, tensor.count):
            raise EngineError(
                f"{name} is {tensor.count} values of {dtype}, the engine takes {wanted.size} of "
                f"{wanted.dtype}: it was built from another bundle. Build the engines again."
            )
        if not refitter.set_named_weights(name, trt.Weights(dtype, tensor.address, tensor.count), location):
            raise EngineError(f"TensorRT refuses new values for {name}; the engine is unchanged.")
    if missing := refitter.get_missing_weights():
        raise EngineError(
            f"TensorRT fused replaceable tensors with {len(missing)} others, {missing[0]!r} among them, "
            "which are not at hand. Build this network without refit: lamp-trt build … --no-refit"
        )
    if not refitter.refit_cuda_engine():
        raise RefitFailed("TensorRT failed to replace an engine's weights, which is unusable now.")
    log.debug("%d tensors replaced in %.3f s", len(names), time.monotonic() - start)


def _check_names(refittable: set[str], given: set[str]) -> None:
    if refittable == given:
        return
    absent, strange = sorted(given - refittable), sorted(refittable - given)
    example = f"{absent[0]} cannot be replaced" if absent else f"{strange[0]} is not a motion tensor"
    raise EngineError(
        f"the engine lets {len(refittable)} tensors be replaced, the motion has {len(given)}; {example}. "
        "It was built by another version or from another bundle: build the engines again."
    )


class _CudaCopy:
    """A copy of bytes in page-locked host memory or on the device, freed with the object."""

    def __init__(self, source: np.ndarray[Any, np.dtype[np.uint8]], on_device: bool) -> None:
        from cuda.bindings.runtime import cudaMemcpyKind as Kind

        allocate, free = ("cudaMalloc", "cudaFree") if on_device else ("cudaMallocHost", "cudaFreeHost")
        kind = Kind.cudaMemcpyHostToDevice if on_device else Kind.cudaMemcpyHostToHost
        self.address = int(cuda(allocate, source.nbytes))
        finalize(self, release, free, self.address).atexit = False
        cuda("cudaMemcpy", self.address, source.ctypes.data, source.nbytes, kind)
