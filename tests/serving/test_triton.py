# SPDX-License-Identifier: Apache-2.0
"""The Triton model repository: its files, and the real tritonserver of the nvidia-pytriton wheel with it."""

import importlib.util
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lamp_trt
from lamp_trt.cli import main
from lamp_trt.engine.errors import InputError
from lamp_trt.serving.triton.model import TritonPythonModel, model_from_json, request_fields
from lamp_trt.serving.triton.repository import config_text
from tests.serving.serving_process import descendants, wait_until_dead

FRAME = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
START_SECONDS = 240


def has_server() -> bool:
    return all(importlib.util.find_spec(name) for name in ("pytriton", "tritonclient"))


needs_server = pytest.mark.skipif(
    not has_server(), reason="needs a real tritonserver: pip install nvidia-pytriton 'tritonclient[grpc]'"
)


def export(bundle: Path, repository: Path, *options: str) -> int:
    return main(["export-triton", str(bundle), str(repository), "--safety", "off", *options])


def test_a_repository_is_written_once(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(toy_bundle, tmp_path / "repo", "--model-name", "toy", "--num-threads", "1") == 0
    folder = tmp_path / "repo" / "toy"
    assert capsys.readouterr().out.strip() == str(folder)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["1/lamp.json", "1/model.py", "config.pbtxt"]
    settings = json.loads((folder / "1/lamp.json").read_text())
    assert model_from_json(settings["model"]).motions == ("horse_run", "rain")
    assert settings["engine"]["placement"]["num_threads"] == 1
    assert export(toy_bundle, tmp_path / "repo", "--model-name", "toy") == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "engines", "expected"),
    [
        ("cpu", None, "{ count: 1 kind: KIND_CPU }"),
        ("auto", 3, "{ count: 3 kind: KIND_CPU }"),
        ("cuda", None, "{ count: 1 kind: KIND_GPU }"),
        ("cuda:2", None, "{ count: 1 kind: KIND_GPU gpus: [ 2 ] }"),
    ],
)
def test_there_is_one_instance_for_each_gpu(device: str, engines: int | None, expected: str) -> None:
    text = config_text("toy", device, engines, 8)
    assert f"instance_group [ {expected} ]" in text
    assert "max_queue_size: 8" in text


@pytest.mark.parametrize(
    ("name", "device", "engines", "queued", "message"),
    [
        ('a"b', "cpu", None, 8, "model's name"),
        ("../a", "cpu", None, 8, "model's name"),
        ("a", "cpu", 0, 8, "engines is 0"),
        ("a", "cuda", 2, 8, "engines is 2"),
        ("a", "cpu", 1, 0, "max_queued is 0"),
    ],
)
def test_what_triton_would_refuse_is_refused(
    name: str, device: str, engines: int | None, queued: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        config_text(name, device, engines, queued)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"prompt": b"\xff"}, "prompt is not UTF-8"),
        ({"settings": b"{"}, "settings is not JSON"),
        ({"settings": b"[]"}, "not a JSON object"),
        ({"settings": b'{"a": 1, "a": 2}'}, "settings is not JSON"),
    ],
)
def test_inputs_that_cannot_be_read_are_refused(tensors: dict[str, bytes], message: str) -> None:
    with pytest.raises(InputError, match=message):
        request_fields(tensors)


def test_inputs_become_the_fields_of_the_http_api() -> None:
    tensors = {"prompt": "nä".encode(), "seed": np.uint64(2**63), "settings": b'{"num_inference_steps": 2}'}
    assert request_fields(tensors) == {"prompt": "nä", "seed": 2**63, "num_inference_steps": 2}


class Backend:
    """A double of triton_python_backend_utils, and of the request and the sender of one video."""

    class TritonError(Exception):
        CANCELLED, INVALID_ARG, INTERNAL = "cancelled", "invalid", "internal"

        def __init__(self, message: str, code: str) -> None:
            super().__init__(message)
            self.code = code

    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

    def __init__(self, inputs: Mapping[str, Any], cancel_after: int | None = None) -> None:
        self.inputs, self._cancel_after = inputs, cancel_after
        self.sent: list[tuple[Any, int]] = []

    def Tensor(self, name: str, array: Any) -> tuple[str, Any]:
        return name, array

    def InferenceResponse(self, tensors: Any = (), error: Any = None) -> Any:
        return error or dict(tensors)

    def get_input_tensor_by_name(self, request: "Backend", name: str) -> Any:
        found = request.inputs.get(name)
        return None if found is None else SimpleNamespace(as_numpy=lambda: found)

    def get_response_sender(self) -> "Backend":
        return self

    def send(self, response: Any, flags: int = 0) -> None:
        self.sent.append((response, flags))

    def is_cancelled(self) -> bool:
        return self._cancel_after is not None and len(self.sent) >= self._cancel_after


