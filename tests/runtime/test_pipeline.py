# SPDX-License-Identifier: Apache-2.0
"""The whole of Algorithm 1 on ONNX Runtime: against the PyTorch reference and the official implementation."""

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lamp_trt
from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.engine.backends.contract import Engine
from lamp_trt.engine.backends.onnxruntime.session import new_session
from lamp_trt.engine.backends.registry import host_engine
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import BundleError, EngineError, InputError
from lamp_trt.export.build import build_bundle
from lamp_trt.export.motions import remove_motion
from lamp_trt.export.recipe import BuildOptions
from lamp_trt.runtime.algorithm.config import GenerationConfig
from lamp_trt.runtime.algorithm.ddim import ddim_schedule
from lamp_trt.runtime.algorithm.histogram import match_histograms, uint8_frames
from lamp_trt.runtime.algorithm.latents import mix_noise, posterior_sample, with_first_frame
from lamp_trt.runtime.control import Control
from lamp_trt.runtime.finite import require_finite
from lamp_trt.runtime.host.loop import run_loop
from lamp_trt.runtime.pipeline import LampPipeline
from lamp_trt.runtime.stages import VideoJob, inversion_loop, video_loop
from tests.conftest import GoldenClose
from tests.fixtures.openvino import HOST_BACKENDS
from tests.fixtures.reference_clip import reference_clip, smooth_picture
from tests.tolerances import (
    CLIP_LEVELS,
    GOLDEN_GIF_EQUAL_SHARE,
    GOLDEN_GIF_LEVELS,
    GOLDEN_INITIAL,
    GOLDEN_INVERSION,
    GOLDEN_LATENTS_FINAL,
    GOLDEN_LATENTS_FREE,
    GOLDEN_VAE,
    GOLDEN_VIDEO,
    PIPELINE_REL_L2,
)

Golden = Callable[[str], Mapping[str, np.ndarray]]


@pytest.fixture(scope="module")
def pipe(toy_bundle: Path) -> LampPipeline:
    return lamp_trt.load(toy_bundle, num_threads=1)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """At twice the toy bundle's size."""
    return smooth_picture(128, 128)


# --- against the official implementation --------------------------------------------------------------


