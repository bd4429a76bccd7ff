# SPDX-License-Identifier: Apache-2.0
"""OpenVINO against ONNX Runtime and PyTorch, its memory, its interrupts and its errors."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.benchmarks.verify.options import Checkpoints, VerifyOptions
from lamp_trt.benchmarks.verify.reference.arithmetic import EXACT, Arithmetic
from lamp_trt.benchmarks.verify.reference.networks import reference_outputs
from lamp_trt.benchmarks.verify.run import verify_bundle
from lamp_trt.cli import main
from lamp_trt.doctor import backends as doctor_backends
from lamp_trt.engine.backends import cpu
from lamp_trt.engine.backends.backend import HostOptions
from lamp_trt.engine.backends.openvino import BACKEND, probe
from lamp_trt.engine.backends.openvino import engine as engine_module
from lamp_trt.engine.backends.openvino import graph as graph_module
from lamp_trt.engine.backends.openvino.graph import network_graph
from lamp_trt.engine.backends.probe import Gpu
from lamp_trt.engine.backends.registry import host_engine
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.families import NETWORKS, VIDEO_NETWORKS, component_of
from lamp_trt.engine.graph.model import bundle_model, external_tensors
from lamp_trt.export.build import build_bundle
from lamp_trt.export.motions import add_motion
from lamp_trt.runtime.first_frame import save_png
from lamp_trt.runtime.load import Place
from lamp_trt.runtime.requests import Placement
from tests.export.test_build import altered_checkpoint
from tests.export.test_onnx import random_inputs
from tests.fixtures.openvino import needs_bf16, needs_openvino
from tests.fixtures.sdxl import FIRST_FRAME_SIZE
from tests.fixtures.toy import toy_options
from tests.tolerances import (
    BF16_ROUNDING,
    FP16_YARDSTICK,
    HOST_BACKENDS_REL_L2,
)

pytestmark = needs_openvino

Arrays = dict[str, np.ndarray]


def engine(bundle: Path | Bundle, network: str, **options: Any) -> Any:
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    motion = "horse_run" if network == "lamp_unet" else None
    return host_engine("openvino", opened, network, **{"motion": motion, "num_threads": 1, **options})


@pytest.fixture(scope="module")
def unet(toy_bundle: Path) -> Iterator[Any]:
    """The LAMP UNet in fp32, showing horse_run. Tests leave it so."""
    with engine(toy_bundle, "lamp_unet") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def vae_decoder(toy_bundle: Path) -> Iterator[Any]:
    with engine(toy_bundle, "vae_decoder") as loaded:
        yield loaded


# --- what it computes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_each_network_equals_onnx_runtimes(network: str, safe_sdxl_bundle: Path, unet: Any) -> None:
    bundle = Bundle.open(safe_sdxl_bundle)
    ours = unet if network == "lamp_unet" else engine(bundle, network)
    arrays = random_inputs(ours.inputs)
    motion = "horse_run" if network == "lamp_unet" else None
    with host_engine("onnxruntime", bundle, network, motion=motion, num_threads=1) as reference:
        expected = reference.run(arrays)
    for name, value in ours.run(arrays).items():
        assert (value.shape, value.dtype) == (expected[name].shape, expected[name].dtype)
        assert distance(value, expected[name]).rel_l2 <= HOST_BACKENDS_REL_L2


@pytest.fixture(scope="module")
def bf16_bundle(safe_toy: Path, sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `safe_sdxl_bundle`, in bf16."""
    out = tmp_path_factory.mktemp("bf16") / "toy"
    build_bundle(out, toy_options(safe_toy, sdxl=sdxl, precision="bf16", **FIRST_FRAME_SIZE))
    return out


