# SPDX-License-Identifier: Apache-2.0
"""TensorRT engines at run time, on a double that keeps TensorRT's documented rules
(tests/doubles/tensorrt.py).

First the double: each rule has a test that breaks it, or else it would prove nothing. Then the engine, which
breaks none, and at last the whole of Algorithm 1.
"""

import dataclasses
import functools
import gc
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import pytest

import lamp_trt
from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.onnxruntime.session import cpu_model, new_session
from lamp_trt.engine.backends.tensorrt import engine as tensorrt_engine
from lamp_trt.engine.backends.tensorrt import layers as tensorrt_layers
from lamp_trt.engine.backends.tensorrt.engine import TensorRtEngine
from lamp_trt.engine.backends.tensorrt.key import engine_key
from lamp_trt.engine.backends.tensorrt.refit import motion_weights
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.errors import BundleError, EngineError
from lamp_trt.engine.families import VIDEO_NETWORKS
from lamp_trt.engine.graph.model import bundle_model
from lamp_trt.runtime.cuda.engines import EngineSet
from lamp_trt.runtime.cuda.ops import CudaVideoOps
from lamp_trt.runtime.media.tokenizer import load_tokenizer
from lamp_trt.runtime.media.video import Video
from lamp_trt.runtime.pipeline import LampPipeline
from tests.doubles import tensorrt as double
from tests.doubles.host_device import HostDevice, values_at
from tests.doubles.tensorrt import CudaDouble, ILogger, Refitter, Violation, Weights
from tests.tolerances import DEVICE_LATENTS_ATOL, DEVICE_LEVELS_DIFFERING

UNET = "lamp_unet"
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaDouble]:
    """TensorRT and CUDA replaced by their doubles."""
    cuda = CudaDouble()
    cuda.install(monkeypatch)
    monkeypatch.setattr(tensorrt_engine, "tensorrt", lambda: double)
    yield cuda
    gc.collect()  # finalizers find the double still
    assert not cuda.graphs
    assert not cuda.memory


@pytest.fixture
def device() -> HostDevice:
    return HostDevice()


def keep_plan(
    bundle: Bundle,
    folder: Path,
    network: str,
    motion: str | None = None,
    *,
    refit: bool = False,
    **options: Any,
) -> Path:
    """A plan of the double where `find_engine` looks for it."""
    key = engine_key(bundle, network, double, "sm_90", motion=motion, refittable=refit)
    flags = {name: True for name in ("version_compatible",) if options.pop(name, False)}
    extra = {"stripped": bool(options.get("stripped")), "weight_streaming": options.pop("streaming", False)}
    data = double.plan(bundle, network, motion, refit=refit, **options)
    key = dataclasses.replace(key, flags=flags)
    return compiled.store(folder, key, "plan", extra, writing(data)).path


def writing(data: bytes) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        file.write(data)

    return write


class Bound:
    """An engine between arrays of a HostDevice."""

    def __init__(self, engine: TensorRtEngine, device: HostDevice) -> None:
        self.engine, self.device = engine, device
        self.arrays = {t.name: device.empty(t.shape, t.dtype) for t in (*engine.inputs, *engine.outputs)}
        for name, array in self.arrays.items():
            engine.bind(name, array.pointer)
        self.give_scratch()

    def give_scratch(self) -> None:
        self.scratch = self.device.empty((self.engine.scratch_bytes,), np.uint8)
        self.engine.use_scratch(self.scratch.pointer, self.scratch.nbytes)

    def put(self, inputs: Arrays) -> None:
        for name, values in inputs.items():
            values_at(self.arrays[name])[...] = values

    def outputs(self) -> Arrays:
        return {t.name: values_at(self.arrays[t.name]).copy() for t in self.engine.outputs}

    def run(self, inputs: Arrays) -> Arrays:
        self.put(inputs)
        self.engine.enqueue(self.device.stream)
        self.device.synchronize()
        return self.outputs()


