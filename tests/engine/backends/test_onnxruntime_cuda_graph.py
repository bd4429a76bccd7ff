# SPDX-License-Identifier: Apache-2.0
"""Graphs for ONNX Runtime's CUDA provider: no node is left for the CPU, and results stay the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.engine.backends.onnxruntime.cpu_graph import use_cpu_kernels
from lamp_trt.engine.backends.onnxruntime.cuda_graph import use_cuda_kernels
from lamp_trt.engine.backends.onnxruntime.session import import_onnxruntime, place_weights
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.graph.model import bundle_model
from tests.doubles.cuda_provider import on_the_cpu
from tests.tolerances import NORM_REL_EPS

BUNDLES = ("sdxl_bundle", "hoisted_bundle")


def optimized(bundle: Bundle, network: str, rewrite: Callable[[Any], object], file: Path) -> onnx.ModelProto:
    """The graph as a session has optimized it, at the level whose result every provider takes."""
    onnxruntime = import_onnxruntime()
    model = bundle_model(bundle, network, "horse_run" if network == "lamp_unet" else None)
    rewrite(model)
    options = onnxruntime.SessionOptions()
    for key, value in place_weights(bundle, model).items():
        options.add_session_config_entry(key, value)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(file)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(file, load_external_data=False)


@pytest.mark.parametrize("fixture", BUNDLES)
def test_no_node_of_any_network_is_left_for_the_cpu(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = Bundle.open(request.getfixturevalue(fixture))
    for network in bundle.manifest.networks:
        model = optimized(bundle, network, use_cuda_kernels, tmp_path / "optimized.onnx")
        assert (network, on_the_cpu(model)) == (network, [])


def test_what_the_provider_does_not_take_is_found(sdxl_bundle: Path, tmp_path: Path) -> None:
    bundle, file = Bundle.open(sdxl_bundle), tmp_path / "optimized.onnx"
    plain = on_the_cpu(optimized(bundle, "lamp_unet", lambda model: None, file))
    assert any("shape arithmetic" in problem for problem in plain)
    broadcast = on_the_cpu(optimized(bundle, "vae_decoder", use_cpu_kernels, file))
    assert any("a scale of" in problem for problem in broadcast)
    argmax = on_the_cpu(optimized(bundle, "sdxl_text_encoder_2", lambda model: None, file))
    assert [problem.partition(": ")[2] for problem in argmax] == ["no kernel for integers"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("rest", [(20, 30), (3, 20, 30)], ids=str)
def test_groups_are_normalized_exactly(dtype: Any, rest: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((2, 8, *rest)) + 3).astype(dtype)
    scale, bias = (rng.standard_normal(8).astype(dtype) for _ in range(2))
    node = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=4, epsilon=1e-6)
    weights = [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(bias, "bias")]
    y = run(node, {"x": x}, weights, x.shape, helper.np_dtype_to_tensor_dtype(x.dtype))
    groups = x.astype(np.float64).reshape(2, 4, -1)
    mean, var = groups.mean(-1, keepdims=True), groups.var(-1, keepdims=True)
    normalized = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
    by_channel = (w.astype(np.float64).reshape(1, 8, *(1 for _ in rest)) for w in (scale, bias))
    expected = normalized * next(by_channel) + next(by_channel)
    assert y.dtype == dtype
    assert distance(y, expected).rel_l2 <= NORM_REL_EPS * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32])
def test_the_largest_of_integers_stays_where_it_is(dtype: Any) -> None:
    ids = np.array([[49406, 3, 49407, 49406], [49406, 49407, 49407, 1]], dtype)
    node = helper.make_node("ArgMax", ["ids"], ["places"], axis=-1, keepdims=0)
    places = run(node, {"ids": ids}, [], (2,), TensorProto.INT64)
    np.testing.assert_array_equal(places, [2, 1])


def run(
    node: onnx.NodeProto, arrays: dict[str, np.ndarray], weights: list[Any], shape: tuple[int, ...], elem: int
) -> np.ndarray:
    """One rewritten node's output on the CPU provider."""
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in arrays.items()
    ]
    outputs = [helper.make_tensor_value_info(node.output[0], elem, shape)]
    graph = helper.make_graph([node], "node", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    assert use_cuda_kernels(model)[node.op_type] == 1
    onnx.checker.check_model(model)
    assert on_the_cpu(model) == []
    session = import_onnxruntime().InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (output,) = session.run(None, arrays)
    return np.asarray(output)
