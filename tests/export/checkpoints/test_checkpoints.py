# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders: what is found, which file wins, names of today, and what is refused how."""

import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lamp_trt.engine.errors import CheckpointError
from lamp_trt.export.checkpoints.files import find_component, open_checkpoint
from lamp_trt.export.checkpoints.tensors import (
    TensorInfo,
    iter_tensors,
    load_text_encoder,
    load_vae,
    normalised_name,
    tensor_infos,
)
from lamp_trt.export.lamp.unet import load_lamp_unet
from tests.export.lamp.test_unet import TINY, random_unet

STEM = "diffusion_pytorch_model"
VAE_CONFIG: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.11.1",
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 16,
}
TEXT_CONFIG: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "bos_token_id": 62,
    "eos_token_id": 63,
    "max_position_embeddings": 77,
    "torch_dtype": "float32",
}
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a checkpoint is read without the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_unet().state_dict()


@pytest.fixture
def unet_folder(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    """A LAMP checkpoint as training writes it: unet/ with config.json and a .bin."""
    folder = tmp_path / "lamp" / "unet"
    folder.mkdir(parents=True)
    config = {"_class_name": "UNet3DConditionModel", "_diffusers_version": "0.11.1", "use_temp": True}
    (folder / "config.json").write_text(json.dumps({**config, **asdict(TINY)}))
    torch.save(state, folder / f"{STEM}.bin")
    return folder


def same(module: nn.Module, state: dict[str, Tensor]) -> bool:
    loaded = module.state_dict()
    return loaded.keys() == state.keys() and all(torch.equal(loaded[n], state[n]) for n in state)


def test_the_unet_folder_and_its_parent_are_both_taken(unet_folder: Path, state: dict[str, Tensor]) -> None:
    for folder in (unet_folder, unet_folder.parent, str(unet_folder)):
        unet = load_lamp_unet(folder)
        assert same(unet, state)
        assert not unet.training
        assert not any(p.requires_grad for p in unet.parameters())


def test_weights_are_converted_to_the_dtype(unet_folder: Path, state: dict[str, Tensor]) -> None:
    unet = load_lamp_unet(unet_folder, torch.float16)
    assert same(unet, {name: tensor.half() for name, tensor in state.items()})


def scaled(state: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {name: tensor * factor for name, tensor in state.items()}


def test_safetensors_wins_over_bin_and_full_precision_over_fp16(
    unet_folder: Path, state: dict[str, Tensor]
) -> None:
    half = {name: tensor.half() for name, tensor in state.items()}
    save_file(half, unet_folder / f"{STEM}.fp16.safetensors")
    assert find_component(unet_folder, "unet").weight_files == (unet_folder / f"{STEM}.bin",)
    save_file(scaled(state, 2), unet_folder / f"{STEM}.safetensors")
    assert same(load_lamp_unet(unet_folder), scaled(state, 2))
    for name in (f"{STEM}.safetensors", f"{STEM}.bin"):
        (unet_folder / name).unlink()
    assert same(load_lamp_unet(unet_folder, torch.float16), half)


def write_shards(folder: Path, state: dict[str, Tensor]) -> Path:
    names = sorted(state)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"{STEM}-0000{i + 1}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / f"{STEM}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_shards_are_joined(unet_folder: Path, state: dict[str, Tensor]) -> None:
    write_shards(unet_folder, state)
    (unet_folder / f"{STEM}.bin").unlink()
    files = find_component(unet_folder, "unet")
    assert len(files.weight_files) == 2
    assert list(tensor_infos(files)) == [name for name, _ in iter_tensors(files)] == sorted(state)
    assert same(load_lamp_unet(unet_folder), state)


def test_a_shard_that_is_missing_or_elsewhere_is_refused(unet_folder: Path, state: dict[str, Tensor]) -> None:
    index = write_shards(unet_folder, state)
    (unet_folder / f"{STEM}-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors', which is not in its folder"):
        load_lamp_unet(unet_folder)
    index.write_text(json.dumps({"weight_map": {"conv_in.conv2d.weight": "../unet/config.json"}}))
    with pytest.raises(CheckpointError, match="which is not in its folder"):
        load_lamp_unet(unet_folder)


def test_a_tensor_in_two_shards_is_refused(unet_folder: Path, state: dict[str, Tensor]) -> None:
    write_shards(unet_folder, state)
    name = sorted(state)[0]
    shard = unet_folder / f"{STEM}-00002-of-00002.safetensors"
    save_file({n: state[n] for n in [name, *sorted(state)[1::2]]}, shard)
    with pytest.raises(CheckpointError, match=f"holds {name}, which another shard holds too"):
        load_lamp_unet(unet_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv_in.conv2d.weight"), r"lacks 1 tensor: conv_in\.conv2d\.weight \[8, 4, 3, 3\]"),
        (lambda s: s.update(extra=torch.zeros(2)), "has unknown 1 tensor: extra"),
        (
            lambda s: s.update({"conv_out.conv2d.bias": torch.zeros(5)}),
            r"has misshaped 1 tensor: conv_out\.conv2d\.bias \[5\], expected \[4\]",
        ),
        (lambda s: s.clear(), r"lacks \d+ tensors: .*; .*; .* …\."),
        (lambda s: s.update({"conv_out.conv2d.bias": torch.zeros(4, dtype=torch.int64)}), "not a float"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    unet_folder: Path, state: dict[str, Tensor], change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    changed = dict(state)
    change(changed)
    torch.save(changed, unet_folder / f"{STEM}.bin")
    with pytest.raises(CheckpointError, match=message):
        load_lamp_unet(unet_folder)


class Code:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch was_run",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(
    unet_folder: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.chdir(unet_folder)
    torch.save({"weight": Code()}, unet_folder / f"{STEM}.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"is refused, .*posix\.system.*Use a safetensors file"):
        load_lamp_unet(unet_folder)
    assert not (unet_folder / "was_run").exists()


def test_an_old_pickle_without_archive_is_read(unet_folder: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, unet_folder / f"{STEM}.bin", _use_new_zipfile_serialization=False)
    assert same(load_lamp_unet(unet_folder), state)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 broken", b"\x80\x02.", b"\x80\x02X\x01", pickle.dumps([1], 2), b"text"]
)
def test_a_damaged_bin_is_refused(unet_folder: Path, content: bytes) -> None:
    (unet_folder / f"{STEM}.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{STEM}.bin is "):
        load_lamp_unet(unet_folder)


def test_a_list_of_tensors_is_no_state_dict(unet_folder: Path) -> None:
    torch.save([torch.zeros(2)], unet_folder / f"{STEM}.bin")
    with pytest.raises(CheckpointError, match="is not a state dict"):
        load_lamp_unet(unet_folder)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_safetensors_file_is_refused(
    unet_folder: Path, state: dict[str, Tensor], kept: int
) -> None:
    file = unet_folder / f"{STEM}.safetensors"
    save_file(state, file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=f"{STEM}.safetensors is not a usable safetensors file"):
        load_lamp_unet(unet_folder)


@pytest.mark.parametrize("name", ["config.json", f"{STEM}.safetensors", f"{STEM}.bin"])
def test_a_git_lfs_pointer_is_named_as_such(unet_folder: Path, name: str) -> None:
    (unet_folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match=f"{name} is a git-lfs pointer.*git lfs pull"):
        load_lamp_unet(unet_folder)


def test_folders_that_are_no_checkpoint_are_refused(tmp_path: Path, unet_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="absent does not exist"):
        load_lamp_unet(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"\.bin is a file, expected a folder"):
        load_lamp_unet(unet_folder / f"{STEM}.bin")
    with pytest.raises(CheckpointError, match=r"is not a checkpoint with 'unet'.*it holds lamp"):
        load_lamp_unet(tmp_path)
    (unet_folder / f"{STEM}.bin").unlink()
    with pytest.raises(CheckpointError, match=f"has no weights: none of {STEM}.safetensors"):
        load_lamp_unet(unet_folder)
    for content, message in (("{", "is not JSON"), ("[]", "is not a JSON object")):
        (unet_folder / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            load_lamp_unet(unet_folder)


def new_vae() -> nn.Module:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae: nn.Module = AutoencoderKL.from_config(VAE_CONFIG)
    return vae


@pytest.mark.parametrize("old", ["names", "names and convolutions", None])
def test_vaes_of_every_age_load_under_todays_names(tmp_path: Path, old: str | None) -> None:
    state, stored = new_vae().state_dict(), {}
    for name, tensor in state.items():
        for new_name, old_name in OLD_NAMES.items():
            if old and f".{new_name}." in name:
                name = name.replace(new_name, old_name)
                if old == "names and convolutions" and tensor.ndim == 2:
                    tensor = tensor[:, :, None, None]
        stored[name] = tensor
    assert (stored.keys() == state.keys()) == (old is None)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps(VAE_CONFIG))
    save_file(stored, tmp_path / "vae" / f"{STEM}.safetensors")
    assert same(load_vae(tmp_path), state)


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_text_encoders_load_with_and_without_their_old_prefix(tmp_path: Path, prefix: str) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    model = CLIPTextModel(CLIPTextConfig.from_dict(TEXT_CONFIG)).eval()
    state = model.state_dict()
    stored = {prefix + name: tensor for name, tensor in state.items()}
    stored[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    (tmp_path / "config.json").write_text(json.dumps(TEXT_CONFIG))
    save_file(stored, tmp_path / "model.safetensors")
    loaded = load_text_encoder(tmp_path)
    assert same(loaded, state)
    ids = torch.arange(77)[None] % 64
    with torch.no_grad():
        want, got = (m(input_ids=ids).last_hidden_state for m in (model, loaded))
    assert torch.equal(got, want)


def test_projection_models_keep_the_prefix() -> None:
    config = {"architectures": ["CLIPTextModelWithProjection"]}
    assert normalised_name("text_model.encoder.x", config) == "text_model.encoder.x"
    assert normalised_name("text_projection.weight", config) == "text_projection.weight"
    assert normalised_name("text_model.embeddings.position_ids", config) is None


def test_a_component_of_another_class_is_refused(tmp_path: Path, unet_folder: Path) -> None:
    shutil.copytree(unet_folder, tmp_path / "vae")
    with pytest.raises(CheckpointError, match="describes UNet3DConditionModel, expected AutoencoderKL"):
        load_vae(tmp_path)
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text('{"architectures": []}')
    save_file({"x": torch.zeros(1)}, tmp_path / "text_encoder" / "model.safetensors")
    with pytest.raises(CheckpointError, match="describes no known class, expected CLIPTextModel"):
        load_text_encoder(tmp_path)


def test_tensors_are_described_without_being_read(unet_folder: Path, state: dict[str, Tensor]) -> None:
    infos = tensor_infos(find_component(unet_folder, "unet"))
    assert infos["conv_in.conv1d.weight"] == TensorInfo("F32", (8, 8, 3))
    assert infos.keys() == state.keys()


def test_a_stable_diffusion_folder_needs_all_of_its_parts(tmp_path: Path) -> None:
    root = tmp_path / "sd"
    for name, config, stem in (("vae", VAE_CONFIG, STEM), ("text_encoder", TEXT_CONFIG, "model")):
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps(config))
        save_file({"x": torch.zeros(1)}, root / name / f"{stem}.safetensors")
    with pytest.raises(CheckpointError, match=r"has no tokenizer/vocab\.json"):
        open_checkpoint(root)
    (root / "tokenizer").mkdir()
    for file in ("vocab.json", "merges.txt"):
        (root / "tokenizer" / file).write_text("{}")
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json is missing"):
        open_checkpoint(root)
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text('{"steps_offset": 1}')
    checkpoint = open_checkpoint(root)
    assert list(checkpoint.components) == ["text_encoder", "vae"]
    assert checkpoint.tokenizers == {"tokenizer": root / "tokenizer"}
    assert checkpoint.scheduler_config == {"steps_offset": 1}
    with pytest.raises(CheckpointError, match="is not a checkpoint with 'unet'"):
        open_checkpoint(root, ("unet",))
