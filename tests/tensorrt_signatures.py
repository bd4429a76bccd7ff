# SPDX-License-Identifier: Apache-2.0
"""The names and arguments of TensorRT's Python API, read from its bindings' own documentation strings.

The bindings' wheels on PyPI are real, the libraries below them are not there; but importing needs nine
functions of three libraries only, and any will do. `python tensorrt_signatures.py VERSION ...` fetches the
bindings of those versions and writes tests/tensorrt_api/VERSION.txt.
"""

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

CLASSES = (
    "Builder",
    "BuilderFlag",
    "DataType",
    "EngineInspector",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "IStreamWriter",
    "ITensor",
    "ITimingCache",
    "LayerInformationFormat",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Refitter",
    "Runtime",
    "TensorIOMode",
    "TensorLocation",
    "Weights",
)
"""Those that engine/ uses."""

SNAPSHOTS = Path(__file__).with_name("tensorrt_api")
_ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)

Signatures = dict[str, list[str]]
"""By "Class.member": for a method the argument lists of its overloads, like "name, weights, location="."""


def signatures(module: ModuleType) -> Signatures:
    """Of CLASSES; a constructor is "Class.__init__", anything that is no method has no argument list."""
    found: Signatures = {}
    for name in CLASSES:
        kind = getattr(module, name)
        found[name] = []
        for member in (
            "__init__",
            *(m for m in dir(kind) if not m.startswith("_") and m not in ("name", "value")),
        ):
            found[f"{name}.{member}"] = list(_arguments(member, getattr(kind, member).__doc__ or ""))
        for member in ("name", "value"):
            if hasattr(kind, member) and not hasattr(kind, "__members__"):
                found[f"{name}.{member}"] = []
    return found


def _arguments(member: str, documentation: str) -> Iterator[str]:
    for line in documentation.splitlines():
        match = re.match(rf"(?:\d+\. )?{re.escape(member)}\((self\b.*)\)( -> .*)?$", line.strip())
        if match:
            yield ", ".join(_names(match[1]))


def _names(arguments: str) -> Iterator[str]:
    """From "self: A, name: str, size: int = 3": "name", "size="."""
    depth, start = 0, 0
    parts = []
    for index, character in enumerate(arguments):
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parts.append(arguments[start:index])
            start = index + 1
    parts.append(arguments[start:])
    for part in parts[1:]:
        name = part.partition(":")[0].strip()
        yield f"{name}=" if " = " in part else name


def to_text(found: Signatures) -> str:
    """One line for each member: `Class.member`, or `Class.method(a, b=)` with its overloads behind bars."""
    lines = [
        name + (" | ".join(f"({arguments})" for arguments in overloads) if overloads else "")
        for name, overloads in sorted(found.items())
    ]
    return "\n".join(lines) + "\n"


def from_text(text: str) -> Signatures:
    found: Signatures = {}
    for line in text.splitlines():
        name, bracket, rest = line.partition("(")
        overloads = (bracket + rest).split(" | ") if bracket else []
        found[name] = [overload[1:-1] for overload in overloads]
    return found


def fetched(version: str, folder: Path) -> str:
    """The text of a version's API, from bindings that pip fetches into `folder`, over stub libraries.

    CalledProcessError, with its output, if there is no network, no wheel for this Python, or no C compiler.
    """
    wheel = f"tensorrt-cu13-bindings=={version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wheel]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    source = folder / "stub.c"
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in _ENTRY_POINTS))
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        name = f"lib{library}.so.{version.partition('.')[0]}"
        command = ["cc", "-shared", "-fPIC", "-o", str(folder / name), str(source), f"-Wl,-soname,{name}"]
        subprocess.run(command, check=True, capture_output=True, text=True)
    code = "import tensorrt_bindings as t, tensorrt_signatures as s; print(s.to_text(s.signatures(t)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": f"{folder}:{Path(__file__).parent}"},
    )
    return done.stdout.strip() + "\n"


if __name__ == "__main__":
    SNAPSHOTS.mkdir(exist_ok=True)
    for wanted in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as temporary:
            (SNAPSHOTS / f"{wanted}.txt").write_text(fetched(wanted, Path(temporary)))
