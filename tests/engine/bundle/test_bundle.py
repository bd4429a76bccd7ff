# SPDX-License-Identifier: Apache-2.0
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamp_trt.cli import main
from lamp_trt.engine.bundle import atomic_files
from lamp_trt.engine.bundle.digests import DigestCache
from lamp_trt.engine.bundle.manifest import Manifest
from lamp_trt.engine.bundle.paths import check_relative, validate_motion_name
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.writer import BundleWriter
from lamp_trt.engine.errors import BundleError, InputError
from tests.fixtures.bundle_cases import (
    FIRST,
    SECOND,
    add_motion,
    build,
    key_of,
    manifest_of,
    remove_motion,
    tree,
)


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build(tmp_path / "bundle", FIRST)
    return tmp_path / "bundle"


# Reading


def test_a_bundle_gives_its_paths_and_facts(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.graph_path("lamp_unet").read_bytes() == FIRST["lamp_unet.onnx"]
    assert bundle.motion_path() == bundle.motion_path("horse_run") == folder / "motions/horse_run.safetensors"
    assert bundle.tokenizer_folder("tokenizer") == folder / "tokenizer"
    assert bundle.network("lamp_unet").inputs[0].shape == (2, 4, 2, 8, 8)
    assert bundle.manifest.scaling_factors == {"vae": 0.18215}
    assert bundle.manifest.files["weights/unet.safetensors"].size == 9000


def test_the_bundle_digest_is_what_sha256sum_prints(folder: Path) -> None:
    import hashlib

    digest = hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()
    assert Bundle.open(folder, expect_digest=digest.upper()).digest == digest
    with pytest.raises(BundleError, match=f"has digest {digest}, expected {'0' * 64}"):
        Bundle.open(folder, expect_digest="0" * 64)
    with pytest.raises(InputError, match="not 64 hexadecimal digits"):
        Bundle.open(folder, expect_digest="abc")


def test_unknown_names_are_answered_with_the_known_ones(folder: Path) -> None:
    add_motion(folder, "rain", b"rain")
    bundle = Bundle.open(folder)
    with pytest.raises(BundleError, match=r"no motion 'walk'; known: horse_run, rain\..*motion add"):
        bundle.motion_path("walk")
    with pytest.raises(BundleError, match="no network 'sdxl_unet'; known: lamp_unet"):
        bundle.graph_path("sdxl_unet")
    with pytest.raises(BundleError, match=r"no file 'weights/vae.safetensors'; known: lamp_unet.onnx, "):
        bundle.path_of("weights/vae.safetensors")
    with pytest.raises(InputError, match="verify is 'maybe'"):
        Bundle.open(folder, verify="maybe")  # type: ignore[arg-type]


def test_what_is_no_bundle_is_told_apart_from_an_unfinished_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"does not exist\. Make one: lamp-trt build"):
        Bundle.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"has no bundle.json"):
        Bundle.open(tmp_path / "empty")
    with (
        BundleWriter(tmp_path / "begun"),
        pytest.raises(BundleError, match=r"unfinished bundle.*Run the build again"),
    ):
        Bundle.open(tmp_path / "begun")


@pytest.mark.parametrize("verify", ["stat", "full"])
@pytest.mark.parametrize("relative", [*FIRST])
def test_a_flipped_byte_is_found_and_its_file_named(folder: Path, relative: str, verify: Any) -> None:
    Bundle.open(folder)
    data = bytearray(FIRST[relative])
    data[len(data) // 2] ^= 1
    (folder / relative).write_bytes(data)
    with pytest.raises(BundleError, match=f"{relative} in .* is damaged: its digest .*lamp-trt build"):
        Bundle.open(folder, verify=verify)
    assert build(folder, FIRST) == [relative]
    Bundle.open(folder, verify="full")


def test_any_flipped_bit_of_the_manifest_is_found(folder: Path) -> None:
    good = (folder / "bundle.json").read_bytes()
    for position in range(len(good)):
        data = bytearray(good)
        data[position] ^= 1 << position % 8
        with pytest.raises(BundleError):
            Manifest.from_json(bytes(data))
    (folder / "bundle.json").write_bytes(good[:-1])
    with pytest.raises(
        BundleError, match=r"bundle.json: content_sha256 .* edited or damaged.*delete .*bundle.json"
    ):
        Bundle.open(folder)


def test_missing_short_and_irregular_files_are_named(folder: Path) -> None:
    weights = folder / "weights/unet.safetensors"
    weights.write_bytes(b"short")
    with pytest.raises(
        BundleError, match=r"weights/unet\.safetensors in .* it has 5 bytes, bundle.json says 9000"
    ):
        Bundle.open(folder, verify="none")
    weights.unlink()
    with pytest.raises(BundleError, match=r"unet.safetensors is missing in"):
        Bundle.open(folder, verify="none")
    os.mkfifo(weights)
    with pytest.raises(BundleError, match=r"unet.safetensors in .* is not a regular file"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../x",
        "weights/../../x",
        "weights//x",
        ".lock",
        "a/.b",
        "a\\b",
        "a\nb",
        "é",
        "\ud800",
        "a/",
    ],
)
def test_paths_that_could_leave_the_bundle_are_refused(path: str) -> None:
    with pytest.raises(BundleError, match="cannot name a file of a bundle"):
        check_relative(path)
    with pytest.raises(BundleError):
        Manifest.from_json(
            _edited(lambda document: document["files"].update({path: document["files"]["a.onnx"]}))
        )


