# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt verify` of what a device computes, on a double of one; with and without checkpoints."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lamp_trt.benchmarks.verify.composed_engine import original_inputs
from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.benchmarks.verify.network_inputs import bundle_ids, seeded_inputs
from lamp_trt.benchmarks.verify.options import Checkpoints, VerifyOptions
from lamp_trt.benchmarks.verify.reference.arithmetic import Arithmetic, to_tf32, yardstick
from lamp_trt.benchmarks.verify.reference.networks import REFERENCE_NETWORKS
from lamp_trt.benchmarks.verify.reference.onnx import Fp32OnnxEngine
from lamp_trt.benchmarks.verify.report import Report, report_text
from lamp_trt.benchmarks.verify.run import verify_bundle
from lamp_trt.cli import main
from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.families import VIDEO_NETWORKS
from lamp_trt.export.build import build_bundle
from lamp_trt.runtime import load
from tests.doubles.host_device import HostDevice, HostDeviceEngine
from tests.fixtures.toy import toy_options
from tests.tolerances import WIDENED_GRAPH_REL_L2

MOTIONS = ("horse_run", "rain")
WHERE = "tensorrt on cuda:0"

Array = NDArray[Any]
Faults = dict[str, Callable[[Array], Array]]


class Forgetful(OnnxRuntimeEngine):
    """After a switch it goes on showing what it showed first."""

    def set_motion(self, motion: str) -> bool:
        return self._motion is None and super().set_motion(motion)


class Sticky(OnnxRuntimeEngine):
    """Every switch leaves a trace."""

    trace = 0.0

    def set_motion(self, motion: str) -> bool:
        self.trace += 1e-9
        return super().set_motion(motion)

    def run(self, arrays: Any) -> dict[str, Array]:
        return {name: values + np.float32(self.trace) for name, values in super().run(arrays).items()}


class Gpu:
    """What the double computes with. faults: by network, what happens to its outputs."""

    def __init__(self) -> None:
        self.device = HostDevice()
        self.engine: type[OnnxRuntimeEngine] = OnnxRuntimeEngine
        self.faults: Faults = {}
        self.loaded: list[HostDeviceEngine] = []

    def new_device(self, ordinal: int) -> HostDevice:
        self.device = HostDevice()
        return self.device

    def device_engine(
        self, backend: str, bundle: Bundle, network: str, *, motion: str | None, **_: Any
    ) -> HostDeviceEngine:
        engine = self.engine(bundle, network, motion=motion, num_threads=1)
        fault = self.faults.get(network)
        if fault:
            run = engine.run
            engine.run = lambda arrays: {n: fault(v) for n, v in run(arrays).items()}  # type: ignore[method-assign]
        self.loaded.append(HostDeviceEngine(engine, self.device, motion=motion))
        return self.loaded[-1]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setattr(load, "CudaDevice", gpu.new_device)
    monkeypatch.setattr(load, "device_engine", gpu.device_engine)
    return gpu


def verified(bundle: Path, toy: Path | None, *motions: str, steps: int = 0) -> Report:
    given = Checkpoints()
    if toy:
        given = Checkpoints(toy / "sd", {name: toy / "motions" / name for name in motions})
    options = VerifyOptions(
        given, num_inference_steps=steps, num_threads=1, device="cuda", backend="tensorrt"
    )
    return verify_bundle(bundle, options)


def failures(report: Report) -> dict[str, str]:
    return {check.title: check.problem for check in report.failed}


def test_networks_on_a_gpu_are_shown_beside_onnx_runtime(gpu: Gpu, toy: Path, toy_bundle: Path) -> None:
    report = verified(toy_bundle, toy, *MOTIONS)
    assert report.failed == []
    rows = [check for check in report.checks if check.group == "networks"]
    here, there = (
        {(c.name.split()[0], c.motion) for c in rows if place in c.name and "again" not in c.name}
        for place in (WHERE, "onnxruntime on the CPU")
    )
    networks = {(name, "") for name in VIDEO_NETWORKS if name != "lamp_unet"}
    assert here == there == networks | {("lamp_unet", motion) for motion in MOTIONS}
    assert (report.subject["device"], report.subject["backend"]) == ("cuda:0", "tensorrt")
    assert WHERE in report_text(report)
    assert all(engine.closed for engine in gpu.loaded)


