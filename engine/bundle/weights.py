# SPDX-License-Identifier: Apache-2.0
"""Weight files: tensor locations in safetensors files, and a streaming writer.

A bundle's graphs, backends and refit address weights by (file, offset, length): the header is read here, the
data are mapped and not loaded. Format: https://huggingface.co/docs/safetensors.
"""

import json
import math
import mmap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.dtypes import BY_STORED
from lamp_trt.engine.errors import CheckpointError
from lamp_trt.engine.files.strict_json import unique_keys

_HEADER_LIMIT = 16 << 20
"""Bytes. SDXL's UNet has 0.3 MB. The safetensors library allows 100 MB: a gigabyte of Python objects."""
_MAX_RANK = 16
_MAX_AXIS = 2**63 - 1
_DATA_ALIGNMENT = 64


@dataclass(frozen=True)
class TensorRef:
    """One tensor in a safetensors file; `offset`, from the start of the file, and `length` in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class WeightFile:
    """The header of one safetensors file."""

    path: Path
    tensors: Mapping[str, TensorRef]
    metadata: Mapping[str, str]

    def mapped(self) -> mmap.mmap:
        """The file's bytes, read-only. A page is read when it is used."""
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def raw(self, mapped: mmap.mmap | None = None) -> dict[str, NDArray[np.uint8]]:
        """The bytes of every tensor, (length,), as a read-only view of the mapped file."""
        data = np.frombuffer(self.mapped() if mapped is None else mapped, np.uint8)
        return {name: data[ref.offset : ref.offset + ref.length] for name, ref in self.tensors.items()}

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Every tensor as a read-only view with its shape and dtype. TypeError for bfloat16, which NumPy
        lacks."""
        views = {}
        for name, raw in self.raw().items():
            ref = self.tensors[name]
            dtype = BY_STORED[ref.dtype]
            if not dtype.in_numpy:
                raise TypeError(f"{self.path}: {name} is {ref.dtype}, which NumPy cannot represent.")
            views[name] = raw.view(dtype.name).reshape(ref.shape)
        return views


def read_weight_file(path: Path) -> WeightFile:
    """Read and check the header of a safetensors file, not the data.

    CheckpointError if the header is invalid, or sizes, offsets and the file's length disagree.
    """

    def bad(why: str, remedy: str = "Download or write it again.") -> CheckpointError:
        return CheckpointError(f"{path} is not a usable safetensors file: {why}. {remedy}")

    size = path.stat().st_size
    with path.open("rb") as f:
        prefix = f.read(8)
        header_size = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or header_size > min(_HEADER_LIMIT, size - 8):
            raise bad(f"its header claims {header_size} bytes, the file has {size}")
        raw = f.read(header_size)
    try:
        header = json.loads(raw, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        raise bad("its header is not JSON, or has duplicate keys") from None
    if not isinstance(header, dict):
        raise bad("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise bad("its metadata are not a map of strings")
    start = 8 + header_size
    tensors = {name: _tensor_ref(name, entry, start, bad) for name, entry in header.items()}
    end = start
    for name, ref in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].length)):
        if ref.offset != end:
            raise bad(f"tensor {name:.100} begins at byte {ref.offset}, expected {end}")
        end += ref.length
    if end != size:
        raise bad(f"its tensors end at byte {end}, the file has {size}")
    return WeightFile(path, tensors, metadata)


def _tensor_ref(name: str, entry: Any, start: int, bad: Callable[..., CheckpointError]) -> TensorRef:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, stop]} if len(entry) == 3:
            pass
        case _:
            raise bad(f"the entry of tensor {name!r:.100} is malformed")
    if dtype not in BY_STORED:
        raise bad(
            f"tensor {name!r:.100} has dtype {dtype!r:.20}, expected one of {', '.join(BY_STORED)}",
            "Save the checkpoint in one of these (module.float() in PyTorch).",
        )
    numbers = (*shape, begin, stop)
    plain = len(shape) <= _MAX_RANK and all(type(n) is int and 0 <= n <= _MAX_AXIS for n in numbers)
    if not plain or math.prod(n or 1 for n in shape) > _MAX_AXIS:  # NumPy's limit, even if an axis is 0
        raise bad(
            f"the shape or the offsets of tensor {name!r:.100} are invalid: {shape!r:.100}, {begin!r:.30}"
        )
    if stop - begin != math.prod(shape) * BY_STORED[dtype].size:
        raise bad(f"tensor {name!r:.100} of shape {shape} and dtype {dtype} spans bytes {begin} to {stop}")
    return TensorRef(dtype, tuple(shape), start + begin, stop - begin)


def weight_file_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The header for `tensors` (name → dtype, shape) stored in that order, padded to align the data."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, (dtype, shape) in tensors.items():
        length = math.prod(shape) * BY_STORED[dtype].size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + length]}
        position += length
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    raw += b" " * (-(8 + len(raw)) % _DATA_ALIGNMENT)
    return len(raw).to_bytes(8, "little") + raw


def write_weight_file(
    f: BinaryIO,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    data: Iterable[tuple[str, bytes | memoryview]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file whose data arrive one tensor at a time, in the order of `tensors`."""
    f.write(weight_file_header(tensors, metadata))
    expected = iter(tensors.items())
    for name, buffer in data:
        wanted, (dtype, shape) = next(expected)
        length = math.prod(shape) * BY_STORED[dtype].size
        assert (name, memoryview(buffer).nbytes) == (wanted, length), (name, wanted, shape, dtype)
        f.write(buffer)
    assert next(expected, None) is None