@pytest.mark.parametrize(
    ("stored", "precision"),
    [pytest.param("fp32", "bf16", marks=needs_bf16), ("bf16", "fp32"), ("bf16", None)],
)
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_with_bf16_each_network_is_at_most_twice_as_far_off_as_pytorch(
    network: str,
    stored: str,
    precision: Any,
    safe_toy: Path,
    sdxl: Path,
    safe_sdxl_bundle: Path,
    bf16_bundle: Path,
) -> None:
    bundle = Bundle.open(bf16_bundle if stored == "bf16" else safe_sdxl_bundle)
    origin = component_of(network).origin
    motion = safe_toy / "motions" / "horse_run"
    folder = {"sd": safe_toy / "sd", "sdxl": sdxl, "motions": motion}[origin.field]
    with engine(bundle, network, cpu_precision=precision) as ours:
        arrays = random_inputs(ours.inputs)
        outputs = ours.run(arrays)
    exact = reference_outputs(network, folder, EXACT, arrays)
    own = reference_outputs(network, folder, Arithmetic(torch.bfloat16), arrays)
    for name, expected in exact.items():
        off = distance(outputs[name], expected).rel_l2
        if component_of(network).precision == "fp32":
            assert off <= HOST_BACKENDS_REL_L2  # SDXL's VAE, which PyTorch computes in fp32 too
        else:
            in_fp32 = precision == "fp32" or cpu.why_no_bf16()
            assert in_fp32 or off >= BF16_ROUNDING
            assert off <= FP16_YARDSTICK * distance(own[name], expected).rel_l2


