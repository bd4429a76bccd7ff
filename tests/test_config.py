# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.config import EARLY_STEPS_IN_TEXT, GenerationConfig


def test_defaults_are_the_official_script() -> None:
    config = GenerationConfig()
    assert (config.num_inference_steps, config.guidance_scale, config.preset) == (50, 12.5, "official")
    assert (config.early_steps, config.histogram_mode, config.mix_noise) == (31, "official", True)


def test_the_paper_preset_follows_algorithm_1() -> None:
    config = GenerationConfig(preset="paper")
    assert (config.early_steps, config.histogram_mode) == (29, "exact")


def test_explicit_values_win_over_the_preset() -> None:
    config = GenerationConfig(preset="paper", adain_switch_step=EARLY_STEPS_IN_TEXT, histogram="none")
    assert (config.early_steps, config.histogram_mode) == (30, "none")
    assert GenerationConfig(adain_switch_step=0).early_steps == 0


def test_the_switch_is_not_rescaled_to_the_number_of_steps() -> None:
    assert GenerationConfig(num_inference_steps=10).early_steps == 31


def test_numpy_integers_are_accepted() -> None:
    assert (
        GenerationConfig(seed=np.uint64(2**64 - 1), num_inference_steps=np.int32(1)).num_inference_steps == 1
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 0.5),
        ("seed", None),
        ("num_inference_steps", 0),
        ("num_inference_steps", 1000),
        ("num_inference_steps", True),
        ("num_inference_steps", 2.0),
        ("first_frame_num_inference_steps", 0),
        ("guidance_scale", float("nan")),
        ("guidance_scale", float("inf")),
        ("guidance_scale", "12.5"),
        ("first_frame_guidance_scale", None),
        ("preset", "Official"),
        ("adain", "all"),
        ("adain", None),
        ("adain_switch_step", -1),
        ("histogram", "fast"),
        ("mix_noise", 1),
    ],
)
def test_a_value_out_of_range_is_named_and_refused(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^{field} is ") as error:
        dataclasses.replace(GenerationConfig(), **{field: value})
    assert repr(value) in str(error.value)
    assert error.value.exit_code == 2
