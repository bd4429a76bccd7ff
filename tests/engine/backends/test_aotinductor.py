# SPDX-License-Identifier: Apache-2.0
"""AOTInductor packages: one block of the LAMP UNet compiled for this CPU, and what a GPU's engine calls."""

import dataclasses
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch

import lamp_trt
from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.aotinductor import engine as aotinductor_engine
from lamp_trt.engine.backends.aotinductor import key as aotinductor_key
from lamp_trt.engine.backends.aotinductor.engine import AotInductorCudaEngine, AotInductorEngine
from lamp_trt.engine.backends.aotinductor.key import cpu_name, cuda_name, package_key
from lamp_trt.engine.backends.backend import BuildRequest
from lamp_trt.engine.backends.registry import choose_backend
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.errors import BundleError, EngineError, InputError
from lamp_trt.engine.families import VIDEO_NETWORKS
from lamp_trt.engine.graph.digest import graph_digest
from lamp_trt.engine.networks import is_motion_tensor
from lamp_trt.export import aotinductor
from lamp_trt.export.aotinductor import AotInductorOptions, build_package, build_packages
from lamp_trt.export.recipe import Recipe, recipe_from_options
from lamp_trt.runtime.algorithm.histogram import match_histograms, uint8_frames
from tests.doubles.torch_cuda import CAPABILITY, CudaTorch, Stream
from tests.fixtures import aotinductor_block as block
from tests.fixtures.reference_clip import reference_clip, smooth_picture
from tests.fixtures.toy import toy_options
from tests.system_tools import require_cxx_compiler
from tests.tolerances import CLIP_LEVELS, GOLDEN_GIF_EQUAL_SHARE, PACKAGE_REL_L2, PIPELINE_REL_L2