def test_an_input_that_no_compiled_model_takes_is_an_error(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def renamed(*args: Any, **options: Any) -> Any:
        graph = network_graph(*args, **options)
        graph.model.inputs[0].set_names({"other"})
        return graph

    monkeypatch.setattr(engine_module, "network_graph", renamed)
    with pytest.raises(EngineError, match=r"vae_decoder of .* takes no latents"):
        engine(toy_bundle, "vae_decoder")


@needs_bf16
@pytest.mark.parametrize("network", ["lamp_unet", "sdxl_unet"])
def test_timesteps_are_not_rounded_to_bf16(network: str, sdxl_bundle: Path) -> None:
    """501 and 502 are the same in bfloat16."""
    with engine(sdxl_bundle, network, cpu_precision="bf16") as ours:
        arrays = random_inputs(ours.inputs)
        outputs = [
            ours.run({**arrays, "timestep": np.array([step], np.float32)})["noise_pred"]
            for step in (501, 502)
        ]
    assert np.any(outputs[0] != outputs[1])


def test_arrays_may_be_read_only_or_strided_and_are_left_alone(vae_decoder: Any) -> None:
    (given,) = random_inputs(vae_decoder.inputs).values()
    expected = vae_decoder.run({"latents": given.copy()})["image"]
    read_only = given.copy()
    read_only.setflags(write=False)
    strided = np.repeat(given, 2, axis=-1)[..., ::2]
    for array in (read_only, strided):
        np.testing.assert_array_equal(vae_decoder.run({"latents": array})["image"], expected)
        np.testing.assert_array_equal(array, given)
    again = vae_decoder.run({"latents": given})["image"]
    vae_decoder.run({"latents": np.zeros_like(given)})
    np.testing.assert_array_equal(again, expected)  # outputs are new arrays


def test_nan_is_handed_on(unet: Any) -> None:
    arrays = random_inputs(unet.inputs)
    arrays["sample"][0, 0, 0, 0, 0] = np.nan
    assert np.isnan(unet.run(arrays)["noise_pred"]).any()


def test_wrong_arrays_are_refused_by_name(vae_decoder: Any) -> None:
    with pytest.raises(EngineError, match=r"input latents is float64 \[1, 4, 8, 8\], .* takes float32"):
        vae_decoder.run({"latents": np.zeros((1, 4, 8, 8))})


# --- motions, memory, threads -----------------------------------------------------------------------------


def test_a_switch_and_back_gives_the_same_bits_without_compiling(unet: Any) -> None:
    arrays, request = random_inputs(unet.inputs), unet._request
    first = unet.run(arrays)["noise_pred"]
    assert unet.set_motion("rain") is False
    other = unet.run(arrays)["noise_pred"]
    unet.set_motion("horse_run")
    assert np.abs(other - first).max() > 1e-3
    np.testing.assert_array_equal(unet.run(arrays)["noise_pred"], first)
    assert unet._request is request


def test_a_motion_with_other_shared_tensors_takes_a_new_model(
    toy: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    def shift(state: dict[str, torch.Tensor]) -> None:
        state["conv_in.conv2d.bias"] += 0.5

    shutil.copytree(toy_bundle, tmp_path / "bundle")
    other = altered_checkpoint(toy / "motions" / "rain", tmp_path / "other", shift)
    assert add_motion(tmp_path / "bundle", "other", other).full_motions == ["other"]
    bundle = Bundle.open(tmp_path / "bundle")
    with (
        engine(bundle, "lamp_unet", motion="other") as loaded,
        host_engine("onnxruntime", bundle, "lamp_unet", motion="other", num_threads=1) as reference,
    ):
        arrays = random_inputs(loaded.inputs)
        for motion in ("other", "rain", "other"):
            loaded.set_motion(motion)
            reference.set_motion(motion)
            expected = reference.run(arrays)["noise_pred"]
            assert distance(loaded.run(arrays)["noise_pred"], expected).rel_l2 <= HOST_BACKENDS_REL_L2


def test_a_switch_that_fails_leaves_the_motion_or_says_so(
    toy_bundle: Path, unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = random_inputs(unet.inputs)
    before = unet.run(arrays)["noise_pred"]

    def fail(*_: Any, **__: Any) -> None:
        raise EngineError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "read_weight_file", fail)
        with pytest.raises(EngineError, match="no memory"):
            unet.set_motion("rain")
    np.testing.assert_array_equal(unet.run(arrays)["noise_pred"], before)
    with engine(toy_bundle, "lamp_unet") as loaded, monkeypatch.context() as patch:
        patch.setattr(engine_module, "shared_file", lambda bundle, motion: motion)  # as of a full motion
        patch.setattr(engine_module, "network_graph", fail)
        with pytest.raises(EngineError, match="no memory"):
            loaded.set_motion("rain")
        with pytest.raises(EngineError, match="no motion since a switch failed; set one"):
            loaded.run(arrays)


def test_constants_lie_in_the_mapped_files_and_close_gives_them_back(
    toy_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(toy_bundle, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    graph = network_graph(bundle, "vae_decoder", None, widen=False)
    (file,) = graph.mapped
    tensors = read_weight_file(bundle.path_of("weights/vae.safetensors")).raw(file).values()
    places = {data.ctypes.data for data in tensors}
    names = {tensor.name for tensor in external_tensors(bundle_model(bundle, "vae_decoder", None))}
    constants = [op for op in graph.model.get_ops() if op.get_friendly_name() in names]
    assert len(constants) == len(names) > 50
    assert {constant.data.ctypes.data for constant in constants} <= places
    del graph, constants, file, tensors
    path = str(bundle.path_of("weights/vae.safetensors"))
    loaded = engine(bundle, "vae_decoder")
    (mapped,) = re.findall(f"{path}.*?Rss: +(\\d+) kB", Path("/proc/self/smaps").read_text(), re.DOTALL)
    assert mapped == "0", "compiling has read the weights; they need not stay in memory"
    loaded.run(random_inputs(loaded.inputs))
    assert path in Path("/proc/self/maps").read_text()
    loaded.close()
    assert path not in Path("/proc/self/maps").read_text()
    loaded.close()
    with pytest.raises(EngineError, match="vae_decoder was closed"):
        loaded.run({})


@pytest.mark.parametrize("threads", [1, 2])
def test_num_threads_is_the_compiled_models(threads: int, toy_bundle: Path) -> None:
    with engine(toy_bundle, "text_encoder", num_threads=threads) as loaded:
        compiled = loaded._request.get_compiled_model()
        assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
        assert compiled.get_property("ENABLE_CPU_PINNING") is False


def test_the_profiler_gives_seconds_by_operator(toy_bundle: Path, vae_decoder: Any) -> None:
    assert BACKEND.operator_seconds is not None
    seconds = BACKEND.operator_seconds(
        Bundle.open(toy_bundle), "vae_decoder", random_inputs(vae_decoder.inputs), HostOptions(num_threads=1)
    )
    assert seconds["Convolution"] > 0
    assert list(seconds.values()) == sorted(seconds.values(), reverse=True)


# --- interrupts -------------------------------------------------------------------------------------------


class Request:
    """The request that it is given."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


def test_an_interrupt_within_a_run_cancels_it_and_leaves_the_engine_usable(
    unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = random_inputs(unet.inputs)
    before = unet.run(arrays)["noise_pred"]

    class Interrupted(Request):
        """During whose run a signal arrives."""

        cancelled = False

        def wait_for(self, milliseconds: int) -> bool:
            assert 0 < milliseconds <= 1000
            os.kill(os.getpid(), signal.SIGINT)
            return bool(self._request.wait_for(0))

        def cancel(self) -> None:
            self.cancelled = True
            self._request.cancel()

    with monkeypatch.context() as patch:
        interrupted = Interrupted(unet._request)
        patch.setattr(unet, "_request", interrupted)
        patch.setattr(unet, "_last_run_s", 1.0)
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
        try:
            with pytest.raises(KeyboardInterrupt):
                unet.run(arrays)
        finally:
            signal.signal(signal.SIGINT, handler)
        assert interrupted.cancelled
    np.testing.assert_array_equal(unet.run(arrays)["noise_pred"], before)


def test_an_interrupt_while_a_run_starts_ends_it(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = random_inputs(unet.inputs)
    before = unet.run(arrays)["noise_pred"]

    class Started(Request):
        """For which a signal arrives when it has started."""

        def start_async(self) -> None:
            self._request.start_async()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(unet, "_request", Started(unet._request))
        patch.setattr(unet, "_last_run_s", 1.0)
        with pytest.raises(KeyboardInterrupt):
            unet.run(arrays)
    np.testing.assert_array_equal(unet.run(arrays)["noise_pred"], before)


def test_a_short_run_stays_in_its_thread(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = random_inputs(unet.inputs)
    before = unet.run(arrays)["noise_pred"]

    class InPlace:
        def __init__(self, request: Any) -> None:
            self.infer, self.get_tensor = request.infer, request.get_tensor

    with monkeypatch.context() as patch:
        patch.setattr(unet, "_request", InPlace(unet._request))
        patch.setattr(unet, "_last_run_s", 0.0)
        np.testing.assert_array_equal(unet.run(arrays)["noise_pred"], before)
        assert unet._last_run_s > 0


# --- errors -----------------------------------------------------------------------------------------------


def test_a_node_that_it_cannot_take_is_named(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(toy_bundle)

    def load(change: Any) -> None:
        model = onnx.load(bundle.graph_path("vae_decoder"), load_external_data=False)
        change(next(node for node in model.graph.node if node.op_type == "Sigmoid"))
        monkeypatch.setattr(graph_module, "bundle_model", lambda *_: model)
        engine(bundle, "vae_decoder")

    def rename(node: Any) -> None:
        node.name, node.op_type = "the_node", "Frobnicate"

    def another_domain(node: Any) -> None:
        node.name, node.op_type, node.domain = "the_node", "Foo", "org.example"

    def bad_axis(node: Any) -> None:
        node.name, node.op_type = "the_node", "Softmax"
        node.attribute.append(onnx.helper.make_attribute("axis", 9))

    start = "OpenVINO cannot take vae_decoder of .*toy_bundle: "
    with pytest.raises(
        EngineError, match=start + r"its node the_node is Frobnicate, an operator that this rel"
    ):
        load(rename)
    with pytest.raises(EngineError, match=start + r"its node the_node is org.example.Foo, an operator that"):
        load(another_domain)
    with pytest.raises(EngineError, match=start + ".*the_node"):
        load(bad_axis)


def test_a_library_that_is_missing_or_too_old_is_told_with_the_remedy(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openvino", None)
        with pytest.raises(
            EngineError, match=r"OpenVINO does not import .*pip install 'lamp-trt\[openvino\]'"
        ):
            engine(toy_bundle, "text_encoder")
    old = SimpleNamespace(__version__="2024.6.0-17404-4c0f47d2335-releases/2024/6")
    monkeypatch.setitem(sys.modules, "openvino", old)
    with pytest.raises(
        EngineError, match=r"OpenVINO 2024.6.0 is too old, 2026.4 or newer is needed: pip inst"
    ):
        engine(toy_bundle, "text_encoder")


@pytest.mark.usefixtures("auto_as_shipped")
def test_without_the_systems_facts_of_the_cpu_it_is_refused_where_it_would_hang(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").touch()
    monkeypatch.setattr(probe, "CPU_FACTS", ("/nowhere/cpuinfo", str(tmp_path / "cpuinfo")))
    assert Place.of(Bundle.open(toy_bundle), Placement()).backend == "openvino"
    monkeypatch.setattr(probe, "CPU_FACTS", ("/nowhere/cpuinfo", "/nowhere/cpu"))
    assert Place.of(Bundle.open(toy_bundle), Placement()).backend == "onnxruntime"
    with pytest.raises(EngineError, match=r"neither /nowhere/cpuinfo nor .*: mount /proc\."):
        engine(toy_bundle, "text_encoder")
    rows = {finding.name: finding for finding in doctor_backends.backend_findings(Gpu(problem="none"))}
    assert rows["OpenVINO, CPU"].status == "problem"


# --- the whole --------------------------------------------------------------------------------------------


@needs_bf16
def test_a_video_in_bf16_by_the_command_line_says_so_in_its_sidecar(toy_bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "first.png"
    save_png(np.full((64, 64, 3), 90, np.uint8), picture)
    command = ["generate", "a horse", f"--bundle={toy_bundle}", f"--first-frame={picture}", "--steps=1"]
    options = ["--backend=openvino", "--num-threads=1", "--cpu-precision=bf16"]
    assert main([*command, *options, f"--out={tmp_path / 'clip.gif'}"]) == 0
    assert json.loads((tmp_path / "clip.gif.json").read_text())["cpu_precision"] == "bf16"


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
def test_verify_passes(precision: Any, toy: Path, toy_bundle: Path) -> None:
    checkpoints = Checkpoints(sd=toy / "sd", motions={"horse_run": toy / "motions" / "horse_run"})
    steps = 1 if precision == "bf16" else 0  # golden data hold the loop in fp32
    options = VerifyOptions(
        checkpoints, num_inference_steps=steps, num_threads=1, backend="openvino", cpu_precision=precision
    )
    report = verify_bundle(toy_bundle, options)
    assert report.failed == []
    judged = {name for name in VIDEO_NETWORKS for check in report.checks if check.name.startswith(f"{name} ")}
    assert judged == set(VIDEO_NETWORKS)


@pytest.mark.parametrize("before", ["", "import openvino_telemetry; "])
def test_importing_it_through_lamp_trt_leaves_its_telemetry_out(before: str) -> None:
    code = (
        f"{before}import sys; known = set(sys.modules)\n"
        "from lamp_trt.engine.backends.openvino.library import core\n"
        "core(); import openvino\n"
        "new = set(sys.modules) - known\n"
        "print([m for m in new if m.partition('.')[0] == 'openvino_telemetry'])\n"
        "print(openvino.tools.ovc.telemetry_utils.tm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "openvino.tools.ovc.telemetry_stub"]
    assert done.stderr == ""