@pytest.mark.parametrize(
    "path", ["bundle.json", "build.journal", "engines/x.plan", "a.lamp-tmp", "b/a.lamp-new"]
)
def test_the_bundles_own_files_cannot_be_made_through_it(path: str) -> None:
    with pytest.raises(BundleError, match="reserved"):
        check_relative(path)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a..b", "a" * 65, "a b", "é", "-x", "a\n"])
def test_motion_names_that_could_be_paths_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="cannot name a motion"):
        validate_motion_name(name)
    assert validate_motion_name("horse_run-2.1") == "horse_run-2.1"


def _edited(edit: Callable[[dict[str, Any]], object]) -> bytes:
    """A manifest's JSON after `edit`, without mending its content_sha256."""
    files = {"a.onnx": {"size": 1, "sha256": "0" * 64, "key": "k"}}
    document: dict[str, Any] = {
        "schema_version": 1,
        "networks": {
            "lamp_unet": {
                "graph": "a.onnx",
                "component": "unet",
                "precision": "fp16",
                "inputs": [{"name": "sample", "shape": [2, 4], "dtype": "float16"}],
                "outputs": [],
            }
        },
        "sizes": {"height": 64},
        "scheduler": {},
        "scaling_factors": {"vae": 0.18215},
        "tokenizers": {},
        "motions": {},
        "default_motion": None,
        "files": files,
    }
    edit(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda d: d.update(schema_version=2),
            "schema_version is 2, this lamp-trt reads 1; made by a newer lamp-trt",
        ),
        (lambda d: d.update(schema_version=0), "schema_version is 0, .* made by an older lamp-trt"),
        (lambda d: d.update(schema_version="1"), "schema_version is '1', expected 1"),
        (lambda d: d.pop("schema_version"), "schema_version is None"),
        (lambda d: d.update(host="me"), "host is not a known key"),
        (lambda d: d.pop("sizes"), "sizes is missing"),
        (lambda d: d["sizes"].update(width=True), "sizes.width is True, expected an integer"),
        (lambda d: d["sizes"].update(width=-1), "sizes.width is -1, expected 1 to"),
        (lambda d: d["sizes"].update(width=2**80), "sizes.width is 1208925819614629174706176"),
        (lambda d: d["scaling_factors"].update(vae="1"), "scaling_factors.vae is '1', expected a number"),
        (lambda d: d["scheduler"].update(beta={"a": 1}), "scheduler.beta is .*, expected a string or"),
        (lambda d: d["networks"]["lamp_unet"].update(extra=1), "networks.lamp_unet.extra is not a known key"),
        (
            lambda d: d["networks"]["lamp_unet"].update(precision="int8"),
            "precision is 'int8', expected 'bf16' or 'fp16' or 'fp32'",
        ),
        (
            lambda d: d["networks"]["lamp_unet"].update(graph="b.onnx"),
            "lamp_unet.graph is 'b.onnx', expected a path",
        ),
        (
            lambda d: d["networks"]["lamp_unet"]["inputs"][0].update(shape=[2, 1.5]),
            r"networks.lamp_unet.inputs\[0\].shape\[1\] is 1.5, expected an integer",
        ),
        (
            lambda d: d["networks"]["lamp_unet"]["inputs"][0].update(shape=[0]),
            "sample.shape is 0, expected axes",
        ),
        (
            lambda d: d["networks"]["lamp_unet"]["inputs"][0].update(dtype="object"),
            "sample.dtype is 'object'",
        ),
        (lambda d: d["files"]["a.onnx"].update(size=-1), "files.a.onnx.size is -1"),
        (lambda d: d["files"]["a.onnx"].update(sha256="xyz"), "files.a.onnx.sha256 is 'xyz'"),
        (lambda d: d.update(default_motion="rain"), "default_motion is 'rain'"),
        (
            lambda d: d["motions"].update({"../x": {"file": "a.onnx", "kind": "full", "origin": ""}}),
            "cannot name a motion",
        ),
        (
            lambda d: d["tokenizers"].update(t={"folder": "/etc"}),
            "tokenizers.t.folder is '/etc', expected a folder",
        ),
        (lambda d: None, "content_sha256 is None and does not fit"),
    ],
)
def test_a_manifest_that_is_wrong_in_one_field_is_refused_by_that_field(
    edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(_edited(edit))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"null",
        b"[" * 100_000,
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"not valid JSON|expected a JSON object"):
        Manifest.from_json(data)