@pytest.mark.parametrize(
    ("settings", "cancel_after", "code"),
    [
        (b'{"num_inference_steps": 3}', None, None),
        (b'{"num_inference_steps": 500}', 3, "cancelled"),
        (b'{"num_inference_steps": 0}', None, "invalid"),
        (b'{"no_such_setting": 0}', None, "invalid"),
    ],
)
def test_each_request_ends_with_one_last_response(
    toy_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: bytes,
    cancel_after: int | None,
    code: str | None,
) -> None:
    export(toy_bundle, tmp_path / "repo", "--model-name", "toy", "--num-threads", "1")
    inputs = {"prompt": np.array([b"rain"], np.object_), "first_frame": FRAME}
    backend = Backend({**inputs, "settings": np.array([settings], np.object_)}, cancel_after)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    model = TritonPythonModel()
    folder = str(tmp_path / "repo" / "toy")
    model.initialize({"model_repository": folder, "model_version": "1", "model_instance_kind": "CPU"})
    model.execute([backend])
    model.finalize()
    assert [flags for _, flags in backend.sent] == [0] * (len(backend.sent) - 1) + [1]
    last = backend.sent[-1][0]
    assert getattr(last, "code", None) == code
    if code is None:
        assert last["frames"].shape == (4, 64, 64, 3)
        assert [float(each["progress"][0]) for each, _ in backend.sent][-2:] == [1.0, 1.0]
    else:
        assert len(backend.sent) <= (cancel_after or 0) + 2


# --- the real server --------------------------------------------------------------------------------------


@dataclass
class Triton:
    url: str
    command: list[str]
    environment: dict[str, str]

    def video(self, cancel_after: int | None = None, **values: Any) -> tuple[list[float], Any, str | None]:
        """Progress, frames with settings (None unless completed), and the error."""
        import tritonclient.grpc as grpc

        inputs = []
        for name, value in values.items():
            text = isinstance(value, str)
            array = np.array([value.encode()], np.object_) if text else np.asarray(value)
            kind = "BYTES" if text else {"uint8": "UINT8", "uint64": "UINT64"}[array.dtype.name]
            inputs.append(grpc.InferInput(name, [*array.shape], kind))
            inputs[-1].set_data_from_numpy(array)
        answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        progress: list[float] = []
        with grpc.InferenceServerClient(self.url) as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            client.async_stream_infer("toy", inputs, enable_empty_final_response=True)
            while True:
                result, error = answers.get(timeout=120)
                if error is not None:
                    client.stop_stream()
                    return progress, None, str(error)
                if result.as_numpy("frames").size:
                    client.stop_stream()
                    settings = json.loads(result.as_numpy("settings_json")[0])
                    return progress, (result.as_numpy("frames"), settings), None
                progress.append(float(result.as_numpy("progress")[0]))
                if cancel_after is not None and len(progress) >= cancel_after:
                    client.stop_stream(cancel_requests=True)
                    return progress, None, "left"

    def watchdog(self, *options: str) -> list[str]:
        module = [sys.executable, "-m", "lamp_trt.serving.triton.watchdog"]
        return [*module, "--url", self.url, "--model", "toy", "--start", str(START_SECONDS), *options]


