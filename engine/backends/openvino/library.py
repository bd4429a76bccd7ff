# SPDX-License-Identifier: Apache-2.0
"""OpenVINO, imported without its telemetry, and the one Core of the process."""

import importlib
import os
import sys
import threading
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from lamp_trt.engine.backends.cpu import CpuPrecision
from lamp_trt.engine.backends.openvino.probe import MOUNT, OLDEST, REMEDY, version_numbers, why_no_cores
from lamp_trt.engine.dtypes import PRECISIONS
from lamp_trt.engine.errors import EngineError

_TELEMETRY = "openvino_telemetry"
_lock = threading.Lock()
_core: Any = None


def import_openvino() -> ModuleType:
    """openvino. EngineError if it cannot be imported, is too old, or would find no cores.

    Its first import reports to Google Analytics through the package openvino_telemetry and keeps a client id
    in ~/intel. Without that package it takes a stub that does nothing, so the package is hidden during the
    import. A program that imported openvino earlier has reported already; nothing is sent later.
    """
    os.environ.setdefault("HWLOC_HIDE_ERRORS", "2")  # TBB's hwloc prints where /sys is not mounted
    with _lock:
        try:
            module = _import_without_telemetry()
        except ImportError as error:
            raise EngineError(f"OpenVINO does not import ({error}): {REMEDY}.") from error
    version, _, _ = str(module.__version__).partition("-")
    if version_numbers(version) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise EngineError(f"OpenVINO {version} is too old, {oldest} or newer is needed: {REMEDY} --upgrade.")
    blind = why_no_cores()
    if blind is not None:
        raise EngineError(f"{blind}: {MOUNT}.")
    return module


def core() -> Any:
    """The Core that all engines of the process share. Raises as import_openvino."""
    global _core
    module = import_openvino()
    with _lock:
        if _core is None:
            _core = module.Core()
        return _core


def _import_without_telemetry() -> ModuleType:
    if "openvino" in sys.modules:
        return importlib.import_module("openvino")
    loaded = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment] # makes `import` of it an ImportError
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[_TELEMETRY]
        if loaded is not None:
            sys.modules[_TELEMETRY] = loaded


def explained(error: Exception) -> str:
    """The message of an exception of OpenVINO in one line, without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(told)[:500] or type(error).__name__


def compile_graph(
    model: Any, what: str, precision: CpuPrecision, num_threads: int | None, **settings: Any
) -> Any:
    """The ov.CompiledModel of an ov.Model on the CPU. EngineError, naming `what`, if it cannot be compiled.

    Threads are not pinned: those of two pipelines, or of two processes, would be pinned to the same cores.
    """
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision].stored.lower(),
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        **settings,
    }
    if num_threads is not None:
        config["INFERENCE_NUM_THREADS"] = num_threads
    try:
        return core().compile_model(model, "CPU", config)
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot load {what}: {explained(error)}") from error


def shared_tensor(data: NDArray[Any], shape: list[int], element_type: Any) -> Any:
    """An ov.Tensor over memory that may be read-only: OpenVINO does not write to inputs and constants. The
    caller keeps `data` alive while it is used."""
    from openvino import Tensor  # a model is there, so the library was checked; import_openvino checks again

    return Tensor(data, shape, element_type)


def shared_constant(name: str, data: NDArray[Any], shape: list[int], element_type: Any) -> Any:
    """An ov.Constant over memory that the caller keeps alive while its model is used."""
    tensor = shared_tensor(data, shape, element_type)
    constant = import_openvino().op.Constant(tensor, shared_memory=True)
    constant.set_friendly_name(name)
    return constant
