# SPDX-License-Identifier: Apache-2.0
"""Checks of each motion's video against PyTorch's: the loop's inputs, every step, and the frames."""

import logging

from lamp_trt.benchmarks.verify.checks.check import Check, follows
from lamp_trt.benchmarks.verify.checks.loop import Traces, loop_checks, step_figures
from lamp_trt.benchmarks.verify.options import VerifyOptions
from lamp_trt.benchmarks.verify.pictures import synthetic_picture
from lamp_trt.benchmarks.verify.reference.arithmetic import EXACT, Arithmetic, yardstick
from lamp_trt.benchmarks.verify.reference.traces import reference_trace, runtime_trace, video_job
from lamp_trt.benchmarks.verify.report import Report
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import LampError
from lamp_trt.engine.families import LAMP
from lamp_trt.runtime.load import load_pipeline
from lamp_trt.runtime.media.image import load_first_frame
from lamp_trt.runtime.pipeline import LampPipeline

log = logging.getLogger("lamp_trt")


def verify_videos(report: Report, bundle: Bundle, options: VerifyOptions) -> None:
    """Compare every motion's video, through one pipeline that is switched before each."""
    motions = list(options.checkpoints.motions)
    own = yardstick(options.computed_in(bundle.network(LAMP.unet)), options.on_gpu)
    with load_pipeline(
        bundle.path, options.loading, motion=motions[-1], expect_bundle=bundle.digest
    ) as pipeline:
        _verify_motions(report, pipeline, options, own)


def _verify_motions(
    report: Report, pipeline: LampPipeline, options: VerifyOptions, own: Arithmetic | None
) -> None:
    for motion in options.checkpoints.motions:
        log.info("comparing the video of %s", motion)
        before = [c for c in report.checks if c.motion in ("", motion) and not c.name.startswith("sdxl")]
        cause = follows(before) or "every network agrees, so the loop between them differs"
        try:
            traces = video_traces(pipeline, motion, options, own)
        except LampError as error:
            report.checks.append(Check("clip", "video", motion, problem=f"{error} ({cause})"))
            continue
        report.clips[motion] = traces[0].frames, traces[1].frames
        steps = report.steps[motion] = step_figures(traces)
        report.checks += loop_checks("", motion, traces, steps, cause)


def video_traces(
    pipeline: LampPipeline, motion: str, options: VerifyOptions, yardstick: Arithmetic | None
) -> Traces:
    """Make one video three times: by PyTorch in fp32, by the bundle, and by PyTorch at the bundle's
    precision."""
    picture = synthetic_picture(*pipeline.size) if options.first_frame is None else options.first_frame
    job = video_job(
        pipeline,
        load_first_frame(picture, *pipeline.size),
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        seed=options.seed,
        num_inference_steps=options.num_inference_steps,
    )
    exact = reference_trace(options.checkpoints, motion, job, EXACT)
    own = reference_trace(options.checkpoints, motion, job, yardstick, exact.steps) if yardstick else None
    return exact, runtime_trace(pipeline, motion, job, exact.steps), own
