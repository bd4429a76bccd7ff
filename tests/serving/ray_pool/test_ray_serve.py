# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E402 - imports that need what may be missing come after the skips
"""`lamp-trt serve --pool ray`, its config file, and engines that never start, each with Ray of its own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx, of the extra dev")

from lamp_trt.cli import main
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.media.image import encode_png
from lamp_trt.serving.ray_pool.cluster import OwnCluster, import_ray
from lamp_trt.serving.ray_pool.config import BUILDER, DEPLOYMENT, RayEngines
from lamp_trt.serving.ray_pool.pool import RayPool
from lamp_trt.serving.ray_pool.scratch import Scratch
from tests.doubles.sleeping_engine import FACTORY
from tests.serving.pool_conformance import Harness
from tests.serving.serving_process import Server, descendants, wait_until_dead

START_SECONDS = 240
FRAME = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs ray: pip install 'lamp-trt[ray]'")


def test_the_config_file_holds_the_engines_alone(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ray.yaml"
    options = ["--bundle", str(toy_bundle), "--device", "cuda", "--engines", "3", "--hang-timeout", "77"]
    assert main(["serve", *options, "--write-ray-config", str(file)]) == 0
    config = json.loads(file.read_text())
    (application,) = config["applications"]
    (deployment,) = application["deployments"]
    assert (config["proxy_location"], application["route_prefix"]) == ("Disabled", None)
    assert (application["import_path"], deployment["name"]) == (BUILDER, DEPLOYMENT)
    assert deployment["autoscaling_config"]["max_replicas"] == 3
    assert deployment["max_ongoing_requests"] == 1
    assert deployment["ray_actor_options"]["num_gpus"] == 1
    assert application["args"]["settings"]["expect_bundle"] == Bundle.open(toy_bundle).digest
    engines = RayEngines(**application["args"])
    assert engines.max_replicas == 3
    assert (engines.restart_policy().hang_seconds, engines.restart_policy().start_seconds) == (77, 77)
    assert capsys.readouterr().out.strip() == str(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pool", "ray"), "Give --num-threads"),
        (("--pool", "ray", "--device", "cuda:1"), "--device cuda"),
        (("--ray-address", "auto"), "needs --pool ray"),
        (("--pool", "ray", "--ray-address", "auto", "--engines", "2"), "as they were deployed"),
        (("--pool", "ray", "--ray-address", "auto", "--num-threads", "2"), "as they were deployed"),
        (("--pool", "ray", "--ray-address", "auto", "--hang-timeout", "9"), "as they were deployed"),
        (("--hang-timeout", "0"), "the hang timeout is 0"),
        (("--hang-timeout", "nan", "--pool", "ray", "--num-threads", "1"), "the hang timeout is nan"),
        (("--ray-address", "auto", "--write-ray-config", "x"), "give one of them"),
        (("--write-ray-config", "no/such/folder/x", "--num-threads", "1"), "cannot be written"),
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
    monkeypatch.setattr("lamp_trt.runtime.load.Place.of", lambda *_: None)
    assert main(["serve", "--bundle", str(toy_bundle), "--safety", "off", *options]) == 2
    assert message in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_ray_without_authentication_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(InputError, match="RAY_AUTH_MODE"):
        import_ray()


def test_the_files_of_a_killed_replica_are_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = "import os, signal; from lamp_trt.serving.ray_pool.scratch import Scratch; s = Scratch(); "
    code += "(s.folder / 'x.mp4').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    (root,) = tmp_path.iterdir()
    (killed,) = [path for path in root.iterdir() if path.is_dir()]
    living, second = Scratch(), Scratch()
    assert not killed.exists()
    assert living.folder.is_dir()
    for scratch in (living, second):
        scratch.remove()
    assert [path.name for path in root.iterdir()] == [".lock"]


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own code warns
def test_an_engine_that_never_starts_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    (tmp_path / "lost").touch()

    async def main() -> None:
        settings = {"fails_while": str(tmp_path / "lost")}
        pool = RayPool(OwnCluster(RayEngines(settings, factory=FACTORY), num_gpus=0))
        harness = Harness(pool, tmp_path)
        await pool.start(harness.events.append)
        try:
            async with asyncio.timeout(START_SECONDS):
                while pool.health()[0].state != "down":
                    await asyncio.sleep(0.1)
            assert pool.slots() == []
            assert "the GPU is lost" in str(pool.health()[0].reason)
        finally:
            await pool.close()

    asyncio.run(main())


@needs_ray
@pytest.mark.slow
def test_a_video_is_made_on_ray_and_nothing_is_left(toy_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lamp_trt", "serve", "--bundle", str(toy_bundle), "--port", "0"]
    command += ["--safety", "off", "--backend", "onnxruntime", "--num-threads", "1", "--pool", "ray"]
    command += ["--jobs-dir", str(tmp_path / "jobs"), "--model-name", "toy"]
    folders = {*Path("/tmp").glob("lamp-ray-*")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids: set[int] = set()
    try:
        line = process.stdout.readline()
        assert line.startswith("serving toy at http://127.0.0.1:"), line
        with httpx.Client(base_url=line.split()[3], timeout=60, trust_env=False) as http:
            server = Server(process, line.split()[3], http)
            server.health("ok", START_SECONDS)
            data = {"prompt": "rain", "seed": "5", "num_inference_steps": "2"}
            reply = http.post("/v1/videos", data=data, files={"input_reference": ("f", encode_png(FRAME))})
            assert reply.status_code == 200, reply.text
            video = reply.json()["id"]
            assert server.ended(video)["status"] == "completed"
            content = http.get(f"/v1/videos/{video}/content").content
            sidecar = http.get(f"/v1/videos/{video}/content?variant=settings").json()
            form = {"video": video, "prompt": "snow", "num_inference_steps": "2"}
            edit = http.post("/v1/videos/edits", files={name: (None, text) for name, text in form.items()})
            assert edit.status_code == 200, edit.text
            assert server.ended(edit.json()["id"])["status"] == "completed"
            edited = http.get(f"/v1/videos/{edit.json()['id']}/content?variant=settings").json()
            assert (edited["video"], edited["prompt"]) == (f"{video}.mp4", "snow")
            files = {"input_reference": ("f", encode_png(FRAME))}
            long = http.post("/v1/videos", data={**data, "num_inference_steps": "400"}, files=files).json()[
                "id"
            ]
            assert "event: preview" in http.get(f"/v1/videos/{long}/events?previews=1").text
            pids = {process.pid, *descendants(process.pid)}
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert wait_until_dead(pids) == set()
        assert {*Path("/tmp").glob("lamp-ray-*")} <= folders
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    import lamp_trt

    with lamp_trt.load(toy_bundle, backend="onnxruntime", num_threads=1) as pipe:
        own = pipe("rain", first_frame=FRAME, seed=5, num_inference_steps=2, safety="off")
        own.save(tmp_path / "own.mp4")
    assert sidecar == json.loads((tmp_path / "own.mp4.json").read_text())
    assert content == (tmp_path / "own.mp4").read_bytes()
