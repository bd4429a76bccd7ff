# SPDX-License-Identifier: Apache-2.0
r"""Writes the plan: scripts, plan.json, wheels.txt. Downloads nothing, unless --fetch is given.

    python -m lamp_trt.benchmarks.proof plan --minutes 30 --call-minutes 10 --max-files 8 --max-file-mib 16 \
        --out DIR

DIR/1.sh, 2.sh, … are run one after another in the root of the tree on a machine with one GPU, no network and
nothing of ours; each ends within --call-minutes. What has to come back lies in $OUT.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lamp_trt.benchmarks.proof.commands.session import on_gpus
from lamp_trt.benchmarks.proof.names import UNKNOWN
from lamp_trt.benchmarks.proof.plan import wheels
from lamp_trt.benchmarks.proof.plan.schedule import DETACHED, KILL_AFTER_S, WAIT, Call, Schedule, schedule
from lamp_trt.benchmarks.proof.plan.scripts import ScriptOptions, command_of, script
from lamp_trt.benchmarks.proof.results.candidate_rows import NOT_MEASURED
from lamp_trt.engine.errors import InputError
from lamp_trt.export.candidates.registry import CANDIDATES, SETTINGS

ROOT = Path(__file__).resolve().parents[3]


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        print(write_plan(options))
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def write_plan(options: argparse.Namespace) -> str:
    """A summary of what was written."""
    for name in ("max_files", "max_file_mib"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(options, name)}; give at least 1.")
    made = schedule(options.minutes, options.call_minutes)
    shared = ScriptOptions(
        calls=len(made.calls),
        call_seconds=int(60 * options.call_minutes),
        prepare_seconds=int(60 * options.minutes),
        backends=tuple(options.backend or ["aotinductor"]),
        max_files=options.max_files,
        max_file_mib=options.max_file_mib,
        commit=_git("rev-parse", "HEAD") or UNKNOWN,
    )
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("[0-9]*.sh"):
        old.unlink()
    for call in made.calls:
        path = out / f"{call.number}.sh"
        path.write_text(script(call, shared))
        path.chmod(0o755)
    wheels.write_list(out / "wheels.txt")
    if options.fetch:
        wheels.fetch(out / "wheels")
    carried: dict[str, int | None] = {
        "tree": _tree_bytes(),
        "wheels": sum(wheel.size_bytes for wheel in wheels.WHEELS),
    }
    plan = described(made, shared, carried)
    (out / "plan.json").write_text(json.dumps(plan, indent=1) + "\n")
    return _summary(made, shared, carried)


def described(made: Schedule, options: ScriptOptions, carried: Mapping[str, int | None]) -> dict[str, Any]:
    """plan.json: what runs in which call and for how long, and what comes back."""
    return {
        "schema_version": 1,
        "commit": options.commit,
        "calls": [_call(call, options) for call in made.calls],
        "detached": {"part": "prepare", "subjects": list(DETACHED), "limit_s": options.prepare_seconds},
        "left_out": list(made.left_out),
        "candidates": [
            {"form": title, "replaces": replaces, "result": NOT_MEASURED} for title, replaces in _candidates()
        ],
        "outputs": {
            "files": ["report.html", "report.md", "results.json", "logs.tar.gz", "engines.tar.N"],
            "max_files": options.max_files,
            "max_file_bytes": options.max_file_mib << 20,
        },
        "wheels": [asdict(wheel) for wheel in wheels.WHEELS],
        "carried_bytes": carried,
    }


def _candidates() -> list[tuple[str, str]]:
    """Title of each layer form and setting, and what it replaces."""
    settings = [(setting.title(True), setting.replaces) for setting in SETTINGS]
    return [(form.title, form.replaces) for form in CANDIDATES] + settings


def _call(call: Call, options: ScriptOptions) -> dict[str, Any]:
    return {
        "script": f"{call.number}.sh",
        "limit_s": options.call_seconds,
        "sum_s": call.sum_s,
        "parts": [
            {
                "part": step.part,
                "limit_s": step.limit_s,
                "kill_after_s": KILL_AFTER_S,
                "command": command_of(step, options),
                "output": None if step.part == WAIT else f"results/{step.part}-proof-<gpu>.json",
            }
            for step in call.steps
        ],
    }


def _summary(made: Schedule, options: ScriptOptions, carried: Mapping[str, int | None]) -> str:
    lines = [
        f"{call.number}.sh, {call.sum_s} of {options.call_seconds} s: "
        + ", ".join(f"{step.part} {step.limit_s} s" for step in call.steps)
        for call in made.calls
    ]
    if made.left_out:
        lines.append(f"no time for {', '.join(made.left_out)}")
    sizes = ", ".join(
        f"{name} {'of unknown size (no git clone)' if size is None else f'{size / 1e6:.1f} MB'}"
        for name, size in carried.items()
    )
    return "\n".join([*lines, f"to carry: {sizes}"])


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _tree_bytes() -> int | None:
    """Of the files that git knows; None without git or outside a clone."""
    names = _git("ls-files")
    if not names:
        return None
    return sum((ROOT / name).stat().st_size for name in names.splitlines() if (ROOT / name).is_file())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lamp_trt.benchmarks.proof plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30, help="of the machine, in all (default: 30)")
    parser.add_argument("--call-minutes", type=float, default=10, help="of one command (default: 10)")
    parser.add_argument("--max-files", type=int, default=8, help="that come back (default: 8)")
    parser.add_argument("--max-file-mib", type=int, default=16, help="size of one of them (default: 16)")
    parser.add_argument(
        "--backend", action="append", choices=on_gpus(), help="may be repeated; default: aotinductor"
    )
    parser.add_argument("--fetch", action="store_true", help="download the wheels into DIR/wheels")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    return parser
