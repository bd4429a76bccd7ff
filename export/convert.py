# SPDX-License-Identifier: Apache-2.0
"""Conversion of checkpoint tensors to weight files of one precision, one tensor in memory at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from lamp_trt.engine.bundle.weights import WeightFile, write_weight_file
from lamp_trt.engine.dtypes import PRECISIONS, Precision
from lamp_trt.engine.errors import CheckpointError
from lamp_trt.engine.networks import is_motion_tensor
from lamp_trt.engine.progress import progress
from lamp_trt.export.checkpoints.files import ComponentFiles
from lamp_trt.export.checkpoints.tensors import iter_tensors, tensor_infos

DTYPES: dict[Precision, torch.dtype] = {
    precision: getattr(torch, dtype.name) for precision, dtype in PRECISIONS.items()
}


def write_component(
    f: BinaryIO,
    files: ComponentFiles,
    precision: Precision,
    *,
    metadata: Mapping[str, str] | None = None,
    wanted: Callable[[str], bool] = lambda name: True,
) -> None:
    """Write the tensors of `files` whose names are `wanted` as one safetensors file in `precision`.

    Raises CheckpointError for a value that is not finite, before or after conversion to `precision`.
    """
    tensors = {
        name: (PRECISIONS[precision].stored, info.shape)
        for name, info in tensor_infos(files).items()
        if wanted(name)
    }
    data = ((name, tensor_bytes(tensor)) for name, tensor in converted(files, precision) if wanted(name))
    with progress(data, files.name, total=len(tensors), leave=False, unit=" tensors") as bar:
        write_weight_file(f, tensors, bar, metadata)


def stored_bytes(
    files: ComponentFiles, precision: Precision, wanted: Callable[[str], bool] = lambda name: True
) -> int:
    """Size in bytes of the file that `write_component` writes, without its header."""
    item = PRECISIONS[precision].size
    return sum(prod(info.shape) * item for name, info in tensor_infos(files).items() if wanted(name))


def converted(files: ComponentFiles, precision: Precision) -> Iterator[tuple[str, Tensor]]:
    """Yield (normalised name, tensor) in `precision`. Raises CheckpointError for non-finite values."""
    for name, tensor in iter_tensors(files, DTYPES[precision]):
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"tensor {name} of {files.folder} has values that are not finite in {precision}: "
                f"the checkpoint is damaged{_or_needs_a_wider(precision)}."
            )
        yield name, tensor


def _or_needs_a_wider(precision: Precision) -> str:
    """The end of a message about values that are not finite: the precisions of a larger range."""
    largest = {name: torch.finfo(dtype).max for name, dtype in DTYPES.items()}
    wider = sorted((name for name in largest if largest[name] > largest[precision]), key=largest.__getitem__)
    return f", or needs --precision {' or '.join(wider)}" if wider else ""


def shares_base(files: ComponentFiles, base: WeightFile, precision: Precision) -> bool:
    """Whether every tensor that LAMP does not train, converted to `precision`, equals the one in `base`."""
    tensors = converted(files, precision)
    return _equal_bytes(((name, tensor) for name, tensor in tensors if not is_motion_tensor(name)), base)


def rounding_between(files: ComponentFiles, base: WeightFile, precision: Precision) -> Precision | None:
    """The lower precision at which every tensor that LAMP does not train equals the one in `base`.

    None if they differ by more than the rounding to a lower precision.
    """
    raw = base.raw()
    finest_first = sorted(DTYPES, key=lambda name: torch.finfo(DTYPES[name]).eps)
    size = DTYPES[precision].itemsize
    lower = [name for name in finest_first if name != precision and DTYPES[name].itemsize <= size]
    for name, tensor in converted(files, precision):
        if not is_motion_tensor(name) and lower:
            own = torch.from_numpy(np.array(raw[name])).view(DTYPES[precision]).reshape(tensor.shape)
            lower = [p for p in lower if torch.equal(own.to(DTYPES[p]), tensor.to(DTYPES[p]))]
    return lower[0] if lower else None


def equals_stored(files: ComponentFiles, stored: WeightFile, precision: Precision) -> bool:
    """Whether `files`, converted to `precision`, hold the same tensors as `stored`."""
    dtype = PRECISIONS[precision].stored
    wanted = {name: (dtype, info.shape) for name, info in tensor_infos(files).items()}
    if wanted != {name: (ref.dtype, ref.shape) for name, ref in stored.tensors.items()}:
        return False
    return _equal_bytes(converted(files, precision), stored)


def _equal_bytes(tensors: Iterable[tuple[str, Tensor]], stored: WeightFile) -> bool:
    """Whether each of `tensors` has the same bytes as the tensor of its name in `stored`."""
    raw = stored.raw()
    return all(tensor_bytes(tensor) == raw[name].data for name, tensor in tensors)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, row-major."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
