# SPDX-License-Identifier: Apache-2.0
"""What every ONNX Runtime session of a bundle has in common: graph, place of the weights, errors."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from lamp_trt import NO_TELEMETRY
from lamp_trt.engine.backends.contract import Array
from lamp_trt.engine.bundle.paths import weights_path
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.families import LAMP
from lamp_trt.engine.files.links import utf8_path


def bundle_model(bundle: Bundle, network: str, motion: str | None) -> Any:
    """The network's ModelProto without weights; with `motion`, pointing at that motion's tensors."""
    import onnx

    from lamp_trt.engine.graph.locate import point_at_motion

    model = onnx.load_from_string(bundle.graph_bytes(network))
    if motion is not None:
        files = (weights_path(bundle.network(network).component), bundle.manifest.motions[motion].file)
        base, own = ((file, read_weight_file(bundle.path_of(file))) for file in files)
        point_at_motion(model, base, own)
    return model


def cpu_model(bundle: Bundle, network: str, motion: str | None) -> Any:
    """The same with the operators that ONNX Runtime's CPU provider has the better kernels for."""
    from lamp_trt.engine.backends.onnxruntime.cpu_graph import use_cpu_kernels

    model = bundle_model(bundle, network, motion)
    use_cpu_kernels(model)
    return model


def shared_file(bundle: Bundle, motion: str) -> str:
    """Where the tensors lie that a session with this motion cannot exchange: all but the motion's, which a
    full motion brings itself."""
    entry = bundle.manifest.motions[motion]
    return entry.file if entry.kind == "full" else weights_path(bundle.network(LAMP.unet).component)


def motion_arrays(bundle: Bundle, motion: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """A motion's tensors in the shapes of `take_motion_as_inputs`, views of the mapped file."""
    arrays = read_weight_file(bundle.motion_path(motion)).arrays()
    return {name: arrays[name].reshape(shape) for name, shape in shapes.items()}


def import_onnxruntime() -> ModuleType:
    """onnxruntime, whose first import reads its telemetry switch. `import lamp_trt` set it; a host may have
    cleared the environment since."""
    if "onnxruntime" not in sys.modules:
        os.environ.setdefault(NO_TELEMETRY, "1")
    return importlib.import_module("onnxruntime")


def place_weights(bundle: Bundle, model: Any) -> dict[str, bytes]:
    """The session options by which ONNX Runtime finds the weights of `model`; bytes: a path may be no text.

    It refuses files outside of a folder that it is given, after following links. So where a file of the
    bundle is a link out of it, `model` is pointed at the files themselves, below a folder that holds all.
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
    """A session of `model`, whose weights lie in the bundle. EngineError if it cannot be made.

    `model` may be changed, see `place_weights`.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal: errors are raised too, so that lines on stderr would repeat them
    for key, value in {**place_weights(bundle, model), **(config or {})}.items():
        options.add_session_config_entry(key, value)
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=list(providers))
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        raise EngineError(f"ONNX Runtime cannot load {network} of {bundle.path}: {error}") from error
