# SPDX-License-Identifier: Apache-2.0
import ctypes
import json
import math
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image, ImageSequence

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.media import video as video_module
from lamp_trt.runtime.media.video import Video, check_destination, save_frames, sidecar_path
from tests.tolerances import GIF_PSNR_DB, MP4_PSNR_DB, WEBP_PSNR_DB


def moving_frames(f: int = 5, h: int = 64, w: int = 96) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    return np.stack(
        [np.stack([(x + 6 * k) * 255 // (w + 6 * f), y * 255 // h, 128 + 0 * x], -1) for k in range(f)]
    ).astype(np.uint8)


def make_video() -> Video:
    frames = moving_frames()
    settings = {"prompt": "馬が走る", "seed": 7}
    return Video(frames, frames[0], np.zeros((1, 4, 5, 8, 12), np.float32), {"decode": 0.5}, settings)


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def test_mp4_is_h264_that_browsers_play(tmp_path: Path) -> None:
    frames = moving_frames()
    path = save_frames(frames, tmp_path / "clip.mp4")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt, stream.average_rate, stream.frames) == ("h264", "yuv420p", 8, 5)
        assert (codec.colorspace, codec.color_range) == (1, 1)
    data = path.read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")
    assert psnr_db(decoded(path), frames) > MP4_PSNR_DB


def test_gif_loops_at_eight_frames_a_second(tmp_path: Path) -> None:
    frames = moving_frames(9)
    path = save_frames(frames, tmp_path / "clip.gif")
    with av.open(str(path)) as container:
        times = [float(frame.time) for frame in container.decode(video=0)]
    assert np.diff(times).round(2).tolist() == [0.13, 0.12] * 4
    assert b"NETSCAPE2.0\x03\x01\x00\x00" in path.read_bytes()
    assert psnr_db(decoded(path), frames) > GIF_PSNR_DB


def test_webp_holds_every_frame_for_125_ms_and_loops(tmp_path: Path) -> None:
    frames = moving_frames()
    path = save_frames(frames, tmp_path / "clip.webp")
    data = path.read_bytes()
    position, durations, loops = 12, [], None
    while position < len(data):
        name, size = (
            data[position : position + 4],
            int.from_bytes(data[position + 4 : position + 8], "little"),
        )
        body = data[position + 8 : position + 8 + size]
        if name == b"ANMF":
            durations.append(int.from_bytes(body[12:15], "little"))
        elif name == b"ANIM":
            loops = int.from_bytes(body[4:6], "little")
        position += 8 + size + size % 2
    assert (durations, loops) == ([125] * 5, 0)
    first = cv2.imread(str(path))[..., ::-1]
    assert psnr_db(first, frames[0]) > WEBP_PSNR_DB


def test_a_name_without_suffix_is_a_folder_of_exact_pngs(tmp_path: Path) -> None:
    frames = moving_frames()
    folder = save_frames(frames, tmp_path / "clip")
    names = sorted(entry.name for entry in folder.iterdir())
    assert names == [f"frame_{k:03}.png" for k in range(5)]
    read = np.stack([cv2.imread(str(folder / name))[..., ::-1] for name in names])
    np.testing.assert_array_equal(read, frames)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.webp"])
def test_the_same_frames_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    frames = moving_frames()
    first = save_frames(frames, tmp_path / name).read_bytes()
    assert save_frames(frames.copy(), tmp_path / name).read_bytes() == first


M_PERTURB = -6  # malloc.h: fill what malloc hands out with a byte


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.webp"])
def test_bytes_do_not_depend_on_what_lay_in_memory(name: str, tmp_path: Path) -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        pytest.skip("needs glibc's mallopt")
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 255, (96, 200, 3)).astype(np.float32), (0, 0), 2)
    moving = np.stack([texture[:, k : k + 160] for k in range(16)])
    frames = np.clip(moving + rng.integers(-3, 3, moving.shape), 0, 255).astype(np.uint8)
    written = set()
    for fill in (165, 90, 255, 17, 0):
        libc.mallopt(M_PERTURB, fill)
        written.add(save_frames(frames, tmp_path / name).read_bytes())
    assert len(written) == 1


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.webp", "clip"])
@pytest.mark.parametrize("shape", [(1, 64, 96), (2, 16, 24)])
def test_single_and_small_frames_are_saved(name: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
    path = save_frames(moving_frames(*shape), tmp_path / name)
    if path.is_dir():
        assert len(list(path.iterdir())) == shape[0]
    elif path.suffix != ".webp":  # FFmpeg does not decode animated WebP
        assert decoded(path).shape == (*shape, 3)
    else:
        assert cv2.imread(str(path)).shape == (*shape[1:], 3)


def test_frame_rates_are_written(tmp_path: Path) -> None:
    for fps in (1, 12.5, 24000 / 1001, np.float64(30)):
        path = save_frames(moving_frames(), tmp_path / "clip.mp4", fps)  # type: ignore[arg-type]
        with av.open(str(path)) as container:
            assert float(container.streams.video[0].average_rate) == pytest.approx(float(fps))


def test_a_sidecar_holds_the_settings(tmp_path: Path) -> None:
    path = make_video().save(str(tmp_path / "clip.mp4"), fps=12)
    assert path == tmp_path / "clip.mp4"
    text = (tmp_path / "clip.mp4.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"prompt": "馬が走る", "seed": 7, "fps": 12}
    assert "馬" in text


def test_a_prompt_with_an_unpaired_surrogate_is_saved(tmp_path: Path) -> None:
    video = Video(moving_frames(), moving_frames()[0], np.zeros(1, np.float32), {}, {"prompt": "a\udcff"})
    video.save(tmp_path / "clip.gif")
    assert json.loads(sidecar_path(tmp_path / "clip.gif").read_text())["prompt"] == "a\udcff"


def test_a_folders_sidecar_lies_beside_it(tmp_path: Path) -> None:
    make_video().save(tmp_path / "clip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip", "clip.json"]


def test_repr_is_one_short_line() -> None:
    assert repr(make_video()) == "Video(5 frames, 96x64)"


def test_existing_results_are_replaced(tmp_path: Path) -> None:
    save_frames(moving_frames(5), tmp_path / "clip")
    save_frames(moving_frames(2), tmp_path / "clip")
    assert len(list((tmp_path / "clip").iterdir())) == 2
    (tmp_path / "clip.mp4").write_text("old")
    assert len(decoded(save_frames(moving_frames(2), tmp_path / "clip.mp4"))) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip", "clip.mp4"]


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "thesis.txt").write_text("dear")
    with pytest.raises(InputError, match=r"holds 'thesis\.txt'"):
        save_frames(moving_frames(), tmp_path / "clip")
    assert (tmp_path / "clip" / "thesis.txt").read_text() == "dear"


def test_a_folder_in_the_sidecars_place_is_kept(tmp_path: Path) -> None:
    (tmp_path / "clip.gif.json").mkdir()
    (tmp_path / "clip.gif.json" / "thesis.txt").write_text("dear")
    with pytest.raises(InputError, match="cannot be written"):
        make_video().save(tmp_path / "clip.gif")
    assert (tmp_path / "clip.gif.json" / "thesis.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("name", "height", "width", "message"),
    [
        ("clip.avi", 64, 96, r"ends in '\.avi'; choose \.mp4, \.gif, \.webp"),
        ("clip.mp4", 63, 96, "even width and height, the video is 96x63"),
        ("clip.mp4", 64, 95, "even width and height, the video is 95x64"),
        ("none/clip.mp4", 64, 96, "does not exist"),
    ],
)
def test_a_destination_is_checked_before_the_work(
    name: str, height: int, width: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        check_destination(tmp_path / name, height, width)
    assert list(tmp_path.iterdir()) == []


def test_odd_sizes_are_saved_in_the_other_formats(tmp_path: Path) -> None:
    frames = moving_frames(2, 15, 17)
    assert decoded(save_frames(frames, tmp_path / "clip.gif")).shape == frames.shape
    assert cv2.imread(str(save_frames(frames, tmp_path / "clip.webp"))).shape == (15, 17, 3)


def test_a_folder_that_cannot_be_written_is_refused() -> None:
    """/proc refuses new files even to root."""
    with pytest.raises(InputError, match="cannot be written"):
        save_frames(moving_frames(), "/proc/self/clip.mp4")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """A limit on the file size stands for the disk."""
    program = (
        "import resource, sys, numpy as np; from lamp_trt.runtime.media.video import save_frames\n"
        "from lamp_trt.engine.errors import OutputError\n"
        "frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "for name in ('a.mp4', 'a.gif', 'a.webp', 'a'):\n"
        "    try: save_frames(frames, f'{sys.argv[1]}/{name}')\n"
        "    except OutputError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert result.stdout.count("cannot be written: ") == 4
    assert result.stderr == ""  # FFmpeg's and OpenCV's own lines
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(frames: object, path: Path, fps: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setitem(video_module._ENCODERS, ".mp4", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_frames(moving_frames(), tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def delays_ms(path: Path) -> list[int]:
    delays = []
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            frame.load()
            delays.append(int(frame.info["duration"]))
    return delays


@pytest.mark.parametrize("suffix", ["gif", "webp"])
@pytest.mark.parametrize("fps", [0.1, 0.3, 8, 12, 15, 23.976, 24, 29.97, 30, 33.3, 45, 48, 50, 60, 72, 90])
def test_delays_are_what_browsers_keep_and_add_up(suffix: str, fps: float, tmp_path: Path) -> None:
    """Chromium, Firefox and WebKit show a delay of 10 ms or less for 100 ms."""
    path = tmp_path / f"clip.{suffix}"
    if suffix == "gif" and fps > 50:
        with pytest.raises(InputError, match=r"more than 50 fps .*\.mp4 or \.webp, or choose at most 50 fps"):
            check_destination(path, 16, 16, fps)
        return
    frames = moving_frames(31, 16, 16)
    frames[:, 0, 0, 0] = np.arange(31) * 8
    delays = delays_ms(save_frames(frames, path, fps))
    assert len(delays) == 31
    clock = 10 if suffix == "gif" else 1
    assert min(delays) >= (20 if suffix == "gif" else 11)
    assert max(delays) - min(delays) in (0, clock)
    assert abs(sum(delays) - 31 * 1000 / fps) <= max(clock, 2)


@pytest.mark.parametrize(
    ("name", "fps", "remedy"),
    [
        ("a.gif", 50.1, r"\.mp4 or \.webp"),
        ("a.GIF", 60, r"\.mp4 or \.webp"),
        ("a.gif", 100, r"save it as \.mp4, or"),
        ("a.webp", 91, r"save it as \.mp4, or"),
        ("a.webp", np.float32(100), r"choose at most 90 fps"),
    ],
)
def test_a_rate_that_browsers_slow_down_is_refused_before_anything_is_written(
    name: str, fps: float, remedy: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=remedy):
        check_destination(tmp_path / name, 64, 96, fps)
    with pytest.raises(InputError, match=remedy):
        make_video().save(tmp_path / name, fps)
    assert list(tmp_path.iterdir()) == []
    for other in ("a.mp4", "pngs"):
        check_destination(tmp_path / other, 64, 96, fps)


IMPOSSIBLE_FPS = [0, -1, math.nan, math.inf, -math.inf, 101, 1e9, 10**400, 0.001, "8", None]


@pytest.mark.parametrize("fps", IMPOSSIBLE_FPS, ids=range(len(IMPOSSIBLE_FPS)))
def test_an_impossible_frame_rate_is_refused(fps: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fps is"):
        check_destination(tmp_path / "clip.mp4", 64, 96, fps)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="fps is"):
        save_frames(moving_frames(), tmp_path / "clip.mp4", fps)  # type: ignore[arg-type]


def test_anything_but_bytes_of_a_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected uint8"):
        save_frames(moving_frames().astype(np.float32), tmp_path / "clip.mp4")
