# SPDX-License-Identifier: Apache-2.0
"""The published checkpoints' size: their layouts pass the reader, graphs and builds stay small and stream.

Everything here is made of names, shapes and holes; no value of a published checkpoint is needed.
"""

import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.families import COMPONENTS, NETWORKS, SDXL
from lamp_trt.export.checkpoints.files import ComponentFiles, find_component
from lamp_trt.export.checkpoints.tensors import tensor_infos
from lamp_trt.export.networks import check_component
from lamp_trt.export.published import (
    CONFIGS,
    EXTRACTOR,
    SDXL_INDEX,
    SDXL_SCHEDULER,
    TENSORS,
    config_of,
    published_shapes,
    write_component,
    write_sparse_pickle,
    write_sparse_shards,
)
from lamp_trt.export.toy.tokenizer import write_tokenizer

ROOT = Path(__file__).parents[3]
GRAPH_PEAK_BYTES, GRAPH_FILE_BYTES = 2 << 30, 1_500_000
BUILD_PEAK_BYTES = 2 << 30
"""Limits. Measured: graphs 0.65 GB and 0.96 MB (SDXL's UNet), a whole build 0.75 GB of anonymous memory."""


def found(folder: Path, component: str) -> ComponentFiles:
    """The component in `folder`, under the bundle's name, as a build has it."""
    files = find_component(folder, COMPONENTS[component].folder)
    return ComponentFiles(component, files.folder, files.config, files.weight_files)


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_modules_have_the_published_numbers_of_tensors_and_parameters(component: str) -> None:
    shapes = published_shapes(component)
    assert sum(map(math.prod, shapes.values())) == COMPONENTS[component].parameters
    assert len(shapes) == TENSORS.get(component, len(shapes))


@pytest.mark.parametrize("variant", ["", ".fp16"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_published_layouts_pass_the_reader(component: str, variant: str, tmp_path: Path) -> None:
    folder = tmp_path / COMPONENTS[component].folder
    write_component(folder, component, variant=variant, old_names=True)
    files = found(tmp_path, component)
    assert files.weight_files[0].stat().st_size >= COMPONENTS[component].parameters * (2 if variant else 4)
    check_component(files)
    assert {info.dtype for info in tensor_infos(files).values()} == {"F16" if variant else "F32"}


@pytest.mark.parametrize("component", ["sdxl_unet", "sdxl_text_encoder_2"])
def test_sharded_files_pass_the_reader(component: str, tmp_path: Path) -> None:
    folder = tmp_path / COMPONENTS[component].folder
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of(component)))
    stem = "model" if "text_encoder" in component else "diffusion_pytorch_model"
    write_sparse_shards(folder, stem, published_shapes(component), 3)
    files = found(tmp_path, component)
    assert len(files.weight_files) == 3
    check_component(files)


@pytest.mark.parametrize("component", ["text_encoder", "vae", "sdxl_text_encoder_2"])
def test_pickled_files_pass_the_reader(component: str, tmp_path: Path) -> None:
    folder = tmp_path / COMPONENTS[component].folder
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of(component)))
    stem = "pytorch_model" if "text_encoder" in component else "diffusion_pytorch_model"
    write_sparse_pickle(folder / f"{stem}.bin", published_shapes(component, old_names=True))
    files = found(tmp_path, component)
    assert files.weight_files[0].suffix == ".bin"
    check_component(files)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_a_full_size_graph_needs_neither_weights_nor_much_time(network: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fixtures.full_size.graph", network, "fp16"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    print(figures)
    assert figures["peak_bytes"] < GRAPH_PEAK_BYTES
    assert figures["graph_bytes"] < GRAPH_FILE_BYTES


@pytest.mark.slow
def test_a_full_size_build_streams(tmp_path: Path) -> None:
    """Reads 23 GB of holes and writes a bundle of 9.3 GB; twice, the second time nothing."""
    if shutil.disk_usage(tmp_path).free < 20 << 30:
        pytest.skip("needs 20 GiB of disk")
    sd, sdxl, motion, out = (tmp_path / name for name in ("sd", "sdxl", "rain", "bundle"))
    write_checkpoints(sd, sdxl, motion)
    command = [sys.executable, "-m", "lamp_trt", "build", f"--sd={sd}", f"--sdxl={sdxl}"]
    command += [f"--motion=rain={motion}", "--precision=fp16", f"--out={out}", "--json"]
    try:
        report, peak, seconds = run_and_watch(command)
        files = {file["path"]: file["size_bytes"] for file in report["files"]}
        print({"seconds": seconds, "peak_anonymous_bytes": peak, "bundle_bytes": sum(files.values())})
        assert peak < BUILD_PEAK_BYTES
        assert set(Bundle.open(out, verify="none").manifest.networks) == {*NETWORKS}
        assert "weights/sdxl_text_encoder.safetensors" not in files
        assert 0 <= files["weights/sdxl_unet.safetensors"] - 2 * COMPONENTS["sdxl_unet"].parameters < 1 << 20
        report, _, seconds = run_and_watch(command)
        print({"second_build_seconds": seconds})
        assert all(file["seconds"] is None for file in report["files"])
    finally:
        shutil.rmtree(out, ignore_errors=True)


def write_checkpoints(sd: Path, sdxl: Path, motion: Path) -> None:
    """Whole folders in published form, fp32 of zeros."""
    for component in ("text_encoder", "vae", "safety_checker"):
        write_component(sd / component, component, old_names=True)
    (sd / "feature_extractor").mkdir()
    (sd / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(EXTRACTOR))
    for component, folder in ((component.name, component.folder) for component in SDXL.components):
        write_component(sdxl / folder, component)
    write_component(motion / "unet", "unet")
    write_tokenizer(sd / "tokenizer")
    write_tokenizer(sdxl / "tokenizer")
    write_tokenizer(sdxl / "tokenizer_2", pad_token="!")
    for folder in (sd, sdxl):
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SDXL_SCHEDULER))
    (sdxl / "model_index.json").write_text(json.dumps(SDXL_INDEX))
    assert {*CONFIGS} <= {*COMPONENTS}


def run_and_watch(command: list[str]) -> tuple[dict, int, float]:  # type: ignore[type-arg]
    """The JSON that a command prints, the most anonymous memory that it had, and its seconds.

    Mapped pages of files, which the kernel may drop, are not counted.
    """
    start, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.02)
        assert process.stdout is not None
        output = process.stdout.read()
    assert process.returncode == 0
    return json.loads(output), peak, time.monotonic() - start


def anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))
