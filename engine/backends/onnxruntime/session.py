# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime sessions of a bundle's networks: graphs, weight locations, errors."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from lamp_trt import NO_TELEMETRY
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.files.links import utf8_path
from lamp_trt.engine.graph.model import bundle_model


def cpu_model(bundle: Bundle, network: str, motion: str | None) -> Any:
    """`bundle_model` with the operators that have the better kernels in ONNX Runtime's CPU provider."""
    from lamp_trt.engine.backends.onnxruntime.cpu_graph import use_cpu_kernels

    model = bundle_model(bundle, network, motion)
    use_cpu_kernels(model)
    return model


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime. Its first import reads the telemetry switch that `import lamp_trt` set; a host
    program may have cleared the environment since."""
    if "onnxruntime" not in sys.modules:
        os.environ.setdefault(NO_TELEMETRY, "1")
    return importlib.import_module("onnxruntime")


def place_weights(bundle: Bundle, model: Any) -> dict[str, bytes]:
    """Session options with which ONNX Runtime finds the weights of `model`; bytes, since paths may not be
    UTF-8.

    ONNX Runtime refuses files outside a given folder, after following links. So if a file of the bundle is a
    link to outside, `model` is pointed at the link targets, below a common folder.
    """
    entries = [
        entry
        for initializer in model.graph.initializer
        for entry in initializer.external_data
        if entry.key == "location"
    ]
    folder = os.path.realpath(bundle.path)
    files = {name: os.path.realpath(bundle.path_of(name)) for name in {entry.value for entry in entries}}
    if any(os.path.commonpath([folder, file]) != folder for file in files.values()):
        folder = os.path.commonpath([os.path.dirname(file) for file in files.values()])
        for entry in entries:
            entry.value = utf8_path(os.path.relpath(files[entry.value], folder))
    return {"session.model_external_initializers_file_folder_path": os.fsencode(folder)}


def new_session(
    bundle: Bundle,
    network: str,
    model: Any,
    providers: Sequence[str | tuple[str, Mapping[str, str]]],
    config: Mapping[str, str] | None = None,
    num_threads: int | None = None,
) -> Any:
    """Create a session of `model`, whose weights are in the bundle. EngineError if that fails.

    `model` may be changed, see `place_weights`.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal: errors are raised, and would be repeated on stderr
    for key, value in {**place_weights(bundle, model), **(config or {})}.items():
        options.add_session_config_entry(key, value)
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=list(providers))
    except Exception as error:  # the only common base of ONNX Runtime's exceptions
        raise EngineError(f"ONNX Runtime cannot load {network} of {bundle.path}: {error}") from error
