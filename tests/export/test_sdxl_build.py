# SPDX-License-Identifier: Apache-2.0
"""Building SDXL into bundles: weights that are shared, sizes, and folders of other kinds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.errors import BundleError, CheckpointError, InputError
from lamp_trt.export.build import build_bundle
from lamp_trt.export.planned import FileMaker, PlannedFile
from lamp_trt.export.published import SDXL_SCHEDULER
from lamp_trt.export.recipe import BuildOptions, Recipe, recipe_from_options
from lamp_trt.runtime.load import load_first_frame_maker
from tests.fixtures.sdxl import FIRST_FRAME_SIZE
from tests.fixtures.toy import toy_options

HEIGHT, WIDTH = FIRST_FRAME_SIZE.values()
PROMPT = "a horse runs on the road"


@pytest.fixture
def bundle(sdxl_bundle: Path, tmp_path: Path) -> Path:
    """A copy of sdxl_bundle that a test may change."""
    return Path(shutil.copytree(sdxl_bundle, tmp_path / "copy"))


def external_files(bundle: Path, network: str) -> set[str]:
    model = onnx.load(bundle / f"{network}.onnx", load_external_data=False)
    return {e.value for i in model.graph.initializer for e in i.external_data if e.key == "location"}


def files_of(bundle: Path) -> dict[str, bytes]:
    files = (path for path in sorted(bundle.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path.relative_to(bundle).as_posix(): path.read_bytes() for path in files}


def made_by(report: Any) -> list[str]:
    return [file.path for file in report.files if file.seconds is not None]


def test_equal_text_encoders_are_stored_once(sdxl_bundle: Path) -> None:
    manifest = Bundle.open(sdxl_bundle, verify="full").manifest
    assert manifest.networks["sdxl_text_encoder"].component == "text_encoder"
    assert "weights/sdxl_text_encoder.safetensors" not in manifest.files
    assert external_files(sdxl_bundle, "sdxl_text_encoder") == {"weights/text_encoder.safetensors"}
    assert external_files(sdxl_bundle, "sdxl_text_encoder_2") == {"weights/sdxl_text_encoder_2.safetensors"}


def test_a_second_build_makes_nothing_and_loads_no_torch(
    toy: Path, sdxl: Path, bundle: Path, run_python: Callable[[str], str]
) -> None:
    before = files_of(bundle)
    code = f"""
import sys
from pathlib import Path
from lamp_trt.export.build import build_bundle
from lamp_trt.export.recipe import BuildOptions
toy = Path({str(toy)!r})
motions = {{name: toy / "motions" / name for name in ("horse_run", "rain")}}
options = BuildOptions(sd=toy / "sd", motions=motions, sdxl=Path({str(sdxl)!r}), height=64, width=64,
    num_frames=4, first_frame_height={HEIGHT}, first_frame_width={WIDTH})
