# SPDX-License-Identifier: Apache-2.0
"""Python and the packages that lamp-trt requires, each compared with the supported versions.

The requirements are read from lamp-trt's metadata, that is from pyproject.toml.
"""

import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from lamp_trt._version import __version__
from lamp_trt.doctor.findings import Finding
from lamp_trt.engine.backends.backend import Backend
from lamp_trt.engine.backends.probe import Purpose, Status
from lamp_trt.engine.backends.registry import backends

_SECTION = "packages"

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?([^;]*)(?:;\s*extra == \"([^\"]+)\")?")


def extras() -> dict[str, tuple[str, tuple[Purpose, ...]]]:
    """Extra → (its description, purposes that cannot work without it). A package of several belongs to the
    first."""
    fixed: dict[str, tuple[str, tuple[Purpose, ...]]] = {
        "": ("needed by everything", ("build", "generate")),
        "export": ("for build, motion add, verify and toy", ("build",)),
    }
    of_backends = [extra for backend in backends() for extra in backend.extras]
    return fixed | {e.name: (e.purpose, ("generate",) if e.required else ()) for e in of_backends}


def package_findings() -> list[Finding]:
    """Findings on Python, lamp-trt, all packages that it can use, and conflicting wheels."""
    found = [
        Finding(_SECTION, "lamp-trt", "ok", __version__),
        Finding(_SECTION, "Python", "ok", f"{platform.python_version()} ({sys.executable})"),
    ]
    try:
        requirements = requires("lamp-trt") or []
    except PackageNotFoundError:
        remedy = "pip install '.[export,cpu]' in a clone"
        detail = "is not installed as a package, so its requirements are unknown"
        return [*found, Finding(_SECTION, "requirements", "problem", detail, remedy, ("build", "generate"))]
    seen: set[str] = set()
    by_extra: dict[str, list[tuple[str, str]]] = {extra: [] for extra in extras()}
    for requirement in requirements:
        match = _REQUIREMENT.fullmatch(requirement)
        assert match is not None, requirement
        name, specifier, extra = match[1], match[2], match[3] or ""
        if extra in by_extra:
            by_extra[extra].append((name, specifier))
    for extra, packages in by_extra.items():
        for name, specifier in packages:
            if name not in seen:
                seen.add(name)
                found.append(_package_finding(name, specifier, extra))
    return [*found, *_conflict_findings()]


def installed(name: str) -> str | None:
    """The version of a package, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def wheels_of(backend: Backend) -> list[str]:
    """The installed packages of a backend."""
    return [name for name in backend.packages if installed(name)]


def _package_finding(name: str, specifier: str, extra: str) -> Finding:
    purpose, blocks = extras()[extra]
    remedy = f"pip install 'lamp-trt[{extra}]'" if extra else "pip install lamp-trt"
    have = installed(name)
    if have is None:
        instead = [wheel for b in backends() if b.exclusive and name in b.packages for wheel in wheels_of(b)]
        if blocks and instead:
            return Finding(_SECTION, name, "note", f"not installed, {instead[0]} is")
        status: Status = "problem" if blocks else "note"
        return Finding(_SECTION, name, status, f"not installed; {purpose}", remedy, blocks)
    if not _allowed(have, specifier):
        return Finding(
            _SECTION, name, "problem", f"{have}, wanted {specifier.strip()}; {purpose}", f"{remedy} --upgrade"
        )
    return Finding(_SECTION, name, "ok", have)


def _conflict_findings() -> list[Finding]:
    return [
        _conflict(backend, wheels_of(backend))
        for backend in backends()
        if backend.exclusive and len(wheels_of(backend)) > 1
    ]


def _conflict(backend: Backend, both: list[str]) -> Finding:
    detail = f"{' and '.join(both)} are installed over each other; it is undefined which one runs"
    one = " or ".join(f"'lamp-trt[{extra.name}]'" for extra in backend.extras)
    remedy = f"pip uninstall -y {' '.join(both)}, then install one: {one}"
    return Finding(_SECTION, "conflict", "problem", detail, remedy)


def _allowed(have: str, specifier: str) -> bool:
    """Whether version `have` satisfies ">=a,<b", the only kinds of bounds in pyproject.toml."""
    for bound in filter(None, (part.strip() for part in specifier.split(","))):
        operator, limit = re.fullmatch(r"(>=|<)\s*(.+)", bound).groups()  # type: ignore[union-attr]
        newer = _numbers(have) >= _numbers(limit)
        if newer is (operator == "<"):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """The release of a version: 2.13.0+cpu is (2, 13, 0)."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in release[0].split(".")) if release else ()
