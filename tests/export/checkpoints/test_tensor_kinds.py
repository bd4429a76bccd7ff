# SPDX-License-Identifier: Apache-2.0
"""Every kind of tensor, file and folder that is given as a checkpoint: read, or refused by its name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lamp_trt.engine.errors import CheckpointError
from lamp_trt.export.checkpoints.files import find_component, open_checkpoint
from lamp_trt.export.checkpoints.sdxl import open_sdxl
from lamp_trt.export.checkpoints.tensors import check_tensors, iter_tensors, tensor_infos
from lamp_trt.export.convert import tensor_bytes
from lamp_trt.export.lamp.unet import load_lamp_unet
from tests.export.checkpoints.test_checkpoints import STEM, VAE_CONFIG
from tests.export.lamp.test_unet import TINY, random_unet

NAME = "conv_in.conv2d.weight"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_unet().state_dict()


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    import dataclasses

    folder = tmp_path / "lamp" / "unet"
    folder.mkdir(parents=True)
    config = {"_class_name": "UNet3DConditionModel", **dataclasses.asdict(TINY)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


REFUSED: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "meta": (lambda t: t.to("meta"), "is on the device 'meta' and has no values"),
    "COO": (lambda t: t.to_sparse(), r"sparse or packed \(torch\.sparse_coo\)"),
    "CSR": (lambda t: t.flatten(1).to_sparse_csr(), "torch.sparse_csr"),
    "CSC": (lambda t: t.flatten(1).to_sparse_csc(), "torch.sparse_csc"),
    "BSR": (lambda t: t.flatten(1).to_sparse_bsr((2, 2)), "torch.sparse_bsr"),
    "quantized": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "is quantized"),
    "quantized by channel": (
        lambda t: torch.quantize_per_channel(t, torch.ones(8), torch.zeros(8).long(), 0, torch.qint8),
        "is quantized",
    ),
    "nested": (lambda t: torch.nested.nested_tensor([t[0], t[1, :2]]), "is nested|is refused"),
    "mkldnn": (lambda t: t.to_mkldnn(), r"torch\._mkldnn|is refused"),
    "complex64": (
        lambda t: t.to(torch.complex64),
        r"is torch\.complex64, not a float of F64, F32, F16, BF16",
    ),
    "conjugate": (lambda t: t.to(torch.complex64).conj(), "torch.complex64"),
    "complex32": (lambda t: t.to(torch.complex32), "torch.complex32"),
    "bool": (lambda t: t > 0, "torch.bool"),
    "int8": (lambda t: t.to(torch.int8), "torch.int8"),
    "uint8": (lambda t: t.to(torch.uint8), "torch.uint8"),
    "uint16": (lambda t: t.to(torch.uint16), "torch.uint16"),
    "int64": (lambda t: t.to(torch.int64), "torch.int64"),
    "float8_e4m3fn": (lambda t: t.to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
    "float8_e5m2": (lambda t: t.to(torch.float8_e5m2), "torch.float8_e5m2"),
    "storage": (lambda t: t.untyped_storage(), "is not a state dict|is refused"),
    "number": (lambda t: 3, f"its entry '{NAME}' is a int"),
    "list": (lambda t: [t], f"its entry '{NAME}' is a list"),
    "none": (lambda t: None, f"its entry '{NAME}' is a NoneType"),
}


OPAQUE = ("nested", "mkldnn", "storage")
"""torch's restricted unpickler need not read these."""


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain"])
def test_a_tensor_that_is_not_dense_floats_is_refused_by_name(
    kind: str, zipped: bool, unet: Path, state: dict[str, Tensor]
) -> None:
    make, message = REFUSED[kind]
    try:
        changed = {"conv_out.conv2d.bias": state["conv_out.conv2d.bias"], NAME: make(state[NAME])}
        torch.save(changed, unet / f"{STEM}.bin", _use_new_zipfile_serialization=zipped)
    except (RuntimeError, TypeError, NotImplementedError, KeyError) as error:
        pytest.skip(f"torch does not save it: {error!s:.80}")
    with pytest.raises(CheckpointError, match=message if zipped else f"{message}|is refused") as caught:
        tensor_infos(find_component(unet, "unet"))
    refused_by_torch = "is refused, only pickles of plain tensors are read" in str(caught.value)
    assert NAME in str(caught.value) or (refused_by_torch and (not zipped or kind in OPAQUE))


