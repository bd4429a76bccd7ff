# SPDX-License-Identifier: Apache-2.0
"""The server's own costs, over engines that sleep: latency that it adds, throughput, fairness of waiting.

    python -m lamp_trt.benchmarks.studies.serving [--engines 2] [--clients 8] [--pool ray] [--out FILE.json]

Latency: from sending a request for a synchronous video to the end of the reply, minus the engine's sleep;
one client, without and with an uploaded image of 1024x640. Throughput: videos per second of all clients, as a
share of engines that sleep without a pause. The server runs in a process of its own on this machine.
"""

import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from lamp_trt.benchmarks.studies.command import study_parser, write_result
from lamp_trt.serving.pools.pool import EngineJob, Pool

FACTORY = "lamp_trt.benchmarks.studies.serving:open_engine"
LATENCY_STEPS, LATENCY_JOBS = 1, 60
LOAD_STEPS, LOAD_JOBS = 20, 48
STEP_SECONDS = 0.05


class SleepingEngine:
    """Sleeps STEP_SECONDS for each of the job's steps and writes a small file."""

    motion = "a"

    def make(
        self,
        job: EngineJob,
        progress: Callable[[str, int, int], None],
        cancel: threading.Event,
        preview: object = None,
    ) -> None:
        steps = job.options["num_inference_steps"]
        for step in range(steps):
            time.sleep(STEP_SECONDS)
            progress("denoise", step + 1, steps)
        job.out.write_bytes(b"\0\0\0\x18ftypmp42")
        job.out.with_name(f"{job.out.name}.json").write_text("{}")
        self.motion = job.motion


def open_engine(settings: Mapping[str, Any]) -> SleepingEngine:
    """settings: none are used."""
    return SleepingEngine()


def sleeping_pool(kind: str, engines: int) -> Pool:
    if kind == "ray":
        from lamp_trt.serving.ray_pool.cluster import OwnCluster
        from lamp_trt.serving.ray_pool.config import RayEngines
        from lamp_trt.serving.ray_pool.pool import RayPool

        return RayPool(OwnCluster(RayEngines({}, engines, engines, factory=FACTORY), num_gpus=0))
    from lamp_trt.serving.pools.local_pool import LocalPool

    return LocalPool(FACTORY, {str(index): {} for index in range(engines)})


def run_server(folder: Path, pool: Pool) -> None:
    from lamp_trt.serving.settings import ModelInfo, ServeSettings
    from lamp_trt.serving.web.server import serve

    model = ModelInfo("sleep", ("a",), "a", (320, 512), 16, "off", False, True, "0" * 64)
    serve(ServeSettings(folder, port=0), model, pool, lambda url: print(url, flush=True))


class Client:
    """One connection to the server."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)

    def sync(self, steps: int, image: bytes | None = None) -> float:
        """Make a video; seconds until all of it has come."""
        body, kind = _body({"prompt": "x", "num_inference_steps": str(steps)}, image)
        start = time.perf_counter()
        self._connection.request("POST", "/v1/videos/sync", body, {"Content-Type": kind})
        reply = self._connection.getresponse()
        text = reply.read()
        if reply.status != 200:
            raise SystemExit(f"the server replied {reply.status}: {text[:300]!r}")
        return time.perf_counter() - start

    def is_ready(self, engines: int) -> bool:
        self._connection.request("GET", "/health")
        states = [each["state"] for each in json.loads(self._connection.getresponse().read())["engines"]]
        return states == ["idle"] * engines


def _body(fields: Mapping[str, str], image: bytes | None) -> tuple[bytes, str]:
    if image is None:
        return json.dumps(fields).encode(), "application/json"
    head = '--b\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n'
    parts = [head.format(name, "").encode() + value.encode() for name, value in fields.items()]
    parts.append(head.format("input_reference", '; filename="x"').encode() + image)
    return b"\r\n".join([*parts, b"--b--\r\n"]), "multipart/form-data; boundary=b"


def photograph() -> bytes:
    """A PNG of 1024x640 with smooth colours."""
    from lamp_trt.runtime.media.image import encode_png

    y, x = np.mgrid[0:640, 0:1024]
    return encode_png(np.stack([x // 4, y // 3, (x + y) // 8], axis=-1).astype(np.uint8))


def added_latency(url: str, image: bytes | None) -> dict[str, float]:
    client = Client(url)
    slept = LATENCY_STEPS * STEP_SECONDS
    client.sync(LATENCY_STEPS, image)
    times = sorted(1000 * (client.sync(LATENCY_STEPS, image) - slept) for _ in range(LATENCY_JOBS))
    return {
        "median_ms": round(statistics.median(times), 1),
        "p95_ms": round(times[int(0.95 * len(times))], 1),
    }


def load(url: str, engines: int, clients: int) -> dict[str, float]:
    """Throughput and waiting of `clients`, each of which sends its next request when it has its video."""
    share = LOAD_JOBS // clients

    def work(_: int) -> list[float]:
        client = Client(url)
        return [client.sync(LOAD_STEPS) for _ in range(share)]

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        times = [each for one in threads.map(work, range(clients)) for each in one]
    seconds = time.perf_counter() - start
    alone = engines / (LOAD_STEPS * STEP_SECONDS)
    return {
        "videos": len(times),
        "videos_per_second": round(len(times) / seconds, 3),
        "engines_alone_per_second": round(alone, 3),
        "share_of_engines_alone": round(len(times) / seconds / alone, 4),
        "reply_seconds_median": round(statistics.median(times), 2),
        "reply_seconds_longest": round(max(times), 2),
    }


def measure(engines: int, clients: int, pool: str = "local") -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lamp_trt.benchmarks.studies.serving", "--folder", folder]
        command += ["--engines", str(engines), "--pool", pool]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            if not url:
                raise SystemExit("the server did not start.")
            client = Client(url)
            while not client.is_ready(engines):
                time.sleep(0.1)
            return {
                "pool": pool,
                "engines": engines,
                "clients": clients,
                "added_latency": added_latency(url, None),
                "added_latency_with_upload": added_latency(url, photograph()),
                "load": load(url, engines, clients),
            }
        finally:
            process.terminate()
            process.wait(30)
            process.stdout.close()


def main() -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pool", choices=["local", "ray"], default="local")
    args = parser.parse_args()
    if args.folder:
        run_server(args.folder, sleeping_pool(args.pool, args.engines))
    else:
        write_result(measure(args.engines, args.clients, args.pool), args.out)


if __name__ == "__main__":
    main()
