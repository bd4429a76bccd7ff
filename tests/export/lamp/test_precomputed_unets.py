# SPDX-License-Identifier: Apache-2.0
"""UNets with parts hoisted against the plain lean ones, in PyTorch and on ONNX Runtime, each switch alone
and all together."""

import copy
from collections.abc import Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.engine.backends.onnxruntime.cpu_graph import use_cpu_kernels
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.errors import CheckpointError
from lamp_trt.engine.families import NETWORKS
from lamp_trt.engine.networks import NetworkSpec
from lamp_trt.engine.precompute import HOISTED, hoisted_from, hoisted_specs
from lamp_trt.export.checkpoints.unet_layout import condition_layout
from lamp_trt.export.networks import module_from_config, wrap
from lamp_trt.export.onnx import Location, export_graph
from lamp_trt.export.recipe import specs_of
from tests.fixtures.sdxl import UNET_CONFIG as SDXL_FIELDS
from tests.tolerances import HOISTED_RTOL

pytestmark = pytest.mark.usefixtures("one_thread")

HOISTS = ("text", "time", "prefix")
COMBINATIONS = list(chain.from_iterable(combinations(HOISTS, count) for count in (1, 2, 3)))

LAMP_CONFIGS: dict[str, dict[str, Any]] = {
    "attention first": {
        "block_out_channels": [16, 32],
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
    },
    "attention in the middle only": {
        "block_out_channels": [16, 32],
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "down_block_types": ["DownBlock3D", "DownBlock3D"],
        "up_block_types": ["UpBlock3D", "UpBlock3D"],
    },
    "three levels of unequal heads": {
        "block_out_channels": [16, 24, 32],
        "attention_head_dim": [2, 4, 8],
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "center_input_sample": True,
        "down_block_types": ["DownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D"],
        "up_block_types": ["CrossAttnUpBlock3D", "UpBlock3D", "CrossAttnUpBlock3D"],
    },
}
SIZES = [(1, 4, 4), (3, 5, 7), (2, 9, 3)]
TEXT_WIDTH, TOKENS = 24, 11
UNET_CONFIG = {"_class_name": "UNet2DConditionModel", **SDXL_FIELDS}


def slow(*hoist: str) -> Any:
    return pytest.param(hoist, marks=pytest.mark.slow)


def random_unet(component: str, config: Mapping[str, Any]) -> nn.Module:
    """Seeded, with nothing at zero: every path shows in the output."""
    torch.manual_seed(0)
    unet = module_from_config(component, config).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn_like(parameter) * 0.05)
    return unet


def lamp_unet(name: str) -> nn.Module:
    return random_unet("unet", {**LAMP_CONFIGS[name], "cross_attention_dim": TEXT_WIDTH})


def lamp_inputs(size: Sequence[int]) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    half = torch.randn(1, 4, *size, generator=rng)
    text = torch.randn(2, TOKENS, TEXT_WIDTH, generator=rng)
    return {
        "sample": half.repeat(2, 1, 1, 1, 1),
        "timestep": torch.tensor([417.0]),
        "encoder_hidden_states": text,
    }


def sdxl_inputs(size: tuple[int, int]) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(1, 4, *size, generator=rng).repeat(2, 1, 1, 1),
        "timestep": torch.tensor([417.0]),
        "encoder_hidden_states": torch.randn(2, 11, UNET_CONFIG["cross_attention_dim"], generator=rng),
        "text_embeds": torch.randn(2, 24, generator=rng),
        "time_ids": torch.tensor([[72.0, 104, 0, 0, 72, 104]]).repeat(2, 1),
    }


def hoisted_output(
    unet: nn.Module, specs: Mapping[str, NetworkSpec], hoist: tuple[str, ...], arrays: Mapping[str, Tensor]
) -> Tensor:
    """The UNet's output in PyTorch, the networks beside it run first: what they give is found by name."""
    (name, *beside) = specs
    made = dict(arrays)
    with torch.inference_mode():
        for network in (*beside, name):
            taken = hoisted_from(network, hoist)
            module = wrap(network, copy.deepcopy(unet), taken)
            outputs = module(*(made[tensor.name] for tensor in specs[network].inputs))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            made |= {t.name: out for t, out in zip(specs[network].outputs, outputs, strict=True)}
    return made["noise_pred"]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("config", LAMP_CONFIGS)