@pytest.mark.parametrize("change", [lambda t: t[:0], lambda t: t.flatten()[0]], ids=["empty", "scalar"])
def test_an_empty_or_scalar_tensor_does_not_fit(
    change: Callable[[Tensor], Tensor], unet: Path, state: dict[str, Tensor]
) -> None:
    torch.save({**state, NAME: change(state[NAME])}, unet / f"{STEM}.bin")
    with pytest.raises(CheckpointError, match=f"misshaped 1 tensor: {NAME}"):
        load_lamp_unet(unet)


READ: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "channels last": lambda t: t.to(memory_format=torch.channels_last),
    "part of a storage": lambda t: torch.cat([t, t])[len(t) :],
    "every second": lambda t: t.repeat_interleave(2, 0)[::2],
    "negative bit": lambda t: torch.complex(t * 0, -t).conj().imag,
    "parameter": lambda t: torch.nn.Parameter(t.clone()),
    "parameter without gradient": lambda t: torch.nn.Parameter(t, requires_grad=False),
    "buffer": lambda t: torch.nn.Buffer(t),
    "double": lambda t: t.double(),
    "leaf with gradient": lambda t: t.clone().requires_grad_(),
}


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain"])
def test_a_dense_tensor_of_any_origin_is_read(
    kind: str, zipped: bool, unet: Path, state: dict[str, Tensor]
) -> None:
    changed = {NAME: READ[kind](state[NAME])}
    torch.save(changed, unet / f"{STEM}.bin", _use_new_zipfile_serialization=zipped)
    files = find_component(unet, "unet")
    data = {name: bytes(tensor_bytes(tensor)) for name, tensor in iter_tensors(files, torch.float32)}
    assert data[NAME] == bytes(tensor_bytes(state[NAME]))


def test_tensors_that_share_a_storage_are_read(unet: Path, state: dict[str, Tensor]) -> None:
    stacked = torch.zeros(2, 8)
    names = [name for name, tensor in state.items() if tensor.shape == (8,)][:2]
    torch.save({**state, names[0]: stacked[0], names[1]: stacked[1]}, unet / f"{STEM}.bin")
    assert torch.equal(load_lamp_unet(unet).state_dict()[names[1]], torch.zeros(8))


@pytest.mark.parametrize("key", ["state_dict", "model", "module", "ema"])
def test_tensors_under_a_key_are_named(key: str, unet: Path, state: dict[str, Tensor]) -> None:
    torch.save({"epoch": 3, key: state}, unet / f"{STEM}.bin")
    with pytest.raises(CheckpointError, match=f"its tensors are under '{key}': save that part alone"):
        load_lamp_unet(unet)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.int64, torch.bool]
)
def test_other_dtypes_in_safetensors_are_refused_with_the_remedy(
    dtype: torch.dtype, unet: Path, state: dict[str, Tensor]
) -> None:
    save_file({**state, NAME: state[NAME].to(dtype)}, unet / f"{STEM}.safetensors")
    with pytest.raises(
        CheckpointError, match=rf"{NAME}.*Save the checkpoint in one of these \(module\.float"
    ):
        load_lamp_unet(unet)


# --- files of other contents than their names say ------------------------------------------------------


def test_safetensors_named_bin_are_read(unet: Path, state: dict[str, Tensor]) -> None:
    save_file(state, unet / f"{STEM}.bin")
    loaded = load_lamp_unet(unet).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain"])
