# SPDX-License-Identifier: Apache-2.0
"""What the hardening tests share: how much of each is done, a guard against hangs, figures at the end.

`make test` runs tests/test_hardening_*.py with few examples. `make torture` gives --torture-minutes: then
these take many more, tests/torture is collected too, and the terminal summary says what was survived.
"""

import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, settings

HANG_SECONDS = 30
"""No input may keep a parser busy for longer. On an idle machine it is 2; this one may be loaded."""

figures: dict[str, float] = {}
"""What was counted, by what it is; names that begin with "slowest" or "largest" keep the maximum."""

Tally = Callable[[str, float], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--torture-minutes",
        type=float,
        default=0,
        help="run tests/torture too, and about this long with everything marked torture; 0: not at all",
    )


def pytest_configure(config: pytest.Config) -> None:
    torture = config.getoption("--torture-minutes") > 0
    settings.register_profile(
        "hardening",
        max_examples=3000 if torture else 60,
        derandomize=not torture,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path.name == "torture" and not config.getoption("--torture-minutes"):
        return True
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if figures and config.getoption("--torture-minutes"):
        terminalreporter.section("torture")
        for name, value in figures.items():
            terminalreporter.write_line(f"{value:12,.6g}  {name}")


@pytest.fixture
def tally() -> Tally:
    """tally("crashes survived", 1) adds to a figure of the summary."""

    def add(name: str, value: float) -> None:
        if name.startswith(("slowest", "largest")):
            figures[name] = max(figures.get(name, value), value)
        else:
            figures[name] = figures.get(name, 0) + value

    return add


@dataclass(frozen=True)
class Budget:
    """How long the tests of tests/torture may take together."""

    seconds: float

    def rounds(self, wanted: int, share: float) -> Iterator[int]:
        """0, 1, … up to `wanted`, ending early when `share` of the budget is used; at least one."""
        end = time.monotonic() + share * self.seconds
        for number in range(wanted):
            yield number
            if time.monotonic() > end:
                return


@pytest.fixture
def budget(request: pytest.FixtureRequest) -> Budget:
    return Budget(60 * request.config.getoption("--torture-minutes"))


@contextmanager
def no_hang(seconds: int = HANG_SECONDS) -> Generator[None]:
    """TimeoutError in the block if it takes longer: a hang becomes a failure with a traceback."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still busy after {seconds} s")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
