# SPDX-License-Identifier: Apache-2.0
"""Checks of SDXL's first frame against diffusers': every step, and the image."""

import logging

from lamp_trt.benchmarks.verify.checks.check import Check, follows
from lamp_trt.benchmarks.verify.checks.loop import Traces, loop_checks, step_figures
from lamp_trt.benchmarks.verify.options import VerifyOptions
from lamp_trt.benchmarks.verify.reference.arithmetic import EXACT, yardstick
from lamp_trt.benchmarks.verify.reference.sdxl_traces import (
    ImageJob,
    sdxl_reference_trace,
    sdxl_runtime_trace,
)
from lamp_trt.benchmarks.verify.report import Report
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import LampError
from lamp_trt.engine.families import SDXL, SDXL_CHECKPOINT
from lamp_trt.runtime.algorithm.noise import Purpose, latent_noise
from lamp_trt.runtime.first_frame import FirstFrameMaker
from lamp_trt.runtime.load import load_first_frame_maker

log = logging.getLogger("lamp_trt")


def verify_first_frame(report: Report, bundle: Bundle, options: VerifyOptions) -> None:
    """Compare the image of the prompt; add the checks and figures to the report."""
    log.info("comparing the first frame from text")
    before = [check for check in report.checks if check.name.startswith("sdxl")]
    cause = follows(before) or "every network agrees, so the loop between them differs"
    try:
        maker = load_first_frame_maker(bundle, options.loading)
        traces = first_frame_traces(maker, options)
    except LampError as error:
        report.checks.append(Check("clip", "sdxl image", problem=f"{error} ({cause})"))
        return
    report.clips["first frame from text"] = traces[0].frames, traces[1].frames
    steps = report.steps["first frame from text"] = step_figures(traces)
    report.checks += loop_checks("sdxl ", "", traces, steps, cause)


def first_frame_traces(maker: FirstFrameMaker, options: VerifyOptions) -> Traces:
    """Make one image three times: by PyTorch in fp32, by the bundle, and by PyTorch at the bundle's
    precision."""
    sizes, folder = maker.bundle.manifest.sizes, options.checkpoints.folder(SDXL_CHECKPOINT)
    latent = sizes["first_frame_latent_height"], sizes["first_frame_latent_width"]
    job = ImageJob(
        options.prompt,
        options.negative_prompt,
        *maker.size,
        noise=latent_noise(options.seed, Purpose.SDXL_LATENTS, (1, 4, *latent)),
        num_inference_steps=options.num_inference_steps,
    )
    exact = sdxl_reference_trace(folder, job, EXACT)
    roughly = yardstick(options.computed_in(maker.bundle.network(SDXL.unet)), options.on_gpu)
    own = sdxl_reference_trace(folder, job, roughly, exact.steps) if roughly else None
    return exact, sdxl_runtime_trace(maker, job, exact.steps), own