def test_a_pickle_named_safetensors_is_told_its_name(
    zipped: bool, unet: Path, state: dict[str, Tensor]
) -> None:
    file = unet / f"{STEM}.safetensors"
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"is a pickle of PyTorch, not safetensors\. Rename it .* \.bin"
    ):
        load_lamp_unet(unet)
    file.rename(unet / f"{STEM}.bin")
    load_lamp_unet(unet)


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page, not weights"),
        (b"\n<html><body>404</body></html>", "is a web page, not weights"),
        (b"GGUF\x03\0\0\0" + bytes(32), "is a GGUF file"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is text, not weights"),
        (b'{"error":"Repository not found"}', "is text, not weights"),
        (b"Access to model x is restricted.", "is text, not weights .it begins with 'Access to'"),
        (b"Entry not found", "is text, not weights"),
    ],
)
def test_downloads_that_failed_are_recognised(suffix: str, content: bytes, message: str, unet: Path) -> None:
    (unet / f"{STEM}{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_lamp_unet(unet)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "it is empty"),
        (bytes(4096), "it is of another format"),
        (b"\x1f\x8b\x08" + bytes(64), "it is of another format"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(64), "it is of another format"),
        (b"Rar!\x1a\x07\0", "it is of another format"),
        (b"\x83\xa4kern", "it is of another format"),
        (b"PK\x03\x04" + bytes(64), "it is damaged or cut off"),
        (b"\x80\x02}q\x00", "it is damaged or cut off"),
    ],
    ids=repr,
)
def test_no_pickle_is_refused_without_torchs_advice(content: bytes, cause: str, unet: Path) -> None:
    """torch's own message recommends to load it without restrictions."""
    (unet / f"{STEM}.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"are read: {cause}\. Use a safetensors file\.$"):
        load_lamp_unet(unet)


# --- adapters and whole models -------------------------------------------------------------------------

ADAPTERS = {
    "a LoRA": [
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.up.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
        "lora_unet_down_blocks_0_attentions_0_proj_in.alpha",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
        "base_model.model.down_blocks.0.attentions.0.attn1.to_q.lora_B.weight",
        "base_model.model.conv_in.lora_A.default.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
        "unet:0:up",
        "double_blocks.0.processor.qkv_lora1.down.weight",
        "conv_in.vera_lambda_b",
    ],
    "a LyCORIS adapter": [
        "lora_unet_down_blocks_0_attentions_0_proj_in.hada_w1_a",
        "lora_unet_mid_block_attentions_0_proj_in.lokr_w1",
        "lycoris_down_blocks_0_proj_in.lokr_w2_a",
        "lycoris_down_blocks_0_proj_in.diff",
        "oft_unet_down_blocks_0_proj_in.oft_R.weight",
        "base_model.model.conv_in.oft_R.default.weight",
    ],
    "an AnimateDiff motion module": [
        "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",
        "module.down_blocks.0.motion_modules.0.temporal_transformer.proj_in.bias",
    ],
    "a whole model in one file": [
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.decoder.conv_in.bias",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
    ],
    "a ControlNet": [
        "controlnet_cond_embedding.conv_in.weight",
        "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight",
        "adapter.body.0.in_conv.weight",
    ],
    "an IP-Adapter": ["image_proj.proj.weight"],
    "a training state": ["module.conv_in.conv2d.weight", "_orig_mod.conv_in.conv2d.weight"],
}
NAMES = [(kind, name) for kind, names in ADAPTERS.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), NAMES)
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_adapters_and_whole_models_are_recognised_by_their_tensors(
    kind: str, name: str, suffix: str, unet: Path
) -> None:
    tensors = {name: torch.zeros(2)}
    path = unet / f"{STEM}{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tensors, path)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=f"is not a unet but {kind}"):
        check_tensors(find_component(unet, "unet"), {})


def test_a_lamp_checkpoint_is_not_taken_for_an_adapter(unet: Path, state: dict[str, Tensor]) -> None:
    torch.save({name: tensor for name, tensor in state.items() if name != NAME}, unet / f"{STEM}.bin")
    with pytest.raises(CheckpointError, match=r"does not fit its config\.json"):
        load_lamp_unet(unet)


def find_motion(folder: Path) -> object:
    return find_component(folder, "unet")


