# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt motion add|list|remove`: manage the motions of a bundle."""

import argparse
import json

from lamp_trt.commands.shared import HelpFormatter, file_path, mb, named_folders, print_report

DESCRIPTION = "Add, list or remove the motions of a bundle."


def add_actions(parser: argparse.ArgumentParser, parents: list[argparse.ArgumentParser]) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run, about in (
        ("add", add, "Add a LAMP checkpoint as a motion."),
        ("list", list_motions, "List the motions."),
        ("remove", remove, "Remove a motion."),
    ):
        action = actions.add_parser(
            name, help=about, description=about, parents=parents, formatter_class=HelpFormatter
        )
        action.add_argument("bundle", type=file_path, help="the bundle's folder")
        action.set_defaults(run=run)
        if name == "add":
            action.add_argument("motion", help="its name, and the LAMP checkpoint", metavar="NAME=DIR")
        if name == "remove":
            action.add_argument("name", help="of the motion")
            action.add_argument("--default", help="the default motion from now on", metavar="NAME")


def add(args: argparse.Namespace) -> None:
    from lamp_trt.export.motions import add_motion

    motions = named_folders([args.motion])
    (name, folder), *_ = motions.items()
    print_report(add_motion(args.bundle, name, folder), args.json)


def list_motions(args: argparse.Namespace) -> None:
    from lamp_trt.engine.bundle.reader import Bundle

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
        print(f"{name:24} {mb(sizes[name]):>10}  {motion.kind}{default}")


def remove(args: argparse.Namespace) -> None:
    from lamp_trt.export.motions import remove_motion

    digest = remove_motion(args.bundle, args.name, args.default)
    print(json.dumps({"removed": args.name, "bundle": digest}) if args.json else f"removed {args.name}")
