# SPDX-License-Identifier: Apache-2.0
"""pytest plugin: the order of test files over workers, and a heap that garbage collections need not walk."""

import gc
from pathlib import Path

import pytest

FIRST = (
    "runtime/kernels/test_sanitizers.py",
    "runtime/kernels/test_compile.py",
    "engine/backends/test_aotinductor.py",
    "install/test_real_servers.py",
    "serving/test_a_thousand_jobs.py",
    "runtime/test_pipeline.py",
    "export/test_build.py",
    "export/test_hoisted_build.py",
    "export/test_onnx.py",
    "cli/test_cli.py",
    "export/lamp/test_precomputed_unets.py",
    "benchmarks/bench/test_bench_cli.py",
)
"""Files of more than 15 seconds: begun last, one would keep a worker busy while the others have nothing left.
The first two start processes of their own on every core."""

_PLACE = {Path(__file__).parent / name: place for place, name in enumerate(FIRST)}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _PLACE.get(item.path, len(FIRST)))


def pytest_collection_finish() -> None:
    """What was imported until now stays: hundreds of thousands of objects, 0.4 s for each gc.collect()."""
    gc.collect()
    gc.freeze()
