# SPDX-License-Identifier: Apache-2.0
"""Bundles in bfloat16: what they hold, who runs them, and that they compute as PyTorch does in bfloat16."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

import lamp_trt
from lamp_trt.benchmarks.bench.entries.sweeps import run_sweep
from lamp_trt.benchmarks.bench.options import BenchOptions
from lamp_trt.benchmarks.bench.subject import Subject
from lamp_trt.benchmarks.verify.checks.bundle import weights_check
from lamp_trt.benchmarks.verify.checks.limits import YARDSTICK_DB
from lamp_trt.benchmarks.verify.metrics import clip_distance, distance
from lamp_trt.benchmarks.verify.reference.networks import REFERENCE_NETWORKS, module_inputs
from lamp_trt.cli import main
from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.aotinductor import key as aotinductor_key
from lamp_trt.engine.backends.aotinductor.engine import AotInductorEngine
from lamp_trt.engine.backends.aotinductor.key import cpu_name, package_key
from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine
from lamp_trt.engine.backends.onnxruntime.cuda import OnnxRuntimeCudaEngine
from lamp_trt.engine.backends.registry import choose_backend
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.dtypes import PRECISIONS
from lamp_trt.engine.errors import CheckpointError, EngineError
from lamp_trt.engine.families import NETWORKS, VIDEO_NETWORKS
from lamp_trt.engine.graph.digest import graph_digest
from lamp_trt.engine.networks import FLOAT, is_motion_tensor
from lamp_trt.engine.precompute import HOISTS, precompute_networks
from lamp_trt.export.aotinductor import AotInductorOptions, build_packages
from lamp_trt.export.build import build_bundle
from lamp_trt.export.checkpoints.files import find_component
from lamp_trt.export.motions import add_motion
from lamp_trt.export.recipe import BuildOptions, recipe_from_options
from lamp_trt.runtime.algorithm.histogram import match_histograms, uint8_frames
from lamp_trt.runtime.finite import not_finite
from lamp_trt.runtime.host.conditioning import conditions_by_step
from tests.export.test_build import altered_checkpoint
from tests.export.test_onnx import random_inputs
from tests.fixtures.reference_clip import reference_clip, smooth_picture
from tests.fixtures.sdxl import FIRST_FRAME_SIZE
from tests.fixtures.toy import toy_options
from tests.tolerances import BF16_ROUNDING, FP16_YARDSTICK

SMALL = ("text_encoder", "vae_encoder", "vae_decoder")
PROMPT = "a horse runs"
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def small(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """All but the UNet. Tests do not change it."""
    out = tmp_path_factory.mktemp("bf16") / "small"
    build_bundle(out, small_options(toy))
    return Bundle.open(out)


def small_options(toy: Path, **changes: Any) -> BuildOptions:
    return toy_options(toy, **{"precision": "bf16", "motions": None, "only": SMALL, **changes})


# --- what a bundle holds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_in_bf16_take_and_give_float32(network: str) -> None:
    spec = NETWORKS[network]
    sizes = dict.fromkeys(spec.named_axes, 8)
    for specs, tensors in zip((spec.inputs, spec.outputs), spec.resolve(sizes, "bf16"), strict=True):
        wanted = ["float32" if tensor.dtype == FLOAT else tensor.dtype for tensor in specs]
        assert [tensor.dtype for tensor in tensors] == wanted
    assert spec.resolve(sizes, "bf16") == spec.resolve(sizes, "fp32")


def test_weights_are_the_checkpoints_rounded_to_bfloat16(toy: Path, small: Bundle) -> None:
    assert {entry.precision for entry in small.manifest.networks.values()} == {"bf16"}
    for component in ("text_encoder", "vae"):
        (published,) = (toy / "sd" / component).glob("*.safetensors")
        stored = load_file(small.path / "weights" / f"{component}.safetensors")
        refs = read_weight_file(small.path / "weights" / f"{component}.safetensors").tensors
        assert {ref.dtype for ref in refs.values()} == {"BF16"}
        given = {name.removeprefix("text_model."): tensor for name, tensor in load_file(published).items()}
        known = stored.keys() & given.keys()  # what is missing has another name as published
        assert len(known) > 0.9 * len(stored) > 30
        assert all(torch.equal(stored[name], given[name].bfloat16()) for name in known)


@pytest.mark.parametrize("network", SMALL)
def test_graphs_compute_in_bfloat16_between_float32(network: str, small: Bundle) -> None:
    path = small.graph_path(network)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    kinds = onnx.TensorProto
    weights = [tensor for tensor in model.graph.initializer if tensor.external_data]
    assert {tensor.data_type for tensor in weights} == {kinds.BFLOAT16}
    borders = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert borders <= {kinds.FLOAT, kinds.INT64}
    heavy = [n for n in model.graph.node if n.op_type in ("Conv", "MatMul", "Gemm", "Attention")]
    assert {types[node.output[0]] for node in heavy} == {kinds.BFLOAT16}
    given = {value.name for value in model.graph.input if value.type.tensor_type.elem_type == kinds.FLOAT}
    readers = {node.op_type for node in model.graph.node if given.intersection(node.input)}
    assert readers <= {"Cast"}


def test_precisions_have_keys_of_their_own(toy: Path, toy_bundle: Path, small: Bundle) -> None:
    recipes = [recipe_from_options(small_options(toy, precision=precision)) for precision in PRECISIONS]
    for network in SMALL:
        assert len({recipe.graph_key(network) for recipe in recipes}) == len(PRECISIONS)
        single = Bundle.open(toy_bundle)
        assert single.network(network).inputs == small.network(network).inputs
        assert graph_digest(single.graph_bytes(network)) != graph_digest(small.graph_bytes(network))
        keys = {package_key(bundle, network, cpu_name(), {}).digest() for bundle in (single, small)}
        assert len(keys) == 2


@pytest.mark.parametrize(
    ("precision", "value", "message"),
    [
        ("bf16", 3.4e38, r"not finite in bf16: the checkpoint is damaged, or needs --precision fp32\."),
        ("fp16", 1e5, r"not finite in fp16: .* damaged, or needs --precision bf16 or fp32\."),
        ("fp32", float("nan"), r"not finite in fp32: the checkpoint is damaged\."),
    ],
)
def test_values_beyond_a_precisions_range_are_refused(
    precision: str, value: float, message: str, toy: Path, tmp_path: Path
) -> None:
    sd = shutil.copytree(toy / "sd", tmp_path / "sd")
    (weights,) = (sd / "vae").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["decoder.conv_in.bias"][1] = value
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=rf"decoder\.conv_in\.bias .*{message}"):
        build_bundle(tmp_path / "out", small_options(toy, sd=sd, precision=precision, only=("vae_decoder",)))


def test_an_overflow_of_fp16_is_remedied_by_bf16() -> None:
    assert "--precision bf16" in str(not_finite("a network", np.dtype(np.float16)))
    assert "fp16" not in str(not_finite("a network", np.dtype(np.float32)))


def test_verify_compares_its_weights_byte_by_byte(toy: Path, small: Bundle, tmp_path: Path) -> None:
    files = find_component(toy / "sd", "vae")
    assert weights_check(small, "vae_decoder", "", files).problem == ""
    copy = shutil.copytree(small.path, tmp_path / "copy")
    path = copy / "weights" / "vae.safetensors"
    place = read_weight_file(path).tensors["decoder.conv_in.bias"].offset
    data = bytearray(path.read_bytes())
    data[place + 1] ^= 0x40
    path.write_bytes(data)
    problem = weights_check(
        dataclasses.replace(small, path=copy, identities={}), "vae_decoder", "", files
    ).problem
    assert "decoder.conv_in.bias in weights/vae.safetensors is wrong: 1 of 32 values differ, by up" in problem


def test_sdxls_text_encoder_is_borrowed_and_its_vae_stays_fp32(toy: Path, sdxl: Path, tmp_path: Path) -> None:
    only = ("text_encoder", "sdxl_text_encoder", "sdxl_vae_decoder")
    build_bundle(tmp_path / "out", small_options(toy, sdxl=sdxl, only=only, **FIRST_FRAME_SIZE))
    networks = Bundle.open(tmp_path / "out").manifest.networks
    assert networks["sdxl_text_encoder"].component == "text_encoder"
    assert {name: entry.precision for name, entry in networks.items()} == {
        "text_encoder": "bf16",
        "sdxl_text_encoder": "bf16",
        "sdxl_vae_decoder": "fp32",
    }


# --- who runs it ------------------------------------------------------------------------------------------


def test_onnx_runtime_refuses_it_before_anything_is_loaded(
    small: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "graph_path", lambda *_: pytest.fail("something was loaded"))
    refusal = r"precision bf16.* --backend aotinductor.*--backend tensorrt.*or build .*--precision fp32"
    with pytest.raises(EngineError, match=refusal):
        OnnxRuntimeEngine(small, "vae_encoder")
    with pytest.raises(EngineError, match=refusal):
        OnnxRuntimeCudaEngine(small, "vae_encoder", device=0, stream=0)
    for ordinal in (None, 0):
        with pytest.raises(EngineError, match=refusal):
            choose_backend(ordinal, "onnxruntime", small)
    with pytest.raises(EngineError, match=refusal):
        choose_backend(None, "auto", small)


def test_on_the_cpu_auto_takes_packages_for_this_cpu(
    small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = package_key(small, "vae_encoder", cpu_name(), {})
    compiled.store(tmp_path, key, "pt2", {}, lambda file: None)
    assert choose_backend(None, "auto", small, tmp_path) == "aotinductor"
    assert Subject(small, BenchOptions(engine_dir=tmp_path)).backends == ("aotinductor",)
    monkeypatch.setattr(aotinductor_key, "cpu_name", lambda: "another CPU")
    with pytest.raises(EngineError, match="precision bf16"):
        choose_backend(None, "auto", small, tmp_path)


def test_on_a_gpu_auto_takes_engines_before_it_refuses(
    small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(EngineError, match="precision bf16"):
        choose_backend(0, "auto", small, tmp_path)
    key = package_key(small, "text_encoder", "sm_90 in this machine", {})
    key = dataclasses.replace(key, network="lamp_unet")
    compiled.store(tmp_path, key, "pt2", {}, lambda file: None)
    assert choose_backend(0, "auto", small, tmp_path) == "aotinductor"


def test_the_command_builds_it_and_says_what_runs_it(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--precision", "bf16", "--only", "vae_encoder", "--height", "64", "--width", "64"]
    command = ["build", "--out", str(tmp_path / "out"), "--sd", str(toy / "sd"), *arguments]
    assert main(command) == 0
    assert "ONNX Runtime does not run bf16" in capsys.readouterr().err
    assert Bundle.open(tmp_path / "out").network("vae_encoder").precision == "bf16"


@pytest.mark.parametrize("network", SMALL)
def test_tensorrt_rtx_builds_it(network: str, small: Bundle, tmp_path: Path, rtx: Any) -> None:
    from lamp_trt.engine.backends.tensorrt.build import build_engines
    from lamp_trt.engine.backends.tensorrt.options import TensorRtOptions

    (engine,) = build_engines(small, TensorRtOptions(networks=(network,)), tmp_path)
    assert engine.path.stat().st_size > 1_000_000


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real builder, also where TensorRT is installed beside it."""
    module = pytest.importorskip("tensorrt_rtx", reason="pip install 'lamp-trt[rtx]' builds without a GPU")
    from lamp_trt.engine.backends.tensorrt import trt

    monkeypatch.setattr(trt, "tensorrt", lambda: module)
    return module


