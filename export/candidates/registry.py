# SPDX-License-Identifier: Apache-2.0
"""The registry of formulations, for every slot its default and its candidates, and of the settings of a
package's compiler. Imports no torch.

A slot is a place in the lean modules (export/lamp/lean_unet.py) whose computation can be written in several
ways. All forms of a slot have the same signature and are equal in exact arithmetic. On a GPU they are timed
on the network's own shapes and strides when a package is built (choice.py).
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lamp_trt.engine.errors import InputError

GATE, TEMPORAL_CONV = "gate", "temporal_conv"
TEMPORAL_ATTENTION, NORM_SILU = "temporal_attention", "norm_silu"
SLOTS = (GATE, TEMPORAL_CONV, TEMPORAL_ATTENTION, NORM_SILU)

DEFAULT = "default"
AUTO = "auto"
"""Requests: the default form of every slot, and the measured choice."""

FP32_REL_L2 = 2e-6
"""Distance in fp32 of a form to the default: sums of up to 3840 products in another order, each rounded to
2^-24. Measured 4e-7 at most."""

YARDSTICK = 2.0
"""In fp16 and bf16 a form's distance to the default in fp32 may be this times the default's own."""

_FORMS = "lamp_trt.export.candidates"


@dataclass(frozen=True)
class Candidate:
    """One form of a slot.

    form         "module:function"
    replaces     the work that it avoids, compared with the default; "" for the default
    fp32_rel_l2  its distance to the default in fp32 may be this
    requires     package that it needs on a GPU, "" if none
    measured     whether builds time it: a hand-written kernel stays off until a GPU has measured it
    """

    slot: str
    name: str
    form: str
    replaces: str = ""
    fp32_rel_l2: float = FP32_REL_L2
    requires: str = ""
    measured: bool = True

    @property
    def title(self) -> str:
        return f"{self.slot}={self.name}"

    def load(self) -> Callable[..., Any]:
        """The function. ModuleNotFoundError without the package that it requires."""
        module, _, function = self.form.partition(":")
        loaded: Callable[..., Any] = getattr(importlib.import_module(f"{_FORMS}.{module}"), function)
        return loaded


CANDIDATES = (
    Candidate(GATE, "convolution", "convolutions:gate_convolution"),
    Candidate(
        GATE, "padded", "convolutions:gate_padded", "a convolution with one output channel, by one with eight"
    ),
    Candidate(
        GATE, "taps", "convolutions:gate_taps", "the convolution, by one matrix product and nine shifted maps"
    ),
    Candidate(
        GATE,
        "reduction",
        "convolutions:gate_reduction",
        "the convolution and its multiply, by a sum over channels that the compiler fuses",
    ),
    Candidate(
        GATE,
        "triton",
        "kernels.gate_op:gated_sum",
        "the convolution and its multiply, by one kernel",
        requires="triton",
        measured=False,
    ),
    Candidate(TEMPORAL_CONV, "padded", "convolutions:temporal_padded"),
    Candidate(
        TEMPORAL_CONV,
        "two_sided",
        "convolutions:temporal_two_sided",
        "the padded copy, by two frames that are computed and dropped",
    ),
    Candidate(
        TEMPORAL_CONV,
        "unpadded",
        "convolutions:temporal_unpadded",
        "the padded copy and the products with zeros, by three convolutions without padding",
    ),
    Candidate(
        TEMPORAL_CONV,
        "shifted",
        "convolutions:temporal_shifted",
        "the convolution, by three products of shifted frames",
    ),
    Candidate(
        TEMPORAL_CONV,
        "one_product",
        "convolutions:temporal_one_product",
        "the convolution, by one product of three times the width and a shifted sum",
    ),
    Candidate(TEMPORAL_ATTENTION, "pixels_as_batch", "attention:pixels_as_batch"),
    Candidate(
        TEMPORAL_ATTENTION,
        "pixels_as_heads",
        "attention:pixels_as_heads",
        "four copies, by views: (b, f, L, c) is read and written directly",
    ),
    Candidate(
        TEMPORAL_ATTENTION,
        "one_video_at_once",
        "attention:one_video_at_once",
        "three copies, by views: pixels are the batch of each video",
    ),
    Candidate(
        TEMPORAL_ATTENTION,
        "small_matrices",
        "attention:small_matrices",
        "attention kernels whose tiles 16 frames do not fill, by sums that the compiler fuses",
    ),
    Candidate(
        TEMPORAL_ATTENTION,
        "triton",
        "kernels.temporal_attention_op:temporal_attention",
        "the copies and the tiles, by one kernel",
        requires="triton",
        measured=False,
    ),
    Candidate(NORM_SILU, "native", "norms:native"),
    Candidate(
        NORM_SILU,
        "folded",
        "norms:folded",
        "normalization of each value, by one scale and shift for each channel",
    ),
    Candidate(
        NORM_SILU,
        "by_channel",
        "norms:by_channel",
        "statistics over strided groups, by those of channels, which are then joined",
    ),
)
"""By slot, the default first."""


@dataclass(frozen=True)
class Setting:
    """A setting of Inductor or cuDNN, off by default: equal in exact arithmetic, chosen by timing products.

    name      option of a package's key, and of AotInductorOptions
    replaces  what it avoids when it is on
    """

    name: str
    replaces: str

    def title(self, on: bool) -> str:
        return f"{self.name}={'on' if on else 'off'}"


SETTINGS = (
    Setting("conv_as_mm", "1x1 convolutions, by matrix products"),
    Setting("cudnn_benchmark", "cuDNN's heuristics, by timing its algorithms at the first run"),
    Setting("max_autotune", "Inductor's heuristics, by timing kernels for every product while it compiles"),
)
"""In the order in which they are chosen."""


def of_slot(slot: str) -> tuple[Candidate, ...]:
    """The default and its candidates."""
    return tuple(candidate for candidate in CANDIDATES if candidate.slot == slot)


def default_of(slot: str) -> Candidate:
    return of_slot(slot)[0]


def timed(slot: str) -> tuple[Candidate, ...]:
    """Those that a build times, the default first."""
    return tuple(candidate for candidate in of_slot(slot) if candidate.measured)


def find(slot: str, name: str) -> Candidate:
    """InputError if the slot or the form is unknown."""
    if slot not in SLOTS:
        raise InputError(f"there is no layer form {slot!r}; choose of {', '.join(SLOTS)}.")
    for candidate in of_slot(slot):
        if candidate.name == name:
            return candidate
    known = ", ".join(candidate.name for candidate in of_slot(slot))
    raise InputError(f"{slot} has no form {name!r}; choose of {known}.")


def considered() -> str:
    """The forms that a measured choice chooses from, one line: a package that was built before one was added
    is built again."""
    return " ".join(f"{slot}={'|'.join(c.name for c in timed(slot))}" for slot in SLOTS)


def text_of(chosen: Mapping[str, str]) -> str:
    """A choice as keys and sidecars hold it, like "gate=taps,temporal_conv=two_sided"; "default" if no slot
    has another form than the default."""
    others = [
        f"{slot}={chosen[slot]}" for slot in SLOTS if slot in chosen and chosen[slot] != default_of(slot).name
    ]
    return ",".join(others) or DEFAULT


def parsed(text: str) -> dict[str, str]:
    """The choice that `text_of` wrote, or that a user gives. InputError for an unknown slot or form, or a
    slot given twice."""
    chosen: dict[str, str] = {}
    for part in [] if text == DEFAULT else text.split(","):
        slot, _, name = part.strip().partition("=")
        find(slot, name)
        if slot in chosen:
            raise InputError(f"the form of {slot} is given twice in {text!r}: leave one.")
        chosen[slot] = name
    return chosen
