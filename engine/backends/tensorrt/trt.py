# SPDX-License-Identifier: Apache-2.0
"""Import of TensorRT: `tensorrt` if installed, else `tensorrt_rtx`, which has the same API.

Nothing here touches a GPU.
"""

import functools
import importlib
import logging
import re
from types import ModuleType
from typing import Any

from lamp_trt.engine.dtypes import DType
from lamp_trt.engine.errors import EngineError, UnavailableError

OLDEST, NEWEST_EXCLUDED = (10, 14), (12, 0)
"""10.14 introduced Attention of ONNX opset 23; 12 is not released yet."""
OLDEST_RTX, NEWEST_RTX_EXCLUDED = (1, 7), (2, 0)
REFIT_LOSES_BIAS = (11, 3)
"""Refittable engines of this version may omit a bias, even before any refit. Source: TensorRT
11.3.0's documentation, "Refitting an Engine"; the notes of 10.16 and 11.4 do not list it."""

log = logging.getLogger("lamp_trt")


@functools.cache
def tensorrt() -> ModuleType:
    """Import TensorRT. EngineError if it is missing, does not load, or has an unsupported version."""
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise UnavailableError(
                    f"{name} is installed but incomplete ({error}): install it again."
                ) from error
            continue
        except (ImportError, OSError, RuntimeError) as error:
            raise UnavailableError(f"{name} is installed but does not load: {error}") from error
        check_version(module)
        return module
    raise UnavailableError(
        "TensorRT is not installed: pip install 'lamp-trt[tensorrt]', or 'lamp-trt[rtx]' for TensorRT-RTX "
        "(GeForce and RTX cards, not data-centre GPUs)."
    )


def backend(module: ModuleType) -> str:
    """ "tensorrt" or "tensorrt_rtx"."""
    return "tensorrt_rtx" if is_rtx(module) else "tensorrt"


def is_rtx(module: ModuleType) -> bool:
    return module.__name__ == "tensorrt_rtx"


def version(module: ModuleType) -> tuple[int, int]:
    """Major and minor version. EngineError if the module has no valid one."""
    match = re.match(r"(\d+)\.(\d+)", getattr(module, "__version__", ""))
    if match is None:
        raise EngineError(f"{module.__name__} has no valid __version__, it is broken: install it again.")
    return int(match[1]), int(match[2])


def compiler(module: ModuleType) -> str:
    """The compiler in engines' keys, like "tensorrt 10.16.1.11": engines are for this version only."""
    return f"{backend(module)} {module.__version__}"


def compatible_compiler(module: ModuleType) -> str:
    """The compiler of engines for any later version with the same major number, like "tensorrt 10.x"."""
    return f"{backend(module)} {version(module)[0]}.x"


def check_version(module: ModuleType) -> None:
    """EngineError for an unsupported version."""
    oldest, newest = (OLDEST_RTX, NEWEST_RTX_EXCLUDED) if is_rtx(module) else (OLDEST, NEWEST_EXCLUDED)
    if not oldest <= version(module) < newest:
        raise EngineError(
            f"{module.__name__} is {module.__version__}, which this lamp-trt does not support: "
            f"pip install '{module.__name__}>={oldest[0]}.{oldest[1]},<{newest[0]}'"
        )


def why_no_refit(module: ModuleType) -> str | None:
    """Why this TensorRT cannot exchange motions in a built engine; None if it can."""
    if is_rtx(module):
        return "TensorRT-RTX marks no single weights refittable when it builds ahead of time"
    if version(module) == REFIT_LOSES_BIAS:
        return f"TensorRT {module.__version__} can lose a bias in refittable engines; 11.4 and 10.16 do not"
    return None


def can_refit(module: ModuleType) -> bool:
    return why_no_refit(module) is None


def data_type(module: ModuleType, dtype: DType) -> Any:
    """`dtype` as a trt.DataType."""
    return getattr(module.DataType, str(dtype.tensorrt))


@functools.cache
def logger(module: ModuleType) -> Any:
    """The process's single TensorRT ILogger: writes to `lamp_trt`'s log, and errors also to its list
    `errors`."""

    class Logger(module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR):
                self.errors.append(message)
                log.warning("TensorRT: %s", message)
            elif severity == module.ILogger.WARNING:
                log.info("TensorRT: %s", message)
            else:
                log.debug("TensorRT: %s", message)

    return Logger()


def taken_errors(module: ModuleType) -> str:
    """TensorRT's errors since the last call, as text for an EngineError; clears them."""
    errors: list[str] = logger(module).errors
    text = "; ".join(dict.fromkeys(errors)) or "TensorRT gave no reason"
    errors.clear()
    return text
