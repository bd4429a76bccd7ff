# SPDX-License-Identifier: Apache-2.0
"""The choice of an attention kernel, with given times instead of a GPU's."""

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.export.attention_choice import KERNELS, AttentionCall, attention_calls, fastest
from lamp_trt.export.candidates.calls import Operand
from lamp_trt.export.networks import exported_network
from lamp_trt.export.recipe import recipe_from_options
from tests.fixtures.toy import toy_options


def operand(*shape: int, dtype: torch.dtype = torch.float32) -> Operand:
    """In the order of (b, tokens, heads, width), as split heads are."""
    _, heads, tokens, width = shape
    return Operand(shape, (heads * tokens * width, width, heads * width, 1), dtype)


_WIDE = operand(2, 8, 2560, 40, dtype=torch.float16)
_TEXT = operand(2, 8, 77, 160, dtype=torch.float16)
WIDE = AttentionCall(_WIDE, _WIDE, _WIDE)
NARROW = AttentionCall(operand(2, 8, 40, 160, dtype=torch.float16), _TEXT, _TEXT)


class TwoKinds(nn.Module):
    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        x = F.scaled_dot_product_attention(x, x, x)
        x = F.scaled_dot_product_attention(x, text, text)
        return F.scaled_dot_product_attention(x, x, x) + F.scaled_dot_product_attention(
            x, x, x, is_causal=True
        )


def test_calls_of_a_traced_network_are_counted_by_what_they_are_given() -> None:
    """The layout too: here heads are split, so that tokens are farther apart than heads."""
    x, text = torch.zeros(1, 6, 2, 8).transpose(1, 2), torch.zeros(1, 3, 2, 8).transpose(1, 2)
    calls = attention_calls(torch.export.export(TwoKinds(), (x, text), strict=False))
    own, given = operand(1, 2, 6, 8), operand(1, 2, 3, 8)
    assert calls == {
        AttentionCall(own, own, own): 2,
        AttentionCall(own, own, own, is_causal=True): 1,
        AttentionCall(own, given, given): 1,
    }


def test_random_operands_have_the_calls_layout() -> None:
    for shape, stride in (((2, 3, 4), (12, 1, 3)), ((2, 3, 4), (0, 4, 1)), ((1, 1), (7, 5))):
        made = Operand(shape, stride, torch.float16).random(torch.device("cpu"))
        assert (tuple(made.shape), made.stride(), made.dtype) == (shape, stride, torch.float16)
        assert torch.isfinite(made).all()


@pytest.mark.parametrize("network", ["text_encoder", "vae_decoder"])
def test_every_attention_of_a_network_is_counted(network: str, toy: Path, toy_bundle: Path) -> None:
    bundle = Bundle.open(toy_bundle)
    module = exported_network(recipe_from_options(toy_options(toy)), network)
    inputs = bundle.network(network).inputs
    arguments = tuple(torch.zeros(t.shape, dtype=getattr(torch, t.dtype)) for t in inputs)
    calls = attention_calls(torch.export.export(module, arguments, strict=False))
    graph = onnx.load(bundle.graph_path(network), load_external_data=False).graph
    assert calls.total() == sum(node.op_type == "Attention" for node in graph.node) > 0


def chosen(
    times: dict[str, tuple[float | None, float | None]], counts: tuple[int, int] = (1, 1)
) -> str | None:
    """times: of WIDE and NARROW by kernel."""

    def seconds(call: AttentionCall, kernel: SDPBackend) -> float | None:
        name = next(name for name, value in KERNELS.items() if value == kernel)
        return times[name][call == NARROW]

    return fastest(Counter({WIDE: counts[0], NARROW: counts[1]}), seconds)


def test_the_kernel_that_is_fastest_for_all_calls_together_is_preferred() -> None:
    times = {"flash": (2.0, 3.0), "efficient": (3.0, 3.0), "cudnn": (1.0, 5.0)}
    assert chosen(times, (1, 1)) == "flash"
    assert chosen(times, (3, 1)) == "cudnn"


def test_what_a_kernel_does_not_take_is_left_to_the_best_of_the_others() -> None:
    assert chosen({"flash": (1.0, None), "efficient": (2.0, 2.0), "cudnn": (None, None)}) == "flash"
    assert chosen({"flash": (1.0, None), "efficient": (2.0, None), "cudnn": (None, None)}) == "flash"


def test_where_no_kernel_takes_any_call_there_is_no_choice() -> None:
    assert chosen(dict.fromkeys(KERNELS, (None, None))) is None
    assert fastest({}, lambda call, kernel: 1.0) is None
