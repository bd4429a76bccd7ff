# SPDX-License-Identifier: Apache-2.0
"""Text files as Windows, macOS and Linux write them: the same prompts, or what is wrong."""

import codecs
import json
from pathlib import Path

import pytest

from lamp_trt import cli
from lamp_trt.engine.errors import CheckpointError, InputError
from lamp_trt.engine.files.text import TextError, decode_text, text_lines
from lamp_trt.export.checkpoints.files import read_json
from lamp_trt.runtime.jobs import Job, job_from_sidecar, jobs_from_prompts_file

PROMPTS = ["ein Pferd läuft", "馬が走る", "# not a comment", "a\u2028b\x0cc\x85d\x0be", "a \x1c b"]
TEXT = "\n".join(PROMPTS) + "\n"
FOREIGN = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


def prompts_in(path: Path) -> list[str]:
    return [job.prompt for job in jobs_from_prompts_file(path, Job(""))]


@pytest.mark.parametrize("mark", ["", "\ufeff", "\ufeff\ufeff"], ids=["plain", "mark", "two marks"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n  \n", " \t\r\n"], ids=repr)
@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl", "PROMPTS.JSONL"])
def test_every_systems_file_gives_the_same_prompts(mark: str, end: str, name: str, tmp_path: Path) -> None:
    is_json = name.lower().endswith("l")
    lines = [json.dumps({"prompt": p}, ensure_ascii=False) if is_json else p for p in PROMPTS]
    (tmp_path / name).write_bytes((mark + end.join(lines) + end).encode())
    assert prompts_in(tmp_path / name) == PROMPTS


def test_marks_of_joined_files_and_mixed_line_ends_are_taken(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\ufefftwo\rthree\n\n\ufefffour".encode())
    assert prompts_in(tmp_path / "a.txt") == ["one", "two", "three", "four"]
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"prompt": "one"}\r\n\ufeff{"prompt": "two"}'.encode())
    assert prompts_in(tmp_path / "a.jsonl") == ["one", "two"]


def test_a_mark_before_a_prompt_in_json_goes(tmp_path: Path) -> None:
    line = {"prompt": "\ufeffa horse", "negative_prompt": "\ufeffblur"}
    for number, ascii_only in enumerate((True, False)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(line, ensure_ascii=ascii_only), encoding="utf-8")
        (job,) = jobs_from_prompts_file(path, Job(""))
        assert (job.prompt, job.options) == ("a horse", {"negative_prompt": "blur"})


@pytest.mark.parametrize("command", ["generate", "image"])
def test_a_mark_before_a_prompt_on_the_command_line_goes(command: str) -> None:
    """As `"$(cat prompt.txt)"` passes it on."""
    given = [command, "\ufeffa horse", "--bundle", "b", "--negative-prompt", "\ufeffblur"]
    arguments = cli._parser().parse_args(given)
    assert arguments.prompt in ("a horse", ["a horse"])
    assert arguments.negative_prompt == "blur"


def test_a_mark_inside_a_line_stays() -> None:
    assert text_lines("a\ufeffb") == ["a\ufeffb"]


@pytest.mark.parametrize("encoding", FOREIGN)
@pytest.mark.parametrize("text", ["a horse runs", TEXT, '{"prompt": "a horse"}', "馬 が 走る\n"])
def test_other_unicode_encodings_are_named(encoding: str, text: str, tmp_path: Path) -> None:
    name = "UTF-16" if "16" in encoding else "UTF-32"
    for file in ("p.txt", "p.jsonl", "clip.json", "config.json"):
        (tmp_path / file).write_bytes(text.encode(encoding))
    message = rf"is {name} text, expected UTF-8\. Save it as UTF-8"
    for file in ("p.txt", "p.jsonl"):
        with pytest.raises(InputError, match=rf"{file} {message}"):
            prompts_in(tmp_path / file)
    with pytest.raises(InputError, match=message):
        job_from_sidecar(tmp_path / "clip.json")
    with pytest.raises(CheckpointError, match=message):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a horse\nein Pferd l\xe4uft\n", "byte 12 of line 2 is 0xe4 .*Latin-1.*Save it as UTF-8"),
        (b"\x80", "byte 1 of line 1 is 0x80"),
        ("馬".encode("shift-jis"), "byte 1 of line 1 is 0x94"),
        ("cut 馬".encode()[:-1], "byte 5 of line 1 is 0xe9"),
        (b"\xed\xa0\x80", "byte 1 of line 1 is 0xed"),
        (b"a horse\nruns \0 and runs and runs and runs and runs", "byte 6 of line 2 is a NUL byte"),
        (b"\0" * 64, "byte 1 of line 1 is a NUL byte"),
    ],
)
def test_what_is_no_utf8_is_placed(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(InputError, match=rf"p\.txt is not .*text: {message}"):
        prompts_in(tmp_path / "p.txt")


def test_a_short_utf16_file_without_mark_is_named() -> None:
    with pytest.raises(TextError, match="is UTF-16"):
        decode_text("a".encode("utf-16-le"))
    assert decode_text(b"") == decode_text(codecs.BOM_UTF8) == ""


@pytest.mark.parametrize("key", ["seed", "prompt"])
def test_a_key_that_occurs_twice_is_refused(key: str, tmp_path: Path) -> None:
    line = f'{{"prompt": "a", "seed": 1, "{key}": 2}}'
    (tmp_path / "p.jsonl").write_text('{"prompt": "first"}\n' + line)
    with pytest.raises(InputError, match=rf"p\.jsonl, line 2 is not JSON: the key '{key}' occurs twice"):
        prompts_in(tmp_path / "p.jsonl")
    for file, error in (("clip.json", InputError), ("config.json", CheckpointError)):
        (tmp_path / file).write_text(line)
        with pytest.raises(error, match=f"the key '{key}' occurs twice"):
            (job_from_sidecar if file == "clip.json" else read_json)(tmp_path / file)


def test_a_config_with_a_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(codecs.BOM_UTF8 + b'{\r\n"a": 1}\r\n')
    assert read_json(tmp_path / "config.json") == {"a": 1}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", '{"prompt": "a"}\n{"prompt": "b"}\n'),
        ("p.ndjson", '\ufeff\r\n{"prompt": "a", "seed": 1}\r\n'),
        ("p.json", '[{"prompt": "a"}, {"prompt": "b"}]'),
        ("p.json", '[\n  {\n    "prompt": "a"\n  }\n]\n'),
        ("p.json", '{"prompts": ["a"]}'),
        ("p", '{"prompt": "a"}\nb\n'),
    ],
)
def test_json_given_as_lines_of_text_is_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"is JSON, expected a prompt a line.*\.jsonl"):
        prompts_in(tmp_path / name)


@pytest.mark.parametrize(
    "prompt", ["[a horse] runs", "{red|blue} car", "1", '"quoted"', "[1, 2]", "[", "{}x"]
)
def test_prompts_with_brackets_are_no_json(prompt: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(f"{prompt}\na car\n")
    assert prompts_in(tmp_path / "p.txt") == [prompt, "a car"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('"seed": 1e400', "seed is inf; expected an integer"),
        ('"seed": 1.5', r"seed is 1\.5"),
        ('"guidance_scale": NaN', "guidance_scale is nan"),
        ('"background": null', "background is None"),
        ('"background": "nocolour"', "background is 'nocolour'"),
        ('"fps": null', "fps is None"),
        ('"fps": 1000', "fps is 1000"),
        ('"fit": {"a": 1}', "fit is"),
        ('"negative_prompt": "\\ud800"', "is not all text"),
        ('"first_frame_num_inference_steps": 0', "first_frame_num_inference_steps is 0"),
    ],
)
def test_a_wrong_value_is_refused_with_its_line(fields: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "b", ' + fields + "}\n")
    with pytest.raises(InputError, match=rf"p\.jsonl, line 3: .*{message}"):
        prompts_in(tmp_path / "p.jsonl")
