# SPDX-License-Identifier: Apache-2.0
"""UNets whose steps leave out what depends on the prompt or on the timestep alone.

A network of its own computes it, once a prompt or once a timestep. Its outputs have the names of inputs that
the UNet has instead of the plain ones, so whoever runs both binds them by equal names.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lamp_trt.engine.bundle.manifest import Manifest
from lamp_trt.engine.families import FAMILIES, NETWORKS
from lamp_trt.engine.networks import NetworkSpec, Precomputed, TensorSpec

HOISTS = {
    "text": "keys and values of the text, once a prompt",
    "time": "projections of the timestep, from a table",
    "prefix": "LAMP's layers before the text enters, once for both halves of guidance",
}
"""What a build can take out of a UNet's step, each by itself."""

TIME_PROJECTIONS = "time_projections"
"""The UNet's input instead of `timestep` (and SDXL's text_embeds and time_ids): every ResNet's projection."""


@dataclass(frozen=True)
class ConditionLayout:
    """What the conditions of a UNet look like inside of it, in the order of running.

    attentions    of the text: path in the state dict → (heads, width of a head)
    projections   of the time, one for each ResNet: path → channels
    """

    attentions: Mapping[str, tuple[int, int]]
    projections: Mapping[str, int]

    @property
    def keys_values(self) -> dict[str, tuple[int, int]]:
        """What replaces `encoder_hidden_states`: names of tensors → (heads, width of a head)."""
        return {f"{path}.{side}": of for path, of in self.attentions.items() for side in ("key", "value")}


HOISTED: dict[str, Precomputed] = {
    family.unet: family.precomputed for family in FAMILIES.values() if family.precomputed
}
"""Each UNet and the networks that can compute its inputs."""


def hoisted_from(network: str, hoist: Collection[str]) -> tuple[str, ...]:
    """What of `hoist` its family can take out of a network, in the order of HOISTS; only UNets have any."""
    hoists = next((family.hoists for family in FAMILIES.values() if family.unet == network), ())
    return tuple(name for name in HOISTS if name in hoist and name in hoists)


def unet_of(network: str) -> str:
    """The UNet that a hoisted network belongs to; any other network's own name."""
    return next((unet for unet, beside in HOISTED.items() if network in beside), network)


def networks_beside(manifest: Manifest, unet: str) -> list[str]:
    """The networks of a bundle that make inputs of its `unet`."""
    return [name for name in HOISTED[unet] if name in manifest.networks]


def hoisted_specs(unet: str, layout: ConditionLayout, hoist: Collection[str]) -> dict[str, NetworkSpec]:
    """The UNet without what `hoist` names, and the networks that then stand beside it, by name."""
    plain, beside = NETWORKS[unet], HOISTED[unet]
    inputs: dict[str, tuple[TensorSpec, ...]] = {tensor.name: (tensor,) for tensor in plain.inputs}
    specs: dict[str, NetworkSpec] = {}
    if "text" in hoist:
        keys_values = tuple(
            TensorSpec(name, ("batch", heads, "tokens", width))
            for name, (heads, width) in layout.keys_values.items()
        )
        text = inputs["encoder_hidden_states"]
        specs[beside.text] = NetworkSpec(beside.text, plain.component, text, keys_values)
        inputs["encoder_hidden_states"] = keys_values
    if "time" in hoist:
        given = [tensor for tensor in plain.inputs if tensor.name in ("timestep", "text_embeds", "time_ids")]
        rows = 1 if len(given) == 1 else "batch"
        row = TensorSpec(TIME_PROJECTIONS, (rows, sum(layout.projections.values())))
        specs[beside.time] = NetworkSpec(beside.time, plain.component, tuple(given), (row,))
        inputs |= {tensor.name: () for tensor in given} | {"timestep": (row,)}
    taken = tuple(tensor for tensors in inputs.values() for tensor in tensors)
    return {unet: NetworkSpec(unet, plain.component, taken, plain.outputs), **specs}
