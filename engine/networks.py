# SPDX-License-Identifier: Apache-2.0
"""What goes into and comes out of each network: names, axes, dtypes.

The one place for these facts: export gives its graphs these names, the bundle records the resolved
shapes, backends build profiles from them and the runtime allocates by them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

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
    """One exported network. `component` names the weight file that its initializers live in."""

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


_IMAGE = (3, "height", "width")
_LATENT = (4, "latent_height", "latent_width")
_VIDEO_LATENTS = ("batch", 4, "num_frames", "latent_height", "latent_width")
_FIRST_FRAME_LATENT = (4, "first_frame_latent_height", "first_frame_latent_width")
_INPUT_IDS = TensorSpec("input_ids", ("batch", "tokens"), "int64")
_TIMESTEP = TensorSpec("timestep", (1,), "float32")

NETWORKS: dict[str, NetworkSpec] = {
    spec.name: spec
    for spec in (
        NetworkSpec(
            "text_encoder",
            "text_encoder",
            (_INPUT_IDS,),
            (TensorSpec("last_hidden_state", ("batch", "tokens", "text_width")),),
        ),
        NetworkSpec(
            "vae_encoder",
            "vae",
            (TensorSpec("image", (1, *_IMAGE)),),
            (TensorSpec("latent_mean", (1, *_LATENT)), TensorSpec("latent_logvar", (1, *_LATENT))),
        ),
        NetworkSpec(
            "vae_decoder",
            "vae",
            (TensorSpec("latents", ("decode_batch", *_LATENT)),),
            (TensorSpec("image", ("decode_batch", *_IMAGE)),),
        ),
        NetworkSpec(
            "lamp_unet",
            "unet",
            (
                TensorSpec("sample", _VIDEO_LATENTS),
                _TIMESTEP,
                TensorSpec("encoder_hidden_states", ("batch", "tokens", "text_width")),
            ),
            (TensorSpec("noise_pred", _VIDEO_LATENTS),),
        ),
        NetworkSpec(
            "sdxl_text_encoder",
            "sdxl_text_encoder",
            (_INPUT_IDS,),
            (TensorSpec("penultimate_hidden_state", ("batch", "tokens", "sdxl_text_width")),),
        ),
        NetworkSpec(
            "sdxl_text_encoder_2",
            "sdxl_text_encoder_2",
            (_INPUT_IDS,),
            (
                TensorSpec("penultimate_hidden_state", ("batch", "tokens", "sdxl_text_2_width")),
                TensorSpec("text_embeds", ("batch", "sdxl_pooled_width")),
            ),
        ),
        NetworkSpec(
            "sdxl_unet",
            "sdxl_unet",
            (
                TensorSpec("sample", ("batch", *_FIRST_FRAME_LATENT)),
                _TIMESTEP,
                TensorSpec("encoder_hidden_states", ("batch", "tokens", "sdxl_context_width")),
                TensorSpec("text_embeds", ("batch", "sdxl_pooled_width")),
                TensorSpec("time_ids", ("batch", 6), "float32"),
            ),
            (TensorSpec("noise_pred", ("batch", *_FIRST_FRAME_LATENT)),),
        ),
        NetworkSpec(
            "sdxl_vae_decoder",
            "sdxl_vae",
            (TensorSpec("latents", (1, *_FIRST_FRAME_LATENT)),),
            (TensorSpec("image", (1, 3, "first_frame_height", "first_frame_width")),),
        ),
    )
}

FIRST_FRAME_NETWORKS = tuple(name for name in NETWORKS if name.startswith("sdxl_"))
"""What makes a first frame from text."""

VIDEO_NETWORKS = tuple(name for name in NETWORKS if name not in FIRST_FRAME_NETWORKS)
"""What makes a video from a first frame."""

COMPONENT_PRECISION: Mapping[str, Precision] = {"sdxl_vae": "fp32"}
"""Components with one precision in every bundle: SDXL's VAE exceeds the range of fp16."""

MOTION_MODULES = ("conv1d", "conv_gate", "attn1.to_q", "attn_temp")
"""A UNet module whose dotted name ends so is trained by LAMP; the rest is Stable Diffusion's (and equal
for every motion). Source: both published training configurations, docs/algorithm.md."""


def is_motion_tensor(name: str) -> bool:
    """Whether a tensor of the LAMP UNet's state dict belongs to the motion: 360 of 1062 at full size."""
    module = name.rpartition(".")[0].removesuffix(".to_out.0")
    return module.endswith(MOTION_MODULES) or module.rpartition(".")[0].endswith("attn_temp")