# --- what it computes -------------------------------------------------------------------------------------


def plain_arrays(bundle: Bundle, network: str) -> Arrays:
    """Of the network where nothing is hoisted; the same sample in both halves, as guidance has it."""
    inputs, _ = NETWORKS[network].resolve(bundle.manifest.sizes, "bf16")
    arrays = random_inputs(inputs, seed=3)
    if "sample" in arrays:
        arrays["sample"][1] = arrays["sample"][0]
    return arrays


def reference(network: str, folder: Path, dtype: torch.dtype, arrays: Arrays) -> list[np.ndarray]:
    """The library's module or the official formulation in `dtype`; float32."""
    entry = REFERENCE_NETWORKS[network]
    module = entry.load(folder, dtype)
    with torch.inference_mode():
        return [output.float().numpy() for output in entry.run(module, module_inputs(module, arrays))]


def assert_as_near_as_pytorch(network: str, folder: Path, arrays: Arrays, outputs: Arrays) -> None:
    """`outputs` are float32, and as near to fp32 as PyTorch's own in bf16, times the yardstick.

    folder: of the checkpoint.
    """
    exact, own = (reference(network, folder, dtype, arrays) for dtype in (torch.float32, torch.bfloat16))
    for name, single, rounded in zip(outputs, exact, own, strict=True):
        actual = outputs[name]
        assert actual.dtype == np.float32
        ours, yardstick = distance(actual, single), distance(rounded, single)
        assert ours.finite
        assert yardstick.finite
        print(f"{network} {name}: {ours.rel_l2:.2e}, PyTorch {yardstick.rel_l2:.2e}")
        assert BF16_ROUNDING <= ours.rel_l2 <= FP16_YARDSTICK * yardstick.rel_l2


