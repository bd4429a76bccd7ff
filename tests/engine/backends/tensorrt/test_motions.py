# SPDX-License-Identifier: Apache-2.0
"""Motions that are exchanged in a TensorRT engine, on the double."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.tensorrt import engine as tensorrt_engine
from lamp_trt.engine.backends.tensorrt.engine import TensorRtEngine
from lamp_trt.engine.backends.tensorrt.key import engine_key
from lamp_trt.engine.backends.tensorrt.refit import motion_weights
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import BundleError, EngineError
from tests.doubles import tensorrt as double
from tests.doubles.host_device import HostDevice
from tests.doubles.tensorrt import CudaDouble, Refitter, Violation
from tests.doubles.tensorrt_engine import (
    UNET,
    Bound,
    assert_equal,
    expected,
    inputs_of,
    keep_plan,
    writing,
)


@pytest.mark.parametrize("residence", ["mapped", "pinned", "device"])
def test_motions_are_exchanged_and_back_is_bit_for_bit(
    residence: str, unet: Callable[..., Bound], bundle: Bundle, cuda: CudaDouble
) -> None:
    bound, inputs = unet(resident_motions=residence), inputs_of(bundle, UNET)
    first = bound.run(inputs)
    assert_equal(first, expected(bundle, UNET, inputs, "horse_run"))
    assert bound.engine.set_motion("rain")
    other = bound.run(inputs)
    assert_equal(other, expected(bundle, UNET, inputs, "rain"))
    assert not np.array_equal(first["noise_pred"], other["noise_pred"])
    assert not bound.engine.set_motion("rain")
    assert bound.engine.set_motion("horse_run")
    assert_equal(bound.run(inputs), first)
    bound.engine.close()
    assert len(cuda.memory) == 0


def test_a_cached_plan_is_given_the_motion_at_load_whatever_it_was_built_with(
    unet: Callable[..., Bound], bundle: Bundle
) -> None:
    inputs = inputs_of(bundle, UNET)
    assert_equal(unet("rain").run(inputs), expected(bundle, UNET, inputs, "rain"))


def test_after_a_switch_a_capture_needs_a_run_again(unet: Callable[..., Bound], bundle: Bundle) -> None:
    bound = unet()
    bound.run(inputs_of(bundle, UNET))
    bound.engine.set_motion("rain")
    with pytest.raises(EngineError, match="must run once before it is captured"):
        bound.engine.capture(bound.device.stream, lambda: None)


def test_an_unknown_motion_changes_nothing(unet: Callable[..., Bound], bundle: Bundle) -> None:
    bound, inputs = unet(), inputs_of(bundle, UNET)
    with pytest.raises(BundleError, match="holds no motion 'snow'"):
        bound.engine.set_motion("snow")
    assert_equal(bound.run(inputs), expected(bundle, UNET, inputs, "horse_run"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra_refittable": ["conv_in.weight"]}, "conv_in.weight is not a motion tensor"),
        ({"fused_with": ["conv_in.weight"]}, r"fused replaceable tensors with 1 others, 'conv_in.weight'"),
    ],
)
def test_an_engine_with_other_replaceable_tensors_than_the_motions_is_refused(
    options: dict[str, Any], message: str, unet: Callable[..., Bound]
) -> None:
    with pytest.raises(EngineError, match=message):
        unet(**options)


def test_a_motion_of_other_sizes_is_refused_and_the_engine_is_as_it_was(
    unet: Callable[..., Bound], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, inputs = unet(), inputs_of(bundle, UNET)

    def narrower(*arguments: Any) -> Any:
        weights = motion_weights(*arguments)
        name = next(iter(weights.tensors))
        short = dataclasses.replace(weights.tensors[name], count=1)
        return dataclasses.replace(weights, tensors={**weights.tensors, name: short})

    monkeypatch.setattr(tensorrt_engine, "motion_weights", narrower)
    with pytest.raises(EngineError, match=r"is 1 values of .*built from another bundle"):
        bound.engine.set_motion("rain")
    assert_equal(bound.run(inputs), expected(bundle, UNET, inputs, "horse_run"))


def test_a_refit_that_breaks_makes_the_engine_unusable_for_good(
    unet: Callable[..., Bound], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = unet()
    monkeypatch.setattr(Refitter, "refit_cuda_engine", lambda self: False)
    with pytest.raises(EngineError, match=r"failed to replace.*Load the bundle again"):
        bound.engine.set_motion("rain")
    monkeypatch.undo()
    for use in (
        lambda: bound.engine.enqueue(bound.device.stream),
        lambda: bound.engine.set_motion("horse_run"),
        lambda: bound.engine.bind("sample", bound.arrays["sample"].pointer),
    ):
        with pytest.raises(EngineError, match="failed to replace"):
            use()


def test_a_switch_while_work_is_pending_is_the_callers_fault(
    unet: Callable[..., Bound], bundle: Bundle
) -> None:
    bound = unet()
    bound.put(inputs_of(bundle, UNET))
    bound.engine.enqueue(bound.device.stream)
    with pytest.raises(Violation, match="while work is pending"):
        bound.engine.set_motion("rain")


def test_without_refit_each_motion_has_a_plan_and_keeps_the_addresses(
    bundle: Bundle, unet: Callable[..., Bound], tmp_path: Path
) -> None:
    keep_plan(bundle, tmp_path, UNET, "rain", scratch=9000)
    bound, inputs = unet(refit=False), inputs_of(bundle, UNET)
    assert_equal(bound.run(inputs), expected(bundle, UNET, inputs, "horse_run"))
    assert bound.engine.set_motion("rain")
    assert bound.engine.scratch_bytes == 9216
    with pytest.raises(EngineError, match="no scratch of 9216 bytes"):
        bound.run(inputs)
    bound.give_scratch()
    assert_equal(bound.run(inputs), expected(bundle, UNET, inputs, "rain"))
    assert bound.engine.set_motion("horse_run")
    assert_equal(bound.run(inputs), expected(bundle, UNET, inputs, "horse_run"))


def test_a_whole_motion_has_a_plan_of_its_own_beside_the_refittable_one(
    bundle: Bundle, cuda: CudaDouble, device: HostDevice, tmp_path: Path
) -> None:
    motions = dict(bundle.manifest.motions)
    motions["rain"] = dataclasses.replace(motions["rain"], kind="full")
    whole = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, motions=motions))
    keep_plan(whole, tmp_path, UNET, "rain")
    keep_plan(bundle, tmp_path, UNET, "horse_run", refit=True)
    inputs = inputs_of(bundle, UNET)
    engine = TensorRtEngine(
        whole, UNET, device=0, stream=device.stream, motion="horse_run", engine_dir=tmp_path
    )
    bound = Bound(engine, device)
    for motion in ("rain", "horse_run"):
        assert engine.set_motion(motion)
        assert_equal(bound.run(inputs), expected(bundle, UNET, inputs, motion))


def test_a_switch_to_a_motion_without_a_plan_keeps_the_present_one(
    bundle: Bundle, unet: Callable[..., Bound]
) -> None:
    bound, inputs = unet(refit=False), inputs_of(bundle, UNET)
    with pytest.raises(EngineError, match=r"has another motion baked in.*lamp-trt build"):
        bound.engine.set_motion("rain")
    assert_equal(bound.run(inputs), expected(bundle, UNET, inputs, "horse_run"))


def test_a_switch_whose_plan_does_not_load_leaves_an_engine_that_says_so(
    bundle: Bundle, unet: Callable[..., Bound], tmp_path: Path
) -> None:
    bound = unet(refit=False)
    key = engine_key(bundle, UNET, double, "sm_90", motion="rain")
    compiled.store(tmp_path, key, "plan", {}, writing(b"no plan"))
    with pytest.raises(EngineError, match="does not load"):
        bound.engine.set_motion("rain")
    with pytest.raises(EngineError, match="lamp_unet has no engine because a switch failed"):
        bound.engine.enqueue(bound.device.stream)
