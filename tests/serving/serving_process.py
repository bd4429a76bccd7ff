# SPDX-License-Identifier: Apache-2.0
"""A server of sleeping engines in a process of its own: python -m tests.serving.serving_process JSON"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from lamp_trt.serving.pools.local_pool import LocalPool
from lamp_trt.serving.pools.restarts import RestartPolicy
from lamp_trt.serving.settings import Limits, ModelInfo, ServeSettings
from lamp_trt.serving.web.server import serve
from tests.doubles.sleeping_engine import FACTORY

ROOT = Path(__file__).parents[2]
MODEL = ModelInfo("toy", ("a", "b"), "a", (64, 96), 4, "off", False, True, "0" * 64)


@dataclass
class Server:
    process: "subprocess.Popen[str]"
    url: str
    http: httpx.Client

    def create(self, prompt: str = "rain", **fields: Any) -> dict[str, Any]:
        reply = self.http.post("/v1/videos", json={"prompt": prompt, **fields})
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    def get(self, video: str) -> dict[str, Any]:
        return dict(self.http.get(f"/v1/videos/{video}").json())

    def ended(self, video: str, seconds: float = 60) -> dict[str, Any]:
        return self.until(video, ("completed", "failed"), seconds)

    def until(self, video: str, statuses: tuple[str, ...], seconds: float = 60) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while (now := self.get(video)).get("status") not in statuses:
            assert time.monotonic() < deadline, now
            time.sleep(0.02)
        return now

    def health(self, status: str, seconds: float = 60) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while (now := self.http.get("/health").json())["status"] != status:
            assert time.monotonic() < deadline, now
            time.sleep(0.05)
        return dict(now)

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).rpartition(" ")[2])

    def processes(self) -> set[int]:
        """The server's processes, its own included."""
        return {self.process.pid, *descendants(self.process.pid)}

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def descendants(pid: int) -> set[int]:
    found = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child, *descendants(child)}
    return found


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists() and not _is_zombie(pid)}


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@contextmanager
def sleeping_server(
    jobs_dir: Path, engines: int = 1, settings: Mapping[str, Any] | None = None, **options: Any
) -> Iterator[Server]:
    """A server whose engines have `settings`. options: of ServeSettings, and max_failures and
    hang_seconds of the engines. All its processes end with it."""
    request = {
        "jobs_dir": str(jobs_dir),
        "engines": {str(index): dict(settings or {}) for index in range(engines)},
        "options": options,
    }
    command = [sys.executable, "-m", "tests.serving.serving_process", json.dumps(request)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    pids: set[int] = set()
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://"), url
        headers = {"Authorization": f"Bearer {options['token']}"} if options.get("token") else {}
        with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as http:
            yield Server(process, url, http)
            pids = {process.pid, *descendants(process.pid)}
    finally:
        pids |= {process.pid, *descendants(process.pid)}
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(30)
        finally:
            process.stdout.close()
            left = wait_until_dead(pids)
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        assert not left, "processes of the server outlived it"


def wait_until_dead(pids: set[int], seconds: float = 20) -> set[int]:
    deadline = time.monotonic() + seconds
    while (left := alive(pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def main(request: Mapping[str, Any]) -> None:
    options = dict(request["options"])
    given = {name: options.pop(name) for name in ("max_failures", "hang_seconds") if name in options}
    restarts = {"first_delay": 0.05, "max_delay": 0.2, "max_failures": 20, "stop_seconds": 2, **given}
    policy = RestartPolicy(**restarts)
    if "limits" in options:
        options["limits"] = Limits(**options["limits"])
    if "allowed_hosts" in options:
        options["allowed_hosts"] = tuple(options["allowed_hosts"])
    settings = ServeSettings(Path(request["jobs_dir"]), **{"port": 0, **options})
    pool = LocalPool(FACTORY, request["engines"], policy)
    serve(settings, MODEL, pool, lambda url: print(url, flush=True))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