STREAM = 0x5EED


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The block's bundle with its package, compiled once (about 25 s) for this CPU. The same package stands
    in for one of a GPU, which only the double of torch loads."""
    require_cxx_compiler("AOTInductor packages")
    made = block.write_bundle(tmp_path_factory.mktemp("aotinductor") / "bundle")
    options = AotInductorOptions()
    key = package_key(made, "lamp_unet", cpu_name(), options.flags)
    engine = build_package(made, "lamp_unet", block.network(), key, options, made.engine_folder)
    copy_package(engine.path, made.engine_folder, dataclasses.replace(key, device=cuda_name(CAPABILITY)))
    return made


def copy_package(package: Path, folder: Path, key: compiled.CompiledKey) -> None:
    def write(file: BinaryIO) -> None:
        file.write(package.read_bytes())

    compiled.store(folder, key, "pt2", {}, write)


@pytest.fixture
def engine(bundle: Bundle) -> AotInductorEngine:
    return AotInductorEngine(bundle, "lamp_unet", motion="a", num_threads=1)


def run(engine: AotInductorEngine) -> np.ndarray:
    return engine.run(block.arrays())["noise_pred"]


# --- a package on the CPU --------------------------------------------------------------------------------


def test_a_package_equals_its_block_in_eager_pytorch(engine: AotInductorEngine) -> None:
    output = run(engine)
    assert distance(output, block.expected("a")).rel_l2 <= PACKAGE_REL_L2
    assert output.flags.c_contiguous


def test_switching_a_motion_there_and_back_is_bit_for_bit(engine: AotInductorEngine) -> None:
    first = run(engine)
    engine.set_motion("b")
    other = run(engine)
    engine.set_motion("a")
    np.testing.assert_array_equal(run(engine), first)
    assert distance(other, block.expected("b")).rel_l2 <= PACKAGE_REL_L2
    assert distance(other, first).rel_l2 > 0.1


def test_a_closed_engine_says_so(bundle: Bundle) -> None:
    with AotInductorEngine(bundle, "lamp_unet", motion="a", num_threads=1) as engine:
        assert engine.set_motion("b") is False
    engine.close()  # again
    for use in (lambda: run(engine), lambda: engine.set_motion("a")):
        with pytest.raises(EngineError, match="lamp_unet was closed"):
            use()


def test_gate_biases_alone_switch_too(engine: AotInductorEngine) -> None:
    first = run(engine)
    engine.set_motion("gates")
    assert distance(run(engine), block.expected("gates")).rel_l2 <= PACKAGE_REL_L2
    assert distance(run(engine), first).rel_l2 > 1e-3


def test_a_motion_that_shares_nothing_leaves_nothing_behind(engine: AotInductorEngine) -> None:
    first = run(engine)
    engine.set_motion("full")
    assert distance(run(engine), block.expected("full")).rel_l2 <= PACKAGE_REL_L2
    engine.set_motion("a")
    np.testing.assert_array_equal(run(engine), first)


def test_every_weight_is_an_exchangeable_constant(engine: AotInductorEngine) -> None:
    names = {name.removeprefix("model.") for name in engine._model.get_constant_fqns()}
    assert names == set(block.random_state(0))
    small = [name for name, tensor in block.random_state(0).items() if tensor.numel() <= 8]
    assert sum(map(is_motion_tensor, small)) == 3  # the gate biases of three convolutions
    assert sum(map(is_motion_tensor, names)) == 3 * 4 + 1 + 5  # those, attn1's to_q, attn_temp


def test_weights_stay_in_the_bundles_mapped_files(
    bundle: Bundle, engine: AotInductorEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached: dict[str, torch.Tensor] = {}
    engine.set_motion("full")
    monkeypatch.setattr(engine._model, "load_constants", lambda values, **_: attached.update(values))
    engine.set_motion("b")
    assert len(attached) == len(block.random_state(0))
    mappings = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    for name, tensor in attached.items():
        stored = name.removeprefix("model.")
        file = "motions/b.safetensors" if is_motion_tensor(stored) else "weights/unet.safetensors"
        places = [fields[0].split("-") for fields in mappings if fields[5:] == [str(bundle.path / file)]]
        assert any(int(begin, 16) <= tensor.data_ptr() < int(end, 16) for begin, end in places), name
    attached.clear()
    engine.set_motion("a")
    assert {*attached} == {f"model.{name}" for name in block.random_state(0) if is_motion_tensor(name)}


def test_threads_are_torchs_own_again_after_a_run(engine: AotInductorEngine) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    model = engine._model

    def watched(*inputs: torch.Tensor) -> Any:
        seen.append(torch.get_num_threads())
        return model(*inputs)

    engine._model = watched
    run(engine)
    assert seen == [1]
    assert torch.get_num_threads() == before


def test_inputs_of_another_shape_are_refused(engine: AotInductorEngine) -> None:
    short = np.zeros((2, 6, 32), np.float32)
    with pytest.raises(EngineError, match=r"is float32 \[2, 6, 32\].* takes float32 \[2, 7, 32\]"):
        engine.run({**block.arrays(), "encoder_hidden_states": short})


def test_a_switch_that_fails_leaves_no_motion_until_one_is_set(
    engine: AotInductorEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(engine)
    with pytest.raises(BundleError, match="no motion 'unicorn'; known: a, b, full, gates"):
        engine.set_motion("unicorn")
    np.testing.assert_array_equal(run(engine), first)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(engine._model, "load_constants", fail)
        with pytest.raises(EngineError, match="AOTInductor failed in lamp_unet: out of luck"):
            engine.set_motion("b")
    with pytest.raises(EngineError, match="no motion because a switch failed"):
        run(engine)
    engine.set_motion("a")
    np.testing.assert_array_equal(run(engine), first)


# --- which package is loaded ------------------------------------------------------------------------------


def test_a_package_of_another_torch_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aotinductor_key, "version", lambda package: "3.1.0")
    with pytest.raises(
        EngineError, match=r"was built by torch 2\.\S+, this is torch 3\.1\.0.*lamp-trt build .*--backend aot"
    ):
        AotInductorEngine(bundle, "lamp_unet")


def test_a_package_of_another_cpu_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aotinductor_engine, "cpu_name", lambda: "riscv64 baseline (features 0)")
    with pytest.raises(EngineError, match=r"was built for .*, this device is riscv64 baseline"):
        AotInductorEngine(bundle, "lamp_unet")


def test_a_damaged_package_is_not_loaded(bundle: Bundle, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle.engine_folder, tmp_path / "engines")
    for package in folder.glob("*.pt2"):
        data = bytearray(package.read_bytes())
        data[len(data) // 2] ^= 1
        package.write_bytes(data)
    with pytest.raises(EngineError, match=rf"damaged or exchanged.*--engine-dir {folder}"):
        AotInductorEngine(bundle, "lamp_unet", engine_dir=folder)


def test_a_bundle_without_packages_says_how_to_build_them(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no aotinductor engine for lamp_unet.*lamp-trt build"):
        AotInductorEngine(bundle, "lamp_unet", engine_dir=tmp_path)


def test_without_torch_the_package_to_install_is_named(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(aotinductor_key, "version", missing)
    with pytest.raises(EngineError, match=r"torch, which is not installed: pip install 'lamp-trt\[aotind"):
        AotInductorEngine(bundle, "lamp_unet")


def test_a_package_for_the_cpu_does_not_choose_the_backend_of_a_gpu(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (package,) = [p for p in compiled.known(bundle.engine_folder) if p.key.device == cpu_name()]
    copy_package(package.path, tmp_path, package.key)
    with pytest.raises(EngineError, match="nothing runs this bundle on a GPU"):
        choose_backend(0, "auto", bundle, tmp_path)
    assert choose_backend(0, "auto", bundle) == "aotinductor"
    assert choose_backend(None, "auto", bundle) == "onnxruntime"


def test_a_graphs_digest_is_that_of_its_network_alone(bundle: Bundle, tmp_path: Path) -> None:
    import onnx

    def digest(change: Callable[[onnx.ModelProto], None]) -> str:
        model = onnx.load(bundle.graph_path("lamp_unet"))
        weight = model.graph.initializer.add(name="weight", dims=[2], data_type=onnx.TensorProto.FLOAT)
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="motions/a.safetensors")
        change(model)
        onnx.save(model, tmp_path / "x.onnx")
        return graph_digest((tmp_path / "x.onnx").read_bytes())

    def move(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].external_data[0].value = "motions/b.safetensors"
        model.metadata_props.add(key="lamp_trt_key", value="another")

    def enlarge(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[0] = 3

    same = digest(lambda model: None)
    assert digest(move) == same
    assert digest(enlarge) != same


def test_a_hypervisors_features_are_no_part_of_a_cpus_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(*features: str) -> str:
        monkeypatch.setattr(aotinductor_key, "cpu_features", lambda: frozenset(features))
        return cpu_name()

    plain = named("avx2", "avx512f", "fma")
    assert (
        named("avx2", "avx512f", "fma", "hypervisor", "md_clear", "arch_capabilities", "tsc_known_freq")
        == plain
    )
    assert cuda_name((9, 0)) == f"sm_90 in {plain}"
    for instructions in ("amx_tile", "avx512_bf16", "something_new"):
        assert named("avx2", "avx512f", "fma", instructions) != plain


# --- building ---------------------------------------------------------------------------------------------


@pytest.fixture
def toy_recipe(toy: Path) -> Recipe:
    return recipe_from_options(toy_options(toy))


def test_an_interrupted_build_goes_on_with_the_network_that_it_was_at(
    toy_bundle: Path, toy_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_now: list[str] = []
    stop_at: str | None = "vae_decoder"

    def compile_module(module: Any, inputs: Any, path: Path, options: AotInductorOptions) -> str:
        path.write_bytes(path.stem.encode())
        if path.stem == stop_at:
            raise KeyboardInterrupt
        compiled_now.append(path.stem)
        return "flash"

    monkeypatch.setattr(aotinductor, "compile_module", compile_module)
    monkeypatch.setenv("CXX", sys.executable)  # a program that exists; nothing is compiled
    bundle = Bundle.open(toy_bundle)
    with pytest.raises(KeyboardInterrupt):
        build_packages(bundle, toy_recipe, AotInductorOptions(), tmp_path)
    order = toy_recipe.networks
    before = list(order[: order.index("vae_decoder")])
    assert compiled_now == before
    assert len(list(tmp_path.iterdir())) == 2 * len(before)
    stop_at = None
    engines = build_packages(bundle, toy_recipe, AotInductorOptions(), tmp_path)
    assert compiled_now == list(order)
    assert [engine.key.network for engine in engines] == list(order)
    assert [engine.path.read_bytes().decode() for engine in engines] == list(order)
    assert {engine.extra["bundle"] for engine in engines} == {bundle.digest}
    assert {engine.extra["attention"] for engine in engines} == {"flash"}
    assert build_packages(bundle, toy_recipe, AotInductorOptions(), tmp_path) == engines
    assert len(compiled_now) == len(VIDEO_NETWORKS)


def test_only_the_networks_that_are_asked_for_are_compiled(
    toy: Path, toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_module(module: Any, inputs: Any, path: Path, options: AotInductorOptions) -> str:
        path.write_bytes(b"package")
        return "auto"

    monkeypatch.setattr(aotinductor, "compile_module", compile_module)
    monkeypatch.setenv("CXX", sys.executable)
    request = BuildRequest(
        Bundle.open(toy_bundle), engine_dir=tmp_path, networks=("vae_decoder",), checkpoints=toy_options(toy)
    )
    (engine,) = aotinductor.build_requested(request)
    assert engine.key.network == "vae_decoder"
    assert len(list(tmp_path.glob("*.pt2"))) == 1


def test_without_a_compiler_it_is_named_before_anything_is_compiled(
    toy_bundle: Path, toy_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineError, match=r"no-such-compiler is not installed: install one.*CXX"):
        build_packages(Bundle.open(toy_bundle), toy_recipe, AotInductorOptions(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_the_compiler_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("error: no such type")

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fail)
    inputs = (dataclasses.replace(block.INPUTS[0], shape=(1, 2)),)
    with pytest.raises(EngineError, match=r"the compiler failed \(net\): error: no such type"):
        aotinductor.compile_module(torch.nn.Linear(2, 2), inputs, tmp_path / "net.pt2", AotInductorOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"device": "cpu:0"}, "device is 'cpu:0'"),
        ({"device": "cuda:x"}, "device is 'cuda:x'"),
        ({"max_autotune": True}, "on a CPU it would bake the weights in"),
        (
            {"attention": "flash"},
            "attention is 'flash'; choose 'auto', on a GPU also flash, efficient, cudnn",
        ),
        ({"device": "cuda", "attention": "slow"}, "attention is 'slow'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AotInductorOptions(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_neither_its_packages_are_compiled_nor_its_engine_loads(
    bundle: Bundle, toy_bundle: Path, toy_recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="compiled on a machine with that GPU"):
        build_packages(Bundle.open(toy_bundle), toy_recipe, AotInductorOptions(device="cuda"), tmp_path)
    with pytest.raises(EngineError, match=r"no CUDA, or finds no GPU.*lamp-trt doctor"):
        AotInductorCudaEngine(bundle, "lamp_unet", device=0, stream=STREAM)


# --- the engine for a GPU, on a double of torch -----------------------------------------------------------


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> CudaTorch:
    double = CudaTorch()
    monkeypatch.setitem(sys.modules, "torch", double)
    return double


class BoundBlock:
    """The block's engine between arrays that stand for device memory."""

    def __init__(self, bundle: Bundle, motion: str = "a") -> None:
        self.engine = AotInductorCudaEngine(bundle, "lamp_unet", device=0, stream=STREAM, motion=motion)
        self.arrays = block.arrays()
        self.output = np.full(block.OUTPUTS[0].shape, np.nan, np.float32)
        for name, array in {**self.arrays, "noise_pred": self.output}.items():
            self.engine.bind(name, array.ctypes.data)

    def run(self) -> np.ndarray:
        self.output[...] = np.nan
        self.engine.enqueue(STREAM)
        return self.output.copy()


