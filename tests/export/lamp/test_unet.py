# SPDX-License-Identifier: Apache-2.0
"""The LAMP UNet's configuration, its layers' properties, and that the lean formulation computes the same."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lamp_trt.engine.errors import CheckpointError, InputError
from lamp_trt.engine.networks import is_motion_tensor
from lamp_trt.export.checkpoints.lamp_config import FIXED_OPTIONS
from lamp_trt.export.lamp.lean_unet import make_lean
from lamp_trt.export.lamp.unet import (
    InflatedConv3d,
    LampUNet,
    LampUNetConfig,
    TemporalAttention,
    first_frames,
    two_dimensional_name,
)
from tests.export.lamp.inflation import inflate
from tests.tolerances import LEAN_FP32_REL_L2, LEAN_FP64_REL_L2

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = LampUNetConfig(
    block_out_channels=(8, 8, 16, 16),
    layers_per_block=1,
    norm_num_groups=4,
    cross_attention_dim=12,
    attention_head_dim=(2, 2, 4, 2),
)


@torch.no_grad()
def random_unet(config: LampUNetConfig = TINY) -> LampUNet:
    """Every parameter random, norms included, so that every path matters."""
    torch.manual_seed(0)
    unet = LampUNet(config).eval().requires_grad_(False)
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.5, 0.5)
    return unet


@pytest.fixture(scope="module")
def unet() -> LampUNet:
    return random_unet()


def inputs(b: int, f: int, h: int, w: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(b, 4, f, h, w, generator=generator)
    text = torch.randn(b, 7, TINY.cross_attention_dim, generator=generator)
    return sample.to(dtype), torch.tensor([501.0]), text.to(dtype)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_the_full_size_model_has_the_official_counts() -> None:
    with torch.device("meta"):
        state = LampUNet(LampUNetConfig(cross_attention_dim=768)).state_dict()
    motion = [tensor for name, tensor in state.items() if is_motion_tensor(name)]
    assert (len(state), sum(t.numel() for t in state.values())) == (1062, 1_101_091_358)
    assert (len(motion), sum(t.numel() for t in motion)) == (360, 253_935_834)
    assert sum(two_dimensional_name(name) is not None for name in state) == 686


def test_a_config_without_fields_is_the_official_class_default() -> None:
    assert LampUNetConfig.from_dict({}) == LampUNetConfig()
    assert LampUNetConfig().cross_attention_dim == 1280
    assert LampUNetConfig().heads == (8, 8, 8, 8)


def test_unknown_fields_are_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    known = {
        "_class_name": "UNet3DConditionModel",
        "_name_or_path": "x",
        "use_temp": False,
        "sample_size": 64,
    }
    with caplog.at_level(logging.WARNING, "lamp_trt"):
        assert LampUNetConfig.from_dict(known) == LampUNetConfig()
        assert caplog.messages == []
        assert LampUNetConfig.from_dict({**known, "time_embedding_type": "positional"}) == LampUNetConfig()
    assert "time_embedding_type" in caplog.text


def test_heads_may_be_one_number_or_one_for_each_block() -> None:
    config = LampUNetConfig.from_dict({"attention_head_dim": [5, 10, 20, 20]})
    assert config.heads == (5, 10, 20, 20)
    assert LampUNetConfig.from_dict({"attention_head_dim": 4}).heads == (4, 4, 4, 4)


@pytest.mark.parametrize("name", FIXED_OPTIONS)
def test_options_of_other_networks_are_refused_by_name(name: str) -> None:
    other = {"act_fn": "gelu", "mid_block_type": "Other"}.get(name, 7)
    with pytest.raises(CheckpointError, match=name):
        LampUNetConfig.from_dict({name: other})
    assert LampUNetConfig.from_dict({name: FIXED_OPTIONS[name]}) == LampUNetConfig()


@pytest.mark.parametrize(
    "field",
    [
        {"in_channels": "4"},
        {"in_channels": 0},
        {"in_channels": True},
        {"norm_eps": None},
        {"block_out_channels": 320},
        {"block_out_channels": []},
        {"block_out_channels": [320, "640"]},
        {"block_out_channels": [320, 640]},
        {"attention_head_dim": [8, 8]},
        {"attention_head_dim": 7},
        {"norm_num_groups": 7},
        {"down_block_types": ["DownBlock2D"] * 4},
        {"up_block_types": "UpBlock3D"},
        {"layers_per_block": [2, 2, 2, 2]},
        {"_class_name": "UNet2DConditionModel"},
    ],
    ids=str,
)
def test_fields_of_the_wrong_kind_are_refused_by_name(field: dict[str, Any]) -> None:
    named = "channels" if field in ({"norm_num_groups": 7}, {"attention_head_dim": 7}) else next(iter(field))
    named = "down_block_types" if field == {"block_out_channels": [320, 640]} else named
    with pytest.raises(CheckpointError, match=named):
        LampUNetConfig.from_dict(field)


@pytest.mark.parametrize(("b", "f", "h", "w"), [(1, 1, 1, 1), (2, 3, 5, 9), (1, 2, 16, 8), (3, 1, 11, 10)])
@torch.no_grad()
def test_any_frames_and_sizes_are_taken(unet: LampUNet, b: int, f: int, h: int, w: int) -> None:
    sample, t, text = inputs(b, f, h, w)
    out = unet(sample, t, text)
    assert out.shape == sample.shape
    assert out.isfinite().all()


@torch.no_grad()
def test_timesteps_may_be_numbers_or_tensors(unet: LampUNet) -> None:
    sample, _, text = inputs(2, 2, 8, 8)
    want = unet(sample, 501, text)
    tensors = [torch.tensor(501), torch.tensor([501.0]), torch.tensor([501, 501]), torch.full((2,), 501.0)]
    assert all(torch.equal(unet(sample, t, text), want) for t in [501.0, *tensors])
    assert not torch.equal(unet(sample, 500, text), want)


@torch.no_grad()
def test_videos_of_a_batch_do_not_see_each_other(unet: LampUNet) -> None:
    sample, t, text = inputs(2, 3, 8, 8)
    for module in (unet, make_lean(unet)):
        alone = torch.cat([module(sample[i : i + 1], t, text[i : i + 1]) for i in range(2)])
        assert distance(module(sample, t, text), alone) < LEAN_FP32_REL_L2


def test_inputs_that_do_not_fit_are_refused(unet: LampUNet) -> None:
    sample, t, text = inputs(2, 1, 8, 8)
    with pytest.raises(InputError, match=r"sample is \(2, 4, 8, 8\)"):
        unet(sample[:, :, 0], t, text)
    with pytest.raises(
        InputError, match=r"encoder_hidden_states is \(1, 7, 12\), expected \(2, tokens, 12\)"
    ):
        unet(sample, t, text[:1])


@torch.no_grad()
def test_the_temporal_convolution_is_causal_and_reaches_back_two_frames() -> None:
    torch.manual_seed(0)
    conv = InflatedConv3d(3, 5, 3, padding=1)
    x = torch.randn(1, 3, 6, 4, 4)
    changed = x.clone()
    changed[:, :, 2] += 1
    differs = (conv(x) != conv(changed)).any(dim=(0, 1, 3, 4))
    assert differs.tolist() == [False, False, True, True, True, False]


@torch.no_grad()
def test_the_gate_scales_the_temporal_branch_only() -> None:
    torch.manual_seed(0)
    conv = InflatedConv3d(3, 5, 3, padding=1)
    x = torch.randn(1, 3, 2, 4, 4)
    y = conv.conv2d(x.transpose(1, 2)[0]).transpose(0, 1)[None]
    conv.conv_gate.weight.zero_()
    conv.conv_gate.bias.fill_(-100)  # closed
    torch.testing.assert_close(conv(x), y)
    conv.conv_gate.bias.fill_(100)  # open: y + z, where the last tap alone sees frame 0
    first = y[:, :, 0] + torch.einsum("oc,bchw->bohw", conv.conv1d.weight[:, :, 2], y[:, :, 0])
    torch.testing.assert_close(conv(x)[:, :, 0], first + conv.conv1d.bias[None, :, None, None])


def test_every_frame_attends_to_frame_0_of_its_own_video() -> None:
    tokens = torch.arange(6.0).reshape(6, 1, 1)  # two videos of three frames
    assert first_frames(tokens, 3).flatten().tolist() == [0, 0, 0, 3, 3, 3]


@torch.no_grad()
def test_temporal_attention_knows_no_order_of_frames() -> None:
    torch.manual_seed(0)
    attention, order = TemporalAttention(8, 2), [2, 0, 3, 1]
    lines = torch.randn(5, 4, 8)
    torch.testing.assert_close(attention(lines[:, order]), attention(lines)[:, order])


LEAN_CASES = [(1, 1, 8, 8), (2, 2, 8, 8), (2, 16, 8, 8), (1, 3, 11, 10), (3, 2, 1, 5)]


@pytest.mark.parametrize(("b", "f", "h", "w"), LEAN_CASES)
@torch.no_grad()
def test_lean_equals_official(unet: LampUNet, b: int, f: int, h: int, w: int) -> None:
    args = inputs(b, f, h, w)
    assert distance(make_lean(unet)(*args), unet(*args)) <= LEAN_FP32_REL_L2


@torch.no_grad()
def test_lean_equals_official_in_float64() -> None:
    exact, args = random_unet().double(), inputs(2, 3, 11, 10, torch.float64)
    assert distance(make_lean(exact)(*args), exact(*args)) <= LEAN_FP64_REL_L2


@torch.no_grad()
def test_lean_is_as_close_to_fp32_in_fp16_as_official_is(unet: LampUNet) -> None:
    want = unet(*inputs(2, 3, 8, 8))
    half, args = random_unet().half(), inputs(2, 3, 8, 8, torch.float16)
    official, lean = distance(half(*args), want), distance(make_lean(half)(*args), want)
    assert 0 < lean <= 2 * official


def test_lean_shares_the_parameters_under_the_same_names() -> None:
    unet = random_unet()
    lean = make_lean(unet)
    ours, theirs = unet.state_dict(), lean.state_dict()
    assert list(ours) == list(theirs)
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in ours)
    assert {n for n in ours if ours[n].shape != theirs[n].shape} == {n for n in ours if "conv1d.weight" in n}
    assert theirs["conv_in.conv1d.weight"].shape == (8, 8, 3, 1)
    assert not {type(m) for m in lean.modules()} & {InflatedConv3d, TemporalAttention}
    assert type(unet.conv_in) is InflatedConv3d
    sample = inputs(1, 2, 8, 8)
    torch.testing.assert_close(make_lean(lean)(*sample), lean(*sample), rtol=0, atol=0)


@torch.no_grad()
def test_a_change_of_the_official_parameters_reaches_the_lean_module() -> None:
    unet, args = random_unet(), inputs(1, 2, 8, 8)
    lean = make_lean(unet)
    before = lean(*args)
    unet.conv_in.conv1d.weight.mul_(2)
    assert distance(lean(*args), unet(*args)) <= LEAN_FP32_REL_L2
    assert distance(lean(*args), before) > 1e-3


@torch.no_grad()
def test_inflating_sets_lamps_layers_as_before_training() -> None:
    donor, unet = random_unet(), random_unet()
    flat = {n: t for name, t in donor.state_dict().items() if (n := two_dimensional_name(name)) is not None}
    inflate(unet, flat)
    state = unet.state_dict()
    assert not any(t.any() for n, t in state.items() if "conv1d" in n or "conv_gate" in n)
    assert not any(t.any() for n, t in state.items() if "attn_temp.to_out" in n)
    assert all(bool((t == n.endswith("weight")).all()) for n, t in state.items() if "norm_temp" in n)
    sample, t, text = inputs(1, 2, 8, 8)
    still = sample[:, :, :1].expand(-1, -1, 2, -1, -1)
    out = unet(still, t, text)
    torch.testing.assert_close(out[:, :, 0], out[:, :, 1])
    del flat["conv_in.weight"]
    with pytest.raises(CheckpointError, match=r"conv_in\.weight"):
        inflate(unet, flat)


@torch.no_grad()
def test_other_block_layouts_and_options_work() -> None:
    config = replace(
        TINY,
        block_out_channels=(8, 16),
        attention_head_dim=2,
        layers_per_block=2,
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
        center_input_sample=True,
        flip_sin_to_cos=False,
    )
    unet, args = random_unet(config), inputs(1, 2, 6, 6)
    centred = random_unet(replace(config, center_input_sample=False))
    torch.testing.assert_close(unet(*args), centred(2 * args[0] - 1, *args[1:]))
    assert distance(make_lean(unet)(*args), unet(*args)) <= LEAN_FP32_REL_L2


def test_names_and_shapes_are_the_official_ones_at_full_size(sd14_manifest: dict[str, list[int]]) -> None:
    with torch.device("meta"):
        state = LampUNet(LampUNetConfig(cross_attention_dim=768)).state_dict()
    assert [(name, list(t.shape)) for name, t in state.items()] == list(sd14_manifest.items())
