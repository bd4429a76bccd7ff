# SPDX-License-Identifier: Apache-2.0
"""Operations and bytes of a graph, against formulas."""

import dataclasses
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from lamp_trt.benchmarks.bench.flops import PRODUCTS, graph_bytes, graph_flops, node_costs
from lamp_trt.engine.bundle.weights import TensorRef
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.families import NETWORKS
from lamp_trt.export.networks import LampUnetNetwork, empty_module, wrap
from lamp_trt.export.onnx import Location, export_graph
from lamp_trt.export.toy.lamp import CONFIG
from tests.fixtures.full_size.graph import full_size_graph
from tests.fixtures.lamp_flops import LampFlops

SMALL = {"block_out_channels": [16, 32], "attention_head_dim": 4, "cross_attention_dim": 24}
SMALL |= {"norm_num_groups": 8, "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"]}
SMALL |= {"up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"]}
SMALL_SIZES = {"batch": 2, "num_frames": 3, "latent_height": 5, "latent_width": 7, "tokens": 77}
TOY = dataclasses.asdict(CONFIG)
TOY_WIDTHS, TOY_FLOPS = (16, 16, 32, 32), (4, 8, 8, 32)
"""Of toy_bundle: channels by level; frames, latent height and width, text width."""
FULL_WIDTHS, FULL_ATTENTION = (320, 640, 1280, 1280), (True, True, True, False)

PUBLISHED_GFLOP = {
    "conv2d": 8367.2,
    "conv1d": 3170.9,
    "ff": 3070.2,
    "attn1": 2554.6,
    "attn_temp": 1038.2,
    "attn2": 677.3,
    "proj": 511.7,
    "conv_gate": 13.8,
    "time": 0.1,
}
"""One forward of the official implementation at Stable Diffusion v1.4's size, with guidance and 16 frames of
40x64, counted on its own modules."""


def graph(
    op: str, shapes: list[list[int]], output: list[int], weights: int = 0, **attributes: Any
) -> onnx.ModelProto:
    """One node; its last `weights` inputs are initializers."""
    names = [f"x{i}" for i in range(len(shapes))]
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape)
        for name, shape in zip(names, shapes, strict=True)
    ]
    kept = len(shapes) - weights
    initializers = [
        TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT16)
        for name, shape in zip(names[kept:], shapes[kept:], strict=True)
    ]
    node = helper.make_node(op, names, ["y"], **attributes)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT16, output)
    return helper.make_model(helper.make_graph([node], "g", tensors[:kept], [out], initializers))


@cache
def small_graph(official: bool) -> onnx.ModelProto:
    module = empty_module("unet", SMALL, torch.float32)
    places = {
        name: Location("w", TensorRef("F32", tuple(tensor.shape), 0, 4 * tensor.numel()))
        for name, tensor in module.named_parameters()
    }
    exported = LampUnetNetwork(module) if official else wrap("lamp_unet", module)
    io = NETWORKS["lamp_unet"].resolve({**SMALL_SIZES, "text_width": 24}, "fp32")
    return onnx.load_from_string(export_graph(exported, *io, places))


@pytest.mark.parametrize(
    ("model", "flops", "weight_bytes", "activation_bytes"),
    [
        (
            graph("Conv", [[2, 6, 9, 9], [4, 3, 3, 3], [4]], [2, 4, 5, 5], 2, group=2, strides=[2, 2]),
            2 * (2 * 4 * 5 * 5) * (3 * 3 * 3),
            2 * (4 * 3 * 9 + 4),
            2 * (2 * 6 * 81 + 2 * 4 * 25),
        ),
        (graph("MatMul", [[2, 5, 7], [7, 3]], [2, 5, 3], 1), 2 * 2 * 5 * 3 * 7, 2 * 21, 2 * (70 + 30)),
        (graph("MatMul", [[2, 5, 7], [2, 7, 3]], [2, 5, 3]), 2 * 2 * 5 * 3 * 7, 0, 2 * (70 + 42 + 30)),
        (graph("Gemm", [[7, 5], [7, 3]], [5, 3], 1, transA=1), 2 * 5 * 3 * 7, 2 * 21, 2 * (35 + 15)),
        (
            graph("Attention", [[2, 4, 10, 8], [2, 4, 6, 8], [2, 4, 6, 12]], [2, 4, 10, 12]),
            2 * 2 * 4 * 10 * 6 * (8 + 12),
            0,
            2 * (2 * 4 * (80 + 48 + 72 + 120)),
        ),
        (
            graph("MultiHeadAttention", [[2, 10, 32], [2, 6, 32], [2, 6, 48]], [2, 10, 48], num_heads=4),
            2 * 2 * 10 * 6 * (32 + 48),
            0,
            2 * 2 * (320 + 192 + 288 + 480),
        ),
        (graph("Softmax", [[4, 5]], [4, 5]), 0, 0, 2 * 40),
    ],
    ids=["Conv", "MatMul", "computed MatMul", "Gemm", "Attention", "MultiHeadAttention", "Softmax"],
)
def test_a_node_costs_what_its_formula_says(
    model: onnx.ModelProto, flops: int, weight_bytes: int, activation_bytes: int
) -> None:
    (cost,) = node_costs(model)
    assert (cost.flops, cost.weight_bytes, cost.activation_bytes) == (flops, weight_bytes, activation_bytes)
    assert cost.weight == ("x1" if weight_bytes else "")
    assert graph_flops(model) == ({cost.op: flops} if flops else {})
    assert graph_bytes(model) == {cost.op: (weight_bytes, activation_bytes)}


