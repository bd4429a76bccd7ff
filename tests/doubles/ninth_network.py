# SPDX-License-Identifier: Apache-2.0
"""A family of one tiny network, with a component of its own that a Stable Diffusion folder may hold."""

from collections.abc import Iterator

import pytest

from lamp_trt.engine.families import COMPONENTS, FAMILIES, NETWORKS, SD_CHECKPOINT, register
from lamp_trt.engine.networks import Component, Family, NetworkSpec, TensorSpec

NINTH = Family(
    name="ninth",
    networks=(
        NetworkSpec(
            "quality_checker",
            "quality_checker",
            (TensorSpec("image_embeds", ("batch", "checker_width")),),
            (TensorSpec("cosines", ("batch", 3)),),
        ),
    ),
    components=(
        Component(
            "quality_checker",
            "the quality checker",
            SD_CHECKPOINT,
            "quality_checker",
            parameters=1000,
            library="transformers",
            optional=True,
            axes={"checker_width": ("hidden_size", 8)},
        ),
    ),
)


@pytest.fixture
def ninth_network() -> Iterator[Family]:
    """NINTH while it is registered."""
    registries = (FAMILIES, NETWORKS, COMPONENTS)
    kept = [dict(registry) for registry in registries]
    register(NINTH)
    yield NINTH
    for registry, before in zip(registries, kept, strict=True):
        registry.clear()  # type: ignore[attr-defined]
        registry.update(before)  # type: ignore[attr-defined]
