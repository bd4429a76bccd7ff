# SPDX-License-Identifier: Apache-2.0
"""Engines of both families on the host: both kept, or in turn where the memory holds one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lamp_trt
from lamp_trt.engine.backends.registry import host_engine
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.engine.families import FIRST_FRAME_NETWORKS, VIDEO_NETWORKS
from lamp_trt.runtime import load as load_module
from lamp_trt.runtime.host.engines import HostEngines, Turns, fit_together


class Live:
    """Loads engines of a backend and knows which are open."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.most: set[tuple[str, ...]] = set()

    def load(self, backend: str, bundle: Bundle, network: str, **options: Any) -> Any:
        engine = host_engine(backend, bundle, network, **options)
        close = engine.close

        def closed() -> None:
            close()
            self.open.remove(network)

        engine.close = closed  # type: ignore[method-assign]
        self.open.append(network)
        self.most.add(tuple(sorted(self.open)))
        return engine


@pytest.mark.parametrize("motion", ["horse_run", "rain"])
def test_with_little_memory_the_families_take_turns_and_the_video_is_the_same(
    motion: str, sdxl_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"motion": motion, "num_inference_steps": 1, "first_frame_num_inference_steps": 1}
    with lamp_trt.load(sdxl_bundle, num_threads=1) as pipe:
        expected = pipe("a horse", **arguments)
    live = Live()
    monkeypatch.setattr(load_module, "host_engine", live.load)
    monkeypatch.setattr(load_module, "memory_bytes", lambda: (1 << 20, 1 << 20))
    with lamp_trt.load(sdxl_bundle, num_threads=1) as pipe:
        assert live.open == [*VIDEO_NETWORKS]
        made = pipe("a horse", **arguments)
        assert set(live.open) == {"vae_encoder", "lamp_unet", "vae_decoder"}
        pipe.make_first_frame("a horse", num_inference_steps=1)
        assert set(live.open) == {*FIRST_FRAME_NETWORKS}
    assert live.open == []
    np.testing.assert_array_equal(made.frames, expected.frames)
    np.testing.assert_array_equal(made.latents, expected.latents)
    for together in live.most:
        assert set(together) <= {*VIDEO_NETWORKS} or set(together) <= {*FIRST_FRAME_NETWORKS}


@pytest.mark.parametrize(
    ("precision", "asked", "per_weight"), [("fp32", None, 3), ("fp16", "fp32", 6), ("bf16", "fp32", 6)]
)
def test_the_memory_of_a_family_is_three_times_its_weights_in_their_arithmetic(
    precision: Any, asked: Any, per_weight: int, toy_bundle: Path
) -> None:
    from dataclasses import replace

    manifest = Bundle.open(toy_bundle).manifest
    networks = {name: replace(entry, precision=precision) for name, entry in manifest.networks.items()}
    manifest = replace(manifest, networks=networks)
    need = per_weight * manifest.files["weights/vae.safetensors"].size
    both = ("vae_encoder", "vae_decoder")  # of one file
    assert fit_together(manifest, both, need, asked)
    assert not fit_together(manifest, both, need - 1, asked)


class Engine:
    def __init__(self, motion: str | None) -> None:
        self.motion, self.closed = motion, False

    def set_motion(self, motion: str) -> None:
        self.motion = motion

    def close(self) -> None:
        self.closed = True


def test_a_released_unet_comes_back_with_the_motion_that_was_set_meanwhile() -> None:
    turns = Turns()
    lamp = HostEngines("LAMP", ["lamp_unet"], lambda _, motion: Engine(motion), turns, "rain")  # type: ignore[arg-type, return-value]
    other = HostEngines("SDXL", ["sdxl_unet"], lambda _, motion: Engine(motion), turns)  # type: ignore[arg-type, return-value]
    first: Any = lamp["lamp_unet"]
    assert first.motion == "rain"
    assert other["sdxl_unet"].motion is None  # type: ignore[attr-defined]
    assert first.closed
    lamp.set_motion("horse_run")
    assert lamp["lamp_unet"].motion == "horse_run"  # type: ignore[attr-defined]
    lamp.close()
    with pytest.raises(InputError, match="LAMP's networks were closed; load the bundle again"):
        lamp["lamp_unet"]


def test_engines_that_were_loaded_are_closed_when_a_later_one_fails() -> None:
    made: list[Engine] = []

    def load(network: str, motion: str | None) -> Any:
        if network == "b":
            raise EngineError("no memory")
        made.append(Engine(motion))
        return made[-1]

    with pytest.raises(EngineError, match="no memory"):
        HostEngines("LAMP", ["a", "b"], load, None).loaded()
    assert [engine.closed for engine in made] == [True]