report = build_bundle(Path({str(bundle)!r}), options)
print(sum(file.seconds is not None for file in report.files), "torch" in sys.modules)
"""
    assert run_python(code).splitlines()[-1] == "0 False"
    assert files_of(bundle) == before


@pytest.mark.parametrize("order", ["sd first", "sdxl first"])
def test_text_encoders_are_shared_whatever_is_built_first(
    order: str, toy: Path, sdxl: Path, sdxl_bundle: Path, tmp_path: Path
) -> None:
    sd_half = toy_options(toy, motions={}, only=("text_encoder",))
    sdxl_half = toy_options(
        toy, sd=None, motions={}, sdxl=sdxl, only=("sdxl_text_encoder",), **FIRST_FRAME_SIZE
    )
    halves = [sd_half, sdxl_half] if order == "sd first" else [sdxl_half, sd_half]
    build_bundle(tmp_path / "bundle", halves[0])
    report = build_bundle(tmp_path / "bundle", halves[1])
    assert "sdxl_text_encoder.onnx" in made_by(report)
    both, whole = files_of(tmp_path / "bundle"), files_of(sdxl_bundle)
    assert "weights/sdxl_text_encoder.safetensors" not in both
    for path in both.keys() - {"bundle.json"}:
        assert both[path] == whole[path], path
    entry = Bundle.open(tmp_path / "bundle").network("sdxl_text_encoder")
    assert entry == Bundle.open(sdxl_bundle).network("sdxl_text_encoder")
    assert made_by(build_bundle(tmp_path / "bundle", sdxl_half)) == []


def test_an_interrupted_build_still_shares(
    toy: Path, sdxl: Path, sdxl_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = toy_options(
        toy, motions={}, sdxl=sdxl, only=("text_encoder", "sdxl_text_encoder"), **FIRST_FRAME_SIZE
    )
    make = FileMaker.make

    def interrupted(self: Any, planned: PlannedFile) -> Any:
        if planned.path == "sdxl_text_encoder.onnx":
            raise KeyboardInterrupt
        return make(self, planned)

    with monkeypatch.context() as patch:
        patch.setattr(FileMaker, "make", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_bundle(tmp_path / "bundle", options)
    made = made_by(build_bundle(tmp_path / "bundle", options))
    assert made[0] == "sdxl_text_encoder.onnx"
    resumed = (tmp_path / "bundle" / "sdxl_text_encoder.onnx").read_bytes()
    assert resumed == (sdxl_bundle / "sdxl_text_encoder.onnx").read_bytes()


def test_a_different_text_encoder_is_stored_for_itself_and_a_borrowed_one_is_not_pulled_away(
    toy: Path, sdxl: Path, bundle: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(toy / "sd", tmp_path / "sd")
    weights = other / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    tensors["text_model.encoder.layers.0.mlp.fc1.bias"] += 1
    save_file(tensors, weights)
    with pytest.raises(BundleError, match=r"sdxl_text_encoder uses the weights of text_encoder.*--sdxl"):
        build_bundle(bundle, toy_options(toy, sd=other, motions={}, only=("text_encoder",)))
    before = load_first_frame_maker(Bundle.open(bundle)).encode_prompt(PROMPT)[0]
    networks = ("text_encoder", "sdxl_text_encoder")
    options = toy_options(toy, sd=other, motions={}, sdxl=sdxl, only=networks, **FIRST_FRAME_SIZE)
    build_bundle(bundle, options)
    manifest = Bundle.open(bundle).manifest
    assert manifest.networks["sdxl_text_encoder"].component == "sdxl_text_encoder"
    assert external_files(bundle, "sdxl_text_encoder") == {"weights/sdxl_text_encoder.safetensors"}
    np.testing.assert_array_equal(
        load_first_frame_maker(Bundle.open(bundle)).encode_prompt(PROMPT)[0], before
    )


def test_the_vae_stays_fp32_and_only_its_decoder_is_stored(toy: Path, sdxl: Path, tmp_path: Path) -> None:
    only = ("sdxl_vae_decoder",)
    build_bundle(
        tmp_path / "fp16", toy_options(toy, sd=None, motions={}, sdxl=sdxl, precision="fp16", only=only)
    )
    bundle = Bundle.open(tmp_path / "fp16")
    entry = bundle.network("sdxl_vae_decoder")
    assert entry.precision == "fp32"
    assert {tensor.dtype for tensor in (*entry.inputs, *entry.outputs)} == {"float32"}
    assert entry.inputs[0].shape == (1, 4, 16, 16)
    stored = read_weight_file(bundle.path / "weights" / "sdxl_vae.safetensors").tensors
    assert {ref.dtype for ref in stored.values()} == {"F32"}
    assert {name.split(".")[0] for name in stored} == {"decoder", "post_quant_conv"}


# --- sizes --------------------------------------------------------------------------------------------


def recipe(sdxl: Path, **changes: Any) -> Recipe:
    return recipe_from_options(BuildOptions(sdxl=sdxl, **changes))


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (640, 1024)),
        ({"height": 256, "width": 384}, (512, 768)),
        ({"first_frame_height": 1024}, (1024, 1024)),
        ({"first_frame_height": 1024, "first_frame_width": 1016}, (1024, 1016)),
    ],
)
def test_the_first_frame_is_twice_the_video_unless_asked_for_otherwise(
    sdxl: Path, changes: dict[str, int], size: tuple[int, int]
) -> None:
    sizes = recipe(sdxl, **changes).sizes
    assert (sizes["first_frame_height"], sizes["first_frame_width"]) == size
    assert sizes["first_frame_latent_height"] == size[0] // 8
    assert (sizes["sdxl_text_width"], sizes["sdxl_text_2_width"], sizes["sdxl_context_width"]) == (32, 40, 72)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_frame_height": 100}, r"first_frame_height is 100; .* multiples of 8: try 96 or 104"),
        ({"first_frame_width": 0}, "first_frame_width is 0; it must be a positive"),
        (
            {"sdxl": None, "sd": Path("x"), "first_frame_width": 64},
            "but no SDXL network is built: add --sdxl",
        ),
        ({"only": ("text_encoder",)}, "text_encoder needs a checkpoint that was not given: add --sd DIR"),
        ({"sdxl": None, "sd": Path("x"), "only": ("sdxl_unet",)}, "sdxl_unet needs .*: add --sdxl DIR"),
    ],
)
def test_sizes_and_networks_that_do_not_fit_are_refused(
    sdxl: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        recipe(**{"sdxl": sdxl, **changes})


def test_a_first_frame_of_another_shape_than_the_video_is_warned_of(
    sdxl: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe(sdxl, height=320, width=512)
    assert caplog.records == []
    recipe(sdxl, height=320, width=512, first_frame_height=512, first_frame_width=512)
    assert "the first frame, 512x512, has another aspect ratio than the video, 512x320" in caplog.text


@pytest.mark.slow
def test_a_size_that_the_unet_halves_unevenly_equals_diffusers(sdxl: Path, tmp_path: Path) -> None:
    import torch
    from diffusers import UNet2DConditionModel

    from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine

    odd = {"first_frame_height": 72, "first_frame_width": 104}
    build_bundle(tmp_path / "odd", BuildOptions(sdxl=sdxl, only=("sdxl_unet",), **odd))
    engine = OnnxRuntimeEngine(Bundle.open(tmp_path / "odd"), "sdxl_unet")
    rng = np.random.default_rng(0)
    arrays = {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in engine.inputs}
    actual = engine.run(arrays)["noise_pred"]
    sample, _, states, pooled, ids = map(torch.from_numpy, arrays.values())
    with torch.inference_mode():
        timestep = torch.from_numpy(arrays["timestep"])
        conditions = {"text_embeds": pooled, "time_ids": ids}
        unet = UNet2DConditionModel.from_pretrained(sdxl / "unet")
        expected = unet(sample, timestep, states, added_cond_kwargs=conditions).sample.numpy()
    assert actual.shape == (2, 4, 9, 13)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


# --- folders of other kinds ---------------------------------------------------------------------------


def changed(file: str, **fields: Any) -> Callable[[Path], None]:
    """An edit of one JSON file in a checkpoint folder."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **fields}))

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (changed("model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline"), "is SDXL's refiner"),
        (
            changed("model_index.json", _class_name="StableDiffusionXLInpaintPipeline"),
            "is an inpainting model",
        ),
        (
            changed("model_index.json", _class_name="StableDiffusionPipeline"),
            r"another family \(StableDiffusionPipeline\); give it as --sd",
        ),
        (changed("model_index.json", _class_name="FluxPipeline"), "describes FluxPipeline"),
        (lambda folder: (folder / "model_index.json").unlink(), "model_index.json is missing"),
        (changed("unet/config.json", in_channels=9), "9 input channels: it is an inpainting model"),
        (changed("unet/config.json", addition_embed_type=None), "addition_embed_type None"),
        (changed("unet/config.json", time_cond_proj_dim=256), "it is distilled, like LCM"),
        (changed("unet/config.json", cross_attention_dim=64), "cross_attention_dim is 64, .* is 72"),
        (changed("text_encoder_2/config.json", projection_dim=25), "share of text_embeds is 24, .* is 25"),
        (changed("text_encoder_2/config.json", max_position_embeddings=64), "text length is 64, .* is 77"),
        (changed("vae/config.json", latents_mean=[0.0] * 4), "latents_mean, which SDXL does not"),
        (
            changed("scheduler/scheduler_config.json", prediction_type="v_prediction"),
            "prediction_type 'v_prediction'; only 'epsilon'",
        ),
        (
            changed("scheduler/scheduler_config.json", beta_schedule="squaredcos_cap_v2"),
            "beta_schedule 'squaredcos_cap_v2'; supported are linear and scaled_linear",
        ),
        (
            changed("scheduler/scheduler_config.json", trained_betas=[0.1]),
            r"has trained_betas \[0\.1\]; supported is null",
        ),
        (lambda folder: shutil.rmtree(folder / "text_encoder_2"), "no text_encoder_2/config.json"),
        (lambda folder: (folder / "tokenizer_2" / "merges.txt").unlink(), "no tokenizer_2/vocab.json and"),
        (lambda folder: shutil.rmtree(folder), "does not exist"),
    ],
)
def test_other_folders_than_sdxl_base_are_refused_before_torch_is_loaded(
    sdxl: Path, tmp_path: Path, edit: Callable[[Path], None], message: str
) -> None:
    folder = Path(shutil.copytree(sdxl, tmp_path / "sdxl"))
    edit(folder)
    with pytest.raises(CheckpointError, match=message):
        recipe(folder)


