# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

from lamp_trt.benchmarks.process_memory import process_memory


def test_the_peak_is_at_least_the_memory_now() -> None:
    now, peak = process_memory()
    assert 0 < now <= peak


def test_the_peak_is_not_that_of_the_process_that_started_this_one() -> None:
    """subprocess uses vfork, whose child shares its parent's memory until exec."""
    child = "from lamp_trt.benchmarks.process_memory import process_memory; print(process_memory()[1])"
    parent = (
        "import subprocess, sys\n"
        "large = b'x' * (512 << 20)\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, check=True)
    assert int(done.stdout) < 256 << 20
