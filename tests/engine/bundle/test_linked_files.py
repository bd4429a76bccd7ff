# SPDX-License-Identifier: Apache-2.0
"""Bundles and checkpoints whose files are links: a Hugging Face cache and other stores."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lamp_trt
from lamp_trt.cli import main
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.writer import BundleWriter
from lamp_trt.engine.errors import BundleError, CheckpointError
from lamp_trt.export.build import build_bundle
from lamp_trt.export.checkpoints.files import find_component, open_checkpoint
from tests.fixtures.bundle_cases import FIRST, SECOND, add_motion, build, tree
from tests.fixtures.toy import toy_options

COMMIT = "c0" * 20


def hub(source: Path, root: Path) -> Path:
    """`source` as a repository of a Hugging Face cache holds it; its snapshot."""
    snapshot = root / "snapshots" / COMMIT
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text(COMMIT)
    for file in _files(source):
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        shutil.copy(file, blob)
        link = snapshot / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def absolute(source: Path, root: Path) -> Path:
    """Absolute links, to a folder for each file, outside of the view."""
    for file in _files(source):
        stored = root / hashlib.sha256(str(file).encode()).hexdigest()[:16] / "store" / file.name
        stored.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, stored)
        link = root / "view" / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(stored)
    return root / "view"


def chains(source: Path, root: Path) -> Path:
    """A link to a link to a link to a file."""
    view = hub(source, root)
    for hop in ("first", "second"):
        nearer = root / hop
        for file in _files(view):
            link = nearer / file.relative_to(view)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(file, link.parent))
        view = nearer
    return view


def folders(source: Path, root: Path) -> Path:
    """Whole folders as links, and the files in the root."""
    shutil.copytree(source, root / "store", ignore=shutil.ignore_patterns(".lock"))
    (root / "view").mkdir()
    for path in (root / "store").iterdir():
        (root / "view" / path.name).symlink_to(path, target_is_directory=path.is_dir())
    return root / "view"


def whole(source: Path, root: Path) -> Path:
    """The bundle's folder itself is a link, to one full of links."""
    (root / "view").parent.mkdir(parents=True)
    (root / "view").symlink_to(hub(source, root / "cache"))
    return root / "view"


STORES = [hub, absolute, chains, folders, whole]
Store = Callable[[Path, Path], Path]


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    build(tmp_path / "small", FIRST)
    return tmp_path / "small"


@pytest.mark.parametrize("store", STORES)
def test_a_bundle_is_read_through_links_and_its_digests_decide(
    store: Store, small: Path, tmp_path: Path
) -> None:
    linked = store(small, tmp_path / "store")
    opened = Bundle.open(linked, verify="full", expect_digest=Bundle.open(small).digest)
    for relative, data in FIRST.items():
        assert opened.path_of(relative).read_bytes() == data
    behind = (linked / "weights/unet.safetensors").resolve()
    behind.write_bytes(b"x" * behind.stat().st_size)
    with pytest.raises(
        BundleError, match=r"unet.safetensors in .* damaged: its digest .*through a link, from"
    ):
        Bundle.open(linked)
    with pytest.raises(BundleError, match=r"unet.safetensors .*changed while the bundle was in use"):
        opened.path_of("weights/unet.safetensors")


@pytest.mark.parametrize("store", STORES)
def test_nothing_is_written_through_links(store: Store, small: Path, tmp_path: Path) -> None:
    linked = store(small, tmp_path / "store")
    before = tree(tmp_path / "store")
    for change in (lambda: build(linked, SECOND), lambda: add_motion(linked, "rain", b"rain")):
        with pytest.raises(BundleError, match=r"is a link to .*through links.*cp -rL .*chmod"):
            change()
    assert tree(tmp_path / "store") == before
    assert not os.path.lexists(linked / ".lock")
    shutil.copytree(linked, tmp_path / "copy")  # what cp -rL does
    build(tmp_path / "copy", SECOND)
    assert Bundle.open(tmp_path / "copy", verify="full").manifest.files.keys() == SECOND.keys()


