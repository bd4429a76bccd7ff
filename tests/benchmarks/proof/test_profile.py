# SPDX-License-Identifier: Apache-2.0
"""The profile of a step: traces as torch.profiler writes them, floors of graphs, table and picture."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lamp_trt.benchmarks.proof.commands.outcomes import PartReport
from lamp_trt.benchmarks.proof.profile import kinds
from lamp_trt.benchmarks.proof.profile.checks import KERNELS, OPERATORS, ProfileProof
from lamp_trt.benchmarks.proof.profile.events import operator_launches
from lamp_trt.benchmarks.proof.profile.floor import Ceilings, floors_ms
from lamp_trt.benchmarks.proof.profile.kinds import attention_kind, conv_kind, kernel_kind, operator_kind
from lamp_trt.benchmarks.proof.profile.profile import figures
from lamp_trt.benchmarks.proof.profile.trace import Launch, busy_us, launches, span_us
from lamp_trt.benchmarks.proof.results.command import main as report
from tests.doubles.proof import SUBJECTS, toy_work

CEILINGS = Ceilings(790e12, 4.3e12)

CONV, GATE, TEMPORAL = (320, 320, 3, 3), (1, 320, 3, 3), (320, 320, 3, 1)
X, Q, ROWS = (32, 320, 40, 64), (2, 8, 40960, 40), (2, 40960, 8, 40)


CUDNN, FLASH = "aten::cudnn_convolution", "void flash_fwd_kernel<Flash_fwd_kernel_traits<64>>"
GEMM, SDPA = "sm90_xmma_fprop_implicit_gemm_f16f16", "aten::_scaled_dot_product_"


@pytest.mark.parametrize(
    ("kernel", "operator", "shapes", "kind"),
    [
        (GEMM, CUDNN, [X, CONV], "conv 3x3"),
        (GEMM, CUDNN, [X, GATE], "gate conv"),
        ("cutlass__5x_cudnn::Kernel<cutlass_f16>", CUDNN, [X, TEMPORAL], "temporal conv"),
        ("void cudnn::ops::nchwToNhwcKernel<__half>", CUDNN, [X, CONV], "copies"),
        (FLASH, f"{SDPA}flash_attention", [Q, (2, 8, 2560, 40)], "attention 40960x2560 d40"),
        (FLASH, "aten::_flash_attention_forward", [ROWS, (2, 77, 8, 40)], "attention 40960x77 d40"),
        ("cudnn_sdpa_sm90_fprop", f"{SDPA}cudnn_attention", [Q, Q], "attention 40960x40960 d40"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTN", "aten::addmm", [(320,), (81920, 320)], "linear"),
        ("triton_red_fused_native_group_norm_0", "", [], "norm"),
        ("triton_poi_fused_clone_permute_12", "", [], "copies"),
        ("triton_poi_fused_constant_pad_nd_3", "", [], "copies"),
        ("triton_poi_fused_add_mul_sigmoid_7", "", [], "pointwise"),
        ("triton_tem_fused_convolution_9", "", [], "conv"),
        ("triton_tem_fused_addmm_4", "", [], "linear"),
        ("lamp_latent_step_f16", "", [], "latent step"),
        ("void at::native::vectorized_elementwise_kernel<8>", "aten::silu", [X], "pointwise"),
        ("something_new", "", [], "other"),
    ],
)
def test_kernels_are_of_a_kind(kernel: str, operator: str, shapes: list[Any], kind: str) -> None:
    assert kernel_kind(kernel, operator, shapes) == kind


def test_operators_that_do_not_tell_have_no_kind() -> None:
    assert operator_kind("aten::silu", [X]) is None
    assert operator_kind("aten::convolution", [X]) is None
    assert conv_kind((8, 4, 5, 5)) == "conv 5x5"


def event(cat: str, name: str, ts: float, dur: float, external: int, **arguments: Any) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": cat,
        "name": name,
        "ts": ts,
        "dur": dur,
        "args": {"External id": external, **arguments},
    }


def step_trace() -> dict[str, Any]:
    """A step of four kernels and a copy: 100 us busy of 130; one kernel overlaps another by 10."""
    return {
        "traceEvents": [
            event("cpu_op", "aten::cudnn_convolution", 0, 5, 1, **{"Input Dims": [X, CONV, []]}),
            event("cpu_op", "aten::cudnn_convolution", 6, 5, 2, **{"Input Dims": [X, GATE, []]}),
            event("cuda_runtime", "cudaLaunchKernel", 1, 1, 1),
            event("kernel", "implicit_gemm", 1000, 50, 1),
            event("kernel", "implicit_gemm", 1060, 20, 2),
            event("kernel", "triton_red_fused_native_group_norm_0", 1070, 20, 0),
            event("gpu_memcpy", "Memcpy DtoD", 1100, 10, 0),
            event("kernel", "lamp_latent_step_f16", 1120, 10, 0),
            {"ph": "i", "cat": "marker", "name": "a moment"},
        ]
    }


def test_a_trace_is_read_into_launches_and_gaps() -> None:
    found = launches(step_trace())
    assert [launch.kind for launch in found] == ["conv 3x3", "gate conv", "norm", "copies", "latent step"]
    assert (busy_us(found), span_us(found)) == (100, 130)
    made = figures("a step", KERNELS, found, {"conv 3x3": 0.025, "linear": 0.01}, CEILINGS)
    rows = {row["kind"]: row for row in made["kinds"]}
    assert (made["step_ms"], made["floor_ms"], made["launches"]) == (0.13, pytest.approx(0.035), 5)
    assert rows["conv 3x3"] == {
        "kind": "conv 3x3", "calls": 1, "ms": 0.05, "share": 50 / 130, "floor_ms": 0.025, "of_floor": 0.5,
    }  # fmt: skip
    assert (rows["gaps"]["ms"], rows["gaps"]["floor_ms"]) == (0.03, None)
    assert (rows["linear"]["ms"], rows["linear"]["of_floor"]) == (0, None)
    assert [kernel["kind"] for kernel in made["kernels"]][:2] == ["conv 3x3", "gate conv"]


def test_at_most_forty_kernels_are_listed_those_of_one_name_together() -> None:
    found = [Launch(f"kernel {n % 50}", "other", 10.0 * n, 1.0 + n % 50) for n in range(100)]
    made = figures("a step", KERNELS, found, {}, CEILINGS)
    assert len(made["kernels"]) == 40
    assert made["kernels"][0] == {
        "name": "kernel 49", "kind": "other", "calls": 2, "ms": 0.1, "share": pytest.approx(100 / 1040),
    }  # fmt: skip


def test_the_profiler_of_this_torch_writes_what_is_read() -> None:
    """Its operators; kernels need a GPU."""
    convolution, x = torch.nn.Conv2d(4, 8, 3), torch.randn(1, 4, 8, 8)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.no_grad(), torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        convolution(x)
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/t.json")
        trace = json.loads(Path(folder, "t.json").read_text())
    innermost = [e for e in trace["traceEvents"] if e.get("cat") == "cpu_op" and "convolution" in e["name"]][
        -1
    ]
    trace["traceEvents"].append(event("kernel", "gemm", 0, 1, innermost["args"]["External id"]))
    assert [launch.kind for launch in launches(trace)] == ["conv 3x3"]


def test_floors_are_of_arithmetic_or_of_traffic() -> None:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float16), name)
        for name, shape in (("w", (16, 16, 3, 3)), ("g", (1, 16, 3, 3)), ("s", (16,)), ("b", (16,)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1] * 4),
        helper.make_node("Conv", ["y", "g"], ["z"], name="gate", pads=[1] * 4),
        helper.make_node("GroupNormalization", ["y", "s", "b"], ["n"], name="norm", num_groups=4),
        helper.make_node("Mul", ["n", "z"], ["out"], name="mul"),
    ]
    shape = [1, 16, 32, 32]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT16, shape)]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT16, shape)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name in ("y", "n")] + [
        helper.make_tensor_value_info("z", TensorProto.FLOAT16, [1, 1, 32, 32])
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights, value_info=values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    tensor = 2 * 16 * 1024
    slow = floors_ms(model, Ceilings(1e9, 1e15))
    assert slow["conv 3x3"] == pytest.approx(2 * 1024 * 16 * 16 * 9 / 1e9 * 1e3)
    assert set(slow) == {"conv 3x3", "gate conv", "norm"}
    narrow = floors_ms(model, Ceilings(1e18, 1e9))
    assert narrow["gate conv"] == pytest.approx((tensor + 2 * 1024 + 2 * 16 * 9) / 1e9 * 1e3)
    assert narrow["norm"] == pytest.approx((2 * tensor + 2 * 2 * 16) / 1e9 * 1e3)
    onnx.checker.check_model(model)


def test_every_operator_of_a_module_is_timed_by_events() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.GroupNorm(2, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.nn.functional.silu(self.norm(self.conv(x)))
            q = x.flatten(2).transpose(1, 2)[:, None].contiguous()
            return torch.nn.functional.scaled_dot_product_attention(q, q, q)

    block, clock = Block(), iter(range(10_000))
    with torch.no_grad():
        found = operator_launches(
            lambda: block(torch.ones(1, 4, 8, 8)),
            mark=lambda: next(clock),
            elapsed_us=lambda start, end: float(end - start),
            wait=lambda: None,
        )
    seen = [launch.kind for launch in found]
    for kind in ("conv 3x3", "norm", "pointwise", attention_kind(64, 64, 4)):
        assert kind in seen, found
    assert {launch.us for launch in found} == {1.0}
    assert kinds.OTHER not in seen


@pytest.fixture(scope="module")
def proof_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("proof")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("seen", ["kernels", "nothing", "an error"])
def test_a_unets_profile_is_a_table_and_a_picture(seen: str, proof_folder: Path, tmp_path: Path) -> None:
    """On the double of a device, whose profiler sees a step, sees no kernels, or fails."""
    work, results = toy_work(proof_folder, SUBJECTS["lamp_unet"]), {}

    def trace(call: Any) -> dict[str, Any]:
        call()
        if seen == "an error":
            raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")
        return step_trace() if seen == "kernels" else {"traceEvents": []}

    eager = [Launch("aten::convolution", "conv 3x3", 0.0, 80.0), Launch("aten::add", "pointwise", 80.0, 20.0)]
    proof = ProfileProof(
        work, "sound", results, trace=trace, ceilings=lambda: CEILINGS, operators=lambda call: eager
    )
    told = [check() for _, check in proof.checks()]
    assert told[1].startswith("0.13 ms" if seen == "kernels" else "0.10 ms")
    ((title, profile),) = results.items()
    assert profile["source"] == (KERNELS if seen == "kernels" else OPERATORS)
    found = {row["kind"] for row in profile["kinds"]}
    assert {"conv 3x3", "gate conv", "temporal conv", "linear", "norm"} <= found
    facts = {"gpu": "NVIDIA H200", "commit": "abc"}
    written = PartReport(tmp_path / "profile-proof-h200.json", facts)
    written.started("x", results)
    report(["--folder", str(tmp_path), "--out", str(tmp_path / "out")])
    page, text = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert page.count("<svg") == 1
    assert title in page
    assert f"## Time by kind: {title}" in text
    assert f"## Kernels: {title}" in text
    assert "790 TFLOP/s" in text
