# SPDX-License-Identifier: Apache-2.0
"""The safety checker as a network: pictures to cosines with its concepts. The decision is the runtime's.

Source: diffusers' StableDiffusionSafetyChecker.forward, up to `cos_dist`.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamp_trt.engine.errors import CheckpointError
from lamp_trt.export.checkpoints.safety import (
    CHECKER_CLASS,
    CONCEPTS,
    PROJECTION_DIM,
    SPECIAL_CARE,
    THRESHOLDS,
    vision_config,
)
from lamp_trt.export.checkpoints.tensors import class_name


class SafetyCheckerModule(nn.Module):
    """A module with the state dict of a StableDiffusionSafetyChecker, for any number of concepts.

    Some releases of transformers have CLIP's vision tower inside of another module, `vision_model`, some have
    it bare: here it is bare.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        super().__init__()
        vision = CLIPVisionConfig(**vision_config(config))
        tower: Any = CLIPVisionModel(vision)
        self.vision_model = getattr(tower, "vision_model", tower)
        width = config.get("projection_dim", PROJECTION_DIM)
        self.visual_projection = nn.Linear(vision.hidden_size, width, bias=False)
        counts = {CONCEPTS: config.get("num_concepts", 17), SPECIAL_CARE: config.get("num_special_care", 3)}
        for name, thresholds in THRESHOLDS.items():
            setattr(self, name, nn.Parameter(torch.ones(counts[name], width)))
            setattr(self, thresholds, nn.Parameter(torch.ones(counts[name])))


class SafetyCheckerNetwork(nn.Module):
    """Normalised pictures (b, 3, s, s) to the cosines of their embeddings with the concepts', (b, concepts),
    and with the special-care concepts', (b, special care)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = nn.Module()  # without the thresholds, which the graph does not use
        for name in ("vision_model", "visual_projection", CONCEPTS, SPECIAL_CARE):
            setattr(self.model, name, getattr(model, name))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        model: Any = self.model
        embeds = F.normalize(model.visual_projection(model.vision_model(pixel_values).pooler_output))
        concepts = F.normalize(model.concept_embeds)
        special_care = F.normalize(model.special_care_embeds)
        return embeds @ concepts.T, embeds @ special_care.T


def safety_checker_from_config(config: Mapping[str, Any]) -> nn.Module:
    """The module of `config`. CheckpointError if it describes another class."""
    found = class_name(config)
    if found != CHECKER_CLASS:
        raise CheckpointError(f"safety_checker/config.json describes {found}, expected {CHECKER_CLASS}.")
    return SafetyCheckerModule(config)
