# SPDX-License-Identifier: Apache-2.0
"""Single bytes changed anywhere in a bundle or in a compiled engine: found, and the file named."""

import random
import shutil
from pathlib import Path

import pytest

from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.compiled import CompiledKey
from lamp_trt.engine.bundle.paths import MANIFEST
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import BundleError, EngineError
from tests.fixtures.torture import Budget, Tally

pytestmark = pytest.mark.torture
REBUILD = "lamp-trt build --backend tensorrt"


def flip(path: Path, position: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ mask]))


def test_a_byte_flipped_anywhere_in_a_bundle_is_found_and_its_file_named(
    toy_bundle: Path, tmp_path: Path, budget: Budget, tally: Tally
) -> None:
    folder, rng = tmp_path / "bundle", random.Random(0)
    shutil.copytree(toy_bundle, folder)
    files = [MANIFEST, *sorted(Bundle.open(folder).manifest.files)]
    for number in budget.rounds(20_000, 0.1):
        relative = files[number % len(files)]
        path = folder / relative
        position, mask = rng.randrange(path.stat().st_size), 1 << rng.randrange(8)
        flip(path, position, mask)
        with pytest.raises(BundleError) as refusal:
            Bundle.open(folder, verify="full")
        assert relative in str(refusal.value), (relative, position, mask)
        flip(path, position, mask)
        tally("bytes flipped in a bundle, and found", 1)
    assert Bundle.open(folder, verify="full").digest == Bundle.open(toy_bundle).digest


KEY = CompiledKey(
    network="lamp_unet",
    backend="tensorrt",
    graph="0" * 64,
    weights="",
    motion="",
    profile={"sample": (2, 4, 4, 8, 8)},
    flags={"refit": True, "level": 3},
    compiler="tensorrt 10.16.1",
    device="sm_90",
)


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    folder = tmp_path / "engines"
    compiled.store(folder, KEY, "plan", {"bundle": "0" * 64}, lambda file: file.write(bytes(range(256)) * 16))
    return folder


def test_an_engine_with_any_byte_flipped_is_never_given_out(
    engines: Path, budget: Budget, tally: Tally
) -> None:
    """In the sidecar a flip may make it tell of another engine, or of nothing that matters; then the engine
    that is given out is still the one that was stored."""
    plan, sidecar = (engines / f"{KEY.stem}.{suffix}" for suffix in ("plan", "json"))
    stored = plan.read_bytes()
    for number, _ in zip(range(len(stored) * 8), budget.rounds(len(stored) * 8, 0.02), strict=False):
        flip(plan, number // 8, 1 << number % 8)
        with pytest.raises(EngineError, match=r"not what .* says it is"):
            compiled.find(engines, KEY, REBUILD)
        flip(plan, number // 8, 1 << number % 8)
        tally("bytes flipped in a compiled engine, and found", 1)
    accepted = set()
    bits = sidecar.stat().st_size * 8
    for number, _ in zip(range(bits), budget.rounds(bits, 0.02), strict=False):
        flip(sidecar, number // 8, 1 << number % 8)
        try:
            found = compiled.find(engines, KEY, REBUILD)
        except EngineError:
            pass
        else:
            assert (found.key, found.path.read_bytes()) == (KEY, stored)
            accepted.add(number // 8)
        flip(sidecar, number // 8, 1 << number % 8)
        tally("bytes flipped in an engine's sidecar, and found or without effect", 1)
    text = sidecar.read_bytes().decode()
    harmless = ("built_at", "extra", "bundle")
    for position in accepted:
        line = text[text.rfind("\n", 0, position) + 1 : text.find("\n", position)]
        assert not line.strip() or any(name in line for name in harmless) or text[position].isspace(), line


@pytest.mark.parametrize("suffix", ["json", "plan"])
def test_an_engine_or_a_sidecar_alone_is_nothing(engines: Path, suffix: str) -> None:
    (engines / f"{KEY.stem}.{suffix}").unlink()
    with pytest.raises(EngineError, match=REBUILD):
        compiled.find(engines, KEY, REBUILD)


def test_a_sidecar_cannot_name_a_file_elsewhere(engines: Path, tmp_path: Path) -> None:
    """Not even one whose bytes it describes rightly."""
    plan, sidecar = (engines / f"{KEY.stem}.{suffix}" for suffix in ("plan", "json"))
    (tmp_path / "elsewhere.plan").write_bytes(plan.read_bytes())
    original = sidecar.read_text()
    for name in ("../elsewhere.plan", str(tmp_path / "elsewhere.plan"), "sub/../../elsewhere.plan", ""):
        sidecar.write_text(original.replace(f'"{plan.name}"', f'"{name}"'))
        with pytest.raises(EngineError):
            compiled.find(engines, KEY, REBUILD)
    sidecar.write_text(original)
    plan.unlink()
    plan.symlink_to(tmp_path / "elsewhere.plan")
    assert compiled.find(engines, KEY, REBUILD).path == plan  # the digest decides, wherever the bytes lie
