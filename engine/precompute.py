# SPDX-License-Identifier: Apache-2.0
"""Hoisting: UNets without the computation that depends only on the prompt or only on the timestep.

A separate network computes it, once per prompt or once per timestep. Its outputs have the names of the inputs
that replace the UNet's original ones, so outputs and inputs are bound by equal names.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lamp_trt.engine.bundle.manifest import Manifest
from lamp_trt.engine.families import FAMILIES, NETWORKS
from lamp_trt.engine.networks import NetworkSpec, Precomputed, TensorSpec

HOISTS = {
    "text": "keys and values of the text, once per prompt",
    "time": "projections of the timestep, from a table",
    "prefix": "LAMP's layers before the text enters, once for both halves of guidance",
}
"""Independent computations that a build can take out of a UNet's step: name → description."""

TIME_PROJECTIONS = "time_projections"
"""The UNet's input that replaces `timestep` (and SDXL's text_embeds, time_ids): every ResNet's projection."""


@dataclass(frozen=True)
class ConditionLayout:
    """The modules of a UNet that use its conditions, in the order of execution.

    attentions    cross-attentions to the text: path in the state dict → (heads, width of a head)
    projections   projections of the timestep, one per ResNet: path → channels
    """

    attentions: Mapping[str, tuple[int, int]]
    projections: Mapping[str, int]

    @property
    def keys_values(self) -> dict[str, tuple[int, int]]:
        """The inputs that replace `encoder_hidden_states`: name → (heads, width of a head)."""
        return {f"{path}.{side}": of for path, of in self.attentions.items() for side in ("key", "value")}


HOISTED: dict[str, Precomputed] = {
    family.unet: family.precomputed for family in FAMILIES.values() if family.precomputed
}
"""UNet → the networks that can precompute its inputs."""


def hoisted_from(network: str, hoist: Collection[str]) -> tuple[str, ...]:
    """The names in `hoist` that the network's family supports, in HOISTS' order; () if it is not a UNet."""
    hoists = next((family.hoists for family in FAMILIES.values() if family.unet == network), ())
    return tuple(name for name in HOISTS if name in hoist and name in hoists)


def unet_of(network: str) -> str:
    """The UNet that a precompute network belongs to; the name itself for any other network."""
    return next((unet for unet, precomputed in HOISTED.items() if network in precomputed), network)


def precompute_networks(manifest: Manifest, network: str) -> list[str]:
    """The networks of a bundle that precompute inputs of `network`; [] if it is not a UNet."""
    return [name for name in HOISTED.get(network, ()) if name in manifest.networks]


def hoisted_specs(unet: str, layout: ConditionLayout, hoist: Collection[str]) -> dict[str, NetworkSpec]:
    """The specifications of the UNet without the computations in `hoist`, and of the networks that precompute
    them, by name."""
    plain, precomputed = NETWORKS[unet], HOISTED[unet]
    inputs: dict[str, tuple[TensorSpec, ...]] = {tensor.name: (tensor,) for tensor in plain.inputs}
    specs: dict[str, NetworkSpec] = {}
    if "text" in hoist:
        keys_values = tuple(
            TensorSpec(name, ("batch", heads, "tokens", width))
            for name, (heads, width) in layout.keys_values.items()
        )
        text = inputs["encoder_hidden_states"]
        specs[precomputed.text] = NetworkSpec(precomputed.text, plain.component, text, keys_values)
        inputs["encoder_hidden_states"] = keys_values
    if "time" in hoist:
        given = [tensor for tensor in plain.inputs if tensor.name in ("timestep", "text_embeds", "time_ids")]
        rows = 1 if len(given) == 1 else "batch"
        row = TensorSpec(TIME_PROJECTIONS, (rows, sum(layout.projections.values())))
        specs[precomputed.time] = NetworkSpec(precomputed.time, plain.component, tuple(given), (row,))
        inputs |= {tensor.name: () for tensor in given} | {"timestep": (row,)}
    taken = tuple(tensor for tensors in inputs.values() for tensor in tensors)
    return {unet: NetworkSpec(unet, plain.component, taken, plain.outputs), **specs}
