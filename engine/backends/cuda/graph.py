# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: work on a stream, recorded once and replayed with one launch.

Only the calling thread's work is recorded (thread-local mode): other threads' work on other streams neither
enters the graph nor invalidates it. Not yet tested: no GPU has run this module.
"""

from collections.abc import Callable
from typing import Any
from weakref import finalize

from lamp_trt.engine.backends.cuda.calls import cuda, release
from lamp_trt.engine.errors import EngineError


def capture(stream: int, work: Callable[[], None]) -> Callable[[], None]:
    """Record the work that `work` enqueues on `stream`, a non-default cudaStream_t, without running it.

    Returns a function that enqueues the recorded work on that stream, with the recorded addresses.
    EngineError if it cannot be recorded; the stream stays usable.
    """
    from cuda.bindings.runtime import cudaStreamCaptureMode

    cuda("cudaStreamBeginCapture", stream, cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
    try:
        work()
    except BaseException:
        _discard(stream)
        raise
    graph = cuda("cudaStreamEndCapture", stream)
    try:
        return CapturedGraph(stream, graph)
    finally:
        cuda("cudaGraphDestroy", graph)


class CapturedGraph:
    """An executable graph; calling it enqueues it. Its memory is freed with the object."""

    def __init__(self, stream: int, graph: Any) -> None:
        self._stream = stream
        self._executable = cuda("cudaGraphInstantiate", graph, 0)
        finalize(self, release, "cudaGraphExecDestroy", self._executable).atexit = False

    def __call__(self) -> None:
        cuda("cudaGraphLaunch", self._executable, self._stream)


def _discard(stream: int) -> None:
    """End a capture whose work failed: it is already invalid, so an error here is expected."""
    try:
        graph = cuda("cudaStreamEndCapture", stream)
    except EngineError:
        return
    cuda("cudaGraphDestroy", graph)
