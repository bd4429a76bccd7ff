# SPDX-License-Identifier: Apache-2.0
"""generate --preview: a file that is whole at any moment, and is left only by a video that was saved."""

import shlex
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import lamp_trt
from lamp_trt.benchmarks.verify.pictures import synthetic_picture
from lamp_trt.cli import main
from lamp_trt.engine.bundle.manifest import Manifest
from lamp_trt.engine.errors import Cancelled, InputError, OutputError, SafetyError
from lamp_trt.runtime.jobs import Job, run_jobs
from lamp_trt.runtime.media.image import encode_png
from lamp_trt.runtime.media.video import Video
from lamp_trt.runtime.pipeline import LampPipeline

PICTURE = synthetic_picture(64, 64)


@pytest.fixture(scope="module")
def pipe(safe_bundle: Path) -> Iterator[LampPipeline]:
    with lamp_trt.load(safe_bundle, num_threads=1) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def a_preview_of_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamp_trt.runtime.jobs.FILE_SECONDS", 0)


def job(folder: Path, name: str = "a.gif", steps: int = 3, **changes: Any) -> Job:
    options = {"num_inference_steps": steps, **changes.pop("options", {})}
    return Job("x", first_frame=PICTURE, out=folder / name, options=options, **changes)


def frames_of(path: Path) -> np.ndarray:
    """The frames of a WebP, by Pillow, an independent decoder."""
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        assert image.format == "WEBP"
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])


def test_the_file_is_a_whole_clip_after_every_step(pipe: LampPipeline, tmp_path: Path) -> None:
    path, seen = tmp_path / "p.webp", []

    def look(stage: str, done: int, total: int) -> None:
        if done > 1:  # the first preview follows the first step
            seen.append(frames_of(path))
            assert {each.name for each in tmp_path.iterdir()} == {"p.webp"}

    list(run_jobs(pipe, [job(tmp_path)], progress=look, preview=path))
    assert [clip.shape for clip in seen] == [(4, 16, 16, 3)] * 2
    assert (seen[0] != seen[1]).any()
    assert {each.name for each in tmp_path.iterdir()} == {"p.webp", "a.gif", "a.gif.json"}
    small = PICTURE.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(frames_of(path)[0] - small).mean() < 20  # frame 0 is the first frame


def test_the_file_keeps_the_rate_that_browsers_play(pipe: LampPipeline, tmp_path: Path) -> None:
    list(run_jobs(pipe, [job(tmp_path, "a.mp4", steps=1, fps=100)], preview=tmp_path / "p.webp"))
    assert len(frames_of(tmp_path / "p.webp")) == 4


def refusing(*_: Any) -> Any:
    raise SafetyError("the video is refused.")


def cancelled(pipe: LampPipeline, jobs: list[Job], preview: Path) -> None:
    token = threading.Event()
    stop = lambda stage, done, total: token.set() if done == 2 else None  # noqa: E731
    list(run_jobs(pipe, jobs, progress=stop, preview=preview, cancel=token))


