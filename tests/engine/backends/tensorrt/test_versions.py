# SPDX-License-Identifier: Apache-2.0
"""Which TensorRT is taken, and what it says of itself."""

import logging
from types import ModuleType
from typing import Any

import pytest

from lamp_trt.engine.backends.tensorrt import trt
from lamp_trt.engine.errors import EngineError
from tests.doubles.tensorrt_engine import enterprise

rtx = pytest.importorskip("tensorrt_rtx", reason="pip install 'lamp-trt[rtx]' builds without a GPU")
pytestmark = pytest.mark.usefixtures("rtx_builds")


@pytest.mark.parametrize("version", ["10.14.1.48", "10.16.1", "11.0.0.114", "11.4.0", "11.9"])
def test_versions_that_we_know_are_taken(version: str) -> None:
    trt.check_version(enterprise(version))
    assert trt.compiler(enterprise(version)) == f"tensorrt {version}"


@pytest.mark.parametrize("version", ["8.6.1", "10.13.3", "12.0.0"])
def test_other_versions_are_refused_with_the_range(version: str) -> None:
    with pytest.raises(EngineError, match=rf"tensorrt is {version}.*'tensorrt>=10.14,<12'"):
        trt.check_version(enterprise(version))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (enterprise("10.16.1"), None),
        (enterprise("11.2.1"), None),
        (enterprise("11.3.0.99"), "can lose a bias"),
        (enterprise("11.4.0"), None),
        (rtx, "marks no single weights"),
    ],
    ids=["10.16", "11.2", "11.3", "11.4", "rtx"],
)
def test_refit_is_refused_where_it_is_wrong(module: ModuleType, reason: str | None) -> None:
    given = trt.why_no_refit(module)
    assert trt.can_refit(module) == (reason is None)
    assert given is None if reason is None else reason in str(given)


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"tensorrt": enterprise("11.4.0"), "tensorrt_rtx": rtx}, "tensorrt 11.4.0"),
        ({"tensorrt_rtx": rtx}, f"tensorrt_rtx {rtx.__version__}"),
        ({}, "TensorRT is not installed: pip install"),
        ({"tensorrt": OSError("libnvinfer.so.10: no such file")}, "does not load: libnvinfer"),
        ({"tensorrt": ModuleNotFoundError("no tensorrt_libs", name="tensorrt_libs")}, "incomplete"),
        ({"tensorrt": enterprise("nonsense")}, "has no valid __version__"),
    ],
    ids=["both", "rtx", "none", "no library", "incomplete", "no version"],
)
def test_tensorrt_is_taken_before_rtx_and_a_broken_one_is_told(
    installed: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # of the fixture that fixes the module

    def import_module(name: str) -> ModuleType:
        found = installed.get(name, ModuleNotFoundError(name, name=name))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr("lamp_trt.engine.backends.tensorrt.trt.importlib.import_module", import_module)
    trt.tensorrt.cache_clear()
    try:
        answer = trt.compiler(trt.tensorrt())
    except EngineError as error:
        answer = str(error)
    finally:
        trt.tensorrt.cache_clear()
    assert expected in answer


def test_tensorrts_messages_go_to_our_log_and_errors_into_ours(caplog: pytest.LogCaptureFixture) -> None:
    logger, severity = trt.logger(rtx), rtx.ILogger.Severity
    logger.errors.clear()
    with caplog.at_level(logging.DEBUG, "lamp_trt"):
        for level, text in (
            (severity.ERROR, "no kernel"),
            (severity.ERROR, "no kernel"),
            (severity.INTERNAL_ERROR, "worse"),
            (severity.WARNING, "noise"),
            (severity.INFO, "detail"),
        ):
            logger.log(level, text)
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "WARNING", "WARNING", "INFO", "DEBUG"]
    assert trt.taken_errors(rtx) == "no kernel; worse"
    assert trt.taken_errors(rtx) == "TensorRT gave no reason"
