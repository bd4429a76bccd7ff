# SPDX-License-Identifier: Apache-2.0
"""Engines built by the real builder of TensorRT-RTX, which needs no GPU for it; what only TensorRT can do is
checked on the options that it would be given."""

import dataclasses
import errno
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest

from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.tensorrt import build as tensorrt_build
from lamp_trt.engine.backends.tensorrt import trt
from lamp_trt.engine.backends.tensorrt.build import Target, build_engines
from lamp_trt.engine.backends.tensorrt.graph import graph_weights, tensorrt_model
from lamp_trt.engine.backends.tensorrt.key import engine_key, find_engine
from lamp_trt.engine.backends.tensorrt.network import add_profile, parse_network
from lamp_trt.engine.backends.tensorrt.options import ShapeRange, TensorRtOptions
from lamp_trt.engine.backends.tensorrt.progress import interruptible, progress_monitor
from lamp_trt.engine.bundle import atomic_files
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.dtypes import BY_STORED
from lamp_trt.engine.errors import BundleError, EngineError, InputError
from lamp_trt.engine.networks import is_motion_tensor
from lamp_trt.engine.precompute import HOISTS
from tests.fixtures.recast_bundle import recast

rtx = pytest.importorskip("tensorrt_rtx", reason="pip install 'lamp-trt[rtx]' builds without a GPU")


@pytest.fixture(autouse=True)
def rtx_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real builder, also where TensorRT is installed beside it."""
    monkeypatch.setattr(trt, "tensorrt", lambda: rtx)


@pytest.fixture(scope="module")
def half(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy bundle in fp16. Tests do not change it."""
    return recast(Bundle.open(toy_bundle), tmp_path_factory.mktemp("half") / "toy")


@pytest.fixture
def copy(half: Bundle, tmp_path: Path) -> Bundle:
    """One that may be changed."""
    shutil.copytree(half.path, tmp_path / "copy")
    return dataclasses.replace(half, path=tmp_path / "copy")


def enterprise(version: str) -> ModuleType:
    """TensorRT's module as far as decisions depend on it."""
    module = ModuleType("tensorrt")
    module.__dict__["__version__"] = version
    return module


def targets(bundle: Bundle, module: ModuleType, **options: Any) -> list[Target]:
    return list(tensorrt_build._targets(bundle, module, TensorRtOptions(**options)))


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


# --- profiles ------------------------------------------------------------------------------------------


def small_network(shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """A builder, its configuration and y = relu(x) with x of `shape`."""
    builder = rtx.Builder(trt.logger(rtx))
    network = builder.create_network(0)
    relu = network.add_activation(network.add_input("x", rtx.float16, shape), rtx.ActivationType.RELU)
    relu.get_output(0).name = "y"
    network.mark_output(relu.get_output(0))
    return builder, builder.create_builder_config(), network


def ranged(least: tuple[int, ...], optimal: tuple[int, ...], greatest: tuple[int, ...]) -> ShapeRange:
    return ShapeRange("network", "x", least, optimal, greatest)


def test_open_axes_get_the_profile_that_was_asked_for() -> None:
    builder, config, network = small_network((-1, 4, 8))
    add_profile(builder, config, network, [ranged((1, 4, 8), (2, 4, 8), (16, 4, 8))])
    assert config.num_optimization_profiles == 1
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    assert plan.nbytes > 0


def test_fixed_axes_need_none() -> None:
    builder, config, network = small_network((2, 4, 8))
    add_profile(builder, config, network, [])
    assert config.num_optimization_profiles == 0
    add_profile(builder, config, network, [ranged((2, 4, 8), (2, 4, 8), (2, 4, 8))])


@pytest.mark.parametrize(
    ("shape", "profile", "message"),
    [
        ((-1, 4, 8), None, "x has open axes, -1x4x8: give its --profile"),
        ((2, 4, 8), ((1, 4, 8), (2, 4, 8), (4, 4, 8)), "whose x is 2x4x8 and nothing else"),
        ((-1, 4, 8), ((1, 4, 4), (2, 4, 8), (4, 4, 8)), "network.x=1x4x4:2x4x8:4x4x8 does not fit"),
        ((-1, 4, 8), ((1, 4), (2, 4), (4, 4)), "does not fit the graph, whose x is -1x4x8"),
    ],
)
def test_profiles_that_do_not_fit_are_refused(
    shape: tuple[int, ...], profile: tuple[Any, Any, Any] | None, message: str
) -> None:
    builder, config, network = small_network(shape)
    with pytest.raises(InputError, match=message):
        add_profile(builder, config, network, [ranged(*profile)] if profile else [])


def test_a_bundle_of_fixed_sizes_takes_no_range(half: Bundle, tmp_path: Path) -> None:
    wider = ShapeRange.parse("vae_decoder.latents=1x4x8x8:1x4x8x8:4x4x8x8")
    with pytest.raises(InputError, match="sizes belong to the bundle"):
        build_engines(half, TensorRtOptions(networks=("vae_decoder",), profiles=(wider,)), tmp_path)
    unknown = ShapeRange.parse("vae_decoder.noise=1x4:1x4:1x4")
    with pytest.raises(InputError, match=r"profile names vae_decoder\.noise"):
        build_engines(half, TensorRtOptions(profiles=(unknown,)), tmp_path)


def test_a_profile_is_read_as_it_is_written() -> None:
    text = "vae_decoder.latents=1x4x40x64:4x4x40x64:16x4x40x64"
    profile = ShapeRange.parse(text)
    assert profile == ShapeRange("vae_decoder", "latents", (1, 4, 40, 64), (4, 4, 40, 64), (16, 4, 40, 64))
    assert str(profile) == text


@pytest.mark.parametrize("text", ["", "a.b", "a=1:1:1", "a.b=1:1", "a.b=1xq:1:1", ".b=1:1:1", "a.=1:1:1"])
def test_a_profile_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"expected NETWORK\.INPUT=LEAST:OPTIMAL:GREATEST"):
        ShapeRange.parse(text)