def test_views_move_nothing_and_a_reused_input_is_read_once() -> None:
    assert graph_bytes(graph("Flatten", [[4, 5]], [4, 5])) == {}
    squared = graph("Mul", [[4, 5]], [4, 5])
    squared.graph.node[0].input.append("x0")
    assert graph_bytes(squared) == {"Mul": (0, 2 * 40)}


def test_a_graph_of_unknown_size_is_refused() -> None:
    model = graph("MatMul", [[2, 5, 7], [7, 3]], [2, 5, 3])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    with pytest.raises(InputError, match="'x0' has no static shape; export it at fixed sizes"):
        graph_flops(model)


def test_a_bundles_lamp_unet_costs_what_its_layers_do(toy_bundle: Path) -> None:
    expected = LampFlops(*TOY_FLOPS)
    expected.unet(TOY_WIDTHS, FULL_ATTENTION)
    model = onnx.load(toy_bundle / "lamp_unet.onnx", load_external_data=False)
    assert by_layer(model) == expected.flops
    assert sum(graph_flops(model).values()) == expected.flops.total()


@pytest.mark.slow
@pytest.mark.parametrize("official", [True, False], ids=["official", "lean"])
def test_a_small_lamp_unet_costs_what_its_layers_do(official: bool) -> None:
    expected = LampFlops(3, 5, 7, 24, official)
    expected.unet((16, 32), (True, False))
    model = small_graph(official=official)
    assert by_layer(model) == expected.flops
    assert sum(graph_flops(model).values()) == expected.flops.total()


def test_every_weight_of_a_lamp_unet_is_counted_once(toy_bundle: Path) -> None:
    model = onnx.load(toy_bundle / "lamp_unet.onnx", load_external_data=False)
    weights = sum(weight for weight, _ in graph_bytes(model).values())
    constants = 2 * 8 * 4 + 4096  # frequencies, shapes, indices
    parameters = 4 * sum(tensor.numel() for tensor in empty_module("unet", TOY, torch.float32).parameters())
    assert parameters <= weights <= parameters + constants


def test_the_formulas_give_the_published_count_of_the_official_unet() -> None:
    full = LampFlops(16, 40, 64, 768, official=True)
    assert round(full.unet(FULL_WIDTHS, FULL_ATTENTION) / 1e9, 1) == 19404.1
    assert {kind: round(flops / 1e9, 1) for kind, flops in full.flops.items()} == PUBLISHED_GFLOP
    longer = LampFlops(24, 40, 64, 768, official=True)
    assert round(longer.unet(FULL_WIDTHS, FULL_ATTENTION) / 1e9) == 28941


@pytest.mark.slow
@pytest.mark.parametrize(("official", "gflop"), [(True, 19404.1), (False, 18483.5)], ids=["official", "lean"])
def test_a_full_size_lamp_unet_costs_what_its_layers_do(official: bool, gflop: float) -> None:
    expected = LampFlops(16, 40, 64, 768, official)
    expected.unet(FULL_WIDTHS, FULL_ATTENTION)
    model = onnx.load_from_string(full_size_graph("lamp_unet", "fp16", official=official))
    assert by_layer(model) == expected.flops
    assert round(sum(graph_flops(model).values()) / 1e9, 1) == gflop


def by_layer(model: onnx.ModelProto) -> Counter[str]:
    """Operations by kind of layer. Attention's own products count for the layer of the weight before them."""
    flops: Counter[str] = Counter()
    kind = ""
    for cost in node_costs(model):
        if cost.op in PRODUCTS:
            kind = kind_of(cost.weight) if cost.weight else kind
            flops[kind] += cost.flops
    return flops


def kind_of(weight: str) -> str:
    kinds = ("attn1", "attn2", "attn_temp", "conv2d", "conv1d", "conv_gate", "proj_in", "proj_out", "ff")
    kind = next((kind for kind in kinds if kind in weight.split(".")), "time" if "time_emb" in weight else "")
    assert kind, weight
    return kind.split("_in")[0].split("_out")[0]