def test_one_linked_file_among_others_is_not_written_through(small: Path, tmp_path: Path) -> None:
    weights = small / "weights/unet.safetensors"
    shutil.move(weights, tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"weights/unet.safetensors in .* is a link to '.*elsewhere'"):
        build(small, SECOND)
    assert (tmp_path / "elsewhere").read_bytes() == FIRST["weights/unet.safetensors"]
    assert Bundle.open(small, verify="full").manifest.files.keys() == FIRST.keys()


@pytest.mark.parametrize("name", ["bundle.json", "bundle.json.pending", "build.journal", ".lock"])
def test_the_bundle_s_own_files_are_not_written_through(name: str, small: Path, tmp_path: Path) -> None:
    if (small / name).exists():
        shutil.move(small / name, tmp_path / "elsewhere")
    (small / name).symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes() if (tmp_path / "elsewhere").exists() else None
    with pytest.raises(BundleError, match="through links"):
        BundleWriter(small).__enter__()
    assert ((tmp_path / "elsewhere").read_bytes() if before is not None else None) == before


def test_files_with_several_names_are_replaced_under_one(small: Path, tmp_path: Path) -> None:
    """Hard links, as DVC, ostree and `cp -al` make them: readable, and the other name keeps its bytes."""
    shutil.copytree(small, tmp_path / "hard", copy_function=os.link)
    build(tmp_path / "hard", SECOND)
    assert Bundle.open(tmp_path / "hard", verify="full").manifest.files.keys() == SECOND.keys()
    assert Bundle.open(small, verify="full").manifest.files.keys() == FIRST.keys()


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


def _to_folder(path: Path) -> None:
    path.symlink_to("..")


def _to_device(path: Path) -> None:
    path.symlink_to("/dev/null")


def _to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


BROKEN = {
    _dangling: "is a link to 'nowhere', which does not exist",
    _circle: "is a link that leads in a circle",
    _to_folder: "is not a regular file but a link to .*, a folder",
    _to_device: "is not a regular file but a link to '/dev/null', a device",
    _to_pipe: "is not a regular file but a link to .*, a pipe",
    _pipe: "is not a regular file but a pipe",
}


@pytest.mark.parametrize("relative", ["weights/unet.safetensors", "bundle.json", "tokenizer/vocab.json"])
@pytest.mark.parametrize("breaks", BROKEN)
def test_what_leads_to_no_regular_file_is_named(
    breaks: Callable[[Path], None], relative: str, small: Path
) -> None:
    (small / relative).unlink()
    breaks(small / relative)
    with pytest.raises(BundleError, match=f"{relative}.* {BROKEN[breaks]}"):
        Bundle.open(small, verify="none")


def test_a_folder_that_is_a_broken_link_is_named(small: Path) -> None:
    shutil.rmtree(small / "weights")
    (small / "weights").symlink_to("/nowhere/at/all")
    with pytest.raises(
        BundleError, match=r"unet.safetensors in .* leads through weights, which is a link to "
    ):
        Bundle.open(small)


@pytest.mark.parametrize("given", ["", "snapshots", "blobs", "refs", ".."])
def test_of_a_cache_s_other_folders_the_snapshot_is_named(given: str, small: Path, tmp_path: Path) -> None:
    root = tmp_path / "hub/models--org--name"
    snapshot = hub(small, root)
    older = root / "snapshots" / ("a" * 40)
    shutil.copytree(snapshot, older, symlinks=True)
    with pytest.raises(BundleError, match=f"Hugging Face cache: give .*{COMMIT}, or .*{'a' * 40}") as error:
        Bundle.open(root / given)
    assert "lamp-trt build" not in str(error.value)


