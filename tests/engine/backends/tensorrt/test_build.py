# SPDX-License-Identifier: Apache-2.0
"""Engines built by the real builder of TensorRT-RTX, which needs no GPU for it."""

import dataclasses
import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from lamp_trt.engine.backends.tensorrt import build as tensorrt_build
from lamp_trt.engine.backends.tensorrt import trt
from lamp_trt.engine.backends.tensorrt.build import build_engines
from lamp_trt.engine.backends.tensorrt.graph import graph_weights, tensorrt_model
from lamp_trt.engine.backends.tensorrt.key import find_engine
from lamp_trt.engine.backends.tensorrt.network import parse_network
from lamp_trt.engine.backends.tensorrt.options import TensorRtOptions
from lamp_trt.engine.backends.tensorrt.progress import interruptible, progress_monitor
from lamp_trt.engine.bundle import atomic_files
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.dtypes import BY_STORED
from lamp_trt.engine.errors import BundleError, EngineError
from lamp_trt.engine.networks import is_motion_tensor
from lamp_trt.engine.precompute import HOISTS

rtx = pytest.importorskip("tensorrt_rtx", reason="pip install 'lamp-trt[rtx]' builds without a GPU")
pytestmark = pytest.mark.usefixtures("rtx_builds")


def edit_graph(bundle: Bundle, network: str, edit: Callable[[onnx.ModelProto], None]) -> None:
    path = bundle.graph_path(network)
    model = onnx.load(path, load_external_data=False)
    edit(model)
    path.write_bytes(model.SerializeToString())
    bundle._graphs.pop(network, None)  # an open bundle keeps the graphs that it read


# --- what the builder makes ----------------------------------------------------------------------------


def test_every_toy_network_is_built_and_found_again(half: Bundle, tmp_path: Path) -> None:
    options = TensorRtOptions(motions=("rain",), optimization_level=0)
    engines = build_engines(half, options, tmp_path)
    assert [engine.key.network for engine in engines] == list(half.manifest.networks)
    for engine in engines:
        key, motion = engine.key, "rain" if engine.key.network == "lamp_unet" else None
        assert engine.path.name == f"{key.stem}.plan"
        assert (key.backend, key.device) == ("tensorrt_rtx", "any RTX")
        assert engine.extra["bundle"] == half.digest
        assert find_engine(half, key.network, rtx, "sm_89", motion, tmp_path) == engine
        weights = graph_weights(half, key.network, motion)
        assert engine.path.stat().st_size > sum(
            tensor.count * BY_STORED[tensor.dtype].size for tensor in weights.tensors.values()
        )
    unet = next(engine.key for engine in engines if engine.key.network == "lamp_unet")
    assert unet.profile == {
        "sample": "2x4x4x8x8",
        "timestep": "1",
        "encoder_hidden_states": "2x77x32",
    }
    with pytest.raises(EngineError, match=r"the tensorrt_rtx engine .* has another motion baked in\. Build"):
        find_engine(half, "lamp_unet", rtx, "sm_89", "horse_run", tmp_path)
    assert not list(tmp_path.glob("*.lamp-tmp"))


