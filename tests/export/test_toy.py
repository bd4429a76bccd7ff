# SPDX-License-Identifier: Apache-2.0
"""The toy checkpoints: published form, the same bytes for the same seed, and videos worth looking at."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from lamp_trt.engine.errors import InputError
from lamp_trt.engine.networks import is_motion_tensor
from lamp_trt.export.checkpoints.tensors import load_vae
from lamp_trt.export.lamp.lean_unet import make_lean
from lamp_trt.export.lamp.reference import denoise
from lamp_trt.export.lamp.unet import LampUNet, load_lamp_unet, two_dimensional_name
from lamp_trt.export.toy.checkpoints import write_toy
from lamp_trt.export.toy.images import draw_images
from lamp_trt.export.toy.lamp import CONFIG
from lamp_trt.export.toy.tokenizer import learn_merges
from lamp_trt.export.toy.training import reproducible
from lamp_trt.export.toy.vae import encode
from tests.export.lamp.inflation import inflate
from tests.tolerances import TOY_LOOP_REL_L2

pytestmark = pytest.mark.usefixtures("one_thread")
MOTIONS = ("horse_run", "rain")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as `toy`, with sdxl."""
    folder = tmp_path_factory.mktemp("whole") / "toy"
    write_toy(folder, training=0)
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another seed, stored in half precision."""
    folder = tmp_path_factory.mktemp("half") / "toy"
    write_toy(folder, seed=1, variant="fp16", training=0, sdxl=False)
    return folder


def test_motions_are_pickled_as_diffusers_does(toy: Path) -> None:
    """Their archives name the file, so that their bytes do not depend on how they were written."""
    path = toy / "motions" / "rain" / "unet" / "diffusion_pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {path.stem}


def motion_tensors(folder: Path, motion: str) -> dict[str, Tensor]:
    path = folder / "motions" / motion / "unet" / "diffusion_pytorch_model.bin"
    tensors: dict[str, Tensor] = torch.load(path, weights_only=True)
    return tensors


def first_frame_latents(folder: Path, height: int, width: int) -> Tensor:
    picture = draw_images(1, 8 * height, 8 * width, torch.Generator().manual_seed(2))
    return encode(load_vae(folder / "sd"), picture).unsqueeze(2)


@pytest.fixture(scope="module", params=[10, pytest.param(50, marks=pytest.mark.slow)])
def videos(request: pytest.FixtureRequest, toy: Path) -> dict[str, Tensor]:
    """Latents (1, 4, 8, 12, 16) of each motion, all from the same noise.

    "double" is horse_run's in double precision.
    """
    first = first_frame_latents(toy, 12, 16)
    with reproducible(0) as generator:
        noise = torch.randn(1, 4, 8, 12, 16, generator=generator)
        text = torch.randn(2, 77, CONFIG.cross_attention_dim, generator=generator)

        def video(motion: str, dtype: torch.dtype) -> Tensor:
            unet = make_lean(load_lamp_unet(toy / "motions" / motion, dtype))
            arguments = (t.to(dtype) for t in (first, noise, text))
            return denoise(unet, *arguments, num_inference_steps=request.param)

        videos = {motion: video(motion, torch.float32) for motion in MOTIONS}
        return videos | {"double": video("horse_run", torch.float64)}


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_the_same_seed_gives_the_same_bytes_with_or_without_the_rest(toy: Path, whole: Path) -> None:
    """SDXL and the safety checker."""

    def digests(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for part in ("sd", "motions")
            for path in sorted((folder / part).rglob("*"))
            if path.is_file()
        }

    assert len(digests(toy)) == 18
    ours, with_all = digests(toy), digests(whole)
    assert with_all.keys() - ours.keys() == {
        "sd/feature_extractor/preprocessor_config.json",
        "sd/safety_checker/config.json",
        "sd/safety_checker/model.safetensors",
    }
    assert {path for path in ours if ours[path] != with_all[path]} == {"sd/model_index.json"}
    assert (whole / "flagged.png").is_file()


def test_another_seed_gives_other_weights_and_half_precision_is_a_variant(toy: Path, half: Path) -> None:
    names = {str(p.relative_to(half)) for p in (half / "sd").rglob("*.safetensors")}
    assert names == {
        "sd/safety_checker/model.fp16.safetensors",
        "sd/text_encoder/model.fp16.safetensors",
        "sd/unet/diffusion_pytorch_model.fp16.safetensors",
        "sd/vae/diffusion_pytorch_model.fp16.safetensors",
    }
    tensors = load_file(half / "sd/text_encoder/model.fp16.safetensors")
    assert tensors.pop("text_model.embeddings.position_ids").dtype == torch.int64
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert {t.dtype for t in motion_tensors(half, "rain").values()} == {torch.float32}
    other = load_file(toy / "sd/text_encoder/model.safetensors")
    assert not torch.allclose(
        other["text_model.final_layer_norm.bias"],
        tensors["text_model.final_layer_norm.bias"].float(),
        atol=1e-2,
    )


def test_torch_is_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    with pytest.raises(ZeroDivisionError):
        write_toy(tmp_path / "toy", training=1e-2, sdxl=False, progress=lambda *_: 1 // 0)
    assert torch.equal(torch.randn(2), expected)
    assert list(tmp_path.iterdir()) == [], "a failed run must leave nothing behind"


def test_progress_counts_the_steps(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    write_toy(tmp_path / "toy", training=0.01, sdxl=False, progress=lambda *step: seen.append(step))
    assert seen == [("VAE", 1, 2), ("VAE", 2, 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"variant": "bf16"}, "variant is 'bf16', expected 'fp16'"), ({"training": -1}, "training is -1")],
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_toy(tmp_path / "toy", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not an empty folder: name a new one"):
        write_toy(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_the_tokenizer_has_learned_merges_and_clip_reads_it(whole: Path) -> None:
    from transformers import CLIPTokenizer

    lines = (whole / "sd/tokenizer/merges.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#version: 0.2"
    assert len(lines) - 1 == len(set(lines)) - 1 == 1024

    tokenizer = CLIPTokenizer.from_pretrained(whole / "sd/tokenizer")
    ids = tokenizer("A horse runs, naïvely", padding="max_length", max_length=77).input_ids
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[:5] == ["<|startoftext|>", "a</w>", "horse</w>", "runs</w>", ",</w>"]
    assert ids[-1] == tokenizer.eos_token_id == max(tokenizer.get_vocab().values()) == 1537
    assert CLIPTokenizer.from_pretrained(whole / "sdxl/tokenizer_2").pad_token_id == 0


def test_too_few_words_for_the_merges_is_an_error() -> None:
    assert learn_merges("abab ab", 2) == [("a", "b</w>"), ("a", "b")]
    with pytest.raises(ValueError, match="give only 1 merges, 2 are wanted"):
        learn_merges("ab", 2)


def test_transformers_and_diffusers_load_the_stable_diffusion_folder(toy: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    vae = AutoencoderKL.from_pretrained(toy / "sd", subfolder="vae")
    stored = load_file(toy / "sd/vae/diffusion_pytorch_model.safetensors")
    attention = "decoder.mid_block.attentions.0"
    assert torch.equal(
        vae.state_dict()[f"{attention}.to_out.0.weight"], stored[f"{attention}.proj_attn.weight"]
    )
    assert vae.config.scaling_factor == 0.18215
    text_encoder = CLIPTextModel.from_pretrained(toy / "sd", subfolder="text_encoder")
    stored = load_file(toy / "sd/text_encoder/model.safetensors")
    assert torch.equal(
        text_encoder.state_dict()["final_layer_norm.weight"], stored["text_model.final_layer_norm.weight"]
    )
    unet = UNet2DConditionModel.from_pretrained(toy / "sd", subfolder="unet")
    assert unet.state_dict().keys() == load_file(toy / "sd/unet/diffusion_pytorch_model.safetensors").keys()


# diffusers' Euler scheduler converts tensors in a way that NumPy 2 warns about.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_diffusers_runs_the_sdxl_folder_unchanged(whole: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(whole / "sdxl", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pictures = [
        pipeline(
            prompt,
            height=64,
            width=96,
            num_inference_steps=6,
            output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).images
        for prompt in ("a horse runs on the road", "fireworks")
    ]
    assert pipeline.config.force_zeros_for_empty_prompt
    assert pictures[0].shape == (1, 64, 96, 3)
    assert 0.03 < pictures[0].std() < 0.4, "neither grey nor noise"
    assert abs(pictures[0] - pictures[1]).mean() > 2e-3, "the prompt matters"


def test_sdxl_has_stable_diffusions_text_encoder_and_a_vae_of_its_own_scale(whole: Path) -> None:
    sd = load_file(whole / "sd/text_encoder/model.safetensors")
    del sd["text_model.embeddings.position_ids"]
    sdxl = load_file(whole / "sdxl/text_encoder/model.safetensors")
    assert sd.keys() == sdxl.keys()
    assert all(torch.equal(sd[name], sdxl[name]) for name in sd)

    picture = draw_images(1, 64, 64, torch.Generator().manual_seed(0))
    latents = [load_vae(whole / part).encode(picture).latent_dist.mean for part in ("sd", "sdxl")]
    assert relative(latents[1] * 0.13025, latents[0] * 0.18215) < 1e-5
    assert json.loads((whole / "sdxl/vae/config.json").read_text())["scaling_factor"] == 0.13025


def test_motions_share_stable_diffusion_and_differ_in_every_motion_tensor(toy: Path) -> None:
    horse_run, rain = (motion_tensors(toy, motion) for motion in MOTIONS)
    assert list(horse_run) == list(rain) == list(LampUNet(CONFIG).state_dict())
    equal = {name for name in rain if torch.equal(horse_run[name], rain[name])}
    assert {name for name in rain if is_motion_tensor(name)} == rain.keys() - equal
    assert all(
        torch.equal(rain[name], torch.full_like(rain[name], float(name.endswith("weight"))))
        for name in rain
        if "norm_temp" in name
    ), "LAMP does not train norm_temp"

    base = load_file(toy / "sd/unet/diffusion_pytorch_model.safetensors")
    inflate(LampUNet(CONFIG), base)
    for name in equal - {n for n in equal if "norm_temp" in n}:
        assert torch.equal(rain[name], base[str(two_dimensional_name(name))]), name


def test_a_picture_survives_the_autoencoder(toy: Path) -> None:
    vae = load_vae(toy / "sd")
    picture = draw_images(1, 128, 192, torch.Generator().manual_seed(1))
    latents = encode(vae, picture)
    decoded = vae.decode(latents / 0.18215).sample
    assert torch.corrcoef(torch.stack([decoded.flatten(), picture.flatten()]))[0, 1] > 0.9
    assert 0.3 < latents.std() < 2.0


def test_videos_look_like_the_first_frame_and_move_each_in_its_own_way(
    toy: Path, videos: dict[str, Tensor]
) -> None:
    first = first_frame_latents(toy, 12, 16)
    for motion in MOTIONS:
        latents = videos[motion]
        assert torch.equal(latents[:, :, :1], first)
        assert F.cosine_similarity(latents, first, dim=1).mean((0, 2, 3)).min() > 0.5, "by frame"
        assert latents.abs().max() < 2 * first.abs().max()
        assert relative(latents[:, :, -1], latents[:, :, 1]) > 0.1, "it moves"
    assert relative(videos["rain"], videos["horse_run"]) > 0.1


def test_the_loop_is_tame_in_single_precision(videos: dict[str, Tensor]) -> None:
    assert relative(videos["horse_run"].double(), videos["double"]) < TOY_LOOP_REL_L2
