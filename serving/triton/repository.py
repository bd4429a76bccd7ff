# SPDX-License-Identifier: Apache-2.0
"""A Triton model repository with one model, which makes videos of a bundle."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lamp_trt.engine.errors import InputError
from lamp_trt.engine.files.output import written
from lamp_trt.serving.settings import ModelInfo

SETTINGS_FILE = "lamp.json"
"""In the model's version folder: the bundle, the placement of its networks, and what clients may ask for."""

MODEL = """\
# Written by lamp-trt export-triton. Its settings are in lamp.json.
from lamp_trt.serving.triton.model import TritonPythonModel as TritonPythonModel
"""

CONFIG = """\
# Written by lamp-trt export-triton.
name: "{name}"
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input [
  {{ name: "prompt" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "motion" data_type: TYPE_STRING dims: [ 1 ] optional: true }},
  {{ name: "seed" data_type: TYPE_UINT64 dims: [ 1 ] optional: true }},
  {{ name: "first_frame" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] optional: true }},
  {{ name: "settings" data_type: TYPE_STRING dims: [ 1 ] optional: true }}
]
output [
  {{ name: "progress" data_type: TYPE_FP32 dims: [ 1 ] }},
  {{ name: "frames" data_type: TYPE_UINT8 dims: [ -1, -1, -1, 3 ] }},
  {{ name: "settings_json" data_type: TYPE_STRING dims: [ 1 ] }}
]
instance_group [ {instances} ]
dynamic_batching {{
  priority_levels: 2
  default_priority_level: 2
  default_queue_policy {{ max_queue_size: {max_queued} }}
}}
"""
"""Priority 1 is the watchdog's, so that it need not wait for the queue."""


def config_text(name: str, device: str, engines: int | None, max_queued: int) -> str:
    """The model's config.pbtxt. Raises InputError for values that Triton would refuse.

    device: "cuda" is one instance on each GPU that Triton finds, "cuda:N" one on that GPU, else `engines`
    on the CPU.
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name) is None:
        raise InputError(f"the model's name is {name!r:.120}; expected ASCII letters, digits, _ . and -.")
    if max_queued < 1:
        raise InputError(f"max_queued is {max_queued}; expected at least 1.")
    gpu = device.startswith("cuda")
    if engines is not None and (gpu or not 1 <= engines <= 64):
        raise InputError(
            f"engines is {engines}; expected 1 to 64 on the CPU. On GPUs there is one for each: leave it out."
        )
    on = f" gpus: [ {device.partition(':')[2]} ]" if ":" in device else ""
    instances = f"{{ count: 1 kind: KIND_GPU{on} }}" if gpu else f"{{ count: {engines or 1} kind: KIND_CPU }}"
    return CONFIG.format(name=name, instances=instances, max_queued=max_queued)


def write_repository(repository: Path, model: ModelInfo, engine: Mapping[str, Any], config: str) -> Path:
    """Write the model's folder into `repository`, which is made if it does not exist; its path.

    engine: the settings of pipeline_engine.open_engine. config: see config_text. The bundle is not copied.
    Raises InputError if the folder exists, and errors as `written`.
    """
    folder = repository / model.name
    if folder.exists():
        raise InputError(f"{folder} exists; remove it, or give another --model-name.")
    if not repository.parent.is_dir():
        raise InputError(f"{repository.parent} is not a folder; create it first.")
    repository.mkdir(exist_ok=True)
    with written(folder) as (partial,):
        version = partial / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(MODEL)
        (version / SETTINGS_FILE).write_text(json.dumps({"model": asdict(model), "engine": engine}, indent=2))
        (partial / "config.pbtxt").write_text(config)
    return folder
