# SPDX-License-Identifier: Apache-2.0
"""Which engines a TensorRT of a given version is to build, and which of those that are there are taken."""

import dataclasses
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.tensorrt import build as tensorrt_build
from lamp_trt.engine.backends.tensorrt.build import Target
from lamp_trt.engine.backends.tensorrt.key import engine_key, find_engine
from lamp_trt.engine.backends.tensorrt.options import TensorRtOptions
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError
from tests.doubles.tensorrt_engine import (
    enterprise,
)

rtx = pytest.importorskip("tensorrt_rtx", reason="pip install 'lamp-trt[rtx]' builds without a GPU")
pytestmark = pytest.mark.usefixtures("rtx_builds")


def targets(bundle: Bundle, module: ModuleType, **options: Any) -> list[Target]:
    return list(tensorrt_build._targets(bundle, module, TensorRtOptions(**options)))


def test_one_refittable_unet_serves_all_motions(half: Bundle) -> None:
    found = targets(half, enterprise("10.16.1"), networks=("lamp_unet", "vae_decoder"))
    assert found == [
        Target("lamp_unet", "horse_run", True, False),
        Target("vae_decoder", None, False, False),
    ]


@pytest.mark.parametrize("module", [enterprise("11.3.0"), rtx], ids=["11.3", "rtx"])
def test_without_refit_each_motion_gets_an_engine_and_a_warning_says_so(
    module: ModuleType, half: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lamp_trt"):
        found = targets(half, module, networks=("lamp_unet",))
    assert found == [Target("lamp_unet", motion, False, False) for motion in ("horse_run", "rain")]
    assert "each of the motions horse_run, rain gets an engine" in caplog.text
    with pytest.raises(EngineError, match="motions cannot be exchanged"):
        targets(half, module, networks=("lamp_unet",), refit=True)


def test_frozen_engines_can_be_asked_for(half: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    found = targets(half, enterprise("11.4.0"), networks=("lamp_unet",), refit=False, motions=("rain",))
    assert found == [Target("lamp_unet", "rain", False, False)]
    assert caplog.text == ""


def test_a_motion_with_a_whole_unet_gets_an_engine_of_its_own(half: Bundle) -> None:
    motions = dict(half.manifest.motions)
    motions["rain"] = dataclasses.replace(motions["rain"], kind="full")
    bundle = dataclasses.replace(half, manifest=dataclasses.replace(half.manifest, motions=motions))
    assert targets(bundle, enterprise("10.16.1"), networks=("lamp_unet",)) == [
        Target("lamp_unet", "horse_run", True, False),
        Target("lamp_unet", "rain", False, False),
    ]


def test_a_refittable_unet_is_never_stripped(half: Bundle) -> None:
    found = targets(half, enterprise("10.16.1"), networks=("lamp_unet", "vae_encoder"), weight_stripped=True)
    assert [(target.refittable, target.stripped) for target in found] == [(True, False), (False, True)]


# --- keys ----------------------------------------------------------------------------------------------


def test_a_refittable_engine_is_the_same_for_every_motion(half: Bundle) -> None:
    module = enterprise("10.16.1")
    refittable, frozen = (
        [
            engine_key(half, "lamp_unet", module, "sm_90", motion=motion, refittable=refit)
            for motion in ("horse_run", "rain")
        ]
        for refit in (True, False)
    )
    assert refittable[0] == refittable[1]
    assert refittable[0].motion == ""
    assert frozen[0] != frozen[1]
    assert frozen[1].motion == half.manifest.files["motions/rain.safetensors"].sha256
    assert frozen[0].weights == refittable[0].weights


@pytest.mark.parametrize(
    ("built_for", "built_by", "refusal"),
    [
        ("sm_90", "tensorrt 10.16.1", ""),
        ("sm_80+", "tensorrt 10.16.1", ""),
        ("sm_90", "tensorrt 10.x", ""),
        ("sm_80+", "tensorrt 10.x", ""),
        ("sm_89", "tensorrt 10.16.1", "was built for sm_89, this device is sm_90"),
        ("sm_90", "tensorrt 10.14.1", "was built by tensorrt 10.14.1, this is tensorrt 10.16.1"),
        ("sm_90", "tensorrt 11.x", "was built by tensorrt 11.x, this is tensorrt 10.16.1"),
        ("any RTX", "tensorrt 10.16.1", "was built for any RTX, this device is sm_90"),
    ],
)
def test_portable_engines_are_found_where_they_run(
    built_for: str, built_by: str, refusal: str, half: Bundle, tmp_path: Path
) -> None:
    module = enterprise("10.16.1")
    key = engine_key(half, "vae_decoder", module, built_for)
    key = dataclasses.replace(key, compiler=built_by, flags={"detailed": True})
    compiled.store(tmp_path, key, "plan", {}, lambda file: None)
    if not refusal:
        assert find_engine(half, "vae_decoder", module, "sm_90", None, tmp_path).key == key
        return
    with pytest.raises(EngineError) as caught:
        find_engine(half, "vae_decoder", module, "sm_90", None, tmp_path)
    command = f"Build it: lamp-trt build --backend tensorrt --out {half.path} --engine-dir {tmp_path}"
    engine = f"the tensorrt engine for vae_decoder in {tmp_path}"
    assert str(caught.value) == f"{engine} {refusal}. {command}"


def test_a_refittable_engine_is_preferred_and_either_can_be_asked_for(half: Bundle, tmp_path: Path) -> None:
    module = enterprise("10.16.1")
    keys = {
        refit: engine_key(half, "lamp_unet", module, "sm_90", motion="rain", refittable=refit)
        for refit in (True, False)
    }
    compiled.store(tmp_path, keys[False], "plan", {}, lambda file: None)
    find = lambda **kind: find_engine(half, "lamp_unet", module, "sm_90", "rain", tmp_path, **kind).key  # noqa: E731
    assert find() == keys[False]
    compiled.store(tmp_path, keys[True], "plan", {}, lambda file: None)
    assert find() == keys[True]
    assert find(refittable=False) == keys[False]
