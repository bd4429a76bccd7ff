# SPDX-License-Identifier: Apache-2.0
"""Seconds of a network by operator, from OpenVINO's own profiling."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from lamp_trt.engine.backends.backend import HostOptions
from lamp_trt.engine.backends.cpu import arithmetic
from lamp_trt.engine.backends.openvino.engine import OpenVinoEngine
from lamp_trt.engine.bundle.reader import Bundle

WARM_UP, RUNS = 1, 3


def operator_seconds(
    bundle: Bundle, network: str, arrays: Mapping[str, Any], options: HostOptions
) -> dict[str, float]:
    """Seconds of one run by operator of the compiled graph, the most first; the mean of RUNS."""
    entry = bundle.network(network)
    precision = arithmetic(entry.component, entry.precision, options.cpu_precision)
    seconds: dict[str, float] = defaultdict(float)
    with OpenVinoEngine(
        bundle,
        network,
        precision=precision,
        motion=options.motion,
        num_threads=options.num_threads,
        profile=True,
    ) as engine:
        for number in range(WARM_UP + RUNS):
            engine.run(arrays)
            for node in engine.profile() if number >= WARM_UP else ():
                seconds[node.node_type] += node.real_time.total_seconds() / RUNS
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))
