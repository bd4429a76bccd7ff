# SPDX-License-Identifier: Apache-2.0
"""Exported graphs against the modules that they were exported from, on ONNX Runtime's CPU provider."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine
from lamp_trt.engine.backends.onnxruntime.cpu_graph import use_cpu_kernels
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import TensorRef, read_weight_file, write_weight_file
from lamp_trt.engine.errors import CheckpointError
from lamp_trt.engine.families import VIDEO_NETWORKS
from lamp_trt.engine.networks import IOTensor, is_motion_tensor
from lamp_trt.export.build import build_bundle
from lamp_trt.export.checkpoints.tensors import load_text_encoder, load_vae
from lamp_trt.export.lamp.unet import load_lamp_unet
from lamp_trt.export.networks import (
    TextEncoderNetwork,
    VaeDecoderNetwork,
    VaeEncoderNetwork,
    _end_of_text,
)
from lamp_trt.export.onnx import Location, export_graph
from tests.fixtures.toy import TOY_SIZE, toy_options
from tests.tolerances import (
    EXPORT_ATOL,
    EXPORT_UNET_REL_L2,
    FP16_YARDSTICK,
    NORM_REL_EPS,
)

Arrays = dict[str, np.ndarray]


def reference_module(network: str, toy: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """What `network` must equal: the library's or the official formulation, not the exported one."""
    match network:
        case "text_encoder":
            return TextEncoderNetwork(load_text_encoder(toy / "sd", dtype))
        case "vae_encoder":
            return VaeEncoderNetwork(load_vae(toy / "sd", dtype))
        case "vae_decoder":
            return VaeDecoderNetwork(load_vae(toy / "sd", dtype))
    return load_lamp_unet(toy / "motions" / "horse_run", dtype)