def inputs_of(bundle: Bundle, network: str, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        t.name: (rng.integers(1, 40, t.shape) if t.dtype == "int64" else rng.standard_normal(t.shape)).astype(
            t.dtype
        )
        for t in bundle.network(network).inputs
    }


def expected(bundle: Bundle, network: str, inputs: Arrays, motion: str | None = None) -> Arrays:
    """ONNX Runtime's own result, with the weights where the bundle has them."""
    names = [tensor.name for tensor in bundle.network(network).outputs]
    return dict(zip(names, ort_session(bundle.path, network, motion).run(names, inputs), strict=True))


@functools.cache
def ort_session(path: Path, network: str, motion: str | None) -> Any:
    bundle = Bundle.open(path)
    model = cpu_model(bundle, network, motion)
    return new_session(bundle, network, model, ["CPUExecutionProvider"], num_threads=1)


def assert_equal(ours: Arrays, theirs: Arrays) -> None:
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


@pytest.fixture
def unet(bundle: Bundle, cuda: CudaDouble, device: HostDevice, tmp_path: Path) -> Callable[..., Bound]:
    """The LAMP UNet from a plan with these options, showing `motion`."""

    def make(motion: str = "horse_run", **options: Any) -> Bound:
        residence = options.pop("resident_motions", "mapped")
        keep_plan(bundle, tmp_path, UNET, "horse_run", **{"refit": True, **options})
        engine = TensorRtEngine(
            bundle,
            UNET,
            device=0,
            stream=device.stream,
            motion=motion,
            engine_dir=tmp_path,
            resident_motions=residence,
        )
        return Bound(engine, device)

    return make


# --- the double's rules -------------------------------------------------------------------------------


@pytest.fixture
def context(bundle: Bundle, device: HostDevice) -> Iterator[double.IExecutionContext]:
    """Of the text encoder, which lacks addresses and memory."""
    runtime = double.Runtime(ILogger())
    engine = runtime.deserialize_cuda_engine(double.plan(bundle, "text_encoder"))
    assert engine is not None
    context = engine.create_execution_context(double.ExecutionContextAllocationStrategy.USER_MANAGED)
    assert context.set_input_shape("input_ids", bundle.network("text_encoder").inputs[0].shape)
    yield context
    device.memory.check()


def make_ready(context: double.IExecutionContext, device: HostDevice, *, scratch: bool = True) -> None:
    for mode, tensor in context.engine.tensors.values():
        array = device.empty(tensor.shape, tensor.dtype)
        if mode is double.TensorIOMode.INPUT:
            values_at(array)[...] = 1
        assert context.set_tensor_address(tensor.name, array.pointer)
    if scratch:
        memory = device.empty((context.engine.device_memory_size_v2,), np.uint8)
        context.set_device_memory(memory.pointer, memory.nbytes)


def enqueuing(context: double.IExecutionContext, device: HostDevice) -> Callable[[], None]:
    def enqueue() -> None:
        assert context.execute_async_v3(device.stream)

    return enqueue


def test_a_run_needs_every_address_and_shape(
    bundle: Bundle, context: double.IExecutionContext, device: HostDevice
) -> None:
    assert not context.execute_async_v3(device.stream)
    assert not context.set_tensor_address("no_such_tensor", 1 << 20)
    assert not context.set_input_shape("input_ids", (3, 77))
    assert not context.set_input_shape("last_hidden_state", (2, 77, 32))
    make_ready(context, device)
    assert context.execute_async_v3(device.stream)
    unshaped = context.engine.create_execution_context()
    make_ready(unshaped, device)
    assert not unshaped.execute_async_v3(device.stream)


def test_a_run_needs_memory_of_the_size_and_alignment_that_the_engine_says(
    context: double.IExecutionContext, device: HostDevice
) -> None:
    make_ready(context, device, scratch=False)
    with pytest.raises(Violation, match="without any"):
        context.execute_async_v3(device.stream)
    needed = context.engine.device_memory_size_v2
    memory = device.empty((needed + double.ALIGNMENT,), np.uint8)
    with pytest.raises(Violation, match=f"scratch of {needed - 1} bytes, needed are {needed}"):
        context.set_device_memory(memory.pointer, needed - 1)
    with pytest.raises(Violation, match="scratch is not aligned"):
        context.set_device_memory(memory.pointer + 64, needed)
    with pytest.raises(Violation, match="input_ids is not aligned"):
        context.set_tensor_address("input_ids", memory.pointer + 64)


