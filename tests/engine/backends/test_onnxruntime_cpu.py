# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on the CPU as the contract of an engine has it: closing, and switches that fail."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp_trt.engine.backends.onnxruntime import cpu
from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError
from tests.export.test_onnx import random_inputs


def unet(bundle: Path) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(Bundle.open(bundle), "lamp_unet", motion="horse_run", num_threads=1)


def test_a_closed_engine_says_so(toy_bundle: Path) -> None:
    with unet(toy_bundle) as engine:
        assert engine.unusable is None
        assert engine.set_motion("rain") is False
    engine.close()  # again
    arrays = random_inputs(engine.inputs)
    for use in (lambda: engine.run(arrays), lambda: engine.set_motion("horse_run")):
        with pytest.raises(EngineError, match="lamp_unet was closed"):
            use()


def test_an_error_inside_a_block_closes_it_too(toy_bundle: Path) -> None:
    engine = unet(toy_bundle)
    with pytest.raises(KeyboardInterrupt), engine:
        raise KeyboardInterrupt
    assert engine.unusable


def test_a_motion_that_cannot_be_read_leaves_the_one_before(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = unet(toy_bundle)
    arrays = random_inputs(engine.inputs)
    before = engine.run(arrays)["noise_pred"]

    def fail(*_: Any) -> None:
        raise OSError("input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(cpu, "motion_arrays", fail)
        with pytest.raises(OSError, match="input/output error"):
            engine.set_motion("rain")
    np.testing.assert_array_equal(engine.run(arrays)["noise_pred"], before)
    engine.set_motion("rain")
    assert np.any(engine.run(arrays)["noise_pred"] != before)
    engine.set_motion("horse_run")
    np.testing.assert_array_equal(engine.run(arrays)["noise_pred"], before)


def test_a_switch_that_fails_with_a_new_session_runs_nothing_until_another_one_is_done(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = unet(toy_bundle)
    arrays = random_inputs(engine.inputs)

    def fail(*_: Any) -> None:
        raise EngineError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(cpu, "shared_file", lambda bundle, motion: motion)  # as of a full motion
        patch.setattr(cpu, "motion_arrays", fail)
        with pytest.raises(EngineError, match="no memory"):
            engine.set_motion("rain")
    with pytest.raises(EngineError, match="no motion because a switch failed: set a motion"):
        engine.run(arrays)
    engine.set_motion("rain")
    assert np.isfinite(engine.run(arrays)["noise_pred"]).all()
