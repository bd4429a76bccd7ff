# SPDX-License-Identifier: Apache-2.0
"""Calls of the CUDA runtime that an engine makes itself, with their status turned into an EngineError."""

import logging
from typing import Any

from lamp_trt.engine.errors import EngineError

log = logging.getLogger("lamp_trt")


def cuda(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime: its result, a tuple if it has several, None if it has none.

    EngineError if it fails, or cuda.bindings is not installed. The calling thread's current device counts.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineError(
            f"cuda.bindings does not import ({error}): pip install 'cuda-core[cu13]'"
        ) from error
    status, *results = getattr(runtime, name)(*arguments)
    if status != runtime.cudaError_t.cudaSuccess:
        _, text = runtime.cudaGetErrorString(status)
        raise EngineError(f"{name} failed: {text.decode()} ({int(status)}).")
    return results[0] if len(results) == 1 else tuple(results) or None


def architecture(ordinal: int) -> str:
    """What engines for a device are called by, like "sm_90". EngineError if there is no such device."""
    from cuda.bindings.runtime import cudaDeviceAttr

    major, minor = (
        cuda("cudaDeviceGetAttribute", attribute, ordinal)
        for attribute in (
            cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor,
            cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor,
        )
    )
    return f"sm_{major}{minor}"


def release(name: str, handle: Any) -> None:
    """Call a function that gives something back, from a finalizer: nobody is left to take an error."""
    try:
        cuda(name, handle)
    except EngineError as error:
        log.warning("%s", error)
