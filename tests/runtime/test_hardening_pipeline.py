# SPDX-License-Identifier: Apache-2.0
"""A pipeline misused, interrupted or given bad numbers says so, and makes the same video afterwards."""

import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import lamp_trt
from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.runtime.algorithm.latents import adain
from lamp_trt.runtime.jobs import Job, run_jobs
from lamp_trt.runtime.media.tokenizer import MAX_PROMPT_CHARS
from lamp_trt.runtime.media.video import Video
from lamp_trt.runtime.pipeline import LampPipeline
from tests.fixtures.hostile import TEXTS, read_or_refused
from tests.fixtures.torture import Tally, no_hang

pytestmark = pytest.mark.torture
FUZZ = settings.get_profile("hardening")
SIZE = 64


@pytest.fixture(scope="module")
def pipe(toy_bundle: Path) -> LampPipeline:
    return lamp_trt.load(toy_bundle, num_threads=1)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def make(pipe: LampPipeline, picture: np.ndarray) -> Callable[..., Video]:
    def make(**changes: Any) -> Video:
        arguments = {"first_frame": picture, "num_inference_steps": 2, "motion": "horse_run", **changes}
        return pipe("a horse runs", **arguments)

    return make


@pytest.fixture
def unharmed(make: Callable[..., Video]) -> Any:
    """Afterwards the pipeline makes the video that it made before."""
    before = make()
    yield
    with no_hang():
        after = make()
    np.testing.assert_array_equal(after.latents, before.latents)
    np.testing.assert_array_equal(after.frames, before.frames)


# --- numbers -------------------------------------------------------------------------------------------

OUTPUTS = {
    ("text_encoder", "last_hidden_state"): "the text encoder returned",
    ("vae_encoder", "latent_mean"): "the VAE encoder returned",
    ("vae_encoder", "latent_logvar"): "the VAE encoder returned",
    ("lamp_unet", "noise_pred"): r"the LAMP UNet at step 1 of 2 \(timestep 1\) returned",
    ("vae_decoder", "image"): "the VAE decoder at frame 3 returned",
}
CALLS_BEFORE = {"lamp_unet": 1, "vae_decoder": 3}
"""Of a network that runs more than once: the calls that go well."""


class Spoiled:
    """An engine whose output holds `value` once, after some calls that went well."""

    def __init__(self, engine: Any, output: str, value: float, calls_before: int) -> None:
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self._engine, self._output, self._value, self._left = engine, output, value, calls_before

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values: dict[str, np.ndarray] = self._engine.run(arrays)
        if self._left == 0:
            values[self._output].ravel()[-1] = self._value
        self._left -= 1
        return values

    def set_motion(self, motion: str) -> bool:
        return bool(self._engine.set_motion(motion))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("network", "output"), OUTPUTS)