def test_a_run_goes_from_the_bound_inputs_to_the_bound_output_on_the_given_stream(
    bundle: Bundle, cuda: CudaTorch
) -> None:
    bound = BoundBlock(bundle)
    first = bound.run()
    assert distance(first, block.expected("a")).rel_l2 <= PACKAGE_REL_L2
    bound.arrays["sample"][...] *= 2
    assert distance(bound.run(), first).rel_l2 > 1e-3
    assert [stream and stream.pointer for stream in cuda.runs] == [STREAM, STREAM]
    assert bound.engine.scratch_bytes == 0


@pytest.mark.parametrize("asked", [True, False])
def test_cudnn_times_its_algorithms_while_a_package_runs_that_asks_for_it(
    asked: bool, bundle: Bundle, cuda: CudaTorch, tmp_path: Path
) -> None:
    """The setting is the process's, so it is put back."""
    (package,) = [p for p in compiled.known(bundle.engine_folder) if p.key.device == cuda_name(CAPABILITY)]
    flags = {**package.key.flags, "cudnn_benchmark": asked}
    copy_package(package.path, tmp_path, dataclasses.replace(package.key, flags=flags))
    engine = AotInductorCudaEngine(
        bundle, "lamp_unet", device=0, stream=STREAM, motion="a", engine_dir=tmp_path
    )
    with engine._on_stream():
        assert torch.backends.cudnn.benchmark is asked
    assert not torch.backends.cudnn.benchmark


