# SPDX-License-Identifier: Apache-2.0
"""A process that has a bundle open while another one changes it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lamp_trt
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import BundleError
from lamp_trt.export.motions import add_motion, remove_motion
from lamp_trt.runtime.pipeline import LampPipeline
from tests.fixtures.bundle_cases import FIRST, build

IMAGE = np.full((64, 64, 3), 90, np.uint8)
CHANGED = "changed while the bundle was in use: load it again"


def frames(pipe: LampPipeline, motion: str) -> np.ndarray:
    return pipe("a", motion=motion, first_frame=IMAGE, num_inference_steps=1).frames


def replace_motion(bundle: Path, name: str, checkpoint: Path, default: str | None = None) -> None:
    remove_motion(bundle, name, default)
    add_motion(bundle, name, checkpoint)


@pytest.fixture
def opened(toy_bundle: Path, tmp_path: Path) -> tuple[Path, LampPipeline]:
    shutil.copytree(toy_bundle, tmp_path / "bundle")
    return tmp_path / "bundle", lamp_trt.load(tmp_path / "bundle", num_threads=1)


def test_other_motions_go_on_when_one_is_replaced_or_added(
    opened: tuple[Path, LampPipeline], toy: Path
) -> None:
    bundle, pipe = opened
    before = {motion: frames(pipe, motion) for motion in ("rain", "horse_run")}
    add_motion(bundle, "walk", toy / "motions/rain")
    with pytest.raises(BundleError, match=r"no motion 'walk'.*It was added since: load the bundle again"):
        frames(pipe, "walk")
    with pytest.raises(BundleError, match=r"no motion 'run'.*Add one: "):
        frames(pipe, "run")
    replace_motion(bundle, "rain", toy / "motions/horse_run")
    np.testing.assert_array_equal(frames(pipe, "horse_run"), before["horse_run"])
    for _ in range(2):
        with pytest.raises(BundleError, match=f"motions/rain.safetensors in .* {CHANGED}"):
            frames(pipe, "rain")
        np.testing.assert_array_equal(frames(pipe, "horse_run"), before["horse_run"])
    reloaded = lamp_trt.load(bundle, num_threads=1)
    np.testing.assert_array_equal(frames(reloaded, "rain"), frames(reloaded, "horse_run"))


def test_other_motions_go_on_when_the_default_one_is_replaced(
    opened: tuple[Path, LampPipeline], toy: Path
) -> None:
    """The graph of the LAMP UNet in the bundle then points at another motion."""
    bundle, pipe = opened
    before = {motion: frames(pipe, motion) for motion in ("rain", "horse_run")}
    graph = (bundle / "lamp_unet.onnx").read_bytes()
    replace_motion(bundle, "horse_run", toy / "motions/rain", default="rain")
    assert (bundle / "lamp_unet.onnx").read_bytes() != graph == pipe.bundle.graph_bytes("lamp_unet")
    np.testing.assert_array_equal(frames(pipe, "horse_run"), before["horse_run"])  # it is shown already
    np.testing.assert_array_equal(frames(pipe, "rain"), before["rain"])
    with pytest.raises(BundleError, match=f"motions/horse_run.safetensors in .* {CHANGED}"):
        frames(pipe, "horse_run")
    np.testing.assert_array_equal(frames(pipe, "rain"), before["rain"])


@pytest.mark.parametrize("already_read", [False, True])
def test_a_motion_replaced_during_the_switch_is_not_taken(
    already_read: bool, opened: tuple[Path, LampPipeline], toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or after the engine has read its file."""
    bundle, pipe = opened
    switch = pipe._ops.set_motion

    def slow(motion: str) -> None:
        if already_read:
            switch(motion)
        replace_motion(bundle, "rain", toy / "motions/horse_run")
        if not already_read:
            switch(motion)

    before = frames(pipe, "horse_run")
    monkeypatch.setattr(pipe._ops, "set_motion", slow)
    with pytest.raises(BundleError, match=CHANGED):
        frames(pipe, "rain")
    monkeypatch.undo()
    with pytest.raises(BundleError, match=CHANGED):
        frames(pipe, "rain")
    np.testing.assert_array_equal(frames(pipe, "horse_run"), before)


def _touch(path: Path) -> None:
    os.utime(path)


def _chmod(path: Path) -> None:
    path.chmod(0o400)


def _link(path: Path) -> None:
    os.link(path, path.with_name("another"))


def _rewrite(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("change", [_touch, _chmod, _link, _rewrite])
def test_a_file_with_the_same_bytes_is_the_same(change: Callable[[Path], None], tmp_path: Path) -> None:
    build(tmp_path / "bundle", FIRST)
    bundle = Bundle.open(tmp_path / "bundle")
    for relative in FIRST:
        before = bundle.identities[relative]
        change(tmp_path / "bundle" / relative)
        bundle.check_unchanged()
        assert bundle.identities[relative] != before
        (tmp_path / "bundle" / relative).with_name("another").unlink(missing_ok=True)


@pytest.mark.parametrize("relative", FIRST)
def test_only_the_file_that_changed_is_refused(relative: str, tmp_path: Path) -> None:
    build(tmp_path / "bundle", FIRST)
    bundle = Bundle.open(tmp_path / "bundle")
    size = (tmp_path / "bundle" / relative).stat().st_size
    (tmp_path / "bundle" / relative).write_bytes(b"z" * size)
    for name in FIRST:
        if name == relative:
            with pytest.raises(BundleError, match=f"{relative} in .* {CHANGED}"):
                bundle.path_of(name)
        else:
            assert bundle.path_of(name).read_bytes() == FIRST[name]
    needed = bundle.network_files("lamp_unet")
    if relative in needed:
        with pytest.raises(BundleError, match=CHANGED):
            bundle.check_unchanged(needed)
    else:
        bundle.check_unchanged(needed)
