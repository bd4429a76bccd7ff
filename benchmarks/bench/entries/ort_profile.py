# SPDX-License-Identifier: Apache-2.0
"""Where a network's time goes on the CPU, by operator, from ONNX Runtime's own profiler."""

import json
import tempfile
from collections import defaultdict
from pathlib import Path

from lamp_trt.benchmarks.bench.subject import Subject

WARM_UP, RUNS = 1, 3


def operator_seconds(subject: Subject, network: str) -> dict[str, float]:
    """Seconds of one run by operator of the optimized graph, the most first; the mean of RUNS.

    The profiler's own time is in them: trust the shares; the sum is a little more than an unprofiled run.
    """
    from lamp_trt.engine.backends.onnxruntime.session import cpu_model, import_onnxruntime, place_weights

    onnxruntime = import_onnxruntime()
    bundle, arrays = subject.bundle, subject.inputs(network)
    model = cpu_model(bundle, network, subject.motion_of(network))
    with tempfile.TemporaryDirectory(prefix="lamp-trt-bench-") as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        for key, value in place_weights(bundle, model).items():
            options.add_session_config_entry(key, value)
        if subject.options.num_threads is not None:
            options.intra_op_num_threads = subject.options.num_threads
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for _ in range(WARM_UP + RUNS):
            session.run(None, arrays)
        events = json.loads(Path(session.end_profiling()).read_text())
    return seconds_by_operator(events, WARM_UP, RUNS)


def seconds_by_operator(events: list[dict[str, object]], warm_up: int, runs: int) -> dict[str, float]:
    """Of the trace's kernel events, without those of the first `warm_up` runs. Every node runs once a run."""
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