@pytest.mark.slow
def test_a_package_is_as_near_to_fp32_as_pytorch(toy: Path, small: Bundle, tmp_path: Path) -> None:
    """The smallest network of the toy, compiled in about 15 s."""
    network, recipe = "vae_encoder", recipe_from_options(small_options(toy, only=("vae_encoder",)))
    build_packages(small, recipe, AotInductorOptions(), tmp_path)
    engine = AotInductorEngine(small, network, num_threads=1, engine_dir=tmp_path)
    arrays = plain_arrays(small, network)
    assert_as_near_as_pytorch(network, toy / "sd", arrays, engine.run(arrays))


# --- whole clips ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """All networks of a video with their packages, compiled in a few minutes."""
    options = toy_options(toy, precision="bf16")
    return with_packages(tmp_path_factory.mktemp("bf16") / "whole", options)


def with_packages(out: Path, options: BuildOptions) -> Bundle:
    build_bundle(out, options)
    bundle = Bundle.open(out)
    build_packages(bundle, recipe_from_options(options), AotInductorOptions())
    return bundle


@pytest.mark.slow
@pytest.mark.parametrize("network", VIDEO_NETWORKS)
def test_every_package_is_as_near_to_fp32_as_pytorch(network: str, toy: Path, whole: Bundle) -> None:
    motion = "horse_run" if network == "lamp_unet" else None
    engine = AotInductorEngine(whole, network, motion=motion, num_threads=1)
    arrays = plain_arrays(whole, network)
    folder = toy / "motions" / "horse_run" if motion else toy / "sd"
    assert_as_near_as_pytorch(network, folder, arrays, engine.run(arrays))