def interrupted(pipe: LampPipeline, jobs: list[Job], preview: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    list(run_jobs(pipe, jobs, progress=stop, preview=preview))


def refused(pipe: LampPipeline, jobs: list[Job], preview: Path) -> None:
    list(run_jobs(pipe, jobs, preview=preview))


def refused_before_saving(pipe: LampPipeline, jobs: list[Job], preview: Path) -> None:
    list(run_jobs(pipe, jobs, refusing, preview=preview))


@pytest.mark.parametrize(
    ("run", "error"),
    [
        (cancelled, Cancelled),
        (interrupted, KeyboardInterrupt),
        (refused, SafetyError),
        (refused_before_saving, SafetyError),
    ],
)
def test_what_is_not_saved_leaves_no_preview(
    pipe: LampPipeline, tmp_path: Path, run: Any, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    save = lamp_trt.runtime.media.preview_file.save_frames  # type: ignore[attr-defined]
    monkeypatch.setattr(
        "lamp_trt.runtime.media.preview_file.save_frames",
        lambda frames, path, fps: written.append(save(frames, path, fps)),
    )
    if run is refused:
        monkeypatch.setattr("lamp_trt.runtime.stages.check_frames", refusing)
    with pytest.raises(error):
        run(pipe, [job(tmp_path)], tmp_path / "p.webp")
    assert written
    assert not [*tmp_path.iterdir()]


def test_an_interrupt_while_the_file_is_written_leaves_nothing(
    pipe: LampPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lamp_trt.engine.files.output.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(run_jobs(pipe, [job(tmp_path)], preview=tmp_path / "p.webp"))
    assert not [*tmp_path.iterdir()]


def test_of_several_videos_a_refused_one_takes_its_preview_with_it(
    pipe: LampPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamp_trt.runtime import stages

    check, calls = stages.check_frames, []

    def second_is_refused(*arguments: Any) -> bool:
        calls.append(1)
        return refusing() if len(calls) == 2 else check(*arguments)

    monkeypatch.setattr(stages, "check_frames", second_is_refused)
    path = tmp_path / "p.webp"
    run = run_jobs(pipe, [job(tmp_path, f"{name}.gif") for name in "ab"], preview=path)
    next(run)
    assert path.exists()
    with pytest.raises(SafetyError, match="1 of 2 videos were refused"):
        next(run)
    assert not path.exists()
    assert (tmp_path / "a.gif").exists()


def test_an_earlier_file_stays_if_the_first_frame_is_refused(
    pipe: LampPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.webp"
    path.write_bytes(b"earlier")
    monkeypatch.setattr("lamp_trt.runtime.stages.check_first_frame", refusing)
    with pytest.raises(SafetyError):
        list(run_jobs(pipe, [job(tmp_path)], preview=path))
    assert path.read_bytes() == b"earlier"


def test_a_file_that_can_no_longer_be_written_does_not_cost_the_video(
    pipe: LampPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def full(*_: Any) -> None:
        calls.append(1)
        raise OutputError("'p.webp' cannot be written: No space left on device.")

    monkeypatch.setattr("lamp_trt.runtime.media.preview_file.save_frames", full)
    ((path, video),) = run_jobs(pipe, [job(tmp_path)], preview=tmp_path / "p.webp")
    assert isinstance(video, Video)
    assert path.exists()
    assert len(calls) == 1
    assert caplog.text.count("no further previews of this video: 'p.webp' cannot be written: No space") == 1


@pytest.mark.parametrize(
    ("preview", "out", "message"),
    [
        ("p.gif", "a.gif", r"the preview .*p\.gif' ends in '\.gif'; previews are \.webp files"),
        ("p", "a.gif", r"the preview .*/p' ends in ''; previews are \.webp files"),
        ("a.webp", "a.webp", r"the preview .*a\.webp' would replace or lie in .*a\.webp'"),
        ("./sub/../a.webp", "a.webp", "would replace or lie in"),
        ("link.webp", "a.webp", "would replace or lie in"),
        ("horse.webp", "a.gif", r"would replace or lie in .*horse\.webp'"),
        ("clip/p.webp", "clip", "would replace or lie in"),
        ("missing/p.webp", "a.gif", r"the folder .*missing' does not exist; create it first"),
        ("sub.webp", "a.gif", "is a folder and would be replaced"),
        ("x" * 250 + ".webp", "a.gif", "is longer than 200 bytes"),
    ],
)
def test_unusable_paths_are_refused_before_any_work(
    pipe: LampPipeline,
    tmp_path: Path,
    preview: str,
    out: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub.webp").mkdir()
    (tmp_path / "horse.webp").write_bytes(encode_png(PICTURE))
    (tmp_path / "link.webp").symlink_to("a.webp")
    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr("lamp_trt.runtime.pipeline.make_video", None)
    from_file = replace(job(tmp_path, out), first_frame=tmp_path / "horse.webp")
    with pytest.raises(InputError, match=message):
        list(run_jobs(pipe, [from_file], preview=tmp_path / preview))
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_bundle_without_a_map_is_refused_before_any_work(
    safe_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    old = Path(shutil.copytree(safe_bundle, tmp_path / "old"))
    manifest = Manifest.from_json((old / "bundle.json").read_bytes())
    (old / "bundle.json").write_bytes(replace(manifest, previews={}).to_json())
    (tmp_path / "horse.png").write_bytes(encode_png(PICTURE))
    arguments = ["--first-frame", tmp_path / "horse.png", "--preview", tmp_path / "p.webp", "--steps", 1]
    command = ["generate", "x", "y", f"--bundle={old}", "--out", tmp_path / "videos", *arguments]
    assert main([*map(str, command)]) == 2
    assert "no preview: this bundle has no preview map of vae" in capfd.readouterr().err
    assert not (tmp_path / "videos").exists()
    assert main(["inspect", str(old)]) == main(["inspect", str(safe_bundle)]) == 0
    shown = capfd.readouterr().out
    assert "previews  none" in shown
    assert "previews  vae (R² 0.99" in shown


def test_the_readmes_command_does_what_it_says(
    safe_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text().split("**Previews.**")[1]
    command = next(shlex.split(line)[1:] for line in text.splitlines() if line.startswith("    lamp-trt "))
    (tmp_path / "bundle").symlink_to(safe_bundle)
    (tmp_path / "horse.png").write_bytes(encode_png(PICTURE))
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--num-threads=1", "--steps=2"]) == 0
    assert capfd.readouterr().out == "horse.mp4\n"
    assert frames_of(tmp_path / "preview.webp").shape == (4, 16, 16, 3)
    with av.open("horse.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) == 4
