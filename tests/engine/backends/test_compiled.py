# SPDX-License-Identifier: Apache-2.0
"""The cache of compiled engines: only what fits is given out, and nothing half-written stays."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.compiled import CompiledEngine, CompiledKey
from lamp_trt.engine.bundle import atomic_files
from lamp_trt.engine.errors import EngineError

ROOT = Path(__file__).parents[3]
KEY = CompiledKey(
    network="lamp_unet",
    backend="tensorrt",
    graph="a" * 64,
    weights="b" * 64,
    motion="",
    profile={"sample": "2x4x16x40x64"},
    flags={"refit": True, "optimization_level": 3},
    compiler="tensorrt 10.16.1",
    device="sm_90",
)
REBUILD = "lamp-trt build --backend tensorrt --out BUNDLE"


def writing(data: bytes) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        file.write(data)

    return write


def stored(folder: Path, key: CompiledKey = KEY, data: bytes = b"engine") -> CompiledEngine:
    return compiled.store(folder, key, "plan", {"bundle": "c" * 64, "layers": 3}, writing(data))


def changed(**fields: Any) -> CompiledKey:
    return dataclasses.replace(KEY, **fields)


def test_what_is_stored_is_found_with_what_was_noted(tmp_path: Path) -> None:
    folder = tmp_path / "bundle" / "engines"
    engine = stored(folder)
    assert engine.path == folder / f"lamp_unet-{KEY.digest()[:16]}.plan"
    assert engine.path.read_bytes() == b"engine"
    assert compiled.find(folder, KEY, REBUILD) == engine
    assert compiled.has(folder, KEY)
    assert compiled.known(folder) == [engine]
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".plan"]


def test_the_digest_depends_on_values_and_not_on_their_order() -> None:
    reordered = changed(flags={"optimization_level": 3, "refit": True})
    assert reordered.digest() == KEY.digest()
    others = [changed(**{f.name: "other"}) for f in dataclasses.fields(KEY) if f.type == "str"]
    others += [changed(profile={}), changed(flags={**KEY.flags, "refit": False})]
    assert len({key.digest() for key in [KEY, *others]}) == len(others) + 1


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (changed(device="sm_120"), "was built for sm_90, this device is sm_120"),
        (changed(compiler="tensorrt 11.4.0"), "was built by tensorrt 10.16.1, this is tensorrt 11.4.0"),
        (changed(graph="d" * 64), "was built from another graph"),
        (changed(weights="d" * 64), "was built from other weights"),
        (changed(motion="d" * 64), "has no motion baked in"),
        (
            changed(profile={"sample": "1x4"}),
            "with profile sample=2x4x16x40x64, wanted is sample=1x4",
        ),
        (changed(flags={"refit": True}), "option optimization_level=3, wanted is optimization_level=None"),
        (changed(backend="tensorrt_rtx"), "holds no tensorrt_rtx engine for lamp_unet"),
        (changed(network="vae_decoder"), "holds no tensorrt engine for vae_decoder"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_difference_and_the_remedy(
    wanted: CompiledKey, message: str, tmp_path: Path
) -> None:
    stored(tmp_path)
    assert not compiled.has(tmp_path, wanted)
    with pytest.raises(EngineError, match=message) as caught:
        compiled.find(tmp_path, wanted, REBUILD)
    assert str(caught.value).endswith(REBUILD)


def test_the_nearest_engine_is_the_one_that_is_compared(tmp_path: Path) -> None:
    stored(tmp_path, changed(device="sm_80", compiler="tensorrt 10.14", graph="e" * 64))
    stored(tmp_path)
    stored(tmp_path, changed(network="lamp_unet_text", device="sm_120"))
    with pytest.raises(EngineError, match=r"^the tensorrt engine for lamp_unet in \S+ was built for sm_90,"):
        compiled.find(tmp_path, changed(device="sm_120"), REBUILD)


def test_who_loads_takes_the_profile_and_flags_of_the_latest_that_fits(tmp_path: Path) -> None:
    asked = changed(profile={}, flags={})
    assert compiled.chosen(tmp_path, asked) == asked
    stored(tmp_path)
    stored(tmp_path, changed(flags={"refit": False}))
    stored(tmp_path, changed(flags={"refit": True}, device="sm_120"))
    assert compiled.chosen(tmp_path, asked) == changed(flags={"refit": False})
    stored(tmp_path)
    assert compiled.chosen(tmp_path, asked) == KEY
    assert compiled.find(tmp_path, compiled.chosen(tmp_path, asked), REBUILD).key == KEY


def test_of_several_keys_the_one_that_an_engine_comes_closest_to_is_told_of(tmp_path: Path) -> None:
    keys = [changed(device="sm_120", flags={}), changed(device="sm_80+", flags={}, graph="d" * 64)]
    assert compiled.nearest(tmp_path, keys) == keys[0]
    stored(tmp_path)
    assert compiled.nearest(tmp_path, keys) == changed(device="sm_120")
    stored(tmp_path, changed(device="sm_80+", flags={"refit": False}))
    assert compiled.nearest(tmp_path, keys[1:]) == changed(
        device="sm_80+", flags={"refit": False}, graph="d" * 64
    )
    with pytest.raises(EngineError, match=r"was built for sm_90, this device is sm_120\. Build it"):
        compiled.find(tmp_path, compiled.nearest(tmp_path, keys[:1]), REBUILD)


def test_shapes_may_be_lists_or_tuples(tmp_path: Path) -> None:
    key = changed(profile={"sample": (2, 4, 16, 40, 64)})
    stored(tmp_path, key)
    assert compiled.has(tmp_path, changed(profile={"sample": [2, 4, 16, 40, 64]}))
    assert compiled.find(tmp_path, key, REBUILD).key == key
    assert compiled.known(tmp_path)[0].key == key


def test_an_empty_or_absent_folder_holds_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        assert compiled.known(folder) == []
        assert not compiled.has(folder, KEY)
        with pytest.raises(EngineError, match="holds no tensorrt engine"):
            compiled.find(folder, KEY, REBUILD)


def test_a_changed_byte_is_noticed_at_every_load(tmp_path: Path) -> None:
    engine = stored(tmp_path)
    compiled.find(tmp_path, KEY, REBUILD)
    status = engine.path.stat()
    engine.path.write_bytes(b"enginE")
    os.utime(engine.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(EngineError, match="damaged or exchanged"):
        compiled.find(tmp_path, KEY, REBUILD)


def test_a_truncated_or_missing_engine_is_not_there(tmp_path: Path) -> None:
    engine = stored(tmp_path)
    engine.path.write_bytes(b"eng")
    assert not compiled.has(tmp_path, KEY)
    with pytest.raises(EngineError, match="damaged or exchanged"):
        compiled.find(tmp_path, KEY, REBUILD)
    engine.path.unlink()
    assert not compiled.has(tmp_path, KEY)
    with pytest.raises(EngineError, match=r"missing or cannot be read.*Build it again"):
        compiled.find(tmp_path, KEY, REBUILD)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"file": "../other.plan"}, "file is '../other.plan'"),
        ({"file": "/etc/passwd"}, "file is '/etc/passwd'"),
        ({"schema_version": 2}, "schema_version is 2, expected 1"),
        ({"unheard_of": 1}, "unheard_of is not a known key"),
        ({"size": "6"}, "size is '6', expected an integer"),
        ({"key": {}}, "key.backend is missing"),
    ],
)
def test_a_sidecar_that_was_edited_is_refused(edit: dict[str, Any], message: str, tmp_path: Path) -> None:
    sidecar = stored(tmp_path).path.with_suffix(".json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **edit}))
    assert not compiled.has(tmp_path, KEY)
    assert compiled.known(tmp_path) == []
    with pytest.raises(EngineError, match=message):
        compiled.find(tmp_path, KEY, REBUILD)


def test_a_sidecar_under_anothers_name_is_refused(tmp_path: Path) -> None:
    engine, wanted = stored(tmp_path), changed(device="sm_120")
    document = json.loads(engine.path.with_suffix(".json").read_text())
    document["file"] = f"{wanted.stem}.plan"
    (tmp_path / f"{wanted.stem}.json").write_text(json.dumps(document))
    engine.path.rename(tmp_path / f"{wanted.stem}.plan")
    with pytest.raises(EngineError, match="damaged or exchanged"):
        compiled.find(tmp_path, wanted, REBUILD)


def test_a_newer_engine_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    stored(tmp_path, data=b"old")
    engine = stored(tmp_path, data=b"newer")
    assert compiled.find(tmp_path, KEY, REBUILD).path.read_bytes() == b"newer"
    assert len(list(tmp_path.iterdir())) == 2
    assert engine.path.read_bytes() == b"newer"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, EngineError, MemoryError])
def test_an_interrupted_writer_leaves_all_as_it_was(
    interruption: type[BaseException], tmp_path: Path
) -> None:
    engine = stored(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise interruption

    for key in (KEY, changed(device="sm_120")):
        with pytest.raises(interruption):
            compiled.store(tmp_path, key, "plan", {}, write)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert compiled.find(tmp_path, KEY, REBUILD) == engine


@pytest.mark.parametrize("call", range(10))
def test_a_crash_at_any_change_leaves_an_engine_that_is_whole_or_absent(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path, data=b"old")
    calls = 0

    def failing(name: str) -> None:
        original = getattr(atomic_files, name)

        def counted(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "file"))
            return original(*arguments)

        monkeypatch.setattr(atomic_files, name, counted)

    for name in ("create", "write", "fsync", "rename", "unlink"):
        failing(name)
    with pytest.raises(EngineError, match="no space is left"):
        stored(tmp_path, data=b"newer")
    monkeypatch.undo()
    try:
        found = compiled.find(tmp_path, KEY, REBUILD)
    except EngineError:
        assert not compiled.has(tmp_path, KEY)
    else:
        assert found.path.read_bytes() in (b"old", b"newer")
    assert compiled.find(tmp_path, stored(tmp_path, data=b"last").key, REBUILD).path.read_bytes() == b"last"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_build_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from lamp_trt.engine.backends import compiled
from tests.engine.backends.test_compiled import KEY
def write(file):
    file.write(b"half")
    os.kill(os.getpid(), 9)
compiled.store(Path({str(tmp_path)!r}), KEY, "plan", {{}}, write)
"""
    killed = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert killed.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.read_bytes() == b"half"

    def write(file: BinaryIO) -> None:
        (mine,) = tmp_path.iterdir()
        assert mine != left
        stored(tmp_path, changed(device="sm_120"))
        assert mine.exists()
        file.write(b"engine")

    compiled.store(tmp_path, KEY, "plan", {}, write)
    assert len(list(tmp_path.iterdir())) == 4
    assert compiled.has(tmp_path, KEY)


