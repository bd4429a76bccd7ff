# SPDX-License-Identifier: Apache-2.0
"""The toy checkpoints: published layouts that load, and motions that differ where LAMP trains."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import TOY_LOOP_REL_L2

from lamp_trt.engine.errors import InputError
from lamp_trt.engine.networks import is_motion_tensor
from lamp_trt.export.checkpoint_files import find_component
from lamp_trt.export.checkpoints import iter_tensors
from lamp_trt.export.lamp_unet import load_lamp_unet, two_dimensional_name
from lamp_trt.export.reference import denoise
from lamp_trt.export.toy import write_toy


@pytest.fixture(scope="module")
def whole_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three checkpoints, untrained."""
    folder = tmp_path_factory.mktemp("toy") / "whole"
    write_toy(folder, training=0)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_equal_seeds_give_equal_bytes_and_others_others(toy: Path, tmp_path: Path) -> None:
    write_toy(tmp_path / "same", training=0, sdxl=False)
    write_toy(tmp_path / "other", training=0, sdxl=False, seed=1)
    assert files_of(tmp_path / "same") == files_of(toy)
    assert files_of(tmp_path / "other") != files_of(toy)


def test_files_lie_as_in_the_published_folders(whole_toy: Path) -> None:
    names = files_of(whole_toy).keys()
    assert {
        "sd/model_index.json",
        "sd/scheduler/scheduler_config.json",
        "sd/tokenizer/vocab.json",
        "sd/tokenizer/merges.txt",
        "sd/text_encoder/config.json",
        "sd/unet/config.json",
        "sd/vae/config.json",
        "motions/horse_run/unet/config.json",
        "motions/horse_run/unet/diffusion_pytorch_model.bin",
        "motions/rain/unet/diffusion_pytorch_model.bin",
        "sdxl/model_index.json",
        "sdxl/tokenizer_2/merges.txt",
        "sdxl/text_encoder_2/config.json",
    } <= names
    scheduler = json.loads((whole_toy / "sd/scheduler/scheduler_config.json").read_text())
    assert (scheduler["_class_name"], scheduler["steps_offset"]) == ("PNDMScheduler", 1)


def test_the_libraries_load_every_part(whole_toy: Path) -> None:
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

    assert len(CLIPTokenizer.from_pretrained(whole_toy / "sd/tokenizer")("horse").input_ids) == 3
    assert CLIPTextModel.from_pretrained(whole_toy / "sd/text_encoder").config.max_position_embeddings == 77
    pipe = StableDiffusionXLPipeline.from_pretrained(whole_toy / "sdxl", local_files_only=True)
    assert pipe.tokenizer_2.pad_token_id == 0


def test_the_tokenizer_has_a_thousand_merges(toy: Path) -> None:
    merges = (toy / "sd/tokenizer/merges.txt").read_text(encoding="utf-8").splitlines()
    assert len([line for line in merges if line and not line.startswith("#")]) >= 1000


def test_motions_share_stable_diffusions_unet_and_differ_in_what_lamp_trains(toy: Path) -> None:
    horse, rain = (load_lamp_unet(toy / "motions" / name).state_dict() for name in ("horse_run", "rain"))
    flat = dict(iter_tensors(find_component(toy / "sd", "unet")))
    for name, tensor in horse.items():
        assert torch.equal(tensor, rain[name]) != is_motion_tensor(name), name
        two_dimensional = two_dimensional_name(name)
        if two_dimensional in flat and not is_motion_tensor(name):
            assert torch.equal(tensor, flat[two_dimensional]), name


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("steps", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_the_loop_is_tame_and_motions_change_the_clip(steps: int, toy: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(1, 4, 1, 8, 8, generator=generator, dtype=torch.float64)
    noise = torch.randn(1, 4, 3, 8, 8, generator=generator, dtype=torch.float64)
    text = torch.randn(2, 77, 32, generator=generator, dtype=torch.float64)
    clips: dict[tuple[str, torch.dtype], np.ndarray] = {}
    for motion in ("horse_run", "rain"):
        for dtype in (torch.float32, torch.float64):
            unet = load_lamp_unet(toy / "motions" / motion, dtype)
            arguments = (first.to(dtype), noise.to(dtype), text.to(dtype))
            with torch.inference_mode():
                latents = denoise(unet, *arguments, num_inference_steps=steps)
            clips[motion, dtype] = latents.double().numpy()
        single, double = clips[motion, torch.float32], clips[motion, torch.float64]
        assert np.linalg.norm(single - double) <= TOY_LOOP_REL_L2 * np.linalg.norm(double)
    horse, rain = clips["horse_run", torch.float64], clips["rain", torch.float64]
    assert np.linalg.norm(horse - rain) >= 0.1 * np.linalg.norm(horse)


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="variant is 'int8'"):
        write_toy(tmp_path / "toy", variant="int8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="not an empty folder"):
        write_toy(tmp_path / "full")
