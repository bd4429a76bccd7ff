# SPDX-License-Identifier: Apache-2.0
"""Bodies of requests for videos: JSON, or forms with files."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from lamp_trt.engine.errors import OutputError
from lamp_trt.engine.files.output import written
from lamp_trt.engine.files.text import TextError, decode_text, parse_json
from lamp_trt.serving.jobs.fields import FieldError
from lamp_trt.serving.settings import Limits
from lamp_trt.serving.web.uploads import image_from_data_url, too_large

MAX_FIELDS = 40
MAX_FIELD_BYTES = 128 << 10
"""Of a text in a form; an image as a data: URL is larger and comes as JSON or as a file."""


class BodyError(Exception):
    """A body that cannot be read. status: of the reply."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Files:
    """The fields of a request that may be files. image: a picture. video_to: where the file of the field
    `video` is written, None for requests without one."""

    image: str = "input_reference"
    video_to: Path | None = None


@dataclass(frozen=True)
class Body:
    """A request that was read. image: a file's bytes. has_video: a video was uploaded and written."""

    fields: Mapping[str, object]
    image: bytes | None = None
    has_video: bool = False


async def read_request(request: Request, limits: Limits, files: Files = Files()) -> Body:
    """The fields of a request, and its files apart. Raises BodyError, FieldError, and OutputError where an
    upload cannot be stored."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        async with asyncio.timeout(limits.body_seconds):
            if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
                return await _read_form(request, limits, files)
            if kind in ("application/json", "") and files.video_to is None:
                return _read_json(await request.body(), limits)
    except TimeoutError as error:
        raise BodyError(f"the body did not come within {limits.body_seconds:g} s.", 408) from error
    expected = "multipart/form-data" + (" or application/json" if files.video_to is None else "")
    raise BodyError(f"Content-Type is {kind!r:.100}; expected {expected}.", 415)


def _read_json(body: bytes, limits: Limits) -> Body:
    try:
        fields = parse_json(decode_text(body))
    except TextError as error:
        raise BodyError(f"the body {error}") from error
    if not isinstance(fields, dict):
        raise BodyError("the body is not a JSON object.")
    return _without_image(fields, None, limits, Files())


@asynccontextmanager
async def _form(request: Request, max_files: int) -> AsyncIterator[list[tuple[str, str | UploadFile]]]:
    """The items of a form, whose texts are UTF-8. Raises UnicodeDecodeError for other bytes, which Starlette
    reads as Latin-1, and BodyError for another charset."""
    header = Message()
    header["content-type"] = request.headers["content-type"]
    charset = header.get_content_charset("utf-8")
    if charset not in ("utf-8", "utf8"):
        raise BodyError(f"the form's charset is {charset!r:.100}; expected utf-8.", 415)
    if header.get_content_type() == "application/x-www-form-urlencoded":
        text = (await request.body()).decode("utf-8")
        yield [*parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)]
        return
    header.set_param("charset", "latin-1")  # each byte a character, to be decoded here
    others = [pair for pair in request.scope["headers"] if pair[0].lower() != b"content-type"]
    changed = [*others, (b"content-type", header["content-type"].encode("latin-1"))]
    form = Request({**request.scope, "headers": changed}, request.receive).form(
        max_files=max_files, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    async with form as items:
        yield [
            (_utf8(name), value if isinstance(value, UploadFile) else _utf8(value))
            for name, value in items.multi_items()
        ]


def _utf8(text: str) -> str:
    return text.encode("latin-1").decode("utf-8")


async def _read_form(request: Request, limits: Limits, files: Files) -> Body:
    fields: dict[str, object] = {}
    image: bytes | None = None
    has_video = False
    max_files = 1 if files.video_to is None else 2
    try:
        async with _form(request, max_files) as items:
            seen: set[str] = set()
            for name, value in items:
                if name in seen:
                    raise FieldError(name, f"{name:.100} is given twice.")
                seen.add(name)
                if not isinstance(value, UploadFile):
                    if value != "" or name == "negative_prompt":
                        fields[name] = value
                elif name == files.image:
                    image = await value.read(limits.image_bytes + 1)
                elif name == "video" and files.video_to is not None:
                    await _in_thread(_store, value.file, files.video_to, limits.video_bytes)
                    has_video = True
                else:
                    raise FieldError(f"{name:.100}", f"{name:.100} is a file; expected a text.")
    except OSError as error:
        raise OutputError(f"the upload cannot be stored: {error.strerror or error}.") from error
    except HTTPException as error:
        raise BodyError(f"the form cannot be read: {error.detail}") from error
    except FieldError:
        raise
    except ValueError as error:
        raise BodyError("the form cannot be read: it is damaged, or not in UTF-8.") from error
    return _without_image(fields, image, limits, files, has_video)


async def _in_thread(function: Callable[..., None], *arguments: object) -> None:
    """Run a function in a thread; a cancelled caller still waits for its end, so that nothing comes after."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.gather(work, return_exceptions=True)
        raise


def _store(upload: BinaryIO, path: Path, max_bytes: int) -> None:
    upload.seek(0, os.SEEK_END)
    if upload.tell() > max_bytes:
        raise FieldError("video", f"video has more than {max_bytes >> 20} MiB; cut it first.", 413)
    upload.seek(0)
    with written(path) as (partial,), partial.open("wb") as file:
        shutil.copyfileobj(upload, file, 1 << 20)


def _without_image(
    fields: Mapping[str, object], image: bytes | None, limits: Limits, files: Files, has_video: bool = False
) -> Body:
    rest = {name: value for name, value in fields.items() if name != files.image}
    given = fields.get(files.image)
    if given is not None:
        image = image_from_data_url(files.image, given, limits.image_bytes)
    if image is not None and len(image) > limits.image_bytes:
        raise too_large(files.image, limits.image_bytes)
    return Body(rest, image, has_video)