def test_lamp_unets_of_every_form_are_the_plain_one(config: str, size: tuple[int, int, int]) -> None:
    unet, arrays = lamp_unet(config), lamp_inputs(size)
    plain = {"lamp_unet": NETWORKS["lamp_unet"]}
    expected = hoisted_output(unet, plain, (), arrays)
    assert expected[0].sub(expected[1]).abs().max() > 1e-3  # the texts differ
    for hoist in COMBINATIONS:
        specs = specs_of(("lamp_unet",), hoist, {"unet": dict(vars(unet.config))})
        actual = hoisted_output(unet, specs, hoist, arrays)
        assert distance(actual.numpy(), expected.numpy()).rel_l2 <= HOISTED_RTOL


@pytest.mark.parametrize("size", [(8, 12), (9, 13)], ids=str)
def test_sdxl_unets_of_every_form_are_the_plain_one(size: tuple[int, int]) -> None:
    unet, arrays = random_unet("sdxl_unet", UNET_CONFIG), sdxl_inputs(size)
    expected = hoisted_output(unet, {"sdxl_unet": NETWORKS["sdxl_unet"]}, (), arrays)
    assert expected[0].sub(expected[1]).abs().max() > 1e-3
    for hoist in (("text",), ("time",), ("text", "time"), HOISTS):
        specs = specs_of(("sdxl_unet",), hoist, {"sdxl_unet": UNET_CONFIG})
        actual = hoisted_output(unet, specs, hoist, arrays)
        assert distance(actual.numpy(), expected.numpy()).rel_l2 <= HOISTED_RTOL


@pytest.mark.slow
@pytest.mark.parametrize("hoist", [*((name,) for name in HOISTS), HOISTS], ids="+".join)
def test_onnx_runtime_computes_the_hoisted_graphs(hoist: tuple[str, ...], tmp_path: Path) -> None:
    unet, arrays = lamp_unet("three levels of unequal heads"), lamp_inputs((3, 5, 7))
    expected = hoisted_output(unet, {"lamp_unet": NETWORKS["lamp_unet"]}, (), arrays)
    specs = specs_of(("lamp_unet",), hoist, {"unet": dict(vars(unet.config))})
    made = run_graphs(unet, specs, hoist, arrays, tmp_path)
    assert distance(made["noise_pred"], expected.numpy()).rel_l2 <= HOISTED_RTOL


@pytest.mark.parametrize("hoist", [slow("text"), slow("time"), ("text", "time")], ids="+".join)
def test_onnx_runtime_computes_sdxls_hoisted_graphs(hoist: tuple[str, ...], tmp_path: Path) -> None:
    unet, arrays = random_unet("sdxl_unet", UNET_CONFIG), sdxl_inputs((9, 13))
    expected = hoisted_output(unet, {"sdxl_unet": NETWORKS["sdxl_unet"]}, (), arrays)
    specs = specs_of(("sdxl_unet",), hoist, {"sdxl_unet": UNET_CONFIG})
    made = run_graphs(unet, specs, hoist, arrays, tmp_path)
    assert distance(made["noise_pred"], expected.numpy()).rel_l2 <= HOISTED_RTOL