def test_components_of_another_class_are_refused(sdxl: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sdxl, tmp_path / "sdxl"))
    changed("text_encoder_2/config.json", architectures=["CLIPTextModel"])(folder)
    options = BuildOptions(sdxl=folder, only=("sdxl_text_encoder_2",))
    with pytest.raises(
        CheckpointError, match="describes CLIPTextModel, expected CLIPTextModelWithProjection"
    ):
        build_bundle(tmp_path / "bundle", options)


def test_sdxl_given_as_stable_diffusion_is_refused(sdxl: Path) -> None:
    with pytest.raises(CheckpointError, match=r"StableDiffusionXLPipeline; --sd takes .* Give it as --sdxl"):
        recipe_from_options(BuildOptions(sd=sdxl))


def test_stable_diffusion_2_does_not_fit_lamp_and_1_5_does(toy: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy / "sd", tmp_path / "sd"))
    motions = {"rain": toy / "motions" / "rain"}
    changed("model_index.json", _diffusers_version="0.6.0", requires_safety_checker=True)(folder)
    recipe_from_options(BuildOptions(sd=folder, motions=motions))
    changed("text_encoder/config.json", hidden_size=1024)(folder)
    with pytest.raises(CheckpointError, match=r"hidden_size is 1024. LAMP is trained on .* v1\.4"):
        recipe_from_options(BuildOptions(sd=folder, motions=motions))
    changed("scheduler/scheduler_config.json", prediction_type="v_prediction")(folder)
    with pytest.raises(CheckpointError, match="prediction_type 'v_prediction'"):
        recipe_from_options(BuildOptions(sd=folder))


def test_what_the_checkpoint_says_of_empty_prompts_is_recorded(sdxl: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sdxl, tmp_path / "sdxl"))
    changed("model_index.json", force_zeros_for_empty_prompt=False)(folder)
    assert recipe(folder).first_frame is not None
    assert not recipe(folder).first_frame.force_zeros_for_empty_prompt  # type: ignore[union-attr]
    assert recipe(sdxl).first_frame.force_zeros_for_empty_prompt  # type: ignore[union-attr]
    assert recipe(sdxl).first_frame.scheduler == SDXL_SCHEDULER  # type: ignore[union-attr]
