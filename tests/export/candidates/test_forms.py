# SPDX-License-Identifier: Apache-2.0
"""Every form of a layer computes what the default does: alone, for all sizes and layouts, and in the UNet."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lamp_trt.engine.errors import InputError
from lamp_trt.export.candidates import choice, registry
from lamp_trt.export.candidates.calls import recorded_calls
from lamp_trt.export.candidates.packages import apply_forms
from lamp_trt.export.candidates.registry import CANDIDATES, SLOTS, Candidate
from lamp_trt.export.lamp.lean_unet import make_lean
from tests.export.lamp.test_unet import inputs, random_unet
from tests.tolerances import LEAN_FP32_REL_L2

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = [candidate for candidate in CANDIDATES if not candidate.requires]
OTHERS = [candidate for candidate in PLAIN if candidate != registry.default_of(candidate.slot)]

Sizes = tuple[int, int, int, int, int]
"""Videos, channels, frames, height, width."""

SIZES: tuple[Sizes, ...] = ((2, 64, 16, 5, 7), (1, 8, 1, 1, 1), (2, 24, 2, 3, 2), (1, 40, 3, 4, 1))


def arguments(
    slot: str, sizes: Sizes, dtype: torch.dtype = torch.float32, *, channels_last: bool = True
) -> tuple[Any, ...]:
    """Of a slot's forms: random, of a mean that is not 0. channels_last: as on a GPU."""
    b, c, f, h, w = sizes
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int, scale: float = 1.0) -> Tensor:
        return ((torch.randn(shape, generator=generator) + 0.3) * scale).to(dtype)

    def video(*shape: int) -> Tensor:
        """(b, c, …) of `shape` (b, …, c) if channels are last."""
        return values(*shape).movedim(-1, 1) if channels_last else values(shape[0], c, *shape[1:-1])

    if slot == registry.GATE:
        images, weight = video(b * f, h, w, c), values(1, c, 3, 3, scale=(9 * c) ** -0.5)
        return images, video(b, f, h * w, c), weight, values(1)
    if slot == registry.TEMPORAL_CONV:
        return video(b, f, h * w, c), values(c, c, 3, 1, scale=(3 * c) ** -0.5), values(c)
    if slot == registry.TEMPORAL_ATTENTION:
        return *(values(b, f, h * w, c) for _ in range(3)), 4
    return video(b, f, h, w, c), values(c), values(c), 4, 1e-5


@pytest.mark.parametrize("candidate", OTHERS, ids=lambda candidate: candidate.title)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels last", "contiguous"])
def test_a_form_is_another_rounding_of_the_default(
    candidate: Candidate, sizes: Sizes, channels_last: bool
) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        values = arguments(candidate.slot, sizes, dtype, channels_last=channels_last)
        default = registry.default_of(candidate.slot).load()
        result = candidate.load()(*values)
        assert choice.disagreement(default, values, result, candidate.fp32_rel_l2) == ""


@pytest.mark.parametrize("slot", SLOTS)
def test_a_wrong_form_is_no_rounding(slot: str) -> None:
    """A relative error of 1e-4 in fp32 and of a few roundings in 16 bits; another shape or dtype."""
    for dtype, error in ((torch.float32, 1e-4), (torch.float16, 4e-3), (torch.bfloat16, 4e-2)):
        default = registry.default_of(slot).load()
        values = arguments(slot, SIZES[0], dtype)
        result = default(*values)

        def why(ours: Tensor, default: choice.Form = default, values: tuple[Any, ...] = values) -> str:
            return choice.disagreement(default, values, ours, registry.FP32_REL_L2)

        assert why(result) == ""
        assert "from the default in fp32, limit" in why(result * (1 + error))
        assert "not torch." in why(result.double())
        assert "it returns" in why(result[:, :1])
        assert "inf from the default" in why(result * float("nan"))