@pytest.mark.parametrize("text", ["a.b=2:1:3", "a.b=1:3:2", "a.b=0:1:1", "a.b=1x1:1:1"])
def test_a_profile_that_does_not_rise_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="does not rise"):
        ShapeRange.parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimization_level": 6}, r"optimization level is 6; choose 0 \(fast build\) to 5"),
        ({"optimization_level": -1}, "optimization level is -1"),
        ({"workspace_bytes": 0}, "workspace is 0 bytes"),
        ({"hardware_compatibility": "all"}, "'all'; choose one of none, ampere_plus"),
        ({"device": -1}, "device is -1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TensorRtOptions(**options)


# --- which engines, for which TensorRT -------------------------------------------------------------------


def test_one_refittable_unet_serves_all_motions(half: Bundle) -> None:
    found = targets(half, enterprise("10.16.1"), networks=("lamp_unet", "vae_decoder"))
    assert found == [
        Target("lamp_unet", "horse_run", True, False),
        Target("vae_decoder", None, False, False),
    ]


@pytest.mark.parametrize("module", [enterprise("11.3.0"), rtx], ids=["11.3", "rtx"])
def test_without_refit_each_motion_gets_an_engine_and_a_warning_says_so(
    module: ModuleType, half: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lamp_trt"):
        found = targets(half, module, networks=("lamp_unet",))
    assert found == [Target("lamp_unet", motion, False, False) for motion in ("horse_run", "rain")]
    assert "each of the motions horse_run, rain gets an engine" in caplog.text
    with pytest.raises(EngineError, match="motions cannot be exchanged"):
        targets(half, module, networks=("lamp_unet",), refit=True)


def test_frozen_engines_can_be_asked_for(half: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    found = targets(half, enterprise("11.4.0"), networks=("lamp_unet",), refit=False, motions=("rain",))
    assert found == [Target("lamp_unet", "rain", False, False)]
    assert caplog.text == ""


def test_a_motion_with_a_whole_unet_gets_an_engine_of_its_own(half: Bundle) -> None:
    motions = dict(half.manifest.motions)
    motions["rain"] = dataclasses.replace(motions["rain"], kind="full")
    bundle = dataclasses.replace(half, manifest=dataclasses.replace(half.manifest, motions=motions))
    assert targets(bundle, enterprise("10.16.1"), networks=("lamp_unet",)) == [
        Target("lamp_unet", "horse_run", True, False),
        Target("lamp_unet", "rain", False, False),
    ]


def test_a_refittable_unet_is_never_stripped(half: Bundle) -> None:
    found = targets(half, enterprise("10.16.1"), networks=("lamp_unet", "vae_encoder"), weight_stripped=True)
    assert [(target.refittable, target.stripped) for target in found] == [(True, False), (False, True)]


def test_flags_say_what_was_asked_for_and_never_exclude_each_other() -> None:
    flag = rtx.BuilderFlag

    def flags(target: Target, **options: Any) -> list[Any]:
        return tensorrt_build._flags(rtx, target, TensorRtOptions(**options))

    assert flags(Target("vae_decoder", None, False, False)) == []
    assert flags(Target("lamp_unet", "rain", True, False)) == [flag.REFIT_INDIVIDUAL]
    assert flags(Target("vae_decoder", None, False, True)) == [flag.STRIP_PLAN, flag.REFIT_IDENTICAL]
    both = {"weight_streaming": True, "version_compatible": True}
    assert flags(Target("vae_decoder", None, False, False), **both) == [
        flag.WEIGHT_STREAMING,
        flag.VERSION_COMPATIBLE,
    ]


def test_every_option_changes_the_key_and_the_configuration(half: Bundle) -> None:
    parsed, target = parse_network(half, rtx, "vae_encoder", None), Target("vae_encoder", None, False, False)

    def configured(**options: Any) -> Any:
        return tensorrt_build._config(parsed, target, TensorRtOptions(**options))

    def stem(**options: Any) -> str:
        return tensorrt_build._key(half, rtx, "sm_90", target, TensorRtOptions(**options)).stem

    assert configured(optimization_level=1).builder_optimization_level == 1
    pool = rtx.MemoryPoolType.WORKSPACE
    assert configured(workspace_bytes=1 << 28).get_memory_pool_limit(pool) == 1 << 28
    assert configured(detailed=True).profiling_verbosity == rtx.ProfilingVerbosity.DETAILED
    assert configured(weight_streaming=True).get_flag(rtx.BuilderFlag.WEIGHT_STREAMING)
    asked: list[dict[str, Any]] = [
        {},
        {"optimization_level": 1},
        {"workspace_bytes": 1 << 28},
        {"detailed": True},
        {"hardware_compatibility": "same_compute_capability"},
        {"weight_streaming": True},
        {"version_compatible": True},
    ]
    assert len({stem(**options) for options in asked}) == len(asked)


def test_hardware_compatibility_is_passed_on(half: Bundle) -> None:
    """TensorRT-RTX ignores it, so the configuration is one that only takes notes."""
    parsed = parse_network(half, rtx, "text_encoder", None)
    taking_notes = SimpleNamespace(create_builder_config=SimpleNamespace)
    for name in ("ampere_plus", "same_compute_capability"):
        config = tensorrt_build._config(
            dataclasses.replace(parsed, builder=taking_notes),
            Target("text_encoder", None, False, False),
            TensorRtOptions(hardware_compatibility=name),  # type: ignore[arg-type]
        )
        level = getattr(rtx.HardwareCompatibilityLevel, name.upper())
        assert config.hardware_compatibility_level == level


# --- keys ----------------------------------------------------------------------------------------------


def test_a_refittable_engine_is_the_same_for_every_motion(half: Bundle) -> None:
    module = enterprise("10.16.1")
    refittable, frozen = (
        [
            engine_key(half, "lamp_unet", module, "sm_90", motion=motion, refittable=refit)
            for motion in ("horse_run", "rain")
        ]
        for refit in (True, False)
    )
    assert refittable[0] == refittable[1]
    assert refittable[0].motion == ""
    assert frozen[0] != frozen[1]
    assert frozen[1].motion == half.manifest.files["motions/rain.safetensors"].sha256
    assert frozen[0].weights == refittable[0].weights


@pytest.mark.parametrize(
    ("built_for", "built_by", "refusal"),
    [
        ("sm_90", "tensorrt 10.16.1", ""),
        ("sm_80+", "tensorrt 10.16.1", ""),
        ("sm_90", "tensorrt 10.x", ""),
        ("sm_80+", "tensorrt 10.x", ""),
        ("sm_89", "tensorrt 10.16.1", "was built for sm_89, this device is sm_90"),
        ("sm_90", "tensorrt 10.14.1", "was built by tensorrt 10.14.1, this is tensorrt 10.16.1"),
        ("sm_90", "tensorrt 11.x", "was built by tensorrt 11.x, this is tensorrt 10.16.1"),
        ("any RTX", "tensorrt 10.16.1", "was built for any RTX, this device is sm_90"),
    ],
)
def test_portable_engines_are_found_where_they_run(
    built_for: str, built_by: str, refusal: str, half: Bundle, tmp_path: Path
) -> None:
    module = enterprise("10.16.1")
    key = engine_key(half, "vae_decoder", module, built_for)
    key = dataclasses.replace(key, compiler=built_by, flags={"detailed": True})
    compiled.store(tmp_path, key, "plan", {}, lambda file: None)
    if not refusal:
        assert find_engine(half, "vae_decoder", module, "sm_90", None, tmp_path).key == key
        return
    with pytest.raises(EngineError) as caught:
        find_engine(half, "vae_decoder", module, "sm_90", None, tmp_path)
    command = f"Build it: lamp-trt build --backend tensorrt --out {half.path} --engine-dir {tmp_path}"
    engine = f"the tensorrt engine for vae_decoder in {tmp_path}"
    assert str(caught.value) == f"{engine} {refusal}. {command}"


def test_a_refittable_engine_is_preferred_and_either_can_be_asked_for(half: Bundle, tmp_path: Path) -> None:
    module = enterprise("10.16.1")
    keys = {
        refit: engine_key(half, "lamp_unet", module, "sm_90", motion="rain", refittable=refit)
        for refit in (True, False)
    }
    compiled.store(tmp_path, keys[False], "plan", {}, lambda file: None)
    find = lambda **kind: find_engine(half, "lamp_unet", module, "sm_90", "rain", tmp_path, **kind).key  # noqa: E731
    assert find() == keys[False]
    compiled.store(tmp_path, keys[True], "plan", {}, lambda file: None)
    assert find() == keys[True]
    assert find(refittable=False) == keys[False]


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


# --- which TensorRT ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["10.14.1.48", "10.16.1", "11.0.0.114", "11.4.0", "11.9"])
def test_versions_that_we_know_are_taken(version: str) -> None:
    trt.check_version(enterprise(version))
    assert trt.compiler(enterprise(version)) == f"tensorrt {version}"


@pytest.mark.parametrize("version", ["8.6.1", "10.13.3", "12.0.0"])
def test_other_versions_are_refused_with_the_range(version: str) -> None:
    with pytest.raises(EngineError, match=rf"tensorrt is {version}.*'tensorrt>=10.14,<12'"):
        trt.check_version(enterprise(version))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (enterprise("10.16.1"), None),
        (enterprise("11.2.1"), None),
        (enterprise("11.3.0.99"), "can lose a bias"),
        (enterprise("11.4.0"), None),
        (rtx, "marks no single weights"),
    ],
    ids=["10.16", "11.2", "11.3", "11.4", "rtx"],
)
def test_refit_is_refused_where_it_is_wrong(module: ModuleType, reason: str | None) -> None:
    given = trt.why_no_refit(module)
    assert trt.can_refit(module) == (reason is None)
    assert given is None if reason is None else reason in str(given)


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"tensorrt": enterprise("11.4.0"), "tensorrt_rtx": rtx}, "tensorrt 11.4.0"),
        ({"tensorrt_rtx": rtx}, f"tensorrt_rtx {rtx.__version__}"),
        ({}, "TensorRT is not installed: pip install"),
        ({"tensorrt": OSError("libnvinfer.so.10: no such file")}, "does not load: libnvinfer"),
        ({"tensorrt": ModuleNotFoundError("no tensorrt_libs", name="tensorrt_libs")}, "incomplete"),
        ({"tensorrt": enterprise("nonsense")}, "has no valid __version__"),
    ],
    ids=["both", "rtx", "none", "no library", "incomplete", "no version"],
)
def test_tensorrt_is_taken_before_rtx_and_a_broken_one_is_told(
    installed: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # of the fixture that fixes the module

    def import_module(name: str) -> ModuleType:
        found = installed.get(name, ModuleNotFoundError(name, name=name))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr("lamp_trt.engine.backends.tensorrt.trt.importlib.import_module", import_module)
    trt.tensorrt.cache_clear()
    try:
        answer = trt.compiler(trt.tensorrt())
    except EngineError as error:
        answer = str(error)
    finally:
        trt.tensorrt.cache_clear()
    assert expected in answer


def test_tensorrts_messages_go_to_our_log_and_errors_into_ours(caplog: pytest.LogCaptureFixture) -> None:
    logger, severity = trt.logger(rtx), rtx.ILogger.Severity
    logger.errors.clear()
    with caplog.at_level(logging.DEBUG, "lamp_trt"):
        for level, text in (
            (severity.ERROR, "no kernel"),
            (severity.ERROR, "no kernel"),
            (severity.INTERNAL_ERROR, "worse"),
            (severity.WARNING, "noise"),
            (severity.INFO, "detail"),
        ):
            logger.log(level, text)
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "WARNING", "WARNING", "INFO", "DEBUG"]
    assert trt.taken_errors(rtx) == "no kernel; worse"
    assert trt.taken_errors(rtx) == "TensorRT gave no reason"
