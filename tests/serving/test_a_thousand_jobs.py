# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E402 - imports that need what may be missing come after the skips
"""A thousand videos by the real command over a small bundle, by clients that wait, leave and delete."""

import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx, of the extra dev")

from lamp_trt.runtime.media.image import encode_png
from tests.serving.serving_process import Server, descendants, wait_until_dead

pytestmark = pytest.mark.slow

JOBS, WARM_UP, CLIENTS = 1000, 300, 6
RAY_START_SECONDS = 240
GROWTH = 0.05
"""Of the resident memory of each process after the warm-up."""
FRAME = encode_png(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
FORM = {"prompt": "rain", "num_inference_steps": "1"}


@contextmanager
def serving(bundle: Path, jobs: Path, pool: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "lamp_trt", "serve", "--bundle", str(bundle), "--port", "0"]
    command += ["--safety", "off", "--num-threads", "1", "--jobs-dir", str(jobs), "--max-queued", "100"]
    command += ["--pool", pool]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().split()[3]
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as http:
            yield Server(process, url, http)
            pids = {process.pid, *descendants(process.pid)}
        process.terminate()
        process.wait(30 if pool == "local" else 60)  # Ray has processes of its own to end
        assert wait_until_dead(pids) == set()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Visitor:
    """A client that makes one job in one of several ways. counts: by way and end."""

    def __init__(self, server: Server, motions: list[str]) -> None:
        self._server, self._motions = server, motions
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def visit(self, number: int) -> None:
        choice = random.Random(number)
        way = choice.choice(("wait", "sync", "leave sync", "cancel", "leave events", "watch"))
        form = {**FORM, "motion": choice.choice(self._motions), "seed": str(number)}
        end = self._made(way, form, choice.random() * 0.2)
        with self._lock:
            self.counts[f"{way}: {end}"] += 1

    def _made(self, way: str, form: dict[str, str], moment: float) -> str:
        http = self._server.http
        files = {"input_reference": ("frame.png", FRAME)}
        if way in ("sync", "leave sync"):
            timeout = 120 if way == "sync" else moment
            try:
                reply = http.post("/v1/videos/sync", data=form, files=files, timeout=timeout)
            except httpx.TimeoutException:
                return "left"
            assert reply.status_code == 200, reply.text
            assert reply.content[4:8] == b"ftyp"
            http.delete(f"/v1/videos/{reply.headers['x-video-id']}")
            return "completed"
        reply = http.post("/v1/videos", data=form, files=files)
        assert reply.status_code == 200, reply.text
        video = reply.json()["id"]
        if way == "leave events":
            address = f"/v1/videos/{video}/events?stop_on_leave=true"
            with suppress(httpx.TimeoutException), http.stream("GET", address, timeout=moment) as events:
                next(events.iter_lines(), None)
            http.delete(f"/v1/videos/{video}")
            return "left"
        if way == "cancel":
            threading.Event().wait(moment)
        else:
            if way == "watch":
                text = http.get(f"/v1/videos/{video}/events?previews=true").text
                assert "event: completed" in text, text[-500:]
            assert self._server.ended(video, 300)["status"] == "completed"
        assert http.delete(f"/v1/videos/{video}").status_code == 200
        return "deleted"


@dataclass(frozen=True)
class State:
    """A process: resident bytes, open files, and sockets."""

    resident: int
    files: int
    sockets: int

    @classmethod
    def of(cls, pid: int) -> "State":
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        opened = []
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                opened.append(os.readlink(fd))
        sockets = sum(name.startswith("socket:") for name in opened)
        return cls(pages * os.sysconf("SC_PAGE_SIZE"), len(opened) - sockets, sockets)


def test_on_the_local_pool(toy_bundle: Path, tmp_path: Path) -> None:
    with serving(toy_bundle, tmp_path / "jobs", "local") as server:
        server.health("ok")
        processes = server.processes()
        check_a_thousand_jobs(server, tmp_path / "jobs", processes)
        assert server.processes() == processes


@pytest.mark.skipif(find_spec("ray") is None, reason="needs ray: pip install 'lamp-trt[ray]'")
def test_on_ray(toy_bundle: Path, tmp_path: Path) -> None:
    """Ray starts and ends processes of its own as it likes."""
    folders = {*Path("/tmp").glob("lamp-ray-*")}
    with serving(toy_bundle, tmp_path / "jobs", "ray") as server:
        server.health("ok", RAY_START_SECONDS)
        replicas = {pid for pid in server.processes() if command_line(pid).startswith("ray::ServeReplica")}
        assert len(replicas) == 1
        check_a_thousand_jobs(server, tmp_path / "jobs", {server.process.pid, *replicas})
    assert {*Path("/tmp").glob("lamp-ray-*")} <= folders


def command_line(pid: int) -> str:
    with suppress(OSError):  # it has ended meanwhile
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def check_a_thousand_jobs(server: Server, jobs: Path, processes: set[int]) -> None:
    """`processes` do not grow, and no file is left but those of the last video."""
    visitor = Visitor(server, server.http.get("/v1/models").json()["data"][0]["motions"])
    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(visitor.visit, range(WARM_UP)))
        before = {pid: State.of(pid) for pid in processes}
        list(clients.map(visitor.visit, range(WARM_UP, JOBS)))
    ways = visitor.counts
    print(dict(sorted(ways.items())))
    assert ways.total() == JOBS
    assert ways["leave sync: left"] > 10
    for video in server.http.get("/v1/videos?limit=100").json()["data"]:
        server.http.delete(f"/v1/videos/{video['id']}")
    health = server.health("ok")
    assert health["queued"] == 0
    assert [engine["restarts"] for engine in health["engines"]] == [0]
    last = server.http.post("/v1/videos", data=FORM, files={"input_reference": ("frame.png", FRAME)})
    assert server.ended(last.json()["id"])["status"] == "completed"
    for pid, was in before.items():
        now = State.of(pid)
        print(pid, was, now)
        assert now.resident < (1 + GROWTH) * was.resident
        assert now.files <= was.files
        assert now.sockets <= was.sockets + CLIENTS + 1  # connections that clients keep
    assert len(list((jobs / "files").iterdir())) == 2
