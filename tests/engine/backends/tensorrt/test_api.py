# SPDX-License-Identifier: Apache-2.0
"""Every name of TensorRT that engine/ uses exists, with these arguments, in each version that it takes.

The versions' names are kept in tests/fixtures/tensorrt_api, read from the bindings by tensorrt_signatures.py;
those of the installed tensorrt_rtx are read live. Which class an expression is of is said in USES.
"""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamp_trt.engine.backends.tensorrt import trt as trt_seam
from lamp_trt.engine.backends.tensorrt.options import HARDWARE_COMPATIBILITY
from lamp_trt.engine.dtypes import DTYPES
from tests.fixtures.tensorrt_signatures import SNAPSHOTS, Signatures, fetched, from_text, signatures, to_text

TENSORRT = Path(trt_seam.__file__).parent
ENGINE = TENSORRT.parents[1]
VERSIONS = sorted(path.stem for path in SNAPSHOTS.glob("*.txt"))
MODULE = ""
"""The class of TensorRT's module itself."""

USES = {
    "trt.py": {"module": MODULE},
    "build.py": {
        "module": MODULE,
        "config": "IBuilderConfig",
        "flag": "BuilderFlag",
        "parsed.builder": "Builder",
        "config.get_timing_cache()": "ITimingCache",
    },
    "network.py": {
        "module": MODULE,
        "builder": "Builder",
        "config": "IBuilderConfig",
        "e": "ParserError",
        "network": "INetworkDefinition",
        "self.network": "INetworkDefinition",
        "optimization_profile": "IOptimizationProfile",
        "parser": "OnnxParser",
        "t": "ITensor",
    },
    "progress.py": {"module": MODULE},
    "engine.py": {
        "trt": MODULE,
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "self._engine": "ICudaEngine",
        "context": "IExecutionContext",
        "self._context": "IExecutionContext",
    },
    "layers.py": {"trt": MODULE, "engine": "ICudaEngine", "inspector": "EngineInspector"},
    "refit.py": {"trt": MODULE, "refitter": "Refitter", "wanted": "Weights"},
}
"""By file: what an expression is, as its source says it."""

NAMED_BY_VALUE = {
    *(f"HardwareCompatibilityLevel.{name.upper()}" for name in HARDWARE_COMPATIBILITY),
    *(f"DataType.{name}" for name in {dtype.tensorrt for dtype in DTYPES} - {None}),
}
"""What getattr is asked for."""

OVERRIDDEN = {
    "ILogger.log": "severity, msg",
    "IProgressMonitor.phase_start": "phase_name, parent_phase, num_steps",
    "IProgressMonitor.step_complete": "phase_name, step",
    "IProgressMonitor.phase_finish": "phase_name",
}
"""What TensorRT calls of ours."""


def used_names(file: str) -> Iterator[tuple[str, ast.Call | None]]:
    """("Class.member", the call if it is one) for every use in a file of engine/backends/tensorrt/."""
    tree = ast.parse((TENSORRT / file).read_text())
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            continue
        receiver = ast.unparse(node.value)
        if receiver in USES[file]:
            kind = USES[file][receiver]
            yield (f"{kind}.{node.attr}" if kind else node.attr), calls.get(id(node))
        elif (
            isinstance(node.value, ast.Attribute) and USES[file].get(ast.unparse(node.value.value)) == MODULE
        ):
            yield f"{node.value.attr}.{node.attr}", None


def api(version: str) -> Signatures:
    if version != "installed RTX":
        return from_text((SNAPSHOTS / f"{version}.txt").read_text())
    rtx = pytest.importorskip("tensorrt_rtx", reason="pip install 'lamp-trt[rtx]'")
    return signatures(rtx)


def fits(call: ast.Call, arguments: str) -> bool:
    """Whether an argument list like "name, size=" takes what is passed."""
    names = [name.removesuffix("=") for name in arguments.split(", ") if name]
    required = {name for name in arguments.split(", ") if name and not name.endswith("=")}
    by_position = names[: len(call.args)]
    by_name = [keyword.arg for keyword in call.keywords]
    given = [*by_position, *by_name]
    fit = len(call.args) <= len(names) and all(name in names for name in by_name)
    return fit and required <= set(given) and len(set(given)) == len(given)


def test_there_are_versions_from_the_oldest_that_we_take_to_the_newest() -> None:
    versions = [tuple(map(int, version.split(".")[:2])) for version in VERSIONS]
    assert min(versions) == trt_seam.OLDEST
    assert trt_seam.REFIT_LOSES_BIAS < max(versions) < trt_seam.NEWEST_EXCLUDED


@pytest.mark.parametrize("file", USES)
@pytest.mark.parametrize("version", [*VERSIONS, "installed RTX"])
def test_every_name_that_is_used_exists_and_takes_what_it_is_given(version: str, file: str) -> None:
    known = api(version)
    uses = list(used_names(file))
    assert uses
    for name, call in uses:
        assert name in known, f"{version} has no {name}"
        overloads = known.get(f"{name}.__init__", known[name]) if call is not None else []
        if call is not None and overloads:
            assert any(fits(call, arguments) for arguments in overloads), (name, ast.unparse(call), overloads)


@pytest.mark.parametrize("version", [*VERSIONS, "installed RTX"])
def test_names_that_are_put_together_exist(version: str) -> None:
    assert set(api(version)) >= NAMED_BY_VALUE


@pytest.mark.parametrize("version", [*VERSIONS, "installed RTX"])
def test_what_tensorrt_calls_of_ours_has_the_arguments_that_it_passes(version: str) -> None:
    known = api(version)
    for name, arguments in OVERRIDDEN.items():
        assert known[name] in ([arguments], []), name
        assert name in known


@pytest.mark.parametrize("file", USES)
def test_the_table_of_uses_names_what_is_there(file: str) -> None:
    source = ast.parse((TENSORRT / file).read_text())
    expressions = {ast.unparse(node.value) for node in ast.walk(source) if isinstance(node, ast.Attribute)}
    assert expressions >= set(USES[file])


def test_no_other_file_of_the_engine_touches_tensorrt() -> None:
    words = ("import_module(name)", "= tensorrt()", "trt.Runtime", "trt.Refitter", "module.Builder")
    files = {path for path in ENGINE.rglob("*.py") if any(word in path.read_text() for word in words)}
    assert files
    assert files <= {TENSORRT / file for file in USES}


@pytest.mark.parametrize(
    ("call", "arguments", "fit"),
    [
        ("f(1, 2)", "a, b", True),
        ("f(1, b=2)", "a, b", True),
        ("f(1)", "a, b=", True),
        ("f(1)", "a, b", False),
        ("f(1, 2, 3)", "a, b", False),
        ("f(1, c=2)", "a, b=", False),
        ("f(1, a=2)", "a, b=", False),
        ("f()", "", True),
    ],
)
def test_calls_are_compared_with_argument_lists(call: str, arguments: str, fit: bool) -> None:
    node = ast.parse(call, mode="eval").body
    assert isinstance(node, ast.Call)
    assert fits(node, arguments) is fit


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_kept_names_are_those_of_the_bindings(version: str, tmp_path: Path) -> None:
    try:
        text = fetched(version, tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the bindings of {version} cannot be fetched or imported here: {error.stderr[-300:]}")
    assert from_text(text) == api(version)
    assert to_text(from_text(text)) == (SNAPSHOTS / f"{version}.txt").read_text()
