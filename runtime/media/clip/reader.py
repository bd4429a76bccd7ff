# SPDX-License-Identifier: Apache-2.0
"""Clips to edit, from video files: frames of the bundle's number and size.

Files are decoded by decoder.py in a child process with limits on memory and time, because no other decoders
read so much from hostile files. docs/editing.md lists the outcome for each format and property.
"""

import hashlib
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.bundle.paths import possible_path
from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.runtime.algorithm.config import Fit
from lamp_trt.runtime.media.clip.limits import MAX_BYTES, MAX_PIXELS, NOT_A_VIDEO, WALL_SECONDS, demuxer_of
from lamp_trt.runtime.media.image import Image, resize_to
from lamp_trt.runtime.media.image_colour import background_rgb
from lamp_trt.runtime.media.image_samples import over
from lamp_trt.runtime.requests import MAX_CLIP_FRAMES, ClipRequest

log = logging.getLogger("lamp_trt")

_MAX_LINE = 4096


@dataclass(frozen=True, eq=False)
class Clip:
    """The taken frames of a video file.

    frames  uint8 RGB (f, height, width, 3)
    digest  sha256 of the frames
    """

    frames: NDArray[np.uint8]
    digest: str


def clip_digest(frames: NDArray[np.uint8]) -> str:
    """sha256 of frames (f, h, w, 3) and their shape."""
    head = "x".join(map(str, frames.shape)).encode() + b"\n"
    return hashlib.sha256(head + np.ascontiguousarray(frames).tobytes()).hexdigest()


def check_video(path: Path) -> None:
    """Raise InputError unless `path` is a file that begins as an accepted format does. Decodes nothing."""
    with _opened(path):
        pass


def read_clip(
    request: ClipRequest,
    num_frames: int,
    height: int,
    width: int,
    fit: Fit = "stretch",
    background: str = "white",
    wall_seconds: float | None = None,
) -> Clip:
    """Read `num_frames` frames of a video, each fitted to (height, width).

    background: colour under transparent pixels. wall_seconds: that decoding may take, None for
    WALL_SECONDS. Says what was converted and left out. Raises InputError for a file that cannot be read, is
    over a limit or has too few frames.
    """
    colour = background_rgb(background)
    name = _name(request.video)
    wanted = {
        "start": request.start,
        "every": request.every,
        "count": num_frames,
        "max_frames": MAX_CLIP_FRAMES,
    }
    frames: list[Image] = []
    facts: dict[str, Any] = {}
    fitting: list[str] = []
    with _opened(request.video) as file, _decoder(file, wanted, name, wall_seconds or WALL_SECONDS) as out:
        for record in _records(out):
            if "error" in record:
                raise InputError(f"{name} {record['error']}")
            if "count" in record:
                facts = record
                break
            if len(frames) == num_frames:
                raise EngineError(f"{name}: its decoder returned too much.")
            shown = _square(_pixels(out, record, colour, name), record)
            fitting = _fitting(record, shown, height, width, fit)
            frames.append(resize_to(shown, height, width, fit))
    _require_enough(frames, facts, request, num_frames, name)
    facts["notes"] += fitting
    _say(facts, request, num_frames, name)
    clip = np.stack(frames)
    return Clip(clip, clip_digest(clip))


def _name(path: Path) -> str:
    return f"the video {str(path)!r:.300}"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    name = _name(path)
    try:
        with open(possible_path(path), "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{name} is not a file.")
            if status.st_size > MAX_BYTES:
                raise InputError(f"{name} has more than {MAX_BYTES >> 30} GiB; cut it first.")
            if demuxer_of(file.read(16)) is None:
                raise InputError(f"{name} {NOT_A_VIDEO}")
            file.seek(0)
            yield file
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist.") from error
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}.") from error


def _without_waiting(path: str, flags: int) -> int:
    """Open without waiting for the other end of a named pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


@contextmanager
def _decoder(file: BinaryIO, wanted: dict[str, int], name: str, wall_seconds: float) -> Iterator[IO[bytes]]:
    """The output of a decoding process, which is killed when the block ends or after wall_seconds."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "lamp_trt.runtime.media.clip.decoder", json.dumps(wanted)],
        stdin=file,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert process.stdout is not None
    timer = threading.Timer(wall_seconds, process.kill)
    timer.start()
    try:
        yield process.stdout
    except EOFError as error:
        process.wait()
        raise InputError(f"{name} cannot be decoded: {_ending(process.returncode)}.") from error
    finally:
        timer.cancel()
        process.kill()
        process.stdout.close()
        process.wait()
        timer.join()