def test_the_yardstick_of_fp32_on_a_gpu_is_tf32(gpu: Gpu, toy: Path, toy_bundle: Path) -> None:
    report = verified(toy_bundle, toy, "rain")
    networks = {c.name.split()[0]: c for c in report.checks if c.group == "networks"}
    for check in networks.values():
        assert 0 < check.own["rel_l2"] < 1e-2
        assert check.limits == {"rel_l2": 2 * check.own["rel_l2"]}
    assert networks["lamp_unet"].own["rel_l2"] > 1e-5


def test_a_fault_of_an_engine_is_told_from_one_of_the_graph(gpu: Gpu, toy: Path, toy_bundle: Path) -> None:
    gpu.faults["lamp_unet"] = lambda noise_pred: noise_pred * np.float32(1.1)
    report = verified(toy_bundle, toy, "rain")
    ((title, problem),) = failures(report).items()
    assert title == f"lamp_unet noise_pred ({WHERE}), rain"
    assert "ONNX Runtime computes lamp_unet.onnx correctly, tensorrt on cuda:0 does not" in problem


@pytest.mark.slow
def test_a_fault_of_the_bundle_shows_on_both(gpu: Gpu, toy: Path, toy_bundle: Path) -> None:
    given = Checkpoints(motions={"horse_run": toy / "motions" / "rain"})
    options = VerifyOptions(given, num_inference_steps=0, num_threads=1, device="cuda", backend="tensorrt")
    problems = failures(verify_bundle(toy_bundle, options))
    for place in ("onnxruntime on the CPU", WHERE):
        assert "follows from weights" in problems[f"lamp_unet noise_pred ({place}), horse_run"]


@pytest.mark.slow
def test_a_motion_that_is_not_shown_is_noticed(gpu: Gpu, toy: Path, toy_bundle: Path) -> None:
    gpu.engine = Forgetful
    report = verified(toy_bundle, toy, *MOTIONS)
    assert list(failures(report)) == [f"lamp_unet noise_pred ({WHERE}), rain"]


@pytest.mark.slow
def test_traces_of_other_motions_are_noticed(gpu: Gpu, toy: Path, toy_bundle: Path) -> None:
    gpu.engine = Sticky
    report = verified(toy_bundle, toy, *MOTIONS)
    ((title, problem),) = failures(report).items()
    assert title == f"lamp_unet ({WHERE}) shown again, horse_run"
    assert problem.startswith("it changed after the other motions were shown")


@pytest.mark.slow
def test_an_engine_that_fails_is_a_failed_check(gpu: Gpu, toy: Path, toy_bundle: Path) -> None:
    def poison(values: Array) -> Array:
        return np.full_like(values, np.nan)

    gpu.faults["vae_decoder"] = poison
    problems = failures(verified(toy_bundle, toy, "rain"))
    assert problems[f"vae_decoder image ({WHERE})"].startswith("values are not finite")


def test_videos_on_a_gpu_are_compared_with_pytorch(gpu: Gpu, toy: Path, toy_bundle: Path) -> None:
    report = verified(toy_bundle, toy, "rain", steps=2)
    assert report.failed == []
    groups = [check.group for check in report.checks if check.motion == "rain"]
    assert groups.count("steps") == 5
    assert groups.count("clip") == 1
    assert [row.step for row in report.steps["rain"]] == [0, 1]
    assert all(row.own_forced is not None for row in report.steps["rain"])


