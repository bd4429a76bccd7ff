# SPDX-License-Identifier: Apache-2.0
"""A bundle of the toy checkpoints and a tiny SDXL with everything hoisted, made once a session."""

from pathlib import Path

import pytest
from sdxl_fixture import FIRST_FRAME_SIZE
from toy_fixture import toy_options

from lamp_trt.engine.precompute import HOISTS


@pytest.fixture(scope="session")
def hoisted_bundle(toy: Path, sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The networks of sdxl_bundle, with everything hoisted. Shared: tests that change a bundle copy it."""
    from lamp_trt.export.build import build_bundle

    out = tmp_path_factory.mktemp("bundle") / "hoisted"
    build_bundle(out, toy_options(toy, sdxl=sdxl, hoist=tuple(HOISTS), **FIRST_FRAME_SIZE))
    return out
