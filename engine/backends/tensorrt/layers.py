# SPDX-License-Identifier: Apache-2.0
"""The fused layers of a TensorRT plan, in the order of execution.

Unproven: no GPU has run this module yet. TensorRT needs a GPU to load plans.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamp_trt.engine.backends.cuda.calls import architecture, cuda
from lamp_trt.engine.backends.tensorrt.engine import deserialize
from lamp_trt.engine.backends.tensorrt.key import find_engine
from lamp_trt.engine.backends.tensorrt.trt import tensorrt
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError


@dataclass(frozen=True)
class PlanLayer:
    """One layer. Kind, tactic (the kernel) and outputs are "" and () unless the plan was built detailed."""

    name: str
    kind: str
    tactic: str
    outputs: tuple[str, ...]


def plan_layers(
    bundle: Bundle,
    network: str,
    *,
    device: int = 0,
    motion: str | None = None,
    engine_dir: Path | None = None,
) -> list[PlanLayer]:
    """The layers of the plan that would run `network` on CUDA device `device`; raises as TensorRtEngine."""
    cuda("cudaSetDevice", device)
    trt = tensorrt()
    plan = find_engine(bundle, network, trt, architecture(device), motion=motion, engine_dir=engine_dir)
    _, engine = deserialize(trt, plan)
    inspector = engine.create_engine_inspector()
    return parse_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def parse_layers(information: str) -> list[PlanLayer]:
    """Parse the inspector's JSON. EngineError if it has another format."""
    try:
        return [_layer(entry) for entry in json.loads(information)["Layers"]]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"TensorRT's inspector returned an unknown format: {information[:200]!r}"
        ) from error


def layers_text(layers: list[PlanLayer]) -> str:
    """One line per layer, then the number of layers of each kind."""
    lines = [
        "  ".join(part for part in (f"{layer.kind:20}", layer.name, layer.tactic) if part.strip())
        for layer in layers
    ]
    counts = Counter(layer.kind for layer in layers if layer.kind)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    return "\n".join([*lines, f"{len(layers)} layers" + (f": {kinds}" if kinds else "")])


def _layer(entry: Any) -> PlanLayer:
    if isinstance(entry, str):
        return PlanLayer(entry, "", "", ())
    outputs = tuple(
        f"{tensor['Name']} {'x'.join(map(str, tensor['Dimensions']))} {tensor['Format/Datatype']}"
        for tensor in entry.get("Outputs", [])
    )
    return PlanLayer(entry["Name"], entry.get("LayerType", ""), entry.get("TacticName", ""), outputs)
