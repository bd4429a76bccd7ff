# SPDX-License-Identifier: Apache-2.0
"""A bundle with everything hoisted, on the double of a device and under `lamp-trt verify`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lamp_trt
from lamp_trt.benchmarks.verify.composed_engine import composed_engine, original_inputs
from lamp_trt.benchmarks.verify.options import VerifyOptions
from lamp_trt.benchmarks.verify.run import verify_bundle
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.families import FIRST_FRAME_NETWORKS, VIDEO_NETWORKS
from lamp_trt.engine.precompute import HOISTED
from lamp_trt.runtime.cuda.engines import EngineSet
from lamp_trt.runtime.cuda.image_ops import CudaImageOps
from lamp_trt.runtime.cuda.memory import memory_need
from lamp_trt.runtime.cuda.ops import CudaVideoOps
from lamp_trt.runtime.load import Place
from tests.benchmarks.verify.test_verify import checkpoints, edit_tensors, faulty, verified
from tests.doubles.host_device import HostDevice, HostDeviceEngine
from tests.runtime.cuda.test_stages import OnDevice, assert_same_video
from tests.tolerances import DEVICE_LATENTS_ATOL, HOISTED_RTOL, SDXL_IMAGE_DIFFERING, SDXL_IMAGE_LEVELS

PROMPT = "a horse runs on the road"
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
TO_K = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="module")
def on_device(hoisted_bundle: Path) -> OnDevice:
    return OnDevice(hoisted_bundle)


def test_videos_are_the_plain_bundles(on_device: OnDevice, toy_bundle: Path) -> None:
    plain = lamp_trt.load(toy_bundle, num_threads=1)
    for motion, steps, guidance_scale in (("horse_run", 3, 12.5), ("rain", 2, 1.0), ("horse_run", 3, 12.5)):
        options: dict[str, Any] = {
            "motion": motion,
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
        }
        ours, expected = (pipe(PROMPT, first_frame=PICTURE, **options) for pipe in (on_device.pipe, plain))
        assert_same_video(ours, expected)
    on_device.device.memory.check()


def test_inversions_are_the_plain_bundles(
    on_device: OnDevice, toy_bundle: Path, hoisted_bundle: Path
) -> None:
    """Guidance's shared prefix is computed once for both halves, which an inversion feeds with one clip."""
    clip = np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3), np.uint8)
    plain, hoisted = (lamp_trt.load(path, num_threads=1) for path in (toy_bundle, hoisted_bundle))
    wanted = plain.invert(clip, motion="horse_run", num_inference_steps=3)
    for pipe in (on_device.pipe, hoisted):
        ours = pipe.invert(clip, motion="horse_run", num_inference_steps=3)
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=DEVICE_LATENTS_ATOL)


@pytest.mark.parametrize("negative_prompt", [None, "blurry"])
def test_first_frames_are_the_plain_bundles(
    on_device: OnDevice, sdxl_bundle: Path, negative_prompt: str | None
) -> None:
    plain = lamp_trt.load(sdxl_bundle, num_threads=1)
    ours, expected = (
        pipe.make_first_frame(PROMPT, negative_prompt=negative_prompt, num_inference_steps=3)
        for pipe in (on_device.pipe, plain)
    )
    np.testing.assert_allclose(ours.latents, expected.latents, rtol=0, atol=DEVICE_LATENTS_ATOL)
    levels = np.abs(ours.image.astype(int) - expected.image)
    assert levels.max() <= SDXL_IMAGE_LEVELS
    assert (levels > 0).mean() <= SDXL_IMAGE_DIFFERING


def test_text_runs_once_a_prompt_and_a_time_table_lasts(on_device: OnDevice) -> None:
    on_device.pipe(PROMPT, first_frame=PICTURE, num_inference_steps=4)
    beside = [on_device.engines[name] for name in HOISTED["lamp_unet"]]
    before = [engine.runs for engine in beside]
    on_device.pipe("rain", first_frame=PICTURE, num_inference_steps=4)
    assert [engine.runs for engine in beside] == [before[0] + 1, before[1]]
    on_device.pipe(PROMPT, first_frame=PICTURE, num_inference_steps=5)
    assert [engine.runs for engine in beside] == [before[0] + 2, before[1] + 5]