def test_scratch_and_outputs_are_written_when_the_stream_gets_there(
    context: double.IExecutionContext, device: HostDevice
) -> None:
    make_ready(context, device)
    assert context.execute_async_v3(device.stream)
    output = values_at(context.array("last_hidden_state"))
    assert np.isnan(output).all()
    device.synchronize()
    assert np.isfinite(output).all()


def test_a_capture_needs_a_run_before_it(context: double.IExecutionContext, device: HostDevice) -> None:
    make_ready(context, device)
    with pytest.raises(Violation, match="captured before a first run"):
        device.queue.record(enqueuing(context, device))
    assert context.execute_async_v3(device.stream)
    device.queue.record(enqueuing(context, device))


def test_the_streaming_budget_comes_before_contexts(context: double.IExecutionContext) -> None:
    with pytest.raises(Violation, match="while there is an execution context"):
        context.engine.weight_streaming_budget_v2 = 1


@pytest.fixture
def refitter(bundle: Bundle) -> Refitter:
    engine = double.Runtime(ILogger()).deserialize_cuda_engine(
        double.plan(bundle, UNET, "horse_run", refit=True)
    )
    assert engine is not None
    return Refitter(engine, ILogger())


def test_weights_are_refused_by_name_count_and_type(bundle: Bundle, refitter: Refitter) -> None:
    file = read_weight_file(bundle.motion_path("rain"))
    assert set(refitter.get_all_weights()) == set(file.tensors)
    name, array = next((name, array) for name, array in file.arrays().items() if array.size > 1)
    address = array.ctypes.data
    assert not refitter.set_named_weights(
        "conv_in.weight", Weights(double.DataType.FLOAT, address, array.size)
    )
    assert not refitter.set_named_weights(name, Weights(double.DataType.FLOAT, address, array.size - 1))
    assert not refitter.set_named_weights(name, Weights(double.DataType.HALF, address, array.size))
    assert refitter.set_named_weights(name, Weights(double.DataType.FLOAT, address, array.size))
    assert refitter.get_weights_prototype("conv_in.weight").size == -1


def test_a_refit_that_lacks_a_fused_tensor_fails(bundle: Bundle) -> None:
    file = read_weight_file(bundle.motion_path("rain"))
    (first, array), (second, _) = list(file.arrays().items())[:2]
    data = double.plan(bundle, UNET, "horse_run", refit=True, fused_with=[first, second])
    engine = double.Runtime(ILogger()).deserialize_cuda_engine(data)
    assert engine is not None
    refitter = Refitter(engine, ILogger())
    assert refitter.get_missing_weights() == []
    refitter.set_named_weights(first, Weights(double.DataType.FLOAT, array.ctypes.data, array.size))
    assert refitter.get_missing_weights() == [second]
    assert not refitter.refit_cuda_engine()


def test_only_a_refittable_engine_has_a_refitter(context: double.IExecutionContext) -> None:
    with pytest.raises(Violation, match="not built to be refitted"):
        Refitter(context.engine, ILogger())


def ready_unet(engine: double.ICudaEngine, device: HostDevice) -> double.IExecutionContext:
    context = engine.create_execution_context()
    for mode, tensor in engine.tensors.values():
        if mode is double.TensorIOMode.INPUT:
            assert context.set_input_shape(tensor.name, tensor.shape)
    make_ready(context, device)
    return context


def test_weights_are_not_replaced_while_work_is_pending(refitter: Refitter, device: HostDevice) -> None:
    context = ready_unet(refitter.engine, device)
    assert context.execute_async_v3(device.stream)
    with pytest.raises(Violation, match="while work is pending"):
        refitter.refit_cuda_engine()
    device.synchronize()
    assert refitter.refit_cuda_engine()


