# SPDX-License-Identifier: Apache-2.0
"""Readers of weight files: safetensors, or pickles by torch's restricted unpickler, recognised by content.

Only dense float tensors are read. Sparse, quantized, nested and meta tensors and other dtypes are rejected
with the tensor's name.
"""

import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.dtypes import DTYPES
from lamp_trt.engine.errors import CheckpointError
from lamp_trt.engine.files.links import utf8_path
from lamp_trt.export.checkpoints.files import refuse_lfs_pointer

STORED = {getattr(torch, dtype.name): dtype.stored for dtype in DTYPES if dtype.is_float}
"""Accepted dtypes: PyTorch's → safetensors' name."""


@dataclass(frozen=True)
class TensorInfo:
    """Dtype and shape of a tensor; `dtype` by its safetensors name (F32, F16, BF16, F64)."""

    dtype: str
    shape: tuple[int, ...]


class TensorReader:
    """Tensors of a set of weight files by stored name. Headers are read at construction, data on demand."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.infos: dict[str, TensorInfo] = {}
        self._handles: dict[str, Any] = {}
        for file in files:
            refuse_lfs_pointer(file)
            handle, infos = _open_safetensors(file) if _is_safetensors(file) else _open_pickle(file)
            twice = self.infos.keys() & infos.keys()
            if twice:
                raise CheckpointError(f"{file} holds {min(twice)}, which another shard holds too.")
            self.infos |= infos
            self._handles |= dict.fromkeys(infos, handle)

    def tensor(self, name: str) -> Tensor:
        handle = self._handles[name]
        tensor: Tensor = handle[name] if isinstance(handle, dict) else handle.get_tensor(name)
        return tensor.detach().resolve_conj().resolve_neg().contiguous()

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._handles.clear()


def require_float(file: Path, name: str, info: TensorInfo) -> None:
    """Raise CheckpointError unless the tensor has an accepted dtype."""
    if info.dtype not in STORED.values():
        raise CheckpointError(
            f"{file}: tensor {name:.200} is {info.dtype}, not a float of {', '.join(STORED.values())}. "
            "Save the checkpoint in one of these (module.float())."
        )


_PRINTABLE = frozenset(bytes(range(32, 127)) + b"\t\r\n")
"""Bytes of text. Neither weight format begins with nine of them."""


def _is_safetensors(file: Path) -> bool:
    """Whether a file is safetensors, by content: a .bin file may be. The suffix decides if it is unknown.

    Raises CheckpointError for text, HTML, GGUF, and a pickle named .safetensors.
    """
    with file.open("rb") as f:
        start = f.read(9)
    if start[8:] == b"{" and not start.startswith((b"PK", b"\x80")):
        return True
    if file.suffix == ".safetensors" and start.startswith((b"PK\x03\x04", b"\x80\x02")):
        raise CheckpointError(
            f"{file} is a pickle of PyTorch, not safetensors. Rename it to end with .bin "
            "(pytorch_model.bin or diffusion_pytorch_model.bin)."
        )
    if start.lstrip().lower().startswith((b"<!doc", b"<html")):
        raise CheckpointError(f"{file} is a web page, not weights: the download failed. Download it again.")
    if len(start) == 9 and all(byte in _PRINTABLE for byte in start):
        raise CheckpointError(
            f"{file} is text, not weights (it begins with {start.decode()!r}), an error message perhaps: "
            "download it again."
        )
    if start.startswith(b"GGUF"):
        raise CheckpointError(f"{file} is a GGUF file, which is not read. Give safetensors or .bin files.")
    return file.suffix == ".safetensors"


def _open_safetensors(file: Path) -> tuple[Any, dict[str, TensorInfo]]:
    header = read_weight_file(file)
    infos = {name: TensorInfo(ref.dtype, ref.shape) for name, ref in header.tensors.items()}
    utf8_path(file)
    return safe_open(file, framework="pt"), infos


def _refuse_compressed(file: Path) -> None:
    """Raise ValueError for a compressed archive, which torch.save does not write (a possible zip bomb)."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is a compressed archive, which torch.save does not write")


def _open_pickle(file: Path) -> tuple[dict[str, Tensor], dict[str, TensorInfo]]:
    try:
        _refuse_compressed(file)
        # Files written before torch 1.6 are not zip archives and cannot be memory-mapped.
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except _UNPICKLING_ERRORS as error:
        raise CheckpointError(
            f"{file} is refused, only pickles of plain tensors are read: {_why_refused(file, error)}. "
            "Use a safetensors file."
        ) from error
    tensors = _state_dict(file, state)
    for name, tensor in tensors.items():
        problem = _problem(tensor)
        if problem:
            raise CheckpointError(
                f"{file}: tensor {name:.200} {problem}; only dense tensors with their values are read. "
                "Save the state dict of a module whose weights are plain tensors on the CPU."
            )
    infos = {
        name: TensorInfo(STORED.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }
    return tensors, infos


def _why_refused(file: Path, error: Exception) -> str:
    """The cause of a failed load. torch's own message advises disabling its restrictions."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    if found:
        return f"it wants to run {found[1]}"
    if isinstance(error, ValueError) and "compressed" in str(error):
        return str(error)
    with file.open("rb") as f:
        start = f.read(4)
    if not start:
        return "it is empty"
    return "it is damaged or cut off" if start.startswith((b"PK", b"\x80")) else "it is of another format"


def pickled_names(file: Path) -> list[str]:
    """Names of the tensors in a pickle, including those nested under one key such as state_dict.

    Returns [] if torch's restricted unpickler cannot read the file.
    """
    try:
        _refuse_compressed(file)
        state = torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
    except _UNPICKLING_ERRORS:
        return []
    parts = [state, *state.values()] if isinstance(state, Mapping) else []
    return [
        name
        for part in parts
        if isinstance(part, Mapping)
        for name, value in part.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    ]


def _state_dict(file: Path, state: object) -> dict[str, Tensor]:
    """`state` as a mapping of names to tensors. Raises CheckpointError, naming any other entry."""
    what = f"it is a {type(state).__name__}"
    if isinstance(state, Mapping):
        strange = [(k, v) for k, v in state.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
        if not strange:
            return dict(state)
        nested = [
            k for k, v in strange if isinstance(v, Mapping) and any(isinstance(t, Tensor) for t in v.values())
        ]
        if nested:
            what = f"its tensors are under {nested[0]!r:.100}: save that part alone"
        else:
            what = f"its entry {strange[0][0]!r:.100} is a {type(strange[0][1]).__name__}"
    raise CheckpointError(f"{file} is not a state dict (a mapping of names to tensors): {what}.")


def _problem(tensor: Tensor) -> str:
    """The reason why a tensor is not accepted, apart from its dtype; "" if it is."""
    if tensor.device.type != "cpu":
        return f"is on the device {tensor.device.type!r}" + " and has no values" * (
            tensor.device.type == "meta"
        )
    if tensor.is_nested:
        return "is nested"
    if tensor.is_quantized:
        return f"is quantized ({tensor.dtype})"
    if tensor.layout != torch.strided:
        return f"is sparse or packed ({tensor.layout})"
    if type(tensor) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return f"is a {type(tensor).__name__}, not a plain tensor"
    return ""


_UNPICKLING_ERRORS = (
    pickle.UnpicklingError, struct.error, RuntimeError, EOFError, OSError, ValueError, NotImplementedError,
    KeyError, IndexError, TypeError, AttributeError, AssertionError, zipfile.BadZipFile,
)  # fmt: skip
"""Exceptions that torch.load raises for code, other formats and damaged files."""