@pytest.mark.parametrize(("unet", "what"), [("lamp_unet", "videos"), ("sdxl_unet", "first frames")])
def test_memory_is_asked_for_what_stands_beside_a_unet_too(
    hoisted_bundle: Path, unet: str, what: str
) -> None:
    manifest, device = Bundle.open(hoisted_bundle).manifest, HostDevice()
    networks = VIDEO_NETWORKS if unet == "lamp_unet" else FIRST_FRAME_NETWORKS
    device.free = memory_need(manifest, networks).total

    def load(network: str) -> HostDeviceEngine:
        raise AssertionError(f"{network} was loaded")

    stages = CudaVideoOps if what == "videos" else CudaImageOps
    with pytest.raises(EngineError, match=f"making {what} needs .* on the GPU, .* are free"):
        stages(manifest, EngineSet(device, load))


def test_verify_compares_the_unets_with_what_stands_beside_them(
    toy: Path, sdxl: Path, hoisted_bundle: Path
) -> None:
    given = checkpoints(toy, "horse_run", "rain", sdxl=sdxl)
    report = verify_bundle(hoisted_bundle, VerifyOptions(given, num_inference_steps=2, num_threads=1))
    assert report.failed == []
    assert report.not_verified == []
    weights = {check.name: check for check in report.checks if check.group == "weights"}
    assert set(weights) == {*VIDEO_NETWORKS, *FIRST_FRAME_NETWORKS}
    assert weights["lamp_unet"].measured["tensors"] == len(lamp_tensors(hoisted_bundle))


def lamp_tensors(bundle: Path) -> list[str]:
    files = (bundle / "weights" / "unet.safetensors", bundle / "motions" / "horse_run.safetensors")
    return [name for file in files for name in read_weight_file(file).tensors]


def test_a_weight_that_only_a_network_beside_reads_is_caught_and_named(
    toy: Path, hoisted_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def reversed_keys(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return {TO_K: tensors[TO_K].ravel()[::-1].copy()}

    bundle = faulty(
        hoisted_bundle,
        tmp_path / "b",
        lambda path: edit_tensors(path / "weights" / "unet.safetensors", reversed_keys),
    )
    given = {"horse_run": toy / "motions" / "horse_run"}
    code, message, failed = verified(bundle, tmp_path / "r.json", given, capsys, steps=0)
    assert code == 1
    assert f"first of weights: lamp_unet, horse_run: {TO_K} in weights/unet.safetensors" in message
    assert failed.keys() == {"weights", "networks"}


ONNX_RUNTIME = Place(None, "onnxruntime", 1, None)


@pytest.mark.parametrize("unet", HOISTED)
def test_a_unet_with_those_beside_it_takes_the_plain_inputs(
    hoisted_bundle: Path, sdxl_bundle: Path, unet: str
) -> None:
    plain, hoisted = Bundle.open(sdxl_bundle), Bundle.open(hoisted_bundle)
    inputs = original_inputs(hoisted, unet)
    assert inputs == plain.network(unet).inputs
    assert hoisted.network(unet).inputs != inputs
    rng = np.random.default_rng(3)
    arrays = {t.name: rng.standard_normal(t.shape).astype(t.dtype) for t in inputs}
    arrays["sample"][1], arrays["timestep"][0] = arrays["sample"][0], 321
    motion = "rain" if unet == "lamp_unet" else None
    ours, expected = (
        composed_engine(b, unet, ONNX_RUNTIME, motion).run(arrays)["noise_pred"] for b in (hoisted, plain)
    )
    np.testing.assert_allclose(ours, expected, rtol=0, atol=HOISTED_RTOL * np.abs(expected).max())
