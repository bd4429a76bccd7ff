# SPDX-License-Identifier: Apache-2.0
"""Settings as other libraries hold them become Python's values at the call, or are refused there."""

import dataclasses
import io
import json
import math
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lamp_trt
from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import GenerationConfig
from lamp_trt.runtime.first_frame import FirstFrame
from lamp_trt.runtime.jobs import Job, check_options, run_jobs
from lamp_trt.runtime.media.video import Video
from lamp_trt.runtime.pipeline import LampPipeline


class Choice(StrEnum):
    PAPER = "paper"


class Index:
    def __index__(self) -> int:
        return 3

    def __repr__(self) -> str:
        return "Index()"


class Nothing:
    def __repr__(self) -> str:
        return "Nothing()"


INTEGERS = {"seed", "num_inference_steps", "first_frame_num_inference_steps", "adain_switch_step"}
NUMBERS = {"guidance_scale", "first_frame_guidance_scale"}
WHOLE: list[Any] = [
    *(np.dtype(kind).type(3) for kind in "bBhHiIlLqQ"),
    np.array(3),
    torch.tensor(3),
    torch.tensor(3, dtype=torch.uint8),
    Index(),
]
REAL: list[Any] = [
    *(kind(2.5) for kind in (np.float16, np.float32, np.float64, np.longdouble)),
    np.array(2.5, np.float32),
    torch.tensor(2.5),
    torch.tensor(2.5, dtype=torch.bfloat16),
    Fraction(5, 2),
    Decimal("2.5"),
]
CHOICES = {"preset": "paper", "adain": "none", "histogram": "exact"}


@pytest.mark.parametrize("value", WHOLE, ids=repr)
@pytest.mark.parametrize("name", sorted(INTEGERS | NUMBERS))
def test_integers_of_any_library_become_python_s(name: str, value: Any) -> None:
    if name in NUMBERS and isinstance(value, Index):
        return  # it is no float
    plain = getattr(GenerationConfig(**{name: value}), name)
    assert (type(plain), plain) == ((int if name in INTEGERS else float), 3)


@pytest.mark.parametrize("value", REAL, ids=repr)
@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_real_numbers_of_any_library_become_python_s(name: str, value: Any) -> None:
    plain = getattr(GenerationConfig(**{name: value}), name)
    assert (type(plain), plain) == (float, 2.5)


def test_texts_and_truth_values_of_any_library_become_python_s() -> None:
    for name, choice in CHOICES.items():
        for value in (np.str_(choice), np.array(choice)):
            assert type(getattr(GenerationConfig(**{name: value}), name)) is str
    assert type(GenerationConfig(preset=Choice.PAPER).preset) is str  # type: ignore[arg-type]
    for truth in (np.False_, np.array(False), torch.tensor(False)):
        assert GenerationConfig(mix_noise=truth).mix_noise is False  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [True, np.True_, torch.tensor(True), 3.0, np.float64(3), Fraction(3), "3", np.str_("3"), b"3", 3j, [3],
     np.array([3]), torch.tensor([3]), Nothing(), 10**5000],
    ids=lambda value: f"{value!r:.30}" if not isinstance(value, int) or value < 9 else "huge",
)  # fmt: skip
@pytest.mark.parametrize("name", sorted(INTEGERS))
def test_what_is_no_integer_is_refused(name: str, value: Any) -> None:
    if name == "adain_switch_step" and isinstance(value, int) and value > 9:
        return  # it has no upper limit
    with pytest.raises(InputError, match=f"^{name} is .*expected an integer"):
        GenerationConfig(**{name: value})


@pytest.mark.parametrize(
    "value",
    [True, np.True_, torch.tensor(True), "2.5", np.array("2.5"), b"2", 2j, np.complex64(2), [2.5],
     np.array([2.5]), torch.tensor([2.5]), 10**400, Decimal("NaN"), Decimal("sNaN"), np.float32("inf"), None],
    ids=lambda value: f"{value!r:.30}",
)  # fmt: skip
@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_what_is_no_finite_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name} is .*expected a finite number"):
        GenerationConfig(**{name: value})


PICTURE = np.full((64, 64, 3), 90, np.uint8)


