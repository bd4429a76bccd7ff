# SPDX-License-Identifier: Apache-2.0
"""First frames from text: SDXL's networks against PyTorch, the loop against diffusers, and text to video."""

import copy
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch

import lamp_trt
from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.cli import main
from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine
from lamp_trt.engine.backends.registry import host_engine
from lamp_trt.engine.bundle.manifest import FirstFrameEntry
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import BundleError, InputError
from lamp_trt.engine.families import FIRST_FRAME_NETWORKS, VIDEO_NETWORKS
from lamp_trt.engine.networks import IOTensor
from lamp_trt.export.build import build_bundle
from lamp_trt.runtime import load as load_module
from lamp_trt.runtime.algorithm.noise import Purpose, latent_noise
from lamp_trt.runtime.first_frame import FirstFrameMaker
from lamp_trt.runtime.load import load_first_frame_maker
from lamp_trt.runtime.pipeline import LampPipeline
from lamp_trt.runtime.requests import FirstFrameRequest, Placement
from tests.fixtures.sdxl import FIRST_FRAME_SIZE
from tests.fixtures.toy import toy_options
from tests.tolerances import (
    EXPORT_ATOL,
    FP16_YARDSTICK,
    SDXL_IMAGE_DIFFERING,
    SDXL_IMAGE_LEVELS,
    SDXL_LOOP_REL_L2,
    SDXL_UNET_REL_L2,
)

