# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import GenerationConfig, early_steps


def test_defaults_are_the_official_script() -> None:
    config = GenerationConfig()
    assert (config.num_inference_steps, config.guidance_scale, config.preset) == (50, 12.5, "official")
    assert (config.adain_switch_step, config.histogram_mode, config.mix_noise) == (None, "official", True)
    assert early_steps("official", None) == 31


def test_the_paper_preset_follows_algorithm_1() -> None:
    assert GenerationConfig(preset="paper").histogram_mode == "exact"
    assert early_steps("paper", None) == 29


def test_explicit_values_win_over_the_preset() -> None:
    assert GenerationConfig(preset="paper", histogram="none").histogram_mode == "none"
    assert early_steps("paper", 30) == 30
    assert early_steps("official", 0) == 0


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
