# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's CUDA provider: what can be seen of it without a GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lamp_trt.engine.backends.onnxruntime import cuda
from lamp_trt.engine.backends.onnxruntime.cuda import OnnxRuntimeCudaEngine
from lamp_trt.engine.backends.onnxruntime.session import new_session
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.networks import is_motion_tensor


class Binding:
    def __init__(self) -> None:
        self.bound: dict[str, tuple[Any, ...]] = {}

    def bind_input(self, name: str, *place: Any) -> None:
        self.bound[name] = place

    bind_output = bind_input

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.bound[name] = (value,)


class DeviceValue:
    """An OrtValue in device memory."""

    def __init__(self, array: np.ndarray, place: str, device: int) -> None:
        assert (place, device) == ("cuda", 1)
        self.array = array.copy()

    def update_inplace(self, array: np.ndarray) -> None:
        assert array.shape == self.array.shape
        self.array[...] = array


class Session:
    """The calls of an InferenceSession that the engine makes, noted down."""

    providers: tuple[str, ...] = (cuda.PROVIDER, "CPUExecutionProvider")

    def __init__(self, model: Any, providers: Any, config: Any) -> None:
        self.model, self.asked, self.config = model, providers, config
        self.runs: list[tuple[Binding, str]] = []

    def get_providers(self) -> list[str]:
        return list(self.providers)

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        key = "disable_synchronize_execution_providers"
        self.runs.append((binding, options.get_run_config_entry(key)))


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    made: list[Session] = []

    def make(bundle: Bundle, network: str, model: Any, providers: Any, config: Any) -> Session:
        made.append(Session(model, providers, config))
        return made[-1]

    monkeypatch.setattr(cuda, "new_session", make)
    available = [cuda.PROVIDER, "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: available)
    monkeypatch.setattr("onnxruntime.OrtValue.ortvalue_from_numpy", DeviceValue)
    return made


def unet(bundle: Path, **options: Any) -> OnnxRuntimeCudaEngine:
    options = {"device": 1, "stream": 0x5EED, "motion": "horse_run", **options}
    return OnnxRuntimeCudaEngine(Bundle.open(bundle), "lamp_unet", **options)


def bind_all(engine: OnnxRuntimeCudaEngine) -> None:
    for place, tensor in enumerate((*engine.inputs, *engine.outputs), 1):
        engine.bind(tensor.name, place << 20)


def test_a_run_is_enqueued_between_the_bound_addresses_without_a_wait(
    toy_bundle: Path, sessions: list[Session]
) -> None:
    engine = unet(toy_bundle)
    (session,) = sessions
    ((provider, options),) = session.asked
    assert provider == "CUDAExecutionProvider"
    assert options["user_compute_stream"] == str(0x5EED)
    assert (options["device_id"], options["enable_cuda_graph"]) == ("1", "1")
    assert session.config == {"session.disable_cpu_ep_fallback": "1"}
    assert "GroupNormalization" not in {node.op_type for node in session.model.graph.node}
    with pytest.raises(EngineError, match="sample is bound to no address"):
        engine.enqueue(0x5EED)
    bind_all(engine)
    engine.enqueue(0x5EED)
    engine.enqueue(0x5EED)
    (binding, first), (again, _) = session.runs
    assert binding is again
    assert first == "1"
    assert binding.bound["sample"] == ("cuda", 1, np.dtype("float32"), (2, 4, 4, 8, 8), 1 << 20)
    assert binding.bound["noise_pred"][-1] == 4 << 20
    assert engine.capture(0x5EED, lambda: None) is None
    assert engine.scratch_bytes == 0
    with pytest.raises(EngineError, match="sample cannot move once the network ran"):
        engine.bind("sample", 9 << 20)
    with pytest.raises(EngineError, match="another stream"):
        engine.enqueue(1)


def test_a_switched_motion_overwrites_every_motion_tensor_where_it_is(
    toy_bundle: Path, sessions: list[Session]
) -> None:
    engine = unet(toy_bundle)
    bind_all(engine)
    engine.enqueue(0x5EED)
    (session,) = sessions
    inputs = {value.name for value in session.model.graph.input}
    moving = {name for name in inputs if is_motion_tensor(name)}
    assert inputs - moving == {"sample", "timestep", "encoder_hidden_states"}
    assert not any(is_motion_tensor(tensor.name) for tensor in session.model.graph.initializer)
    ((binding, _),) = session.runs
    stored = {
        motion: read_weight_file(toy_bundle / "motions" / f"{motion}.safetensors").arrays()
        for motion in ("horse_run", "rain")
    }
    assert moving == stored["rain"].keys()
    assert not engine.set_motion("horse_run")
    for motion in ("horse_run", "rain", "horse_run"):
        assert not engine.set_motion(motion)  # addresses stay, so what was captured does
        for name in moving:
            (value,) = binding.bound[name]
            np.testing.assert_array_equal(value.array.ravel(), stored[motion][name].ravel())
    engine.enqueue(0x5EED)
    assert len(sessions) == 1
    assert session.runs[1][0] is binding
    with engine:
        engine.close()
    for use in (lambda: engine.enqueue(0x5EED), lambda: engine.set_motion("rain"), lambda: bind_all(engine)):
        with pytest.raises(EngineError, match="lamp_unet was closed"):
            use()


def test_a_switch_that_fails_half_way_runs_nothing_until_another_one_is_done(
    toy_bundle: Path, sessions: list[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = unet(toy_bundle)
    bind_all(engine)
    engine.enqueue(0x5EED)

    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(DeviceValue, "update_inplace", fail)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            engine.set_motion("rain")
    with pytest.raises(EngineError, match="no motion because a switch failed: set a motion"):
        engine.enqueue(0x5EED)
    assert engine.set_motion("rain")  # by a new session
    engine.enqueue(0x5EED)
    assert len(sessions) == 2


def test_without_the_provider_nothing_runs_on_the_cpu_instead(
    toy_bundle: Path, sessions: list[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "providers", ("CPUExecutionProvider",))
    with pytest.raises(EngineError, match=r"fell back to CPUExecutionProvider.*lamp-trt doctor"):
        unet(toy_bundle)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match=r"no CUDAExecutionProvider.*lamp-trt\[gpu\]"):
        unet(toy_bundle)


def test_a_graph_that_does_not_load_is_an_error_with_its_name(toy_bundle: Path) -> None:
    bundle = Bundle.open(toy_bundle)

    class NoModel:
        graph = onnx.GraphProto()

        def SerializeToString(self) -> bytes:
            return b"no model"

    with pytest.raises(EngineError, match="ONNX Runtime cannot load vae_decoder of "):
        new_session(bundle, "vae_decoder", NoModel(), ["CPUExecutionProvider"])
