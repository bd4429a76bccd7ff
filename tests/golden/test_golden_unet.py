# SPDX-License-Identifier: Apache-2.0
"""Both formulations of the LAMP UNet against the official implementation: whole, by stage and by block."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lamp_trt.export.checkpoints.files import find_component
from lamp_trt.export.checkpoints.tensors import iter_tensors, tensor_infos
from lamp_trt.export.lamp.lean_unet import make_lean
from lamp_trt.export.lamp.unet import LampUNet, load_lamp_unet, two_dimensional_name
from tests.conftest import GoldenClose
from tests.export.lamp.inflation import inflate
from tests.tolerances import GOLDEN_BLOCK, GOLDEN_UNET, GOLDEN_UNET_STAGE

pytestmark = [pytest.mark.golden, pytest.mark.usefixtures("one_thread")]
Golden = Callable[[str], Mapping[str, np.ndarray]]


@pytest.fixture(scope="module", params=["official", "lean"])
def unet(request: pytest.FixtureRequest, golden_set: Path) -> LampUNet:
    official = load_lamp_unet(golden_set)
    return official if request.param == "official" else make_lean(official)


def tensors(arrays: Mapping[str, np.ndarray], *names: str) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(arrays[name]) for name in names)


def test_both_file_formats_hold_the_same_tensors(golden_set: Path, tmp_path: Path) -> None:
    folder = golden_set / "unet"
    for name in ("config.json", "diffusion_pytorch_model.bin"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    safe, pickled = find_component(folder, "unet"), find_component(tmp_path, "unet")
    assert [f.suffix for f in (*safe.weight_files, *pickled.weight_files)] == [".safetensors", ".bin"]
    assert tensor_infos(safe) == tensor_infos(pickled)
    for (name, a), (_, b) in zip(iter_tensors(safe), iter_tensors(pickled), strict=True):
        assert torch.equal(a, b), name


@torch.no_grad()
def test_the_whole_unet(unet: LampUNet, golden: Golden, golden_close: GoldenClose) -> None:
    arrays = golden("unet_forward")
    sample, text = tensors(arrays, "sample", "text")
    for t in arrays["timesteps"].tolist():
        golden_close(unet(sample, t, text), arrays[f"out_{t}"], **GOLDEN_UNET, what=f"timestep {t}")


@torch.no_grad()
def test_odd_sizes(unet: LampUNet, golden: Golden, golden_close: GoldenClose) -> None:
    arrays = golden("unet_forward")
    sample, t, text = tensors(arrays, "odd_sample", "odd_timestep", "text")
    golden_close(unet(sample, t.expand(len(sample)), text), arrays["odd_out"], **GOLDEN_UNET)


@torch.no_grad()
def test_one_frame(unet: LampUNet, golden: Golden, golden_close: GoldenClose) -> None:
    arrays = golden("unet_forward")
    sample, t, text = tensors(arrays, "single_sample", "single_timestep", "text")
    golden_close(unet(sample, t[None].float(), text[1:]), arrays["single_out"], **GOLDEN_UNET)


@torch.no_grad()
def test_every_stage(unet: LampUNet, golden: Golden, golden_close: GoldenClose) -> None:
    arrays = golden("unet_trace")
    expected = {k.removeprefix("stage/"): v for k, v in arrays.items() if k.startswith("stage/")}
    assert expected
    calls = record(unet, *expected)
    out = unet(*tensors(arrays, "sample", "timestep", "text"))
    for name, want in expected.items():
        golden_close(calls[name][1], want, **GOLDEN_UNET_STAGE, what=name)
    golden_close(out, arrays["out"], **GOLDEN_UNET)


@torch.no_grad()
def test_one_frame_without_lamps_layers_is_stable_diffusion(
    unet: LampUNet, golden_set: Path, golden: Golden, golden_close: GoldenClose
) -> None:
    checkpoint = load_lamp_unet(golden_set)
    two_dimensional = {
        sd_name: tensor
        for name, tensor in checkpoint.state_dict().items()
        if (sd_name := two_dimensional_name(name)) is not None
    }
    inflated = LampUNet(checkpoint.config).eval()
    inflate(inflated, two_dimensional)
    inflated = inflated if type(unet.conv_in) is type(inflated.conv_in) else make_lean(inflated)
    arrays = golden("sd2d_equivalence")
    sample, t, text = tensors(arrays, "sample", "timestep", "text")
    golden_close(inflated(sample.unsqueeze(2), t, text).squeeze(2), arrays["out"], **GOLDEN_UNET)


BLOCKS = {
    "conv3x3": "down_blocks.0.resnets.0.conv1",
    "conv_stride2": "down_blocks.0.downsamplers.0.conv",
    "conv1x1": "up_blocks.3.resnets.0.conv_shortcut",
    "resnet": "up_blocks.3.resnets.0",
    "resnet_small": "up_blocks.3.resnets.0",
    "upsample": "up_blocks.1.upsamplers.0",
    "transformer": "down_blocks.1.attentions.0",
    "transformer_small": "down_blocks.1.attentions.0",
    "norm_out_small": "conv_norm_out",
}
"""Case of blocks.npz → module; the cases named small show a wrong eps of the norms."""


@torch.no_grad()
@pytest.mark.parametrize("case", BLOCKS)
def test_single_blocks(unet: LampUNet, golden: Golden, golden_close: GoldenClose, case: str) -> None:
    arrays = golden("blocks")
    inputs = [torch.from_numpy(arrays[k]) for k in sorted(arrays) if k.startswith(f"{case}/in")]
    want = arrays[f"{case}/out"]
    size = (want.shape[-2:],) if case == "upsample" else ()
    golden_close(unet.get_submodule(BLOCKS[case])(*inputs, *size), want, **GOLDEN_BLOCK)


@torch.no_grad()
def test_inside_a_transformer(unet: LampUNet, golden: Golden, golden_close: GoldenClose) -> None:
    arrays = golden("blocks")
    block = f"{BLOCKS['transformer']}.transformer_blocks.0"
    calls = record(unet, *(f"{block}.{layer}" for layer in ("attn1", "attn2", "ff", "attn_temp")))
    unet.get_submodule(BLOCKS["transformer"])(*tensors(arrays, "transformer/in0", "transformer/in1"))
    for name, values in calls.items():
        layer = name.rpartition(".")[2]
        for got, which in zip(values, ("in", "out"), strict=True):
            want = arrays[f"transformer/{layer}/{which}"]
            if (
                layer == "attn_temp" and got.ndim == 4
            ):  # lean tokens are (b, f, L, c), official lines (b*L, f, c)
                got = got.transpose(1, 2)
            golden_close(got.reshape(want.shape), want, **GOLDEN_BLOCK, what=f"{layer}/{which}")


@torch.no_grad()
def test_the_time_embedding(unet: LampUNet, golden: Golden, golden_close: GoldenClose) -> None:
    arrays = golden("blocks")
    sinusoid = unet.time_proj(torch.from_numpy(arrays["time/timesteps"]))
    golden_close(sinusoid, arrays["time/sinusoid"], **GOLDEN_BLOCK)
    golden_close(unet.time_embedding(sinusoid), arrays["time/embedding"], **GOLDEN_BLOCK)


def record(unet: nn.Module, *names: str) -> dict[str, tuple[Tensor, Tensor]]:
    """First input and output of the named modules, filled in by the next forward."""
    calls: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> None:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] = (inputs[0], output[0] if isinstance(output, tuple) else output)
            handle.remove()

        handle = unet.get_submodule(name).register_forward_hook(keep)

    for name in names:
        hook(name)
    return calls
