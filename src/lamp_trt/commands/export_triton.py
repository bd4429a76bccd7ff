# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt export-triton`: write a model repository for NVIDIA Triton Inference Server."""

import argparse

from lamp_trt.commands.flags import add_settings, file_path
from lamp_trt.commands.serve import add_model, model_info
from lamp_trt.commands.shared import add_engines, placement
from lamp_trt.runtime.algorithm.config import settings_of

DESCRIPTION = "Write a Triton model repository that makes videos of a bundle; see docs/serving.md."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from lamp_trt.serving.settings import ServeSettings

    parser.add_argument(
        "bundle", type=file_path, help="the bundle's folder; it is not copied", metavar="BUNDLE"
    )
    parser.add_argument("repository", type=file_path, help="the repository's folder", metavar="REPO")
    parser.add_argument(
        "--expect-bundle", help="refuse any bundle but this, as `inspect` shows it", metavar="SHA256"
    )
    add_engines(parser, residence=True)
    parser.add_argument(
        "--engines", type=int, help="instances on the CPU; default: one. On GPUs there is one for each"
    )
    add_settings(parser, [each for each in settings_of(ServeSettings) if each.name == "max_queued"])
    add_model(parser)


def run(args: argparse.Namespace) -> None:
    from lamp_trt.engine.bundle.reader import Bundle
    from lamp_trt.serving.pools.registry import engine_settings
    from lamp_trt.serving.triton.repository import config_text, write_repository

    bundle = Bundle.open(args.bundle, expect_digest=args.expect_bundle)
    model = model_info(bundle, args.model_name, args.safety)
    asked = placement(args)
    config = config_text(model.name, asked.device, args.engines, args.max_queued)
    print(write_repository(args.repository, model, engine_settings(bundle, asked, asked.device), config))