def test_a_switch_writes_into_the_same_memory_and_leaves_captures_valid(
    bundle: Bundle, cuda: CudaTorch
) -> None:
    bound = BoundBlock(bundle)
    places = {name: value.data_ptr() for name, value in bound.engine._values.items()}
    first = bound.run()
    for motion in ("b", "gates", "full", "a"):
        assert bound.engine.set_motion(motion) is False
        output = bound.run()
        assert distance(output, block.expected(motion)).rel_l2 <= PACKAGE_REL_L2
    np.testing.assert_array_equal(output, first)
    assert {name: value.data_ptr() for name, value in bound.engine._values.items()} == places
    assert cuda.cuda.current is None


def test_a_capture_is_torchs_on_the_same_stream_in_a_pool_of_its_own(bundle: Bundle, cuda: CudaTorch) -> None:
    bound = BoundBlock(bundle)
    bound.run()
    seen: list[Stream | None] = []

    def work() -> None:
        seen.append(cuda.cuda.current)
        bound.engine.enqueue(STREAM)

    replay = bound.engine.capture(STREAM, work)
    (graph,) = cuda.cuda.graphs
    assert seen == [graph.captured_on]
    assert graph.captured_on is not None
    assert (graph.captured_on.pointer, graph.error_mode) == (STREAM, "thread_local")
    replay()
    replay()
    assert [stream and stream.pointer for stream in graph.replayed_on] == [STREAM, STREAM]


