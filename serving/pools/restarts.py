# SPDX-License-Identifier: Apache-2.0
"""When the process of an engine is given up, and started again."""

from dataclasses import dataclass

from lamp_trt.engine.errors import InputError

HANG_SECONDS = 1800.0
"""More than a step, decoding, or loading takes anywhere, large videos on few CPUs included."""

MAX_HANG_SECONDS = 1_000_000


@dataclass(frozen=True)
class RestartPolicy:
    """An engine process is started again after first_delay, doubled each time up to max_delay, in seconds.
    After max_failures exits without a job that finished in between it stays down. Raises InputError."""

    first_delay: float = 0.5
    max_delay: float = 30.0
    max_failures: int = 6
    stop_seconds: float = 5.0
    """How long a process may take to end before it is killed."""
    hang_seconds: float = HANG_SECONDS
    """How long a process may say nothing while it runs a job before it is killed."""
    start_seconds: float = HANG_SECONDS
    """How long a process may take to start before it is killed."""

    def __post_init__(self) -> None:
        for seconds in (self.hang_seconds, self.start_seconds):
            if not 0 < seconds <= MAX_HANG_SECONDS:
                raise InputError(f"the hang timeout is {seconds}; expected 1 to {MAX_HANG_SECONDS} s.")


DEFAULT_POLICY = RestartPolicy()