def random_inputs(inputs: tuple[IOTensor, ...], seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    values: Arrays = {}
    for tensor in inputs:
        if tensor.dtype == "int64":
            values[tensor.name] = rng.integers(0, 1000, tensor.shape)
        elif tensor.name == "timestep":
            values[tensor.name] = np.array([501], np.float32)
        else:
            values[tensor.name] = rng.standard_normal(tensor.shape).astype(tensor.dtype)
    return values


def run_reference(module: nn.Module, arrays: Arrays) -> tuple[np.ndarray, ...]:
    with torch.inference_mode():
        out = module(*(torch.from_numpy(array) for array in arrays.values()))
    return tuple(t.numpy() for t in (out if isinstance(out, tuple) else (out,)))


@pytest.mark.parametrize("network", VIDEO_NETWORKS)
def test_onnx_runtime_equals_the_pytorch_module_in_fp32(network: str, toy: Path, toy_bundle: Path) -> None:
    bundle = Bundle.open(toy_bundle)
    motion = "horse_run" if network == "lamp_unet" else None
    engine = OnnxRuntimeEngine(bundle, network, motion=motion)
    arrays = random_inputs(engine.inputs)
    actual = engine.run(arrays)
    expected = run_reference(reference_module(network, toy), arrays)
    for tensor, value in zip(engine.outputs, expected, strict=True):
        assert actual[tensor.name].shape == value.shape
        assert np.abs(actual[tensor.name] - value).max() <= EXPORT_ATOL
        if network == "lamp_unet":
            assert distance(actual[tensor.name], value).rel_l2 <= EXPORT_UNET_REL_L2


@pytest.mark.parametrize("network", VIDEO_NETWORKS)
def test_graphs_pass_the_onnx_checker_and_run_in_plain_onnx_runtime(network: str, toy_bundle: Path) -> None:
    bundle = Bundle.open(toy_bundle)
    path = bundle.graph_path(network)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    entry = bundle.network(network)
    assert [value.name for value in session.get_inputs()] == [t.name for t in entry.inputs]
    outputs = session.run(None, random_inputs(entry.inputs))
    assert [o.shape for o in outputs] == [t.shape for t in entry.outputs]
    assert all(np.isfinite(o).all() for o in outputs)


def test_initializers_point_at_the_checkpoint_tensor_of_their_name(toy_bundle: Path) -> None:
    bundle = Bundle.open(toy_bundle)
    model = onnx.load(bundle.graph_path("lamp_unet"), load_external_data=False)
    shared = read_weight_file(toy_bundle / "weights" / "unet.safetensors").tensors
    motion = read_weight_file(toy_bundle / "motions" / "horse_run.safetensors").tensors
    assert all(map(is_motion_tensor, motion))
    assert not any(map(is_motion_tensor, shared))
    external = {i.name: {e.key: e.value for e in i.external_data} for i in model.graph.initializer}
    external = {name: entries for name, entries in external.items() if entries}
    assert external.keys() == {*shared, *motion}
    for name, entries in external.items():
        file, ref = (
            ("motions/horse_run.safetensors", motion[name])
            if name in motion
            else ("weights/unet.safetensors", shared[name])
        )
        assert entries == {"location": file, "offset": str(ref.offset), "length": str(ref.length)}


class Delicate(nn.Module):
    """All that the exporter's optimizer merges or drops: a zero bias, equal norms, zero weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(2, 4), nn.GroupNorm(2, 4)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(self.conv(self.norm1(x)))
        out: Tensor = x + self.linear(x.transpose(1, 3)).transpose(1, 3)
        return out


def test_zero_biases_and_equal_norms_are_neither_dropped_nor_merged(tmp_path: Path) -> None:
    delicate = Delicate().eval()
    with torch.no_grad():
        delicate.conv.bias.zero_()  # type: ignore[union-attr]
        delicate.linear.weight.zero_()
        delicate.linear.bias.zero_()
    shapes = {name: ("F32", tuple(t.shape)) for name, t in delicate.state_dict().items()}
    offsets = _offsets(tmp_path / "weights.safetensors", shapes, dict(delicate.state_dict()))
    io = IOTensor("x", (1, 4, 8, 8), "float32"), IOTensor("y", (1, 4, 8, 8), "float32")
    graph = export_graph(delicate, (io[0],), (io[1],), offsets, weights_prefix="")
    (tmp_path / "graph.onnx").write_bytes(graph)
    other = {name: torch.randn_like(t) for name, t in delicate.state_dict().items()}
    _offsets(tmp_path / "weights.safetensors", shapes, other)
    delicate.load_state_dict(other)
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "graph.onnx"), providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {"x": x})
    (expected,) = run_reference(delicate, {"x": x})
    np.testing.assert_allclose(actual, expected, atol=EXPORT_ATOL)


def _offsets(
    path: Path, shapes: dict[str, tuple[str, tuple[int, ...]]], tensors: dict[str, Tensor]
) -> dict[str, Location]:
    with path.open("wb") as f:
        write_weight_file(f, shapes, ((name, tensors[name].numpy().data) for name in shapes))
    return {name: Location(path.name, ref) for name, ref in read_weight_file(path).tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda refs: {n: r for n, r in refs.items() if n != "conv.bias"}, r"lack the tensor conv\.bias"),
        (lambda refs: {**refs, "conv.bias": _ref("F16", (4,), 8)}, r"conv\.bias is F16 .* needs FLOAT"),
        (lambda refs: {**refs, "conv.bias": _ref("F32", (5,), 20)}, r"\[5\].* needs FLOAT \[4\]"),
    ],
)
def test_weights_that_do_not_fit_the_graph_are_refused(
    change: Callable[[dict[str, Location]], dict[str, Location]], message: str
) -> None:
    delicate = Delicate().eval()
    fitting = {name: _ref("F32", tuple(t.shape), t.numel() * 4) for name, t in delicate.state_dict().items()}
    io = IOTensor("x", (1, 4, 8, 8), "float32"), IOTensor("y", (1, 4, 8, 8), "float32")
    with pytest.raises(CheckpointError, match=message):
        export_graph(delicate, (io[0],), (io[1],), change(fitting), weights_prefix="")


def _ref(dtype: str, shape: tuple[int, ...], length: int) -> Location:
    return Location("weights.safetensors", TensorRef(dtype, shape, 0, length))


def test_operators_are_rewritten_for_the_cpu_and_give_the_same(toy: Path, toy_bundle: Path) -> None:
    bundle = Bundle.open(toy_bundle)
    path = bundle.graph_path("lamp_unet")
    model = onnx.load(path, load_external_data=False)
    before = Counter(node.op_type for node in model.graph.node)
    assert use_cpu_kernels(model) == {op: before[op] for op in ("Attention", "GroupNormalization")}
    after = Counter(node.op_type for node in model.graph.node)
    assert after["Attention"] == after["GroupNormalization"] == 0
    assert after["MultiHeadAttention"] == before["Attention"] > 0
    assert after["LayerNormalization"] - before["LayerNormalization"] == before["GroupNormalization"] > 0
    arrays = random_inputs(bundle.network("lamp_unet").inputs)
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (as_it_stands,) = plain.run(None, arrays)
    engine = OnnxRuntimeEngine(bundle, "lamp_unet", motion="horse_run")
    (expected,) = run_reference(reference_module("lamp_unet", toy), arrays)
    ours = engine.run(arrays)["noise_pred"]
    for other in (as_it_stands, expected):
        assert distance(ours, other).rel_l2 <= EXPORT_UNET_REL_L2


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_groups_whose_mean_exceeds_their_spread_are_normalized_exactly(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((2, 8, 3, 20, 30)) + 10).astype(dtype)
    scale, bias = (rng.standard_normal(8).astype(dtype) for _ in range(2))
    node = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=4, epsilon=1e-6)
    elem = helper.np_dtype_to_tensor_dtype(x.dtype)
    weights = [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(bias, "bias")]
    values = [helper.make_tensor_value_info(name, elem, x.shape) for name in "xy"]
    graph = helper.make_graph([node], "norm", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    assert use_cpu_kernels(model)["GroupNormalization"] == 1
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    groups = x.astype(np.float64).reshape(2, 4, -1)
    mean, var = groups.mean(-1, keepdims=True), groups.var(-1, keepdims=True)
    normalized = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
    wide = (w.astype(np.float64).reshape(1, 8, 1, 1, 1) for w in (scale, bias))
    expected = normalized * next(wide) + next(wide)
    assert y.dtype == dtype
    assert distance(y, expected).rel_l2 <= NORM_REL_EPS * np.finfo(dtype).eps


def test_causal_attention_is_rewritten_as_unidirectional(toy_bundle: Path) -> None:
    model = onnx.load(Bundle.open(toy_bundle).graph_path("text_encoder"), load_external_data=False)
    assert use_cpu_kernels(model)["Attention"] > 0
    rewritten = [node for node in model.graph.node if node.op_type == "MultiHeadAttention"]
    assert all(_attributes(node)["unidirectional"] == 1 for node in rewritten)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


@pytest.mark.parametrize(
    "network",
    ["text_encoder", "vae_encoder", "vae_decoder", pytest.param("lamp_unet", marks=pytest.mark.slow)],
)
def test_fp16_graphs_stay_within_twice_pytorchs_own_error(network: str, toy: Path, tmp_path: Path) -> None:
    build_bundle(tmp_path / "fp16", toy_options(toy, precision="fp16", only=(network,)))
    bundle = Bundle.open(tmp_path / "fp16")
    entry = bundle.network(network)
    assert {t.dtype for t in entry.outputs} == {"float16"}
    motion = "horse_run" if network == "lamp_unet" else None
    arrays = random_inputs(entry.inputs)
    actual = OnnxRuntimeEngine(bundle, network, motion=motion).run(arrays)
    own = run_reference(reference_module(network, toy, torch.float16), arrays)
    wide = {name: a.astype(np.float32) if a.dtype == np.float16 else a for name, a in arrays.items()}
    exact = run_reference(reference_module(network, toy), wide)
    for tensor, half, single in zip(entry.outputs, own, exact, strict=True):
        yardstick = distance(half, single)
        assert yardstick.finite
        assert distance(actual[tensor.name], single).rel_l2 <= FP16_YARDSTICK * yardstick.rel_l2


@pytest.mark.parametrize("eos_token_id", [2, 49407])
def test_a_text_ends_at_its_first_end_token_whatever_the_config_calls_it(eos_token_id: int) -> None:
    ids = [[49406, 5, 49407, 49407], [49406, 49407, 49407, 49407], [49406, 5, 6, 49407]]
    assert _end_of_text(torch.tensor(ids), eos_token_id).tolist() == [2, 1, 3]


def test_an_end_token_need_not_be_the_largest_id() -> None:
    assert _end_of_text(torch.tensor([[1, 9, 7, 7], [7, 8, 9, 7]]), 7).tolist() == [2, 0]


def test_equal_inputs_give_equal_graph_bytes(toy: Path, toy_bundle: Path, tmp_path: Path) -> None:
    build_bundle(tmp_path / "again", toy_options(toy, only=("vae_decoder",)))
    again = (tmp_path / "again" / "vae_decoder.onnx").read_bytes()
    assert again == (toy_bundle / "vae_decoder.onnx").read_bytes()
    assert TOY_SIZE["height"] == Bundle.open(tmp_path / "again").manifest.sizes["height"]
