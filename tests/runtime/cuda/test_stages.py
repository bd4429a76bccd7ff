# SPDX-License-Identifier: Apache-2.0
"""The whole of Algorithm 1 as it runs on a GPU, on a double of one: the same video as on the CPU."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lamp_trt
from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.engine.families import VIDEO_NETWORKS
from lamp_trt.runtime.cuda.engines import EngineSet
from lamp_trt.runtime.cuda.memory import memory_need
from lamp_trt.runtime.cuda.ops import CudaVideoOps
from lamp_trt.runtime.first_frame import first_frame_maker, missing_networks
from lamp_trt.runtime.kernels.arrays import DeviceArray
from lamp_trt.runtime.media.tokenizer import load_tokenizer
from lamp_trt.runtime.media.video import Video
from lamp_trt.runtime.pipeline import LampPipeline
from tests.doubles.host_device import HostDevice, HostDeviceEngine, host_engines
from tests.tolerances import DEVICE_LATENTS_ATOL, DEVICE_LEVELS_DIFFERING

PROMPT = "a horse runs on the road"


class OnDevice:
    """A pipeline on the double, with what it is made of."""

    def __init__(self, path: Path, **options: Any) -> None:
        bundle = Bundle.open(path)
        motion = bundle.manifest.default_motion
        assert motion is not None

        def load(network: str) -> OnnxRuntimeEngine:
            shown = motion if network == "lamp_unet" else None
            return OnnxRuntimeEngine(bundle, network, motion=shown, num_threads=1)

        self.device = HostDevice()
        load_engine, self.engines = host_engines(self.device, load, motion=motion, **options)
        self.ops = CudaVideoOps(bundle.manifest, EngineSet(self.device, load_engine))
        maker = None if missing_networks(bundle) else first_frame_maker(bundle, self.ops.images)
        tokenizer = load_tokenizer(bundle.tokenizer_folder("tokenizer"), bundle.manifest.sizes["tokens"])
        self.pipe = LampPipeline(bundle, self.ops, tokenizer, motion, maker)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """uint8 RGB of the toy bundle's size."""
    y, x = np.mgrid[0:64, 0:64] / 64
    waves = [np.sin(5 * x + 3 * y), np.cos(7 * x * y), np.sin(9 * y)]
    return np.rint(127.5 + 110 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.fixture(scope="module")
def host(toy_bundle: Path) -> LampPipeline:
    return lamp_trt.load(toy_bundle, num_threads=1)


@pytest.fixture(scope="module")
def on_device(toy_bundle: Path) -> OnDevice:
    return OnDevice(toy_bundle)


def assert_same_video(ours: Video, reference: Video) -> None:
    np.testing.assert_array_equal(ours.first_frame, reference.first_frame)
    np.testing.assert_allclose(ours.latents, reference.latents, rtol=0, atol=DEVICE_LATENTS_ATOL)
    differing = ours.frames != reference.frames
    assert differing.mean() <= DEVICE_LEVELS_DIFFERING


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_scale": 1.0},
        {"preset": "paper", "num_inference_steps": 1},
        {"adain": "none", "histogram": "none"},
        {"adain": "first_frame", "adain_switch_step": 1, "histogram": "exact"},
        {"negative_prompt": "blurry", "seed": 2**64 - 1},
    ],
)
def test_the_video_is_the_cpus(
    host: LampPipeline, on_device: OnDevice, picture: np.ndarray, options: dict[str, Any]
) -> None:
    options = {"first_frame": picture, "num_inference_steps": 3, **options}
    assert_same_video(on_device.pipe(PROMPT, **options), host(PROMPT, **options))


def test_injected_noise_is_what_the_loop_starts_from(
    host: LampPipeline, on_device: OnDevice, picture: np.ndarray
) -> None:
    rng = np.random.default_rng(1)
    options: dict[str, Any] = {
        "first_frame": picture,
        "num_inference_steps": 2,
        "noise": rng.standard_normal((1, 4, 4, 8, 8)),
        "posterior_noise": rng.standard_normal((1, 4, 8, 8)),
    }
    assert_same_video(on_device.pipe(PROMPT, **options), host(PROMPT, **options))
    options["mix_noise"] = False
    assert_same_video(on_device.pipe(PROMPT, **options), host(PROMPT, **options))
    paper: dict[str, Any] = {
        "preset": "paper",
        "mix_noise": True,
        "base_noise": rng.standard_normal((1, 4, 1, 8, 8)),
    }
    assert_same_video(on_device.pipe(PROMPT, **options | paper), host(PROMPT, **options | paper))


