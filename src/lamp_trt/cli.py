# SPDX-License-Identifier: Apache-2.0
"""The `lamp-trt` command: each sub-command is a few lines over a public function.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 done, 1 failed, 2 bad usage or input,
130 interrupted.
"""

import argparse
import importlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lamp_trt
from lamp_trt.engine.errors import InputError, LampError
from lamp_trt.engine.networks import NETWORKS, PRECISIONS
from lamp_trt.runtime.config import GenerationConfig
from lamp_trt.runtime.video import FPS

if TYPE_CHECKING:
    from lamp_trt.export.bundle_files import BuildReport

log = logging.getLogger("lamp_trt")

INTERRUPTED = 130
_EXTRAS = {
    "torch": "export",
    "diffusers": "export",
    "transformers": "export",
    "accelerate": "export",
    "onnxscript": "export",
    "onnx_ir": "export",
    "onnxruntime": "cpu",
    "onnx": "cpu",
}
"""The extra that brings each optional module."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    _log_to_stderr(logging.DEBUG if args.verbose else logging.WARNING if args.quiet else logging.INFO)
    run: Callable[[argparse.Namespace], None] = args.run
    try:
        run(args)
    except LampError as error:
        print(f"lamp-trt {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        print(
            f"lamp-trt {args.command}: this needs {error.name}, which is not installed. "
            f"Install it: pip install 'lamp-trt[{_EXTRAS[error.name]}]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"lamp-trt {args.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return 0


def build(args: argparse.Namespace) -> None:
    from lamp_trt.export.build import build_bundle
    from lamp_trt.export.recipe import BuildOptions

    options = BuildOptions(
        sd=args.sd,
        motions=_named_folders(args.motion),
        sdxl=args.sdxl,
        precision=args.precision,
        height=args.height,
        width=args.width,
        num_frames=args.frames,
        first_frame_height=args.first_frame_height,
        first_frame_width=args.first_frame_width,
        only=tuple(args.only),
    )
    _print_report(build_bundle(args.out, options), args.json)


def generate(args: argparse.Namespace) -> None:
    from lamp_trt.runtime.first_frame import save_png
    from lamp_trt.runtime.jobs import (
        OPTIONS,
        Job,
        first_frame_path,
        job_from_sidecar,
        jobs_from_prompts_file,
        run_jobs,
        with_destinations,
    )

    if sum(map(bool, (args.prompt, args.prompts, args.sidecar))) != 1:
        raise InputError("give either prompts, or --prompts FILE, or --from SIDECAR.")
    given = {name: getattr(args, name) for name in ("first_frame", "fps") if hasattr(args, name)}
    options = {name: getattr(args, name) for name in OPTIONS if hasattr(args, name)}
    defaults = Job("", options=options, **given)
    if args.sidecar:
        job = job_from_sidecar(args.sidecar)
        origin = {} if "first_frame" in given else job.origin
        jobs = [replace(job, options={**job.options, **options}, origin=origin, **given)]
        if args.motion:
            jobs = [replace(jobs[0], motion=None)]
    elif args.prompts:
        jobs = jobs_from_prompts_file(args.prompts, defaults)
    else:
        jobs = [replace(defaults, prompt=prompt) for prompt in args.prompt]
    if args.motion:
        jobs = [replace(job, motion=job.motion or motion) for motion in args.motion for job in jobs]
    jobs = with_destinations(jobs, args.out, "" if args.format == "png" else f".{args.format}")
    before_save = _function(args.before_save) if args.before_save else None
    pipeline = lamp_trt.load(args.bundle, num_threads=args.num_threads)
    for path, video in run_jobs(pipeline, jobs, before_save):
        log.info("%s", ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in video.timings.items()))
        settings = {name: value for name, value in video.settings.items() if name != "first_frame_png"}
        result = {"path": str(path), "timings": video.timings, "settings": settings}
        if args.save_first_frame:
            result["first_frame"] = str(save_png(video.first_frame, first_frame_path(path)))
        print(json.dumps(result) if args.json else path, flush=True)


def image(args: argparse.Namespace) -> None:
    from lamp_trt.engine.bundle import Bundle
    from lamp_trt.runtime.first_frame import check_png
    from lamp_trt.runtime.jobs import slug
    from lamp_trt.runtime.load import load_first_frame_maker

    out = check_png(args.out or Path(f"{slug(args.prompt)}.png"))
    make = load_first_frame_maker(Bundle.open(args.bundle), num_threads=args.num_threads)
    made = make(
        args.prompt,
        negative_prompt=args.negative_prompt,
        seed=args.seed,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
    )
    path = made.save(out)
    log.info("%s", ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in made.timings.items()))
    result = {"path": str(path), "timings": made.timings, "settings": made.settings}
    print(json.dumps(result) if args.json else path)


def motion_add(args: argparse.Namespace) -> None:
    from lamp_trt.export.motions import add_motion

    motions = _named_folders([args.motion])
    (name, folder), *_ = motions.items()
    _print_report(add_motion(args.bundle, name, folder), args.json)


def motion_remove(args: argparse.Namespace) -> None:
    from lamp_trt.export.motions import remove_motion

    digest = remove_motion(args.bundle, args.name, args.default)
    print(json.dumps({"removed": args.name, "bundle": digest}) if args.json else f"removed {args.name}")


def motion_list(args: argparse.Namespace) -> None:
    from lamp_trt.engine.bundle import Bundle

    manifest = Bundle.open(args.bundle, verify="none").manifest
    sizes = {name: manifest.files[motion.file].size for name, motion in manifest.motions.items()}
    if args.json:
        rows = [
            {
                "motion": name,
                "kind": motion.kind,
                "default": name == manifest.default_motion,
                "size_bytes": sizes[name],
            }
            for name, motion in manifest.motions.items()
        ]
        print(json.dumps(rows))
        return
    for name, motion in manifest.motions.items():
        default = ", default" * (name == manifest.default_motion)
        print(f"{name:24} {_mb(sizes[name]):>10}  {motion.kind}{default}")


def inspect(args: argparse.Namespace) -> None:
    from lamp_trt.engine.bundle import Bundle
    from lamp_trt.engine.bundle_report import bundle_summary, summary_text

    bundle = Bundle.open(args.bundle, verify="full" if args.verify_files else "stat")
    checked = "every byte checked" if args.verify_files else "as when last checked"
    summary = bundle_summary(bundle)
    print(json.dumps(summary) if args.json else summary_text(summary, checked))


def verify(args: argparse.Namespace) -> None:
    from lamp_trt.benchmarks.verify import verify_bundle
    from lamp_trt.benchmarks.verify_options import Checkpoints, VerifyOptions
    from lamp_trt.benchmarks.verify_report import report_text, require_passed

    if args.out and not args.out.parent.is_dir():
        raise InputError(f"--out is {args.out}, but {args.out.parent} is no folder; create it first.")
    options = VerifyOptions(
        Checkpoints(args.sd, _named_folders(args.motion), args.sdxl),
        prompt=args.prompt,
        negative_prompt=args.negative_prompt,
        first_frame=args.first_frame,
        seed=args.seed,
        num_inference_steps=args.num_inference_steps,
        num_threads=args.num_threads,
    )
    report = verify_bundle(args.bundle, options)
    as_json = json.dumps(report.to_json(), indent=2, allow_nan=False)
    if args.out:
        args.out.write_text(as_json + "\n")
    print(as_json if args.json else report_text(report))
    require_passed(report)


def doctor(args: argparse.Namespace) -> None:
    from lamp_trt.doctor import PURPOSES, diagnose, diagnosis_json, diagnosis_text, require_possible

    findings = diagnose(args.folder)
    print(json.dumps(diagnosis_json(findings), indent=2) if args.json else diagnosis_text(findings))
    require_possible(findings, args.purpose or PURPOSES)


def toy(args: argparse.Namespace) -> None:
    from lamp_trt.export.toy import write_toy

    write_toy(args.folder, seed=args.seed)
    print(args.folder)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="more on stderr")
    common.add_argument("-q", "--quiet", action="store_true", help="only warnings on stderr")
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print the result as JSON")

    parser = argparse.ArgumentParser(
        prog="lamp-trt", description="Build LAMP bundles and make videos from them."
    )
    parser.add_argument("--version", action="version", version=f"lamp-trt {lamp_trt.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], None], description: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=description,
            description=description,
            parents=[common, as_json],
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    _add_build(command("build", build, "Turn checkpoints into a bundle, or add to one."))
    _add_generate(command("generate", generate, "Make videos from prompts, and from first frames if given."))
    _add_image(command("image", image, "Make only the first frame of a video, to try prompts quickly."))

    sub = command("inspect", inspect, "Show what a bundle holds.")
    sub.add_argument("bundle", type=Path)
    sub.add_argument("--verify-files", action="store_true", help="read and check every byte")

    _add_verify(command("verify", verify, "Compare a bundle with PyTorch on the same checkpoints."))

    sub = command("doctor", doctor, "Show what is installed, what can run here, and how to mend the rest.")
    sub.add_argument(
        "--for",
        action="append",
        choices=["build", "generate"],
        dest="purpose",
        help="what this machine is for; the exit code tells whether it can work (default: both)",
    )
    sub.add_argument("--folder", type=Path, default=Path(), help="where bundles will be", metavar="DIR")

    sub = command("toy", toy, "Write tiny checkpoints in the published layouts, to try everything with.")
    sub.add_argument("folder", type=Path)
    sub.add_argument("--seed", type=int, default=0)

    _add_motion(commands, [common, as_json])
    return parser


def _add_build(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=Path, required=True, help="the bundle's folder", metavar="DIR")
    sub.add_argument("--sd", type=Path, help="Stable Diffusion v1.4, diffusers layout", metavar="DIR")
    sub.add_argument(
        "--motion",
        action="append",
        default=[],
        help="a LAMP checkpoint; repeat it for more motions, the first is the default one",
        metavar="NAME=DIR",
    )
    sub.add_argument(
        "--sdxl", type=Path, help="Stable Diffusion XL base, for first frames from text", metavar="DIR"
    )
    sub.add_argument("--precision", choices=list(PRECISIONS), default="fp32", help="fp32 suits CPUs")
    sub.add_argument("--height", type=int, default=320)
    sub.add_argument("--width", type=int, default=512)
    sub.add_argument("--frames", type=int, default=16)
    for name in ("height", "width"):
        sub.add_argument(
            f"--first-frame-{name}",
            type=int,
            help=f"of SDXL's image; default: twice --{name}",
            metavar="PIXELS",
        )
    sub.add_argument(
        "--only", action="extend", nargs="+", default=[], help=f"of {', '.join(NETWORKS)}", metavar="NETWORK"
    )
    sub.add_argument("--backend", choices=["onnxruntime"], default="onnxruntime")


def _add_generate(sub: argparse.ArgumentParser) -> None:
    """What shapes a video has no default here: a sidecar or the pipeline supplies what is not given."""
    config = GenerationConfig()

    def shaping(flag: str, help: str, **options: Any) -> None:
        sub.add_argument(flag, help=help, default=argparse.SUPPRESS, **options)

    sub.add_argument("prompt", nargs="*", help="one video for each")
    sub.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    sub.add_argument(
        "--motion", action="append", default=[], help="repeat it for a video of each; none: the default one"
    )
    shaping(
        "--first-frame",
        "any image that OpenCV reads; default: SDXL makes one, if the bundle has it",
        type=Path,
        metavar="IMAGE",
    )
    shaping(
        "--fit", "of an image of another aspect ratio; default: stretch", choices=["stretch", "crop", "pad"]
    )
    shaping("--first-frame-prompt", "for SDXL; default: the prompt", metavar="PROMPT")
    shaping(
        "--first-frame-steps",
        f"default: {config.first_frame_num_inference_steps}",
        type=int,
        dest="first_frame_num_inference_steps",
        metavar="STEPS",
    )
    shaping(
        "--first-frame-guidance-scale",
        f"default: {config.first_frame_guidance_scale}",
        type=float,
        metavar="SCALE",
    )
    sub.add_argument(
        "--save-first-frame", action="store_true", help="also as NAME.first_frame.png beside the video"
    )
    shaping("--negative-prompt", "of the first frame and the video", metavar="PROMPT")
    shaping("--seed", f"default: {config.seed}", type=int)
    shaping(
        "--steps",
        f"default: {config.num_inference_steps}",
        type=int,
        dest="num_inference_steps",
        metavar="STEPS",
    )
    shaping("--guidance-scale", f"default: {config.guidance_scale}", type=float, metavar="SCALE")
    shaping("--preset", f"default: {config.preset}", choices=["official", "paper"])
    shaping("--adain", f"default: {config.adain}", choices=["schedule", "first_frame", "none"])
    shaping("--adain-switch-step", "default: the preset's", type=int, metavar="STEPS")
    shaping("--histogram", "default: the preset's", choices=["none", "official", "exact"])
    shaping("--fps", f"default: {FPS}", type=float)
    sub.add_argument(
        "--out",
        type=Path,
        help="a .mp4, .gif or .webp file, or a folder: of PNGs, or of videos if there are several; "
        "default: the prompt as a .mp4 file",
    )
    sub.add_argument("--format", choices=["mp4", "gif", "webp", "png"], default="mp4", help="of several")
    sub.add_argument("--prompts", type=Path, help="a file: a prompt a line, or JSON lines", metavar="FILE")
    sub.add_argument(
        "--from",
        type=Path,
        dest="sidecar",
        help="repeat the video that this JSON file lies beside, but for the options given here",
        metavar="FILE",
    )
    sub.add_argument(
        "--before-save",
        help="a function that gets each Video and returns the one to save; it refuses by raising",
        metavar="MODULE:FUNCTION",
    )
    sub.add_argument("--num-threads", type=int, help="CPU threads; default: the backend's choice")


def _add_image(sub: argparse.ArgumentParser) -> None:
    config = GenerationConfig()
    sub.add_argument("prompt")
    sub.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    sub.add_argument("--out", type=Path, help="a .png file; default: named after the prompt", metavar="IMAGE")
    sub.add_argument("--negative-prompt")
    sub.add_argument("--seed", type=int, default=config.seed)
    sub.add_argument(
        "--steps", type=int, default=config.first_frame_num_inference_steps, dest="num_inference_steps"
    )
    sub.add_argument("--guidance-scale", type=float, default=config.first_frame_guidance_scale)
    sub.add_argument("--num-threads", type=int, help="CPU threads; default: the backend's choice")


def _add_verify(sub: argparse.ArgumentParser) -> None:
    from lamp_trt.benchmarks.verify_options import PROMPT, STEPS

    sub.add_argument("bundle", type=Path)
    sub.add_argument("--sd", type=Path, help="the folder that --sd of the build named", metavar="DIR")
    sub.add_argument("--sdxl", type=Path, help="the folder that --sdxl named", metavar="DIR")
    sub.add_argument(
        "--motion",
        action="append",
        default=[],
        help="a motion of the bundle and its LAMP checkpoint; repeat it for more",
        metavar="NAME=DIR",
    )
    sub.add_argument("--prompt", default=PROMPT)
    sub.add_argument("--negative-prompt")
    sub.add_argument("--first-frame", type=Path, help="default: a synthetic picture", metavar="IMAGE")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument(
        "--steps",
        type=int,
        default=STEPS,
        dest="num_inference_steps",
        help="of the loops; each step runs every UNet three times, 0 compares networks only",
    )
    sub.add_argument("--num-threads", type=int, help="CPU threads of both sides; default: their choice")
    sub.add_argument("--out", type=Path, help="also write the report as JSON", metavar="FILE")


def _add_motion(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", parents: list) -> None:  # type: ignore[type-arg]
    description = "Add, list or remove the motions of a bundle."
    motion = commands.add_parser("motion", help=description, description=description)
    actions = motion.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run, about in (
        ("add", motion_add, "Add a LAMP checkpoint as a motion."),
        ("list", motion_list, "List the motions."),
        ("remove", motion_remove, "Remove a motion."),
    ):
        sub = actions.add_parser(name, help=about, description=about, parents=parents)
        sub.add_argument("bundle", type=Path)
        sub.set_defaults(run=run)
        if name == "add":
            sub.add_argument("motion", metavar="NAME=DIR")
        if name == "remove":
            sub.add_argument("name")
            sub.add_argument("--default", help="the default motion from now on", metavar="NAME")


def _named_folders(items: Sequence[str]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for item in items:
        name, separator, folder = item.partition("=")
        if not (name and separator and folder):
            raise InputError(f"--motion is {item!r}; expected NAME=DIR, like rain=lamp/rain.")
        if name in folders:
            raise InputError(f"--motion names {name!r} twice; give each motion a name of its own.")
        folders[name] = Path(folder)
    return folders


def _function(name: str) -> Callable[[Any], Any]:
    """The function that MODULE:FUNCTION names."""
    module, _, function = name.partition(":")
    sys.path.insert(0, "")  # as `python -m` does: a module in the working directory
    try:
        found: Callable[[Any], Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"--before-save is {name!r}; expected MODULE:FUNCTION: {error}.") from error
    return found


def _print_report(report: "BuildReport", as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(report), default=str))
        return
    for file in report.files:
        took = "kept" if file.seconds is None else f"{file.seconds:.1f} s"
        print(f"{file.path:40} {_mb(file.size_bytes):>12}  {took}")
    total = sum(file.size_bytes for file in report.files)
    print(f"{report.path}: {_mb(total)} in {len(report.files)} files, {report.seconds:.1f} s")


def _mb(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


def _log_to_stderr(level: int) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    log.setLevel(level)
