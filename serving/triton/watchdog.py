# SPDX-License-Identifier: Apache-2.0
"""A watchdog of a Triton server: it makes a video of one step in each instance again and again.

    python -m lamp_trt.serving.triton.watchdog --model NAME [--url HOST:PORT] [--once] [-- tritonserver …]

Triton never starts a killed Python instance again, and its readiness stays as it was. With a command the
watchdog starts the server, and starts it again when a video fails; without one it exits with code 1 then.
Needs tritonclient[grpc].
"""

import argparse
import logging
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import FrameType
from typing import Any

log = logging.getLogger("lamp_trt")

STOP_SECONDS = 15.0
PRIORITY = 1
"""Before the requests of clients, which have 2."""


@dataclass(frozen=True)
class Watch:
    """What is watched, in seconds: `every` between the videos, `timeout` for one, which must exceed the time
    of a client's video; `start` for the server to become ready."""

    url: str
    model: str
    every: float = 30.0
    timeout: float = 1800.0
    start: float = 900.0
    max_restarts: int = 5


def failure(watch: Watch) -> str | None:
    """Make a video of one step in every instance at the same time; why one failed, or None."""
    from tritonclient.utils import InferenceServerException

    try:
        count = _instances(watch)
    except InferenceServerException as error:
        return f"the server does not answer: {error}"
    with ThreadPoolExecutor(count) as pool:
        failures = [each for each in pool.map(lambda _: _video_failure(watch), range(count)) if each]
    return failures[0] if failures else None


def wait_until_ready(watch: Watch, process: "subprocess.Popen[bytes] | None" = None) -> str | None:
    """Why the model is not ready after watch.start seconds, or None."""
    import tritonclient.grpc as grpc
    from tritonclient.utils import InferenceServerException

    deadline = time.monotonic() + watch.start
    with grpc.InferenceServerClient(watch.url) as client:
        while time.monotonic() < deadline:
            if process is not None and process.poll() is not None:
                return f"the server ended with exit code {process.returncode}"
            try:
                if client.is_model_ready(watch.model, client_timeout=5):
                    return None
            except InferenceServerException as error:
                log.debug("not ready: %s", error)
            time.sleep(0.5)
    return f"the model was not ready after {watch.start:g} s"


def watch_server(watch: Watch, once: bool = False) -> str:
    """Watch a server that others start; why it failed. once: return "" after the first good video."""
    reason = wait_until_ready(watch)
    while reason is None:
        reason = failure(watch)
        if reason is None and once:
            return ""
        if reason is None:
            time.sleep(watch.every)
    return reason


def supervise(watch: Watch, command: Sequence[str]) -> str:
    """Start the server and start it again after each failure, up to max_restarts times; the last reason."""
    reason = ""
    for start in range(watch.max_restarts + 1):
        if start:
            log.warning("triton: %s; starting the server again (%d of %d)", reason, start, watch.max_restarts)
        process = subprocess.Popen([*command], stdin=subprocess.DEVNULL)
        try:
            reason = wait_until_ready(watch, process) or _watch_process(watch, process)
        finally:
            _stop(process)
    return reason


def _watch_process(watch: Watch, process: "subprocess.Popen[bytes]") -> str:
    while True:
        if reason := failure(watch):
            return reason
        try:
            return f"the server ended with exit code {process.wait(watch.every)}"
        except subprocess.TimeoutExpired:
            continue


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _instances(watch: Watch) -> int:
    import tritonclient.grpc as grpc

    with grpc.InferenceServerClient(watch.url) as client:
        config = client.get_model_config(watch.model, client_timeout=10).config
    return sum(group.count * max(1, len(group.gpus)) for group in config.instance_group) or 1


def _video_failure(watch: Watch) -> str | None:
    import tritonclient.grpc as grpc
    from tritonclient.utils import InferenceServerException

    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    deadline = time.monotonic() + watch.timeout
    with grpc.InferenceServerClient(watch.url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))  # called by these names
        try:
            client.async_stream_infer(
                watch.model, _inputs(), priority=PRIORITY, enable_empty_final_response=True
            )
            while True:
                result, error = answers.get(timeout=max(0.0, deadline - time.monotonic()))
                if error is not None:
                    return f"a video failed: {error}"
                if result.as_numpy("frames").size:
                    return None
                if result.get_response().parameters["triton_final_response"].bool_param:
                    return "a video ended without frames"
        except queue.Empty:
            return f"a video took more than {watch.timeout:g} s"
        except InferenceServerException as error:
            return f"a video failed: {error}"
        finally:
            client.stop_stream(cancel_requests=True)


def _inputs() -> list[Any]:
    import numpy as np
    import tritonclient.grpc as grpc

    values = {
        "prompt": np.array([b"watchdog"], np.object_),
        "settings": np.array([b'{"num_inference_steps": 1}'], np.object_),
        "first_frame": np.zeros((64, 64, 3), np.uint8),
    }
    inputs = []
    for name, value in values.items():
        kind = "UINT8" if value.dtype == np.uint8 else "BYTES"
        each = grpc.InferInput(name, [*value.shape], kind)
        each.set_data_from_numpy(value)
        inputs.append(each)
    return inputs


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lamp_trt.serving.triton.watchdog")
    parser.add_argument("--url", default="127.0.0.1:8001", help="Triton's gRPC address", metavar="HOST:PORT")
    parser.add_argument("--model", required=True, metavar="NAME")
    parser.add_argument("--every", type=float, default=Watch.every, help="seconds between videos")
    parser.add_argument("--timeout", type=float, default=Watch.timeout, help="seconds for one video")
    parser.add_argument("--start", type=float, default=Watch.start, help="seconds until the model is ready")
    parser.add_argument("--max-restarts", type=int, default=Watch.max_restarts)
    parser.add_argument("--once", action="store_true", help="make one video in each instance, then exit")
    parser.add_argument("server", nargs="*", help="after --: the command that runs tritonserver")
    args = parser.parse_args(argv)
    if args.once and args.server:
        parser.error("--once looks at a running server; leave out the command")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, _leave)
    watch = Watch(args.url, args.model, args.every, args.timeout, args.start, args.max_restarts)
    reason = supervise(watch, args.server) if args.server else watch_server(watch, args.once)
    if reason:
        log.error("triton: %s", reason)
    return 1 if reason else 0


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
