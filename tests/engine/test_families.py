# SPDX-License-Identifier: Apache-2.0
"""Families: what is keyed by network or component follows from one record each."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lamp_trt.benchmarks.verify.options import Checkpoints
from lamp_trt.commands import build as build_command
from lamp_trt.doctor import needs
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.families import (
    COMPONENTS,
    FAMILIES,
    LAMP,
    NETWORKS,
    SAFETY,
    SD_CHECKPOINT,
    SDXL,
    component_of,
    origins,
    register,
)
from lamp_trt.engine.networks import Component, Family, NetworkSpec, TensorSpec
from lamp_trt.engine.precompute import HOISTED, HOISTS, hoisted_from
from lamp_trt.export.recipe import BuildOptions
from tests.doubles.ninth_network import NINTH

ROOT = Path(__file__).parents[2]


def test_a_network_is_one_record(ninth_network: Family, capsys: pytest.CaptureFixture[str]) -> None:
    (name,) = ninth_network.names
    assert NETWORKS[name].resolve({"batch": 2, "checker_width": 6}, "fp16")[0][0].shape == (2, 6)
    assert component_of(name).folder == "quality_checker"
    BuildOptions(only=(name,))
    with pytest.raises(InputError, match=rf"--only takes text_encoder, .*, {name}\."):
        BuildOptions(only=("ninth",))
    parser = argparse.ArgumentParser()
    build_command.add_arguments(parser)
    assert name in parser.format_help()
    assert needs.weight_bytes([name], "fp16") == 2 * 1000


def test_what_is_registered_counts_among_the_needs(request: pytest.FixtureRequest) -> None:
    before = needs.both_sizes("fp32")
    request.getfixturevalue("ninth_network")
    assert needs.both_sizes("fp32") == tuple(size + 4 * 1000 for size in before)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (replace(NINTH, name="lamp"), "lamp is registered already"),
        (replace(LAMP, name="other"), "lamp_unet is registered already"),
        (replace(NINTH, components=SDXL.components), "sdxl_text_encoder is registered already"),
        (replace(NINTH, components=()), "ninth names the component quality_checker, which nothing registers"),
        (
            replace(NINTH, components=(replace(NINTH.components[0], same_as="nothing"),)),
            "ninth names the component nothing, which nothing registers",
        ),
    ],
)
def test_a_record_that_contradicts_the_others_is_refused(family: Family, message: str) -> None:
    before = dict(FAMILIES), dict(NETWORKS), dict(COMPONENTS)
    with pytest.raises(ValueError, match=message):
        register(family)
    assert before == (FAMILIES, NETWORKS, COMPONENTS)


def test_a_family_may_use_a_component_of_another() -> None:
    network = NetworkSpec("second_decoder", "vae", (), (TensorSpec("image", (1,)),))
    before = dict(FAMILIES), dict(NETWORKS), dict(COMPONENTS)
    try:
        register(Family("second", (network,), ()))
        assert component_of("second_decoder") is COMPONENTS["vae"]
    finally:
        for registry, kept in zip((FAMILIES, NETWORKS, COMPONENTS), before, strict=True):
            registry.clear()  # type: ignore[attr-defined]
            registry.update(kept)  # type: ignore[attr-defined]


def with_unet() -> list[Family]:
    return [family for family in FAMILIES.values() if family.unet]


def test_the_records_name_each_other() -> None:
    assert [*NETWORKS] == [*LAMP.names, *SDXL.names, *SAFETY.names]
    assert {spec.component for spec in NETWORKS.values()} == {*COMPONENTS}
    assert [family.name for family in FAMILIES.values() if not family.unet] == ["safety"]
    for family in with_unet():
        assert family.unet in family.names
        assert family.unet_component in {component.name for component in family.components}
        assert COMPONENTS[family.vae].scaling_factor
        assert {*family.hoists} <= {*HOISTS}
        assert HOISTED[family.unet] == family.precomputed
        assert not {*HOISTED[family.unet]} & {*NETWORKS}
    assert {option.field for option in origins()} <= vars(BuildOptions(sd=Path())).keys()
    assert {option.field for option in origins()} == vars(Checkpoints()).keys()


def test_what_torch_makes_is_registered_for_every_network() -> None:
    from lamp_trt.benchmarks.verify.reference.networks import REFERENCE_NETWORKS
    from lamp_trt.export.checkpoints.unet_layout import LAYOUTS
    from lamp_trt.export.networks import HOISTED_WRAPPERS, MODULES, WRAPPERS

    unets = {family.unet for family in with_unet()}
    precomputed = {name for unet in unets for name in HOISTED[unet]}
    assert WRAPPERS.keys() == NETWORKS.keys() | precomputed
    assert HOISTED_WRAPPERS.keys() == unets
    assert MODULES.keys() == COMPONENTS.keys()
    assert LAYOUTS.keys() == {family.unet_component for family in with_unet()}
    assert REFERENCE_NETWORKS.keys() == NETWORKS.keys()


@pytest.mark.parametrize(
    ("network", "taken"),
    [
        (LAMP.unet, ("text", "time", "prefix")),
        (SDXL.unet, ("text", "time")),
        ("vae_decoder", ()),
        (LAMP.precomputed[0], ()) if LAMP.precomputed else ("", ()),
    ],
)
def test_a_family_says_what_can_be_taken_out_of_its_unet(network: str, taken: tuple[str, ...]) -> None:
    assert hoisted_from(network, ("prefix", "time", "text")) == taken
    assert hoisted_from(network, ()) == ()


STORED: list[tuple[Component, str, bool]] = [
    (COMPONENTS["unet"], "conv_in.conv2d.weight", True),
    (COMPONENTS["unet"], "conv_in.conv1d.weight", False),
    (COMPONENTS["sdxl_vae"], "decoder.conv_in.weight", True),
    (COMPONENTS["sdxl_vae"], "encoder.conv_in.weight", False),
    (COMPONENTS["vae"], "encoder.conv_in.weight", True),
]


@pytest.mark.parametrize(("component", "tensor", "stored"), STORED)
def test_a_weight_file_holds_what_networks_share(component: Component, tensor: str, stored: bool) -> None:
    assert component.is_stored(tensor) == stored


def test_origins_are_in_the_order_of_the_command_line() -> None:
    assert [origin.option for origin in origins()] == ["--sd", "--motion", "--sdxl"]
    assert SD_CHECKPOINT.usage == "--sd DIR (Stable Diffusion v1.4)"


def naming(text: str, *folders: str, apart: Callable[[Path], bool]) -> set[str]:
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {
        path.relative_to(ROOT).as_posix() for path in paths if not apart(path) and text in path.read_text()
    }


def test_the_lamp_unet_has_one_name() -> None:
    """Elsewhere it is LAMP.unet."""
    nowhere: Callable[[Path], bool] = lambda path: False  # noqa: E731
    assert naming("lamp_unet", "engine", "runtime", "src", apart=nowhere) == {"engine/families.py"}
    of_lamp = [ROOT / "export" / name for name in ("lamp", "toy")]
    assert not naming("lamp_unet", "export", apart=lambda path: any(path.is_relative_to(f) for f in of_lamp))
