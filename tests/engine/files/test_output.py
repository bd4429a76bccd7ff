# SPDX-License-Identifier: Apache-2.0
"""Results are written whole or not at all; a machine that is at its limit is no bad input: exit code 1."""

import argparse
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lamp_trt.benchmarks.report import files as report_files
from lamp_trt.benchmarks.verify import polygraphy_inputs
from lamp_trt.cli import main
from lamp_trt.commands import inspect
from lamp_trt.engine.errors import InputError, LampError, OutputError
from lamp_trt.engine.files.output import write_text, written
from lamp_trt.runtime.first_frame import FirstFrame
from lamp_trt.runtime.media.video import Video

MACHINE = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE]
CALLER = [errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG]

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
VIDEO = Video(FRAMES, FRAMES[0], np.zeros(1, np.float32), {}, {"prompt": "a"})
IMAGE = FirstFrame(FRAMES[0], np.zeros(1, np.float32), {}, {"prompt": "a"})


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [(n, OutputError, 1) for n in MACHINE] + [(n, InputError, 2) for n in CALLER],
    ids=lambda value: errno.errorcode.get(value, "") if isinstance(value, int) else value.__name__,
)
def test_what_cannot_be_written_is_the_machines_or_the_callers_fault(
    number: int, kind: type[LampError], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(number))
    for save in (
        lambda: VIDEO.save(tmp_path / "clip.mp4"),
        lambda: VIDEO.save(tmp_path / "clip"),
        lambda: IMAGE.save(tmp_path / "frame.png"),
        lambda: write_text(tmp_path / "report.json", "{}"),
    ):
        with pytest.raises(kind, match=f"cannot be written: {os.strerror(number)}") as raised:
            save()
        assert raised.value.exit_code == code
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.webp", "clip", "frame.png"])
def test_a_video_and_its_settings_are_both_there_or_as_they_were(
    name: str, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes the file system fails once."""
    result = IMAGE if name == "frame.png" else VIDEO
    if before:
        old = Video(FRAMES[::-1], FRAMES[0], np.zeros(1, np.float32), {}, {"prompt": "old"})
        (IMAGE if name == "frame.png" else old).save(tmp_path / name)
    expected = contents(tmp_path)
    calls, fail_at = 0, 0

    def counted(module: object, call: str) -> None:
        original = getattr(module, call)

        def wrapper(*arguments: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == fail_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments, **options)

        monkeypatch.setattr(module, call, wrapper)

    for module, call in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "mkdir")):
        counted(module, call)
    for fail_at in range(1, 100):
        calls = 0
        if is_saved(lambda: result.save(tmp_path / name)):
            assert fail_at == calls + 1 > 5
            break
        assert contents(tmp_path) == expected, f"after failing call {fail_at}"
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert len(contents(tmp_path)) == (3 if name == "clip" else 2)
    assert contents(tmp_path) != expected or name == "frame.png"


def is_saved(save: Callable[[], object]) -> bool:
    """Whether `save` worked; OutputError if not."""
    try:
        save()
    except OutputError:
        return False
    return True


def test_a_file_system_without_hard_links_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    for _ in range(2):
        VIDEO.save(tmp_path / "clip.gif")
    assert sorted(contents(tmp_path)) == ["clip.gif", "clip.gif.json"]


@pytest.mark.parametrize("limit", [0, 10, 300, 2000])
def test_a_real_limit_keeps_the_old_pair(limit: int, tmp_path: Path) -> None:
    """Of the size of files, as a full disk: native encoders meet it too."""
    program = (
        "import resource, sys\n"
        "import tests.engine.files.test_output as t\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "for name in ('a.mp4', 'a.gif', 'a.webp', 'a', 'a.png'):\n"
        "    saved = t.IMAGE if name == 'a.png' else t.VIDEO\n"
        "    try: saved.save(f'{sys.argv[1]}/{name}')\n"
        "    except t.OutputError as error: print(error)\n"
    )
    (tmp_path / "a.mp4").write_bytes(b"old")
    (tmp_path / "a.mp4.json").write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-B", "-c", program, str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("cannot be written: File too large") == 5
    assert contents(tmp_path) == {"a.mp4": b"old", "a.mp4.json": b"old"}


def test_reports_are_written_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("result_text", "markdown", "page"):
        monkeypatch.setattr(report_files, name, lambda result, name=name: f"{result} {name}")
    report_files.write_reports("old", tmp_path)  # type: ignore[arg-type]
    old = contents(tmp_path)
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(OutputError, match="No space left"):
        report_files.write_reports("new", tmp_path)  # type: ignore[arg-type]
    assert contents(tmp_path) == old
    assert sorted(old) == ["bench.html", "bench.json", "bench.md"]


def test_inputs_for_other_tools_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("polygraphy")
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(OutputError):
        polygraphy_inputs.save_inputs(tmp_path / "inputs.json", {"x": np.zeros(3, np.float32)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", ["Python", "torch"])
def test_the_toy_leaves_nothing_where_a_file_does_not_fit(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's writer of pickles, which write_toy comes to after the folder sd, does not say why it failed."""
    from lamp_trt.export.toy import checkpoints as toy

    if writer == "torch":
        monkeypatch.setattr(toy, "_write_sd", lambda *_: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OutputError, match=r"toy' cannot be written: File too large"):
            toy.write_toy(tmp_path / "toy", training=0, sdxl=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_the_toy_gives_torch_s_reason_where_the_system_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamp_trt.export.toy import checkpoints as toy

    save = torch.save

    def to_no_file(value: object, target: object) -> None:
        if isinstance(target, Path):
            raise RuntimeError("unexpected pos 64 vs 0\nframes of C++")
        save(value, target)

    monkeypatch.setattr(torch, "save", to_no_file)
    with pytest.raises(OutputError, match=r"model\.bin' cannot be written: unexpected pos 64 vs 0\.$"):
        toy.write_toy(tmp_path / "toy", training=0, sdxl=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", MACHINE, ids=errno.errorcode.get)
def test_every_command_exits_with_1_where_the_machine_fails(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: argparse.Namespace) -> None:
        raise OSError(number, os.strerror(number), "/somewhere/file")

    monkeypatch.setattr(inspect, "run", run)
    assert main(["inspect", "x"]) == 1
    assert capsys.readouterr().err == (
        f"lamp-trt inspect: the system refused a file '/somewhere/file': {os.strerror(number)}.\n"
    )


def test_an_interrupt_between_the_renames_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("old")
    replace = Path.replace

    def interrupted(source: Path, target: Path) -> Path:
        if source.parent.name == "new" and target.name == "b":
            raise KeyboardInterrupt
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    both = written(tmp_path / "a", tmp_path / "b")
    for path in both.__enter__():
        path.write_text("new")
    with pytest.raises(KeyboardInterrupt):
        both.__exit__(None, None, None)
    assert contents(tmp_path) == {"a": b"old"}


def test_a_report_that_cannot_be_kept_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may have taken hours."""
    from lamp_trt.benchmarks.verify import report as verify_report
    from lamp_trt.benchmarks.verify import run as verify_run

    class Report:
        def to_json(self) -> dict[str, str]:
            return {"passed": "all"}

    monkeypatch.setattr(verify_run, "verify_bundle", lambda *_: Report())
    monkeypatch.setattr(verify_report, "require_passed", lambda _: None)
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    assert main(["verify", str(tmp_path), "--json", f"--out={tmp_path / 'x.json'}"]) == 1
    captured = capsys.readouterr()
    assert '"passed": "all"' in captured.out
    assert "No space left" in captured.err
