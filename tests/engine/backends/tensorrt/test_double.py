# SPDX-License-Identifier: Apache-2.0
"""The double of TensorRT (tests/doubles/tensorrt.py): each of its rules is broken here, or else it would
prove nothing of the engine that breaks none."""

import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import pytest

from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from tests.doubles import tensorrt as double
from tests.doubles.host_device import HostDevice, values_at
from tests.doubles.tensorrt import ILogger, Refitter, Violation, Weights
from tests.doubles.tensorrt_engine import UNET


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
