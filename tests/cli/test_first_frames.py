# SPDX-License-Identifier: Apache-2.0
"""First frames as people have them, by the `lamp-trt generate` command."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lamp_trt.cli import main
from lamp_trt.runtime.media.image import image_from_base64, load_first_frame
from tests.fixtures.image_zoo import FILES, exif, saved, with_exif_segment


def generate(bundle: Path, *arguments: object, verbosity: str = "-q") -> int:
    return main(
        ["generate", verbosity, f"--bundle={bundle}", "--num-threads=1", "--steps=1", *map(str, arguments)]
    )


@pytest.fixture
def clear(tmp_path: Path) -> Path:
    """A PNG whose left half is transparent and hides black."""
    pixels = np.full((40, 64, 4), 255, np.uint8)
    pixels[:, :32] = 0
    pixels[:, 32:, 2] = 60
    path = tmp_path / "clear.png"
    path.write_bytes(saved(pixels, "PNG"))
    return path


def first_frame_of(sidecar: Path) -> np.ndarray:
    return image_from_base64(json.loads(sidecar.read_text())["first_frame_png"])


def test_the_background_is_chosen_said_and_repeated(
    toy_bundle: Path, clear: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, flags, left in (("a", [], 255), ("b", ["--background=#204060"], (0x20, 0x40, 0x60))):
        out = tmp_path / f"{name}.gif"
        assert generate(toy_bundle, "x", "--first-frame", clear, "--out", out, *flags, verbosity="-v") == 0
        assert "transparent pixels: composited over" in capfd.readouterr().err
        image = first_frame_of(Path(f"{out}.json"))
        assert (image[:, 0] == left).all()
        assert (image[:, -1] == (255, 255, 60)).all()
        again = tmp_path / f"again-{name}.gif"
        assert generate(toy_bundle, "--from", f"{out}.json", "--out", again) == 0
        assert again.read_bytes() == out.read_bytes()


def test_a_background_in_json_lines(toy_bundle: Path, clear: Path, tmp_path: Path) -> None:
    jobs = [
        {"prompt": "a", "first_frame": clear.name, "out": str(tmp_path / "a.gif"), "background": "red"},
        {"prompt": "b", "first_frame": clear.name, "out": str(tmp_path / "b.gif")},
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    assert generate(toy_bundle, "--prompts", tmp_path / "jobs.jsonl", "--background", "blue") == 0
    lefts = [tuple(first_frame_of(tmp_path / f"{name}.gif.json")[0, 0]) for name in "ab"]
    assert lefts == [(255, 0, 0), (0, 0, 255)]


def test_what_is_no_colour_ends_the_run_before_the_first_video(
    toy_bundle: Path, clear: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        generate(toy_bundle, "x", "--first-frame", clear, "--background", "whiteish")
    assert "expected a colour like #ffffff" in capfd.readouterr().err
    jobs = [{"prompt": "a", "first_frame": clear.name}, {"prompt": "b", "background": 7}]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    arguments = ["--prompts", tmp_path / "jobs.jsonl", "--first-frame", clear, "--out", tmp_path / "out"]
    assert generate(toy_bundle, *arguments) == 2
    assert "background is 7; expected a colour" in capfd.readouterr().err
    assert not list(tmp_path.rglob("*.mp4"))


@pytest.mark.parametrize("cut", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["jpeg-420", "jpeg-progressive", "png", "webp-lossy", "tiff-jpeg", "avif"])
def test_a_half_downloaded_image_ends_in_one_line(
    toy_bundle: Path, name: str, cut: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No other lines on file descriptor 2, where OpenCV and libtiff wrote theirs."""
    data = FILES[name]()
    path = tmp_path / "photo"
    path.write_bytes(data[: int(len(data) * cut)])
    arguments = ("x", "--first-frame", path, "--out", tmp_path / "x.mp4", "--safety=off")
    assert generate(toy_bundle, *arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("lamp-trt generate: the image ")
    assert "cannot be read" in line
    assert [p.name for p in tmp_path.iterdir()] == ["photo"]


@pytest.mark.parametrize("flags", [["--fps=60"], ["--fps=1e9"], ["--fps=nan"], ["--fps=0"]])
def test_an_impossible_rate_ends_the_run_before_the_work(
    toy_bundle: Path, clear: Path, flags: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert generate(toy_bundle, "x", "--first-frame", clear, "--out", tmp_path / "x.gif", *flags) == 2
    assert "fps is" in capfd.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["clear.png"]


def test_a_telephones_photo_stands_upright(toy_bundle: Path, tmp_path: Path) -> None:
    photo = np.zeros((48, 64, 3), np.uint8)
    photo[:, :32] = 230
    path = tmp_path / "photo.jpg"
    path.write_bytes(with_exif_segment(saved(Image.fromarray(photo), "JPEG", quality=95), exif(6)))
    out = tmp_path / "x.gif"
    assert generate(toy_bundle, "x", "--first-frame", path, "--out", out) == 0
    image = first_frame_of(Path(f"{out}.json"))
    np.testing.assert_array_equal(image, load_first_frame(path, *image.shape[:2]))
    assert (image[:4].min() > 200, image[-4:].max() < 50) == (True, True)
