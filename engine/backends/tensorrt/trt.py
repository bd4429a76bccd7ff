# SPDX-License-Identifier: Apache-2.0
"""The one place that imports TensorRT: `tensorrt` if it is there, else `tensorrt_rtx`, whose API is the same.

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
"""Attention of ONNX opset 23 came with 10.14; 12 is not written yet."""
OLDEST_RTX, NEWEST_RTX_EXCLUDED = (1, 7), (2, 0)
REFIT_LOSES_BIAS = (11, 3)
"""Refittable engines of this version may compute without a bias, even before any refit. Source: TensorRT
11.3.0's documentation, "Refitting an Engine"; the notes of 10.16 and 11.4 do not have it."""

log = logging.getLogger("lamp_trt")


@functools.cache
def tensorrt() -> ModuleType:
    """The module. EngineError if there is none, it does not load, or is of a version we do not know."""
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
        "(GeForce and RTX cards; no data-centre GPU)."
    )


def backend(module: ModuleType) -> str:
    """ "tensorrt" or "tensorrt_rtx"."""
    return "tensorrt_rtx" if is_rtx(module) else "tensorrt"


def is_rtx(module: ModuleType) -> bool:
    return module.__name__ == "tensorrt_rtx"


def version(module: ModuleType) -> tuple[int, int]:
    """Major and minor version. EngineError if the module does not tell."""
    match = re.match(r"(\d+)\.(\d+)", getattr(module, "__version__", ""))
    if match is None:
        raise EngineError(f"{module.__name__} does not tell its version, it is broken: install it again.")
    return int(match[1]), int(match[2])


def compiler(module: ModuleType) -> str:
    """What its engines were built by, like "tensorrt 10.16.1.11": they are for this version alone."""
    return f"{backend(module)} {module.__version__}"


def compatible_compiler(module: ModuleType) -> str:
    """The same for engines that any later version of the same major one takes, like "tensorrt 10.x"."""
    return f"{backend(module)} {version(module)[0]}.x"


def check_version(module: ModuleType) -> None:
    """EngineError for a version that we do not know how to use."""
    oldest, newest = (OLDEST_RTX, NEWEST_RTX_EXCLUDED) if is_rtx(module) else (OLDEST, NEWEST_EXCLUDED)
    if not oldest <= version(module) < newest:
        raise EngineError(
            f"{module.__name__} is {module.__version__}, which this lamp-trt does not know: "
            f"pip install '{module.__name__}>={oldest[0]}.{oldest[1]},<{newest[0]}'"
        )


def why_no_refit(module: ModuleType) -> str | None:
    """The reason why this TensorRT cannot exchange motions in a built engine; None if it can."""
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
    """The process's one ILogger of TensorRT: into `lamp_trt`'s log, errors into its list `errors` too."""

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
    """What TensorRT reported as errors since the last call, for the message of an EngineError."""
    errors: list[str] = logger(module).errors
    text = "; ".join(dict.fromkeys(errors)) or "TensorRT gave no reason"
    errors.clear()
    return text