def test_a_value_that_is_not_finite_names_network_and_step(
    network: str,
    output: str,
    value: float,
    pipe: LampPipeline,
    make: Callable[..., Video],
    unharmed: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines = pipe._ops._engines  # type: ignore[attr-defined]
    spoiled = Spoiled(engines[network], output, value, CALLS_BEFORE.get(network, 0))
    monkeypatch.setitem(engines._engines, network, spoiled)
    with pytest.raises(EngineError, match=OUTPUTS[network, output] + " values that are not finite.*damaged"):
        make()
    monkeypatch.undo()


@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_first_frames_make_finite_videos(level: int, make: Callable[..., Video]) -> None:
    for options in ({}, {"preset": "paper"}, {"adain": "first_frame"}, {"histogram": "exact"}):
        video = make(first_frame=np.full((SIZE, SIZE, 3), level, np.uint8), **options)
        assert np.isfinite(video.latents).all()
        assert video.frames.shape == (4, SIZE, SIZE, 3)


@pytest.mark.parametrize("constant", ["content", "style", "both"])
def test_a_constant_channel_stays_finite_in_adain(constant: str) -> None:
    rng = np.random.default_rng(0)
    content, style = rng.normal(size=(2, 1, 4, 1, 8, 8)).astype(np.float32)
    for name, array in (("content", content), ("style", style)):
        if constant in (name, "both"):
            array[:, 2] = 0.25
    matched = adain(content, style)
    assert np.isfinite(matched).all()
    if constant == "style":
        np.testing.assert_allclose(matched[:, 2], 0.25, atol=1e-3)  # the deviation is the root of eps
    if constant == "content":
        np.testing.assert_allclose(matched[:, 2], style[:, 2].mean(), atol=1e-3)


@pytest.mark.parametrize("name", ["noise", "posterior_noise", "base_noise"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda noise: noise * np.nan, "holds NaN or infinity"),
        (lambda noise: noise.tolist(), "list was given; expected a NumPy array"),
        (lambda noise: noise.astype(object), "object was given"),
        (lambda noise: noise[..., :1], r"has shape .*; expected"),
    ],
    ids=["nan", "list", "object", "shape"],
)
def test_given_noise_that_is_none_is_refused(
    name: str, spoil: Callable[[np.ndarray], Any], message: str, make: Callable[..., Video]
) -> None:
    shapes = {"noise": (1, 4, 4, 8, 8), "posterior_noise": (1, 4, 8, 8), "base_noise": (1, 4, 1, 8, 8)}
    with pytest.raises(InputError, match=f"{name}.*{message}"):
        make(preset="paper", **{name: spoil(np.ones(shapes[name], np.float32))})


# --- prompts -------------------------------------------------------------------------------------------


@settings(FUZZ, max_examples=FUZZ.max_examples // 3)
@given(prompt=TEXTS, negative=TEXTS)
def test_any_prompt_is_encoded_or_refused(
    pipe: LampPipeline, prompt: str, negative: str, tally: Tally
) -> None:
    def encode() -> None:
        assert np.isfinite(pipe.encode_prompt(prompt, negative)).all()

    assert read_or_refused(encode, tally) == (is_text(prompt) and is_text(negative))


def is_text(prompt: str) -> bool:
    """Whether no half of a surrogate pair stands alone."""
    try:
        prompt.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("plane", range(17))
def test_every_plane_of_unicode_is_encoded(plane: int, pipe: LampPipeline) -> None:
    points = range(plane << 16, (plane + 1) << 16, 97)
    text = "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
    assert np.isfinite(pipe.encode_prompt(text)).all()


@pytest.mark.parametrize("piece", ["a", " ", "\u0301", "\ud800", "\0", "<|endoftext|>", "馬🐎"])
def test_a_megabyte_of_prompt_is_refused_and_what_is_taken_is_quick(
    piece: str, pipe: LampPipeline, tally: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match=r"the prompt has \d+ characters, expected at most 100000"):
        pipe.encode_prompt(piece * 10**6)
    taken = read_or_refused(lambda: pipe.encode_prompt((piece * MAX_PROMPT_CHARS)[:MAX_PROMPT_CHARS]), tally)
    assert taken == is_text(piece)
    assert all(len(record.getMessage()) < 2000 for record in caplog.records)


# --- callbacks, threads, signals, generators -----------------------------------------------------------


@pytest.mark.parametrize("use", ["call", "set_motion", "decode", "encode_prompt"])
def test_a_pipeline_used_from_its_own_callback_says_so_instead_of_waiting(
    use: str, pipe: LampPipeline, make: Callable[..., Video], unharmed: None
) -> None:
    def callback(own: LampPipeline, step: int, timestep: int, arrays: Mapping[str, np.ndarray]) -> None:
        {
            "call": lambda: make(),
            "set_motion": lambda: own.set_motion("rain"),
            "decode": lambda: own.decode(arrays["latents"]),
            "encode_prompt": lambda: own.encode_prompt("a"),
        }[use]()

    with no_hang(), pytest.raises(InputError, match="cannot be used from its own callback"):
        make(callback_on_step_end=callback)
    assert pipe.motion == "horse_run"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (5, "returned 5; expected a mapping"),
        ({"latents": None}, "NoneType was given"),
        ({"latents": np.zeros((1, 4, 4, 8, 8), np.int32)}, "int32 was given"),
        ({"latents": np.zeros((1, 4, 3, 8, 8), np.float32)}, "has shape"),
        ({"latents": np.full((1, 4, 4, 8, 8), np.nan, np.float32)}, "NaN or infinity"),
    ],
    ids=["number", "none", "integers", "shape", "nan"],
)
def test_a_callback_that_returns_no_latents_is_named(
    returned: Any, message: str, make: Callable[..., Video], unharmed: None
) -> None:
    with pytest.raises(InputError, match=f"callback_on_step_end.*{message}"):
        make(callback_on_step_end=lambda *_: returned)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit, MemoryError, GeneratorExit])