def test_a_graph_is_stale_after_a_refit(refitter: Refitter, device: HostDevice) -> None:
    context = ready_unet(refitter.engine, device)
    assert context.execute_async_v3(device.stream)
    replay = device.queue.record(enqueuing(context, device))
    replay()
    device.synchronize()
    assert refitter.refit_cuda_engine()
    replay()
    with pytest.raises(Violation, match="captured before the weights were replaced"):
        device.synchronize()


def test_a_stripped_engine_computes_nothing_before_it_has_its_weights(
    bundle: Bundle, device: HostDevice
) -> None:
    data = double.plan(bundle, "text_encoder", stripped=True)
    engine = double.Runtime(ILogger()).deserialize_cuda_engine(data)
    assert engine is not None
    assert ready_unet(engine, device).execute_async_v3(device.stream)
    with pytest.raises(Violation, match="before it was given its weights"):
        device.synchronize()


@pytest.mark.parametrize(
    "kind",
    ["Runtime", "ICudaEngine", "IExecutionContext", "EngineInspector", "Refitter", "Weights", "ILogger"],
)
def test_the_double_has_no_call_that_tensorrt_lacks(kind: str) -> None:
    """Names of methods, attributes and arguments, as the bindings of tensorrt_rtx say them."""
    real: ModuleType = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    ours, theirs = getattr(double, kind), getattr(real, kind)
    public = {name: member for name, member in vars(ours).items() if not name.startswith("_")}
    own = {"array", "compute", "replace_weights", "values"}
    for name, member in public.items():
        if name in own:
            continue
        assert hasattr(theirs, name), f"{kind}.{name}"
        if inspect.isfunction(member) and (text := getattr(theirs, name).__doc__):
            documented = re.findall(r"[(,] ?(\w+): ", " ".join(text.split("\n\n")))
            for argument in list(inspect.signature(member).parameters)[1:]:
                assert argument in documented, f"{kind}.{name}({argument}): {documented}"
    for enum in ("DataType", "TensorIOMode", "TensorLocation", "ExecutionContextAllocationStrategy"):
        members = getattr(double, enum).__members__
        assert members.keys() <= getattr(real, enum).__members__.keys()


# --- engines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [name for name in VIDEO_NETWORKS if name != UNET])
@pytest.mark.parametrize("stripped", [False, True])
def test_a_network_computes_between_its_addresses(
    network: str, stripped: bool, bundle: Bundle, cuda: CudaDouble, device: HostDevice, tmp_path: Path
) -> None:
    keep_plan(bundle, tmp_path, network, stripped=stripped)
    engine = TensorRtEngine(bundle, network, device=0, stream=device.stream, engine_dir=tmp_path)
    bound, inputs = Bound(engine, device), inputs_of(bundle, network)
    assert_equal(bound.run(inputs), expected(bundle, network, inputs))
    assert engine.scratch_bytes == 5120  # 5000, rounded up to a multiple of 256
    device.memory.check()


def test_an_engine_says_what_it_lacks_before_tensorrt_is_asked(
    bundle: Bundle, cuda: CudaDouble, device: HostDevice, tmp_path: Path
) -> None:
    keep_plan(bundle, tmp_path, "text_encoder")
    engine = TensorRtEngine(bundle, "text_encoder", device=0, stream=device.stream, engine_dir=tmp_path)
    with pytest.raises(EngineError, match="input_ids is bound to no address"):
        engine.enqueue(device.stream)
    with pytest.raises(EngineError, match="no tensor 'latents'"):
        engine.bind("latents", 1 << 20)
    with pytest.raises(EngineError, match="not a multiple of 256"):
        engine.bind("input_ids", (1 << 20) + 8)
    for tensor in (*engine.inputs, *engine.outputs):
        engine.bind(tensor.name, device.empty(tensor.shape, tensor.dtype).pointer)
    with pytest.raises(EngineError, match="no scratch of 5120 bytes"):
        engine.enqueue(device.stream)
    with pytest.raises(EngineError, match="needs 5120 bytes of scratch"):
        engine.use_scratch(1 << 20, 5000)
    with pytest.raises(EngineError, match="needs 5120 bytes of scratch"):
        engine.use_scratch((1 << 20) + 8, 1 << 20)
    with pytest.raises(EngineError, match="must run once before it is captured"):
        engine.capture(device.stream, lambda: None)
    with engine:
        assert engine.unusable is None
    engine.close()  # again
    for use in (
        lambda: engine.enqueue(device.stream),
        lambda: engine.scratch_bytes,
        lambda: engine.set_motion("rain"),
    ):
        with pytest.raises(EngineError, match="text_encoder was closed"):
            use()