def test_infinite_numbers_cannot_enter_a_manifest() -> None:
    data = _edited(lambda d: None).replace(b"0.18215", b"1e999")
    with pytest.raises(BundleError, match=r"scaling_factors.vae is inf, expected a number"):
        Manifest.from_json(data)


def test_a_bundle_that_was_copied_moved_and_made_read_only_still_opens(folder: Path, tmp_path: Path) -> None:
    digest = Bundle.open(folder).digest
    copy = shutil.copytree(folder, tmp_path / "copy")
    moved = copy.rename(tmp_path / "moved")
    for file in moved.rglob("*"):
        file.chmod(0o555 if file.is_dir() else 0o444)
    assert Bundle.open(moved).digest == digest
    assert Bundle.open(os.path.relpath(moved)).path == moved


def test_opening_imports_nothing_heavy(folder: Path) -> None:
    code = (
        "import sys; from lamp_trt.engine.bundle.reader import Bundle; Bundle.open(sys.argv[1]);"
        "print(*{'numpy', 'torch', 'onnx', 'onnxruntime', 'concurrent.futures'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


# Writing


def test_two_builds_from_the_same_inputs_are_byte_identical(folder: Path, tmp_path: Path) -> None:
    build(tmp_path / "other", dict(reversed(FIRST.items())))
    assert tree(folder) == tree(tmp_path / "other")
    assert set(tree(folder)) == {*FIRST, "bundle.json"}


def test_an_idle_second_build_makes_and_touches_nothing(folder: Path) -> None:
    before = {path: path.stat() for path in folder.rglob("*")}
    assert build(folder, FIRST) == []
    assert {path: path.stat().st_mtime_ns for path in before} == {p: s.st_mtime_ns for p, s in before.items()}


def test_a_build_resumes_after_its_last_finished_file(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"

    def interrupted_build() -> None:
        with BundleWriter(folder) as writer:
            for relative, data in FIRST.items():
                with writer.create(relative, key_of(data)) as file:
                    file.write(data)
                    if relative == "motions/horse_run.safetensors":
                        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_build()
    assert not (folder / "motions/horse_run.safetensors").exists()
    assert build(folder, FIRST) == ["motions/horse_run.safetensors", "tokenizer/vocab.json"]
    Bundle.open(folder, verify="full")


def test_a_file_is_reused_by_key_and_digest_never_because_it_exists(folder: Path) -> None:
    with BundleWriter(folder) as writer:
        assert writer.have("lamp_unet.onnx", key_of(b"graph 1"))
        assert not writer.have("lamp_unet.onnx", key_of(b"graph 2"))
        assert not writer.have("weights/vae.safetensors", key_of(b""))
        (folder / "lamp_unet.onnx").write_bytes(b"graph X")
        assert not writer.have("lamp_unet.onnx", key_of(b"graph 1"))


def test_the_old_bundle_stays_whole_until_the_new_one_is_committed(folder: Path, tmp_path: Path) -> None:
    digest = Bundle.open(folder).digest
    with BundleWriter(folder) as writer:
        for relative, data in SECOND.items():
            with writer.create(relative, key_of(data)) as file:
                file.write(data)
        assert writer.path_of("lamp_unet.onnx").read_bytes() == SECOND["lamp_unet.onnx"]
        old = Bundle.open(folder, verify="full")
        assert old.digest == digest
        assert old.graph_path("lamp_unet").read_bytes() == FIRST["lamp_unet.onnx"]
        new_digest = writer.commit(manifest_of(writer.files))
        assert writer.path_of("lamp_unet.onnx") == folder / "lamp_unet.onnx"
    assert Bundle.open(folder, verify="full").digest == new_digest
    build(tmp_path / "fresh", SECOND)
    assert tree(folder) == tree(tmp_path / "fresh")
    with pytest.raises(BundleError, match="changed while the bundle was in use: load it again"):
        old.check_unchanged()


@pytest.mark.parametrize("verify", ["none", "stat", "full"])
def test_a_bundle_with_an_interrupted_commit_is_refused_until_it_is_finished(
    folder: Path, verify: Any
) -> None:
    shutil.copy(folder / "bundle.json", folder / "bundle.json.pending")
    with pytest.raises(
        BundleError, match=r"is being replaced by another build, or such a build was interrupted"
    ):
        Bundle.open(folder, verify=verify)
    with BundleWriter(folder):
        pass
    assert Bundle.open(folder, verify=verify).path == folder


def test_going_back_after_an_unfinished_rebuild_keeps_the_old_files(folder: Path) -> None:
    before = tree(folder)
    with BundleWriter(folder) as writer, writer.create("lamp_unet.onnx", key_of(b"graph 2")) as file:
        file.write(b"graph 2")
    assert build(folder, FIRST) == []
    assert tree(folder) == before


def test_a_commit_removes_what_it_named_before_and_nothing_else(folder: Path) -> None:
    (folder / "engines").mkdir()
    (folder / "engines/lamp_unet.plan").write_bytes(b"plan")
    (folder / "notes.txt").write_text("mine")
    build(folder, SECOND)
    assert set(tree(folder)) == {*SECOND, "bundle.json", "engines/lamp_unet.plan", "notes.txt"}


def test_motions_are_added_and_removed(folder: Path) -> None:
    before = tree(folder)
    add_motion(folder, "rain", b"rain")
    assert Bundle.open(folder).motion_path("rain").read_bytes() == b"rain"
    remove_motion(folder, "rain")
    assert tree(folder) == before
    with pytest.raises(BundleError, match="default_motion is 'horse_run'"):
        remove_motion(folder, "horse_run")


def test_a_manifest_may_only_name_files_that_the_writer_vouches_for(folder: Path) -> None:
    with BundleWriter(folder) as writer:
        assert writer.manifest is not None
        entry = dataclasses.replace(writer.manifest.files["lamp_unet.onnx"], size=8)
        files = {**writer.manifest.files, "lamp_unet.onnx": entry}
        with pytest.raises(BundleError, match=r"lamp_unet.onnx was neither made nor confirmed"):
            writer.commit(dataclasses.replace(writer.manifest, files=files))


def test_folders_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_bytes(b"")
    with pytest.raises(BundleError, match="photos is not a bundle and not empty"):
        BundleWriter(tmp_path / "photos").__enter__()
    assert os.listdir(tmp_path / "photos") == ["cat.png"]
    with pytest.raises(BundleError, match=r"cannot use .*cat.png for a bundle: File exists"):
        BundleWriter(tmp_path / "photos/cat.png").__enter__()
    with pytest.raises(BundleError, match=r"cannot use .*bundle for a bundle: File exists"):
        BundleWriter(tmp_path / "photos/cat.png/bundle").__enter__()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(atomic_files, "mkdir", refuse)
    with pytest.raises(BundleError, match=r"cannot use .*Read-only file system. Choose another folder"):
        BundleWriter(tmp_path / "bundle").__enter__()


def test_writing_through_a_linked_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (folder / "weights2").symlink_to(tmp_path / "outside")
    with (
        BundleWriter(folder) as writer,
        pytest.raises(BundleError, match=r"weights2 in .* is a link to .*nothing is written through links"),
        writer.create("weights2/x", "k"),
    ):
        pass
    assert os.listdir(tmp_path / "outside") == []


def test_a_hostile_journal_removes_nothing_outside(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (folder / "build.journal").write_text('{"entry": null, "path": "../victim"}\n')
    build(folder, FIRST)
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("tail", ['{"entry": nu', '{"entry": null, "path": "notes.txt"}', "\0\0\0\n"])
def test_a_torn_journal_counts_up_to_its_last_whole_line(folder: Path, tail: str) -> None:
    (folder / "notes.txt").write_text("mine")
    with BundleWriter(folder) as writer, writer.create("lamp_unet.onnx", key_of(b"graph 2")) as file:
        file.write(b"graph 2")
    with (folder / "build.journal").open("a") as journal:
        journal.write(tail)
    with BundleWriter(folder) as writer, writer.create("motions/rain.safetensors", key_of(b"rain")) as file:
        file.write(b"rain")
    assert build(folder, SECOND) == ["weights/unet.safetensors"]
    assert (folder / "notes.txt").read_text() == "mine"
    assert Bundle.open(folder, verify="full").manifest.files.keys() == SECOND.keys()


# A full disk


def test_require_free_tells_need_and_free(folder: Path) -> None:
    with BundleWriter(folder) as writer:
        writer.require_free(1)
        with pytest.raises(BundleError, match=r"needs 1073741824.00 GiB, [0-9.]+ GiB are free there"):
            writer.require_free(2**60)


@pytest.mark.parametrize("name", ["create", "write", "fsync", "rename", "mkdir"])
def test_a_full_disk_is_told_and_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real, calls, failing = getattr(atomic_files, name), 0, -1

    def call(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == failing:
            path = arguments[0] if isinstance(arguments[0], Path) else None
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return real(*arguments)

    monkeypatch.setattr(atomic_files, name, call)
    build(tmp_path / "expected", FIRST)
    for failing in range(1, calls + 1):
        folder, calls = tmp_path / str(failing), 0
        with pytest.raises(
            BundleError, match=r"no space left for .* GiB are free|cannot use .*No space left"
        ):
            build(folder, FIRST)
        assert not [path for path in folder.rglob("*") if path.name.endswith((".lamp-tmp", ".lamp-new"))]
        build(folder, FIRST)
        assert tree(folder) == tree(tmp_path / "expected")


def test_an_error_of_a_callers_other_file_passes_unchanged(folder: Path, tmp_path: Path) -> None:
    with (
        BundleWriter(folder) as writer,
        pytest.raises(FileNotFoundError, match="no-such-source"),
        writer.create("x", "k") as file,
    ):
        file.write((tmp_path / "no-such-source").read_bytes())
    assert "x.lamp-tmp" not in tree(folder)


# Several processes

_HOLD = """
import sys
from lamp_trt.engine.bundle.writer import BundleWriter
with BundleWriter(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(folder: Path) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_writer_waits_and_says_so_or_gives_up(
    folder: Path, holder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BundleError, match=r"in use by another build or motion command. Try later"):
        BundleWriter(folder, timeout=0).__enter__()
    assert Bundle.open(folder, verify="full").path == folder
    timer = threading.Timer(0.3, holder.stdin.close)
    timer.start()
    assert build(folder, FIRST) == []
    timer.join()
    assert [r.message for r in caplog.records] == [
        f"waiting for another lamp-trt command that is changing {folder}"
    ]


def test_a_killed_writer_lets_go_of_the_bundle(folder: Path, holder: Any) -> None:
    holder.kill()
    with BundleWriter(folder, timeout=5) as writer:
        assert writer.manifest is not None


_READ = """
import sys, time
from pathlib import Path
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import BundleError
seen = 0
end = time.monotonic() + 2.0
while time.monotonic() < end:
    try:
        bundle = Bundle.open(sys.argv[1])
        graph = bundle.graph_path("lamp_unet").read_bytes()
        weights = bundle.path_of("weights/unet.safetensors").read_bytes()
        bundle.check_unchanged()
    except (BundleError, FileNotFoundError) as error:
        assert any(word in str(error) for word in ("being replaced", "changed while", "No such file")), error
        continue
    assert graph[-1:] == weights[-1:], (graph, weights[-1:])
    seen += 1
print(seen)
"""


def test_readers_during_rebuilds_see_one_version_or_are_told(folder: Path) -> None:
    command = [sys.executable, "-c", _READ, str(folder)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    while any(reader.poll() is None for reader in readers):
        build(folder, SECOND)
        build(folder, FIRST)
    for reader in readers:
        output, _ = reader.communicate()
        assert reader.returncode == 0
        assert int(output) > 0


@pytest.mark.parametrize(
    "name", ["a\0b", "\ud800", "x" * 5000, "y" * 256], ids=["nul", "half", "long", "part"]
)
def test_names_that_no_folder_can_have_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="cannot name a file"):
        Bundle.open(name)
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", name])
    assert "cannot name a file" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_has_its_own_remedy(tmp_path: Path) -> None:
    build(tmp_path / "bundle", FIRST)

    class Refusing(DigestCache):
        def matches(self, path: object, digest: str, *, fresh: bool = False) -> bool:
            try:
                raise PermissionError(13, "Permission denied")
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror}") from error

    class Changing(DigestCache):
        def matches(self, path: object, digest: str, *, fresh: bool = False) -> bool:
            raise InputError(f"{path} changed while it was read; leave it alone and retry")

    with pytest.raises(BundleError, match=r"Permission denied\. Make it readable \(chmod -R a\+rX\)"):
        Bundle.open(tmp_path / "bundle", cache=Refusing(tmp_path / "cache"))
    with pytest.raises(BundleError, match=r"leave it alone and retry$"):
        Bundle.open(tmp_path / "bundle", cache=Changing(tmp_path / "cache"))
