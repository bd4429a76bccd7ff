# SPDX-License-Identifier: Apache-2.0
"""latent_step, run on the CPU, against Algorithm 1 written out in float64."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.ddim import DDIMSchedule, ddim_schedule
from lamp_trt.runtime.algorithm.latents import apply_row, denoise_step, step_table
from lamp_trt.runtime.algorithm.noise import Purpose
from lamp_trt.runtime.kernels.arrays import DeviceArray
from lamp_trt.runtime.kernels.latent_loop import LoopArrays, begin_loop, latent_step
from lamp_trt.runtime.kernels.launch import NO_STEP
from tests.doubles.cpu_kernels import ON_GPU, Loop, Memory, RecordingLauncher, device, launcher, library
from tests.tolerances import KERNEL_CONSTANT_FRAME, KERNEL_LOOP_ATOL, KERNEL_STEP_ATOL

ADAIN_EPS = 1e-8


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def adain(content: np.ndarray, style: np.ndarray) -> np.ndarray:
    def statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        deviation = np.sqrt(x.var(axis=(-2, -1), ddof=1, keepdims=True) + ADAIN_EPS)
        return x.mean(axis=(-2, -1), keepdims=True), deviation

    (mean, std), (style_mean, style_std) = statistics(content), statistics(style)
    return (content - mean) / std * style_std + style_mean


def float64_step(
    x: np.ndarray,
    noise_pred: np.ndarray,
    i: int,
    schedule: DDIMSchedule,
    guidance: float,
    preset: str = "official",
    ablation: str = "schedule",
    early_steps: int | None = None,
) -> np.ndarray:
    """Step i of the pipeline as docs/algorithm.md states it, frame by frame. x (c, f, h, w); noise_pred
    (b, c, f, h, w); the final AdaIN included."""
    a, b = float(schedule.alpha_t[i]), float(schedule.alpha_prev[i])
    pred = noise_pred.astype(np.float64)
    e = pred[0] + guidance * (pred[-1] - pred[0]) if len(pred) == 2 else pred[0]
    y = x.astype(np.float64)
    clean = (y - (1 - a) ** 0.5 * e) / a**0.5
    y[:, 1:] = (b**0.5 * clean + (1 - b) ** 0.5 * e)[:, 1:]
    if early_steps is None:
        early_steps = 31 if preset == "official" else 29
    late = i >= early_steps or ablation == "first_frame"
    for f in range(1, y.shape[1]):
        snapshot = y.copy()
        if ablation == "none":
            continue
        if late:
            y[:, f] = adain(snapshot[:, f], snapshot[:, 0])
        if f > 1 and (preset == "official" or not late):
            y[:, f] = adain(snapshot[:, f], snapshot[:, 1])
    if i == len(schedule) - 1 and preset == "official" and ablation != "none":
        for f in range(1, y.shape[1]):
            y[:, f] = adain(y[:, f], y[:, 0])
    return y


def start(
    loop: Loop,
    n: int,
    launch: RecordingLauncher,
    *,
    guidance: float = 12.5,
    preset: Any = "official",
    ablation: Any = "schedule",
    early_steps: int | None = None,
    first_frame: np.ndarray | None = None,
) -> DDIMSchedule:
    """Fills the tables and begins a video of seed 0, whose frame 0 is `first_frame` (1, c, 1, h, w)."""
    schedule = ddim_schedule(n)
    loop.rows[:n] = step_table(
        schedule, guidance_scale=guidance, preset=preset, adain=ablation, adain_switch_step=early_steps
    )
    loop.time_table[:n] = schedule.timesteps[:, None] + np.arange(loop.time_table.shape[1])
    first = None if first_frame is None else device(first_frame)
    begin_loop(launch, loop.arrays, n, seed=0, purpose=Purpose.VIDEO, base_weight=0.2, first_frame=first)
    return schedule


def assert_close(got: np.ndarray, want: np.ndarray, share: float) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=share * np.abs(want).max())


def contrast(latents: np.ndarray) -> float:
    """By how much AdaIN amplifies a value's rounding: the largest ratio of values to their frame's deviation.
    Frames of a few pixels may be nearly constant."""
    return float((np.abs(latents).max(axis=(2, 3)) / latents.std(axis=(2, 3))).max())


@pytest.mark.parametrize("preset", ["official", "paper"])
@pytest.mark.parametrize("ablation", ["none", "first_frame", "schedule"])
@pytest.mark.parametrize("n", [1, 2, 31, 32, 50])
def test_a_whole_loop_matches_float64(memory: Memory, n: int, preset: str, ablation: str) -> None:
    loop, launch = Loop(memory, (2, 4, 4, 8, 6), np.float16), launcher(seed=n)
    schedule = start(loop, n, launch, preset=preset, ablation=ablation)
    want = loop.latents_before(0, n)[0].astype(np.float64)
    for i in range(n):
        loop.noise_pred[:] = normal(*loop.noise_pred.shape, seed=i)
        np.testing.assert_array_equal(loop.time_row[0], loop.time_table[i])
        latent_step(launch, loop.arrays)
        want = float64_step(want, loop.noise_pred, i, schedule, 12.5, preset, ablation)
        assert_close(loop.latents_before(i + 1, n)[0], want, KERNEL_LOOP_ATOL)
        assert loop.progress["steps_done"] == i + 1
    np.testing.assert_array_equal(loop.latents[0], loop.latents_before(n, n)[0])
    assert loop.progress["first_overflow"] == NO_STEP


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_final_latents_place_does_not_depend_on_the_number_of_steps(memory: Memory, n: int) -> None:
    loop, launch = Loop(memory, (2, 4, 3, 4, 4)), launcher()
    start(loop, n, launch)
    loop.noise_pred[:] = normal(*loop.noise_pred.shape)
    for _ in range(n):
        latent_step(launch, loop.arrays)
    final = loop.arrays.final_latents
    assert (final.pointer, final.shape) == (loop.latents.ctypes.data, (1, 4, 3, 4, 4))
    np.testing.assert_array_equal(loop.sample[0], loop.latents[0])


@pytest.mark.skipif(ON_GPU, reason="the emulator counts fences")
def test_what_a_step_wrote_is_ordered_before_its_report_to_the_host(memory: Memory) -> None:
    """By a fence of the whole system: one of the device does not order what the host sees."""
    loop, launch = Loop(memory, (2, 4, 3, 4, 4)), launcher()
    fences = library().emu_system_fences
    before = fences()
    start(loop, 3, launch)
    loop.noise_pred[:] = 0
    for step in range(3):
        latent_step(launch, loop.arrays)
        assert fences() - before >= step + 2


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    n = draw(st.sampled_from([1, 2, 5, 35]))
    return {
        "shape": (
            draw(st.sampled_from([1, 2])),
            draw(st.integers(1, 5)),
            draw(st.integers(1, 6)),
            draw(st.integers(1, 40)),
            draw(st.integers(2, 40)),
        ),
        "dtype": draw(st.sampled_from([np.float16, np.float32])),
        "n": n,
        "step": draw(st.integers(0, n - 1)),
        "preset": draw(st.sampled_from(["official", "paper"])),
        "ablation": draw(st.sampled_from(["none", "first_frame", "schedule"])),
        "early_steps": draw(st.sampled_from([None, 0, 1, 3, 34])),
        "guidance": draw(st.sampled_from([1.5, 7.5, 12.5])),
        "seed": draw(st.integers(0, 2**31)),
    }


def check_one_step(case: dict[str, Any]) -> None:
    """A step in the middle of a video, from given latents."""
    memory = Memory()
    loop, launch = Loop(memory, case["shape"], case["dtype"], case["n"]), launcher(case["seed"])
    options = {key: case[key] for key in ("guidance", "preset", "ablation", "early_steps")}
    n, i, shape = case["n"], case["step"], case["shape"]
    schedule = start(loop, n, launch, **options)
    before = normal(1, *shape[1:], seed=case["seed"]) + normal(*shape[1:3], 1, 1, seed=1, scale=3)
    loop.latents[:] = np.nan
    loop.latents_before(i, n)[:] = before
    loop.state["step"] = i
    loop.noise_pred[:] = normal(*shape, seed=case["seed"] + 1)
    latent_step(launch, loop.arrays)

    after = loop.latents_before(i + 1, n)
    inputs = before[0], loop.noise_pred, i, schedule, case["guidance"], case["preset"]
    want = float64_step(*inputs, case["ablation"], case["early_steps"])
    unmatched = float64_step(*inputs, "none")
    assert_close(after[0], want, KERNEL_STEP_ATOL * max(1, contrast(unmatched) / 8))
    np.testing.assert_array_equal(after[:, :, 0], before[:, :, 0])
    for half in loop.sample:
        np.testing.assert_array_equal(half, after[0].astype(case["dtype"]))
    np.testing.assert_array_equal(loop.time_row[0], loop.time_table[i + 1 if i + 1 < n else 0])
    assert loop.state.item() == (i + 1, n, 0, NO_STEP)
    assert loop.progress.item()[:2] == (i + 1, NO_STEP)
    memory.check()


@settings(max_examples=60, deadline=None)
@given(cases())
def test_any_step_of_any_shape_matches_float64(case: dict[str, Any]) -> None:
    check_one_step(case)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(cases())
def test_many_steps_of_many_shapes_match_float64(case: dict[str, Any]) -> None:
    check_one_step(case)


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((2, 2, 3, 40, 64), "lamp_latent_step_f16"),
        ((2, 1, 3, 96, 160), "lamp_latent_step_f16"),
        ((2, 1, 3, 97, 161), "lamp_latent_step_f16_any"),
        ((2, 1, 2, 40, 63), "lamp_latent_step_f16"),
        ((2, 1, 2, 41, 63), "lamp_latent_step_f16_any"),
    ],
)
def test_large_and_odd_frames_match_float64(memory: Memory, shape: Any, kernel: str) -> None:
    loop, launch = Loop(memory, shape, np.float16, 2), launcher()
    schedule = start(loop, 2, launch, early_steps=0)
    before = loop.latents_before(0, 2)[0].copy()
    loop.noise_pred[:] = normal(*shape)
    latent_step(launch, loop.arrays)
    assert launch.launched[-1] == kernel
    want = float64_step(before, loop.noise_pred, 0, schedule, 12.5, early_steps=0)
    assert_close(loop.latents[1], want, KERNEL_STEP_ATOL)


def test_arrays_off_alignment_take_the_general_kernel(memory: Memory) -> None:
    aligned, shifted = Loop(memory, (1, 2, 3, 8, 8)), Loop(memory, (1, 2, 3, 8, 8))
    storage = memory.empty((aligned.noise_pred.size + 1,), np.float32)
    shifted.noise_pred = storage[1:].reshape(aligned.noise_pred.shape)
    arrays = LoopArrays(
        **{**vars(shifted.arrays), "noise_pred": device(shifted.noise_pred)},
    )
    for loop, loop_arrays, kernel in ((aligned, aligned.arrays, "f32"), (shifted, arrays, "f32_any")):
        launch = launcher()
        start(loop, 2, launch)
        loop.noise_pred[:] = normal(*loop.noise_pred.shape)
        latent_step(launch, loop_arrays)
        assert launch.launched[-1] == f"lamp_latent_step_{kernel}"
    assert_close(shifted.latents[1], aligned.latents[1], KERNEL_STEP_ATOL)


@pytest.mark.parametrize("step", [0, 31, 49])
def test_the_numpy_twin_does_the_same_step(memory: Memory, step: int) -> None:
    loop, launch = Loop(memory, (2, 4, 5, 10, 12)), launcher()
    schedule = start(loop, 50, launch)
    loop.state["step"] = step
    loop.latents[:] = before = normal(1, 4, 5, 10, 12)
    loop.noise_pred[:] = normal(2, 4, 5, 10, 12, seed=1)
    latent_step(launch, loop.arrays)
    want = denoise_step(before, loop.noise_pred, step, schedule, guidance_scale=12.5)
    assert_close(loop.latents_before(step + 1, 50), want, KERNEL_STEP_ATOL)


@pytest.mark.parametrize("constant", [0, 1, 2])
@pytest.mark.parametrize("step", [5, 40, 49])
def test_a_constant_frame_is_matched_as_the_official_code_does(
    memory: Memory, constant: int, step: int
) -> None:
    """Without variance, eps decides: the chain of AdaIN steps is not one AdaIN to frame 0."""
    loop, launch = Loop(memory, (1, 2, 4, 6, 6)), launcher()
    schedule = start(loop, 50, launch)
    loop.state["step"] = step
    before = normal(1, 2, 4, 6, 6)
    before[:, :, constant] = 0.25
    loop.latents[:] = before
    loop.noise_pred[:] = normal(1, 2, 4, 6, 6, seed=1, scale=1e-5)
    loop.noise_pred[:, :, constant] = 0
    latent_step(launch, loop.arrays)
    want = float64_step(before[0], loop.noise_pred, step, schedule, 12.5)
    got = loop.latents_before(step + 1, 50)[0]
    assert_close(got, want, KERNEL_CONSTANT_FRAME)
    deviations = got.std(axis=(2, 3)), want.std(axis=(2, 3))
    np.testing.assert_allclose(*deviations, rtol=KERNEL_CONSTANT_FRAME, atol=2e-7)


def test_block_and_thread_order_do_not_change_a_bit(memory: Memory) -> None:
    results = []
    for seed in range(5):
        loop, launch = Loop(memory, (2, 4, 4, 8, 9), np.float16, 3), launcher(1000 * seed)
        start(loop, 3, launch, early_steps=1)
        for i in range(3):
            loop.noise_pred[:] = normal(*loop.noise_pred.shape, seed=i)
            latent_step(launch, loop.arrays)
        results.append((loop.latents.tobytes(), loop.sample.tobytes(), loop.state.tobytes()))
    assert len(set(results)) == 1


def run(loop: Loop, n: int, stop: int, launch: RecordingLauncher, first_frame: np.ndarray) -> np.ndarray:
    start(loop, n, launch, first_frame=first_frame)
    for i in range(stop):
        loop.noise_pred[:] = normal(*loop.noise_pred.shape, seed=i)
        latent_step(launch, loop.arrays)
    return loop.latents[0].copy()


@pytest.mark.parametrize(("before", "aborted", "n"), [(3, 3, 4), (4, 1, 3), (5, 0, 5), (4, 2, 4), (2, 1, 5)])
def test_a_video_does_not_depend_on_the_one_before(memory: Memory, before: int, aborted: int, n: int) -> None:
    """Whole, or given up after `aborted` of its steps, once with a NaN and once within a step."""
    first_frame = memory.array(normal(1, 4, 1, 5, 6))
    fresh = Loop(memory, (2, 4, 3, 5, 6), capacity=5)
    want = run(fresh, n, n, launcher(), first_frame)

    loop, launch = Loop(memory, (2, 4, 3, 5, 6), capacity=5), launcher(9)
    run(loop, before, aborted, launch, first_frame)
    loop.noise_pred[:] = np.nan
    latent_step(launch, loop.arrays)
    loop.state["arrived"] = 7
    loop.sample[:] = loop.latents[:] = np.nan
    np.testing.assert_array_equal(run(loop, n, n, launch, first_frame), want)
    assert loop.progress.item() == fresh.progress.item()


def test_a_step_too_many_changes_nothing(memory: Memory) -> None:
    loop, launch = Loop(memory, (2, 4, 3, 4, 4), capacity=2), launcher()
    run(loop, 2, 2, launch, memory.array(normal(1, 4, 1, 4, 4)))
    kept = {name: array.copy() for name, array in vars(loop).items() if isinstance(array, np.ndarray)}
    latent_step(launch, loop.arrays)
    for name, array in kept.items():
        np.testing.assert_array_equal(getattr(loop, name), array)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_step_that_is_not_finite_is_reported(memory: Memory, bad: float) -> None:
    loop, launch = Loop(memory, (2, 4, 4, 4, 4)), launcher()
    start(loop, 5, launch)
    for i in range(5):
        loop.noise_pred[:] = normal(*loop.noise_pred.shape, seed=i)
        loop.noise_pred[:, :, 0] = np.nan  # frame 0's prediction is discarded
        if i == 2:
            loop.noise_pred[1, 3, 3, 2, 1] = bad
        latent_step(launch, loop.arrays)
        assert loop.progress["first_overflow"] == (2 if i >= 2 else NO_STEP)


@pytest.mark.parametrize(("dtype", "reported"), [(np.float16, 0), (np.float32, NO_STEP)])
def test_latents_too_large_for_the_unets_input_are_reported(
    memory: Memory, dtype: Any, reported: int
) -> None:
    loop, launch = Loop(memory, (1, 4, 2, 4, 4), dtype), launcher()
    start(loop, 2, launch, ablation="none")
    loop.latents[0, 2, 1, 3, 3] = 70000
    loop.noise_pred[:] = 0
    latent_step(launch, loop.arrays)
    assert loop.progress["first_overflow"] == reported


def test_progress_may_be_left_out(memory: Memory) -> None:
    loop, launch = Loop(memory, (2, 4, 3, 4, 4)), launcher()
    arrays = LoopArrays(**{**vars(loop.arrays), "progress": None})
    start(loop, 2, launch)
    loop.noise_pred[:] = normal(*loop.noise_pred.shape)
    latent_step(launch, arrays)
    assert (loop.state["step"], loop.progress["steps_done"]) == (1, 0)


def test_a_wide_time_row_is_copied_whole(memory: Memory) -> None:
    """A table of time embeddings: more words than a block has threads."""
    loop, launch = Loop(memory, (2, 4, 2, 4, 4), capacity=3, width=100), launcher()
    start(loop, 3, launch)
    loop.noise_pred[:] = 0
    for i in range(3):
        np.testing.assert_array_equal(loop.time_row[0], loop.time_table[i])
        latent_step(launch, loop.arrays)
    np.testing.assert_array_equal(loop.time_row[0], loop.time_table[2])


def test_a_batch_of_one_is_the_conditional_prediction_alone(memory: Memory) -> None:
    """guidance_scale <= 1: batch 1, or the conditional text in both halves of batch 2."""
    results = []
    for batch in (1, 2):
        loop, launch = Loop(memory, (batch, 4, 4, 6, 5), np.float16), launcher()
        schedule = start(loop, 2, launch, guidance=1.0)
        before = loop.latents_before(0, 2)[0].copy()
        loop.noise_pred[:] = normal(1, *loop.noise_pred.shape[1:])
        latent_step(launch, loop.arrays)
        results.append(loop.latents[1].copy())
        assert_close(results[-1], float64_step(before, loop.noise_pred[:1], 0, schedule, 1), KERNEL_STEP_ATOL)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("size", [(80, 128), (128, 128), (9, 11)])
def test_sdxls_loop_steps_its_only_frame_without_adain(memory: Memory, size: tuple[int, int]) -> None:
    loop, launch = Loop(memory, (2, 4, *size), np.float16, 3), launcher()
    schedule = ddim_schedule(3)
    loop.rows[:] = step_table(schedule, guidance_scale=5, adain="none", step_frame_0=True)
    loop.time_table[:, 0] = schedule.timesteps
    begin_loop(launch, loop.arrays, 3, seed=7, purpose=Purpose.SDXL_LATENTS)
    want = loop.latents[1:].copy()
    for i in range(3):
        loop.noise_pred[:] = normal(*loop.noise_pred.shape, seed=i)
        latent_step(launch, loop.arrays)
        want = apply_row(want, loop.noise_pred, loop.rows[i])
    assert loop.arrays.final_latents.shape == (1, 4, *size)
    assert_close(loop.latents[:1], want, KERNEL_LOOP_ATOL)
    np.testing.assert_array_equal(loop.sample[1], loop.latents[0].astype(np.float16))


def test_contracted_arithmetic_stays_within_the_same_limit(memory: Memory) -> None:
    """nvcc fuses multiplications and additions; so does this build."""
    loop, launch = Loop(memory, (2, 4, 4, 8, 6)), launcher(fused_multiply_add=True)
    schedule = start(loop, 40, launch)
    want = loop.latents_before(0, 40)[0].astype(np.float64)
    for i in range(40):
        loop.noise_pred[:] = normal(*loop.noise_pred.shape, seed=i)
        latent_step(launch, loop.arrays)
        want = float64_step(want, loop.noise_pred, i, schedule, 12.5)
    assert_close(loop.latents[0], want, KERNEL_LOOP_ATOL)


def test_arrays_that_do_not_fit_are_refused(memory: Memory) -> None:
    loop = Loop(memory, (2, 4, 3, 4, 4))
    arrays = vars(loop.arrays)

    def replaced(name: str, shape: tuple[int, ...], dtype: Any) -> LoopArrays:
        return LoopArrays(**{**arrays, name: DeviceArray(64, shape, np.dtype(dtype))})

    with pytest.raises(InputError, match=r"sample has shape \(3, 4, 3, 4, 4\); expected"):
        replaced("sample", (3, 4, 3, 4, 4), np.float32)
    with pytest.raises(InputError, match=r"noise_pred is float16 .*; expected float32"):
        replaced("noise_pred", (2, 4, 3, 4, 4), np.float16)
    with pytest.raises(InputError, match=r"latents is float32 \(1, 4, 3, 4, 4\); expected float32 \(2, 4"):
        replaced("latents", (1, 4, 3, 4, 4), np.float32)
    with pytest.raises(InputError, match="rows is float32"):
        replaced("rows", (50,), np.float32)
    with pytest.raises(InputError, match="time_row is float32"):
        replaced("time_row", (1, 2), np.float32)
    with pytest.raises(InputError, match="num_steps is 51"):
        begin_loop(launcher(), loop.arrays, 51, seed=0, purpose=Purpose.VIDEO)
    with pytest.raises(InputError, match="seed is -1"):
        begin_loop(launcher(), loop.arrays, 2, seed=-1, purpose=Purpose.VIDEO)
    with pytest.raises(InputError, match=r"first_frame is float32 \(1, 4, 3, 4, 4\); expected"):
        begin_loop(
            launcher(),
            loop.arrays,
            2,
            seed=0,
            purpose=Purpose.VIDEO,
            first_frame=DeviceArray(64, (1, 4, 3, 4, 4), np.dtype("f4")),
        )
    assert vars(LoopArrays(**arrays)) == arrays
