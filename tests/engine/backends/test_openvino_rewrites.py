# SPDX-License-Identifier: Apache-2.0
"""Each rewriting of a graph for OpenVINO beside OpenVINO's own operator."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.engine.backends.openvino.channels_last import use_channels_last
from lamp_trt.engine.backends.openvino.engine import OpenVinoEngine
from lamp_trt.engine.backends.openvino.gates import use_layers_of_halves
from lamp_trt.engine.backends.openvino.graph import network_graph
from lamp_trt.engine.backends.openvino.group_norm import use_channel_statistics
from lamp_trt.engine.backends.openvino.library import compile_graph, import_openvino, shared_constant
from lamp_trt.engine.backends.openvino.patches import use_patch_products
from lamp_trt.engine.backends.openvino.views import plain_view
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.families import LAMP
from tests.fixtures.openvino import needs_openvino

pytestmark = needs_openvino


def test_group_normalization_by_channel_statistics_equals_openvinos_own() -> None:
    ov = import_openvino()
    op = ov.opset13
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((1, 32, 96, 96)) + 3).astype(np.float32)
    scale, bias = rng.standard_normal((2, 32)).astype(np.float32)

    def model() -> Any:
        taken = op.parameter(x.shape, np.float32)
        normalized = op.group_normalization(taken, op.constant(scale), op.constant(bias), 8, 1e-6)
        return ov.Model([normalized], [taken])

    groups = x.reshape(8, -1).astype(np.float64)
    rows = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-6)
    exact = rows.reshape(x.shape) * scale[:, None, None] + bias[:, None, None]
    rewritten = model()
    assert use_channel_statistics(rewritten) == 1
    for each, limit in ((rewritten, 2e-7), (model(), 1e-5)):
        assert distance(compile_graph(each, "it", "fp32", 1)(x)[0], exact).rel_l2 <= limit


@pytest.mark.parametrize(
    ("size", "strides", "pads", "replaced"),
    [
        ((24, 36), (4, 6), (0, 0), 1),
        ((25, 36), (4, 6), (0, 0), 0),  # pixels left over
        ((24, 36), (4, 3), (0, 0), 0),  # patches overlap
        ((24, 36), (4, 6), (2, 3), 0),
    ],
)
def test_convolutions_of_patches_equal_openvinos_own(
    size: tuple[int, int], strides: tuple[int, int], pads: tuple[int, int], replaced: int
) -> None:
    ov = import_openvino()
    op = ov.opset13
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, *size), np.float32)
    weights = rng.standard_normal((16, 3, 4, 6), np.float32)

    def model() -> Any:
        taken = op.parameter(x.shape, np.float32)
        convolved = op.convolution(taken, op.constant(weights), strides, pads, pads, (1, 1))
        return ov.Model([convolved], [taken])

    rewritten = model()
    assert use_patch_products(rewritten) == replaced
    ours, own = (compile_graph(each, "it", "fp32", 1)(x)[0] for each in (rewritten, model()))
    assert ours.shape == own.shape
    assert distance(ours, own).rel_l2 <= 1e-6


def test_the_safety_checkers_patches_are_matrix_products(safe_bundle: Path) -> None:
    graph = network_graph(Bundle.open(safe_bundle), "safety_checker", None, widen=False)
    assert "Convolution" not in {node.get_type_name() for node in graph.model.get_ops()}


@pytest.mark.parametrize(("batch", "frames"), [(2, 3), (1, 3), (2, 1)])
def test_videos_channels_last_equal_openvinos_own(batch: int, frames: int) -> None:
    """What the LAMP UNet does between convolutions: frames as images, along frames, gates, norms, tokens."""
    ov = import_openvino()
    op = ov.opset13
    rng = np.random.default_rng(0)
    channels, height, width = 8, 4, 6
    sample = rng.standard_normal((batch, channels, frames, height, width), np.float32)
    scale, bias = rng.standard_normal((2, channels), np.float32)

    def integers(*values: int) -> Any:
        return op.constant(np.array(values, np.int64))

    def weights(*shape: int) -> Any:
        return op.constant(np.random.default_rng(sum(shape)).standard_normal(shape, np.float32) / 8)

    def convolved(x: Any, shape: tuple[int, ...], begin: tuple[int, int], end: tuple[int, int]) -> Any:
        product = op.convolution(x, weights(*shape), [1, 1], begin, end, [1, 1])
        return op.add(product, weights(1, shape[0], 1, 1))

    def model() -> Any:
        x = op.parameter(sample.shape, np.float32)
        shift = op.parameter([batch, channels], np.float32)
        images = op.reshape(
            op.transpose(x, integers(0, 2, 1, 3, 4)), integers(-1, channels, height, width), False
        )
        images = convolved(images, (channels, channels, 3, 3), (1, 1), (1, 1))
        gate = op.sigmoid(convolved(images, (1, channels, 3, 3), (1, 1), (1, 1)))
        video = op.transpose(
            op.reshape(images, integers(batch, frames, channels, height * width), False),
            integers(0, 2, 1, 3),
        )
        along = convolved(video, (channels, channels, 3, 1), (2, 0), (0, 0))
        gated = op.multiply(op.reshape(gate, integers(batch, 1, frames, height * width), False), along)
        video = op.reshape(op.add(video, gated), integers(*sample.shape), False)
        moved = op.unsqueeze(op.unsqueeze(op.unsqueeze(shift, integers(2)), integers(3)), integers(4))
        normed = op.group_normalization(op.add(video, moved), op.constant(scale), op.constant(bias), 4, 1e-5)
        joined = op.concat([op.multiply(normed, op.sigmoid(normed)), video], 1)
        tokens = op.reshape(joined, integers(batch, 2 * channels, frames, -1), False)
        tokens = op.matmul(op.transpose(tokens, integers(0, 2, 3, 1)), weights(2 * channels, 5), False, False)
        heads = op.transpose(op.reshape(tokens, integers(batch, -1, 5), False), integers(0, 2, 1))
        heads.output(0).set_names({"heads"})
        return ov.Model([heads], [x, shift])

    inputs = [sample, rng.standard_normal((batch, channels), np.float32)]
    rewritten = model()
    assert use_channels_last(rewritten) > 0
    ours, own = (compile_graph(each, "it", "fp32", 1)(inputs)["heads"] for each in (rewritten, model()))
    assert ours.shape == own.shape
    assert distance(ours, own).rel_l2 <= 1e-6


def test_a_model_of_images_stays_as_it_is(safe_bundle: Path) -> None:
    model = network_graph(Bundle.open(safe_bundle), "vae_decoder", None, widen=False).model
    assert use_channels_last(model) == 0


def test_reshapes_and_transposes_of_videos_move_nothing(safe_bundle: Path) -> None:
    """Between the convolutions of the LAMP UNet: what is left goes into convolutions, attention or tokens."""
    bundle = Bundle.open(safe_bundle)
    motion = next(iter(bundle.manifest.motions))
    network = OpenVinoEngine(bundle, LAMP.unet, precision="fp32", motion=motion, profile=True)
    with network as engine:
        engine.run({t.name: np.ones([int(n) for n in t.shape], t.dtype) for t in engine.inputs})
        nodes = engine.profile()
    moved = [each for each in nodes if each.node_type == "Reorder" and each.status.name == "EXECUTED"]
    convolutions = [each for each in nodes if each.node_type == "Convolution"]
    assert len(moved) < len(convolutions) / 4


@pytest.mark.parametrize(
    ("axes", "shape", "is_view"),
    [
        ((0, 1, 2, 3, 4), (6, 4, 5, 7), True),
        ((0, 1, 2, 3, 4), (2, 60, 7), True),
        ((0, 1, 3, 4, 2), (2, 3, 35, 4), True),
        ((0, 1, 3, 4, 2), (2, 3, 5, 28), False),
        ((0, 2, 1, 3, 4), (2, 12, 35), False),
        ((4, 3, 2, 1, 0), (7, 1, 5, 4, 3, 2, 1), True),
    ],
)
def test_views_are_reshaped_as_numpys(axes: tuple[int, ...], shape: tuple[int, ...], is_view: bool) -> None:
    """A view of (2, 3, 4, 5, 7): with the axes in this order, then in this shape."""
    ov = import_openvino()
    parameter = ov.opset13.parameter([2, 3, 4, 5, 7], np.float32)
    values = np.arange(840, dtype=np.float32).reshape(2, 3, 4, 5, 7)
    view = plain_view(parameter.output(0)).transposed(axes).reshaped(shape)
    expected = values.transpose(axes).reshape(shape)
    assert (view is not None) == np.shares_memory(expected, values) == is_view
    if view is not None:
        model = ov.Model([ov.opset13.relu(view.plain())], [parameter])
        assert np.array_equal(compile_graph(model, "it", "fp32", 1)(values)[0], expected)


@pytest.mark.parametrize("transposed", [True, False])
def test_the_layer_of_a_gated_unit_is_two(transposed: bool) -> None:
    ov = import_openvino()
    op = ov.opset13
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 9, 8), np.float32)
    weights = {"rows": rng.standard_normal((12, 8), np.float32), "bias": rng.standard_normal(12, np.float32)}
    raw = {name: value.reshape(-1).view(np.uint8) for name, value in weights.items()}

    def model() -> Any:
        taken = op.parameter(x.shape, np.float32)
        matrix, bias = (
            shared_constant(name, raw[name], list(value.shape), ov.Type.f32)
            for name, value in weights.items()
        )
        if transposed:
            matrix = op.transpose(matrix, op.constant(np.array([1, 0])))
        product = op.matmul(taken, matrix, False, not transposed)
        both = op.split(op.add(product, bias), op.constant(np.int64(2)), 2)
        gated = op.multiply(both.output(0), op.gelu(both.output(1), "erf"))
        return ov.Model([gated], [taken])

    rewritten = model()
    assert use_layers_of_halves(rewritten, raw) == 1
    assert "Split" not in {node.get_type_name() for node in rewritten.get_ops()}
    ours, own = (compile_graph(each, "it", "fp32", 1)(x)[0] for each in (rewritten, model()))
    assert distance(ours, own).rel_l2 <= 1e-6
    assert use_layers_of_halves(model(), {}) == 0  # weights that are not mapped


@pytest.mark.parametrize("network", [LAMP.unet, "sdxl_unet"])
def test_every_gate_of_a_unet_has_layers_of_its_own(sdxl_bundle: Path, network: str) -> None:
    bundle = Bundle.open(sdxl_bundle)
    motion = next(iter(bundle.manifest.motions)) if network == LAMP.unet else None
    for widen in (False, True):
        graph = network_graph(bundle, network, motion, widen=widen)
        assert "Split" not in {node.get_type_name() for node in graph.model.get_ops()}


def test_outputs_of_a_video_keep_their_names() -> None:
    """Two outputs of one value, one that is read further, and an input that is an output's value."""
    ov = import_openvino()
    op = ov.opset13
    sample = np.random.default_rng(0).standard_normal((1, 2, 3, 4, 5), np.float32)

    def model() -> Any:
        x = op.parameter(sample.shape, np.float32)
        there = op.constant(np.array([0, 2, 3, 4, 1]))
        values = {"activated": op.sigmoid(op.transpose(x, there))}
        values["back"] = op.transpose(values["activated"], op.constant(np.array([0, 4, 1, 2, 3])))
        values["same"] = op.transpose(op.transpose(x, there), op.constant(np.array([0, 4, 1, 2, 3])))
        x.output(0).set_names({"x"})
        for name, value in values.items():
            value.output(0).set_names({name})
        return ov.Model([*values.values(), values["activated"]], [x])

    rewritten = model()
    assert use_channels_last(rewritten) == 4
    assert rewritten.input().get_names() == {"x"}
    ours, own = (compile_graph(each, "it", "fp32", 1)(sample) for each in (rewritten, model()))
    for name in ("activated", "back", "same"):
        np.testing.assert_allclose(ours[name], own[name], rtol=1e-6)


