# SPDX-License-Identifier: Apache-2.0
"""Limits on video files and on the process that decodes them, and the accepted formats."""

import resource

from lamp_trt.engine.process_limits import limit_process

MAX_SECONDS = 1800
"""Maximum length of a file. Timestamps of damaged files can be years apart."""

MAX_PIXELS = 7680 * 4320
"""Maximum size of a frame."""

MAX_BYTES = 1 << 34
"""Maximum size of a file."""

MEMORY_BYTES = 3 << 30
"""Address space of the decoding process."""

CPU_SECONDS = 300
WALL_SECONDS = 600

DEMUXERS = {
    "mov": ("mov", "mp4", "m4a", "3gp", "3g2", "mj2"),
    "matroska": ("matroska", "webm"),
    "gif": ("gif",),
}
"""FFmpeg's demuxers that may run, chosen by a file's first bytes, and their names. None reads playlists."""

CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "mjpeg", "prores", "gif")
"""FFmpeg's decoders that may run."""

NOT_A_VIDEO = "is not an mp4, mov, webm or GIF; convert it: ffmpeg -i VIDEO clip.mp4"

_MOV_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def demuxer_of(head: bytes) -> str | None:
    """The demuxer for a file that begins with `head`, None for another format."""
    if head[4:8] in _MOV_ATOMS:
        return "mov"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    return "gif" if head.startswith((b"GIF87a", b"GIF89a")) else None


def limit_this_process() -> None:
    """Limit memory and CPU time. From now on nothing but the three standard streams can be open, no file and
    no socket, and no core is dumped. Everything must be imported before."""
    limit_process(
        {
            resource.RLIMIT_AS: MEMORY_BYTES,
            resource.RLIMIT_CPU: CPU_SECONDS,
            resource.RLIMIT_FSIZE: 0,
            resource.RLIMIT_NOFILE: 3,
            resource.RLIMIT_CORE: 0,
        }
    )
