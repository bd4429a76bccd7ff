# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt build`: checkpoints into a bundle, and a bundle's networks into compiled engines."""

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamp_trt.commands.shared import file_path, mb, named_folders, print_report
from lamp_trt.engine.backends.tensorrt.options import HARDWARE_COMPATIBILITY, ShapeRange, TensorRtOptions
from lamp_trt.engine.dtypes import PRECISIONS
from lamp_trt.engine.errors import InputError
from lamp_trt.engine.networks import NETWORKS
from lamp_trt.engine.precompute import HOISTS

if TYPE_CHECKING:
    from lamp_trt.engine.backends.compiled import CompiledEngine
    from lamp_trt.export.recipe import BuildOptions

log = logging.getLogger("lamp_trt")

DESCRIPTION = "Turn checkpoints into a bundle, or add to one; compile its networks."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=file_path, required=True, help="the bundle's folder", metavar="DIR")
    parser.add_argument("--sd", type=file_path, help="Stable Diffusion v1.4, diffusers layout", metavar="DIR")
    parser.add_argument(
        "--motion",
        action="append",
        default=[],
        help="a LAMP checkpoint; repeat it for more motions, the first is the default one",
        metavar="NAME=DIR",
    )
    parser.add_argument(
        "--sdxl", type=file_path, help="Stable Diffusion XL base, for first frames from text", metavar="DIR"
    )
    parser.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        default="fp32",
        help="fp32 suits CPUs, fp16 GPUs; bf16 has the range of fp32, and runs on aotinductor and tensorrt",
    )
    for name, default in (("height", 320), ("width", 512)):
        parser.add_argument(
            f"--{name}",
            type=int,
            default=default,
            help="of the video, a multiple of 8",
            metavar="PIXELS",
        )
    parser.add_argument("--frames", type=int, default=16, help="of the video; LAMP was trained on 16")
    for name in ("height", "width"):
        parser.add_argument(
            f"--first-frame-{name}",
            type=int,
            help=f"of SDXL's image; default: twice --{name}",
            metavar="PIXELS",
        )
    parser.add_argument(
        "--only",
        action="extend",
        nargs="+",
        default=[],
        help=f"build only these, of {', '.join(NETWORKS)}; default: all that the checkpoints give",
        metavar="NETWORK",
    )
    parser.add_argument(
        "--hoist",
        type=lambda names: tuple(names.split(",")),
        default=(),
        help="of " + "; ".join(f"{name}: {what}" for name, what in HOISTS.items()),
        metavar="NAME,…",
    )
    parser.add_argument(
        "--backend",
        choices=["onnxruntime", "aotinductor", "tensorrt"],
        default="onnxruntime",
        help="what to compile for; onnxruntime needs nothing compiled, tensorrt no checkpoints",
    )
    parser.add_argument(
        "--device", default="auto", help="to compile for: cpu, cuda or cuda:N; auto is what the backend can"
    )
    parser.add_argument(
        "--engine-dir",
        type=file_path,
        help="where compiled engines go; default: into the bundle",
        metavar="DIR",
    )
    parser.add_argument(
        "--max-autotune",
        action="store_true",
        help="aotinductor on a GPU: measure every candidate kernel, which takes many times as long",
    )
    _add_tensorrt(parser.add_argument_group("TensorRT"))


def _add_tensorrt(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--no-refit", action="store_true", help="one engine for each motion, though they could be exchanged"
    )
    group.add_argument("--weight-stripped", action="store_true", help="leave weights out of the plans")
    group.add_argument("--weight-streaming", action="store_true", help="let weights stay in host memory")
    group.add_argument(
        "--profile",
        action="append",
        default=[],
        help="shapes of an input whose axes the graph leaves open",
        metavar="NETWORK.INPUT=LEAST:OPTIMAL:GREATEST",
    )
    group.add_argument("--workspace", type=float, help="most memory for a layer's scratch", metavar="GIB")
    group.add_argument("--optimization-level", type=int, help="0 to 5; default: TensorRT's own", metavar="N")
    group.add_argument("--no-timing-cache", action="store_true", help="measure every kernel again")
    group.add_argument(
        "--hardware-compatibility",
        choices=HARDWARE_COMPATIBILITY,
        default="none",
        help="other GPUs to run on",
    )
    group.add_argument("--version-compatible", action="store_true", help="for later TensorRT too")
    group.add_argument(
        "--detailed", action="store_true", help="keep in the engines what each layer is, for tools"
    )