def test_an_engine_whose_capture_failed_runs_nothing_more(bundle: Bundle, cuda: CudaTorch) -> None:
    """torch's allocator may still be in the capture: what it hands out then belongs to the graph's pool."""
    bound = BoundBlock(bundle)
    bound.run()

    def work() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(EngineError, match="not permitted when stream is capturing"):
        bound.engine.capture(STREAM, work)
    for use in (bound.run, lambda: bound.engine.capture(STREAM, lambda: None)):
        with pytest.raises(
            EngineError, match=r"failed while it was captured.*load the bundle in a new process"
        ):
            use()


def test_what_is_not_bound_or_not_its_stream_is_refused(bundle: Bundle, cuda: CudaTorch) -> None:
    engine = AotInductorCudaEngine(bundle, "lamp_unet", device=0, stream=STREAM)
    with pytest.raises(EngineError, match="sample is bound to no address"):
        engine.enqueue(STREAM)
    with pytest.raises(EngineError, match="another stream"):
        engine.enqueue(STREAM + 1)
    with pytest.raises(EngineError, match="another stream"):
        engine.capture(STREAM + 1, lambda: None)


def test_weights_that_do_not_fit_are_refused_with_both_figures(bundle: Bundle, cuda: CudaTorch) -> None:
    cuda.cuda.free = 10_000
    with pytest.raises(EngineError, match=r"lamp_unet need 0\.00 GB of GPU memory, 0\.00 GB are free"):
        AotInductorCudaEngine(bundle, "lamp_unet", device=0, stream=STREAM)


