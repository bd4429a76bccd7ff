# SPDX-License-Identifier: Apache-2.0
"""Uploaded images: taken from a request, and decoded in a sandboxed process that is kept warm."""

import asyncio
import base64
import binascii
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.serving.jobs.fields import FieldError

MAX_PIXELS = 1 << 25
"""Of an upload: 33 million, 8192x4096."""
DECODE_SECONDS = 30.0

_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.ASCII)


def image_from_data_url(field: str, value: object, max_bytes: int) -> bytes:
    """The bytes of a `data:` URL, or of {"image_url": "data:…"}. Nothing is fetched. Raises FieldError."""
    if isinstance(value, dict):
        if set(value) != {"image_url"}:
            raise FieldError(
                field,
                f'{field} is an object; expected {{"image_url": "data:image/png;base64,…"}}. '
                "file_id and other fields are not supported.",
            )
        value = value["image_url"]
    if not isinstance(value, str) or not (prefix := _DATA_URL.match(value)):
        raise FieldError(
            field,
            f"{field} is {value!r:.40}; expected a file of a form, or data:image/png;base64,… "
            "Other addresses are not fetched.",
        )
    encoded = value[prefix.end() :]
    if len(encoded) * 3 // 4 > max_bytes + 3:
        raise too_large(field, max_bytes)
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FieldError(field, f"{field} is not base64: {error}.") from error


def too_large(field: str, max_bytes: int) -> FieldError:
    message = f"{field} has more than {max_bytes >> 20} MiB; make the image smaller."
    return FieldError(field, message, 413)


class Decoder:
    """The sandbox's process, started when it is first needed or by `start`, and again after it failed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        await self.close()
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            command = [sys.executable, "-m", "lamp_trt.serving.web.decoder", str(fd)]
            threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(fd,),
                env={**kept, **threads},
                start_new_session=True,
            )
        self._streams = await asyncio.open_connection(sock=ours)

    async def decode(
        self, data: bytes, size: tuple[int, int], fit: str, background: str, field: str = "input_reference"
    ) -> NDArray[np.uint8]:
        """Decode and fit an image file to uint8 RGB (height, width, 3), size: (height, width). Raises
        FieldError for one that cannot be used."""
        if not data:
            raise FieldError(field, f"{field} is an empty file; send an image.")
        async with self._one_at_a_time:
            await self.start()
            try:
                async with asyncio.timeout(DECODE_SECONDS):
                    reply, pixels = await self._ask(data, size, fit, background)
            except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, ValueError) as error:
                await self.close()
                raise FieldError(field, f"{field} cannot be decoded: the decoder failed.") from error
            except asyncio.CancelledError:
                await self.close()
                raise
        if reply["error"] is not None:
            raise FieldError(field, f"{field}: {reply['error']}")
        return np.frombuffer(pixels, np.uint8).reshape(*size, 3)

    async def _ask(
        self, data: bytes, size: tuple[int, int], fit: str, background: str
    ) -> tuple[dict[str, Any], bytes]:
        assert self._streams is not None
        reader, writer = self._streams
        request = {"height": size[0], "width": size[1], "fit": fit, "background": background}
        request |= {"size_bytes": len(data), "max_pixels": MAX_PIXELS}
        writer.write(json.dumps(request).encode() + b"\n" + data)
        await writer.drain()
        reply = json.loads(await reader.readline())
        pixels = await reader.readexactly(reply["size_bytes"])
        if reply["error"] is None and len(pixels) != size[0] * size[1] * 3:
            raise ValueError("the decoder sent another number of pixels")
        return reply, pixels

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # the fork of an image too
            self._process.wait()
            self._process = None


_KEPT = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "HOME", "VIRTUAL_ENV")
"""Variables that the sandbox sees."""
