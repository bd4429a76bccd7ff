# SPDX-License-Identifier: Apache-2.0
"""The process that decodes a video file: `python -m lamp_trt.runtime.media.clip.decoder JSON <FILE`.

The file is standard input, an open regular file; nothing else is opened. To standard output it writes for
each taken frame a line of JSON and its bytes, and a last line of JSON: facts of the clip, or an error's text.
FFmpeg gets the demuxer by name and lists of what may run, so that no playlist, no other protocol and no rare
decoder is reached. See reader.py for the other end.
"""

import importlib
import json
import pkgutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from lamp_trt.runtime.media.clip.limits import (
    CODECS,
    DEMUXERS,
    MAX_PIXELS,
    MAX_SECONDS,
    NOT_A_VIDEO,
    demuxer_of,
    limit_this_process,
)
from lamp_trt.runtime.media.clip.pixels import look_of, rgb_pixels
from lamp_trt.runtime.media.clip.timing import Timing, taken, timing_of

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream


class Refused(Exception):
    """A clip that is not taken; the text completes "the video 'x' …"."""


def decode(file: BinaryIO, out: BinaryIO, start: int, every: int, count: int, max_frames: int) -> None:
    """Write the taken frames of `file` to `out`, then the facts. Raises Refused, and FFmpeg's errors."""
    from av.video.reformatter import VideoReformatter

    container, stream = _opened(file)
    with container:
        timing = _timing(container, stream, max_frames)
    container, stream = _opened(file)
    with container:
        written, look, reformatter = 0, "", VideoReformatter()
        frames = _decoded(container, stream)
        for frame in taken(frames, timing, start, every, count):
            found = look_of(frame)
            if written and found.text != look:
                raise Refused(f"changes in the middle from {look} to {found.text}; convert it to one format.")
            look = found.text
            pixels = rgb_pixels(reformatter, frame, found)
            sar = stream.sample_aspect_ratio or 1
            height, width, channels = pixels.shape
            turned = found.quarter_turns % 2 == 1
            aspect = [sar.denominator, sar.numerator] if turned else [sar.numerator, sar.denominator]
            line = {"height": height, "width": width, "channels": channels, "pixel_aspect": aspect}
            _write_line(out, line)
            out.write(np.ascontiguousarray(pixels).tobytes())
            written += 1
            facts = {
                "codec": stream.codec_context.name,
                "notes": [*_stream_notes(container, stream), *found.notes],
            }
        if not written:
            raise Refused(f"has {timing.count} frames; frame {start} is not one of them.")
    _write_line(out, {**facts, **vars(timing)})


def _opened(file: BinaryIO) -> "tuple[InputContainer, VideoStream]":
    """A container over `file` from its beginning, and its video stream."""
    import av

    file.seek(0)
    demuxer = demuxer_of(file.read(16))
    if demuxer is None:
        raise Refused(NOT_A_VIDEO)
    file.seek(0)
    container = av.open(
        file,
        mode="r",
        format=demuxer,
        options={
            "protocol_whitelist": "none",
            "format_whitelist": ",".join(DEMUXERS[demuxer]),
            "codec_whitelist": ",".join(CODECS),
            "probesize": str(5 << 20),
        },
    )
    videos = [stream for stream in container.streams.video if not stream.disposition & _ATTACHED_PICTURE]
    if not videos:
        container.close()
        raise Refused("holds no video stream, only sound or a cover picture, or is cut off.")
    stream = videos[0]
    if stream.codec_context is None or stream.codec_context.name not in CODECS:
        container.close()
        raise Refused(
            f"is coded in a way that is not read ({_codec_name(stream)}); convert it: "
            "ffmpeg -i VIDEO -c:v libx264 clip.mp4"
        )
    context = stream.codec_context
    _check_size(context.width, context.height)
    context.thread_count = 1
    context.options = {"max_pixels": str(MAX_PIXELS)}
    return container, stream


def _stream_notes(container: "InputContainer", stream: "VideoStream") -> list[str]:
    """What is left out of a file, for messages."""
    notes = []
    if len(container.streams.video) > 1:
        notes.append("it holds several pictures or video streams; the first video is taken")
    if stream.metadata.get("alpha_mode") == "1" and stream.codec_context.name in ("vp8", "vp9"):
        notes.append("transparency of VP8 and VP9 is not read: its colours are shown without it")
    return notes


_ATTACHED_PICTURE = 0x400
"""AV_DISPOSITION_ATTACHED_PIC."""


def _codec_name(stream: Any) -> str:
    return getattr(stream.codec_context, "name", None) or "unknown"


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Refused(
            f"has frames of {width}x{height}, more than {MAX_PIXELS / 1e6:.0f} million pixels; make it "
            "smaller: ffmpeg -i VIDEO -vf scale=1280:-2 clip.mp4"
        )


def _timing(container: "InputContainer", stream: "VideoStream", max_frames: int) -> Timing:
    """The times of all frames, from the packets: nothing is decoded."""
    ticks: list[int] = []
    untimed = 0
    for packet in container.demux(stream):
        if packet.size == 0 or packet.is_discard:
            continue
        if packet.pts is None:
            untimed += 1
        else:
            ticks.append(packet.pts)
        if len(ticks) + untimed > max_frames:
            raise Refused(f"has more than {max_frames} frames; cut it: ffmpeg -ss 0 -t 60 -i VIDEO clip.mp4")
    if not ticks and not untimed:
        raise Refused("holds no frames: it is damaged or cut off.")
    if untimed or stream.time_base is None:
        return Timing(len(ticks) + untimed)
    tick = float(stream.time_base)
    if ticks and (max(ticks) - min(ticks)) * tick > MAX_SECONDS:
        raise Refused(
            f"is longer than {MAX_SECONDS} seconds by its timestamps; cut it: "
            "ffmpeg -ss 0 -t 60 -i VIDEO clip.mp4"
        )
    return timing_of([each * tick for each in ticks], tick)


def _decoded(
    container: "InputContainer", stream: "VideoStream"
) -> "Iterator[tuple[float | None, VideoFrame]]":
    for number, frame in enumerate(container.decode(stream)):
        if frame.is_corrupt:
            raise Refused(f"is damaged: frame {number} cannot be decoded whole.")
        _check_size(frame.width, frame.height)
        yield frame.time, frame


def _write_line(out: BinaryIO, record: dict[str, Any]) -> None:
    out.write(json.dumps(record).encode() + b"\n")


def _import_all_of_av() -> None:
    """Import every module of PyAV: it imports some at the first stream of a kind, which the limits forbid."""
    import av

    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def main() -> None:
    import av

    _import_all_of_av()
    limit_this_process()
    out = sys.stdout.buffer
    try:
        decode(sys.stdin.buffer, out, **json.loads(sys.argv[1]))
    except Refused as refusal:
        _write_line(out, {"error": str(refusal)})
    except MemoryError:
        _write_line(out, {"error": "needs more memory than a clip may take; make it smaller."})
    except (av.FFmpegError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        _write_line(out, {"error": f"is damaged or cut off ({reason:.100}); fetch it again, or convert it."})
    out.flush()


if __name__ == "__main__":
    main()
