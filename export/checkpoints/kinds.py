# SPDX-License-Identifier: Apache-2.0
"""Recognition of files and folders that are mistaken for a checkpoint, with a remedy for each kind.

They are recognised by the tensor names that their tools write. Loads torch only for a pickle.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.errors import CheckpointError

_MERGE = (
    "Load its base model and it in diffusers (pipeline.load_lora_weights, then pipeline.fuse_lora and "
    "pipeline.unload_lora_weights), save with save_pretrained, and give that folder."
)
_CONVERT = (
    "Convert it: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIR) in diffusers "
    "(StableDiffusionXLPipeline for SDXL), and give DIR."
)
_NO_MOTION = "A motion is a whole UNet of LAMP: give the folder that LAMP's training wrote."

_KINDS: tuple[tuple[str, str, str], ...] = (
    (
        r"\.(hada_(w1|w2|t1|t2)(_[ab])?|lokr_(w1|w2|t2)(_[ab])?|oft_blocks|oft_diag|boft_\w+|ia3_\w+)$"
        r"|^(lycoris|oft)_\w+\.|\.oft_R(\.|$)",
        "a LyCORIS adapter (LoHa, LoKr, OFT or IA3), which holds differences from a base model",
        _MERGE,
    ),
    (
        r"(\.|_)lora(_[AB]|_down|_up|_embedding_[AB]|_magnitude_vector)(\.|$)|^lora_(unet|te\d?|prior)_"
        r"|\.lora\.(up|down)\.|_lora\d*\.(up|down)\.|^(unet|text_encoder):\d+:(up|down)$|\.vera_lambda_|\.lora_linear_layer\.|^base_model\.model\.|\.dora_scale$",
        "a LoRA, which holds differences from a base model",
        _MERGE,
    ),
    (
        r"(^|\.)motion_modules\.|\.temporal_transformer\.",
        "an AnimateDiff motion module, of another network than LAMP's",
        _NO_MOTION,
    ),
    (
        r"^(control_model\.|controlnet_|input_hint_block\.|lllite_|adapter\.(body|conv_in)\.)",
        "a ControlNet or T2I-Adapter, which steers a model and makes no image of its own",
        "",
    ),
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter, which steers a model by an image", ""),
    (
        r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner\.embedders)\.",
        "a whole model in one file, in the layout of the original Stable Diffusion code",
        _CONVERT,
    ),
    (r"^(string_to_param|emb_params|clip_[gl]$)", "a textual inversion, which holds words of a prompt", ""),
    (
        r"^(module|_orig_mod|unet|model)\.",
        "a training state, whose names have a prefix",
        "Save the module's own state_dict (of the unwrapped module, without DDP, FSDP or torch.compile).",
    ),
)
"""(pattern of tensor names, kind, remedy); the first that matches counts."""

_LORA_FILES = ("pytorch_lora_weights", "adapter_model", "adapter_config.json")
_A_LORA, _A_WHOLE_MODEL = "lora_unet_", "model.diffusion_model."
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_MAX_NAMES = 20_000


def kind_of_tensors(names: Iterable[str], component: str = "") -> str:
    """The kind of file that has these tensor names, with a remedy, as "a LoRA, … . Remedy"; "" if unknown.

    component: the component that the file was given as. No remedy turns an adapter into LAMP's "unet".
    """
    names = list(names)[:_MAX_NAMES]
    for pattern, what, remedy in _KINDS:
        if any(re.search(pattern, name) for name in names):
            of_lamp = component == "unet" and remedy in (_MERGE, _CONVERT, "")
            return f"{what}. {_NO_MOTION if of_lamp else remedy}".strip()
    return ""


def kind_of_file(path: Path, component: str = "") -> str:
    """The kind of a file that was given in place of a folder, as `kind_of_tensors` returns it."""
    if path.suffix == ".safetensors":
        try:
            return kind_of_tensors(read_weight_file(path).tensors, component)
        except (CheckpointError, OSError):
            return ""
    names: list[str] = []
    if path.suffix in _PICKLES:
        from lamp_trt.export.checkpoints.tensor_files import pickled_names

        names = pickled_names(path)
    if not names and path.name.startswith(_LORA_FILES):
        names = [_A_LORA]
    if not names and path.suffix == ".ckpt":
        names = [_A_WHOLE_MODEL]
    return kind_of_tensors(names, component)


def hint_for_folder(folder: Path, component: str = "") -> str:
    """A hint for a folder that lacks the component: its actual kind and the remedy; "" if unknown."""
    files = sorted(path for path in folder.iterdir() if path.is_file())[:100]
    for path in files:
        kind = kind_of_file(path, component)
        if kind:
            return f"Its {path.name} is {kind}"
    below = sorted(path.parent for path in folder.glob("*/model_index.json"))
    if below:
        return f"Did you mean {below[0]}?"
    parent = folder.absolute().parent
    if (parent / "model_index.json").is_file():
        return f"It is a part of the checkpoint {parent}: give that."
    trained = sorted(path.parent for path in folder.glob("*/unet/config.json"))
    if trained:
        return f"Did you mean {trained[0].parent}?"
    if any(path.suffix == ".gguf" for path in files):
        return "GGUF files are not read."
    return ""