Arrays = dict[str, np.ndarray]
HEIGHT, WIDTH = FIRST_FRAME_SIZE.values()
NOISE_SHAPE = (1, 4, HEIGHT // 8, WIDTH // 8)
PROMPT = "a horse runs on the road at sunset, photograph"


@pytest.fixture(scope="module")
def diffusers_pipeline(sdxl: Path) -> Any:
    """diffusers' own pipeline on the same folder, with the scheduler that DESIGN pins."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl, add_watermarker=False)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config,
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="leading",
        steps_offset=1,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def maker(sdxl_bundle: Path) -> FirstFrameMaker:
    return load_first_frame_maker(Bundle.open(sdxl_bundle), Placement(num_threads=1))


@pytest.fixture(scope="module")
def pipe(sdxl_bundle: Path) -> LampPipeline:
    return lamp_trt.load(sdxl_bundle, num_threads=1)


def inputs_of(tensors: tuple[IOTensor, ...]) -> Arrays:
    rng = np.random.default_rng(0)
    arrays: Arrays = {}
    for tensor in tensors:
        if tensor.name == "input_ids":
            arrays[tensor.name] = rng.integers(1, 1536, tensor.shape)
            arrays[tensor.name][0, 9:], arrays[tensor.name][1, 5:] = 1537, 1537
            arrays[tensor.name][1, 6:] = 0  # SDXL's second tokenizer pads with 0
        elif tensor.name == "timestep":
            arrays[tensor.name] = np.array([501], np.float32)
        elif tensor.name == "time_ids":
            arrays[tensor.name] = np.array([[HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH]] * 2, np.float32)
        else:
            arrays[tensor.name] = rng.standard_normal(tensor.shape).astype(tensor.dtype)
    return arrays


@torch.inference_mode()
def diffusers_outputs(network: str, pipeline: Any, arrays: Arrays) -> list[np.ndarray]:
    """What the libraries' own models return, by their public interface."""
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    if network == "sdxl_text_encoder":
        outputs = [pipeline.text_encoder(*tensors, output_hidden_states=True).hidden_states[-2]]
    elif network == "sdxl_text_encoder_2":
        text = pipeline.text_encoder_2(*tensors, output_hidden_states=True)
        outputs = [text.hidden_states[-2], text.text_embeds]
    elif network == "sdxl_unet":
        sample, timestep, hidden_states, text_embeds, time_ids = tensors
        conditions = {"text_embeds": text_embeds, "time_ids": time_ids}
        outputs = [pipeline.unet(sample, timestep, hidden_states, added_cond_kwargs=conditions).sample]
    else:
        outputs = [pipeline.vae.decode(*tensors).sample]
    return [output.float().numpy() for output in outputs]


@pytest.mark.parametrize("network", FIRST_FRAME_NETWORKS)
def test_each_network_equals_the_librarys_own(
    network: str, sdxl_bundle: Path, diffusers_pipeline: Any, one_thread: None
) -> None:
    bundle = Bundle.open(sdxl_bundle)
    onnx.checker.check_model(str(bundle.graph_path(network)), full_check=True)
    engine = OnnxRuntimeEngine(bundle, network, num_threads=1)
    arrays = inputs_of(engine.inputs)
    actual = engine.run(arrays)
    expected = diffusers_outputs(network, diffusers_pipeline, arrays)
    for tensor, value in zip(engine.outputs, expected, strict=True):
        assert actual[tensor.name].shape == value.shape
        assert np.abs(actual[tensor.name] - value).max() <= EXPORT_ATOL
        assert distance(actual[tensor.name], value).rel_l2 <= SDXL_UNET_REL_L2


def test_the_networks_have_the_shapes_that_sdxl_has(sdxl_bundle: Path) -> None:
    manifest = Bundle.open(sdxl_bundle).manifest
    unet = manifest.networks["sdxl_unet"]
    assert {tensor.name: (tensor.shape, tensor.dtype) for tensor in unet.inputs} == {
        "sample": ((2, 4, 12, 20), "float32"),
        "timestep": ((1,), "float32"),
        "encoder_hidden_states": ((2, 77, 32 + 40), "float32"),
        "text_embeds": ((2, 24), "float32"),
        "time_ids": ((2, 6), "float32"),
    }
    assert manifest.scaling_factors == {"vae": 0.18215, "sdxl_vae": 0.13025}
    assert manifest.first_frame is not None
    assert manifest.first_frame.force_zeros_for_empty_prompt
    assert manifest.first_frame.scheduler["_class_name"] == "EulerDiscreteScheduler"


def test_clip_attends_causally_without_a_mask_and_stops_before_its_last_layer(sdxl_bundle: Path) -> None:
    bundle = Bundle.open(sdxl_bundle)
    for network, layers in (("sdxl_text_encoder", 2), ("sdxl_text_encoder_2", 3)):
        graph = onnx.load(bundle.graph_path(network), load_external_data=False).graph
        attentions = [node for node in graph.node if node.op_type == "Attention"]
        assert len(attentions) == layers
        assert all(len(node.input) == 3 for node in attentions)
        assert all(any(a.name == "is_causal" and a.i == 1 for a in node.attribute) for node in attentions)
    graph = onnx.load(bundle.graph_path("sdxl_text_encoder"), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer if tensor.external_data}
    assert any(name.startswith("encoder.layers.1.") for name in weights)
    assert not any(name.startswith(("encoder.layers.2.", "final_layer_norm")) for name in weights)


@pytest.mark.slow
def test_fp16_graphs_stay_within_twice_pytorchs_own_error(
    toy: Path, sdxl: Path, tmp_path: Path, diffusers_pipeline: Any, one_thread: None
) -> None:
    networks = ("sdxl_text_encoder_2", "sdxl_unet")
    options = toy_options(toy, sd=None, motions={}, sdxl=sdxl, precision="fp16", only=networks)
    build_bundle(tmp_path / "fp16", options)
    bundle = Bundle.open(tmp_path / "fp16")
    half = SimpleNamespace(
        text_encoder_2=copy.deepcopy(diffusers_pipeline.text_encoder_2).half(),
        unet=copy.deepcopy(diffusers_pipeline.unet).half(),
    )
    for network in networks:
        engine = OnnxRuntimeEngine(bundle, network, num_threads=1)
        assert {tensor.dtype for tensor in engine.outputs} == {"float16"}
        arrays = inputs_of(engine.inputs)
        actual = engine.run(arrays)
        wide = {name: a.astype(np.float32) if a.dtype == np.float16 else a for name, a in arrays.items()}
        exact = diffusers_outputs(network, diffusers_pipeline, wide)
        own = diffusers_outputs(network, half, arrays)
        for tensor, rounded, single in zip(engine.outputs, own, exact, strict=True):
            yardstick = distance(rounded, single)
            assert yardstick.finite
            assert distance(actual[tensor.name], single).rel_l2 <= FP16_YARDSTICK * yardstick.rel_l2


@pytest.mark.parametrize(
    ("negative_prompt", "guidance_scale", "steps"),
    [(None, 5.0, 50), ("rain, dark", 7.5, 7), ("", 5.0, 3), (None, 1.0, 3)],
    ids=["default", "negative prompt", "empty negative prompt", "no guidance"],
)
def test_every_step_and_the_image_equal_diffusers(
    negative_prompt: str | None,
    guidance_scale: float,
    steps: int,
    maker: FirstFrameMaker,
    diffusers_pipeline: Any,
    one_thread: None,
) -> None:
    noise = np.random.default_rng(1).standard_normal(NOISE_SHAPE).astype(np.float32)
    theirs: list[np.ndarray] = []

    def keep(_: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        theirs.append(kwargs["latents"].numpy().copy())
        return kwargs

    expected = diffusers_pipeline(
        PROMPT,
        negative_prompt=negative_prompt,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        latents=torch.from_numpy(noise),
        callback_on_step_end=keep,
    ).images[0]
    ours: list[np.ndarray] = []

    def watch(step: int, timestep: int, latents: np.ndarray) -> np.ndarray:
        ours.append(latents)
        return latents

    request = FirstFrameRequest(
        PROMPT, negative_prompt, num_inference_steps=steps, guidance_scale=guidance_scale, noise=noise
    )
    made = maker(request, on_step=watch)
    assert len(ours) == len(theirs) == steps
    worst = max(distance(mine, other).rel_l2 for mine, other in zip(ours, theirs, strict=True))
    assert worst <= SDXL_LOOP_REL_L2
    assert np.abs(ours[-1] - noise).max() > 0.1
    assert made.image.shape == (HEIGHT, WIDTH, 3)
    levels = np.abs(made.image.astype(int) - np.asarray(expected))
    assert levels.max() <= SDXL_IMAGE_LEVELS
    assert np.mean(levels > 0) <= SDXL_IMAGE_DIFFERING
    assert made.image.std() > 1


def test_no_negative_prompt_is_zeros_where_the_checkpoint_says_so(maker: FirstFrameMaker) -> None:
    zero_states, zero_pooled = maker.encode_prompt(PROMPT)
    assert not zero_states[0].any()
    assert not zero_pooled[0].any()
    empty_states, empty_pooled = maker.encode_prompt(PROMPT, "")
    assert np.abs(empty_states[0]).max() > 0.1
    np.testing.assert_array_equal(zero_states[1], empty_states[1])
    np.testing.assert_array_equal(zero_pooled[1], empty_pooled[1])
    origin = FirstFrameEntry({}, force_zeros_for_empty_prompt=False)
    manifest = dataclasses.replace(maker.bundle.manifest, first_frame=origin)
    bundle = dataclasses.replace(maker.bundle, manifest=manifest)
    other = FirstFrameMaker(bundle, lambda: maker.ops, maker._tokenizers)
    np.testing.assert_array_equal(other.encode_prompt(PROMPT)[0], empty_states)


def test_the_second_tokenizer_pads_with_id_0(maker: FirstFrameMaker) -> None:
    first, second = (tokenizer("horse").input_ids[0] for tokenizer in maker._tokenizers)
    assert (first[:3] == second[:3]).all()
    assert set(first[3:]) == {first[2]}
    assert set(second[3:]) == {0}


def test_a_seed_draws_from_sdxls_own_stream(maker: FirstFrameMaker) -> None:
    drawn = maker(FirstFrameRequest("x", seed=3, num_inference_steps=1))
    noise = latent_noise(3, Purpose.SDXL_LATENTS, NOISE_SHAPE)
    np.testing.assert_array_equal(
        drawn.latents, maker(FirstFrameRequest("x", noise=noise, num_inference_steps=1)).latents
    )
    assert (
        np.abs(drawn.latents - maker(FirstFrameRequest("x", seed=4, num_inference_steps=1)).latents).max()
        > 0.1
    )


# --- text to video ------------------------------------------------------------------------------------


def test_a_video_begins_with_the_frame_that_sdxl_makes(
    pipe: LampPipeline, maker: FirstFrameMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"seed": 5, "num_inference_steps": 2}
    video = pipe(
        PROMPT,
        first_frame_prompt="a red car",
        first_frame_num_inference_steps=3,
        first_frame_guidance_scale=4.0,
        negative_prompt="dark",
        **options,
    )
    made = maker(FirstFrameRequest("a red car", "dark", 5, 3, 4.0))
    np.testing.assert_array_equal(video.first_frame, made.image)
    settings = json.loads(json.dumps(video.settings))
    assert settings["first_frame_prompt"] == "a red car"
    assert settings["first_frame_num_inference_steps"] == 3
    assert settings["first_frame_guidance_scale"] == 4.0
    stages = {"motion", "text", "make_first_frame", "first_frame", "denoise", "decode", "histogram", "total"}
    assert video.timings.keys() == stages
    again = pipe(PROMPT, first_frame=video.first_frame, negative_prompt="dark", **options)
    np.testing.assert_array_equal(again.frames, video.frames)
    assert again.first_frame.shape == (64, 64, 3)
    assert "first_frame_prompt" not in again.settings


def test_the_prompt_is_the_first_frames_prompt_too(pipe: LampPipeline, maker: FirstFrameMaker) -> None:
    noise = np.random.default_rng(2).standard_normal(NOISE_SHAPE)
    video = pipe(PROMPT, num_inference_steps=1, first_frame_num_inference_steps=2, first_frame_noise=noise)
    made = pipe.make_first_frame(PROMPT, num_inference_steps=2, noise=noise)
    np.testing.assert_array_equal(video.first_frame, made.image)
    np.testing.assert_array_equal(
        made.latents, maker(FirstFrameRequest(PROMPT, num_inference_steps=2, noise=noise)).latents
    )
    assert video.settings["injected"] == []  # the sidecar holds the image
    assert made.settings["injected"] == ["noise"]


def test_making_a_first_frame_calls_back_at_every_step(pipe: LampPipeline) -> None:
    seen: list[tuple[int, int]] = []

    def watch(pipeline: LampPipeline, step: int, timestep: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        assert pipeline is pipe
        seen.append((step, timestep))
        return {"latents": np.zeros_like(kwargs["latents"])}

    made = pipe.make_first_frame("x", num_inference_steps=2, callback_on_step_end=watch)
    assert seen == [(0, 501), (1, 1)]
    assert not made.latents.any()


def test_sdxl_is_loaded_only_when_a_first_frame_is_to_be_made(
    sdxl_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def recording(backend: str, bundle: Bundle, network: str, **options: Any) -> Any:
        loaded.append(network)
        return host_engine(backend, bundle, network, **options)

    monkeypatch.setattr(load_module, "host_engine", recording)
    pipe = lamp_trt.load(sdxl_bundle, num_threads=1)
    pipe("x", first_frame=np.full((8, 8, 3), 99, np.uint8), num_inference_steps=1)
    assert loaded == [*VIDEO_NETWORKS]
    loaded.clear()
    for _ in range(2):
        pipe.make_first_frame("x", num_inference_steps=1)
    assert loaded == [*FIRST_FRAME_NETWORKS]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"first_frame": np.zeros((8, 8, 3), np.uint8), "first_frame_prompt": "y"}, "either first_frame, or"),
        ({"first_frame_noise": np.zeros((1, 4, 20, 12))}, r"first_frame_noise has shape \(1, 4, 20, 12\)"),
        ({"first_frame_num_inference_steps": 0}, "first_frame_num_inference_steps is 0"),
        ({"first_frame_guidance_scale": float("inf")}, "first_frame_guidance_scale is inf"),
        ({"first_frame_prompt": 3}, "first_frame_prompt is 3"),
        ({"fit": "squeeze"}, "fit is 'squeeze'"),
        ({"noise": np.zeros((1, 4, 3, 8, 8))}, "noise has shape"),
    ],
)
def test_bad_first_frame_arguments_are_refused(
    pipe: LampPipeline, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        pipe("x", **arguments)


def test_a_bundle_without_sdxl_says_what_to_do(toy_bundle: Path, tmp_path: Path) -> None:
    pipe = lamp_trt.load(toy_bundle, num_threads=1)
    for call in (lambda: pipe("x"), lambda: pipe.make_first_frame("x")):
        with pytest.raises(InputError, match=r"lacks sdxl_text_encoder, .*--first-frame IMAGE.*--sdxl DIR"):
            call()
    with pytest.raises(BundleError, match=r"cannot make first frames, it lacks .*lamp-trt build --sdxl"):
        load_first_frame_maker(Bundle.open(toy_bundle))


def test_prompts_in_any_script_make_images(maker: FirstFrameMaker) -> None:
    for prompt in ("", "!", "一匹马在路上奔跑", "حصان 🐎", "x " * 400):
        assert maker(FirstFrameRequest(prompt, num_inference_steps=1)).image.shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(InputError, match="is not all text"):
        maker(FirstFrameRequest("\ud800", num_inference_steps=1))


def test_generate_goes_from_text_to_video_and_image_makes_its_first_frame(
    sdxl_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, steps = f"--bundle={sdxl_bundle}", "--steps=2"
    clip, picture = tmp_path / "clip.mp4", tmp_path / "picture.png"
    command = ["generate", "a horse runs", bundle, steps, "--first-frame-steps=3", f"--out={clip}"]
    assert main([*command, "--motion=horse_run", "--save-first-frame", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["first_frame"] == str(tmp_path / "clip.first_frame.png")
    assert main(["image", "a horse runs", bundle, "--steps=3", f"--out={picture}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["num_inference_steps"] == 3
    saved = cv2.imread(result["first_frame"])
    assert saved.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(saved, cv2.imread(str(picture)))
    assert json.loads((tmp_path / "picture.png.json").read_text())["prompt"] == "a horse runs"

    again = tmp_path / "again.mp4"
    assert main(["generate", bundle, f"--from={clip}.json", f"--out={again}"]) == 0
    assert again.read_bytes() == clip.read_bytes()
    first, second = (json.loads(Path(f"{path}.json").read_text()) for path in (clip, again))
    assert first == second
    given = tmp_path / "given.mp4"
    command = ["generate", "a horse runs", bundle, steps, f"--first-frame={picture}", f"--out={given}"]
    assert main(command) == 0
    assert given.read_bytes() == clip.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out=picture.jpg"], "not a .png file"),
        (["--out=/nowhere/picture.png"], "'/nowhere' does not exist"),
        (["--seed=-1"], "seed is -1"),
        (["--num-threads=0"], "num_threads is 0"),
        (["--steps=0"], "first_frame_num_inference_steps is 0"),
    ],
)
def test_image_refuses_bad_requests_and_leaves_nothing(
    arguments: list[str],
    message: str,
    sdxl_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["image", "x", f"--bundle={sdxl_bundle}", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
