# SPDX-License-Identifier: Apache-2.0
"""Files of inverted latents with bytes changed anywhere, and of every number format."""

import json
import random
import struct
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.inverted import Origin, read_latents, write_latents
from tests.fixtures.hostile import read_or_refused
from tests.fixtures.torture import Budget, Tally

SHAPE = (1, 4, 2, 4, 4)
ORIGIN = Origin("c" * 64, "b" * 64, "rain", 10, SHAPE, "onnxruntime on the CPU")
BITS = {
    "F64": 64,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F4": 4,
    "I64": 64,
    "BOOL": 8,
}


def file_of(dtype: str, bits: int) -> bytes:
    """A file whose latents, all 0, are stored as `dtype`."""
    metadata = {"format": "lamp-trt inverted latents 1", "origin": json.dumps(asdict(ORIGIN))}
    size = int(np.prod(SHAPE)) * bits // 8
    tensor = {"dtype": dtype, "shape": SHAPE, "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": metadata, "latents": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


@pytest.mark.parametrize("dtype", BITS)
def test_latents_of_another_number_format_are_refused(tmp_path: Path, dtype: str) -> None:
    """Also those that NumPy does not have."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_of("F32", 32))
    assert not read_latents(path, ORIGIN).any()
    path.write_bytes(file_of(dtype, BITS[dtype]))
    with pytest.raises(InputError, match=rf"holds {dtype}; expected float32|Dtype not understood"):
        read_latents(path, ORIGIN)


@pytest.mark.torture
def test_damaged_latents_are_read_or_refused(
    tmp_path: Path, tally: Tally, budget: Budget, request: pytest.FixtureRequest
) -> None:
    path, rng = tmp_path / "a.safetensors", random.Random(0)
    write_latents(path, np.ones(SHAPE, np.float32), ORIGIN)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    torture = request.config.getoption("--torture-minutes")
    for _ in budget.rounds(20_000, 0.01) if torture else range(300):
        changed = bytearray(data)
        for _ in range(rng.choice([1, 2, 8])):
            changed[rng.randrange(rng.choice([header, len(data)]))] = rng.randrange(256)
        path.write_bytes(changed[: rng.choice([len(data), rng.randrange(len(data))])])
        read_or_refused(lambda: read_latents(path, ORIGIN), tally)