def run(args: argparse.Namespace) -> None:
    motions = named_folders(args.motion)
    given = args.sd is not None or args.sdxl is not None or bool(motions)
    if args.backend == "tensorrt" and not given:
        _print_engines(_tensorrt_engines(args), args.json)
        return
    from lamp_trt.export.build import build_bundle
    from lamp_trt.export.recipe import BuildOptions

    options = BuildOptions(
        sd=args.sd,
        motions=motions,
        sdxl=args.sdxl,
        precision=args.precision,
        height=args.height,
        width=args.width,
        num_frames=args.frames,
        first_frame_height=args.first_frame_height,
        first_frame_width=args.first_frame_width,
        only=tuple(args.only),
        hoist=args.hoist,
    )
    report = build_bundle(args.out, options)
    if not args.json:
        print_report(report, as_json=False)
    engines = []
    if args.precision == "bf16" and args.backend == "onnxruntime":
        log.warning("ONNX Runtime does not run bf16: compile it with --backend aotinductor or tensorrt")
    if args.backend == "tensorrt":
        engines = _tensorrt_engines(args)
    elif args.backend == "aotinductor":
        engines = _aotinductor_packages(args, options)
    if args.json and not engines:
        print_report(report, as_json=True)
    elif engines:
        _print_engines(engines, args.json, asdict(report))


def _tensorrt_engines(args: argparse.Namespace) -> "list[CompiledEngine]":
    from lamp_trt.engine.backends.registry import parse_device
    from lamp_trt.engine.backends.tensorrt.build import build_engines
    from lamp_trt.engine.bundle.reader import Bundle

    if args.device == "cpu":
        raise InputError("device is 'cpu'; TensorRT engines are for GPUs: leave --device out.")
    options = TensorRtOptions(
        networks=tuple(args.only),
        refit=False if args.no_refit else None,
        weight_stripped=args.weight_stripped,
        weight_streaming=args.weight_streaming,
        profiles=tuple(map(ShapeRange.parse, args.profile)),
        workspace_bytes=None if args.workspace is None else int(args.workspace * 2**30),
        optimization_level=args.optimization_level,
        timing_cache=not args.no_timing_cache,
        hardware_compatibility=args.hardware_compatibility,
        version_compatible=args.version_compatible,
        detailed=args.detailed,
        device=parse_device(args.device) or 0,
    )
    return build_engines(Bundle.open(args.out), options, args.engine_dir)


def _aotinductor_packages(args: argparse.Namespace, options: "BuildOptions") -> "list[CompiledEngine]":
    from lamp_trt.engine.bundle.reader import Bundle
    from lamp_trt.export.aotinductor import AotInductorOptions, build_packages
    from lamp_trt.export.recipe import recipe_from_options

    how = AotInductorOptions("cpu" if args.device == "auto" else args.device, args.max_autotune)
    return build_packages(Bundle.open(args.out), recipe_from_options(options), how, args.engine_dir)


def _print_engines(
    engines: "list[CompiledEngine]", as_json: bool, report: dict[str, Any] | None = None
) -> None:
    rows: list[dict[str, Any]] = [
        {"path": str(engine.path), "size_bytes": engine.path.stat().st_size, **asdict(engine.key)}
        for engine in engines
    ]
    if as_json:
        print(json.dumps({**(report or {}), "engines": rows}, default=str))
        return
    for row in rows:
        print(f"{Path(row['path']).name:56} {mb(row['size_bytes']):>12}  {row['device']}, {row['compiler']}")
