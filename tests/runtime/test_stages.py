# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1's orchestration, the same over the host's operations and a device's: order, stages, values,
progress, cancelling, ownership."""

import ast
import inspect
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lamp_trt
from lamp_trt import runtime
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import Cancelled, EngineError, InputError
from lamp_trt.runtime import stages
from lamp_trt.runtime.algorithm.config import SETTINGS
from lamp_trt.runtime.algorithm.ddim import ddim_schedule
from lamp_trt.runtime.cuda.loop import STEPS_AHEAD
from lamp_trt.runtime.load import load_first_frame_maker
from lamp_trt.runtime.ops import decode_windows
from lamp_trt.runtime.pipeline import LampPipeline
from lamp_trt.runtime.requests import FirstFrameRequest
from tests.runtime.cuda.test_stages import OnDevice

PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
STEPS = 8
FROM_IMAGE: dict[str, Any] = {"first_frame": PICTURE, "num_inference_steps": STEPS}
SHORT: dict[str, Any] = {"first_frame": PICTURE, "num_inference_steps": 2}
FROM_TEXT: dict[str, Any] = {"num_inference_steps": 2, "first_frame_num_inference_steps": STEPS}


class Subject:
    """A pipeline on the host or on the double of a device, and the engines of its networks on host arrays."""

    def __init__(self, kind: str, bundle: Path) -> None:
        self.kind = kind
        self.expected = np.empty(0)
        self.on_device = OnDevice(bundle) if kind == "device" else None
        self.pipe = self.on_device.pipe if self.on_device else lamp_trt.load(bundle, num_threads=1)

    def engine(self, network: str) -> Any:
        if self.on_device:
            return self.on_device.engines[network]._engine
        pipe: Any = self.pipe
        ops = pipe._first_frames.ops if network.startswith("sdxl_") else pipe._ops
        return ops._engines[network]

    def idle(self) -> bool:
        return self.on_device is None or self.on_device.device.queue.idle


@pytest.fixture(scope="module", params=["host", "device"])
def subject(request: pytest.FixtureRequest, sdxl_bundle: Path) -> Iterator[Subject]:
    subject = Subject(request.param, sdxl_bundle)
    subject.pipe.make_first_frame("x", num_inference_steps=1)  # loads SDXL
    subject.expected = subject.pipe("x", **SHORT).frames
    yield subject
    subject.pipe.close()


@pytest.fixture
def runs(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Networks in the order of their runs."""
    order: list[str] = []
    for network in subject.pipe.bundle.manifest.networks:
        engine = subject.engine(network)

        def run(arrays: Any, network: str = network, run: Any = engine.run) -> Any:
            order.append(network)
            return run(arrays)

        monkeypatch.setattr(engine, "run", run)
    return order


# --- stages and order ---------------------------------------------------------------------------------


def test_timings_have_the_same_stages_in_the_same_order_and_total_is_their_sum(subject: Subject) -> None:
    stages = ["motion", "text", "first_frame", "denoise", "decode", "histogram", "total"]
    given = subject.pipe("x", **FROM_IMAGE)
    assert [*given.timings] == stages
    made = subject.pipe("x", **FROM_TEXT)
    assert [*made.timings] == [*stages[:2], "make_first_frame", *stages[2:]]
    image = subject.pipe.make_first_frame("x", num_inference_steps=1)
    assert [*image.timings] == ["text", "denoise", "decode", "total"]
    for timings in (given.timings, made.timings, image.timings):
        *seconds, total = timings.values()
        assert total == pytest.approx(sum(seconds))
        assert all(each >= 0 for each in seconds)


def test_networks_run_in_one_order(subject: Subject, runs: list[str]) -> None:
    subject.pipe("x", num_inference_steps=2, first_frame_num_inference_steps=1)
    assert runs == [
        "text_encoder",
        "sdxl_text_encoder",
        "sdxl_text_encoder_2",
        "sdxl_unet",
        "sdxl_vae_decoder",
        "vae_encoder",
        *["lamp_unet"] * 2,
        *["vae_decoder"] * 4,
    ]