def test_what_is_beside_a_video_may_be_transposed_too() -> None:
    """Weights of a convolution, and scales of a normalization, that are views themselves."""
    ov = import_openvino()
    op = ov.opset13
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, np.float32) for shape in ((2, 4, 3, 5, 6), (4, 4, 3, 3), (2, 2))]

    def model() -> Any:
        x, weights, scale = (op.parameter(each.shape, np.float32) for each in arrays)
        images = op.reshape(
            op.transpose(x, op.constant(np.array([0, 2, 1, 3, 4]))),
            op.constant(np.array([6, 4, 5, 6])),
            False,
        )
        turned = op.sigmoid(op.transpose(weights, op.constant(np.array([1, 0, 3, 2]))))
        images = op.convolution(images, turned, [1, 1], [1, 1], [1, 1], [1, 1])
        rows = op.sigmoid(op.transpose(scale, op.constant(np.array([1, 0]))))
        flat = op.reshape(rows, op.constant(np.array([4])), False)
        return ov.Model([op.group_normalization(images, flat, flat, 2, 1e-5)], [x, weights, scale])

    rewritten = model()
    assert use_channels_last(rewritten) > 0
    ours, own = (compile_graph(each, "it", "fp32", 1)(arrays)[0] for each in (rewritten, model()))
    assert distance(ours, own).rel_l2 <= 1e-6


@pytest.mark.parametrize("shape", [(2, 2), (9, 2)])
def test_a_bias_of_rows_is_not_split(shape: tuple[int, int]) -> None:
    ov = import_openvino()
    op = ov.opset13
    rng = np.random.default_rng(0)
    sizes = {"rows": (2, 8), "bias": shape}
    raw = {n: rng.standard_normal(size, np.float32).reshape(-1).view(np.uint8) for n, size in sizes.items()}
    rows, bias = (shared_constant(name, raw[name], list(sizes[name]), ov.Type.f32) for name in sizes)
    taken = op.parameter([shape[0], 8], np.float32)
    added = op.add(op.matmul(taken, rows, False, True), bias)
    both = op.split(added, op.constant(np.int64(1)), 2)
    model = ov.Model([both.output(0), both.output(1)], [taken])
    assert use_layers_of_halves(model, raw) == 0
