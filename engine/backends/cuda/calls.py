# SPDX-License-Identifier: Apache-2.0
"""Calls of the CUDA runtime, with failures turned into EngineErrors."""

import logging
from typing import Any

from lamp_trt.engine.errors import EngineError

log = logging.getLogger("lamp_trt")


def cuda(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; return its result, a tuple of several, or None.

    EngineError if it fails or cuda.bindings is not installed. Uses the calling thread's current device.
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
    """The architecture of a CUDA device, like "sm_90". EngineError if the device does not exist."""
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
    """Call a function that frees a resource, from a finalizer: errors are logged, since none can be
    raised."""
    try:
        cuda(name, handle)
    except EngineError as error:
        log.warning("%s", error)
