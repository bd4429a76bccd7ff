# SPDX-License-Identifier: Apache-2.0
"""What each hoist takes out of a LAMP UNet's step, against formulas."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from lamp_trt.benchmarks.bench.flops import graph_flops
from lamp_trt.engine.bundle.paths import graph_path
from lamp_trt.engine.bundle.weights import TensorRef
from lamp_trt.engine.networks import is_motion_tensor
from lamp_trt.engine.precompute import HOISTED, hoisted_from
from lamp_trt.export.networks import empty_module, empty_network
from lamp_trt.export.onnx import Location, export_graph
from lamp_trt.export.published import config_of
from lamp_trt.export.recipe import specs_of
from tests.benchmarks.bench.test_flops import (
    FULL_ATTENTION,
    FULL_WIDTHS,
    SMALL,
    SMALL_SIZES,
    TOY,
    TOY_FLOPS,
    TOY_WIDTHS,
    by_layer,
)
from tests.fixtures.full_size.graph import full_size_sizes, locations
from tests.fixtures.lamp_flops import TOKENS, LampFlops

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = ("text", "time", "prefix")
Graphs = dict[str, onnx.ModelProto]


@dataclass(frozen=True)
class Unet:
    """A LAMP UNet whose graphs are counted: its config, its size (frames, height, width of the latents), and
    the channels of its levels, of its text attentions and of its ResNets' outputs, in the graph's order."""

    config: Mapping[str, Any]
    size: tuple[int, int, int]
    levels: tuple[int, ...]
    attention: tuple[bool, ...]
    texts: Sequence[int]
    resnets: Sequence[int]


SMALL_UNET = Unet(
    SMALL, (3, 5, 7), (16, 32), (True, False),
    [16, 16, 32, 16, 16, 16],
    [16, 16, 32, 32, 32, 32, 32, 32, 32, 16, 16, 16],
)  # fmt: skip
ODD_UNET = Unet(
    {**SMALL, "layers_per_block": 1}, (3, 5, 7), (16, 32), (True, False),
    [16, 32, 16, 16],
    [16, 32, 32, 32, 32, 32, 16, 16],
)  # fmt: skip
TOY_UNET = Unet(
    TOY, TOY_FLOPS[:3], TOY_WIDTHS, FULL_ATTENTION,
    [*[16] * 4, *[32] * 2, 32, *[32] * 3, *[16] * 6],
    [*[16] * 4, *[32] * 4, 32, 32, *[32] * 6, *[16] * 6],
)  # fmt: skip


def exported(unet: Unet, hoist: tuple[str, ...]) -> Graphs:
    """The UNet's graph and those beside it, by name."""
    module = empty_module("unet", unet.config, torch.float32)
    places = {
        name: Location("w", TensorRef("F32", tuple(tensor.shape), 0, 4 * tensor.numel()))
        for name, tensor in module.named_parameters()
    }
    models = {}
    for name, spec in specs_of(("lamp_unet",), hoist, {"unet": unet.config}).items():
        network = empty_network(name, "unet", unet.config, torch.float32, hoisted_from(name, hoist))
        io = spec.resolve({**SMALL_SIZES, "text_width": 24}, "fp32")
        models[name] = onnx.load_from_string(export_graph(network, *io, places))
    return models


def stored(bundle: Path) -> Graphs:
    """The same of a bundle with everything hoisted."""
    names = ("lamp_unet", *HOISTED["lamp_unet"])
    return {name: onnx.load(bundle / graph_path(name), load_external_data=False) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("hoist", [("text",), ("time",), ("prefix",), ALL], ids="+".join)
def test_a_small_hoisted_unet_costs_what_its_layers_do(hoist: tuple[str, ...]) -> None:
    assert_costs(exported(SMALL_UNET, hoist), SMALL_UNET, hoist, 24)


def test_a_hoisted_unet_of_odd_sizes_costs_what_its_layers_do() -> None:
    assert_costs(exported(ODD_UNET, ALL), ODD_UNET, ALL, 24)


def test_a_hoisted_bundles_unet_costs_what_its_layers_do(hoisted_bundle: Path) -> None:
    assert_costs(stored(hoisted_bundle), TOY_UNET, ALL, 32)


def assert_costs(models: Graphs, unet: Unet, hoist: tuple[str, ...], text_width: int) -> None:
    layers = unet.config.get("layers_per_block", 2)
    expected = LampFlops(*unet.size, text_width, hoisted=hoist)
    expected.unet(unet.levels, unet.attention, layers)
    assert by_layer(models["lamp_unet"]) == +expected.flops
    text_flops = time_flops = 0
    if "text" in hoist:
        text_flops = sum(2 * 2 * 2 * TOKENS * text_width * width for width in unet.texts)
    if "time" in hoist:
        time_flops = 2 * (16 * 64 + 64 * 64 + 64 * sum(unet.resnets))
    beside = Counter({name: sum(graph_flops(model).values()) for name, model in models.items()})
    del beside["lamp_unet"]
    assert +Counter(lamp_text_keys_values=text_flops, lamp_time_projections=time_flops) == beside


def test_graphs_share_a_component_and_hoisted_ones_hold_no_motion_tensor(hoisted_bundle: Path) -> None:
    models = stored(hoisted_bundle)
    tensors = {name: {i.name for i in model.graph.initializer} for name, model in models.items()}
    module = empty_module("unet", TOY, torch.float32)
    parameters = dict(module.named_parameters()).keys()
    held = {name: names & parameters for name, names in tensors.items()}
    assert set().union(*held.values()) == parameters
    assert sum(map(len, held.values())) == len(parameters)  # each in one graph alone
    for name in ("lamp_text_keys_values", "lamp_time_projections"):
        assert held[name]
        assert not any(map(is_motion_tensor, held[name]))
    assert all("attn2" in name for name in held["lamp_text_keys_values"])
    assert all("time_emb" in name for name in held["lamp_time_projections"])


@pytest.mark.slow
def test_what_is_not_hoisted_leaves_no_trace_in_the_plain_graph() -> None:
    """Static batches are equal, so nothing needs to be repeated for the texts."""
    plain = exported(SMALL_UNET, ())["lamp_unet"]
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in plain.graph.value_info
    }
    idle = [
        node.name
        for node in plain.graph.node
        if node.op_type == "Expand" and shapes[node.input[0]] == shapes[node.output[0]]
    ]
    assert idle == []


@pytest.mark.slow
def test_a_full_size_step_with_everything_hoisted_is_18_08_tflop() -> None:
    """Of 18.48: the prefix 396.97 GFLOP (all before the first text attention's softmax, one half of
    guidance), keys and values of the text 5.90, time 0.11."""
    config = config_of("unet")
    expected = LampFlops(16, 40, 64, 768, hoisted=ALL)
    spec = specs_of(("lamp_unet",), ALL, {"unet": config})["lamp_unet"]
    network = empty_network("lamp_unet", "unet", config, torch.float16, ALL)
    graph = export_graph(network, *spec.resolve(full_size_sizes(), "fp16"), locations("unet", "F16"))
    model = onnx.load_from_string(graph)
    assert (
        sum(graph_flops(model).values()) == expected.unet(FULL_WIDTHS, FULL_ATTENTION) == 18_080_498_319_360
    )
