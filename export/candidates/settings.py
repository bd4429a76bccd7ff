# SPDX-License-Identifier: Apache-2.0
"""The choice of a package's compiler settings, by timing the network's convolutions and matrix products."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lamp_trt.export.candidates import registry
from lamp_trt.export.candidates.calls import PRODUCTS, Call, Operand, largest
from lamp_trt.export.candidates.choice import Form, Measured, Timer, in_one_line, total_time
from lamp_trt.export.candidates.registry import Setting

log = logging.getLogger("lamp_trt")

MOST_PRODUCTS = 4
"""Kinds of products that a setting is timed on."""

LEAST_GAIN = 0.02
"""Share of the time that a setting must save to be turned on. None is free: with cudnn_benchmark two
processes may differ by rounding, max_autotune makes a build many times as long."""

Values = Mapping[str, bool]
"""Settings by name."""


@dataclass(frozen=True)
class SettingsChoice:
    """values: of all settings. measured: off and on of those that were timed."""

    values: Values
    measured: tuple[Measured, ...] = ()

    @property
    def measurements(self) -> str:
        return in_one_line(self.measured)


def choose_settings(
    products: Mapping[Call, int],
    requested: Mapping[str, bool | None],
    timer_of: Callable[[Values], Timer],
    device: torch.device,
) -> SettingsChoice:
    """Choose the settings that are None in `requested`, one after the other; each is timed with the values of
    those before it.

    products: of calls.recorded_products. timer_of: the timer under given settings. A setting stays off where
    it concerns no product, fails, changes a result by more than rounding, or saves less than LEAST_GAIN.
    """
    values = {setting.name: bool(requested[setting.name]) for setting in registry.SETTINGS}
    rows: list[Measured] = []
    for setting in registry.SETTINGS:
        calls = concerned(setting, products)
        if requested[setting.name] is not None or not calls:
            continue
        off, on = measure_setting(setting, calls, timer_of, values, device)
        rows += (off, on)
        values[setting.name] = gains(off, on)
    choice = SettingsChoice(values, tuple(rows))
    if rows:
        log.info("settings: %s; measured %s", text_of(values), choice.measurements)
    return choice


def concerned(
    setting: Setting, products: Mapping[Call, int], limit: int = MOST_PRODUCTS
) -> Mapping[Call, int]:
    """The `limit` largest products whose kernel a setting may change."""
    changes = _CONCERNED[setting.name]
    return largest({call: n for call, n in products.items() if changes(call)}, limit)


def measure_setting(
    setting: Setting,
    calls: Mapping[Call, int],
    timer_of: Callable[[Values], Timer],
    others: Values,
    device: torch.device,
) -> tuple[Measured, Measured]:
    """The products' total time with a setting off and on, under the values of the `others`."""

    def measured(value: bool) -> Measured:
        timer = timer_of({**others, setting.name: value})
        seconds, reason = total_time(calls, timer, device, form=_product, default=_product)
        if reason:
            log.info("setting %s is dropped: %s", setting.title(value), reason)
        return Measured(setting.name, "on" if value else "off", seconds, reason)

    return measured(False), measured(True)


def gains(off: Measured, on: Measured) -> bool:
    """Whether a setting is worth turning on."""
    if off.seconds is None or on.seconds is None:
        return False
    return on.seconds < (1 - LEAST_GAIN) * off.seconds


def text_of(values: Values) -> str:
    """Like "conv_as_mm=on cudnn_benchmark=off max_autotune=off"."""
    return " ".join(setting.title(values[setting.name]) for setting in registry.SETTINGS)


def _product(call: Call) -> Form:
    """The operator of a call as a function that can be compiled."""
    operator = PRODUCTS[call.slot]

    def product(*arguments: Any) -> Any:
        return operator(*arguments)

    return product


def _is_convolution(call: Call) -> bool:
    return call.slot == "convolution"


def _is_matrix_product(call: Call) -> bool:
    """A 1x1 convolution of every pixel: stride 1, no padding, one group."""
    if not _is_convolution(call):
        return False
    _, weight, _, stride, padding, _, transposed, _, groups = call.arguments
    assert isinstance(weight, Operand)
    plain = (stride, padding, transposed, groups) == ((1, 1), (0, 0), False, 1)
    return plain and weight.shape[2:] == (1, 1)


_CONCERNED: Mapping[str, Callable[[Call], bool]] = {
    "conv_as_mm": _is_matrix_product,
    "cudnn_benchmark": _is_convolution,
    "max_autotune": lambda _: True,
}
"""By setting, whether it may change the kernel of a product."""