@pytest.fixture(scope="module")
def half(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("half") / "toy"
    build_bundle(out, toy_options(toy, precision="fp16"))
    return out


@pytest.mark.slow
def test_without_checkpoints_an_engine_is_held_to_its_graph(gpu: Gpu, half: Path) -> None:
    report = verified(half, None)
    assert report.failed == []
    networks = [check for check in report.checks if check.group == "networks"]
    assert {c.name.split()[0] for c in networks} == set(VIDEO_NETWORKS)
    assert {c.motion for c in networks} == {"", *MOTIONS}
    assert all("against its graph in fp32" in c.name for c in networks if "again" not in c.name)
    assert "against PyTorch (give their checkpoints)" in " ".join(report.not_verified)
    gpu.faults["vae_encoder"] = lambda values: values + np.float16(0.05)
    assert set(failures(verified(half, None))) == {
        f"vae_encoder {name} ({WHERE} against its graph in fp32)" for name in ("latent_mean", "latent_logvar")
    }


def test_without_checkpoints_tf32_cannot_be_judged(gpu: Gpu, toy_bundle: Path) -> None:
    with pytest.raises(InputError, match="nothing to compare the bundle with: give --motion or --sd"):
        verified(toy_bundle, None)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["text_encoder", "vae_decoder", "lamp_unet"])
def test_a_graph_in_fp32_computes_what_pytorch_does_with_the_same_weights(
    network: str, half: Path, toy: Path
) -> None:
    bundle = Bundle.open(half)
    motion = "rain" if network == "lamp_unet" else None
    ids = partial(bundle_ids, bundle, network, ("", "a horse runs"))
    inputs = seeded_inputs(original_inputs(bundle, network), bundle.manifest.sizes, 0, ids)
    (ours,) = Fp32OnnxEngine(bundle, network, motion=motion, num_threads=1).run(inputs).values()
    entry = REFERENCE_NETWORKS[network]
    module = entry.load(toy / "motions" / "rain" if motion else toy / "sd", torch.float16).float()
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    tensors |= {name: tensor.float() for name, tensor in tensors.items() if tensor.is_floating_point()}
    with torch.inference_mode():
        (expected,) = entry.run(module, tensors)
    assert ours.dtype == np.float32
    assert distance(ours, expected.numpy()).rel_l2 <= WIDENED_GRAPH_REL_L2


def test_tf32_keeps_ten_bits_of_the_mantissa() -> None:
    x = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 2**-12, -1 - 2**-11, 0.0, torch.inf])
    expected = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-10, 1.0, -1 - 2**-10, 0.0, torch.inf])
    assert torch.equal(to_tf32(x), expected)
    large = torch.tensor([3e38, -7e-39])
    assert ((to_tf32(large) / large - 1).abs() < 2**-9).all()


def test_products_round_their_operands_only_while_tf32_is_active() -> None:
    torch.manual_seed(0)
    linear, conv = torch.nn.Linear(64, 64), torch.nn.Conv2d(8, 8, 3)
    x, image = torch.randn(4, 64), torch.randn(1, 8, 9, 9)
    with torch.inference_mode():
        exact = linear(x), conv(image), x @ x.T
        with Arithmetic(tf32=True).active():
            rounded = linear(x), conv(image), x @ x.T
        again = linear(x), conv(image), x @ x.T
    by_hand = torch.nn.functional.linear(to_tf32(x), to_tf32(linear.weight), linear.bias)
    assert torch.equal(rounded[0], by_hand)
    for before, while_active, after in zip(exact, rounded, again, strict=True):
        assert torch.equal(before, after)
        assert 1e-5 < distance(while_active.detach().numpy(), before.detach().numpy()).rel_l2 < 1e-3


def test_only_fp32_on_a_cpu_has_no_yardstick_but_absolute_limits() -> None:
    assert yardstick("fp32", on_gpu=False) is None
    assert yardstick("fp32", on_gpu=True) == Arithmetic(torch.float32, tf32=True)
    assert yardstick("fp16", on_gpu=False) == Arithmetic(torch.float16)


def test_a_backend_without_engines_is_an_error_not_a_failed_check(
    toy_bundle: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(toy_bundle), "--sd", str(toy / "sd"), "--backend", "tensorrt"]) == 2
    assert "backend is 'tensorrt'; on the CPU choose 'auto', openvino, onnxruntime" in capsys.readouterr().err
