# SPDX-License-Identifier: Apache-2.0
"""The sandbox in which uploaded images are decoded: python -m lamp_trt.serving.web.decoder FD

FD is a socket. A request is a JSON line (`height`, `width`, `fit`, `background`, `size_bytes`, `max_pixels`)
and the file's bytes; the reply is a JSON line, `size_bytes` of pixels or `error`, and the pixels, uint8 RGB.
The process has imported everything and forks for each image; the fork gets limits on memory, time, files and
processes, and passes the pixels through shared memory of a fixed size. A decoder that fails or is taken over
ends with its image.
"""

import json
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamp_trt.engine.process_limits import limit_process

MEMORY_BYTES = 1 << 30
"""Of address space, in addition to what the process has before it forks."""
CPU_SECONDS = 10
MESSAGE_BYTES = 4096


def main(fd: int) -> None:
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _warm_up()
    with socket.socket(fileno=fd) as connection, connection.makefile("rwb") as stream:
        while line := stream.readline():
            request = json.loads(line)
            data = stream.read(request["size_bytes"])
            error, pixels = _decoded(data, request, fd)
            stream.write(json.dumps({"size_bytes": len(pixels), "error": error}).encode() + b"\n")
            stream.write(pixels)
            stream.flush()


def _decoded(data: bytes, request: Mapping[str, Any], fd: int) -> tuple[str | None, bytes]:
    """An error and no pixels, or None and the pixels."""
    size = request["height"] * request["width"] * 3
    with mmap.mmap(-1, size + MESSAGE_BYTES) as shared:
        child = os.fork()
        if child == 0:
            _decode_and_exit(data, request, shared, fd)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return None, shared[:size]
        if status == 1:
            message = shared[size:].rstrip(b"\0").decode("utf-8", "replace")
            return message or "the image cannot be read.", b""
        return "the image cannot be read within the limits on memory and time.", b""


def _decode_and_exit(data: bytes, request: Mapping[str, Any], shared: mmap.mmap, fd: int) -> None:
    """In the fork: write the pixels or a message, and end. Nothing of the parent's state is used again."""
    code = 2
    try:
        os.close(fd)
        _limit()
        code = _decode(data, request, shared)
    finally:
        os._exit(code)


def _decode(data: bytes, request: Mapping[str, Any], shared: mmap.mmap) -> int:
    from lamp_trt.engine.errors import InputError
    from lamp_trt.runtime.media.image import resize_to
    from lamp_trt.runtime.media.image_files import FORMATS, decode_image

    height, width = request["height"], request["width"]
    try:
        image = decode_image(data, "the image", request["background"], FORMATS, request["max_pixels"])
        pixels = resize_to(image, height, width, request["fit"]).tobytes()
    except InputError as error:
        message = str(error).encode()[:MESSAGE_BYTES]
        shared[height * width * 3 : height * width * 3 + len(message)] = message
        return 1
    shared[: len(pixels)] = pixels
    return 0


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    space = pages * resource.getpagesize() + MEMORY_BYTES
    limit_process(
        {
            resource.RLIMIT_AS: space,
            resource.RLIMIT_CPU: CPU_SECONDS,
            resource.RLIMIT_FSIZE: 0,
            resource.RLIMIT_NOFILE: 16,
            resource.RLIMIT_NPROC: 0,
            resource.RLIMIT_CORE: 0,
        }
    )
    signal.alarm(2 * CPU_SECONDS)


def _warm_up() -> None:
    """Import what decoding imports, so that forks need not."""
    import numpy as np

    from lamp_trt.runtime.media.image import encode_png, resize_to
    from lamp_trt.runtime.media.image_files import decode_image

    resize_to(decode_image(encode_png(np.zeros((8, 8, 3), np.uint8)), "the image"), 16, 16)


if __name__ == "__main__":
    main(int(sys.argv[1]))
