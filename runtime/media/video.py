# SPDX-License-Identifier: Apache-2.0
"""Generated videos and their files: H.264 in mp4, animated GIF or WebP, or a folder of PNGs.

The same frames give the same bytes: encoders use one thread and write no dates.
"""

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.bundle.paths import name_remedy
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.files.output import cannot_write, written
from lamp_trt.runtime.algorithm.config import FPS, file_path, finite_number, json_text
from lamp_trt.runtime.media.image import encode_png

if TYPE_CHECKING:
    from av import VideoFrame

MAX_NAME_BYTES = 200
"""Maximum length of a destination's name. Its sidecar's and temporary folder's are longer; the limit of file
systems is 255."""

MAX_PATH_BYTES = 4096 - MAX_NAME_BYTES
"""Maximum length of a destination's path; Linux's limit of 4096 includes the temporary name."""

Frames = NDArray[np.uint8]
PathLike = str | os.PathLike[str]


@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """A video made by a pipeline.

    frames       uint8 RGB (f, h, w, 3)
    first_frame  uint8 RGB, the image that the video starts from: a given one fitted to the video's size, or
                 SDXL's at its own size
    latents      float32 (1, 4, f, h // 8, w // 8), before decoding
    timings      seconds by stage
    settings     the settings that reproduce the video, as JSON values
    """

    frames: Frames
    first_frame: Frames
    latents: NDArray[np.float32]
    timings: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        f, h, w, _ = self.frames.shape
        return f"Video({f} frames, {w}x{h})"

    def save(self, path: PathLike, fps: float = FPS) -> Path:
        """Write the frames as `save_frames` does, and the settings next to them as JSON (`sidecar_path`). If
        writing fails, neither is left."""
        text = json_text({**self.settings, "fps": finite_number("fps", fps)})
        destination, rate = _checked(self.frames, path, fps)
        with written(sidecar_path(destination), destination) as (sidecar, partial):
            sidecar.write_bytes(text.encode("utf-8", "backslashreplace") + b"\n")
            _encode(self.frames, partial, rate)
        return destination


def sidecar_path(destination: PathLike) -> Path:
    """Path of a video's settings file: clip.mp4.json for clip.mp4, clip.json for the folder clip."""
    path = Path(destination)
    return path.with_name(f"{path.name}.json")


def save_frames(frames: Frames, path: PathLike, fps: float = FPS) -> Path:
    """Write uint8 RGB (f, h, w, 3) as .mp4, .gif or .webp, or as frame_000.png... in a folder (no suffix).

    An existing file, or folder of such PNGs, is replaced. GIF has 256 colours and a time resolution of 1/100
    s, WebP of 1/1000 s; delays alternate if a frame's duration is not a multiple: 120 and 130 ms at 8 fps.
    Raises InputError as `check_destination` does, and as `written` does if writing fails.
    """
    destination, rate = _checked(frames, path, fps)
    with written(destination) as (partial,):
        _encode(frames, partial, rate)
    return destination


def _checked(frames: Frames, path: PathLike, fps: float) -> tuple[Path, Fraction]:
    """The checked destination and frame rate. Raises InputError for frames that cannot be saved."""
    if not isinstance(frames, np.ndarray):
        raise InputError(f"frames are {type(frames).__name__}; expected a NumPy array, uint8 (f, h, w, 3).")
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or frames.size == 0:
        raise InputError(f"frames are {frames.dtype} {frames.shape}; expected uint8 (f, h, w, 3).")
    height, width = frames.shape[1:3]
    destination = check_destination(path, height, width, fps)
    rate = frame_rate(fps)
    return destination, rate


def _encode(frames: Frames, partial: Path, rate: Fraction) -> None:
    """Write to `partial` in the format of its suffix."""
    encode = _ENCODERS.get(partial.suffix.lower())
    if encode is None:
        _write_pngs(frames, partial)
    else:
        encode(frames, partial, rate)


def frame_rate(fps: float) -> Fraction:
    """`fps` as a fraction, as video files store it. Raises InputError outside 0.1 to 100."""
    rate = finite_number("fps", fps)
    if not 0.1 <= rate <= 100:
        raise InputError(f"fps is {fps!r:.100}; expected a number from 0.1 to 100.")
    return Fraction(rate).limit_denominator(1001)


def check_format(path: PathLike, height: int, width: int, fps: float = FPS) -> Path:
    """The path, if its name and format suit a video of this size and rate. Raises InputError otherwise."""
    rate = frame_rate(fps)
    destination = file_path("the output", path)
    _check_name(destination)
    suffix = destination.suffix.lower()
    if suffix not in ("", *_ENCODERS) and not destination.is_dir():
        raise InputError(
            f"the output {str(path)!r} ends in {destination.suffix!r}; choose {', '.join(_ENCODERS)}, "
            "or a name without a dot for a folder of PNGs."
        )
    if suffix == ".mp4" and (height % 2 or width % 2):
        raise InputError(
            f"H.264 needs an even width and height, the video is {width}x{height}; "
            "save it as .gif, .webp or a folder of PNGs."
        )
    fastest = FASTEST.get(suffix)
    if fastest is not None and rate > fastest:
        others = ".mp4 or .webp" if suffix == ".gif" and rate <= FASTEST[".webp"] else ".mp4"
        raise InputError(
            f"fps is {fps!r}, but browsers slow a {suffix} of more than {fastest} fps down several times; "
            f"save it as {others}, or choose at most {fastest} fps."
        )
    return destination