def test_a_clip_is_inverted_and_edited_as_on_the_cpu(
    host: LampPipeline, on_device: OnDevice, picture: np.ndarray
) -> None:
    """The real kernels step frame 0 too; a video in between leaves nothing behind."""
    clip = np.stack([np.roll(picture, 3 * i, axis=1) for i in range(4)])
    seen: list[tuple[str, int, int]] = []
    ours = on_device.pipe.invert(
        clip, motion="rain", num_inference_steps=3, progress=lambda *step: seen.append(step)
    )
    wanted = host.invert(clip, motion="rain", num_inference_steps=3)
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=DEVICE_LATENTS_ATOL)
    assert (seen[0], seen[-1]) == (("invert", 0, 3), ("invert", 3, 3))
    options: dict[str, Any] = {
        "motion": "rain",
        "num_inference_steps": 3,
        "noise": wanted,
        "mix_noise": False,
    }
    edits = [pipe(PROMPT, first_frame=picture, **options) for pipe in (on_device.pipe, host)]
    assert_same_video(*edits)
    again = on_device.pipe.invert(clip, motion="rain", num_inference_steps=3)
    np.testing.assert_array_equal(again, ours)
    for pipe in (host, on_device.pipe):
        pipe.set_motion("horse_run")


def test_one_captured_step_serves_every_video_and_nothing_waits_in_between(
    on_device: OnDevice, picture: np.ndarray
) -> None:
    on_device.pipe(PROMPT, first_frame=picture, num_inference_steps=2)
    recordings, waits = on_device.device.queue.recordings, on_device.device.waits
    runs = on_device.engines["lamp_unet"].runs
    on_device.pipe(PROMPT, first_frame=picture, num_inference_steps=7)
    assert on_device.engines["lamp_unet"].runs - runs == 7
    assert on_device.device.queue.recordings == recordings
    # the motion, before the start, at the end, and one for each of the two downloads
    assert on_device.device.waits - waits == 5


