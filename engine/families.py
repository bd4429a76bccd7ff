# SPDX-License-Identifier: Apache-2.0
"""The model families of a bundle: their networks, and the checkpoint components that hold the weights.

All data keyed by network or component are looked up in these records. To add a network, add a record here,
its torch module in export/networks.py and its reference in benchmarks/verify/reference/networks.py.
"""

from lamp_trt.engine.networks import (
    Component,
    Family,
    NetworkSpec,
    Origin,
    Precomputed,
    TensorSpec,
    Tokenizer,
    is_motion_tensor,
)

FAMILIES: dict[str, Family] = {}
NETWORKS: dict[str, NetworkSpec] = {}
COMPONENTS: dict[str, Component] = {}
"""The registered components, by name."""


def register(family: Family) -> None:
    """Add a family to FAMILIES, NETWORKS and COMPONENTS. ValueError if a name is taken or unknown."""
    components = {component.name: component for component in family.components}
    specs = {spec.name: spec for spec in family.networks}
    taken = (
        {family.name} & FAMILIES.keys()
        | components.keys() & COMPONENTS.keys()
        | specs.keys() & NETWORKS.keys()
    )
    if taken:
        raise ValueError(f"{min(taken)} is registered already")
    known = COMPONENTS.keys() | components.keys()
    named = {spec.component for spec in family.networks}
    named |= {component.same_as for component in family.components if component.same_as}
    if named - known:
        raise ValueError(f"{family.name} names the component {min(named - known)}, which nothing registers")
    FAMILIES[family.name] = family
    NETWORKS.update(specs)
    COMPONENTS.update(components)


def component_of(network: str) -> Component:
    """The component that holds the weights of a network of NETWORKS."""
    return COMPONENTS[NETWORKS[network].component]


def origins() -> tuple[Origin, ...]:
    """The kinds of checkpoints that components come from."""
    return tuple(dict.fromkeys(component.origin for component in COMPONENTS.values()))


_IMAGE = (3, "height", "width")
_LATENT = (4, "latent_height", "latent_width")
_VIDEO_LATENTS = ("batch", 4, "num_frames", "latent_height", "latent_width")
_FIRST_FRAME_LATENT = (4, "first_frame_latent_height", "first_frame_latent_width")
_INPUT_IDS = TensorSpec("input_ids", ("batch", "tokens"), "int64")
_TIMESTEP = TensorSpec("timestep", (1,), "float32")
_TOKENS = ("max_position_embeddings", 77)

SD_CHECKPOINT = Origin("--sd", "DIR", "Stable Diffusion v1.4", "sd")
MOTION_CHECKPOINT = Origin("--motion", "NAME=DIR", "LAMP", "motions")
"""One checkpoint per motion; the UNet's shared weights come from the first."""
SDXL_CHECKPOINT = Origin("--sdxl", "DIR", "Stable Diffusion XL", "sdxl")

LAMP = Family(
    name="lamp",
    networks=(
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
    ),
    components=(
        Component(
            "text_encoder",
            "the text encoder",
            SD_CHECKPOINT,
            "text_encoder",
            parameters=123_060_480,
            library="transformers",
            axes={"text_width": ("hidden_size", 512), "tokens": _TOKENS},
            tokenizer=Tokenizer("tokenizer", "tokenizer"),
        ),
        Component("vae", "the VAE", SD_CHECKPOINT, "vae", parameters=83_653_863, scaling_factor=0.18215),
        Component(
            "unet",
            "the LAMP UNet",
            MOTION_CHECKPOINT,
            "unet",
            parameters=1_101_091_358,
            motion_tensors=is_motion_tensor,
            motion_parameters=253_935_834,
            axes={"text_width": ("cross_attention_dim", 1280)},
        ),
    ),
    unet="lamp_unet",
    vae="vae",
    precomputed=Precomputed("lamp_text_keys_values", "lamp_time_projections"),
    hoists=("text", "time", "prefix"),
)
"""Stable Diffusion v1.4 with LAMP's UNet: a video from a first frame."""

SDXL = Family(
    name="sdxl",
    networks=(
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
    ),
    components=(
        Component(
            "sdxl_text_encoder",
            "SDXL's first text encoder",
            SDXL_CHECKPOINT,
            "text_encoder",
            parameters=123_060_480,
            library="transformers",
            same_as="text_encoder",
            axes={"sdxl_text_width": ("hidden_size", 512), "tokens": _TOKENS},
            tokenizer=Tokenizer("sdxl_tokenizer", "tokenizer"),
        ),
        Component(
            "sdxl_text_encoder_2",
            "SDXL's second text encoder",
            SDXL_CHECKPOINT,
            "text_encoder_2",
            parameters=694_659_840,
            library="transformers",
            axes={
                "sdxl_text_2_width": ("hidden_size", 512),
                "sdxl_pooled_width": ("projection_dim", 512),
                "tokens": _TOKENS,
            },
            tokenizer=Tokenizer("tokenizer_2", "tokenizer_2"),
        ),
        Component(
            "sdxl_unet",
            "SDXL's UNet",
            SDXL_CHECKPOINT,
            "unet",
            parameters=2_567_463_684,
            axes={"sdxl_context_width": ("cross_attention_dim", 1280)},
        ),
        Component(
            "sdxl_vae",
            "SDXL's VAE",
            SDXL_CHECKPOINT,
            "vae",
            parameters=83_653_863,
            precision="fp32",  # its activations exceed the range of fp16
            used=lambda name: name.startswith(("decoder.", "post_quant_conv.")),
            scaling_factor=0.13025,
        ),
    ),
    unet="sdxl_unet",
    vae="sdxl_vae",
    precomputed=Precomputed("sdxl_text_keys_values", "sdxl_time_projections"),
    hoists=("text", "time"),  # its halves share no prefix
)
"""Stable Diffusion XL: a first frame from a text."""

SAFETY_BATCH = 3
"""Pictures that the safety checker sees at once: the crops of one frame."""

_PICTURE = (3, "safety_image_size", "safety_image_size")

SAFETY = Family(
    name="safety",
    networks=(
        NetworkSpec(
            "safety_checker",
            "safety_checker",
            (TensorSpec("pixel_values", (SAFETY_BATCH, *_PICTURE)),),
            (
                TensorSpec("concept_cosines", (SAFETY_BATCH, "safety_concepts")),
                TensorSpec("special_care_cosines", (SAFETY_BATCH, "safety_special_care")),
            ),
        ),
    ),
    components=(
        Component(
            "safety_checker",
            "the safety checker",
            SD_CHECKPOINT,
            "safety_checker",
            parameters=303_981_588,
            library="transformers",
            optional=True,
            precision="fp32",  # a verdict does not depend on the precision of the bundle
            axes={
                "safety_image_size": ("image_size", 224),
                "safety_concepts": ("num_concepts", 17),
                "safety_special_care": ("num_special_care", 3),
            },
        ),
    ),
)
"""Stable Diffusion's safety checker: how near pictures are to concepts, see runtime/safety."""

for _family in (LAMP, SDXL, SAFETY):
    register(_family)

(SAFETY_CHECKER,) = SAFETY.names
VIDEO_NETWORKS = LAMP.names
FIRST_FRAME_NETWORKS = SDXL.names
