# SPDX-License-Identifier: Apache-2.0
"""Bodies of requests for videos: JSON, or forms with a file."""

import asyncio
from collections.abc import Mapping

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from lamp_trt.engine.files.text import TextError, parse_json
from lamp_trt.serving.jobs.fields import FieldError
from lamp_trt.serving.settings import Limits
from lamp_trt.serving.web.uploads import check_image_size, image_from_data_url

MAX_FIELDS = 40
MAX_FIELD_BYTES = 128 << 10
"""Of a text in a form; an image as a data: URL is larger and comes as JSON or as a file."""


class BodyError(Exception):
    """A body that cannot be read. status: of the reply."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


async def read_request(request: Request, limits: Limits) -> tuple[Mapping[str, object], bytes | None]:
    """Fields without the image, and the image's bytes. Raises BodyError and FieldError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        async with asyncio.timeout(limits.body_seconds):
            if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
                return await _read_form(request, limits)
            if kind in ("application/json", ""):
                return _read_json(await request.body(), limits)
    except TimeoutError as error:
        raise BodyError(f"the body did not come within {limits.body_seconds:g} s.", 408) from error
    raise BodyError(f"Content-Type is {kind!r:.100}; expected multipart/form-data or application/json.", 415)


def _read_json(body: bytes, limits: Limits) -> tuple[Mapping[str, object], bytes | None]:
    try:
        fields = parse_json(body.decode("utf-8"))
    except (TextError, UnicodeDecodeError) as error:
        raise BodyError("the body is not JSON in UTF-8.") from error
    if not isinstance(fields, dict):
        raise BodyError("the body is not a JSON object.")
    return _without_image(fields, None, limits)


async def _read_form(request: Request, limits: Limits) -> tuple[Mapping[str, object], bytes | None]:
    fields: dict[str, object] = {}
    image: bytes | None = None
    try:
        async with request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES) as form:
            for name, value in form.multi_items():
                if name in fields or (name == "input_reference" and image is not None):
                    raise FieldError(name, f"{name:.100} is given twice.")
                if not isinstance(value, UploadFile):
                    if value != "" or name == "negative_prompt":
                        fields[name] = value
                elif name != "input_reference":
                    raise FieldError(name, f"{name:.100} is a file; expected a text.")
                else:
                    image = await value.read(limits.image_bytes + 1)
    except HTTPException as error:
        raise BodyError(f"the form cannot be read: {error.detail}") from error
    except (UnicodeDecodeError, ValueError) as error:
        if isinstance(error, FieldError):
            raise
        raise BodyError("the form cannot be read: it is damaged, or not in UTF-8.") from error
    return _without_image(fields, image, limits)


def _without_image(
    fields: Mapping[str, object], image: bytes | None, limits: Limits
) -> tuple[Mapping[str, object], bytes | None]:
    rest = {name: value for name, value in fields.items() if name != "input_reference"}
    given = fields.get("input_reference")
    if given is not None:
        if image is not None:
            raise FieldError("input_reference", "input_reference is given twice.")
        image = image_from_data_url(given, limits.image_bytes)
    return rest, None if image is None else check_image_size(image, limits.image_bytes)
