# SPDX-License-Identifier: Apache-2.0
"""A generated video, and how it becomes a file: H.264 in mp4, animated GIF or WebP, or a folder of PNGs.

The same frames give the same bytes: one encoder thread, no dates.
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
"""Of a destination: its sidecar and its temporary folder have longer names, and file systems take 255."""

MAX_PATH_BYTES = 4096 - MAX_NAME_BYTES
"""Linux takes 4096, the temporary name included."""

Frames = NDArray[np.uint8]
PathLike = str | os.PathLike[str]


@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """What a pipeline returns.

    frames: uint8 RGB (f, h, w, 3). first_frame: uint8 RGB, the image the video starts from: a given one as
    fitted to the video's size, one that SDXL made at its own size.
    latents: float32 (1, 4, f, h // 8, w // 8), as they were decoded. timings: seconds by stage.
    settings: what it takes to generate the video again; JSON values.
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
        """Writes the frames as `save_frames` does, and the settings beside them as JSON (`sidecar_path`):
        both or, where writing fails, neither."""
        text = json_text({**self.settings, "fps": finite_number("fps", fps)})
        destination, rate = _checked(self.frames, path, fps)
        with written(sidecar_path(destination), destination) as (sidecar, partial):
            sidecar.write_bytes(text.encode("utf-8", "backslashreplace") + b"\n")
            _encode(self.frames, partial, rate)
        return destination


def sidecar_path(destination: PathLike) -> Path:
    """Where the settings of a video are: clip.mp4.json for clip.mp4, clip.json for the folder clip."""
    path = Path(destination)
    return path.with_name(f"{path.name}.json")


def save_frames(frames: Frames, path: PathLike, fps: float = FPS) -> Path:
    """Writes uint8 RGB (f, h, w, 3) as .mp4, .gif or .webp, or as frame_000.png... in a folder (no suffix).

    An existing file, or folder of such PNGs, is replaced. GIF keeps 256 colours and a clock of 1/100 s, WebP
    one of 1/1000 s, on which delays alternate where a frame's is no multiple: 120 and 130 ms at 8 fps.
    Raises InputError as `check_destination` does, and what `written` raises if writing fails.
    """
    destination, rate = _checked(frames, path, fps)
    with written(destination) as (partial,):
        _encode(frames, partial, rate)
    return destination


def _checked(frames: Frames, path: PathLike, fps: float) -> tuple[Path, Fraction]:
    """Where and how fast; InputError for what cannot be saved."""
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
    """`fps` as the fraction that a video file holds. Raises InputError outside of 0.1 to 100."""
    rate = finite_number("fps", fps)
    if not 0.1 <= rate <= 100:
        raise InputError(f"fps is {fps!r:.100}; expected a number from 0.1 to 100.")
    return Fraction(rate).limit_denominator(1001)


def check_format(path: PathLike, height: int, width: int, fps: float = FPS) -> Path:
    """The path, if its name is one that a video of this size and rate can have; InputError otherwise."""
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
    fastest = _FASTEST.get(suffix)
    if fastest is not None and rate > fastest:
        others = ".mp4 or .webp" if suffix == ".gif" and rate <= _FASTEST[".webp"] else ".mp4"
        raise InputError(
            f"fps is {fps!r}, but browsers slow a {suffix} of more than {fastest} fps down several times; "
            f"save it as {others}, or choose at most {fastest} fps."
        )
    return destination


def check_destination(path: PathLike, height: int, width: int, fps: float = FPS) -> Path:
    """The path, if a video of this size and rate can be saved there; InputError otherwise, as `check_format`
    too, OutputError where the file system is read-only. Asked before a video is made, it spares a wait for
    one that can't be kept."""
    destination = check_format(path, height, width, fps)
    suffix = destination.suffix.lower()
    if not os.path.isdir(destination.parent):
        raise InputError(f"the folder {str(destination.parent)!r} does not exist; create it first.")
    if os.statvfs(destination.parent).f_flag & os.ST_RDONLY:
        raise cannot_write(destination, OSError(errno.EROFS, os.strerror(errno.EROFS)))
    if not os.access(destination.parent, os.W_OK | os.X_OK):
        raise InputError(f"the folder {str(destination.parent)!r} cannot be written to; choose another.")
    if suffix == "" and destination.exists() and not destination.is_dir():
        raise InputError(f"the output {str(path)!r} is a file, and a folder of PNGs is to go there.")
    if destination.is_dir():
        foreign = [entry.name for entry in destination.iterdir() if not entry.match("frame_*.png")]
        if foreign or suffix in _ENCODERS:
            held = f"holds {foreign[0]!r}" if foreign else "is a folder"
            raise InputError(f"the output {str(path)!r} {held} and would be replaced; choose another name.")
    return destination


def _check_name(destination: Path) -> None:
    """InputError for a path that no file can have, or whose name leaves no room for its sidecar's."""
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
    """H.264 4:2:0, index in front: what every browser plays. Colours are BT.709 and say so.

    Without x264's macroblock tree: its assembly reads memory that nobody wrote, so that equal frames would
    now and then give other bytes.
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
    """One palette of 256 colours from all frames, then error diffusion: no flicker between palettes."""
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


_FASTEST = {".gif": 50, ".webp": 90}
"""fps whose delays browsers keep: GIF's are multiples of 10 ms, and of 10 ms or less browsers make 100 ms, in
animated WebP too. Source: FrameTimeout.h of Firefox; Chromium and WebKit do the same."""

_ENCODERS = {".mp4": _write_mp4, ".gif": _write_gif, ".webp": _write_webp}
