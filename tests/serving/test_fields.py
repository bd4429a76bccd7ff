# SPDX-License-Identifier: Apache-2.0
"""Fields of requests under hypothesis: whatever comes is a checked request or a named refusal."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lamp_trt.runtime.algorithm.config import GenerationConfig
from lamp_trt.serving.jobs.fields import OPTIONS, OWN, FieldError, VideoFields, parse_fields
from lamp_trt.serving.settings import ModelInfo

MODEL = ModelInfo("toy", ("a", "b"), "a", (64, 96), 4, "off", False, True, "0" * 64)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([*OWN, *OPTIONS, "safety"]) | st.text()
TEXTS = st.text() | st.from_regex(r"[+-]?[0-9.eE]{0,45}", fullmatch=True)


def check(given_fields: dict[str, Any], has_frame: bool) -> None:
    refusal = None
    try:
        fields = parse_fields(given_fields, MODEL, has_frame=has_frame)
    except FieldError as error:
        refusal = error
    if refusal is not None:
        assert refusal.param in {
            "prompt",
            "preset",
            "input_reference",
            *(f"{name:.100}" for name in given_fields),
        }
        assert len(str(refusal)) < 2000
        return
    assert isinstance(fields, VideoFields)
    GenerationConfig(**fields.options)
    assert fields.prompt.strip()
    assert fields.motion in MODEL.motions


@pytest.mark.parametrize("values", [JSON, TEXTS], ids=["json", "form"])
def test_any_fields_are_checked_or_named(values: st.SearchStrategy[Any]) -> None:
    @given(st.dictionaries(NAMES, values, max_size=5), st.booleans(), st.booleans())
    @example({"seed": "9" * 40}, True, False)
    @example({"guidance_scale": "1e999"}, True, False)
    @settings(max_examples=80, deadline=None)
    def run(fields: dict[str, Any], with_prompt: bool, has_frame: bool) -> None:
        check({"prompt": "rain", **fields} if with_prompt else fields, has_frame)

    run()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_taken_from_a_form(name: str) -> None:
    """As its default, or a value of its kind, in text."""
    setting = OPTIONS[name]
    value = setting.default if setting.default is not None else {int: 3, str: "x"}.get(setting.kind)
    value = setting.choices[0] if setting.choices else value
    fields = parse_fields({"prompt": "rain", name: str(value)}, MODEL, has_frame=False)
    assert fields.options == {name: value}


def test_seconds_follow_the_frame_rate() -> None:
    assert parse_fields({"prompt": "x", "fps": "4", "seconds": "1"}, MODEL, has_frame=False).fps == 4
    with pytest.raises(FieldError, match=r"'0.5'"):
        parse_fields({"prompt": "x", "seconds": "1"}, MODEL, has_frame=False)
