# SPDX-License-Identifier: Apache-2.0
"""Clips from video files: formats, times, orientation, aspect, colours, and what is refused."""

import logging
import os
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.media.clip import reader
from lamp_trt.runtime.media.clip.reader import clip_digest, read_clip
from lamp_trt.runtime.media.clip.timing import Timing, taken, timing_of
from lamp_trt.runtime.media.image import resize_to
from lamp_trt.runtime.media.video import save_frames
from lamp_trt.runtime.requests import ClipRequest
from tests.runtime.media.clips import SIZE, moving_picture, with_matrix, write_clip

FRAMES = moving_picture(10)


def read(path: Path, count: int = 4, start: int = 0, every: int = 1, **options: Any) -> np.ndarray:
    size = options.pop("size", SIZE)
    return read_clip(ClipRequest(path, start, every), count, *size, **options).frames


def distance(ours: np.ndarray, wanted: np.ndarray) -> float:
    """Mean difference in levels."""
    assert ours.shape == wanted.shape
    return float(np.abs(ours.astype(int) - wanted).mean())


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", FRAMES)


# --- formats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "levels"),
    [
        ("a.mp4", "libx264", "yuv444p", 1.5),
        ("a.mov", "prores_ks", "yuv422p10le", 2.5),
        ("a.webm", "libvpx-vp9", "yuv420p", 2.5),
        ("a.mp4", "libx265", "yuv420p10le", 2.5),
    ],
)
def test_every_format_gives_its_frames(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, levels: float, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_clip(tmp_path / name, FRAMES, codec, pix_fmt)
    with caplog.at_level(logging.INFO, "lamp_trt"):
        assert distance(read(path, 3, start=2, every=3), FRAMES[2:9:3]) < levels
    assert "frames 2 to 8 of 10 are taken, one of every 3" in caplog.text
    assert ("10-bit samples are reduced to 8" in caplog.text) == ("10" in pix_fmt)


def test_a_gif_of_ours_is_read(tmp_path: Path) -> None:
    """Its delays alternate between 120 and 130 ms, which is a constant rate."""
    path = save_frames(FRAMES, tmp_path / "a.gif")
    assert distance(read(path, 10), FRAMES) < 9


def test_a_name_says_nothing_and_the_content_all(tmp_path: Path, mp4: Path) -> None:
    path = tmp_path / "clip.gif"
    path.write_bytes(mp4.read_bytes())
    np.testing.assert_array_equal(read(path), read(mp4))


def test_the_digest_is_of_frames_and_shape(mp4: Path) -> None:
    clip = read_clip(ClipRequest(mp4), 4, *SIZE)
    assert clip.digest == clip_digest(clip.frames)
    assert clip.digest != clip_digest(clip.frames.reshape(4, SIZE[1], SIZE[0], 3))
    assert clip.digest != read_clip(ClipRequest(mp4, 1), 4, *SIZE).digest


# --- time -------------------------------------------------------------------------------------------------


def test_a_variable_rate_is_resampled_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    times = [0, 4, 8, 12, 32, 36, 40, 44, 48, 52]
    path = write_clip(tmp_path / "a.mp4", FRAMES, times=times)
    with caplog.at_level(logging.INFO, "lamp_trt"):
        frames = read(path, 10)
    assert distance(frames, FRAMES[[0, 1, 2, 3, 3, 3, 3, 3, 4, 5]]) < 2
    assert "its frame rate varies (frames of 40 to 200 ms); they are taken at constant 25 fps" in caplog.text
    assert "of 14 are taken" in caplog.text


@pytest.mark.parametrize(
    ("times", "tick", "varies"),
    [
        ([0, 0.12, 0.25, 0.37, 0.5], 0.01, False),
        ([0, 0.033, 0.067, 0.1], 0.001, False),
        ([0.2, 0.1, 0.3], 1e-5, False),
        ([0, 0.04, 0.08, 0.2], 1e-5, True),
        ([0, 0, 0, 0], 1e-5, False),
        ([5], 1e-5, False),
        ([], 1e-5, False),
    ],
)
def test_rounded_times_are_of_a_constant_rate(times: list[float], tick: float, varies: bool) -> None:
    timing = timing_of(times, tick)
    assert timing.varies == varies
    assert timing.count == (6 if varies else len(times))


def test_taking_stops_at_the_last_frame_that_is_needed() -> None:
    def frames() -> Any:
        for number in range(100):
            assert number <= 9
            yield 0.04 * number, number

    for timing in (Timing(100, 0.04), Timing(100, 0.04, varies=True)):
        assert list(taken(frames(), timing, 2, 3, 3)) == [2, 5, 8]


# --- orientation, aspect, transparency -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1, (1, 2))),
        ((0, -1, 1, 0), lambda x: np.rot90(x, 1, (1, 2))),
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2, (1, 2))),
        ((-1, 0, 0, 1), lambda x: x[:, :, ::-1]),
        ((1, 0, 0, -1), lambda x: x[:, ::-1]),
        ((0, 1, 1, 0), lambda x: x.swapaxes(1, 2)),
    ],
)
def test_turned_and_mirrored_videos_are_upright(
    tmp_path: Path, mp4: Path, matrix: tuple[int, int, int, int], turn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = turn(FRAMES[:2])
    with caplog.at_level(logging.INFO, "lamp_trt"):
        frames = read(with_matrix(mp4, tmp_path / "a.mp4", *matrix), 2, size=wanted.shape[1:3])
    assert distance(frames, wanted) < 1.5
    assert "turned upright" in caplog.text


def test_pixels_that_are_not_square_are_made_square_before_fitting(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", FRAMES, pixel_aspect=Fraction(2, 1))
    wide = np.stack([resize_to(frame, SIZE[0], 2 * SIZE[1]) for frame in FRAMES[:2]])
    for fit in ("stretch", "crop", "pad"):
        wanted = np.stack([resize_to(frame, *SIZE, fit) for frame in wide])  # type: ignore[arg-type]
        assert distance(read(path, 2, fit=fit), wanted) < 1.5
    turned = with_matrix(path, tmp_path / "b.mp4", 0, 1, -1, 0)
    assert distance(read(turned, 2, size=(2 * SIZE[1], SIZE[0])), np.rot90(wide, -1, (1, 2))) < 1.5


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"codec": "libx264", "pixel_aspect": Fraction(2, 1)}, SIZE, "pixels of 2:1 are made square"),
        ({}, (64, 64), "80x48 is fitted to 64x64 by --fit stretch"),
        ({"codec": "libvpx-vp9", "pix_fmt": "yuva420p"}, SIZE, "transparency of VP8 and VP9 is not read"),
        ({"codec": "prores_ks", "pix_fmt": "yuva444p10le"}, SIZE, "transparent pixels show the background"),
        ({"streams": 2}, SIZE, "the first video is taken"),
    ],
)
def test_what_is_changed_or_left_out_is_said(
    tmp_path: Path,
    options: dict[str, Any],
    size: tuple[int, int],
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / ("a.mov" if options.get("codec") in ("prores_ks", "libx264") else "a.webm")
    if options.get("streams"):
        two_streams(path)
    else:
        write_clip(path, FRAMES, **{"codec": "libvpx-vp9", "pix_fmt": "yuv420p", **options})
    with caplog.at_level(logging.INFO, "lamp_trt"):
        read(path, 2, size=size)
    assert message in caplog.text
    assert caplog.text.count(" is fitted ") == (size != SIZE or "pixel_aspect" in options)


def two_streams(path: Path) -> None:
    import av

    with av.open(path, "w", format="webm") as out:
        for _ in range(2):
            stream: Any = out.add_stream("libvpx-vp9", rate=25)
            stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
            stream.codec_context.thread_count = 1
        for stream in out.streams.video:
            for number in range(4):
                shown = av.VideoFrame.from_ndarray(np.zeros((*SIZE, 3), np.uint8), format="rgb24")
                shown.pts, shown.time_base = number, Fraction(1, 25)
                out.mux(stream.encode(shown))
            out.mux(stream.encode())


def test_transparent_pixels_show_the_background(tmp_path: Path) -> None:
    from PIL import Image

    pictures = []
    for level in (10, 90):
        rgba = np.zeros((*SIZE, 4), np.uint8)
        rgba[:, 40:] = (level, 200, 50, 255)
        pictures.append(Image.fromarray(rgba))
    path = tmp_path / "a.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, disposal=2)
    frames = read(path, 2, background="#0000ff")
    assert (frames[:, :, :38] == (0, 0, 255)).all()
    assert (
        abs(frames[:, :, 42:].astype(int) - np.array([[10, 200, 50], [90, 200, 50]])[:, None, None]).max() < 9
    )


# --- colours ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "levels", "said"),
    [
        ((1, 1, 1), 1.5, ""),
        ((6, 6, 6), 1.5, ""),
        ((2, 2, 2), 1.5, "untagged colours are read as BT.601"),
    ],
)
def test_the_matrix_is_the_files(
    tmp_path: Path, tags: tuple[int, int, int], levels: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lamp_trt"):
        assert distance(read(write_clip(tmp_path / "a.mp4", FRAMES, tags=tags)), FRAMES[:4]) < levels
    assert said in caplog.text
    assert said or "untagged" not in caplog.text


@pytest.mark.parametrize(("transfer", "name", "grey"), [(16, "PQ", 185), (18, "HLG", None)])
def test_hdr_is_mapped_and_said(
    tmp_path: Path, transfer: int, name: str, grey: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of PQ's signal is 92 cd/m2, 45 % of the reference white of 203: 0.68 by BT.709's curve."""
    grey_frames = np.full((4, *SIZE, 3), 128, np.uint8)
    path = write_clip(tmp_path / "a.mp4", grey_frames, "libx265", "yuv420p10le", tags=(9, transfer, 9))
    with caplog.at_level(logging.INFO, "lamp_trt"):
        frames = read(path, 2)
    assert f"HDR ({name}) is mapped to standard range" in caplog.text
    assert np.ptp(frames.astype(int)) <= 2
    if grey is not None:
        assert abs(int(frames[0, 0, 0, 0]) - grey) <= 10


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"count": 11},
            "has 10 frames, of which --start 0 --every 1 takes 10; .* have 11. Choose a longer clip",
        ),
        ({"count": 4, "start": 4, "every": 2}, "takes 3; .* a smaller --every, an earlier --start, a longer"),
        ({"count": 4, "start": 10}, "has 10 frames; frame 10 is not one of them"),
    ],
)
def test_too_few_frames_are_counted(mp4: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(mp4, **options)


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n"


def sound_only(path: Path) -> None:
    import av

    with av.open(path, "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())


def gigantic_gif(path: Path) -> None:
    path.write_bytes(b"GIF89a" + struct.pack("<HHBBB", 9999, 9999, 0, 0, 0) + b",\0\0\0\0\1\0\1\0\0\2\0;")


HOSTILE = {
    "missing": (lambda path: None, "does not exist"),
    "empty": (lambda path: path.write_bytes(b""), "is not an mp4, mov, webm or GIF"),
    "folder": (lambda path: path.mkdir(), "is not a file|Is a directory"),
    "named pipe": (lambda path: os.mkfifo(path), "is not a file"),
    "playlist": (lambda path: path.write_bytes(PLAYLIST), "is not an mp4, mov, webm or GIF"),
    "concat script": (lambda path: path.write_bytes(b"ffconcat version 1.0\nfile a.mp4\n"), "is not an mp4"),
    "playlist in an atom": (
        lambda path: path.write_bytes(b"\0\0\0\x10free\0\0\0\0\0\0\0\0" + PLAYLIST),
        "damaged",
    ),
    "head alone": (lambda path: path.write_bytes(b"\x1aE\xdf\xa3" + bytes(60)), "is damaged or cut off"),
    "sound": (sound_only, "holds no video stream"),
    "gigantic": (gigantic_gif, "has frames of 9999x9999, more than 33 million pixels"),
    "other codec": (
        lambda path: write_clip(path, FRAMES, "ffv1", "yuv420p", container="matroska"),
        "is coded in a way that is not read",
    ),
    "years long": (
        lambda path: write_clip(path, FRAMES[:2], times=[0, 1 << 20]),
        "is longer than 1800 seconds by its timestamps",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_clip_is_refused_with_the_remedy(tmp_path: Path, kind: str) -> None:
    make, message = HOSTILE[kind]
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(InputError, match=message) as refusal:
        read(path, 2)
    assert str(path)[:50] in str(refusal.value)


def test_a_file_cut_off_is_refused_or_has_the_frames(tmp_path: Path, mp4: Path) -> None:
    """The index of this mp4 is at the end, so a cut-off one has none; a webm begins with what it needs."""
    data, path = mp4.read_bytes(), tmp_path / "a.mp4"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="damaged or cut off"):
        read(path)
    webm = write_clip(tmp_path / "a.webm", FRAMES, "libvpx-vp9", "yuv420p").read_bytes()
    cut = tmp_path / "b.webm"
    cut.write_bytes(webm[: len(webm) * 3 // 4])
    assert distance(read(cut, 2), FRAMES[:2]) < 2.5
    with pytest.raises(InputError, match=r"takes \d; this bundle|damaged"):
        read(cut, 10)


def test_frames_in_the_middle_that_are_damaged_are_refused(tmp_path: Path, mp4: Path) -> None:
    data = bytearray(mp4.read_bytes())
    at = data.index(b"mdat")
    size = int.from_bytes(data[at - 4 : at])
    data[at + size // 3 : at + size // 2] = bytes(size // 2 - size // 3)
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        read(path, 10)


def test_a_decoder_that_takes_too_long_or_dies_is_ended(mp4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "WALL_SECONDS", 0.01)
    with pytest.raises(InputError, match="takes more time or memory than a clip may"):
        read(mp4)
    monkeypatch.setattr(reader, "WALL_SECONDS", 60)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(InputError, match=r"its decoder ended early \(exit code 1\)"):
        read(mp4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": -1}, "start is -1"),
        ({"every": 0}, "every is 0"),
        ({"start": 10**9}, "start is 1000000000"),
        ({"every": 1.5}, "every is 1.5"),
        ({"video": b"x"}, "the video is b'x'"),
    ],
)
def test_requests_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClipRequest(**{"video": Path("x"), **arguments})
