# SPDX-License-Identifier: Apache-2.0
"""Each network of a bundle against its PyTorch module, on equal inputs."""

import logging

import torch

from lamp_trt.benchmarks.checks import Check, follows, tensor_check
from lamp_trt.benchmarks.limits import FP32_NETWORK, FP32_NETWORKS
from lamp_trt.benchmarks.metrics import distance
from lamp_trt.benchmarks.plain_engine import PlainEngine, plain_inputs
from lamp_trt.benchmarks.reference_networks import REFERENCE_NETWORKS, reference_outputs, seeded_inputs
from lamp_trt.benchmarks.verify_options import VerifyOptions
from lamp_trt.engine.bundle import Bundle
from lamp_trt.engine.errors import EngineError

log = logging.getLogger("lamp_trt")


def network_checks(bundle: Bundle, name: str, options: VerifyOptions, before: list[Check]) -> list[Check]:
    """One network, the UNet with every motion, against its PyTorch module on the same inputs."""
    record, entry, checkpoints = bundle.network(name), REFERENCE_NETWORKS[name], options.checkpoints
    engine: PlainEngine | None = None
    checks = []
    for motion in checkpoints.motions_of(entry.checkpoint):
        log.info("comparing %s %s", name, motion)
        folder = checkpoints.folder(entry.checkpoint, motion)
        prompts = [options.negative_prompt or "", options.prompt]
        inputs = seeded_inputs(name, plain_inputs(bundle, name), folder, prompts, options.seed)
        exact = reference_outputs(name, folder, torch.float32, inputs)
        own = reference_outputs(name, folder, torch.float16, inputs) if record.precision == "fp16" else None
        try:
            if engine is None:
                engine = PlainEngine(bundle, name, motion=motion or None, num_threads=options.num_threads)
            elif motion:
                engine.set_motion(motion)
            ours = engine.run(inputs)
        except EngineError as error:
            checks.append(Check("networks", name, motion, problem=str(error)))
            continue
        cause = follows([c for c in before if (c.group, c.name, c.motion) == ("weights", name, motion)]) or (
            f"{record.graph} or ONNX Runtime computes something else: build it again, try another version"
        )
        checks += [
            tensor_check(
                "networks",
                f"{name} {tensor.name}",
                motion,
                distance(ours[tensor.name], exact[index]),
                distance(own[index], exact[index]) if own else None,
                FP32_NETWORKS.get(name, FP32_NETWORK),
                cause,
            )
            for index, tensor in enumerate(record.outputs)
        ]
    return checks