def test_a_plan_that_is_missing_foreign_or_damaged_is_refused(
    bundle: Bundle, cuda: CudaDouble, tmp_path: Path
) -> None:
    def load(folder: Path) -> TensorRtEngine:
        return TensorRtEngine(bundle, "vae_encoder", device=0, stream=1, engine_dir=folder)

    with pytest.raises(EngineError, match=r"holds no tensorrt engine for vae_encoder.*lamp-trt build"):
        load(tmp_path / "none")
    plan = keep_plan(bundle, tmp_path, "vae_encoder")
    plan.write_bytes(plan.read_bytes().replace(b"5000", b"5001"))
    with pytest.raises(EngineError, match="damaged or exchanged"):
        load(tmp_path)
    key = engine_key(bundle, "vae_encoder", double, "sm_90")
    compiled.store(tmp_path, key, "plan", {}, writing(b"no plan"))
    with pytest.raises(EngineError, match=r"TensorRT does not load .*plan"):
        load(tmp_path)
    data = double.plan(bundle, "vae_decoder")
    compiled.store(tmp_path, key, "plan", {}, writing(data))
    with pytest.raises(EngineError, match=r"has tensor image as .*INPUT|has tensor image as .*OUTPUT"):
        load(tmp_path)
    foreign = dataclasses.replace(key, device="sm_80")
    compiled.store(tmp_path / "foreign", foreign, "plan", {}, writing(data))
    with pytest.raises(EngineError, match="was built for sm_80, this device is sm_90"):
        load(tmp_path / "foreign")


def test_weights_are_streamed_within_a_budget_that_counts_as_scratch(
    bundle: Bundle, cuda: CudaDouble, device: HostDevice, tmp_path: Path
) -> None:
    keep_plan(bundle, tmp_path, "vae_encoder", streaming=True)
    engine = TensorRtEngine(bundle, "vae_encoder", device=0, stream=device.stream, engine_dir=tmp_path)
    assert engine.scratch_bytes == 6144


def test_a_captured_run_is_replayed_with_what_the_arrays_hold_then(
    unet: Callable[..., Bound], bundle: Bundle, cuda: CudaDouble, device: HostDevice
) -> None:
    from cuda.bindings.runtime import cudaStreamCaptureMode

    bound = unet()
    bound.run(inputs_of(bundle, UNET, 1))
    replay = bound.engine.capture(device.stream, lambda: bound.engine.enqueue(device.stream))
    assert cuda.modes == [cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal]
    assert device.queue.idle
    for seed in (2, 3):
        inputs = inputs_of(bundle, UNET, seed)
        bound.put(inputs)
        replay()
        device.synchronize()
        assert_equal(bound.outputs(), expected(bundle, UNET, inputs, "horse_run"))
    assert len(cuda.graphs) == 1
    del replay
    assert not cuda.graphs


def test_a_capture_that_fails_leaves_the_stream_usable(
    unet: Callable[..., Bound], bundle: Bundle, cuda: CudaDouble, device: HostDevice
) -> None:
    bound, inputs = unet(), inputs_of(bundle, UNET)
    bound.run(inputs)

    def work() -> None:
        bound.engine.enqueue(device.stream)
        raise EngineError("a kernel cannot be captured")

    with pytest.raises(EngineError, match="a kernel cannot be captured"):
        bound.engine.capture(device.stream, work)
    assert not device.queue.recording
    assert not cuda.graphs
    assert_equal(bound.run(inputs), expected(bundle, UNET, inputs, "horse_run"))