def run_graphs(
    unet: nn.Module,
    specs: Mapping[str, NetworkSpec],
    hoist: tuple[str, ...],
    arrays: Mapping[str, Tensor],
    folder: Path,
) -> dict[str, np.ndarray]:
    """Everything that the exported networks give in ONNX Runtime, weights from one file, and the arrays."""
    import onnx
    import onnxruntime

    save_file(unet.state_dict(), folder / "w.safetensors")
    places = {
        name: Location("w.safetensors", ref)
        for name, ref in read_weight_file(folder / "w.safetensors").tensors.items()
    }
    made = {name: tensor.numpy() for name, tensor in arrays.items()}
    (name, *beside) = specs
    for network in (*beside, name):
        module = wrap(network, copy.deepcopy(unet), hoisted_from(network, hoist))
        io = specs[network].resolve(axis_sizes(arrays), "fp32")
        model = onnx.load_from_string(export_graph(module, *io, places))
        use_cpu_kernels(model)
        onnx.save(model, folder / "g.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(folder / "g.onnx", options, providers=["CPUExecutionProvider"])
        outputs = session.run(None, {tensor.name: made[tensor.name] for tensor in io[0]})
        made |= {tensor.name: out for tensor, out in zip(io[1], outputs, strict=True)}
    return made


def axis_sizes(arrays: Mapping[str, Tensor]) -> dict[str, int]:
    """Of the networks that take these arrays."""
    *frames, height, width = arrays["sample"].shape[2:]
    _, tokens, text_width = arrays["encoder_hidden_states"].shape
    sizes = {"batch": 2, "tokens": tokens, "text_width": text_width, "sdxl_context_width": text_width}
    sizes |= {"num_frames": frames[0]} if frames else {"sdxl_pooled_width": arrays["text_embeds"].shape[1]}
    for prefix in ("", "first_frame_"):
        sizes |= {f"{prefix}latent_height": height, f"{prefix}latent_width": width}
    return sizes


@pytest.mark.parametrize("config", LAMP_CONFIGS)
def test_the_layout_that_a_config_says_is_the_modules(config: str) -> None:
    assert_layout("unet", lamp_unet(config), {**LAMP_CONFIGS[config], "cross_attention_dim": TEXT_WIDTH})


@pytest.mark.parametrize("component", ["unet", "sdxl_unet"])
def test_the_layout_of_published_configs_is_the_modules(component: str) -> None:
    from lamp_trt.export.networks import empty_module
    from lamp_trt.export.published import config_of

    assert_layout(
        component, empty_module(component, config_of(component), torch.float16), config_of(component)
    )


def assert_layout(component: str, unet: nn.Module, config: Mapping[str, Any]) -> None:
    layout = condition_layout(component, config)
    modules: dict[str, Any] = dict(unet.named_modules())
    assert set(layout.attentions) == {name for name in modules if name.endswith(".attn2")}
    for path, (heads, width) in layout.attentions.items():
        assert modules[path].heads == heads
        assert modules[path].to_k.out_features == heads * width
    projections = {name.removesuffix(".time_emb_proj") for name in modules if name.endswith("time_emb_proj")}
    assert set(layout.projections) == projections
    for path, channels in layout.projections.items():
        assert modules[f"{path}.time_emb_proj"].out_features == channels


def test_a_row_of_the_published_time_tables_is_whole_words() -> None:
    from lamp_trt.export.published import config_of

    for component, width in (("unet", 20_160), ("sdxl_unet", 13_760)):
        layout = condition_layout(component, config_of(component))
        assert sum(layout.projections.values()) == width
        assert width % 2 == 0


def test_hoisted_specs_take_what_is_given_by_equal_names() -> None:
    layout = condition_layout("sdxl_unet", UNET_CONFIG)
    specs = hoisted_specs("sdxl_unet", layout, HOISTS)
    text, time = HOISTED["sdxl_unet"]
    assert list(specs) == ["sdxl_unet", text, time]
    inputs = {tensor.name: tensor for tensor in specs["sdxl_unet"].inputs}
    outputs = {tensor.name: tensor for name in (text, time) for tensor in specs[name].outputs}
    assert inputs.items() >= outputs.items()
    assert inputs.keys() - outputs.keys() == {"sample"}
    assert specs["sdxl_unet"].outputs == NETWORKS["sdxl_unet"].outputs
    assert {spec.component for spec in specs.values()} == {"sdxl_unet"}


def test_layers_given_by_block_are_refused() -> None:
    config = {**UNET_CONFIG, "layers_per_block": [1, 2]}
    with pytest.raises(CheckpointError, match=r"layers_per_block is \[1, 2\]"):
        condition_layout("sdxl_unet", config)
