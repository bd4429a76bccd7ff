# SPDX-License-Identifier: Apache-2.0
"""Write the lock (constraints.txt, requirements-*.txt) from pyproject.toml and PyPI.

    make lock                       # keep the pins that still fit
    make lock LOCK=--upgrade        # take the newest versions
    make lock LOCK="-P onnxruntime" # take the newest version of one package

Every file holds for CPython 3.11 to 3.14 on x86_64 and aarch64. torch is pinned by install/torch-cpu.toml.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TORCH = tomllib.loads((ROOT / "install" / "torch-cpu.toml").read_text())
INDEX = "https://pypi.org/simple"
EXTRAS = "export,cpu,openvino,serve,dev,rtx"
"""The extras that `make demo` and `make test` install."""

CONSTRAINTS = """\
# Versions that were tested together, of all extras: pip install -c constraints.txt '.[export,cpu]'
# For CPython 3.11 to 3.14 on Linux, x86_64 and aarch64. Made by `make lock`.
"""
REQUIREMENTS = """\
# Every package of '.[{extras}]' and of its build, with the digests of its files; torch {torch}.
# For CPython 3.11 to 3.14 on Linux, x86_64 and aarch64. Made by `make lock`, installed by `make install`:
#   pip install --require-hashes --no-deps {index}-r {name}
#   pip install --no-deps --no-build-isolation -e .
"""


def compile_lock(arguments: list[str], text: str) -> str:
    """The output of `uv pip compile` for the build requirements and `text`; ignores uv's configuration."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "wanted.in")
        wanted.write_text("\n".join([*PYPROJECT["build-system"]["requires"], text]))
        command = [sys.executable, "-m", "uv", "pip", "compile", "--universal", "--python-version", "3.11"]
        command += ["--quiet", "--no-config", "--no-header", "--no-annotate", "--default-index", INDEX]
        done = subprocess.run(
            [*command, *arguments, str(ROOT / "pyproject.toml"), str(wanted)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return done.stdout


def cpu_torch_config(folder: Path) -> Path:
    """A uv.toml that gives torch the dependencies of its CPU build."""
    path = folder / "uv.toml"
    requires = ", ".join(f'"{item}"' for item in TORCH["requires-dist"])
    path.write_text(
        f'dependency-metadata = [{{ name = "torch", version = "{TORCH["version"]}", '
        f'requires-python = ">=3.10", requires-dist = [{requires}] }}]\n'
    )
    return path


def with_cpu_digests(text: str) -> str:
    """Replace PyPI's torch and its digests by the CPU build and its own."""
    digests = [f"    --hash=sha256:{digest}" for digest in sorted(TORCH["sha256"].values())]
    torch = " \\\n".join([f"torch=={TORCH['version']}+cpu", *digests])
    replaced, count = re.subn(r"^torch==.*(\n    --hash.*)+", lambda _: torch, text, flags=re.MULTILINE)
    if count != 1:
        raise SystemExit("uv's output has no torch with digests")
    return replaced


def main() -> None:
    pin = f"torch=={TORCH['version']}\n"
    extras = [f"--extra={name}" for name in PYPROJECT["project"]["optional-dependencies"]]
    constraints = ROOT / "constraints.txt"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = folder / "kept.txt"  # uv prefers the versions that its output file has
        kept.write_text(constraints.read_text())
        compile_lock([*extras, "-o", str(kept), *sys.argv[1:]], pin)
        constraints.write_text(CONSTRAINTS + kept.read_text())
        ours = [f"--extra={extra}" for extra in EXTRAS.split(",")]
        hashed = [*ours, "--generate-hashes", "-c", str(constraints)]
        pypi = compile_lock(hashed, pin)
        config = cpu_torch_config(folder)
        cpu = with_cpu_digests(compile_lock([*hashed, "--config-file", str(config)], pin))
    for file, build, index, text in (
        ("requirements-pypi.txt", "as on PyPI, with CUDA", "", pypi),
        (
            "requirements-ci.txt",
            "in its CPU build",
            "--extra-index-url https://download.pytorch.org/whl/cpu ",
            cpu,
        ),
    ):
        header = REQUIREMENTS.format(extras=EXTRAS, torch=build, index=index, name=file)
        (ROOT / file).write_text(header + text)


if __name__ == "__main__":
    main()
