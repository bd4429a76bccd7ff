# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt build`: convert checkpoints to a bundle, and compile a bundle's networks."""

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamp_trt.commands.shared import file_path, mb, named_folders, one_of, print_report
from lamp_trt.engine.backends.backend import Backend, BuildRequest
from lamp_trt.engine.backends.registry import REFERENCE, backends, find_backend, names
from lamp_trt.engine.dtypes import PRECISIONS, Precision
from lamp_trt.engine.families import NETWORKS
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
        help="fp32 suits CPUs, fp16 GPUs; bf16 has the range of fp32, and runs on "
        + one_of(_that_run("bf16"), "and"),
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
    parser.add_argument("--backend", choices=names(), default=REFERENCE.name, help=_what_each_needs())
    parser.add_argument(
        "--device", default="auto", help="to compile for: cpu, cuda or cuda:N; auto is what the backend can"
    )
    parser.add_argument(
        "--engine-dir",
        type=file_path,
        help="where compiled engines go; default: into the bundle",
        metavar="DIR",
    )
    for backend in backends():
        if backend.build and backend.build.flags:
            group = parser.add_argument_group(backend.title)
            for flag in backend.build.flags:
                group.add_argument(flag.option, **flag.arguments)


def _what_each_needs() -> str:
    plain = [backend.name for backend in backends() if not backend.build]
    alone = [backend.name for backend in backends() if backend.build and not backend.build.from_checkpoints]
    return (
        f"what to compile for; {one_of(plain, 'and')} {'needs' if len(plain) == 1 else 'need'} nothing "
        f"compiled, {one_of(alone, 'and')} no checkpoints"
    )


def _that_run(precision: Precision) -> list[str]:
    """Names of the backends that support a precision."""
    return [name for name in names() if precision in find_backend(name).precisions]


def run(args: argparse.Namespace) -> None:
    motions = named_folders(args.motion)
    given = args.sd is not None or args.sdxl is not None or bool(motions)
    backend = find_backend(args.backend)
    if backend.build and not backend.build.from_checkpoints and not given:
        _print_engines(_compiled(backend, args, None), args.json)
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
    if args.precision not in backend.precisions:
        log.warning(
            "%s does not run %s: compile it with --backend %s",
            backend.title,
            args.precision,
            one_of([name for name in _that_run(args.precision) if find_backend(name).build]),
        )
    engines = _compiled(backend, args, options)
    if args.json and not engines:
        print_report(report, as_json=True)
    elif engines:
        _print_engines(engines, args.json, asdict(report))


def _compiled(
    backend: Backend, args: argparse.Namespace, options: "BuildOptions | None"
) -> "list[CompiledEngine]":
    """Compile the bundle's networks. options: of its build, if checkpoints are given."""
    from lamp_trt.engine.bundle.reader import Bundle

    if backend.build is None:
        return []
    request = BuildRequest(
        Bundle.open(args.out),
        engine_dir=args.engine_dir,
        device=args.device,
        networks=tuple(args.only),
        checkpoints=options,
        flags={flag.name: getattr(args, flag.name) for flag in backend.build.flags},
    )
    return backend.build(request)


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
