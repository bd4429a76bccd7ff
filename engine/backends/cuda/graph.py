# SPDX-License-Identifier: Apache-2.0
"""What a stream was given, recorded once and replayed with one launch.

Only the calling thread's work is recorded (thread-local mode): what other threads do meanwhile, on streams of
their own, neither enters the graph nor breaks it. Unproven: no GPU has run this module yet.
"""

from collections.abc import Callable
from typing import Any
from weakref import finalize

from lamp_trt.engine.backends.cuda.calls import cuda, release
from lamp_trt.engine.errors import EngineError


def capture(stream: int, work: Callable[[], None]) -> Callable[[], None]:
    """Record what `work` enqueues on `stream`, a cudaStream_t other than the default; nothing of it runs.

    The result enqueues all of it on that stream, with the addresses that it was recorded with. EngineError if
    it cannot be recorded; the stream is of use again in any case.
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
    """An executable graph; calling it enqueues it. Its memory goes with the object."""

    def __init__(self, stream: int, graph: Any) -> None:
        self._stream = stream
        self._executable = cuda("cudaGraphInstantiate", graph, 0)
        finalize(self, release, "cudaGraphExecDestroy", self._executable).atexit = False

    def __call__(self) -> None:
        cuda("cudaGraphLaunch", self._executable, self._stream)


def _discard(stream: int) -> None:
    """End a capture whose work failed; that it is invalid by then is no news."""
    try:
        graph = cuda("cudaStreamEndCapture", stream)
    except EngineError:
        return
    cuda("cudaGraphDestroy", graph)