def test_a_failed_switch_and_a_closed_engine_say_so(
    bundle: Bundle, cuda: CudaTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = BoundBlock(bundle)

    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    with monkeypatch.context() as patch:
        patch.setattr(bound.engine, "_fill", fail)
        with pytest.raises(EngineError, match="unspecified launch failure"):
            bound.engine.set_motion("b")
    with pytest.raises(EngineError, match="no motion because a switch failed: load it again"):
        bound.run()
    closed = BoundBlock(bundle)
    with closed.engine as engine:
        assert engine.unusable is None
    closed.engine.close()  # again
    for use in (closed.run, lambda: closed.engine.set_motion("b"), lambda: closed.engine.bind("x", 0)):
        with pytest.raises(EngineError, match="lamp_unet was closed"):
            use()


# --- whole clips ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_clip_through_packages_equals_the_references(
    toy: Path, toy_bundle: Path, toy_recipe: Recipe, tmp_path: Path
) -> None:
    """All networks of the toy, compiled in a few minutes; every motion tensor of the whole UNet is a constant
    that can be exchanged, and switching there and back changes no bit of a clip."""
    bundle = Bundle.open(toy_bundle)
    engines = build_packages(bundle, toy_recipe, AotInductorOptions(), tmp_path)
    assert build_packages(bundle, toy_recipe, AotInductorOptions(), tmp_path) == engines
    pipe = lamp_trt.load(toy_bundle, backend="aotinductor", engine_dir=tmp_path, num_threads=1)
    rng = np.random.default_rng(7)
    noise = rng.standard_normal((1, 4, 4, 8, 8)).astype(np.float32)
    posterior_noise = rng.standard_normal((1, 4, 8, 8)).astype(np.float32)
    clips = {}
    for motion in ("rain", "horse_run"):
        arguments: dict[str, Any] = {"num_inference_steps": 8, "adain_switch_step": 5}
        video = clips[motion] = pipe(
            "a car in rain",
            motion=motion,
            first_frame=smooth_picture(64, 64),
            noise=noise,
            posterior_noise=posterior_noise,
            **arguments,
        )
        latents, decoded = reference_clip(
            toy,
            motion,
            "a car in rain",
            video.first_frame,
            noise,
            posterior_noise,
            bundle.manifest.scheduler,
            **arguments,
        )
        assert distance(video.latents, latents).rel_l2 <= PIPELINE_REL_L2
        difference = np.abs(video.frames.astype(int) - match_histograms(uint8_frames(decoded)))
        assert difference.max() <= CLIP_LEVELS
        assert (difference == 0).mean() >= GOLDEN_GIF_EQUAL_SHARE
    assert distance(clips["rain"].latents, clips["horse_run"].latents).rel_l2 > 1e-3
    again = pipe(
        "a car in rain",
        motion="rain",
        first_frame=smooth_picture(64, 64),
        noise=noise,
        posterior_noise=posterior_noise,
        **arguments,
    )
    np.testing.assert_array_equal(again.latents, clips["rain"].latents)
    np.testing.assert_array_equal(again.frames, clips["rain"].frames)
    unet = AotInductorEngine(bundle, "lamp_unet", engine_dir=tmp_path)
    stored = {
        name
        for file in ("weights/unet.safetensors", "motions/rain.safetensors")
        for name in read_weight_file(bundle.path_of(file)).tensors
    }
    assert {name.removeprefix("model.") for name in unet._model.get_constant_fqns()} == stored
