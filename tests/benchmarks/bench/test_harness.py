# SPDX-License-Identifier: Apache-2.0
"""How `lamp-trt bench` measures and judges, with a clock that tests set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from lamp_trt.benchmarks.bench.compare import RULER, Change, SlowerError, compare, require_not_slower
from lamp_trt.benchmarks.bench.harness import (
    FEW_SAMPLES,
    MAX_SAMPLES,
    MIN_SAMPLES,
    Entry,
    Harvest,
    Sample,
    run_entries,
)
from lamp_trt.benchmarks.bench.measurement import Measurement, median_error, sigma
from lamp_trt.engine.errors import EngineError


class Machine:
    """A clock that moves only when work is done. Work takes what its function returns, times the noise."""

    def __init__(self, noise: Callable[[], float] = lambda: 1.0) -> None:
        self.time, self.noise = 0.0, noise
        self.order: list[str] = []

    def now(self) -> float:
        return self.time

    def pause(self, seconds: float) -> None:
        self.time += seconds

    def sample(self, function: Callable[[], Any]) -> tuple[Sample, Any]:
        output = function()
        seconds = output["seconds"] * self.noise()
        self.time += seconds
        return Sample(seconds, 2 * seconds), output

    def entry(self, name: str, seconds: float, **fields: Any) -> Entry:
        @contextmanager
        def setup() -> Iterator[Callable[[], Any]]:
            self.order.append(f"+{name}")
            self.time += 1.0
            yield lambda: {"seconds": seconds, "values": np.array([1.0, 2.0])}
            self.order.append(f"-{name}")

        return Entry(name=name, setup=setup, **{"group": "networks", "backend": "test", **fields})


def row(samples: list[float], name: str = "x", **fields: Any) -> Measurement:
    plain = {"group": "networks", "cold_s": 1.0, "setup_s": 0.0, "settled": True}
    return Measurement(name=name, backend="test", samples_s=tuple(samples), **{**plain, **fields})


def test_statistics_are_those_of_the_samples() -> None:
    m = row([float(k) for k in range(1, 102)])
    assert (m.median_s, m.percentile_s(10), m.percentile_s(90), m.percentile_s(99)) == (51, 11, 91, 100)
    normal = row(list(np.random.default_rng(0).normal(10, 2, 5000)))
    assert sigma(normal.samples_s) == pytest.approx(2, rel=0.05)
    medians = [np.median(np.random.default_rng(seed).normal(10, 2, 101)) for seed in range(300)]
    assert median_error(normal.samples_s[:101]) == pytest.approx(np.std(medians), rel=0.25)


def test_a_quiet_entry_is_measured_the_least_number_of_times() -> None:
    machine = Machine()
    (m,) = run_entries([machine.entry("x", 0.5)], 60, machine).measurements
    assert (len(m.samples_s), m.median_s, m.cold_s, m.setup_s, m.process_s) == (
        MIN_SAMPLES,
        0.5,
        0.5,
        1.0,
        1.0,
    )
    assert m.settled


def test_a_noisy_entry_is_measured_until_its_median_settles() -> None:
    rng = np.random.default_rng(1)
    machine = Machine(lambda: rng.normal(1, 0.05))
    (m,) = run_entries([machine.entry("x", 0.05)], 600, machine).measurements
    assert m.settled
    assert MIN_SAMPLES < len(m.samples_s) < MAX_SAMPLES
    assert m.median_s == pytest.approx(0.05, rel=0.03)


def test_entries_take_turns_and_the_budget_ends_them() -> None:
    rng = np.random.default_rng(2)
    machine = Machine(lambda: rng.uniform(0.5, 1.5))
    entries = [machine.entry("long", 2.0), machine.entry("short", 0.2)]
    long, short = run_entries(entries, 30, machine).measurements
    assert machine.time == pytest.approx(30, abs=3)
    assert not long.settled
    assert abs(len(long.samples_s) - len(short.samples_s)) <= 4
    assert machine.order == ["+long", "+short", "-short", "-long"]


def test_a_call_that_would_end_after_the_budget_is_not_begun() -> None:
    machine = Machine()
    (m,) = run_entries([machine.entry("x", 1.0)], 6.5, machine).measurements
    assert len(m.samples_s) == 4  # after a second of set-up and a cold call
    assert machine.time == pytest.approx(6, abs=0.1)


def test_what_the_budget_does_not_reach_is_named() -> None:
    machine = Machine()
    harvest = run_entries([machine.entry("a", 5.0), machine.entry("b", 5.0)], 4, machine)
    assert [m.name for m in harvest.measurements] == ["a"]
    assert harvest.not_measured == ["b (test): the budget ended before it"]


def test_a_compiler_extends_the_budget() -> None:
    machine = Machine()

    @contextmanager
    def compiling() -> Iterator[Callable[[], Any]]:
        machine.time += 500
        yield lambda: {"seconds": 0.1}

    compiled = Entry(name="c", group="peers", backend="test", setup=compiling, unbudgeted=True)
    harvest = run_entries([machine.entry("a", 0.1), compiled, machine.entry("b", 0.1)], 10, machine)
    assert [(m.name, len(m.samples_s)) for m in harvest.measurements] == [(n, MIN_SAMPLES) for n in "acb"]
    assert harvest.extra_s == pytest.approx(500.2)


def test_dear_entries_are_measured_few_times() -> None:
    machine = Machine()
    (m,) = run_entries([machine.entry("x", 1.0, few=True)], 600, machine).measurements
    assert len(m.samples_s) == FEW_SAMPLES


def test_entries_that_do_not_fit_together_are_set_up_one_after_another() -> None:
    machine = Machine()
    entries = [machine.entry(name, 0.1, held_bytes=6) for name in ("a", "b")]
    run_entries(entries, 60, machine, memory_limit=10)
    assert machine.order == ["+a", "-a", "+b", "-b"]


def test_an_entry_that_cannot_be_set_up_leaves_the_others_alone() -> None:
    machine = Machine()

    @contextmanager
    def setup() -> Iterator[Callable[[], Any]]:
        raise EngineError("no engine here")
        yield

    broken = Entry(name="broken", group="networks", backend="test", setup=setup)
    harvest = run_entries([broken, machine.entry("x", 0.1)], 60, machine)
    assert harvest.not_measured == ["broken (test): no engine here"]
    assert [m.name for m in harvest.measurements] == ["x"]


def test_outputs_are_compared_with_the_reference() -> None:
    machine = Machine()
    expected = {"values": np.array([1.0, 2.2])}
    entry = machine.entry("x", 0.1, reference=lambda: expected, reference_name="NumPy")
    (m,) = run_entries([entry], 60, machine).measurements
    assert m.rel_l2 == pytest.approx(0.2 / np.hypot(1, 2.2))
    assert m.reference == "NumPy"


def test_work_that_times_itself_is_believed() -> None:
    machine = Machine()

    @contextmanager
    def setup() -> Iterator[Callable[[], Any]]:
        yield lambda: Own(0.25)

    class Own(float):
        def __getitem__(self, key: str) -> float:
            return 9.0

    entry = Entry(name="x", group="start", backend="test", setup=setup, clock="own")
    (m,) = run_entries([entry], 600, machine).measurements
    assert m.median_s == m.cold_s == 0.25
    assert m.process_s is None


# --- comparison over many draws of noise -----------------------------------------------------------------


def normal(rng: np.random.Generator) -> float:
    return float(rng.normal(1, 0.03))


def skewed(rng: np.random.Generator) -> float:
    """Most calls alike, some much slower: a shared machine."""
    return float(1 + rng.exponential(0.02) + (rng.random() < 0.08) * rng.exponential(1.0))


NOISES = {"normal": normal, "skewed": skewed}
DRAWS = 60

Noise = Callable[[np.random.Generator], float]


def measured(seed: int, noise: Noise, slowed: float, speed: float) -> Harvest:
    """A run of a machine of that speed, on which the entry "watched" is `slowed` times as slow."""
    rng = np.random.default_rng(seed)
    machine = Machine(lambda: noise(rng) / speed)
    entries = [
        machine.entry(RULER, 0.03, group="ceilings"),
        machine.entry("watched", 0.1 * slowed),
        machine.entry("other", 0.02),
    ]
    return run_entries(entries, 30, machine)


def verdicts(noise: Noise, slowed: float, speed: float = 1.0) -> dict[str, list[str]]:
    """Of every draw, by entry."""
    found: dict[str, list[str]] = {"watched": [], "other": []}
    for seed in range(DRAWS):
        old, new = measured(2 * seed, noise, 1.0, 1.0), measured(2 * seed + 1, noise, slowed, speed)
        for change in compare(old.measurements, new.measurements):
            found[change.name].append(change.verdict)
    return found


@pytest.mark.parametrize("noise", NOISES)
def test_unchanged_functions_are_not_flagged(noise: str) -> None:
    found = verdicts(NOISES[noise], slowed=1.0)
    assert found == {"watched": ["same"] * DRAWS, "other": ["same"] * DRAWS}


@pytest.mark.parametrize(("noise", "slowed"), [("normal", 1.2), ("skewed", 1.35)])
def test_a_slowed_function_is_flagged_and_no_other(noise: str, slowed: float) -> None:
    found = verdicts(NOISES[noise], slowed)
    assert found["watched"].count("slower") >= 0.98 * DRAWS
    assert found["other"] == ["same"] * DRAWS


def test_a_faster_function_is_called_faster() -> None:
    assert verdicts(normal, 0.75)["watched"].count("faster") >= 0.98 * DRAWS


@pytest.mark.parametrize("speed", [0.8, 1.25])
def test_another_speed_of_the_machine_flags_nothing(speed: float) -> None:
    found = verdicts(normal, slowed=1.0, speed=speed)
    assert found == {"watched": ["same"] * DRAWS, "other": ["same"] * DRAWS}


def test_a_function_slower_than_the_slower_machine_is_flagged() -> None:
    assert verdicts(normal, slowed=1.5, speed=0.9)["watched"].count("slower") >= 0.98 * DRAWS


def test_few_samples_get_no_verdict() -> None:
    (change,) = compare([row([1.0] * 4)], [row([9.0] * 20)])
    assert (change.verdict, change.ratio) == ("too few samples", 9.0)


def test_rows_that_only_one_side_has_are_left_out() -> None:
    assert compare([row([1.0] * 9, "a")], [row([1.0] * 9, "b")]) == []


def test_the_worst_change_is_named() -> None:
    changes = [
        Change("a", "onnxruntime", 1.0, 1.5, 0.05, "slower"),
        Change("b", "onnxruntime", 1.0, 2.0, 0.1, "slower"),
        Change("c", "onnxruntime", 1.0, 1.0, 0.1, "same"),
    ]
    with pytest.raises(SlowerError, match=r"2 of 3 rows are slower .* most b \(onnxruntime\).*100 % more"):
        require_not_slower(changes)
    require_not_slower(changes[2:])