def test_a_loop_longer_than_the_tables_gets_larger_ones(
    host: LampPipeline, toy_bundle: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamp_trt.runtime.cuda.loop.FIRST_CAPACITY", 2)
    on_device = OnDevice(toy_bundle)
    for steps in (2, 5, 3):
        options: dict[str, Any] = {"first_frame": picture, "num_inference_steps": steps}
        assert_same_video(on_device.pipe(PROMPT, **options), host(PROMPT, **options))
    on_device.device.memory.check()


def test_switching_there_and_back_gives_the_same_bits(
    host: LampPipeline, on_device: OnDevice, picture: np.ndarray
) -> None:
    options: dict[str, Any] = {"first_frame": picture, "num_inference_steps": 2}
    recordings = on_device.device.queue.recordings
    first, other, again = (
        on_device.pipe(PROMPT, motion=motion, **options) for motion in ("horse_run", "rain", "horse_run")
    )
    np.testing.assert_array_equal(first.latents, again.latents)
    np.testing.assert_array_equal(first.frames, again.frames)
    assert_same_video(other, host(PROMPT, motion="rain", **options))
    host.set_motion("horse_run")
    assert on_device.device.queue.recordings > recordings


@pytest.mark.parametrize("captures", [None, "stream capture is not supported"])
def test_without_capture_the_step_is_launched_each_time(
    host: LampPipeline,
    toy_bundle: Path,
    picture: np.ndarray,
    captures: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    on_device = OnDevice(toy_bundle, captures=captures)
    options: dict[str, Any] = {"first_frame": picture, "num_inference_steps": 3}
    assert_same_video(on_device.pipe(PROMPT, **options), host(PROMPT, **options))
    warned = any("cannot be captured" in record.message for record in caplog.records)
    assert warned == (captures is not None)


def test_callbacks_see_the_cpus_latents_and_may_replace_them(
    host: LampPipeline, on_device: OnDevice, picture: np.ndarray
) -> None:
    def run(pipe: LampPipeline) -> tuple[list[tuple[int, int]], list[np.ndarray], Video]:
        seen: list[tuple[int, int]] = []
        latents: list[np.ndarray] = []

        def watch(_: Any, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
            seen.append((step, timestep))
            latents.append(values["latents"].copy())
            return {"latents": values["latents"] * np.float32(0.5)} if step in (1, 3) else {}

        video = pipe(PROMPT, first_frame=picture, num_inference_steps=4, callback_on_step_end=watch)
        return seen, latents, video

    (seen, latents, video), (host_seen, host_latents, host_video) = run(on_device.pipe), run(host)
    assert seen == host_seen
    np.testing.assert_allclose(latents, host_latents, rtol=0, atol=DEVICE_LATENTS_ATOL)
    assert_same_video(video, host_video)


def test_ctrl_c_in_a_callback_leaves_the_pipeline_usable(on_device: OnDevice, picture: np.ndarray) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    options: dict[str, Any] = {"first_frame": picture, "num_inference_steps": 2}
    expected = on_device.pipe(PROMPT, **options)
    with pytest.raises(KeyboardInterrupt):
        on_device.pipe(PROMPT, **options, callback_on_step_end=stop)
    np.testing.assert_array_equal(on_device.pipe(PROMPT, **options).frames, expected.frames)


def test_ctrl_c_while_the_device_works_waits_for_it_and_leaves_it_usable(
    on_device: OnDevice, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"first_frame": picture, "num_inference_steps": 3}
    expected = on_device.pipe(PROMPT, **options)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lamp_trt.runtime.cuda.work.time.sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            on_device.pipe(PROMPT, **options)
    assert on_device.device.queue.idle
    np.testing.assert_array_equal(on_device.pipe(PROMPT, **options).frames, expected.frames)


def test_a_first_frame_on_the_device_is_taken_where_it_is(on_device: OnDevice, picture: np.ndarray) -> None:
    device, options = on_device.device, {"num_inference_steps": 2}
    expected = on_device.pipe(PROMPT, first_frame=picture, **options)
    pixels = device.empty(picture.shape, np.uint8)
    device.upload(pixels, picture)
    device.synchronize()
    video = on_device.pipe(PROMPT, first_frame=pixels, **options)
    np.testing.assert_array_equal(video.frames, expected.frames)
    np.testing.assert_array_equal(video.first_frame, picture)
    scaled = device.empty((1, 3, 64, 64), np.float32)
    device.upload(scaled, np.ascontiguousarray(picture.transpose(2, 0, 1)[None] / np.float32(127.5) - 1))
    device.synchronize()
    video = on_device.pipe(PROMPT, first_frame=scaled, **options)
    np.testing.assert_allclose(video.latents, expected.latents, rtol=0, atol=DEVICE_LATENTS_ATOL)
    with pytest.raises(InputError, match=r"on the GPU is uint8 \(8, 8, 3\); expected uint8 \(64, 64, 3\) or"):
        on_device.pipe(PROMPT, first_frame=DeviceArray(0, (8, 8, 3), np.dtype("uint8")), **options)


def test_parts_of_the_pipeline_are_the_cpus(
    host: LampPipeline, on_device: OnDevice, picture: np.ndarray
) -> None:
    np.testing.assert_array_equal(on_device.pipe.encode_prompt(PROMPT), host.encode_prompt(PROMPT))
    latents, expected = (pipe.encode_first_frame(picture, seed=3) for pipe in (on_device.pipe, host))
    np.testing.assert_allclose(latents, expected, rtol=0, atol=DEVICE_LATENTS_ATOL)
    video = np.repeat(expected, 4, axis=2) * np.array([1, 0.9, 0.8, 0.7], np.float32)[:, None, None]
    differing = on_device.pipe.decode(video) != host.decode(video)
    assert differing.mean() <= DEVICE_LEVELS_DIFFERING


class Broken:
    """An engine whose output `name` holds NaN from run number `first` on."""

    def __init__(self, engine: HostDeviceEngine, name: str, first: int) -> None:
        run, count = engine._engine.run, [0]

        def broken(arrays: Any) -> dict[str, Any]:
            outputs = run(arrays)
            count[0] += 1
            if count[0] > first:
                outputs[name] = np.full_like(outputs[name], np.nan)
            return outputs

        self.run, self.set_motion = broken, engine._engine.set_motion


@pytest.mark.parametrize(
    ("network", "output", "first", "message"),
    [
        ("text_encoder", "last_hidden_state", 0, "the text encoder returned values that are not finite"),
        ("vae_encoder", "latent_mean", 0, "the VAE encoder returned values that are not finite"),
        ("lamp_unet", "noise_pred", 2, r"the LAMP UNet at step 2 of 4 \(timestep \d+\) returned values"),
        ("vae_decoder", "image", 1, "the VAE decoder returned values that are not finite"),
    ],
)
def test_nan_stops_with_the_network_that_made_it(
    toy_bundle: Path, picture: np.ndarray, network: str, output: str, first: int, message: str
) -> None:
    on_device = OnDevice(toy_bundle)
    engine = on_device.engines[network]
    whole = engine._engine
    engine._engine = Broken(engine, output, first)  # type: ignore[assignment]
    with pytest.raises(EngineError, match=message):
        on_device.pipe(PROMPT, first_frame=picture, num_inference_steps=4)
    engine._engine = whole
    assert on_device.pipe(PROMPT, first_frame=picture, num_inference_steps=1).frames.any()


def test_text_to_video_goes_from_sdxl_to_the_encoder_on_the_device(
    sdxl_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_device, host = OnDevice(sdxl_bundle), lamp_trt.load(sdxl_bundle, num_threads=1)
    options: dict[str, Any] = {"num_inference_steps": 2, "first_frame_num_inference_steps": 3, "seed": 4}
    for more in ({}, {"negative_prompt": "dark"}, {"first_frame_guidance_scale": 1.0}):
        assert_close_clip(on_device.pipe(PROMPT, **options, **more), host(PROMPT, **options, **more))
    made, expected = (pipe.make_first_frame(PROMPT, num_inference_steps=2) for pipe in (on_device.pipe, host))
    np.testing.assert_allclose(made.latents, expected.latents, rtol=0, atol=DEVICE_LATENTS_ATOL)
    assert made.timings.keys() == expected.timings.keys()
    on_device.device.memory.check()


def assert_close_clip(ours: Video, reference: Video) -> None:
    """As assert_same_video, where rounding may flip a level of SDXL's image."""
    differing = ours.first_frame != reference.first_frame
    assert differing.mean() <= DEVICE_LEVELS_DIFFERING
    np.testing.assert_allclose(ours.latents, reference.latents, rtol=0, atol=DEVICE_LATENTS_ATOL)
    assert ours.timings.keys() - reference.timings.keys() == set()


def test_too_little_memory_is_an_error_with_both_figures(toy_bundle: Path) -> None:
    manifest, device = Bundle.open(toy_bundle).manifest, HostDevice()
    weights = [f"weights/{name}.safetensors" for name in ("text_encoder", "vae", "unet")]
    expected = sum(manifest.files[file].size for file in (*weights, "motions/horse_run.safetensors"))
    need = memory_need(manifest, VIDEO_NETWORKS)
    assert need.weights == expected
    assert need.arrays > 3 * 2 * 4 * 4 * 8 * 8
    device.free = need.total - 1

    def load(network: str) -> HostDeviceEngine:
        raise AssertionError(f"{network} was loaded")

    with pytest.raises(EngineError, match=r"making videos needs .*weights .*scratch on the GPU, .* are free"):
        CudaVideoOps(manifest, EngineSet(device, load))


def test_scratch_is_the_largest_engines_and_grows_for_sdxl(
    sdxl_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "lamp_trt")
    on_device = OnDevice(sdxl_bundle)
    assert {engine.scratch_bytes for engine in on_device.engines.values()} == {4096}
    engines = on_device.ops._engines
    assert engines._scratch is not None
    assert engines._scratch.nbytes == 4096
    before = engines.generation
    for engine in on_device.engines.values():
        engine.scratch_bytes = 8192
    engines.share_scratch()
    assert engines._scratch.nbytes == 8192
    assert engines.generation == before + 1
