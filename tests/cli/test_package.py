# SPDX-License-Identifier: Apache-2.0
"""The package's walls: what may import what, and what an import may load."""

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "engine": {"engine"},
    "export": {"export", "engine"},
    "runtime": {"runtime", "engine"},
    "serving": {"serving", "runtime", "engine"},
    "benchmarks": {"benchmarks", "export", "runtime", "engine", "serving"},
}
"""Which sub-packages each may import from."""

TORCH_FREE = ("engine", "runtime", "serving")
HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "cv2",
    "PIL",
    "av",
    "tokenizers",
)


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] == "lamp_trt" and len(parts) > 1 and parts[1] in ALLOWED:
                assert parts[1] in ALLOWED[package], f"{path.relative_to(ROOT)} imports {name}"


CLONE_ONLY = ("tests", "lamp_trt.benchmarks.proof", "lamp_trt.benchmarks.studies")
"""What the wheel does not hold."""


@pytest.mark.parametrize(
    "folder",
    [
        *("engine", "export", "runtime", "serving", "src"),
        *(f"benchmarks/{name}" for name in ("bench", "report", "verify")),
    ],
)
def test_what_the_wheel_holds_imports_nothing_that_it_lacks(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in imports_of(path):
            assert not any(f"{name}.".startswith(f"{lacking}.") for lacking in CLONE_ONLY), f"{path}: {name}"


@pytest.mark.parametrize("top", [*ALLOWED, "src", "tests"])
def test_no_folder_holds_more_than_16_modules(top: str) -> None:
    counts = {folder: sum(name.endswith(".py") for name in names) for folder, _, names in os.walk(ROOT / top)}
    assert counts
    assert {folder: count for folder, count in counts.items() if count > 16} == {}


@pytest.mark.parametrize("package", TORCH_FREE)
def test_engine_and_runtime_import_no_torch(package: str) -> None:
    lazy = {"engine/backends/aotinductor/engine.py", "engine/torch_threads.py"}
    for path in (ROOT / package).rglob("*.py"):
        if path.relative_to(ROOT).as_posix() in lazy:
            continue
        roots = {name.partition(".")[0] for name in imports_of(path)}
        assert not roots & {"torch", "diffusers", "transformers", "accelerate"}, path


@pytest.mark.parametrize(
    "module", ["lamp_trt", "lamp_trt.runtime", "lamp_trt.runtime.pipeline", "lamp_trt.cli"]
)
def test_an_import_loads_nothing_heavy(module: str, run_python: Callable[[str], str]) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    assert run_python(code).split() == []


def test_the_command_starts_without_numpy(run_python: Callable[[str], str]) -> None:
    code = "import sys; sys.modules['numpy'] = None; from lamp_trt.cli import main; main(['--version'])"
    assert run_python(code).startswith("lamp-trt ")


def test_a_whole_generation_loads_neither_torch_nor_diffusers(
    toy_bundle: Path, tmp_path: Path, run_python: Callable[[str], str]
) -> None:
    code = f"""
import sys
import numpy as np
import lamp_trt
pipe = lamp_trt.load({str(toy_bundle)!r}, num_threads=1)
picture = np.full((64, 64, 3), 128, np.uint8)
pipe("rain", first_frame=picture, num_inference_steps=1).save({str(tmp_path / "v.mp4")!r})
print(*[name for name in ("torch", "diffusers", "transformers") if name in sys.modules])
"""
    assert run_python(code).split() == []
    assert (tmp_path / "v.mp4").stat().st_size > 0


@pytest.mark.parametrize("name", ALLOWED)
def test_sub_packages_are_not_top_level_modules(name: str) -> None:
    # -I keeps the working directory, which may be the checkout, off sys.path.
    code = f"import importlib.util as u; raise SystemExit(u.find_spec({name!r}) is not None)"
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0
    assert importlib.util.find_spec(f"lamp_trt.{name}") is not None


def test_the_package_is_typed_and_carries_its_kernels() -> None:
    assert (resources.files("lamp_trt") / "py.typed").is_file()
    names = {entry.name for entry in (resources.files("lamp_trt.runtime") / "kernels").iterdir()}
    assert {"latent_step.cu", "noise.cu", "hist_match.cu"} <= names
