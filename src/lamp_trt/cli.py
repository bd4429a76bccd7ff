# SPDX-License-Identifier: Apache-2.0
"""The `lamp-trt` command. Its sub-commands are the modules of commands/.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 done, 1 failed (also where results could
not be written to stdout), 2 bad usage or input, 130 interrupted.
"""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence

from lamp_trt._version import __version__
from lamp_trt.commands import (
    bench,
    build,
    doctor,
    edit,
    export_triton,
    generate,
    image,
    inspect,
    motion,
    serve,
    toy,
    verify,
)
from lamp_trt.commands.shared import HelpFormatter
from lamp_trt.engine.backends.registry import backends
from lamp_trt.engine.errors import MACHINE_ERRORS, LampError
from lamp_trt.streams import safe_streams

log = logging.getLogger("lamp_trt")

INTERRUPTED = 130

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""Environment of the command, set before dependencies are imported, so that they do not access the network.
The library, `import lamp_trt`, does not change these variables."""
_EXPORT = ("torch", "diffusers", "transformers", "accelerate", "onnxscript", "onnx_ir")
"""Modules that the extra `export` installs."""
_SERVE = ("fastapi", "starlette", "uvicorn", "python_multipart")
"""Modules that the extra `serve` installs."""


def main(argv: Sequence[str] | None = None) -> int:
    os.environ.update(OFFLINE)
    with safe_streams() as (out, _):
        try:
            code = _run(argv)
        except SystemExit as stop:  # argparse: after --help and --version, or for a bad command line
            if stop.code:
                raise
            code = 0
        out.flush()
        if out.lost:
            reason = getattr(out.lost, "strerror", None) or out.lost
            print(f"lamp-trt: the results could not be written to stdout: {reason}", file=sys.stderr)
            code = code or 1
    return code


def _run(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    _log_to_stderr(logging.DEBUG if args.verbose else logging.WARNING if args.quiet else logging.INFO)
    run: Callable[[argparse.Namespace], None] = args.run
    try:
        run(args)
    except LampError as error:
        print(f"lamp-trt {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        extra = _extras().get(error.name or "")
        if extra is None:
            raise
        print(
            f"lamp-trt {args.command}: this needs {error.name}, which is not installed. "
            f"Install it: pip install 'lamp-trt[{extra}]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"lamp-trt {args.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno not in (*MACHINE_ERRORS, errno.EACCES, errno.EPERM):
            raise
        where = f" {str(error.filename)!r}" if error.filename else ""
        print(
            f"lamp-trt {args.command}: the system refused a file{where}: {error.strerror}.", file=sys.stderr
        )
        return 1 if error.errno in MACHINE_ERRORS else 2
    return 0


def _extras() -> dict[str, str]:
    """Optional module → the pip extra that installs it."""
    brought = {m: extra.name for backend in backends() for extra in backend.extras for m in extra.modules}
    return {**brought, **dict.fromkeys(_EXPORT, "export"), **dict.fromkeys(_SERVE, "serve"), "ray": "ray"}


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="more messages on stderr")
    common.add_argument("-q", "--quiet", action="store_true", help="only warnings on stderr")
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print the result as JSON")
    parents = [common, as_json]

    parser = argparse.ArgumentParser(
        prog="lamp-trt", description="Build LAMP bundles and make videos from them."
    )
    parser.add_argument("--version", action="version", version=f"lamp-trt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (build, generate, edit, image, serve, export_triton, inspect, verify, bench, doctor, toy):
        sub = commands.add_parser(
            module.__name__.rpartition(".")[2].replace("_", "-"),
            help=module.DESCRIPTION,
            description=module.DESCRIPTION,
            parents=parents,
            formatter_class=HelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    sub = commands.add_parser("motion", help=motion.DESCRIPTION, description=motion.DESCRIPTION)
    motion.add_actions(sub, parents)
    return parser


class _ToStderr(logging.Handler):
    """Log handler that writes to the current sys.stderr, as `print` does."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _log_to_stderr(level: int) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_ToStderr()], force=True)
    log.setLevel(level)