def test_a_folder_that_cannot_be_written_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EngineError, match="--engine-dir"):
        stored(tmp_path / "file" / "engines")


def test_errors_about_other_files_pass(tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        Path("/nowhere/else").read_bytes()

    with pytest.raises(FileNotFoundError, match="/nowhere/else"):
        compiled.store(tmp_path, KEY, "plan", {}, write)


def test_engines_that_are_links_are_found_and_not_written_through(tmp_path: Path) -> None:
    """As in a Hugging Face cache: engine and sidecar are links to blobs with names of their own."""
    stored(tmp_path / "made")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "view").mkdir()
    for number, file in enumerate(sorted((tmp_path / "made").iterdir())):
        file.rename(tmp_path / f"blobs/{number}")
        (tmp_path / "view" / file.name).symlink_to(f"../blobs/{number}")
    (tmp_path / f"view/old.plan{atomic_files.TEMPORARY_SUFFIX}").symlink_to("../blobs/0")
    before = {path.name: path.read_bytes() for path in (tmp_path / "blobs").iterdir()}
    assert compiled.find(tmp_path / "view", KEY, REBUILD).path.read_bytes() == b"engine"
    assert compiled.has(tmp_path / "view", KEY)
    stored(tmp_path / "view", data=b"another")
    assert compiled.find(tmp_path / "view", KEY, REBUILD).path.read_bytes() == b"another"
    assert {path.name: path.read_bytes() for path in (tmp_path / "blobs").iterdir()} == before
    assert sorted(path.suffix for path in (tmp_path / "view").iterdir()) == [".json", ".plan"]


def test_a_folder_that_takes_no_engine_is_told_before_compiling(tmp_path: Path) -> None:
    compiled.prepare_folder(tmp_path / "a/b")
    assert list((tmp_path / "a/b").iterdir()) == []
    with pytest.raises(
        EngineError, match=r"cannot write a compiled engine to /proc/x: .*\. Keep engines elsew"
    ):
        compiled.prepare_folder(Path("/proc/x"))
