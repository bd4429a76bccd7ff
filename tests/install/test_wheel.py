# SPDX-License-Identifier: Apache-2.0
"""The wheel, and a video made by it in an environment of its own that has the extra `cpu` and no more."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
TOPS = ("engine", "export", "runtime", "serving", "benchmarks")
CLONE_ONLY = ("benchmarks/proof", "benchmarks/studies", "benchmarks/results")
"""What the repository has below the package's folders, and the wheel has not."""

BUILD_ONLY = ("torch", "diffusers", "transformers", "accelerate", "onnxscript")
"""Of the extra `export`."""

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path) -> str:
    """Output of a command that succeeds, without this process's Python variables."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"XDG_CACHE_HOME": str(cwd / "cache"), "PIP_CACHE_DIR": pip_cache()}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def pip_cache() -> str:
    """Where pip keeps downloads, whatever XDG_CACHE_HOME is."""
    return os.environ.get("PIP_CACHE_DIR", str(Path.home() / ".cache" / "pip"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the files as they are. Without a fatbin, which takes a minute where there is an nvcc."""
    pytest.importorskip("scikit_build_core", reason="needs scikit-build-core, see make install")
    pytest.importorskip("pip", reason="needs pip, see python -m ensurepip")
    folder = tmp_path_factory.mktemp("wheel")
    made = shutil.ignore_patterns(".venv", ".git", "build", "demo", ".*_cache", "__pycache__", "*.egg-info")
    source = shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=made)
    options = (
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--config-settings=cmake.define.LAMP_FATBIN=OFF",
    )
    options += ("--wheel-dir", str(folder / "dist"))
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=folder)
    (path,) = (folder / "dist").iterdir()
    return path


def modules_of_the_repository() -> set[str]:
    """Python files, kernels and the server's page, as a wheel names them."""
    files = [path for top in TOPS for path in (ROOT / top).rglob("*")]
    files += (ROOT / "src" / "lamp_trt").glob("*.py")
    files += [
        path for name in ("commands", "doctor") for path in (ROOT / "src" / "lamp_trt" / name).rglob("*")
    ]
    names = {path.relative_to(ROOT).as_posix().removeprefix("src/lamp_trt/") for path in files}
    page = {name for name in names if name.startswith("serving/web/static/")}
    assert "serving/web/static/index.html" in page
    return page | {name for name in names if name.endswith((".py", ".cu", ".cuh"))}


def test_a_wheel_holds_the_product_and_nothing_else(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    (metadata,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    package = {name.removeprefix("lamp_trt/") for name in names if not name.startswith(f"{metadata}/")}
    clone_only = {name for name in modules_of_the_repository() if name.startswith(CLONE_ONLY)}
    assert clone_only
    assert package == (modules_of_the_repository() - clone_only) | {"py.typed"}
    assert f"{metadata}/licenses/LICENSE" in names


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment that has the wheel with its extra `cpu`, installed by pip."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", symlinks=True, with_pip=True)
    python = folder / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    probe = [*map(str, pip), "download", "--quiet", "--no-deps", "--dest", str(folder), "tqdm"]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"pip can fetch nothing: {tried.stderr.strip()[-200:]}")
    options = ("--quiet", "--only-binary", ":all:", "-c", CONSTRAINTS)
    run(*pip, "install", *options, f"lamp-trt[cpu] @ {wheel.as_uri()}", cwd=folder)
    run(*pip, "check", cwd=folder)
    return python


def test_an_installed_wheel_makes_a_video(installed: Path, toy_bundle: Path, tmp_path: Path) -> None:
    found = run(installed, "-c", FACTS, cwd=tmp_path)
    facts = json.loads(found)
    assert Path(facts["package"]).is_relative_to(installed.parents[1])
    assert facts["importable"] == []
    assert facts["clone_only"] == []
    shutil.copytree(toy_bundle, tmp_path / "bundle")
    run(installed, "-c", DRAW, cwd=tmp_path)
    lamp_trt = installed.parent / "lamp-trt"
    common = ("--bundle=bundle", "--first-frame=first.png", "--steps=2", "--num-threads=1", "--motion=rain")
    shown = json.loads(run(lamp_trt, "generate", "rain", *common, "--out=clip.mp4", "--json", cwd=tmp_path))
    assert shown["path"] == "clip.mp4"
    assert shown["settings"]["motion"] == "rain"
    run(lamp_trt, "generate", "--from=clip.mp4.json", "--bundle=bundle", "--out=again.mp4", cwd=tmp_path)
    clips = [(tmp_path / name).read_bytes() for name in ("clip.mp4", "again.mp4")]
    assert clips[0] == clips[1]
    assert clips[0][4:8] == b"ftyp"
    decoded = json.loads(run(installed, "-c", DECODE, cwd=tmp_path))
    assert decoded == {"shape": [4, 64, 64, 3], "moves": True}


def test_an_installed_wheel_names_the_extra_that_a_build_lacks(installed: Path, tmp_path: Path) -> None:
    lamp_trt = installed.parent / "lamp-trt"
    done = subprocess.run(
        [str(lamp_trt), "toy", "checkpoints"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'lamp-trt[export]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert run(lamp_trt, "--version", cwd=tmp_path).startswith("lamp-trt ")


FACTS = f"""
import importlib.util, json, lamp_trt
names = [name for name in {BUILD_ONLY!r} if importlib.util.find_spec(name)]
names += [name for name in (*{TOPS!r}, "tests") if importlib.util.find_spec(name)]
lacking = ["lamp_trt.benchmarks.proof", "lamp_trt.benchmarks.studies"]
lacking = [name for name in lacking if importlib.util.find_spec(name)]
print(json.dumps({{"package": lamp_trt.__file__, "importable": names, "clone_only": lacking}}))
"""
DRAW = """
import numpy as np
from PIL import Image
y, x = np.mgrid[0:80, 0:120]
Image.fromarray(np.stack([2 * y, 2 * x, 0 * x + 90], axis=-1).astype(np.uint8)).save("first.png")
"""
DECODE = """
import av, json, numpy as np
with av.open("clip.mp4") as clip:
    frames = np.stack([frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)])
print(json.dumps({"shape": frames.shape, "moves": bool((frames[0] != frames[-1]).any())}))
"""
