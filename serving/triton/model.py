# SPDX-License-Identifier: Apache-2.0
"""The model of Triton's Python backend: one pipeline for each instance, responses as steps are done."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from lamp_trt.engine.errors import Cancelled, InputError, LampError, SafetyError
from lamp_trt.engine.files.text import TextError, parse_json
from lamp_trt.serving.jobs.fields import parse_fields
from lamp_trt.serving.settings import ModelInfo
from lamp_trt.serving.triton.repository import SETTINGS_FILE


@dataclass(frozen=True)
class _Cancel:
    """Whether the client has cancelled or gone, asked between steps."""

    sender: Any

    def is_set(self) -> bool:
        return bool(self.sender.is_cancelled())


class TritonPythonModel:
    """Called by Triton: initialize, execute for each request, finalize. An instance makes one video at a
    time."""

    def initialize(self, args: Mapping[str, str]) -> None:
        from lamp_trt.runtime.load import load_pipeline
        from lamp_trt.runtime.requests import Placement

        self._pb = import_module("triton_python_backend_utils")
        text = Path(args["model_repository"], args["model_version"], SETTINGS_FILE).read_text()
        settings = json.loads(text)
        self._model = model_from_json(settings["model"])
        engine = settings["engine"]
        placement = dict(engine["placement"])
        if args["model_instance_kind"] == "GPU":
            placement["device"] = f"cuda:{args['model_instance_device_id']}"
        self._pipe = load_pipeline(
            engine["bundle"], Placement(**placement), expect_bundle=engine["expect_bundle"]
        )

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            self._answer(request)

    def finalize(self) -> None:
        self._pipe.close()

    def _answer(self, request: Any) -> None:
        """Send the responses of a request. The last one is sent whatever happens: a client waits for it."""
        codes = self._pb.TritonError
        sender = request.get_response_sender()
        end: Any = None
        try:
            end = self._video(request, sender)
        except Cancelled:
            end = self._error("cancelled.", codes.CANCELLED)
        except (InputError, SafetyError) as error:
            end = self._error(str(error), codes.INVALID_ARG)
        except LampError as error:
            end = self._error(str(error), codes.INTERNAL)
        finally:
            end = end or self._error("the model failed; see the server's log.", codes.INTERNAL)
            sender.send(end, flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _video(self, request: Any, sender: Any) -> Any:
        import numpy as np

        values, first_frame = self._inputs(request)
        fields = parse_fields(values, self._model, has_frame=first_frame is not None)

        def progress(stage: str, done: int, total: int) -> None:
            sender.send(self._response(done / max(total, 1) if stage == "denoise" else 0.0))

        options = {"seed": secrets.randbits(32), **fields.options}
        options["safety"] = self._model.safety if self._model.has_checker else "off"
        video = self._pipe(
            fields.prompt,
            motion=fields.motion,
            first_frame=first_frame,
            progress=progress,
            cancel=_Cancel(sender),
            **options,
        )
        return self._response(1.0, np.ascontiguousarray(video.frames), json.dumps(video.settings))

    def _inputs(self, request: Any) -> tuple[dict[str, object], Any]:
        """Fields as of the HTTP API, and the first frame. Raises InputError."""
        tensors = {}
        for name in ("prompt", "motion", "seed", "settings", "first_frame"):
            tensor = self._pb.get_input_tensor_by_name(request, name)
            if tensor is not None:
                tensors[name] = tensor.as_numpy()
        first_frame = tensors.pop("first_frame", None)
        return request_fields({name: array[0] for name, array in tensors.items()}), first_frame

    def _response(self, progress: float, frames: Any = None, settings: str = "") -> Any:
        import numpy as np

        tensor = self._pb.Tensor
        frames = np.zeros((0, 0, 0, 3), np.uint8) if frames is None else frames
        return self._pb.InferenceResponse(
            [
                tensor("progress", np.array([progress], np.float32)),
                tensor("frames", frames),
                tensor("settings_json", np.array([settings.encode()], np.object_)),
            ]
        )

    def _error(self, message: str, code: Any) -> Any:
        return self._pb.InferenceResponse(error=self._pb.TritonError(message[:2000], code))


def model_from_json(values: Mapping[str, Any]) -> ModelInfo:
    height, width = values["size"]
    return ModelInfo(**{**values, "motions": tuple(values["motions"]), "size": (height, width)})


def request_fields(tensors: Mapping[str, Any]) -> dict[str, object]:
    """Fields of the HTTP API from the values of tensors: bytes, and an integer seed. `settings` is a JSON
    object of more fields. Raises InputError."""
    fields: dict[str, object] = {}
    if "settings" in tensors:
        try:
            given = parse_json(_text("settings", tensors["settings"]))
        except TextError as error:
            raise InputError(f"settings {error}") from error
        if not isinstance(given, dict):
            raise InputError("settings are not a JSON object.")
        fields |= given
    for name in ("prompt", "motion"):
        if name in tensors:
            fields[name] = _text(name, tensors[name])
    if "seed" in tensors:
        fields["seed"] = int(tensors["seed"])
    return fields


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8.") from error
