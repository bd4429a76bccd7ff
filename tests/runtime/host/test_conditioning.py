# SPDX-License-Identifier: Apache-2.0
"""What a UNet is given beside the sample, in every form that a bundle's UNet may have."""

from collections.abc import Mapping

import numpy as np
import pytest

from lamp_trt.engine.backends.contract import Array
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.networks import IOTensor
from lamp_trt.runtime.host.conditioning import conditions_by_step

TIMESTEPS = np.array([981, 501, 1])
TEXT = np.arange(6, dtype=np.float32).reshape(2, 3)


class Recorder:
    """An engine whose outputs say what it was given, and when."""

    def __init__(self, inputs: tuple[str, ...], outputs: tuple[str, ...] = ()) -> None:
        self.inputs = tuple(IOTensor(name, (1,), "float32") for name in inputs)
        self.outputs = tuple(IOTensor(name, (1,), "float32") for name in outputs)
        self.runs: list[dict[str, Array]] = []

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        assert set(arrays) == {tensor.name for tensor in self.inputs}
        self.runs.append(dict(arrays))
        total = sum(float(array.sum()) for array in arrays.values())
        return {tensor.name: np.array([total], np.float32) for tensor in self.outputs}

    def set_motion(self, motion: str) -> bool:
        raise AssertionError(motion)

    def close(self) -> None:
        raise AssertionError("closed")


def given(unet: Recorder, *beside: Recorder, **conditions: Array) -> list[dict[str, list[float]]]:
    steps = conditions_by_step(unet, beside, conditions or {"encoder_hidden_states": TEXT}, TIMESTEPS)
    return [{name: array.ravel().tolist() for name, array in arrays.items()} for arrays in steps]


def test_a_plain_unet_is_given_the_timestep_and_the_text() -> None:
    steps = given(Recorder(("sample", "timestep", "encoder_hidden_states")))
    text = TEXT.ravel().tolist()
    assert steps == [{"timestep": [t], "encoder_hidden_states": text} for t in (981.0, 501.0, 1.0)]


def test_timesteps_are_float32_and_one_axis() -> None:
    (first, *_) = conditions_by_step(Recorder(("timestep",)), (), {}, TIMESTEPS)
    assert (first["timestep"].dtype, first["timestep"].shape) == (np.float32, (1,))


def test_keys_and_values_are_made_once_a_prompt() -> None:
    text = Recorder(("encoder_hidden_states",), ("a.key", "a.value"))
    steps = given(Recorder(("sample", "timestep", "a.key", "a.value")), text)
    assert len(text.runs) == 1
    assert steps == [{"timestep": [t], "a.key": [15.0], "a.value": [15.0]} for t in (981.0, 501.0, 1.0)]


def test_time_projections_are_made_at_each_step_with_what_they_take_of_the_text() -> None:
    time = Recorder(("timestep", "text_embeds"), ("time_projections",))
    unet = Recorder(("sample", "encoder_hidden_states", "time_projections"))
    steps = given(unet, time, encoder_hidden_states=TEXT, text_embeds=np.array([7.0]))
    assert [run["timestep"].tolist() for run in time.runs] == [[981], [501], [1]]
    assert [step["time_projections"] for step in steps] == [[988.0], [508.0], [8.0]]
    assert all(step.keys() == {"encoder_hidden_states", "time_projections"} for step in steps)


def test_everything_hoisted_leaves_none_of_the_plain_inputs() -> None:
    text = Recorder(("encoder_hidden_states",), ("a.key",))
    time = Recorder(("timestep",), ("time_projections",))
    steps = given(Recorder(("sample", "time_projections", "a.key")), text, time)
    assert steps == [{"time_projections": [t], "a.key": [15.0]} for t in (981.0, 501.0, 1.0)]


def test_nothing_runs_at_a_step_before_it_is_asked_for() -> None:
    time = Recorder(("timestep",), ("time_projections",))
    steps = conditions_by_step(Recorder(("sample", "time_projections")), (time,), {}, TIMESTEPS)
    next(steps)
    assert len(time.runs) == 1


def test_an_input_that_nothing_gives_is_named() -> None:
    with pytest.raises(EngineError, match=r"takes b\.key, which no network of the bundle computes"):
        given(Recorder(("sample", "timestep", "b.key")))