def test_a_capture_that_cuda_refuses_is_an_engine_error(
    unet: Callable[..., Bound], bundle: Bundle, cuda: CudaDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = unet()
    bound.run(inputs_of(bundle, UNET))
    monkeypatch.setattr(
        "cuda.bindings.runtime.cudaGraphInstantiate", lambda graph, flags: (cuda.failure, None)
    )
    with pytest.raises(EngineError, match="cudaGraphInstantiate failed: operation failed due to"):
        bound.engine.capture(bound.device.stream, lambda: bound.engine.enqueue(bound.device.stream))
    assert not cuda.graphs


# --- motions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residence", ["mapped", "pinned", "device"])
def test_motions_are_exchanged_and_back_is_bit_for_bit(
    residence: str, unet: Callable[..., Bound], bundle: Bundle, cuda: CudaDouble
) -> None:
    bound, inputs = unet(resident_motions=residence), inputs_of(bundle, UNET)
    first = bound.run(inputs)
    assert_equal(first, expected(bundle, UNET, inputs, "horse_run"))
    assert bound.engine.set_motion("rain")
    other = bound.run(inputs)
    assert_equal(other, expected(bundle, UNET, inputs, "rain"))
    assert not np.array_equal(first["noise_pred"], other["noise_pred"])
    assert not bound.engine.set_motion("rain")
    assert bound.engine.set_motion("horse_run")
    assert_equal(bound.run(inputs), first)
    bound.engine.close()
    assert len(cuda.memory) == 0


def test_a_cached_plan_is_given_the_motion_at_load_whatever_it_was_built_with(
    unet: Callable[..., Bound], bundle: Bundle
) -> None:
    inputs = inputs_of(bundle, UNET)
    assert_equal(unet("rain").run(inputs), expected(bundle, UNET, inputs, "rain"))


def test_after_a_switch_a_capture_needs_a_run_again(unet: Callable[..., Bound], bundle: Bundle) -> None:
    bound = unet()
    bound.run(inputs_of(bundle, UNET))
    bound.engine.set_motion("rain")
    with pytest.raises(EngineError, match="must run once before it is captured"):
        bound.engine.capture(bound.device.stream, lambda: None)


def test_an_unknown_motion_changes_nothing(unet: Callable[..., Bound], bundle: Bundle) -> None:
    bound, inputs = unet(), inputs_of(bundle, UNET)
    with pytest.raises(BundleError, match="holds no motion 'snow'"):
        bound.engine.set_motion("snow")
    assert_equal(bound.run(inputs), expected(bundle, UNET, inputs, "horse_run"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra_refittable": ["conv_in.weight"]}, "conv_in.weight is not a motion tensor"),
        ({"fused_with": ["conv_in.weight"]}, r"fused replaceable tensors with 1 others, 'conv_in.weight'"),
    ],
)
def test_an_engine_with_other_replaceable_tensors_than_the_motions_is_refused(
    options: dict[str, Any], message: str, unet: Callable[..., Bound]
) -> None:
    with pytest.raises(EngineError, match=message):
        unet(**options)


def test_a_motion_of_other_sizes_is_refused_and_the_engine_is_as_it_was(
    unet: Callable[..., Bound], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, inputs = unet(), inputs_of(bundle, UNET)

    def narrower(*arguments: Any) -> Any:
        weights = motion_weights(*arguments)
        name = next(iter(weights.tensors))
        short = dataclasses.replace(weights.tensors[name], count=1)
        return dataclasses.replace(weights, tensors={**weights.tensors, name: short})

    monkeypatch.setattr(tensorrt_engine, "motion_weights", narrower)
    with pytest.raises(EngineError, match=r"is 1 values of .*built from another bundle"):
        bound.engine.set_motion("rain")
    assert_equal(bound.run(inputs), expected(bundle, UNET, inputs, "horse_run"))


def test_a_refit_that_breaks_makes_the_engine_unusable_for_good(
    unet: Callable[..., Bound], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = unet()
    monkeypatch.setattr(Refitter, "refit_cuda_engine", lambda self: False)
    with pytest.raises(EngineError, match=r"failed to replace.*Load the bundle again"):
        bound.engine.set_motion("rain")
    monkeypatch.undo()
    for use in (
        lambda: bound.engine.enqueue(bound.device.stream),
        lambda: bound.engine.set_motion("horse_run"),
        lambda: bound.engine.bind("sample", bound.arrays["sample"].pointer),
    ):
        with pytest.raises(EngineError, match="failed to replace"):
            use()


def test_a_switch_while_work_is_pending_is_the_callers_fault(
    unet: Callable[..., Bound], bundle: Bundle
) -> None:
    bound = unet()
    bound.put(inputs_of(bundle, UNET))
    bound.engine.enqueue(bound.device.stream)
    with pytest.raises(Violation, match="while work is pending"):
        bound.engine.set_motion("rain")


def test_without_refit_each_motion_has_a_plan_and_keeps_the_addresses(
    bundle: Bundle, unet: Callable[..., Bound], tmp_path: Path
) -> None:
    keep_plan(bundle, tmp_path, UNET, "rain", scratch=9000)
    bound, inputs = unet(refit=False), inputs_of(bundle, UNET)
    assert_equal(bound.run(inputs), expected(bundle, UNET, inputs, "horse_run"))
    assert bound.engine.set_motion("rain")
    assert bound.engine.scratch_bytes == 9216
    with pytest.raises(EngineError, match="no scratch of 9216 bytes"):
        bound.run(inputs)
    bound.give_scratch()
    assert_equal(bound.run(inputs), expected(bundle, UNET, inputs, "rain"))
    assert bound.engine.set_motion("horse_run")
    assert_equal(bound.run(inputs), expected(bundle, UNET, inputs, "horse_run"))


def test_a_whole_motion_has_a_plan_of_its_own_beside_the_refittable_one(
    bundle: Bundle, cuda: CudaDouble, device: HostDevice, tmp_path: Path
) -> None:
    motions = dict(bundle.manifest.motions)
    motions["rain"] = dataclasses.replace(motions["rain"], kind="full")
    whole = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, motions=motions))
    keep_plan(whole, tmp_path, UNET, "rain")
    keep_plan(bundle, tmp_path, UNET, "horse_run", refit=True)
    inputs = inputs_of(bundle, UNET)
    engine = TensorRtEngine(
        whole, UNET, device=0, stream=device.stream, motion="horse_run", engine_dir=tmp_path
    )
    bound = Bound(engine, device)
    for motion in ("rain", "horse_run"):
        assert engine.set_motion(motion)
        assert_equal(bound.run(inputs), expected(bundle, UNET, inputs, motion))


def test_a_switch_to_a_motion_without_a_plan_keeps_the_present_one(
    bundle: Bundle, unet: Callable[..., Bound]
) -> None:
    bound, inputs = unet(refit=False), inputs_of(bundle, UNET)
    with pytest.raises(EngineError, match=r"has another motion baked in.*lamp-trt build"):
        bound.engine.set_motion("rain")
    assert_equal(bound.run(inputs), expected(bundle, UNET, inputs, "horse_run"))


def test_a_switch_whose_plan_does_not_load_leaves_an_engine_that_says_so(
    bundle: Bundle, unet: Callable[..., Bound], tmp_path: Path
) -> None:
    bound = unet(refit=False)
    key = engine_key(bundle, UNET, double, "sm_90", motion="rain")
    compiled.store(tmp_path, key, "plan", {}, writing(b"no plan"))
    with pytest.raises(EngineError, match="does not load"):
        bound.engine.set_motion("rain")
    with pytest.raises(EngineError, match="lamp_unet has no engine because a switch failed"):
        bound.engine.enqueue(bound.device.stream)


# --- layers -------------------------------------------------------------------------------------------


def test_the_layers_of_a_plan_are_told(
    bundle: Bundle, cuda: CudaDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_layers, "tensorrt", lambda: double)
    keep_plan(bundle, tmp_path, "vae_encoder")
    layers = tensorrt_layers.plan_layers(bundle, "vae_encoder", engine_dir=tmp_path)
    graph = bundle_model(bundle, "vae_encoder", None).graph
    assert [layer.name for layer in layers] == [node.name for node in graph.node]
    assert tensorrt_layers.layers_text(layers).endswith(f"{len(layers)} layers")


def test_layers_in_detail_name_kernel_and_outputs() -> None:
    """As TensorRT 10's inspector writes them."""
    output = {"Name": "y", "Dimensions": [2, 320, 40, 64], "Format/Datatype": "Half"}
    detailed = {"Name": "conv1", "LayerType": "CaskConvolution", "Outputs": [output], "TacticName": "sm90_k"}
    layers = tensorrt_layers.parse_layers(
        json.dumps({"Layers": [detailed, {"Name": "noop"}], "Bindings": []})
    )
    assert layers[0] == tensorrt_layers.PlanLayer(
        "conv1", "CaskConvolution", "sm90_k", ("y 2x320x40x64 Half",)
    )
    text = tensorrt_layers.layers_text(layers)
    assert text.splitlines()[0] == "CaskConvolution       conv1  sm90_k"
    assert text.endswith("2 layers: 1 CaskConvolution")
    with pytest.raises(EngineError, match="inspector returned an unknown format: 'nothing'"):
        tensorrt_layers.parse_layers("nothing")


# --- the whole pipeline -------------------------------------------------------------------------------


class OnTensorRt:
    """A pipeline of TensorRT engines on the double."""

    def __init__(self, bundle: Bundle, engine_dir: Path) -> None:
        motion = bundle.manifest.default_motion
        assert motion is not None
        self.device = HostDevice()

        def load(network: str) -> TensorRtEngine:
            shown = motion if network == UNET else None
            stream = self.device.stream
            return TensorRtEngine(
                bundle, network, device=0, stream=stream, motion=shown, engine_dir=engine_dir
            )

        stages = CudaVideoOps(bundle.manifest, EngineSet(self.device, load))
        tokenizer = load_tokenizer(bundle.tokenizer_folder("tokenizer"), bundle.manifest.sizes["tokens"])
        self.pipe = LampPipeline(bundle, stages, tokenizer, motion, None)


def assert_same_video(ours: Video, reference: Video) -> None:
    np.testing.assert_array_equal(ours.first_frame, reference.first_frame)
    np.testing.assert_allclose(ours.latents, reference.latents, rtol=0, atol=DEVICE_LATENTS_ATOL)
    assert (ours.frames != reference.frames).mean() <= DEVICE_LEVELS_DIFFERING


@pytest.mark.parametrize("refit", [True, False])
def test_the_video_of_tensorrt_engines_is_the_cpus_also_after_switches(
    refit: bool, bundle: Bundle, cuda: CudaDouble, tmp_path: Path
) -> None:
    for network in VIDEO_NETWORKS:
        if network != UNET:
            keep_plan(bundle, tmp_path, network, scratch=70_000 if network == "vae_decoder" else 3000)
    keep_plan(bundle, tmp_path, UNET, "horse_run", refit=refit)
    if not refit:
        keep_plan(bundle, tmp_path, UNET, "rain", scratch=90_000)
    host, ours = lamp_trt.load(bundle.path, num_threads=1), OnTensorRt(bundle, tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    options: dict[str, Any] = {"first_frame": picture, "num_inference_steps": 3}
    videos = [ours.pipe("a horse", motion=motion, **options) for motion in ("horse_run", "rain", "horse_run")]
    assert len(cuda.modes) == 3  # captured once for each motion shown
    assert len(cuda.graphs) == 1
    for video, motion in zip(videos, ("horse_run", "rain"), strict=False):
        assert_same_video(video, host("a horse", motion=motion, **options))
    np.testing.assert_array_equal(videos[2].frames, videos[0].frames)
    np.testing.assert_array_equal(videos[2].latents, videos[0].latents)
    ours.device.memory.check()