@pytest.mark.parametrize("step", [0, 1])
def test_whatever_a_callback_raises_leaves_the_pipeline_usable(
    kind: type[BaseException], step: int, make: Callable[..., Video], unharmed: None
) -> None:
    def callback(pipeline: LampPipeline, now: int, *_: Any) -> None:
        if now == step:
            raise kind

    with pytest.raises(kind):
        make(callback_on_step_end=callback, motion="rain")


def test_a_signal_in_the_middle_of_a_network_leaves_the_pipeline_usable(
    make: Callable[..., Video], unharmed: None
) -> None:
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            make(num_inference_steps=900)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, previous)


def test_several_threads_and_several_pipelines_make_the_same_videos(
    pipe: LampPipeline, toy_bundle: Path, make: Callable[..., Video], picture: np.ndarray
) -> None:
    wanted = {motion: make(motion=motion).frames for motion in ("horse_run", "rain")}
    second = lamp_trt.load(toy_bundle, motion="rain", num_threads=1)
    work = [(pipe, "horse_run"), (second, "rain"), (pipe, "horse_run"), (second, "rain")]
    got: list[tuple[str, np.ndarray]] = []

    def run(pipeline: LampPipeline, motion: str) -> None:
        video = pipeline("a horse runs", motion=motion, first_frame=picture, num_inference_steps=2)
        got.append((motion, video.frames))

    threads = [threading.Thread(target=run, args=each) for each in work]
    with no_hang():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(motion for motion, _ in got) == ["horse_run", "horse_run", "rain", "rain"]
    for motion, frames in got:
        np.testing.assert_array_equal(frames, wanted[motion])


def test_a_run_of_many_videos_may_be_abandoned(
    pipe: LampPipeline, picture: np.ndarray, unharmed: None, tmp_path: Path
) -> None:
    jobs = [
        Job(
            "a",
            first_frame=picture,
            out=tmp_path / f"{seed}.gif",
            options={"num_inference_steps": 1, "seed": seed},
        )
        for seed in range(3)
    ]
    videos = run_jobs(pipe, jobs)
    next(videos)
    del videos
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.gif", "0.gif.json"]


@pytest.mark.parametrize(
    "out",
    [
        "a\0b.mp4",
        "\ud800.mp4",
        f"{'x' * 5000}.mp4",
        f"{'y' * 250}.mp4",
        f"{'/'.join('z' * 3000)}.mp4",
        "\udcff.mp4",  # noqa: PT014
    ],
    ids=["nul", "surrogate", "far too long", "too long", "too deep", "not UTF-8"],
)
def test_names_that_no_file_can_have_are_refused_before_any_work(
    out: str, pipe: LampPipeline, picture: np.ndarray, tmp_path: Path, tally: Tally
) -> None:
    job = Job("a", first_frame=picture, out=tmp_path / out, options={"num_inference_steps": 1})
    taken = read_or_refused(lambda: list(run_jobs(pipe, [job])), tally)
    assert taken == (out == "\udcff.mp4")  # a byte that is no UTF-8, as a shell passes it
