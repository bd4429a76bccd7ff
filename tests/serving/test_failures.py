# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E402 - imports that need what may be missing come after the skips
"""The server's behaviour under failure: full queues, clients that leave, killed engines and fronts."""

import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx, of the extra dev")

from lamp_trt.runtime.media.image import encode_png
from tests.serving.serving_process import Server, sleeping_server, wait_until_dead

SLOW = {"step_seconds": 0.1, "steps": 600}


def log_lines(path: Path, word: str) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith(word)] if path.exists() else []


def wait_for(path: Path, word: str, seconds: float = 30) -> str:
    deadline = time.monotonic() + seconds
    while not (lines := log_lines(path, word)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return lines[0]


def test_a_full_queue_is_refused_at_once(tmp_path: Path) -> None:
    with sleeping_server(tmp_path / "jobs", settings=SLOW, max_queued=8) as server:
        server.health("ok")
        replies = [server.http.post("/v1/videos", json={"prompt": "x"}) for _ in range(14)]
        codes = [reply.status_code for reply in replies]
        assert codes == [200] * 9 + [429] * 5  # one runs, eight wait
        assert all(int(reply.headers["retry-after"]) > 0 for reply in replies[9:])
        assert replies[-1].json()["error"]["code"] == "queue_full"
        assert server.metric('lamp_trt_refused_total{code="queue_full"}') == 5
        for reply in replies[:9]:
            server.http.delete(f"/v1/videos/{reply.json()['id']}")
        server.health("ok")
        assert server.metric("lamp_trt_queue_length") == 0


@pytest.mark.parametrize("way", ["delete", "sync", "events"])
def test_leaving_or_deleting_stops_the_engine_within_a_step(tmp_path: Path, way: str) -> None:
    log = tmp_path / "log"
    with sleeping_server(tmp_path / "jobs", settings={**SLOW, "log": str(log)}) as server:
        server.health("ok")
        if way == "sync":
            with pytest.raises(httpx.ReadTimeout):
                server.http.post("/v1/videos/sync", json={"prompt": "x"}, timeout=0.7)
        else:
            video = server.create()["id"]
            wait_for(log, "step")
            if way == "delete":
                server.http.delete(f"/v1/videos/{video}")
            else:
                path = f"/v1/videos/{video}/events?stop_on_leave=true"
                with server.http.stream("GET", path) as reply:
                    next(reply.iter_raw())
        steps = len(log_lines(log, "step"))
        stopped = wait_for(log, "cancelled")
        assert int(stopped.split()[-1]) <= steps + 2
        second = server.create("next")
        server.until(second["id"], ("in_progress",))
        assert [*(tmp_path / "jobs" / "files").iterdir()] == []


def test_a_job_goes_on_when_its_events_are_left(tmp_path: Path) -> None:
    with sleeping_server(tmp_path / "jobs", settings={"step_seconds": 0.1}) as server:
        server.health("ok")
        video = server.create()["id"]
        with server.http.stream("GET", f"/v1/videos/{video}/events") as reply:
            next(reply.iter_raw())
        assert server.ended(video)["status"] == "completed"


def test_a_killed_engine_costs_one_retry_and_then_fails(tmp_path: Path) -> None:
    """At every phase: before the first step, between steps, while the file is written, after it."""
    stages = ("begin", "denoise", "save", "end")
    with sleeping_server(tmp_path / "jobs", engines=2) as server:
        server.health("ok")
        for stage in stages:
            once = server.create(f"kill at {stage}")["id"]
            assert server.ended(once)["status"] == "completed", stage
            always = server.ended(server.create(f"kill at {stage} always")["id"])
            assert (always["status"], always["error"]["code"]) == ("failed", "engine_died"), stage
            assert server.ended(server.create("after it")["id"])["status"] == "completed"
        assert server.metric("lamp_trt_retries_total") == 2 * len(stages)
        server.health("ok")
        names = {path.name for path in (tmp_path / "jobs" / "files").iterdir()}
        assert {name.partition(".")[2] for name in names} == {"mp4", "mp4.json"}
        assert len(names) == 2 * 2 * len(stages)


def test_a_hung_engine_fails_its_job_once_and_a_deleted_one_frees_it(tmp_path: Path) -> None:
    with sleeping_server(tmp_path / "jobs", engines=2, hang_seconds=2) as server:
        server.health("ok")
        deleted, hung = (server.create(f"hang at {stage}")["id"] for stage in ("begin", "denoise"))
        server.until(deleted, ("in_progress",))
        server.http.delete(f"/v1/videos/{deleted}")
        ended = server.ended(hung)
        assert (ended["status"], ended["error"]["code"]) == ("failed", "engine_hung")
        assert "made no step for 2 s" in ended["error"]["message"]
        assert server.ended(server.create("after it")["id"])["status"] == "completed"
        server.health("ok")
        assert server.metric("lamp_trt_retries_total") == 0
        assert [server.metric(f'lamp_trt_engine_restarts_total{{engine="{i}"}}') for i in (0, 1)] == [1, 1]
        assert server.metric('lamp_trt_jobs_total{outcome="engine_hung"}') == 1


def test_an_engine_that_cannot_load_is_restarted_a_bounded_number_of_times(tmp_path: Path) -> None:
    flag = tmp_path / "lost"
    flag.touch()
    settings = {"fails_while": str(flag)}
    with sleeping_server(tmp_path / "jobs", settings=settings, max_failures=4) as server:
        video = server.create()["id"]
        health = server.health("down")
        assert [each["restarts"] for each in health["engines"]] == [3]
        assert server.http.get("/health").status_code == 503
        assert server.ended(video)["error"]["code"] == "no_engine"
        refused = server.http.post("/v1/videos", json={"prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_engine")


def test_a_lost_gpu_degrades_health_and_others_serve(tmp_path: Path) -> None:
    flag = tmp_path / "lost"
    with sleeping_server(tmp_path / "jobs", engines=2, settings={"fails_while": str(flag)}) as server:
        server.health("ok")
        flag.touch()
        video = server.create("kill at begin")["id"]
        assert server.ended(video)["status"] == "completed"
        health = server.health("degraded")
        states = {each["state"] for each in health["engines"]}
        assert "idle" in states
        assert states & {"starting", "restarting", "down"}
        assert server.http.get("/health").status_code == 200
        flag.unlink()
        server.health("ok")


@pytest.mark.parametrize(
    ("prompt", "code", "status"),
    [
        ("refuse", "content_policy", 400),
        ("no space", "out_of_space", 500),
        ("break", "engine_error", 500),
    ],
)
def test_what_an_engine_reports_is_the_jobs_error(
    shared_server: Server, prompt: str, code: str, status: int
) -> None:
    ended = shared_server.ended(shared_server.create(prompt)["id"])
    assert (ended["status"], ended["error"]["code"]) == ("failed", code)
    reply = shared_server.http.post("/v1/videos/sync", json={"prompt": prompt})
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sleeping_server(tmp_path_factory.mktemp("jobs")) as server:
        yield server


def test_a_killed_front_leaves_no_process_and_finished_jobs_survive(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    settings = {"step_seconds": 0.05, "steps": 10}
    with sleeping_server(jobs, settings=settings) as server:
        server.health("ok")
        done = server.create("done")["id"]
        server.ended(done)
        running, queued = (server.create(name)["id"] for name in ("running", "queued"))
        server.until(running, ("in_progress",))
        processes = server.processes()
        assert len(processes) >= 3  # the front, an engine, the decoder
        server.kill()
        assert wait_until_dead(processes) == set()
    with sleeping_server(jobs, settings=settings) as server:
        assert server.get(done)["status"] == "completed"
        assert server.http.get(f"/v1/videos/{done}/content").content.endswith(b"done")
        interrupted = server.get(running)
        assert (interrupted["status"], interrupted["error"]["code"]) == ("failed", "interrupted")
        assert server.ended(queued)["status"] == "completed"
        names = {path.name.partition(".")[0] for path in (jobs / "files").iterdir()}
        assert names == {done, queued}


def test_old_jobs_expire_with_their_files(tmp_path: Path) -> None:
    with sleeping_server(tmp_path / "jobs", job_ttl=1.0) as server:
        video = server.create()["id"]
        server.ended(video)
        deadline = time.monotonic() + 20
        while server.http.get(f"/v1/videos/{video}").status_code != 404:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert [*(tmp_path / "jobs" / "files").iterdir()] == []


def test_a_jobs_folder_has_one_server(tmp_path: Path) -> None:
    from lamp_trt.engine.errors import InputError
    from lamp_trt.serving.jobs.store import JobStore

    store = JobStore(tmp_path / "jobs")
    with pytest.raises(InputError, match="another server"):
        JobStore(tmp_path / "jobs")
    store.close()
    JobStore(tmp_path / "jobs").close()
    assert (tmp_path / "jobs").stat().st_mode & 0o777 == 0o700


def test_sigterm_stops_everything_while_a_video_is_made(tmp_path: Path) -> None:
    with sleeping_server(tmp_path / "jobs", settings=SLOW) as server:
        server.health("ok")
        server.create()
        processes = server.processes()
        os.kill(server.process.pid, signal.SIGTERM)
        assert wait_until_dead(processes) == set()


def limit_files(pids: set[int], size: int) -> None:
    """Writes past `size` bytes of a file fail for these processes, as on a full disk. -1: no limit."""
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, -1))


def test_a_full_disk_refuses_and_fails_and_is_survived(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    with sleeping_server(jobs, settings={"step_seconds": 0.1}) as server:
        server.health("ok")
        kept = server.create("kept")["id"]
        server.ended(kept)
        running = server.create("running")["id"]
        server.until(running, ("in_progress",))
        processes = server.processes()
        limit_files(processes, 0)
        refused = server.http.post("/v1/videos", json={"prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "out_of_space")
        image = {"input_reference": ("x.png", encode_png(np.zeros((64, 96, 3), np.uint8)))}
        refused = server.http.post("/v1/videos", data={"prompt": "x"}, files=image)
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "out_of_space")
        assert server.ended(running)["error"]["code"] == "out_of_space"
        limit_files(processes, -1)
        assert server.ended(server.create("after it")["id"])["status"] == "completed"
        assert server.get(kept)["status"] == "completed"
        assert server.metric("lamp_trt_queue_length") == 0
        assert not [path for path in (jobs / "files").iterdir() if path.suffix == ".npy"]
