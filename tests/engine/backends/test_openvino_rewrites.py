# SPDX-License-Identifier: Apache-2.0
"""Each rewriting of a graph for OpenVINO beside OpenVINO's own operator."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.engine.backends.openvino.graph import network_graph
from lamp_trt.engine.backends.openvino.group_norm import use_channel_statistics
from lamp_trt.engine.backends.openvino.library import compile_graph, import_openvino
from lamp_trt.engine.backends.openvino.patches import use_patch_products
from lamp_trt.engine.bundle.reader import Bundle
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