@pytest.fixture(scope="session")
def golden_bundle(golden_set: Path, golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The official tiny checkpoint as a bundle, without the text encoder that the goldens have none of."""
    *_, num_frames, height, width = golden("loop50")["video"].shape
    options = BuildOptions(
        sd=golden_set,
        motions={"official": golden_set},
        only=("vae_encoder", "vae_decoder", "lamp_unet"),
        height=height,
        width=width,
        num_frames=num_frames,
    )
    out = tmp_path_factory.mktemp("golden") / "bundle"
    build_bundle(out, options)
    return Bundle.open(out)


@pytest.fixture(scope="module", params=HOST_BACKENDS)
def golden_engines(request: pytest.FixtureRequest, golden_bundle: Bundle) -> dict[str, Engine]:
    motions = {"lamp_unet": "official"}
    return {
        name: host_engine(request.param, golden_bundle, name, motion=motions.get(name), num_threads=1)
        for name in golden_bundle.manifest.networks
    }


@pytest.mark.golden
@pytest.mark.parametrize("case", ["loop50", "loop10", "edit10"])
def test_the_loop_follows_the_official_one(
    case: str,
    golden: Golden,
    golden_close: GoldenClose,
    golden_bundle: Bundle,
    golden_engines: dict[str, Engine],
) -> None:
    arrays = golden(case)
    steps = len(arrays["timesteps"])
    first_frame = arrays["first_frame_latents"]
    if case.startswith("edit"):
        initial = with_first_frame(arrays["inv_latent"], first_frame)
    else:
        initial = mix_noise(arrays["raw_noise"], first_frame)
    golden_close(initial, arrays["init_latents"], **GOLDEN_INITIAL)
    after: list[np.ndarray] = []

    def remember(step: int, timestep: int, latents: np.ndarray) -> np.ndarray:
        assert timestep == arrays["timesteps"][step]
        after.append(latents[0])
        return latents

    job = VideoJob(
        np.zeros((2, 77), np.int64),
        None,
        ddim_schedule(steps, golden_bundle.manifest.scheduler),
        GenerationConfig(num_inference_steps=steps, guidance_scale=float(arrays["guidance"])),
        on_step=remember,
    )
    text = {"encoder_hidden_states": arrays["text"]}
    final = run_loop(golden_engines["lamp_unet"], (), video_loop(job), initial, text, Control())
    golden_close(np.stack(after), arrays["latents_after"], **GOLDEN_LATENTS_FREE)
    golden_close(final, arrays["latents_final"], **GOLDEN_LATENTS_FINAL)
    if case != "loop50":
        return
    scaled = final[0].swapaxes(0, 1) / np.float32(golden_bundle.manifest.scaling_factors["vae"])
    decoded = np.concatenate(
        [golden_engines["vae_decoder"].run({"latents": frame[None]})["image"] for frame in scaled]
    )
    video = np.clip(decoded / 2 + 0.5, 0, 1).swapaxes(0, 1)[None]
    golden_close(video, arrays["video"], **GOLDEN_VIDEO)
    frames = match_histograms(uint8_frames(decoded))
    difference = np.abs(frames.astype(int) - arrays["gif_u8"])
    assert (difference == 0).mean() >= GOLDEN_GIF_EQUAL_SHARE
    assert difference.max() <= GOLDEN_GIF_LEVELS


@pytest.mark.golden
@pytest.mark.parametrize("case", ["five_of_five", "five_of_fifty"])
def test_the_inversion_follows_the_official_one(
    case: str,
    golden: Golden,
    golden_close: GoldenClose,
    golden_bundle: Bundle,
    golden_engines: dict[str, Engine],
) -> None:
    arrays = golden("inversion")
    used = arrays[f"{case}/used_timesteps"]
    steps = len(arrays[f"{case}/scheduler_timesteps"])
    schedule = ddim_schedule(steps, golden_bundle.manifest.scheduler)
    loop = inversion_loop(schedule, arrays["video_latents"])
    np.testing.assert_array_equal(loop.timesteps[: len(used)], used)
    after = [arrays["video_latents"][0]]

    def remember(step: int, timestep: int, latents: np.ndarray) -> np.ndarray:
        after.append(latents[0])
        return latents

    first = replace(
        loop, timesteps=loop.timesteps[: len(used)], rows=loop.rows[: len(used)], on_step=remember
    )
    text = {"encoder_hidden_states": np.stack([arrays["text_uncond"]] * 2)}
    run_loop(golden_engines["lamp_unet"], (), first, arrays["video_latents"], text, Control())
    golden_close(np.stack(after), arrays[f"{case}/latents"], **GOLDEN_INVERSION)


@pytest.mark.golden
def test_the_first_frame_is_encoded_as_officially(
    golden: Golden,
    golden_close: GoldenClose,
    golden_bundle: Bundle,
    golden_engines: dict[str, Engine],
) -> None:
    arrays = golden("vae")
    out = golden_engines["vae_encoder"].run({"image": arrays["image"]})
    golden_close(out["latent_mean"], arrays["mean"], **GOLDEN_VAE)
    scaling = golden_bundle.manifest.scaling_factors["vae"]
    latents = posterior_sample(out["latent_mean"], out["latent_logvar"], arrays["eps"], scaling)
    golden_close(latents[:, :, 0], arrays["latents"], **GOLDEN_VAE)


# --- against the PyTorch reference ---------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["official", "paper"])
def test_a_video_from_a_prompt_and_a_picture_equals_the_references(
    preset: str, toy: Path, pipe: LampPipeline, picture: np.ndarray
) -> None:
    rng = np.random.default_rng(7)
    noise = rng.standard_normal((1, 4, 4, 8, 8)).astype(np.float32)
    base_noise = rng.standard_normal((1, 4, 1, 8, 8)).astype(np.float32) if preset == "paper" else None
    posterior_noise = rng.standard_normal((1, 4, 8, 8)).astype(np.float32)
    arguments: dict[str, Any] = {"num_inference_steps": 8, "adain_switch_step": 5, "preset": preset}
    video = pipe(
        "a car in rain",
        motion="rain",
        first_frame=picture,
        noise=noise,
        base_noise=base_noise,
        posterior_noise=posterior_noise,
        **arguments,
    )
    latents, decoded = reference_clip(
        toy,
        "rain",
        "a car in rain",
        video.first_frame,
        noise,
        posterior_noise,
        pipe.bundle.manifest.scheduler,
        base_noise,
        **arguments,
    )
    assert distance(video.latents, latents).rel_l2 <= PIPELINE_REL_L2
    mode = "official" if preset == "official" else "exact"
    frames = match_histograms(uint8_frames(decoded), mode)  # type: ignore[arg-type]
    difference = np.abs(video.frames.astype(int) - frames)
    assert difference.max() <= CLIP_LEVELS
    assert (difference == 0).mean() >= GOLDEN_GIF_EQUAL_SHARE


# --- behaviour --------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_video_and_another_another(
    pipe: LampPipeline, picture: np.ndarray
) -> None:
    first = pipe("a horse runs", first_frame=picture, num_inference_steps=2, seed=3)
    again = pipe("a horse runs", first_frame=picture, num_inference_steps=2, seed=3)
    other = pipe("a horse runs", first_frame=picture, num_inference_steps=2, seed=4)
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.latents, again.latents)
    assert np.abs(first.latents - other.latents).max() > 0.1


def test_switching_back_gives_the_first_motions_video_again(pipe: LampPipeline, picture: np.ndarray) -> None:
    videos = [
        pipe("x", motion=motion, first_frame=picture, num_inference_steps=2)
        for motion in ("horse_run", "rain", "horse_run")
    ]
    assert pipe.motion == "horse_run"
    np.testing.assert_array_equal(videos[0].latents, videos[2].latents)
    assert np.abs(videos[0].latents - videos[1].latents).max() > 1e-4


def test_a_video_knows_its_settings_timings_and_first_frame(pipe: LampPipeline, picture: np.ndarray) -> None:
    video = pipe("rain", motion="rain", first_frame=picture, num_inference_steps=1, seed=5, adain="none")
    assert video.frames.shape == (4, 64, 64, 3)
    assert video.frames.dtype == np.uint8
    assert video.first_frame.shape == (64, 64, 3)
    settings = json.loads(json.dumps(video.settings))
    assert settings["prompt"] == "rain"
    assert (settings["motion"], settings["seed"], settings["adain"]) == ("rain", 5, "none")
    assert settings["bundle"] == pipe.bundle.digest
    stages = {"motion", "text", "first_frame", "denoise", "decode", "histogram", "total"}
    assert video.timings.keys() == stages


def test_frame_0_is_the_clean_first_frame(pipe: LampPipeline, picture: np.ndarray) -> None:
    video = pipe("x", first_frame=picture, num_inference_steps=2, posterior_noise=np.zeros((1, 4, 8, 8)))
    encoded = pipe.encode_first_frame(video.first_frame, posterior_noise=np.zeros((1, 4, 8, 8)))
    np.testing.assert_array_equal(video.latents[:, :, :1], encoded)


def test_no_guidance_runs_the_conditional_text_alone(pipe: LampPipeline, picture: np.ndarray) -> None:
    plain = pipe("x", first_frame=picture, num_inference_steps=2, guidance_scale=1.0)
    other = pipe("x", first_frame=picture, num_inference_steps=2, guidance_scale=1.0, negative_prompt="y")
    np.testing.assert_array_equal(plain.latents, other.latents)


def test_callbacks_see_every_step_and_may_change_the_latents(pipe: LampPipeline, picture: np.ndarray) -> None:
    seen: list[tuple[int, int]] = []

    def watch(pipeline: LampPipeline, step: int, timestep: int, kwargs: dict[str, Any]) -> None:
        assert pipeline is pipe
        assert kwargs["latents"].shape == (1, 4, 4, 8, 8)
        seen.append((step, timestep))

    pipe("x", first_frame=picture, num_inference_steps=3, callback_on_step_end=watch)
    assert seen == [(0, 667), (1, 334), (2, 1)]

    def replace(_: Any, step: int, timestep: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"latents": np.ones_like(kwargs["latents"])}

    video = pipe("x", first_frame=picture, num_inference_steps=1, adain="none", callback_on_step_end=replace)
    np.testing.assert_array_equal(video.latents, np.ones_like(video.latents))


def test_a_callback_that_raises_leaves_the_pipeline_usable(pipe: LampPipeline, picture: np.ndarray) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    expected = pipe("x", first_frame=picture, num_inference_steps=2)
    with pytest.raises(KeyboardInterrupt):
        pipe("x", first_frame=picture, num_inference_steps=2, callback_on_step_end=stop)
    again = pipe("x", first_frame=picture, num_inference_steps=2)
    np.testing.assert_array_equal(again.frames, expected.frames)


def test_threads_share_a_pipeline_one_after_another(pipe: LampPipeline, picture: np.ndarray) -> None:
    expected = {
        motion: pipe("x", motion=motion, first_frame=picture, num_inference_steps=2).frames
        for motion in ("horse_run", "rain")
    }
    got: dict[int, np.ndarray] = {}

    def work(index: int) -> None:
        motion = ("horse_run", "rain")[index % 2]
        got[index] = pipe("x", motion=motion, first_frame=picture, num_inference_steps=2).frames

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(4):
        np.testing.assert_array_equal(got[index], expected[("horse_run", "rain")[index % 2]])


def test_a_long_prompt_is_cut_and_says_so(pipe: LampPipeline, caplog: pytest.LogCaptureFixture) -> None:
    long = "horse " * 90 + "penguin"
    embeddings = pipe.encode_prompt(long)
    assert embeddings.shape[:2] == (2, 77)
    assert "longer than 77 tokens" in caplog.text
    assert "penguin" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"first_frame": None}, InputError, "no first frame"),
        ({"first_frame": "/nowhere.png"}, InputError, "does not exist"),
        ({"motion": "unicorn"}, BundleError, "no motion 'unicorn'; known: horse_run, rain"),
        ({"num_inference_steps": 0}, InputError, "num_inference_steps is 0"),
        ({"preset": "mine"}, InputError, "preset is 'mine'; choose one of official, paper"),
        ({"adain": "some"}, InputError, "adain is 'some'"),
        ({"seed": -1}, InputError, "seed is -1"),
        ({"guidance_scale": float("nan")}, InputError, "guidance_scale is nan"),
        ({"noise": np.zeros((1, 4, 3, 8, 8))}, InputError, r"noise has shape \(1, 4, 3, 8, 8\)"),
        ({"posterior_noise": np.zeros((1, 4, 9, 8))}, InputError, "posterior_noise has shape"),
        ({"mix_noise": False}, InputError, "needs `noise`"),
        ({"base_noise": np.zeros((1, 4, 1, 8, 8))}, InputError, 'base_noise belongs to preset="paper"'),
    ],
)
def test_bad_arguments_are_refused(
    pipe: LampPipeline, picture: np.ndarray, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pipe("x", **{"first_frame": picture, "num_inference_steps": 1, **arguments})


def test_values_that_are_not_finite_stop_with_the_network_and_the_remedy() -> None:
    with pytest.raises(EngineError, match=r"the VAE .* not finite.*--precision fp32"):
        require_finite(np.array([np.inf], np.float16), "the VAE decoder at frame 3")
    with pytest.raises(EngineError, match=r"step 4 .* not finite.*--verify-files"):
        require_finite(np.array([np.nan], np.float32), "the LAMP UNet at step 4")


def test_numpys_numbers_are_taken_as_pythons(pipe: LampPipeline, picture: np.ndarray, tmp_path: Path) -> None:
    numbers = {"seed": np.int64(3), "num_inference_steps": np.int32(1), "guidance_scale": np.float32(7.5)}
    video = pipe("x", first_frame=picture, **numbers)  # type: ignore[arg-type]
    saved = video.save(tmp_path / "x.gif", fps=np.float32(8))  # type: ignore[arg-type]
    settings = json.loads(saved.with_name("x.gif.json").read_text())
    assert (settings["seed"], settings["num_inference_steps"], settings["guidance_scale"]) == (3, 1, 7.5)


def test_a_bundle_that_changed_since_it_was_loaded_is_not_switched(toy_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(toy_bundle, tmp_path / "copy")
    pipeline = lamp_trt.load(copy, num_threads=1)
    remove_motion(copy, "rain")
    with pytest.raises(BundleError, match=r"rain.*changed while the bundle was in use|is missing"):
        pipeline.set_motion("rain")
    assert pipeline.motion == "horse_run"


def test_a_partial_bundle_says_what_it_lacks(toy: Path, tmp_path: Path) -> None:
    build_bundle(tmp_path / "part", BuildOptions(sd=toy / "sd", only=("vae_decoder",), height=64, width=64))
    with pytest.raises(BundleError, match="lacks text_encoder, vae_encoder, lamp_unet"):
        lamp_trt.load(tmp_path / "part")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"backend": "magic"}, "backend is 'magic'"),
        ({"motion": "unicorn"}, "no motion 'unicorn'"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"expect_bundle": "0" * 64}, "000000"),
    ],
)
def test_bad_load_arguments_are_refused(toy_bundle: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, BundleError), match=message):
        lamp_trt.load(toy_bundle, **arguments)


def test_onnx_runtime_writes_no_lines_next_to_our_errors(
    toy_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnx
    from onnx import TensorProto, helper

    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
        helper.make_tensor_value_info("shape", TensorProto.INT64, [1]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m"])]
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    graph = helper.make_graph([node], "reshape", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    session = new_session(Bundle.open(toy_bundle), "reshape", model, ["CPUExecutionProvider"])
    with pytest.raises(Exception, match="Reshape"):
        session.run(None, {"x": np.zeros(4, np.float32), "shape": np.array([3])})
    assert capfd.readouterr().err == ""