def test_what_is_there_is_not_built_again(
    half: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TensorRtOptions(networks=("vae_decoder",))
    (first,) = build_engines(half, options, tmp_path)
    monkeypatch.setattr(tensorrt_build, "_build", lambda *_: pytest.fail("built again"))
    (second,) = build_engines(half, options, tmp_path)
    assert second == first


def test_engines_go_into_the_bundle_unless_told_otherwise(copy: Bundle) -> None:
    (engine,) = build_engines(copy, TensorRtOptions(networks=("text_encoder",)))
    assert engine.path.parent == copy.path / "engines"


@pytest.mark.slow
@pytest.mark.parametrize("hoist", [(), tuple(HOISTS)], ids=["plain", "hoisted"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_an_exported_bundle_builds(precision: str, hoist: tuple[str, ...], toy: Path, tmp_path: Path) -> None:
    """With the motion's tensors in its precision, all of which can be marked."""
    from lamp_trt.export.build import build_bundle
    from tests.fixtures.toy import toy_options

    build_bundle(tmp_path / precision, toy_options(toy, precision=precision, hoist=hoist))
    bundle = Bundle.open(tmp_path / precision)
    engines = build_engines(bundle, TensorRtOptions(motions=("horse_run",)))
    assert [engine.key.network for engine in engines] == list(bundle.manifest.networks)
    parsed = parse_network(bundle, rtx, "lamp_unet", "horse_run")
    pack = read_weight_file(bundle.motion_path("horse_run")).tensors
    assert parsed.mark_motion() == len(pack) > 300
    stored = {"fp16": "F16", "bf16": "BF16"}[precision]
    assert {parsed.weights.tensors[name].dtype for name in pack} == {stored}


def test_exactly_the_motion_tensors_can_be_marked(half: Bundle) -> None:
    parsed = parse_network(half, rtx, "lamp_unet", "rain")
    names = set(graph_weights(half, "lamp_unet", "rain").tensors)
    pack = set(read_weight_file(half.motion_path("rain")).tensors)
    assert parsed.mark_motion() == len(pack) > 300
    marked = {name for name in names if parsed.network.are_weights_marked_refittable(name)}
    assert marked == pack == {name for name in names if is_motion_tensor(name)}


def test_a_tensor_that_tensorrt_does_not_know_cannot_be_marked(half: Bundle) -> None:
    parsed = parse_network(half, rtx, "text_encoder", None)
    unknown = dataclasses.replace(parsed, motion_tensors=("nothing.weight",))
    with pytest.raises(EngineError, match=r"does not know 1 of .* first \['nothing.weight'\]"):
        unknown.mark_motion()
    with pytest.raises(EngineError, match="does not know 0 of text_encoder's 0 motion tensors"):
        parsed.mark_motion()


def test_layers_are_told_in_detail_when_asked(half: Bundle, tmp_path: Path) -> None:
    plain, detailed = (
        build_engines(half, TensorRtOptions(networks=("vae_encoder",), detailed=detailed), tmp_path)[0]
        for detailed in (False, True)
    )
    assert plain.path != detailed.path
    assert find_engine(half, "vae_encoder", rtx, "sm_89", None, tmp_path) == detailed


# --- refusals ------------------------------------------------------------------------------------------


def test_an_operator_that_tensorrt_does_not_have_is_named(copy: Bundle, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Conv")
        node.op_type, node.name = "DeformConvolution", "the_node"

    edit_graph(copy, "vae_decoder", edit)
    with pytest.raises(EngineError, match=r"does not take the graph of vae_decoder.*DeformConvolution"):
        build_engines(copy, TensorRtOptions(networks=("vae_decoder",)), tmp_path)
    assert list(tmp_path.glob("*.plan")) == []


def test_a_graph_of_another_size_than_the_manifest_says_is_refused(copy: Bundle, tmp_path: Path) -> None:
    entry = copy.manifest.networks["vae_decoder"]
    latents = dataclasses.replace(entry.inputs[0], shape=(1, 4, 16, 16))
    networks = {"vae_decoder": dataclasses.replace(entry, inputs=(latents,))}
    wrong = dataclasses.replace(copy, manifest=dataclasses.replace(copy.manifest, networks=networks))
    with pytest.raises(EngineError, match=r"the inputs of vae_decoder are .*8, 8.*16, 16"):
        build_engines(wrong, TensorRtOptions(networks=("vae_decoder",)), tmp_path)


def test_an_output_of_another_type_is_refused(copy: Bundle, tmp_path: Path) -> None:
    entry = copy.manifest.networks["vae_decoder"]
    image = dataclasses.replace(entry.outputs[0], dtype="float32")
    networks = {"vae_decoder": dataclasses.replace(entry, outputs=(image,))}
    wrong = dataclasses.replace(copy, manifest=dataclasses.replace(copy.manifest, networks=networks))
    with pytest.raises(EngineError, match=r"the outputs of vae_decoder are .*float16.*float32"):
        build_engines(wrong, TensorRtOptions(networks=("vae_decoder",)), tmp_path)


def test_weights_that_do_not_fit_the_graph_are_named(copy: Bundle, tmp_path: Path) -> None:
    def shorten(model: onnx.ModelProto) -> None:
        initializer = next(i for i in model.graph.initializer if i.name == "decoder.conv_in.weight")
        next(entry for entry in initializer.external_data if entry.key == "length").value = "2"

    edit_graph(copy, "vae_decoder", shorten)
    with pytest.raises(EngineError, match=r"does not take decoder\.conv_in\.weight of vae_decoder"):
        build_engines(copy, TensorRtOptions(networks=("vae_decoder",)), tmp_path)


def test_weights_beyond_the_end_of_their_file_are_refused(copy: Bundle, tmp_path: Path) -> None:
    def move(model: onnx.ModelProto) -> None:
        initializer = next(i for i in model.graph.initializer if i.name == "decoder.conv_in.weight")
        next(entry for entry in initializer.external_data if entry.key == "offset").value = str(1 << 40)

    edit_graph(copy, "vae_decoder", move)
    with pytest.raises(BundleError, match=r"decoder\.conv_in\.weight lies beyond the end of weights/vae"):
        build_engines(copy, TensorRtOptions(networks=("vae_decoder",)), tmp_path)


def test_unknown_networks_and_motions_are_refused_with_the_known_ones(half: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no network 'unet'; known: .*vae_decoder"):
        build_engines(half, TensorRtOptions(networks=("unet",)), tmp_path)
    with pytest.raises(BundleError, match=r"no motion 'wind'; known: horse_run, rain"):
        build_engines(half, TensorRtOptions(networks=("lamp_unet",), motions=("wind",)), tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"hardware_compatibility": "ampere_plus"}, {"version_compatible": True}, {"weight_stripped": True}],
)
def test_what_rtx_cannot_do_is_refused_before_anything_is_built(
    options: dict[str, Any], half: Bundle, tmp_path: Path
) -> None:
    name = next(iter(options)).replace("_", " ")
    with pytest.raises(EngineError, match=f"TensorRT-RTX cannot build ahead of time with {name}"):
        build_engines(half, TensorRtOptions(**options), tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- graphs --------------------------------------------------------------------------------------------


def test_only_tensorrts_copy_of_the_graph_allows_it_to_take_attention_apart(half: Bundle) -> None:
    def decomposable(model: onnx.ModelProto) -> list[int]:
        attention = [node for node in model.graph.node if node.op_type == "Attention"]
        return [sum(a.name == "TRT_decomposable" and a.i == 1 for a in node.attribute) for node in attention]

    ours = decomposable(tensorrt_model(half, "lamp_unet", "rain"))
    stored = decomposable(onnx.load(half.graph_path("lamp_unet"), load_external_data=False))
    assert ours == [1] * 48
    assert stored == [0] * 48


# --- interruption --------------------------------------------------------------------------------------


def test_ctrl_c_ends_a_build_and_leaves_nothing_half_built(
    half: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitors = []

    def monitor_that_is_interrupted(module: ModuleType, label: str) -> Any:
        class Interrupted(type(progress_monitor(module, label))):  # type: ignore[misc]
            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                super().phase_start(phase_name, parent_phase, num_steps)
                if parent_phase is None:
                    signal.raise_signal(signal.SIGINT)
                    pressed.wait(10)

            def cancel(self) -> None:
                super().cancel()
                pressed.set()

        pressed = threading.Event()
        monitors.append(Interrupted())
        return monitors[0]

    monkeypatch.setattr(tensorrt_build, "progress_monitor", monitor_that_is_interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engines(half, TensorRtOptions(networks=("vae_decoder",)), tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert monitors[0].cancelled
    assert list(tmp_path.iterdir()) == []
    trt.logger(rtx).errors.clear()


def test_a_full_disk_ends_a_build_with_its_own_error(
    half: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic_files, "write", write)
    with pytest.raises(EngineError, match=rf"cannot write a compiled engine to {tmp_path}: no space is left"):
        build_engines(half, TensorRtOptions(networks=("text_encoder",)), tmp_path)
    assert list(tmp_path.iterdir()) == []
    trt.logger(rtx).errors.clear()


def test_work_in_a_thread_gives_its_result_or_its_error() -> None:
    assert interruptible(lambda: 3, lambda: None) == 3
    with pytest.raises(EngineError, match="what went wrong"):
        interruptible(lambda: (_ for _ in ()).throw(EngineError("what went wrong")), lambda: None)


def test_the_bars_follow_the_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []

    class Bar:
        def __init__(self, label: str, total: int, position: int, **_: Any) -> None:
            self.label, self.total, self.position, self.n, self.open = label, total, position, 0, True
            shown.append(self)

        def update(self, steps: int) -> None:
            self.n += steps

        def close(self) -> None:
            self.open = False

    monkeypatch.setattr("lamp_trt.engine.backends.tensorrt.progress.progress", Bar)
    monitor = progress_monitor(rtx, "vae_decoder")
    monitor.phase_start("Building", None, 6)
    monitor.phase_start("Tactics", "Building", 100)
    assert monitor.step_complete("Tactics", 49)
    assert monitor.step_complete("Tactics", 99)
    monitor.phase_finish("Tactics")
    assert monitor.step_complete("Building", 0)
    assert [(bar.label, bar.total, bar.position, bar.n, bar.open) for bar in shown] == [
        ("vae_decoder: Building", 6, 0, 1, True),
        ("Tactics", 100, 1, 100, False),
    ]
    monitor.cancel()
    assert not monitor.step_complete("Building", 1)


def test_the_thread_that_compiles_is_on_the_gpu_that_was_asked_for(
    half: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[object, ...]] = []

    def set_device(name: str, ordinal: int) -> None:
        calls.append((name, ordinal, threading.get_ident()))

    monkeypatch.setattr(trt, "is_rtx", lambda module: False)
    monkeypatch.setattr(tensorrt_build, "cuda", set_device)
    monkeypatch.setattr(tensorrt_build, "architecture", lambda ordinal: "sm_90")
    monkeypatch.setattr(tensorrt_build, "_compile", lambda *_: set_device("compile", 3))
    options = TensorRtOptions(networks=("vae_encoder",), device=3, timing_cache=False)
    build_engines(half, options, tmp_path)
    *_, (_, _, compiling) = calls
    assert calls[-2:] == [("cudaSetDevice", 3, compiling), ("compile", 3, compiling)]
    assert compiling != threading.get_ident()


# --- timing cache, which TensorRT-RTX does not keep --------------------------------------------------------


class CacheConfig:
    """The part of IBuilderConfig that has to do with timing caches."""

    def __init__(self, refused: bytes = b"\0") -> None:
        self.refused, self.attached = refused, b""

    def create_timing_cache(self, data: bytes) -> bytes:
        return bytes(data)

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache != self.refused:
            self.attached = cache
        return cache != self.refused

    def get_timing_cache(self) -> Any:
        class Cache:
            serialize = staticmethod(lambda: self.attached + b"more")

        return Cache


def test_a_timing_cache_grows_from_build_to_build(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    for expected in (b"more", b"moremore"):
        config = CacheConfig()
        tensorrt_build._attach_timing_cache(rtx, config, path)
        tensorrt_build._keep_timing_cache(config, path)
        assert path.read_bytes() == expected


def test_a_timing_cache_of_another_gpu_is_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "timing.cache"
    path.write_bytes(b"foreign")
    config = CacheConfig(refused=b"foreign")
    tensorrt_build._attach_timing_cache(rtx, config, path)
    assert config.attached == b""
    assert "it is replaced" in caplog.text