@pytest.mark.slow
def test_clips_are_as_near_to_fp32_as_pytorchs(toy: Path, whole: Bundle) -> None:
    pipe = lamp_trt.load(whole.path, num_threads=1)
    rng = np.random.default_rng(7)
    noise = rng.standard_normal((1, 4, 4, 8, 8)).astype(np.float32)
    posterior_noise = rng.standard_normal((1, 4, 8, 8)).astype(np.float32)
    steps: dict[str, Any] = {"num_inference_steps": 8, "adain_switch_step": 5}
    for motion in ("rain", "horse_run"):
        video = pipe(
            PROMPT,
            motion=motion,
            first_frame=smooth_picture(64, 64),
            noise=noise,
            posterior_noise=posterior_noise,
            **steps,
        )
        given = (toy, motion, PROMPT, video.first_frame, noise, posterior_noise, whole.manifest.scheduler)
        (latents, images), (own_latents, own_images) = (
            reference_clip(*given, dtype=dtype, **steps) for dtype in (torch.float32, torch.bfloat16)
        )
        ours, yardstick = distance(video.latents, latents), distance(own_latents, latents)
        print(f"{motion}, latents: {ours.rel_l2:.2e}, PyTorch {yardstick.rel_l2:.2e}")
        assert BF16_ROUNDING <= ours.rel_l2 <= FP16_YARDSTICK * yardstick.rel_l2
        frames, own_frames = (match_histograms(uint8_frames(decoded)) for decoded in (images, own_images))
        clip, own_clip = clip_distance(video.frames, frames), clip_distance(own_frames, frames)
        print(f"{motion}, frames: {clip.psnr_db:.1f} dB, PyTorch {own_clip.psnr_db:.1f} dB")
        assert clip.psnr_db >= own_clip.psnr_db - YARDSTICK_DB