def find_sdxl(folder: Path) -> object:
    return open_sdxl(folder, ("sdxl_unet",))


@pytest.mark.parametrize(
    "find", [find_motion, open_checkpoint, find_sdxl], ids=["--motion", "--sd", "--sdxl"]
)
@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            "pytorch_lora_weights.safetensors",
            NAMES[0][1],
            r"Its pytorch_lora_weights\.safetensors is a LoRA, .*whole UNet of LAMP|fuse_lora",
        ),
        ("pytorch_lora_weights.bin", NAMES[0][1], r"Its pytorch_lora_weights\.bin is a LoRA"),
        ("adapter_model.safetensors", NAMES[6][1], r"Its adapter_model\.safetensors is a LoRA"),
        *(
            (f"{stem}{suffix}", ADAPTERS[kind][0], rf"{stem}{suffix} is {kind}")
            for stem, kind in (
                ("my-style", "a LoRA"),
                ("my-loha", "a LyCORIS adapter"),
                ("mm_sd_v15", "an AnimateDiff motion module"),
                ("v1-5-pruned", "a whole model in one file"),
            )
            for suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
        ),
    ],
)
def test_what_is_given_as_a_folder_or_a_file_is_recognised(
    find: Callable[[Path], object], name: str, tensor: str, message: str, tmp_path: Path
) -> None:
    tensors: Any = {tensor: torch.zeros(2)}
    if name.endswith(".ckpt"):
        tensors = {"state_dict": tensors, "epoch": 3}
    (save_file if name.endswith(".safetensors") else torch.save)(tensors, tmp_path / name)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        find(tmp_path)
    with pytest.raises(CheckpointError, match=r"is a file, expected a folder\. It is an? "):
        find(tmp_path / name)


def test_a_lora_in_the_place_of_the_unet_is_recognised(unet: Path) -> None:
    save_file({NAMES[0][1]: torch.zeros(2)}, unet / "pytorch_lora_weights.safetensors")
    with pytest.raises(
        CheckpointError, match=r"has no weights: .* Its pytorch_lora_weights.safetensors is a LoRA"
    ):
        find_component(unet, "unet")


def test_one_level_too_high_or_too_low_names_the_right_folder(tmp_path: Path) -> None:
    root = tmp_path / "models" / "sd"
    (root / "vae").mkdir(parents=True)
    (root / "model_index.json").write_text("{}")
    (root / "vae" / "config.json").write_text(json.dumps(VAE_CONFIG))
    with pytest.raises(CheckpointError, match=rf"Did you mean {root}\?|is the folder above: give {root}\."):
        open_checkpoint(root.parent)
    with pytest.raises(CheckpointError, match=rf"a part of the checkpoint {root}: give that"):
        open_checkpoint(root / "vae")
    with pytest.raises(CheckpointError, match=rf"Did you mean {root}\?|is the folder above: give {root}\."):
        find_sdxl(root.parent)
    with pytest.raises(CheckpointError, match=rf"a part of the checkpoint {root}: give that"):
        find_sdxl(root / "vae")
    lamp = tmp_path / "output" / "rain" / "unet"
    lamp.mkdir(parents=True)
    (lamp / "config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=rf"Did you mean {lamp.parent}\?|is the folder above: give {lamp.parent}\."
    ):
        find_component(tmp_path / "output", "unet")


def test_the_remedy_is_to_merge_or_convert_but_for_a_motion(tmp_path: Path) -> None:
    for name, tensor, remedy in (
        ("style.safetensors", NAMES[0][1], "pipeline.fuse_lora"),
        ("model.safetensors", ADAPTERS["a whole model in one file"][0], "from_single_file"),
    ):
        save_file({tensor: torch.zeros(2)}, tmp_path / name)
        with pytest.raises(CheckpointError, match=remedy):
            open_checkpoint(tmp_path / name)
        with pytest.raises(CheckpointError, match="A motion is a whole UNet of LAMP"):
            find_component(tmp_path / name, "unet")