def test_a_video_of_numpy_settings_is_saved_with_plain_ones(toy_bundle: Path, tmp_path: Path) -> None:
    pipe = lamp_trt.load(np.str_(toy_bundle), num_threads=np.int64(1), verify_files=np.False_)  # type: ignore[arg-type]
    given: dict[str, Any] = {
        "prompt": np.str_("a"),
        "negative_prompt": np.str_("b"),
        "motion": np.str_("rain"),
        "fit": np.str_("crop"),
        "seed": np.uint64(2**64 - 1),
        "num_inference_steps": np.int16(1),
        "guidance_scale": np.float32(2.5),
        "preset": np.str_("paper"),
        "adain": np.str_("schedule"),
        "adain_switch_step": np.int64(1),
        "histogram": np.str_("none"),
        "mix_noise": np.True_,
    }
    video = pipe(first_frame=PICTURE, **given)
    path = video.save(np.str_(tmp_path / "a.gif"), fps=np.float32(8))
    stored = json.loads(path.with_name("a.gif.json").read_text())
    assert stored["fps"] == 8
    for name in given.keys() - {"fit"}:
        assert stored[name] == video.settings[name] == given[name]
        assert type(video.settings[name]) in (str, int, float, bool)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("prompt", 1), ("prompt", None), ("prompt", b"a"), ("prompt", Path("a")), ("prompt", ["a"]),
     ("negative_prompt", 0), ("negative_prompt", False), ("negative_prompt", np.array(["a", "b"])),
     ("motion", 3), ("motion", Path("rain")), ("fit", None), ("fit", 1), ("callback_on_step_end", 5),
     ("seed", "1"), ("adain_switch_step", 1.5)],
)  # fmt: skip
def test_wrong_arguments_are_refused_before_any_work(
    argument: str, value: Any, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = _idle_pipeline(toy_bundle)
    with pytest.raises(InputError, match=f"^{argument} is "):
        pipe(**{"prompt": "a", "first_frame": PICTURE, argument: value})


def _idle_pipeline(toy_bundle: Path) -> LampPipeline:
    """One whose networks would fail at their first use."""
    from lamp_trt.engine.bundle.reader import Bundle

    nothing: Any = SimpleNamespace()
    return LampPipeline(Bundle.open(toy_bundle), nothing, nothing, "rain")


VIDEO = Video(np.zeros((2, 32, 32, 3), np.uint8), PICTURE, np.zeros(1, np.float32))
WRONG_PATHS: list[Any] = [None, 3, 3.5, True, b"a.gif", "", ["a.gif"], io.BytesIO(), np.array(["a.gif"])]


@pytest.mark.parametrize("path", WRONG_PATHS, ids=lambda value: f"{value!r:.20}")
def test_save_to_what_is_no_path_is_refused(
    path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for save in (VIDEO.save, FirstFrame(PICTURE, np.zeros(1, np.float32)).save):
        with pytest.raises(InputError, match=r"^the output is .*expected a path, as a string or a pathlib"):
            save(path)
    job = Job("a", out=path, first_frame=PICTURE)
    if path is not None:
        with pytest.raises(InputError, match=r"^the output is "):
            list(run_jobs(SimpleNamespace(), [job]))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", ["8", None, True, 10**400, np.array([8.0]), 8j])
def test_save_at_no_frame_rate_is_refused(fps: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^fps is "):
        VIDEO.save(tmp_path / "a.gif", fps)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "why"),
    [("no/such/a.mp4", "does not exist"), ("a.xyz", r"ends in '\.xyz'"), ("folder.mp4", "is a folder")],
)
def test_save_where_no_file_can_be_is_refused(out: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match=why):
        VIDEO.save(tmp_path / out)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"seed": "x"}, "seed"), ({"fit": 1}, "fit"), ({"negative_prompt": 5}, "negative_prompt"),
     ({"sed": 1}, "unknown option 'sed'"), ({"adain": np.array(["none"])}, "adain")],
)  # fmt: skip
def test_a_job_s_options_are_checked_before_any_job_runs(options: dict[str, Any], named: str) -> None:
    check_options({"seed": np.int64(1), "fit": np.str_("pad"), "negative_prompt": None})
    with pytest.raises(InputError, match=named):
        check_options(options)


@pytest.mark.parametrize("second", ["b.gif", "b.avi", "a\0.mp4", f"{'b' * 250}.mp4"])
def test_no_folder_is_made_for_jobs_of_which_one_is_refused(second: str, tmp_path: Path) -> None:
    bundle = SimpleNamespace(
        manifest=SimpleNamespace(default_motion="m"), motion=lambda name: None, digest=""
    )
    pipeline: Any = SimpleNamespace(bundle=bundle, size=(32, 32))
    jobs = [
        Job("a", first_frame=PICTURE, out=tmp_path / "videos" / "a.mp4", fps=60),
        Job("b", first_frame=PICTURE, out=tmp_path / "videos" / second, fps=60),
    ]
    with pytest.raises(InputError, match=r"the output|fps is 60"):
        next(run_jobs(pipeline, jobs))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "argument", ["bundle", "engine_dir", "device", "motion", "verify_files", "num_threads"]
)
def test_load_refuses_wrong_types(argument: str, toy_bundle: Path) -> None:
    given: dict[str, Any] = {"bundle": toy_bundle, argument: b"x"}
    with pytest.raises(InputError, match=f"^{argument} is b'x'"):
        lamp_trt.load(**given)


def test_settings_that_a_caller_added_are_saved_or_refused_before_anything_is_written(tmp_path: Path) -> None:
    """As `before_save` may: the score of a classifier, say."""
    scored = dataclasses.replace(VIDEO, settings={"score": np.float32(0.5), "flag": np.True_})
    path = scored.save(tmp_path / "a.gif")
    stored = json.loads(path.with_name("a.gif.json").read_text())
    assert stored == {"score": 0.5, "flag": True, "fps": 8.0}
    meta = torch.empty((), device="meta")
    for value in (object(), np.zeros(2), {1, 2}, meta, math.nan, np.float32("inf"), [-math.inf]):
        wrong = {"score": value}
        frame = FirstFrame(PICTURE, np.zeros(1, np.float32), settings=wrong)
        for save in (dataclasses.replace(VIDEO, settings=wrong).save, frame.save):
            with pytest.raises(InputError, match="cannot be saved as JSON: "):
                save(tmp_path / "b.png")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.gif", "a.gif.json"]


@pytest.mark.parametrize("name", sorted({*INTEGERS, *NUMBERS, "adain", "histogram", "mix_noise"}))
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool])
def test_a_tensor_without_a_value_is_refused(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=f"^{name} is tensor"):
        GenerationConfig(**{name: torch.empty((), dtype=dtype, device="meta")})


def test_every_field_of_the_settings_is_json() -> None:
    config = GenerationConfig(seed=np.int64(1), adain_switch_step=np.int32(2))  # type: ignore[arg-type]
    assert json.loads(json.dumps(dataclasses.asdict(config))) == dataclasses.asdict(config)