@pytest.fixture(scope="module")
def triton(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Triton:
    """What starts the wheel's tritonserver on a repository with one instance of a toy bundle."""
    folder = tmp_path_factory.mktemp("triton")
    assert (
        export(
            toy_bundle,
            folder / "repo",
            *("--model-name", "toy", "--num-threads", "1", "--backend", "onnxruntime"),
        )
        == 0
    )
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    server, python = package / "tritonserver", f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(server / "backends" / "python", folder / "backends" / "python")
    stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
    shutil.copy(stub, folder / "backends" / "python")
    http, grpc_port = free_port(), free_port()
    libraries = f"{sysconfig.get_config_var('LIBDIR')}:{package.parent / 'nvidia_pytriton.libs'}"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": libraries,
        "PYTHONPATH": os.pathsep.join(each for each in sys.path if each),
    }
    command = [str(server / "bin" / "tritonserver"), "--model-repository", str(folder / "repo")]
    command += ["--backend-directory", str(folder / "backends"), "--allow-metrics", "false"]
    command += ["--http-address", "127.0.0.1", "--http-port", str(http)]
    command += ["--grpc-address", "127.0.0.1", "--grpc-port", str(grpc_port)]
    return Triton(f"127.0.0.1:{grpc_port}", command, environment)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(triton: Triton, command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A server, or a watchdog that starts one, in a process group of its own, of which nothing is left."""
    from lamp_trt.serving.triton.watchdog import Watch, wait_until_ready

    process = subprocess.Popen(command, env=triton.environment, start_new_session=True)
    try:
        assert wait_until_ready(Watch(triton.url, "toy", start=START_SECONDS), process) is None
        yield process
    finally:
        pids = {process.pid, *descendants(process.pid)}
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        left = wait_until_dead(pids)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left


def stub_of(pid: int) -> int:
    stubs = [
        each
        for each in descendants(pid)
        if b"triton_python_backend_stub" in Path(f"/proc/{each}/cmdline").read_bytes()
    ]
    assert len(stubs) == 1
    return stubs[0]


@needs_server
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # tritonclient's own code warns
def test_videos_of_a_real_server(triton: Triton, toy_bundle: Path) -> None:
    with running(triton, triton.command) as process:
        wanted = {"prompt": "rain", "motion": "rain", "seed": np.array([5], np.uint64), "first_frame": FRAME}
        progress, made, error = triton.video(**wanted, settings='{"num_inference_steps": 4}')
        assert error is None
        assert progress[0] == 0.0
        assert progress == sorted(progress)
        with lamp_trt.load(toy_bundle, backend="onnxruntime", num_threads=1) as pipe:
            own = pipe("rain", motion="rain", first_frame=FRAME, seed=5, num_inference_steps=4, safety="off")
        frames, settings = made
        assert np.array_equal(frames, own.frames)
        assert settings == json.loads(json.dumps(own.settings))
        for change, message in (
            ({"motion": "zzz"}, "choose one of horse_run, rain"),
            ({"settings": '{"safety": "off"}'}, "safety is set by the server"),
            ({"settings": "["}, "not JSON"),
            ({"prompt": " "}, "prompt is empty"),
        ):
            assert message in str(triton.video(**{**wanted, **change})[2]), message
        assert triton.video(prompt="x", settings='{"num_inference_steps": 2}')[2] is not None  # no image
        long = {**wanted, "settings": '{"num_inference_steps": 500}'}
        assert triton.video(cancel_after=3, **long)[2] == "left"
        assert triton.video(**wanted, settings='{"num_inference_steps": 1}')[2] is None
        good = subprocess.run(triton.watchdog("--once"), env=triton.environment, check=False)
        assert good.returncode == 0
        os.kill(stub_of(process.pid), signal.SIGKILL)
        bad = subprocess.run(
            triton.watchdog("--once"), env=triton.environment, check=False, capture_output=True, text=True
        )
        assert bad.returncode == 1
        assert "a video failed" in bad.stderr


@needs_server
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_watchdog_starts_the_server_again(triton: Triton) -> None:
    command = triton.watchdog("--every", "1", "--max-restarts", "2", "--", *triton.command)
    with running(triton, command) as watchdog:
        killed = stub_of(watchdog.pid)
        os.kill(killed, signal.SIGKILL)
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert time.monotonic() < deadline
            time.sleep(0.5)
            if made_or_not(triton)[1] is not None:
                break
        assert stub_of(watchdog.pid) != killed


def made_or_not(triton: Triton) -> tuple[list[float], Any, str | None]:
    from tritonclient.utils import InferenceServerException

    try:
        return triton.video(prompt="rain", first_frame=FRAME, settings='{"num_inference_steps": 1}')
    except (InferenceServerException, queue.Empty) as error:
        return [], None, str(error)
