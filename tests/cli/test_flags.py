# SPDX-License-Identifier: Apache-2.0
"""Options, job keys and sidecar keys that are made from the fields of settings records; bars of progress."""

import argparse
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lamp_trt
from lamp_trt.commands.bars import Bars
from lamp_trt.commands.flags import add_settings, flag, given
from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import SETTINGS, Fit, GenerationConfig, checked, setting, settings_of
from lamp_trt.runtime.jobs import FIRST_FRAME_OPTIONS, OPTIONS
from lamp_trt.runtime.requests import Placement


def even(name: str, value: Any) -> int:
    if value % 2:
        raise InputError(f"{name} is {value}; expected an even number.")
    return value


@dataclass(frozen=True)
class Record:
    """One setting of each kind, the last one with a check of its own."""

    num_inference_steps: int = setting(3, "of a loop", low=1, high=9, metavar="STEPS")
    scale: float = setting(0.5, "of guidance")
    name: str | None = setting(None, "default: nobody's")
    fit: Fit | None = setting(None, "default: none")
    mode: Fit = setting("crop", "of an image")
    pair: int = setting(2, "of two", check=even)
    made: int = 0

    def __post_init__(self) -> None:
        vars(self).update(checked(self))


def parsed(*arguments: str, suppress: bool = False) -> dict[str, Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_settings(parser, settings_of(Record), suppress=suppress)
    return given(parser.parse_args(arguments), settings_of(Record))


def test_a_field_is_an_option_with_its_type_choices_and_default() -> None:
    assert parsed() == {key: value for key, value in vars(Record()).items() if key != "made"}
    taken = parsed("--steps=7", "--scale=2", "--name=x", "--fit=pad", "--mode=stretch", "--pair=4")
    assert Record(**taken) == Record(7, 2.0, "x", "pad", "stretch", 4)
    assert parsed("--steps=7", suppress=True) == {"num_inference_steps": 7}


@pytest.mark.parametrize("argument", ["--fit=squeeze", "--steps=x", "--pair=3", "--made=1"])
def test_what_no_field_takes_is_refused(argument: str) -> None:
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        parsed(argument)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0; expected an integer from 1 to 9"),
        ({"scale": "1"}, "scale is '1'; expected a finite number"),
        ({"scale": None}, "scale is None"),
        ({"name": 3}, "name is 3; expected a string"),
        ({"fit": "squeeze"}, "fit is 'squeeze'; choose one of stretch, crop, pad"),
        ({"mode": None}, "mode is None; choose one of"),
        ({"pair": 3}, "pair is 3; expected an even number"),
    ],
)
def test_a_record_refuses_what_its_fields_exclude(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Record(**change)


def test_a_record_holds_pythons_own_values() -> None:
    record = Record(np.int32(4), np.float32(0.5), np.str_("x"), np.str_("pad"))  # type: ignore[arg-type]
    kinds = [type(getattr(record, name)) for name in ("num_inference_steps", "scale", "name", "fit")]
    assert kinds == [int, float, str, str]


def test_every_setting_of_a_video_is_an_option_a_job_key_and_where_it_belongs_a_sidecar_key(
    toy_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lamp_trt.cli import main

    assert main(["generate", "--help"]) == 0
    text = capsys.readouterr().out
    for each in SETTINGS:
        assert each.help
        assert (f"{flag(each.name)} " in text) == each.in_jobs, each.name
        assert (each.name in OPTIONS) == each.in_jobs
    assert all(name in OPTIONS for name in FIRST_FRAME_OPTIONS)
    with lamp_trt.load(toy_bundle, num_threads=1) as pipe:
        settings = pipe("x", first_frame=np.zeros((64, 64, 3), np.uint8), num_inference_steps=1).settings
    assert [key for key in settings if key not in dict.fromkeys(s.name for s in SETTINGS)] == [
        "prompt",
        "motion",
        "first_frame_png",
        "safety_flagged",
        "injected",
        "cpu_precision",
        "bundle",
        "lamp_trt",
    ]
    assert settings == {**settings, **GenerationConfig(num_inference_steps=1).kept("video")}
    json.dumps(settings)


def test_a_placement_is_the_options_of_where_networks_run() -> None:
    names = [each.name for each in settings_of(Placement)]
    assert names == ["device", "backend", "num_threads", "engine_dir", "resident_motions", "cpu_precision"]
    assert Placement(engine_dir="x").engine_dir == Path("x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="engine_dir is 3; expected a path"):
        Placement(engine_dir=3)  # type: ignore[arg-type]


# --- bars ---------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report(bars: Bars) -> None:
    for stage, total in (("make_first_frame", 2), ("denoise", 3)):
        for done in range(total + 1):
            bars(stage, done, total)


def test_a_terminal_shows_a_bar_for_each_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Bars() as bars:
        report(bars)
        report(bars)
    lines = [line.split("\r")[-1] for line in terminal.getvalue().split("\n")[:-1]]
    assert [line.partition(":")[0] for line in lines] == ["first frame", "denoising"] * 2
    assert ["2/2" in line or "3/3" in line for line in lines] == [True] * 4


def test_a_bar_that_is_left_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def interrupted() -> None:
        with Bars() as bars:
            bars("denoise", 0, 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.getvalue().endswith("\n")


def test_no_terminal_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Bars() as bars:
        report(bars)
    assert stream.getvalue() == ""
