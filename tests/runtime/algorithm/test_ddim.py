# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.ddim import alphas_cumprod, ddim_schedule, step_coefficients

SDXL = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}


def test_fifty_steps_are_981_to_1() -> None:
    schedule = ddim_schedule(50)
    np.testing.assert_array_equal(schedule.timesteps, np.arange(981, 0, -20))
    assert (schedule.timesteps.dtype, schedule.alpha_t.dtype, schedule.alpha_prev.dtype) == (
        np.int64,
        np.float32,
        np.float32,
    )
    assert len(schedule) == 50


@pytest.mark.parametrize("n", [1, 2, 3, 7, 31, 32, 50, 333, 500, 501, 999])
def test_each_step_ends_where_the_next_begins_and_the_last_at_alpha_0(n: int) -> None:
    schedule, table = ddim_schedule(n), alphas_cumprod()
    np.testing.assert_array_equal(schedule.alpha_t, table[schedule.timesteps])
    np.testing.assert_array_equal(schedule.alpha_prev[:-1], schedule.alpha_t[1:])
    assert schedule.alpha_prev[-1] == table[0]
    assert (schedule.timesteps[-1], set(np.diff(schedule.timesteps))) == (
        1,
        {-(1000 // n)} if n > 1 else set(),
    )


def test_the_alphas_are_torchs_bit_for_bit() -> None:
    torch = pytest.importorskip("torch")
    for name, start, end in (("scaled_linear", 0.00085, 0.012), ("linear", 0.0001, 0.02)):
        power = 2 if name == "scaled_linear" else 1
        betas = torch.linspace(start ** (1 / power), end ** (1 / power), 1000, dtype=torch.float32) ** power
        config = {"beta_schedule": name, "beta_start": start, "beta_end": end}
        np.testing.assert_array_equal(alphas_cumprod(config), torch.cumprod(1 - betas, 0).numpy())


def test_the_coefficients_are_the_two_line_update() -> None:
    x, e, a, b = 0.7, -1.3, 0.2, 0.35
    x0 = (x - (1 - a) ** 0.5 * e) / a**0.5
    cx, ce = step_coefficients(a, b)
    assert cx * x + ce * e == pytest.approx(b**0.5 * x0 + (1 - b) ** 0.5 * e, rel=1e-14)


def test_a_published_sdxl_euler_config_gives_the_same_schedule() -> None:
    ours, sdxl = ddim_schedule(50), ddim_schedule(50, SDXL)
    np.testing.assert_array_equal(ours.alpha_prev, sdxl.alpha_prev)
    np.testing.assert_array_equal(ours.timesteps, sdxl.timesteps)


def test_offset_and_clipping_of_a_config_are_overruled_as_the_official_pipeline_does() -> None:
    schedule = ddim_schedule(10, {"steps_offset": 0, "clip_sample": True})
    np.testing.assert_array_equal(schedule.timesteps, np.arange(901, 0, -100))


def test_set_alpha_to_one_is_followed() -> None:
    assert ddim_schedule(10, {"set_alpha_to_one": True}).alpha_prev[-1] == 1


@pytest.mark.parametrize("n", [0, -1, 1000, 1001, 2.5, "50", None])
def test_a_number_of_steps_out_of_range_is_refused(n: object) -> None:
    with pytest.raises(InputError, match=r"num_inference_steps is .*1 to 999"):
        ddim_schedule(n)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2"),
        ({"prediction_type": "v_prediction"}, "v_prediction"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
    ],
)
def test_an_unsupported_config_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ddim_schedule(50, config)
