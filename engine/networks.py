# SPDX-License-Identifier: Apache-2.0
"""The records that describe a model: its networks with their inputs and outputs, its checkpoint components.

The records themselves are in engine/families.py. Export names the inputs and outputs of graphs by them, the
bundle stores the resolved shapes, backends build profiles from them and the runtime allocates by them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from lamp_trt.engine.dtypes import Precision, border_dtype

FLOAT = "float"
"""`border_dtype` of the network's precision; any other dtype is a NumPy name."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output with symbolic axes, like ("batch", 4, "num_frames", "latent_height", …)."""

    name: str
    axes: tuple[str | int, ...]
    dtype: str = FLOAT


@dataclass(frozen=True)
class IOTensor:
    """One input or output with every axis resolved."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class NetworkSpec:
    """One exported network. `component` names the weight file that holds its initializers."""

    name: str
    component: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def named_axes(self) -> set[str]:
        """Names of the sizes that this network depends on."""
        tensors = (*self.inputs, *self.outputs)
        return {axis for tensor in tensors for axis in tensor.axes if isinstance(axis, str)}

    def resolve(
        self, axis_sizes: Mapping[str, int], precision: Precision
    ) -> tuple[tuple[IOTensor, ...], tuple[IOTensor, ...]]:
        """Inputs and outputs with sizes for axis names and `border_dtype(precision)` for FLOAT."""

        def tensor(spec: TensorSpec) -> IOTensor:
            shape = tuple(a if isinstance(a, int) else axis_sizes[a] for a in spec.axes)
            return IOTensor(spec.name, shape, border_dtype(precision) if spec.dtype == FLOAT else spec.dtype)

        return tuple(map(tensor, self.inputs)), tuple(map(tensor, self.outputs))


@dataclass(frozen=True)
class Origin:
    """A kind of checkpoint that `lamp-trt build` takes.

    option, value  on the command line, like "--sd" and "DIR"
    holds          the model in it
    field          name of the field of export/recipe.py's BuildOptions
    """

    option: str
    value: str
    holds: str
    field: str

    @property
    def usage(self) -> str:
        return f"{self.option} {self.value} ({self.holds})"


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer. name: its folder in a bundle. folder: its folder in the checkpoint."""

    name: str
    folder: str


@dataclass(frozen=True)
class Component:
    """A part of a checkpoint with weights of its own, in a bundle the file weights/<name>.safetensors.

    title           its name in messages
    origin, folder  the checkpoint that it is read from, and its folder in it
    parameters      number of values in the published checkpoint
    library         the library whose file names it uses
    optional        whether a checkpoint may lack it; its networks are then not built
    precision       its fixed precision in every bundle; None: the bundle's
    used            whether a network uses a tensor, by its name
    motion_tensors  whether a tensor, by its name, is stored in the motions' files; None: no motions
    motion_parameters  number of values of a motion of the published size
    same_as         the component with the same tensors in the published checkpoints: equal weights are stored
                    once, in that component's file
    axes            axes whose sizes its config.json gives: axis → (field, default)
    tokenizer       the tokenizer of a text encoder
    scaling_factor  factor of a VAE's latents
    """

    name: str
    title: str
    origin: Origin
    folder: str
    parameters: int
    library: Literal["diffusers", "transformers"] = "diffusers"
    optional: bool = False
    precision: Precision | None = None
    used: Callable[[str], bool] = lambda name: True
    motion_tensors: Callable[[str], bool] | None = None
    motion_parameters: int = 0
    same_as: str = ""
    axes: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    scaling_factor: float | None = None

    def precision_in(self, precision: Precision) -> Precision:
        """Its precision in a bundle of `precision`."""
        return self.precision or precision

    def is_stored(self, tensor: str) -> bool:
        """Whether a tensor, by its name, goes into the weight file."""
        return self.used(tensor) and not (self.motion_tensors and self.motion_tensors(tensor))


class Precomputed(NamedTuple):
    """The networks that precompute inputs of a UNet, independently of each other; see engine/precompute.py.

    text   encoder_hidden_states → keys and values of every attention, each (batch, heads, tokens, head width)
    time   timestep and the time embedding's other inputs → TIME_PROJECTIONS (1 or batch, width)
    """

    text: str
    time: str


@dataclass(frozen=True)
class Family:
    """A model whose networks work together.

    unet         the network that the denoising loop runs; "" if there is none
    vae          the component that scales latents; "" if there is none
    precomputed  the networks that can precompute inputs of the UNet
    hoists       the names of precompute.HOISTS that the UNet supports
    """

    name: str
    networks: tuple[NetworkSpec, ...]
    components: tuple[Component, ...]
    unet: str = ""
    vae: str = ""
    precomputed: Precomputed | None = None
    hoists: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its networks, without those of `precomputed`."""
        return tuple(spec.name for spec in self.networks)

    @property
    def unet_component(self) -> str:
        """The component of the UNet and of the networks of `precomputed`."""
        return next(spec.component for spec in self.networks if spec.name == self.unet)


MOTION_MODULES = ("conv1d", "conv_gate", "attn1.to_q", "attn_temp")
"""Endings of the dotted names of the UNet modules that LAMP trains; the rest is Stable Diffusion's, equal for
every motion. Source: both published training configurations, docs/algorithm.md."""


def is_motion_tensor(name: str) -> bool:
    """Whether a tensor of the LAMP UNet's state dict belongs to the motion: 360 of 1062 at full size."""
    module = name.rpartition(".")[0].removesuffix(".to_out.0")
    return module.endswith(MOTION_MODULES) or module.rpartition(".")[0].endswith("attn_temp")
