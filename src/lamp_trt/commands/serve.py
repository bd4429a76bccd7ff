# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt serve`: an HTTP server that makes videos of a bundle."""

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from lamp_trt.commands.flags import add_settings, file_path, given
from lamp_trt.commands.shared import add_placement, add_verify_files, placement
from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import Safety, settings_of

if TYPE_CHECKING:
    from lamp_trt.engine.bundle.reader import Bundle
    from lamp_trt.serving.pools.pool import Pool
    from lamp_trt.serving.settings import ModelInfo

DESCRIPTION = "Serve a bundle over HTTP: a queue, engines, and the API of docs/serving.md."

MAX_ENGINES = 64
POOLS = ("local", "ray")

log = logging.getLogger("lamp_trt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from lamp_trt.serving.pools.restarts import HANG_SECONDS
    from lamp_trt.serving.settings import ServeSettings

    add_placement(parser, residence=True)
    add_verify_files(parser)
    add_settings(parser, settings_of(ServeSettings))
    parser.add_argument(
        "--engines", type=int, help="number of engine processes; default: one per GPU, one on the CPU"
    )
    _add_pool(parser)
    parser.add_argument(
        "--hang-timeout",
        type=float,
        help="seconds without a step after which an engine is killed and started again; default: "
        f"{HANG_SECONDS:g}",
        metavar="SECONDS",
    )
    parser.add_argument(
        "--token-file", type=file_path, help="a file with the token that clients must send", metavar="FILE"
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        help="a name by which clients may address the server, besides localhost and --host; may be repeated",
        metavar="NAME",
    )
    add_model(parser)
    parser.add_argument(
        "--no-safety-checker",
        action="store_const",
        dest="safety",
        const="off",
        help="the same as --safety off",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options of `model_info`."""
    parser.add_argument("--model-name", help="the API's model; default: the bundle's folder", metavar="NAME")
    parser.add_argument(
        "--safety",
        choices=get_args(Safety),
        help="flagged pictures; default: refuse. A bundle without a safety checker needs off",
    )


def _add_pool(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pool", choices=POOLS, default="local", help="local: processes of this machine; ray: Ray Serve"
    )
    parser.add_argument(
        "--ray-address",
        help="use the engines of a running Ray cluster, deployed from the file of --write-ray-config: auto "
        "on a node of the cluster; default: start Ray on this machine",
        metavar="ADDRESS",
    )
    parser.add_argument(
        "--write-ray-config",
        type=file_path,
        help="write the config of the engines for `serve deploy` or KubeRay, and do not serve",
        metavar="FILE",
    )


def run(args: argparse.Namespace) -> None:
    from lamp_trt.engine.bundle.reader import Bundle

    bundle = Bundle.open(
        args.bundle,
        verify="full" if args.verify_files else "stat",
        expect_digest=args.expect_bundle,
    )
    if args.write_ray_config is not None:
        _write_ray_config(args, bundle)
    else:
        _serve(args, bundle)


def _write_ray_config(args: argparse.Namespace, bundle: "Bundle") -> None:
    from lamp_trt.engine.files.output import write_text
    from lamp_trt.serving.pools.registry import ray_engines

    if args.ray_address is not None:
        raise InputError("--write-ray-config writes a file and --ray-address serves; give one of them.")
    asked = placement(args)
    wanted = devices(asked.device, args.engines)
    engines = ray_engines(bundle, asked, len(wanted), hang_seconds(args))
    write_text(args.write_ray_config, engines.file_text())
    print(args.write_ray_config)


def _pool(args: argparse.Namespace, bundle: "Bundle") -> "tuple[Pool, str]":
    """The pool, and which engines it has."""
    from lamp_trt.runtime.load import Place
    from lamp_trt.runtime.requests import Placement
    from lamp_trt.serving.pools.registry import local_pool, ray_engines, ray_pool

    asked = placement(args)
    if args.ray_address is not None:
        if args.pool != "ray":
            raise InputError("--ray-address needs --pool ray.")
        if asked != Placement() or args.engines is not None or args.hang_timeout is not None:
            raise InputError(
                "--ray-address takes the engines as they were deployed; give --engines, --hang-timeout and "
                "the options of their placement to --write-ray-config."
            )
        return ray_pool(bundle, None, args.ray_address), f"the engines of Ray at {args.ray_address}"
    Place.of(bundle, asked)  # refuses what no engine could use
    wanted = devices(asked.device, args.engines)
    if args.pool == "local":
        return local_pool(bundle, asked, wanted, hang_seconds(args)), f"{len(wanted)} engines"
    if asked.device == "cuda" and len(wanted) > max(gpu_count(), 1):
        raise InputError(f"engines is {len(wanted)}, but Ray gives each a GPU and there are {gpu_count()}.")
    engines = ray_engines(bundle, asked, len(wanted), hang_seconds(args))
    return ray_pool(bundle, engines, None), f"up to {len(wanted)} engines on Ray"


def _serve(args: argparse.Namespace, bundle: "Bundle") -> None:
    from lamp_trt.serving.settings import ServeSettings, read_token
    from lamp_trt.serving.web.server import serve

    settings = ServeSettings(
        **given(args, settings_of(ServeSettings)),
        token=None if args.token_file is None else read_token(args.token_file),
        allowed_hosts=tuple(args.allowed_host),
    )
    model = model_info(bundle, args.model_name, args.safety)
    pool, engines = _pool(args, bundle)
    if model.safety == "off":
        log.warning("no picture is checked: %s", _why_unchecked(model))

    def say(url: str) -> None:
        print(f"serving {model.name} at {url} with {engines}", flush=True)

    serve(settings, model, pool, say)


def model_info(bundle: "Bundle", name: str | None, safety: str | None) -> "ModelInfo":
    """What the server offers. Raises InputError for a bundle that cannot be served so."""
    from lamp_trt.engine.families import VIDEO_NETWORKS
    from lamp_trt.runtime.first_frame import missing_networks
    from lamp_trt.serving.settings import ModelInfo
    from lamp_trt.serving.web.page import examples_of

    manifest = bundle.manifest
    lacking = [network for network in VIDEO_NETWORKS if network not in manifest.networks]
    if lacking or manifest.default_motion is None:
        raise InputError(f"{bundle.path} cannot make videos; build it with --sd and --motion.")
    if manifest.safety is None and safety != "off":
        raise InputError(
            f"{bundle.path} has no safety checker, so nothing would be filtered. Build one in from a folder "
            "with safety_checker and feature_extractor, or serve without: --safety off."
        )
    sizes = manifest.sizes
    name = bundle.path.resolve().name if name is None else name
    if not name.isprintable() or not name:
        raise InputError(
            f"the model would be called {name!r:.100}, which is no text: give --model-name NAME."
        )
    return ModelInfo(
        name,
        tuple(manifest.motions),
        manifest.default_motion,
        (sizes["height"], sizes["width"]),
        sizes["num_frames"],
        safety or "refuse",
        manifest.safety is not None,
        not missing_networks(bundle),
        bundle.digest,
        examples_of(bundle.path, tuple(manifest.motions)),
    )


def _why_unchecked(model: "ModelInfo") -> str:
    return "--safety off" if model.has_checker else "the bundle has no safety checker"


def hang_seconds(args: argparse.Namespace) -> float:
    from lamp_trt.serving.pools.restarts import HANG_SECONDS

    return HANG_SECONDS if args.hang_timeout is None else float(args.hang_timeout)


def devices(device: str, engines: int | None) -> list[str]:
    """The device of each engine. "cuda" spreads engines over the GPUs; "cuda:N" puts all on one."""
    if engines is not None and not 1 <= engines <= MAX_ENGINES:
        raise InputError(f"engines is {engines}; expected 1 to {MAX_ENGINES}.")
    if device != "cuda":
        return [device] * (engines or 1)
    gpus = max(gpu_count(), 1)
    return [f"cuda:{index % gpus}" for index in range(engines or gpus)]


def gpu_count() -> int:
    """NVIDIA GPUs that CUDA would see, without loading it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() not in ("", "-1")])
    folder = Path("/proc/driver/nvidia/gpus")
    return len([*folder.iterdir()]) if folder.is_dir() else 0