def check_destination(path: PathLike, height: int, width: int, fps: float = FPS) -> Path:
    """The path, if a video of this size and rate can be saved there; to be called before the video is made.

    Raises InputError otherwise and as `check_format`, and OutputError on a read-only file system.
    """
    destination = check_format(path, height, width, fps)
    suffix = destination.suffix.lower()
    if not os.path.isdir(destination.parent):
        raise InputError(f"the folder {str(destination.parent)!r} does not exist; create it first.")
    if os.statvfs(destination.parent).f_flag & os.ST_RDONLY:
        raise cannot_write(destination, OSError(errno.EROFS, os.strerror(errno.EROFS)))
    if not os.access(destination.parent, os.W_OK | os.X_OK):
        raise InputError(f"the folder {str(destination.parent)!r} cannot be written to; choose another.")
    if suffix == "" and destination.exists() and not destination.is_dir():
        raise InputError(
            f"the output {str(path)!r} is an existing file, expected a folder for PNGs; choose another name."
        )
    if destination.is_dir():
        foreign = [entry.name for entry in destination.iterdir() if not entry.match("frame_*.png")]
        if foreign or suffix in _ENCODERS:
            held = f"holds {foreign[0]!r}" if foreign else "is a folder"
            raise InputError(f"the output {str(path)!r} {held} and would be replaced; choose another name.")
    return destination


def _check_name(destination: Path) -> None:
    """Raise InputError for an invalid path, or a name too long for its sidecar's."""
    try:
        encoded = os.fsencode(destination)
    except UnicodeEncodeError:
        raise InputError(
            f"the output {str(destination)!r:.100} cannot be the name of a file: {name_remedy(destination)}."
        ) from None
    if b"\0" in encoded or len(encoded) > MAX_PATH_BYTES:
        raise InputError(f"the output {str(destination)!r:.100} cannot be the name of a file.")
    if len(os.fsencode(destination.name)) > MAX_NAME_BYTES:
        raise InputError(f"the output's name {destination.name!r} is longer than {MAX_NAME_BYTES} bytes.")


def _write_pngs(frames: Frames, folder: Path) -> None:
    folder.mkdir()
    for index, frame in enumerate(frames):
        (folder / f"frame_{index:03}.png").write_bytes(encode_png(frame))


def _write_mp4(frames: Frames, path: Path, fps: Fraction) -> None:
    """Write H.264 4:2:0 with the index in front, which every browser plays. Colours are tagged as BT.709.

    x264's macroblock tree is off: its assembly reads uninitialized memory, so equal frames would sometimes
    give different bytes.
    """
    import av

    bt709, limited = 1, 1
    with av.open(
        path, "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}
    ) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "x264-params": "mbtree=0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.thread_count = 1
        codec.colorspace = codec.color_primaries = codec.color_trc = bt709
        codec.color_range = limited
        for frame in _av_frames(frames, fps):
            yuv = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(yuv))
        container.mux(stream.encode())


def _write_webp(frames: Frames, path: Path, fps: Fraction) -> None:
    import av

    with av.open(path, "w", format="webp", options={"loop": "0", "fflags": "+bitexact"}) as container:
        stream = container.add_stream("libwebp_anim", rate=fps, options={"quality": "90"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgra"
        stream.codec_context.thread_count = 1
        for frame in _av_frames(frames, fps):
            container.mux(stream.encode(frame.reformat(format="bgra")))
        container.mux(stream.encode())


def _write_gif(frames: Frames, path: Path, fps: Fraction) -> None:
    """Write a GIF with one palette of 256 colours for all frames, which avoids flicker, and dithering."""
    import av

    height, width = frames.shape[1:3]
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=1 / fps)
    split, palettegen, paletteuse, sink = map(graph.add, ("split", "palettegen", "paletteuse", "buffersink"))
    source.link_to(split)
    split.link_to(palettegen, 0, 0)
    split.link_to(paletteuse, 1, 0)
    palettegen.link_to(paletteuse, 0, 1)
    paletteuse.link_to(sink)
    graph.configure()
    for frame in _av_frames(frames, fps):
        graph.vpush(frame)
    graph.vpush(None)
    with av.open(path, "w", format="gif", options={"loop": "0", "fflags": "+bitexact"}) as container:
        stream = container.add_stream("gif", rate=fps)
        stream.height, stream.width, stream.pix_fmt = height, width, "pal8"
        stream.codec_context.thread_count = 1
        for _ in frames:
            container.mux(stream.encode(graph.vpull()))
        container.mux(stream.encode())


def _av_frames(frames: Frames, fps: Fraction) -> Iterator["VideoFrame"]:
    import av

    for index, frame in enumerate(frames):
        av_frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        av_frame.pts, av_frame.time_base = index, 1 / fps
        yield av_frame


FASTEST = {".gif": 50, ".webp": 90}
"""Highest fps that browsers play. GIF's delays are multiples of 10 ms; browsers replace delays of 10 ms or
less by 100 ms, also in WebP. Source: FrameTimeout.h of Firefox; Chromium and WebKit do the same."""

_ENCODERS = {".mp4": _write_mp4, ".gif": _write_gif, ".webp": _write_webp}