def _ending(code: int) -> str:
    """How a decoding process ended, for a message."""
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "it takes more time or memory than a clip may; cut it, or make it smaller"
    if code < 0:
        return f"its decoder crashed (signal {-code}); convert it: ffmpeg -i VIDEO clip.mp4"
    return f"its decoder ended early (exit code {code}); convert it: ffmpeg -i VIDEO clip.mp4"


def _records(out: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The lines of JSON; the caller reads the bytes that follow one. EOFError at the end of the output."""
    while True:
        line = out.readline(_MAX_LINE)
        if not line.endswith(b"\n"):
            raise EOFError
        yield json.loads(line)


def _pixels(out: IO[bytes], record: dict[str, Any], colour: tuple[int, int, int], name: str) -> Image:
    """One frame as uint8 RGB (h, w, 3); transparent pixels are composited over `colour`."""
    shape = (record["height"], record["width"], record["channels"])
    if shape[0] * shape[1] > MAX_PIXELS or shape[2] not in (3, 4):
        raise EngineError(f"{name}: its decoder returned a frame of {shape}.")
    data = out.read(shape[0] * shape[1] * shape[2])
    if len(data) < shape[0] * shape[1] * shape[2]:
        raise EOFError
    pixels = np.frombuffer(data, np.uint8).reshape(shape)
    if shape[2] == 3:
        return pixels
    return over(pixels[..., :3], pixels[..., 3], colour)


def _square(image: Image, record: dict[str, Any]) -> Image:
    """The image with square pixels: its width is scaled by the pixel aspect ratio."""
    across, down = record["pixel_aspect"]
    width = round(image.shape[1] * across / down) if across > 0 and down > 0 else image.shape[1]
    if width == image.shape[1]:
        return image
    if not 1 <= width <= 4 * image.shape[1]:
        raise InputError(
            f"the video's pixels have an aspect ratio of {across}:{down}; convert it to square ones."
        )
    return resize_to(image, image.shape[0], width)


def _fitting(record: dict[str, Any], shown: Image, height: int, width: int, fit: Fit) -> list[str]:
    """How a frame's shape changes, for messages."""
    across, down = record["pixel_aspect"]
    notes = [f"pixels of {across}:{down} are made square"] if shown.shape[1] != record["width"] else []
    if shown.shape[0] * width != height * shown.shape[1]:
        notes.append(f"{shown.shape[1]}x{shown.shape[0]} is fitted to {width}x{height} by --fit {fit}")
    return notes


def _require_enough(
    frames: list[Image], facts: dict[str, Any], request: ClipRequest, num_frames: int, name: str
) -> None:
    if len(frames) == num_frames:
        return
    shorter = " a smaller --every," if request.every > 1 else ""
    earlier = " an earlier --start," if request.start else ""
    raise InputError(
        f"{name} has {facts['count']} frames, of which --start {request.start} --every {request.every} "
        f"takes {len(frames)}; this bundle's videos have {num_frames}. Choose{shorter}{earlier} a longer "
        "clip, or a bundle of fewer frames (lamp-trt build --frames)."
    )


def _say(facts: dict[str, Any], request: ClipRequest, num_frames: int, name: str) -> None:
    """Log what was taken, left out and converted."""
    last = request.start + request.every * (num_frames - 1)
    rate = 1 / facts["interval"] if facts["interval"] else 0.0
    which = f", one of every {request.every}" if request.every > 1 else ""
    log.info("%s: frames %d to %d of %d are taken%s", name, request.start, last, facts["count"], which)
    if facts["varies"]:
        log.warning(
            "%s: its frame rate varies (frames of %.0f to %.0f ms); they are taken at constant %.4g fps",
            name,
            1000 * facts["shortest"],
            1000 * facts["longest"],
            rate,
        )
    if rate:
        log.info("%s: --fps %.4g keeps its pace", name, rate / request.every)
    for note in facts["notes"]:
        log.info("%s: %s", name, note)