@pytest.mark.parametrize("candidate", PLAIN, ids=lambda candidate: candidate.title)
def test_the_unet_with_a_form_is_the_unet(candidate: Candidate) -> None:
    unet = random_unet()
    lean, (sample, timestep, text) = make_lean(unet), inputs(2, 3, 8, 6)
    apply_forms(lean, candidate.title)
    used = [layer for layer in lean.modules() if candidate.slot in vars(layer)]
    assert used
    with torch.inference_mode():
        expected, ours = unet(sample, timestep, text), lean(sample, timestep, text)
    assert float((ours - expected).norm() / expected.norm()) <= LEAN_FP32_REL_L2


def test_the_direct_order_is_read_and_written_without_a_copy() -> None:
    """Batch and pixels do not merge to a view; pixels and heads do."""
    q, k, v, heads = arguments(registry.TEMPORAL_ATTENTION, SIZES[0])
    views = [torch.unflatten(t, 3, (heads, -1)).flatten(2, 3).transpose(1, 2) for t in (q, k, v)]
    assert [view.data_ptr() for view in views] == [t.data_ptr() for t in (q, k, v)]
    assert (
        registry.find(registry.TEMPORAL_ATTENTION, "pixels_as_heads").load()(q, k, v, heads).is_contiguous()
    )


def test_the_registry_names_every_form_once() -> None:
    assert len({candidate.title for candidate in CANDIDATES}) == len(CANDIDATES)
    assert {candidate.slot for candidate in CANDIDATES} == set(SLOTS)
    for slot in SLOTS:
        default, *others = registry.of_slot(slot)
        assert default.replaces == ""
        assert others
        assert all(other.replaces for other in others)
        assert all(candidate.requires == "" for candidate in registry.timed(slot))


def test_a_choice_is_text_and_back() -> None:
    assert registry.text_of({}) == registry.text_of({"gate": "convolution"}) == "default"
    text = registry.text_of({"temporal_conv": "shifted", "gate": "taps", "norm_silu": "native"})
    assert text == "gate=taps,temporal_conv=shifted"
    assert registry.parsed(text) == {"gate": "taps", "temporal_conv": "shifted"}
    assert registry.parsed("default") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gates=taps", "there is no layer form 'gates'; choose of gate, temporal_conv"),
        ("gate", "gate has no form ''; choose of convolution, padded, taps, reduction, triton"),
        ("gate=fast", "gate has no form 'fast'"),
        ("gate=taps,gate=padded", "gate is given twice"),
        ("", "there is no layer form ''"),
    ],
)
def test_unknown_forms_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.parsed(text)


def test_calls_are_recorded_with_their_layout_and_leave_the_module_as_it_was() -> None:
    lean, values = make_lean(random_unet()), inputs(2, 3, 8, 6)
    before = [set(vars(layer)) for layer in lean.modules()]
    calls = recorded_calls(lean, values)
    assert [set(vars(layer)) for layer in lean.modules()] == before
    counts = {slot: sum(n for call, n in calls.items() if call.slot == slot) for slot in SLOTS}
    convolutions = sum(hasattr(type(layer), "temporal_conv") for layer in lean.modules())
    assert counts["gate"] == counts["temporal_conv"] == convolutions > 20
    assert counts["temporal_attention"] == sum(
        hasattr(type(layer), "temporal_attention") for layer in lean.modules()
    )
    assert counts["norm_silu"] == 2 * sum(hasattr(type(layer), "norm_silu") for layer in lean.modules())
    first = next(call for call in calls if call.slot == "gate")
    assert [a.shape for a in first.arguments if not isinstance(a, int | float)] == [
        (6, 8, 8, 6),
        (2, 8, 3, 48),
        (1, 8, 3, 3),
        (1,),
    ]


def test_a_network_without_these_layers_is_not_run() -> None:
    class Untouched(torch.nn.Module):
        def forward(self, *_: Tensor) -> Tensor:
            raise AssertionError("it ran")

    assert not recorded_calls(Untouched(), ())