def test_bundles_inside_a_snapshot_and_inside_a_folder_are_named(small: Path, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    shutil.move(small, tmp_path / "repository/inner")
    with pytest.raises(BundleError, match=r"the folder above: give .*inner"):
        Bundle.open(tmp_path / "repository")
    hub(tmp_path / "repository", tmp_path / "models--o--n")
    with pytest.raises(BundleError, match=f"Hugging Face cache: give .*{COMMIT}/inner"):
        Bundle.open(tmp_path / "models--o--n")
    shutil.rmtree(tmp_path / "models--o--n/snapshots" / COMMIT / "inner")
    with pytest.raises(BundleError, match=r"no snapshot in it has bundle\.json"):
        Bundle.open(tmp_path / "models--o--n")


# --- the toy bundle ------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", [hub, absolute])
def test_a_linked_bundle_makes_the_video_that_the_bundle_makes(
    store: Store, toy_bundle: Path, tmp_path: Path
) -> None:
    linked = store(toy_bundle, tmp_path / "store")
    image = np.full((64, 64, 3), 90, np.uint8)
    before = tree(tmp_path / "store")
    frames = []
    for path in (toy_bundle, linked):
        pipe = lamp_trt.load(path, num_threads=1)
        videos = [
            pipe("a", motion=m, first_frame=image, num_inference_steps=1) for m in ("horse_run", "rain")
        ]
        frames.append([video.frames for video in videos])
    np.testing.assert_array_equal(frames[0], frames[1])
    assert tree(tmp_path / "store") == before


def test_commands_that_read_or_have_nothing_to_do_work_on_a_linked_bundle(
    toy: Path, toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linked = hub(toy_bundle, tmp_path / "models--o--n")
    digest = Bundle.open(toy_bundle).digest
    assert build_bundle(linked, toy_options(toy)).digest == digest
    assert main(["inspect", str(linked), "--verify-files"]) == 0
    assert main(["motion", "list", str(linked)]) == 0
    assert main(["motion", "add", str(linked), f"rain={toy / 'motions/rain'}"]) == 0
    capsys.readouterr()
    assert main(["motion", "add", str(linked), f"new={toy / 'motions/rain'}"]) == 1
    assert main(["motion", "remove", str(linked), "rain"]) == 1
    assert main(["motion", "add", str(linked.parents[1]), f"new={toy / 'motions/rain'}"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert [f"cp -rL {linked}" in line for line in told] == [True, True, False]
    assert f"give {linked}." in told[2]
    assert not os.path.lexists(linked / ".lock")


# --- checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
def test_a_linked_checkpoint_is_the_same_recipe(
    store: Store, toy: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    """Nothing is to be made from it in the bundle that the files themselves built."""
    linked = store(toy, tmp_path / "store")
    report = build_bundle(toy_bundle, toy_options(linked))
    assert [file.path for file in report.files if file.seconds is not None] == []


@pytest.mark.parametrize("given", ["", "snapshots"])
def test_of_a_checkpoint_s_cache_the_snapshot_is_named(given: str, toy: Path, tmp_path: Path) -> None:
    root = tmp_path / "models--CompVis--stable-diffusion-v1-4"
    snapshot = hub(toy / "sd", root)
    with pytest.raises(CheckpointError, match=f"Hugging Face cache: give {snapshot}"):
        open_checkpoint(root / given)
    with pytest.raises(CheckpointError, match=f"Hugging Face cache: give {snapshot}"):
        find_component(root / given, "unet")


@pytest.mark.parametrize("breaks", [_dangling, _circle, _to_folder, _to_device, _to_pipe])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_checkpoint_s_broken_link_is_an_error_not_a_missing_file(
    file: str, breaks: Callable[[Path], None], toy: Path, tmp_path: Path
) -> None:
    """Else the fp16 variant beside it would silently be built instead."""
    folder = tmp_path / "text_encoder"
    shutil.copytree(toy / "sd/text_encoder", folder)
    shutil.copy(folder / "model.safetensors", folder / "model.fp16.safetensors")
    (folder / file).unlink()
    breaks(folder / file)
    with pytest.raises(CheckpointError, match=f"{file} {BROKEN[breaks]}.*Get it again"):
        find_component(folder, "text_encoder")


def test_a_component_that_is_a_broken_link_is_named(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy / "sd", tmp_path / "sd")
    shutil.rmtree(tmp_path / "sd/vae")
    (tmp_path / "sd/vae").symlink_to("/nowhere")
    with pytest.raises(CheckpointError, match="sd/vae is a link to '/nowhere', which does not exist"):
        open_checkpoint(tmp_path / "sd")
