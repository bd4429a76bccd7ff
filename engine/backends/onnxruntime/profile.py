# SPDX-License-Identifier: Apache-2.0
"""Time per operator of a network on the CPU, from ONNX Runtime's profiler."""

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamp_trt.engine.backends.onnxruntime.session import cpu_model, import_onnxruntime, place_weights
from lamp_trt.engine.bundle.reader import Bundle

WARM_UP, RUNS = 1, 3


def operator_seconds(
    bundle: Bundle, network: str, arrays: Mapping[str, Any], motion: str | None, num_threads: int | None
) -> dict[str, float]:
    """Seconds per operator of one run of the optimized graph, descending; the mean of RUNS.

    They include the profiler's overhead: the shares are reliable, the sum slightly exceeds an unprofiled run.
    """
    onnxruntime = import_onnxruntime()
    model = cpu_model(bundle, network, motion)
    with tempfile.TemporaryDirectory(prefix="lamp-trt-bench-") as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        for key, value in place_weights(bundle, model).items():
            options.add_session_config_entry(key, value)
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for _ in range(WARM_UP + RUNS):
            session.run(None, dict(arrays))
        events = json.loads(Path(session.end_profiling()).read_text())
    return seconds_by_operator(events, WARM_UP, RUNS)


def seconds_by_operator(events: list[dict[str, object]], warm_up: int, runs: int) -> dict[str, float]:
    """Seconds per operator of the trace's kernel events, without the first `warm_up` runs. Every node runs
    once per run."""
    seconds: dict[str, float] = defaultdict(float)
    seen: dict[object, int] = defaultdict(int)
    for event in events:
        arguments, name, duration = event.get("args"), event["name"], event["dur"]
        if event["cat"] != "Node" or not str(name).endswith("_kernel_time"):
            continue
        assert isinstance(arguments, dict)
        assert isinstance(duration, (int, float))
        node = (name, arguments.get("node_index"))
        seen[node] += 1
        if seen[node] > warm_up:
            seconds[str(arguments["op_name"])] += duration / 1e6 / runs
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))
