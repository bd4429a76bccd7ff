# SPDX-License-Identifier: Apache-2.0
"""The choice of compiler settings with a given timer instead of a GPU's."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lamp_trt.export.candidates import registry
from lamp_trt.export.candidates.calls import PRODUCTS, Call, Operand, recorded_products
from lamp_trt.export.candidates.choice import Form, Timer
from lamp_trt.export.candidates.registry import SETTINGS, Setting
from lamp_trt.export.candidates.settings import (
    LEAST_GAIN,
    MOST_PRODUCTS,
    Values,
    choose_settings,
    concerned,
)
from lamp_trt.export.candidates.timing import inductor_options
from lamp_trt.export.lamp.lean_unet import make_lean
from tests.export.lamp.test_unet import inputs, random_unet

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
UNKNOWN = dict.fromkeys([setting.name for setting in SETTINGS])
BY_NAME = {setting.name: setting for setting in SETTINGS}


def timers(
    gain: Mapping[str, float], fault: Callable[[Values, Tensor], Tensor] = lambda values, result: result
) -> tuple[Callable[[Values], Timer], list[dict[str, bool]]]:
    """Timers under which a setting that is on saves `gain` of the time; the settings of all that were asked
    for."""
    asked: list[dict[str, bool]] = []

    def timer_of(values: Values) -> Timer:
        asked.append(dict(values))
        seconds = 1.0 - sum(gain.get(name, 0.0) for name, on in values.items() if on)

        def timer(form: Form, arguments: tuple[Any, ...]) -> tuple[float, Tensor]:
            return seconds, fault(values, form(*arguments))

        return timer

    return timer_of, asked


@pytest.fixture(scope="module")
def products() -> Counter[Call]:
    return recorded_products(make_lean(random_unet()), inputs(2, 3, 8, 6))


def test_the_products_of_the_unet_are_recorded_with_their_layouts(products: Counter[Call]) -> None:
    unet = make_lean(random_unet())
    layers = [layer for layer in unet.modules() if isinstance(layer, nn.Conv2d)]
    of_layers = {tuple(layer.weight.shape) for layer in layers}
    recorded = {call.arguments[1].shape for call in products if call.slot == "convolution"}  # type: ignore[union-attr]
    assert of_layers <= recorded
    assert {call.slot for call in products} <= set(PRODUCTS)
    assert sum(n for call, n in products.items() if call.slot == "addmm") >= 10


def test_a_recorded_product_can_be_repeated() -> None:
    layer = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Flatten(2), nn.Linear(6, 5))
    made = recorded_products(layer, (torch.zeros(2, 4, 4, 6).to(memory_format=torch.channels_last),))
    (convolution,) = [call for call in made if call.slot == "convolution"]
    assert convolution.arguments[0] == Operand((2, 4, 4, 6), (96, 1, 24, 4), torch.float32)
    result = PRODUCTS["convolution"](*convolution.values(CPU))
    assert result.shape == (2, 6, 2, 3)
    assert sum(made.values()) == 2


def test_settings_that_save_time_are_on(products: Counter[Call]) -> None:
    timer_of, asked = timers({"conv_as_mm": -0.1, "cudnn_benchmark": 0.2, "max_autotune": 0.1})
    made = choose_settings(products, UNKNOWN, timer_of, CPU)
    assert made.values == {"conv_as_mm": False, "cudnn_benchmark": True, "max_autotune": True}
    # Each is timed off and on, with those that were chosen before it.
    assert asked[2:] == [
        {"conv_as_mm": False, "cudnn_benchmark": False, "max_autotune": False},
        {"conv_as_mm": False, "cudnn_benchmark": True, "max_autotune": False},
        {"conv_as_mm": False, "cudnn_benchmark": True, "max_autotune": False},
        {"conv_as_mm": False, "cudnn_benchmark": True, "max_autotune": True},
    ]
    counted = sum(concerned(BY_NAME["cudnn_benchmark"], products).values())
    assert f"cudnn_benchmark: off {1e3 * counted:.3f} ms, on {800 * counted:.3f} ms" in made.measurements


def test_a_gain_too_small_to_pay_for_a_setting_leaves_it_off(products: Counter[Call]) -> None:
    for gain, expected in ((LEAST_GAIN / 2, False), (LEAST_GAIN * 2, True)):
        timer_of, _ = timers(dict.fromkeys(UNKNOWN, gain))
        made = choose_settings(products, UNKNOWN, timer_of, CPU)
        assert set(made.values.values()) == {expected}


def test_a_given_setting_is_kept_and_not_timed(products: Counter[Call]) -> None:
    timer_of, asked = timers({"max_autotune": 0.5})
    requested = UNKNOWN | {"conv_as_mm": True, "max_autotune": False}
    made = choose_settings(products, requested, timer_of, CPU)
    assert made.values == {"conv_as_mm": True, "cudnn_benchmark": False, "max_autotune": False}
    assert {row.slot for row in made.measured} == {"cudnn_benchmark"}
    assert all(values["conv_as_mm"] and not values["max_autotune"] for values in asked)


def out_of_luck(values: Values, result: Tensor) -> Tensor:
    if values["cudnn_benchmark"]:
        raise RuntimeError("no algorithm\nat line 7")
    return result


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (out_of_luck, "on dropped (RuntimeError: no algorithm)"),
        (
            lambda values, result: result * (1 + 0.01 * values["cudnn_benchmark"]),
            "from the default in fp32, limit 2.0e-06)",
        ),
    ],
    ids=["fails", "wrong"],
)
def test_a_setting_that_fails_or_changes_results_stays_off(
    fault: Callable[[Values, Tensor], Tensor], reason: str, products: Counter[Call]
) -> None:
    timer_of, _ = timers({"cudnn_benchmark": 0.5, "max_autotune": 0.1}, fault)
    made = choose_settings(products, UNKNOWN, timer_of, CPU)
    assert made.values == {"conv_as_mm": False, "cudnn_benchmark": False, "max_autotune": True}
    assert reason in made.measurements


def test_where_off_fails_a_setting_stays_off(products: Counter[Call]) -> None:
    def fault(values: Values, result: Tensor) -> Tensor:
        return result if values["max_autotune"] else result * 2

    timer_of, _ = timers({"max_autotune": 0.5}, fault)
    assert not any(choose_settings(products, UNKNOWN, timer_of, CPU).values.values())


def test_a_network_without_products_has_every_setting_off() -> None:
    timer_of, asked = timers(dict.fromkeys(UNKNOWN, 0.5))
    made = choose_settings({}, UNKNOWN, timer_of, CPU)
    assert (made.values, made.measured, asked) == (dict.fromkeys(UNKNOWN, False), (), [])


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_setting_is_timed_on_the_largest_products_that_it_concerns(
    setting: Setting, products: Counter[Call]
) -> None:
    calls = concerned(setting, products)
    assert 0 < len(calls) <= MOST_PRODUCTS
    if setting.name != "max_autotune":
        assert {call.slot for call in calls} == {"convolution"}
    if setting.name == "conv_as_mm":
        assert {call.arguments[1].shape[2:] for call in calls} == {(1, 1)}  # type: ignore[union-attr]


def test_a_1x1_convolution_with_a_stride_is_no_matrix_product_of_all_pixels() -> None:
    for stride, expected in ((1, 1), (2, 0)):
        made = recorded_products(nn.Conv2d(4, 4, 1, stride=stride), (torch.zeros(1, 4, 4, 4),))
        assert len(concerned(BY_NAME["conv_as_mm"], made)) == expected


def test_settings_reach_inductor_under_its_names() -> None:
    assert inductor_options({"conv_as_mm": True}) == {"max_autotune": False, "conv_1x1_as_mm": True}
    assert inductor_options({}) == {"max_autotune": False, "conv_1x1_as_mm": False}
    known = torch._inductor.config.get_config_copy()
    assert {name for name in inductor_options({}) if name not in known} == set()
    assert {setting.name for setting in registry.SETTINGS} == {*UNKNOWN}
