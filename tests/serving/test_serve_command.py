# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E402 - imports that need what may be missing come after the skips
"""`lamp-trt serve` on a real toy bundle, and its refusals."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx, of the extra dev")

import lamp_trt
from lamp_trt.cli import main
from lamp_trt.commands.serve import devices, model_info
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import GenerationConfig
from lamp_trt.runtime.edit import EditRequest, edit_video
from lamp_trt.runtime.media.image import encode_png
from lamp_trt.runtime.requests import ClipRequest
from lamp_trt.serving.settings import ServeSettings
from lamp_trt.serving.web.server import listen_at
from tests.serving.serving_process import Server, descendants, wait_until_dead

FRAME = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


def test_a_video_and_an_edit_over_http_have_the_sidecars_of_those_in_python(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where inversions are kept
    command = [sys.executable, "-m", "lamp_trt", "serve", "--bundle", str(toy_bundle), "--port", "0"]
    command += ["--safety", "off", "--backend", "onnxruntime", "--num-threads", "1"]
    command += ["--jobs-dir", str(tmp_path / "jobs"), "--model-name", "toy"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("serving toy at http://127.0.0.1:"), line
        with httpx.Client(base_url=line.split()[3], timeout=60, trust_env=False) as http:
            server = Server(process, line.split()[3], http)
            data = {"prompt": "rain", "seed": "5", "num_inference_steps": "2"}
            reply = http.post("/v1/videos", data=data, files={"input_reference": ("f", encode_png(FRAME))})
            assert reply.status_code == 200, reply.text
            video = reply.json()["id"]
            assert server.ended(video)["status"] == "completed"
            content = http.get(f"/v1/videos/{video}/content").content
            sidecar = http.get(f"/v1/videos/{video}/content?variant=settings").json()
            form = {"video": (None, video), "prompt": (None, "snow"), "num_inference_steps": (None, "2")}
            reply = http.post("/v1/videos/edits", files={**form, "seed": (None, "6")})
            assert reply.status_code == 200, reply.text
            edited = reply.json()["id"]
            events = http.get(f"/v1/videos/{edited}/events?previews=true").text
            assert "event: preview" in events
            assert '"stage": "invert"' in events
            edit_content = http.get(f"/v1/videos/{edited}/content").content
            edit_sidecar = http.get(f"/v1/videos/{edited}/content?variant=settings").json()
            refused = http.post("/v1/videos", json={"prompt": "no image"}).json()["error"]
            assert refused["param"] == "input_reference"
            (model,) = http.get("/v1/models").json()["data"]
            pids = {process.pid, *descendants(process.pid)}
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert wait_until_dead(pids) == set()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with lamp_trt.load(toy_bundle, backend="onnxruntime", num_threads=1) as pipe:
        own = pipe("rain", first_frame=FRAME, seed=5, num_inference_steps=2, safety="off")
        own.save(tmp_path / "own.mp4")
        config = GenerationConfig(seed=6, num_inference_steps=2, safety="off")
        edit = edit_video(pipe, EditRequest("snow", ClipRequest(tmp_path / "own.mp4"), config))
        edit.save(tmp_path / "edit.mp4")
    assert sidecar == json.loads((tmp_path / "own.mp4.json").read_text())
    assert content == (tmp_path / "own.mp4").read_bytes()
    assert edit_content == (tmp_path / "edit.mp4").read_bytes()
    own_edit = json.loads((tmp_path / "edit.mp4.json").read_text())
    assert own_edit["video"] == str(tmp_path / "own.mp4")
    assert edit_sidecar == {**own_edit, "video": f"{video}.mp4"}
    assert (model["safety"], model["has_safety_checker"]) == ("off", False)


def serve(*options: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["serve", *options]) == 2
    return capsys.readouterr().err


def test_a_bundle_without_a_checker_is_served_only_when_told(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--bundle", str(toy_bundle), "--jobs-dir", str(tmp_path / "jobs"))
    for safety in ((), ("--safety", "refuse"), ("--safety", "report")):
        assert "--safety off" in serve(*options, *safety, capsys=capsys)
    assert not (tmp_path / "jobs").exists()
    bundle = Bundle.open(toy_bundle)
    assert model_info(bundle, None, "off").safety == "off"
    assert model_info(bundle, None, "off").name == toy_bundle.name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "0.0.0.0"), "--token-file"),
        (("--host", "::"), "--token-file"),
        (("--host", "example.org"), "--token-file"),
        (("--engines", "0"), "engines is 0"),
        (("--max-queued", "0"), "max_queued is 0"),
        (("--job-ttl", "0"), "job_ttl is 0"),
        (("--job-ttl", "nan"), "job_ttl is nan"),
        (("--port", "65536"), "port is 65536"),
        (("--token-file", "/no/such/file"), "/no/such/file"),
        (("--host", "192.0.2.1", "--token-file", "token"), "cannot be listened on"),
        (("--host", "a" * 64, "--token-file", "token"), "no name or address"),
        (("--host", "", "--token-file", "token"), "no name or address"),
        (("--host", "http://127.0.0.1", "--token-file", "token"), "no name or address"),
        (("--allowed-host", "http://lamp.example"), "no name or address"),
        (("--allowed-host", "lamp.example:8000"), "no name or address"),
        (("--allowed-host", "bücher.example"), "no name or address"),
        (("--allowed-host", ""), "no name or address"),
        (("--model-name", "x\udc80"), "--model-name"),
        (("--model-name", "two\nlines"), "--model-name"),
        (("--model-name", ""), "--model-name"),
        (("--token-file", "utf16"), "UTF-16"),
    ],
    ids=str,
)
def test_options_that_cannot_be_used_are_refused(
    toy_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("token").write_text("0123456789abcdef\n")
    Path("utf16").write_text("0123456789abcdef\n", encoding="utf-16")
    assert message in serve("--bundle", str(toy_bundle), "--safety", "off", *options, capsys=capsys)
    assert not Path("lamp-trt-jobs").exists()


@pytest.mark.parametrize("text", ["", "short", "two words of token text", "ä" * 20, "line\nof two lines 123"])
def test_a_token_is_long_and_printable(tmp_path: Path, text: str) -> None:
    from lamp_trt.serving.settings import read_token

    (tmp_path / "token").write_text(text)
    with pytest.raises(InputError, match="openssl"):
        read_token(tmp_path / "token")


@pytest.mark.parametrize("encoded", [b"0123456789abcdef", b"\xef\xbb\xbf0123456789abcdef\r\n"])
def test_a_token_is_read_as_editors_write_it(tmp_path: Path, encoded: bytes) -> None:
    from lamp_trt.serving.settings import read_token

    (tmp_path / "token").write_bytes(encoded)
    assert read_token(tmp_path / "token") == "0123456789abcdef"


@pytest.mark.parametrize(
    "host", ["lamp", "lamp.example.", "10.0.0.7", "[fd00::7]", "fd00::7", "my_box", "Lamp"]
)
def test_names_of_hosts_are_taken(tmp_path: Path, host: str) -> None:
    from lamp_trt.serving.settings import ServeSettings

    settings = ServeSettings(tmp_path, allowed_hosts=(host,))
    assert host.lower().strip("[]") in settings.hosts


def test_engines_are_spread_over_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert devices("cuda", None) == ["cuda:0", "cuda:1"]
    assert devices("cuda", 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices("cuda:1", 2) == ["cuda:1", "cuda:1"]
    assert devices("auto", None) == ["auto"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices("cuda", None) == ["cuda:0"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_small_replies_are_sent_at_once(tmp_path: Path, host: str) -> None:
    with (
        listen_at(ServeSettings(tmp_path, host=host, port=0)) as listening,
        socket.create_connection(listening.getsockname()[:2]),
        listening.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
