# SPDX-License-Identifier: Apache-2.0
"""Options and profiles of a build, on the real builder of TensorRT-RTX; what only TensorRT can do is checked
on the configuration that it would be given."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lamp_trt.engine.backends.tensorrt import build as tensorrt_build
from lamp_trt.engine.backends.tensorrt import trt
from lamp_trt.engine.backends.tensorrt.build import Target, build_engines
from lamp_trt.engine.backends.tensorrt.network import add_profile, parse_network
from lamp_trt.engine.backends.tensorrt.options import ShapeRange, TensorRtOptions
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import InputError

rtx = pytest.importorskip("tensorrt_rtx", reason="pip install 'lamp-trt[rtx]' builds without a GPU")
pytestmark = pytest.mark.usefixtures("rtx_builds")


def small_network(shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """A builder, its configuration and y = relu(x) with x of `shape`."""
    builder = rtx.Builder(trt.logger(rtx))
    network = builder.create_network(0)
    relu = network.add_activation(network.add_input("x", rtx.float16, shape), rtx.ActivationType.RELU)
    relu.get_output(0).name = "y"
    network.mark_output(relu.get_output(0))
    return builder, builder.create_builder_config(), network


def ranged(least: tuple[int, ...], optimal: tuple[int, ...], greatest: tuple[int, ...]) -> ShapeRange:
    return ShapeRange("network", "x", least, optimal, greatest)


def test_open_axes_get_the_profile_that_was_asked_for() -> None:
    builder, config, network = small_network((-1, 4, 8))
    add_profile(builder, config, network, [ranged((1, 4, 8), (2, 4, 8), (16, 4, 8))])
    assert config.num_optimization_profiles == 1
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    assert plan.nbytes > 0


def test_fixed_axes_need_none() -> None:
    builder, config, network = small_network((2, 4, 8))
    add_profile(builder, config, network, [])
    assert config.num_optimization_profiles == 0
    add_profile(builder, config, network, [ranged((2, 4, 8), (2, 4, 8), (2, 4, 8))])


@pytest.mark.parametrize(
    ("shape", "profile", "message"),
    [
        ((-1, 4, 8), None, "x has open axes, -1x4x8: give its --profile"),
        ((2, 4, 8), ((1, 4, 8), (2, 4, 8), (4, 4, 8)), "whose x is 2x4x8 and nothing else"),
        ((-1, 4, 8), ((1, 4, 4), (2, 4, 8), (4, 4, 8)), "network.x=1x4x4:2x4x8:4x4x8 does not fit"),
        ((-1, 4, 8), ((1, 4), (2, 4), (4, 4)), "does not fit the graph, whose x is -1x4x8"),
    ],
)
def test_profiles_that_do_not_fit_are_refused(
    shape: tuple[int, ...], profile: tuple[Any, Any, Any] | None, message: str
) -> None:
    builder, config, network = small_network(shape)
    with pytest.raises(InputError, match=message):
        add_profile(builder, config, network, [ranged(*profile)] if profile else [])


def test_a_bundle_of_fixed_sizes_takes_no_range(half: Bundle, tmp_path: Path) -> None:
    wider = ShapeRange.parse("vae_decoder.latents=1x4x8x8:1x4x8x8:4x4x8x8")
    with pytest.raises(InputError, match="sizes belong to the bundle"):
        build_engines(half, TensorRtOptions(networks=("vae_decoder",), profiles=(wider,)), tmp_path)
    unknown = ShapeRange.parse("vae_decoder.noise=1x4:1x4:1x4")
    with pytest.raises(InputError, match=r"profile names vae_decoder\.noise"):
        build_engines(half, TensorRtOptions(profiles=(unknown,)), tmp_path)


def test_a_profile_is_read_as_it_is_written() -> None:
    text = "vae_decoder.latents=1x4x40x64:4x4x40x64:16x4x40x64"
    profile = ShapeRange.parse(text)
    assert profile == ShapeRange("vae_decoder", "latents", (1, 4, 40, 64), (4, 4, 40, 64), (16, 4, 40, 64))
    assert str(profile) == text


@pytest.mark.parametrize("text", ["", "a.b", "a=1:1:1", "a.b=1:1", "a.b=1xq:1:1", ".b=1:1:1", "a.=1:1:1"])
def test_a_profile_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"expected NETWORK\.INPUT=LEAST:OPTIMAL:GREATEST"):
        ShapeRange.parse(text)


@pytest.mark.parametrize("text", ["a.b=2:1:3", "a.b=1:3:2", "a.b=0:1:1", "a.b=1x1:1:1"])
def test_a_profile_that_does_not_rise_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="does not rise"):
        ShapeRange.parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimization_level": 6}, r"optimization level is 6; choose 0 \(fast build\) to 5"),
        ({"optimization_level": -1}, "optimization level is -1"),
        ({"workspace_bytes": 0}, "workspace is 0 bytes"),
        ({"hardware_compatibility": "all"}, "'all'; choose one of none, ampere_plus"),
        ({"device": -1}, "device is -1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TensorRtOptions(**options)


def test_flags_say_what_was_asked_for_and_never_exclude_each_other() -> None:
    flag = rtx.BuilderFlag

    def flags(target: Target, **options: Any) -> list[Any]:
        return tensorrt_build._flags(rtx, target, TensorRtOptions(**options))

    assert flags(Target("vae_decoder", None, False, False)) == []
    assert flags(Target("lamp_unet", "rain", True, False)) == [flag.REFIT_INDIVIDUAL]
    assert flags(Target("vae_decoder", None, False, True)) == [flag.STRIP_PLAN, flag.REFIT_IDENTICAL]
    both = {"weight_streaming": True, "version_compatible": True}
    assert flags(Target("vae_decoder", None, False, False), **both) == [
        flag.WEIGHT_STREAMING,
        flag.VERSION_COMPATIBLE,
    ]


def test_every_option_changes_the_key_and_the_configuration(half: Bundle) -> None:
    parsed, target = parse_network(half, rtx, "vae_encoder", None), Target("vae_encoder", None, False, False)

    def configured(**options: Any) -> Any:
        return tensorrt_build._config(parsed, target, TensorRtOptions(**options))

    def stem(**options: Any) -> str:
        return tensorrt_build._key(half, rtx, "sm_90", target, TensorRtOptions(**options)).stem

    assert configured(optimization_level=1).builder_optimization_level == 1
    pool = rtx.MemoryPoolType.WORKSPACE
    assert configured(workspace_bytes=1 << 28).get_memory_pool_limit(pool) == 1 << 28
    assert configured(detailed=True).profiling_verbosity == rtx.ProfilingVerbosity.DETAILED
    assert configured(weight_streaming=True).get_flag(rtx.BuilderFlag.WEIGHT_STREAMING)
    asked: list[dict[str, Any]] = [
        {},
        {"optimization_level": 1},
        {"workspace_bytes": 1 << 28},
        {"detailed": True},
        {"hardware_compatibility": "same_compute_capability"},
        {"weight_streaming": True},
        {"version_compatible": True},
    ]
    assert len({stem(**options) for options in asked}) == len(asked)


def test_hardware_compatibility_is_passed_on(half: Bundle) -> None:
    """TensorRT-RTX ignores it, so the configuration is one that only takes notes."""
    parsed = parse_network(half, rtx, "text_encoder", None)
    taking_notes = SimpleNamespace(create_builder_config=SimpleNamespace)
    for name in ("ampere_plus", "same_compute_capability"):
        config = tensorrt_build._config(
            dataclasses.replace(parsed, builder=taking_notes),
            Target("text_encoder", None, False, False),
            TensorRtOptions(hardware_compatibility=name),  # type: ignore[arg-type]
        )
        level = getattr(rtx.HardwareCompatibilityLevel, name.upper())
        assert config.hardware_compatibility_level == level