@pytest.mark.parametrize("guidance_scale", [1.0, 0.5, -3.0])
def test_without_guidance_both_halves_are_the_prompt(
    subject: Subject, guidance_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids: dict[str, np.ndarray] = {}
    for network in ("text_encoder", "sdxl_text_encoder", "sdxl_text_encoder_2"):
        engine = subject.engine(network)

        def run(arrays: Any, network: str = network, run: Any = engine.run) -> Any:
            ids[network] = arrays["input_ids"].copy()
            return run(arrays)

        monkeypatch.setattr(engine, "run", run)
    options: dict[str, Any] = {
        "guidance_scale": guidance_scale,
        "first_frame_guidance_scale": guidance_scale,
        "num_inference_steps": 1,
        "first_frame_num_inference_steps": 1,
    }
    plain = subject.pipe("a horse", **options)
    negative = subject.pipe("a horse", negative_prompt="rain", **options)
    for negative_ids, prompt_ids in ids.values():
        np.testing.assert_array_equal(negative_ids, prompt_ids)
    np.testing.assert_array_equal(plain.frames, negative.frames)
    np.testing.assert_array_equal(plain.first_frame, negative.first_frame)


@pytest.mark.parametrize(("guidance_scale", "zeroed"), [(5.0, True), (1.0, False)])
def test_zeros_stand_for_no_negative_prompt_where_there_is_guidance(
    guidance_scale: float, zeroed: bool
) -> None:
    given: list[bool] = []
    ops: Any = SimpleNamespace(
        encode_text=lambda ids, zero_negative: given.append(zero_negative),
        denoise=lambda *_: None,
        decode=lambda latents: None,
    )
    ids, clock = np.array([[1, 2], [3, 4]]), SimpleNamespace(end=lambda stage: None)
    job = stages.ImageJob((ids, ids), True, ddim_schedule(2), guidance_scale)
    stages._draw(ops, job, clock, stages.NO_CONTROL)  # type: ignore[arg-type]
    assert given == [zeroed]


@pytest.mark.parametrize(
    ("frames", "batch", "starts"),
    [(16, 1, range(16)), (4, 2, [0, 2]), (5, 2, [0, 2, 3]), (7, 4, [0, 3]), (3, 3, [0]), (1, 1, [0])],
)
def test_the_decoders_last_run_ends_with_the_last_frame(frames: int, batch: int, starts: Any) -> None:
    assert decode_windows(frames, batch) == [*starts]


def test_a_decoder_of_more_frames_than_the_video_has_is_refused() -> None:
    with pytest.raises(EngineError, match="takes 5 frames at once, the video has 4"):
        decode_windows(4, 5)


# --- values that are not finite -----------------------------------------------------------------------

NOT_FINITE = {
    ("text_encoder", "last_hidden_state"): "the text encoder returned",
    ("vae_encoder", "latent_mean"): "the VAE encoder returned",
    ("vae_encoder", "latent_logvar"): "the VAE encoder returned",
    ("lamp_unet", "noise_pred"): r"the LAMP UNet at step 0 of 2 \(timestep 501\) returned",
    ("vae_decoder", "image"): "the VAE decoder (at frame 0 )?returned",
    ("sdxl_text_encoder", "penultimate_hidden_state"): "SDXL's first text encoder returned",
    ("sdxl_text_encoder_2", "penultimate_hidden_state"): "SDXL's second text encoder returned",
    ("sdxl_text_encoder_2", "text_embeds"): "SDXL's second text encoder returned",
    ("sdxl_unet", "noise_pred"): r"SDXL's UNet at step 0 of 2 \(timestep 501\) returned",
    ("sdxl_vae_decoder", "image"): "SDXL's VAE decoder returned",
}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("network", "output"), NOT_FINITE)
def test_what_is_not_finite_names_the_network_that_returned_it(
    network: str, output: str, value: float, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = subject.engine(network)
    run = engine.run

    def spoiled(arrays: Any) -> Any:
        outputs = run(arrays)
        outputs[output].ravel()[-1] = value if output != "image" else -value
        return outputs

    monkeypatch.setattr(engine, "run", spoiled)
    message = NOT_FINITE[network, output] + " values that are not finite.*damaged"
    with pytest.raises(EngineError, match=message):
        subject.pipe("x", num_inference_steps=2, first_frame_num_inference_steps=2)
    assert subject.idle()
    parts: dict[str, Callable[[], Any]] = {
        "text_encoder": lambda: subject.pipe.encode_prompt("x"),
        "vae_encoder": lambda: subject.pipe.encode_first_frame(PICTURE),
        "vae_decoder": lambda: subject.pipe.decode(np.zeros((1, 4, 4, 8, 8), np.float32)),
    }
    if network in parts:
        with pytest.raises(EngineError, match=message):
            parts[network]()


def test_latents_that_the_unets_type_cannot_hold_are_refused_at_their_step(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finite predictions may leave the range too: at fp32 only where the sum overflows."""
    engine = subject.engine("lamp_unet")
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda arrays: {n: v * 0 + 3e38 for n, v in run(arrays).items()})
    noise = np.full((1, 4, 4, 8, 8), 3e38, np.float32)
    with pytest.raises(EngineError, match="the LAMP UNet at step 0 of 3"):
        subject.pipe("x", first_frame=PICTURE, num_inference_steps=3, noise=noise, adain="none")


# --- progress -----------------------------------------------------------------------------------------


class Reports:
    def __init__(self) -> None:
        self.all: list[tuple[str, int, int]] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.all.append((stage, done, total))


@pytest.mark.parametrize("with_callback", [False, True])
def test_progress_is_called_from_0_to_the_last_step_of_each_loop(
    subject: Subject, with_callback: bool
) -> None:
    reports = Reports()
    callback = {"callback_on_step_end": lambda *_: None} if with_callback else {}
    subject.pipe("x", **FROM_TEXT, progress=reports, **callback)
    by_stage = {stage: [r[1:] for r in reports.all if r[0] == stage] for stage, *_ in reports.all}
    assert [*by_stage] == ["make_first_frame", "denoise"]
    for stage, total in (("make_first_frame", STEPS), ("denoise", 2)):
        done = [each for each, of in by_stage[stage] if of == total]
        assert len(done) == len(by_stage[stage])
        assert (done[0], done[-1]) == (0, total)
        assert done == sorted(set(done))
    if subject.kind == "host":
        assert [each for each, _ in by_stage["make_first_frame"]] == [*range(STEPS + 1)]


def test_progress_comes_while_the_device_works(subject: Subject, runs: list[str]) -> None:
    reports: list[tuple[int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        reports.append((done, runs.count("lamp_unet")))

    subject.pipe("x", **FROM_IMAGE, progress=progress)
    assert len(reports) > STEPS / 2
    assert all(ran <= done + 1 for done, ran in reports)  # of a step that is not reported only the UNet ran


def test_a_progress_callback_that_raises_ends_the_call_and_leaves_the_pipeline_usable(
    subject: Subject,
) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        subject.pipe("x", **FROM_IMAGE, progress=progress)
    assert subject.idle()
    np.testing.assert_array_equal(subject.pipe("x", **SHORT).frames, subject.expected)


def test_a_pipeline_used_from_its_progress_callback_says_so(subject: Subject) -> None:
    with pytest.raises(InputError, match="cannot be used from its own callback"):
        subject.pipe("x", **FROM_IMAGE, progress=lambda *_: subject.pipe.encode_prompt("y"))


def test_the_library_itself_shows_no_bars() -> None:
    for path in Path(*runtime.__path__).resolve().rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert "tqdm" not in (*names, module.partition(".")[0]), path


# --- cancelling ---------------------------------------------------------------------------------------


class CancelAt:
    """Sets its token once a stage has done so many steps."""

    def __init__(self, stage: str, step: int) -> None:
        self.token = threading.Event()
        self._stage, self._step = stage, step

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == self._stage and done >= self._step:
            self.token.set()


@pytest.mark.parametrize("with_callback", [False, True])
@pytest.mark.parametrize(
    ("stage", "unet", "arguments"),
    [("denoise", "lamp_unet", FROM_IMAGE), ("make_first_frame", "sdxl_unet", FROM_TEXT)],
    ids=["denoise", "make_first_frame"],
)
@pytest.mark.parametrize("step", [0, 3])
def test_a_cancelled_call_ends_within_a_few_steps_and_leaves_the_pipeline_usable(
    stage: str,
    unet: str,
    arguments: dict[str, Any],
    step: int,
    with_callback: bool,
    subject: Subject,
    runs: list[str],
) -> None:
    cancel = CancelAt(stage, step)
    callback = {"callback_on_step_end": lambda *_: None} if with_callback else {}
    with pytest.raises(Cancelled, match="cancelled") as raised:
        subject.pipe("x", **arguments, progress=cancel, cancel=cancel.token, **callback)
    assert raised.value.exit_code == 130
    ahead = STEPS_AHEAD if subject.kind == "device" else 0
    assert step <= runs.count(unet) <= step + ahead < STEPS
    assert "vae_decoder" not in runs
    assert subject.idle()
    np.testing.assert_array_equal(subject.pipe("x", **SHORT).frames, subject.expected)


def test_a_first_frame_is_cancelled_alike(subject: Subject, runs: list[str]) -> None:
    cancel = CancelAt("make_first_frame", 1)
    with pytest.raises(Cancelled):
        subject.pipe.make_first_frame("x", num_inference_steps=STEPS, progress=cancel, cancel=cancel.token)
    assert runs.count("sdxl_unet") <= 1 + STEPS_AHEAD
    assert "sdxl_vae_decoder" not in runs


def test_a_token_set_before_the_call_lets_nothing_run(subject: Subject, runs: list[str]) -> None:
    token = threading.Event()
    token.set()
    with pytest.raises(Cancelled):
        subject.pipe("x", **FROM_IMAGE, cancel=token)
    assert runs == []


def test_a_call_that_waits_for_another_thread_can_be_cancelled(subject: Subject) -> None:
    token, busy, go_on = threading.Event(), threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        busy.set()
        assert go_on.wait(60)

    first = threading.Thread(target=lambda: subject.pipe("x", **FROM_IMAGE, progress=hold))
    first.start()
    assert busy.wait(60)
    token.set()
    with pytest.raises(Cancelled):
        subject.pipe("y", **FROM_IMAGE, cancel=token)
    go_on.set()
    first.join(60)
    assert not first.is_alive()


@pytest.mark.parametrize("subject", ["device"], indirect=True)
def test_a_device_never_has_more_steps_than_it_may(
    subject: Subject, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert subject.on_device
    queue, most = subject.on_device.device.queue, [0]
    run_one = queue.run_one

    def watched() -> None:
        steps = sum("HostDeviceEngine" in work.__qualname__ for work in queue._pending)
        most[0] = max(most[0], steps)
        run_one()

    monkeypatch.setattr(queue, "run_one", watched)
    waits = subject.on_device.device.waits
    subject.pipe("x", first_frame=PICTURE, num_inference_steps=20)
    assert runs.count("lamp_unet") == 20
    assert most[0] <= 4 + 1 + STEPS_AHEAD  # the decoder's runs, and one of the two encoders
    assert subject.on_device.device.waits - waits == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"progress": 3}, r"progress is 3; expected a function \(stage, done, total\)"),
        ({"cancel": True}, "cancel is True; expected a threading.Event"),
    ],
)
def test_what_is_no_callback_and_no_token_is_refused(
    subject: Subject, arguments: dict[str, Any], message: str
) -> None:
    def image(**options: Any) -> Any:
        return subject.pipe.make_first_frame("x", num_inference_steps=1, **options)

    for call in (lambda: subject.pipe("x", **FROM_IMAGE, **arguments), lambda: image(**arguments)):
        with pytest.raises(InputError, match=message):
            call()


# --- owners -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["host", "device"])
def test_a_closed_pipeline_gives_its_engines_back_and_says_so(kind: str, sdxl_bundle: Path) -> None:
    subject = Subject(kind, sdxl_bundle)
    with subject.pipe as pipe:
        pipe("x", num_inference_steps=1, first_frame_num_inference_steps=1)
        engines = [subject.engine(network) for network in pipe.bundle.manifest.networks]
    pipe.close()
    for use in (
        lambda: pipe("x", **FROM_IMAGE),
        lambda: pipe.make_first_frame("x"),
        lambda: pipe.set_motion("rain"),
        lambda: pipe.encode_prompt("x"),
        lambda: pipe.encode_first_frame(PICTURE),
        lambda: pipe.decode(np.zeros((1, 4, 4, 8, 8), np.float32)),
    ):
        with pytest.raises(InputError, match="this pipeline was closed; load the bundle again"):
            use()
    for engine in engines:
        with pytest.raises(EngineError, match="was closed"):
            engine.run({})
        with pytest.raises(EngineError, match="was closed"):
            engine.set_motion("rain")
        engine.close()
    if subject.on_device:
        assert subject.on_device.device.closed
        assert all(engine.closed for engine in subject.on_device.engines.values())
        with pytest.raises(EngineError, match="engines were closed"):
            subject.on_device.ops._engines.add("text_encoder")


def test_a_pipeline_is_not_closed_from_its_own_callback(subject: Subject) -> None:
    with pytest.raises(InputError, match="cannot be used from its own callback"):
        subject.pipe("x", **FROM_IMAGE, progress=lambda *_: subject.pipe.close())
    subject.pipe("x", **FROM_IMAGE)


def test_closing_waits_for_the_video_of_another_thread(toy_bundle: Path) -> None:
    pipe, begun, videos = lamp_trt.load(toy_bundle, num_threads=1), threading.Event(), []
    thread = threading.Thread(
        target=lambda: videos.append(pipe("x", **FROM_IMAGE, progress=lambda *_: begun.set()))
    )
    thread.start()
    assert begun.wait(60)
    pipe.close()
    assert len(videos) == 1 or thread.join(60) is None
    assert videos[0].frames.any()


def test_a_maker_of_first_frames_closes_alike(sdxl_bundle: Path) -> None:
    with load_first_frame_maker(Bundle.open(sdxl_bundle)) as make:
        make(FirstFrameRequest("x", num_inference_steps=1))
    make.close()
    with pytest.raises(InputError, match="maker of first frames was closed"):
        make(FirstFrameRequest("x", num_inference_steps=1))


# --- settings -----------------------------------------------------------------------------------------


def test_the_calls_arguments_are_the_settings_with_their_defaults() -> None:
    parameters = inspect.signature(LampPipeline.__call__).parameters
    for each in SETTINGS:
        assert parameters[each.name].default == each.default, each.name
    first_frame = inspect.signature(LampPipeline.make_first_frame).parameters
    for name, parameter in inspect.signature(FirstFrameRequest).parameters.items():
        assert first_frame[name].default == parameter.default, name
