# SPDX-License-Identifier: Apache-2.0
"""Measurements that need a fresh process: import time, load time, and the memory of one network alone.

    python -m lamp_trt.benchmarks.bench.probe import
    python -m lamp_trt.benchmarks.bench.probe load BUNDLE DEVICE BACKEND ENGINE_DIR THREADS CPU_PRECISION
    python -m lamp_trt.benchmarks.bench.probe network BUNDLE NETWORK BACKEND ENGINE_DIR THREADS CPU_PRECISION

Prints a JSON object. "" stands for an argument's default.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, cast

from lamp_trt.benchmarks.process_memory import process_memory
from lamp_trt.child import run_python
from lamp_trt.engine.backends.cpu import CpuPrecision
from lamp_trt.engine.errors import EngineError

RUNS = 3


def probe(*arguments: str) -> dict[str, float]:
    """Run a probe in a new process and return its output. EngineError, with the last line of its stderr,
    if it fails."""
    done = run_python("-m", "lamp_trt.benchmarks.bench.probe", *arguments)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise EngineError(f"measuring {arguments[0]} in a process of its own failed: {last}")
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def _import() -> dict[str, float]:
    code = (
        "import time; start = time.perf_counter(); import lamp_trt.runtime.pipeline; "
        "print(time.perf_counter() - start)"
    )
    done = run_python("-c", code)
    done.check_returncode()
    return {"import_s": float(done.stdout)}


def _load(
    bundle: str, device: str, backend: str, engine_dir: str, threads: str, precision: str
) -> dict[str, float]:
    import lamp_trt

    start = time.perf_counter()
    pipeline = lamp_trt.load(
        bundle,
        device=device or "auto",
        backend=backend or "auto",
        engine_dir=engine_dir or None,
        num_threads=int(threads) if threads else None,
        cpu_precision=cast(CpuPrecision | None, precision or None),
    )
    seconds = time.perf_counter() - start
    loaded, peak = process_memory()
    del pipeline
    return {"load_s": seconds, "loaded_bytes": loaded, "peak_bytes": peak}


def _network(
    bundle: str, network: str, backend: str, engine_dir: str, threads: str, precision: str
) -> dict[str, float]:
    """Load and run a network on the CPU. bare_bytes: the process before the network is loaded, with its
    libraries."""
    from lamp_trt.benchmarks.bench.options import BenchOptions
    from lamp_trt.benchmarks.bench.subject import Subject
    from lamp_trt.engine.backends.registry import find_backend, host_engine
    from lamp_trt.engine.bundle.reader import Bundle

    opened = Bundle.open(bundle)
    subject = Subject(opened, BenchOptions())
    arrays = subject.inputs(network)
    find_backend(backend).library()
    bare, _ = process_memory()
    start = time.perf_counter()
    engine = host_engine(
        backend,
        opened,
        network,
        motion=subject.motion_of(network),
        num_threads=int(threads) if threads else None,
        engine_dir=Path(engine_dir) if engine_dir else None,
        cpu_precision=cast(CpuPrecision | None, precision or None),
    )
    load_s = time.perf_counter() - start
    loaded, _ = process_memory()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        engine.run(arrays)
        times.append(time.perf_counter() - start)
    return {
        "load_s": load_s,
        "run_s": min(times),
        "bare_bytes": bare,
        "loaded_bytes": loaded,
        "peak_bytes": process_memory()[1],
    }


_PROBES: dict[str, Any] = {"import": _import, "load": _load, "network": _network}


if __name__ == "__main__":
    print(json.dumps(_PROBES[sys.argv[1]](*sys.argv[2:])))
