# SPDX-License-Identifier: Apache-2.0
"""The file of a preview: sizes, and when it is removed. Whole runs: tests/cli/test_preview.py."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lamp_trt.runtime.media.preview_file import ENLARGED, PreviewFile


def frames(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize("shape", [(1, 12, 20), (4, 8, 8), (2, 5, 7), (1, 1, 1), (16, 40, 64)])
def test_clips_of_any_size_are_written(shape: tuple[int, int, int], tmp_path: Path) -> None:
    """Of one frame in SDXL's loop, of several in the video's; each replaces the last."""
    path = tmp_path / "p.webp"
    with PreviewFile(path, 8) as file:
        file("make_first_frame", 0, frames(1, 3, 3))
        file("denoise", 0, frames(*shape))
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == shape[0]
        assert image.size == (shape[2] * ENLARGED, shape[1] * ENLARGED)


def fail_after_a_preview(path: Path, meanwhile: Callable[[], object] = lambda: None) -> None:
    with PreviewFile(path, 8) as file:
        file("denoise", 0, frames(2, 4, 4))
        meanwhile()
        raise KeyError


def test_a_block_that_raises_removes_what_it_wrote_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.webp"
    with PreviewFile(path, 8) as file:
        file("denoise", 0, frames(2, 4, 4))
    with pytest.raises(KeyError), PreviewFile(path, 8):
        raise KeyError
    assert path.exists()  # of the run before
    with pytest.raises(KeyError):
        fail_after_a_preview(path)
    assert not [*tmp_path.iterdir()]


def test_a_file_that_someone_else_removed_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "p.webp"
    with pytest.raises(KeyError):
        fail_after_a_preview(path, path.unlink)
    assert not [*tmp_path.iterdir()]
