# SPDX-License-Identifier: Apache-2.0
"""Context managers undo what they did, also when their block raises."""

import ast
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from lamp_trt.benchmarks.bench.entries import ceilings
from lamp_trt.engine.torch_threads import torch_threads
from lamp_trt.export import onnx as onnx_export
from lamp_trt.runtime.cuda import device as cuda_device
from tests.doubles.host_device import HostDevice

ROOT = Path(__file__).parents[2]
PRODUCT = (
    "engine",
    "export",
    "runtime",
    "serving",
    "benchmarks",
    "src/lamp_trt/commands",
    "src/lamp_trt/doctor",
)

ON_SUCCESS_ONLY = {
    "written_file": "commits what was written",
    "replacing": "commits what was written",
    "written": "commits what was written",
    "create": "commits what was written",
    "_building": "only returns",
    "_timed": "a block that raises has no time",
    "_opaque": "a check of what the block made, after its values are restored in `finally`",
}
"""Context managers that run code only after a block that succeeded, and why."""


class OutOfLuckError(Exception):
    pass


def fail_in(context: AbstractContextManager[Any], check: Callable[[Any], None]) -> None:
    """Enter `context`, check, and leave it by an error that must come out."""
    with pytest.raises(OutOfLuckError):
        _raise_in(context, check)


def _raise_in(context: AbstractContextManager[Any], check: Callable[[Any], None]) -> None:
    with context as value:
        check(value)
        raise OutOfLuckError


def context_managers() -> Iterator[tuple[Path, ast.FunctionDef]]:
    for package in PRODUCT:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef) and any(
                    "contextmanager" in ast.unparse(decorator) for decorator in node.decorator_list
                ):
                    yield path, node


def skipped_by_an_error(statements: list[ast.stmt]) -> bool:
    """Whether statements follow a `yield` that an error in the block would skip."""
    for index, statement in enumerate(statements):
        if not any(isinstance(node, ast.Yield) for node in ast.walk(statement)):
            continue
        if statements[index + 1 :]:
            return True
        return any(
            skipped_by_an_error(block)
            for name in ("body", "orelse", "finalbody")
            if isinstance(block := getattr(statement, name, None), list)
        )
    return False


def test_nothing_after_a_yield_is_skipped_by_an_error() -> None:
    found = {node.name for _, node in context_managers() if skipped_by_an_error(node.body)}
    assert found == set(ON_SUCCESS_ONLY)


@pytest.mark.parametrize("count", [1, 3, None])
def test_torch_has_its_own_number_of_threads_again(count: int | None) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    fail_in(torch_threads(count), lambda _: seen.append(torch.get_num_threads()))
    assert seen == [count or before]
    assert torch.get_num_threads() == before


def test_only_scoped_places_set_torchs_number_of_threads() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for package in PRODUCT
        for path in (ROOT / package).rglob("*.py")
        if "set_num_threads" in path.read_text()
    }
    assert users == {"engine/torch_threads.py", "export/toy/training.py"}


def test_a_copy_that_fails_closes_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = HostDevice()
    monkeypatch.setattr(cuda_device, "CudaDevice", lambda ordinal: device)
    monkeypatch.setattr(ceilings, "GPU_COPY_BYTES", 4096)

    def check(copy: Callable[[], float]) -> None:
        copy()
        assert not device.closed

    fail_in(ceilings._device_copy(0), check)
    assert device.closed


def test_parameters_hidden_from_the_optimizer_have_their_values_again() -> None:
    value = ir.Value(name="weight", const_value=ir.tensor([1.0, 2.0], name="weight"))
    graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 23})
    model = ir.Model(graph, ir_version=10)
    seen: list[object] = []
    fail_in(onnx_export._opaque(model, {"weight"}), lambda _: seen.append(value.const_value))
    assert seen == [None]
    assert value.const_value is not None