@pytest.mark.slow
def test_motions_switch_there_and_back_bit_for_bit(whole: Bundle) -> None:
    engine = AotInductorEngine(whole, "lamp_unet", motion="rain", num_threads=1)
    arrays = plain_arrays(whole, "lamp_unet")
    first = engine.run(arrays)["noise_pred"]
    engine.set_motion("horse_run")
    other = engine.run(arrays)["noise_pred"]
    engine.set_motion("rain")
    np.testing.assert_array_equal(engine.run(arrays)["noise_pred"], first)
    assert distance(other, first).rel_l2 > 0.01


@pytest.mark.slow
def test_growth_is_not_measured_on_onnx_runtime(whole: Bundle) -> None:
    growth, missing = run_sweep(Subject(whole, BenchOptions()))
    assert growth == []
    assert "ONNX Runtime, which does not run bf16" in missing[0]


@pytest.mark.slow
def test_motions_are_added_in_bf16_and_whole_ones_are_told_apart(
    whole: Bundle, toy: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(whole.path, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    pack = read_weight_file(out / "motions" / "rain.safetensors").tensors
    assert {ref.dtype for ref in pack.values()} == {"BF16"}
    assert len(pack) > 300
    assert all(map(is_motion_tensor, pack))
    add_motion(out, "again", toy / "motions" / "rain")
    same = [(out / "motions" / f"{name}.safetensors").read_bytes() for name in ("again", "rain")]
    assert same[0] == same[1]

    def change(state: dict[str, torch.Tensor]) -> None:
        state["conv_in.conv2d.weight"] += 1

    report = add_motion(out, "whole", altered_checkpoint(toy / "motions" / "rain", tmp_path / "x", change))
    assert report.full_motions == ["whole"]
    assert len(read_weight_file(out / "motions" / "whole.safetensors").tensors) > len(pack)


@pytest.mark.slow
def test_a_hoisted_unet_is_as_near_to_fp32_as_pytorch(toy: Path, tmp_path: Path) -> None:
    """The tensors between the networks are float32."""
    options = toy_options(toy, precision="bf16", only=("lamp_unet",), hoist=tuple(HOISTS))
    bundle = with_packages(tmp_path / "hoisted", options)
    names = precompute_networks(bundle.manifest, "lamp_unet")
    unet, *beside = (AotInductorEngine(bundle, name, num_threads=1) for name in ("lamp_unet", *names))
    assert {tensor.dtype for engine in (unet, *beside) for tensor in engine.inputs} == {"float32"}
    arrays = plain_arrays(bundle, "lamp_unet")
    conditions = next(conditions_by_step(unet, beside, arrays, arrays["timestep"]))
    outputs = unet.run({"sample": arrays["sample"], **conditions})
    assert_as_near_as_pytorch("lamp_unet", toy / "motions" / "horse_run", arrays, outputs)


@pytest.mark.slow
@pytest.mark.parametrize("hoist", [(), ("text", "time")], ids=["plain", "hoisted"])
def test_sdxls_unet_is_as_near_to_fp32_as_pytorch(hoist: tuple[str, ...], sdxl: Path, tmp_path: Path) -> None:
    network = "sdxl_unet"
    size = {"height": 64, "width": 64, "num_frames": 4, **FIRST_FRAME_SIZE}
    bundle = with_packages(
        tmp_path / "out", BuildOptions(sdxl=sdxl, precision="bf16", only=(network,), hoist=hoist, **size)
    )
    names = (network, *precompute_networks(bundle.manifest, network))
    unet, *beside = (AotInductorEngine(bundle, name, num_threads=1) for name in names)
    arrays = plain_arrays(bundle, network)
    arrays["time_ids"][:] = [96, 160, 0, 0, 96, 160]
    conditions = next(conditions_by_step(unet, beside, arrays, arrays["timestep"]))
    outputs = unet.run({"sample": arrays["sample"], **conditions})
    assert_as_near_as_pytorch(network, sdxl, arrays, outputs)
