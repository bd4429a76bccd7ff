# SPDX-License-Identifier: Apache-2.0
"""Statements of README, CONTRIBUTING and docs, held against the code: options, defaults, files, messages."""

import argparse
import ast
import inspect
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

import lamp_trt
from lamp_trt.cli import _parser, main
from lamp_trt.runtime.jobs import OPTIONS, Job
from lamp_trt.runtime.pipeline import LampPipeline

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
README = (ROOT / "README.md").read_text()


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command by its words, like "motion add"."""

    def below(parser: argparse.ArgumentParser, words: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
        groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not groups:
            yield words, parser
        for name, sub in (item for group in groups for item in group.choices.items()):
            yield from below(sub, f"{words} {name}".strip())

    return dict(below(_parser(), ""))


def section(title: str) -> str:
    """The README's text under a heading, up to the next of that level or above."""
    level = title.partition(" ")[0]
    return re.split(rf"\n#{{2,{len(level)}}} ", README.split(f"\n{title}\n", 1)[1])[0]


def rows(text: str) -> list[list[str]]:
    """The cells of every row of the tables in `text`, without head and rule."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rules = [i for i, row in enumerate(cells) if all(re.fullmatch(r":?-+:?", cell) for cell in row)]
    return [row for i, row in enumerate(cells) if i not in rules and i + 1 not in rules]


# --- the command line ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", commands())
def test_help_explains_every_argument_and_states_each_default_once(name: str) -> None:
    parser = commands()[name]
    for action in parser._actions:
        assert action.help, f"{name} {action.dest} has no help"
        shown = str(parser._get_formatter()._expand_help(action))
        given = action.default not in (None, False, argparse.SUPPRESS) and action.default not in ([], (), "")
        assert shown.count("default: ") <= 1, shown
        assert "default: None" not in shown, shown
        if given:
            assert "default" in shown, shown


@pytest.mark.parametrize("name", ["build", "generate"])
def test_option_tables_are_the_parsers(name: str) -> None:
    """Every flag exists, and a default written as a number or a word in backticks is the parser's."""
    parser = commands()[name]
    defaults = {flag: action for action in parser._actions for flag in action.option_strings}
    texts = {
        flag: (action.help or "") % {**vars(action), "prog": ""}
        if isinstance(action.default, str) and action.default == argparse.SUPPRESS
        else str(action.default)
        for flag, action in defaults.items()
    }
    compared = 0
    for flags, default, *_ in rows(section(f"### lamp-trt {name}")):
        named = re.findall(r"--[a-z-]+", flags)
        assert all(flag in defaults for flag in named), flags
        values = default.split(", ")
        if len(named) == 1:
            values = [default]
        for flag, value in zip(named, values, strict=False):
            if re.fullmatch(r"`[a-z0-9_]+`|[\d.]+", value):
                assert value.strip("`") == texts[flag].removeprefix("of SDXL's loop; ").split("default: ")[-1]
                compared += 1
    assert compared >= 5


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_option_that_is_named_with_a_command_exists(document: Path) -> None:
    """Command lines in blocks are parsed by the real parser."""
    blocks = re.findall(r"^ {4,}(?:\$ )?(lamp-trt (?:.*\\\n)*.*)$", document.read_text(), re.MULTILINE)
    for block in blocks:
        line = block.replace("\\\n", " ").replace(" …", "")
        words = shlex.split(line, comments=True)[1:]
        if words[0] == "build" and "--out" not in words:  # an option on its own, to be added to others
            words += ["--out", "bundle"]
        _parser().parse_args(words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_flag_in_backticks_belongs_to_some_command(document: Path) -> None:
    known = {
        flag for parser in commands().values() for action in parser._actions for flag in action.option_strings
    }
    known |= {"--version"}
    tools = "\n".join(
        p.read_text()
        for folder in ("benchmarks", "serving/triton", "tests")
        for p in (ROOT / folder).rglob("*.py")
    )
    for code in re.findall(r"`([^`\n]+)`", document.read_text()):
        if re.match(r"(pip|pytest|git|python|make|cmake|ruff)", code):
            continue
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", code):
            assert flag in known or f'"{flag}"' in tools, f"{flag} in {code!r}"


def test_toy_prints_json_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_toy = SimpleNamespace(write_toy=lambda folder, seed: None)
    monkeypatch.setitem(sys.modules, "lamp_trt.export.toy.checkpoints", no_toy)
    assert main(["toy", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(tmp_path)}


# --- Python ----------------------------------------------------------------------------------------------


def test_the_readmes_signature_of_load_is_the_functions() -> None:
    stated = re.search(r"\*\*`lamp_trt\.load\((.*?)\)`\*\*", README, re.DOTALL)
    assert stated is not None
    function = ast.parse(f"def load({stated[1]}): ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    defaults = [ast.literal_eval(value) for value in function.args.defaults]
    real = [*inspect.signature(lamp_trt.load).parameters.values()]
    assert [argument.arg for argument in function.args.args] == [parameter.name for parameter in real]
    assert defaults == [parameter.default for parameter in real[1:]]


def test_the_readmes_arguments_of_a_call_are_the_pipelines() -> None:
    table = rows(section("## Python").split("**`pipe(prompt, *, …)`**")[1].split("Also:")[0])
    named = [re.findall(r"`(\w+)`", cells[0]) for cells in table]
    real = inspect.signature(LampPipeline.__call__).parameters
    assert {name for names in named for name in names} == set(real) - {"self"}
    for names, cells in zip(named, table, strict=True):
        for name, value in zip(names, cells[1].split(", "), strict=False):
            if re.fullmatch(r'`("\w+"|None|True|False)`|[\d.]+', value):
                assert ast.literal_eval(value.strip("`")) == real[name].default, name


def test_the_fields_of_a_jsonl_line_are_the_jobs() -> None:
    text = re.search(r"A line of a `\.jsonl` file has (.*?); the command line's", README, re.DOTALL)
    assert text is not None
    stated = re.findall(r"`(\w+)`", text[1])
    clip = ["video", "start", "every"]
    assert sorted(stated) == sorted(["prompt", "motion", "first_frame", "out", "fps", *clip, *OPTIONS])
    assert {"prompt", "motion", "first_frame", "out", "fps"} <= Job.__dataclass_fields__.keys()


# --- packages, files, messages ---------------------------------------------------------------------------


def test_the_table_of_extras_is_pyprojects() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    install = section("## Install")
    table = {cells[0].strip("`"): cells[1].lower() for cells in rows(install[install.index("\n| extra |") :])}
    assert set(table) - {"(none)"} == set(extras)
    for extra, requirements in extras.items():
        if extra == "dev":  # the table names its main tools
            continue
        names = [re.split(r"[\[<>=]", requirement)[0] for requirement in requirements]
        for name in names:
            assert name.removesuffix("-cu13") in table[extra], f"{extra} brings {name}"


def headings(document: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_exist(document: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", document.read_text()):
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        assert not anchor or anchor in headings(file), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_our_files_that_are_named_exist(document: Path) -> None:
    ours = r"`((?:engine|export|runtime|benchmarks|tests|src|docs)/[\w./*-]+\.\w+)`"
    for path in re.findall(ours, document.read_text()):
        assert any(ROOT.glob(path)), path
    for module in re.findall(r"python -m (lamp_trt[\w.]*)", document.read_text()):
        assert find_spec(module) is not None, module


def test_the_messages_of_the_troubleshooting_are_the_codes() -> None:
    folders = ("engine", "export", "runtime", "src/lamp_trt/commands", "install")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    code = "\n".join(path.read_text() for path in (*files, *(ROOT / "src/lamp_trt").glob("*.py")))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # adjacent string literals
    quoted = [
        part for cells in rows(section("## Troubleshooting")) for part in re.findall('"([^"]+)"', cells[0])
    ]
    assert len(quoted) >= 6
    for message in quoted:
        for part in re.split(r"…|\d+x\d+", message):
            assert part.strip(" ,") in code, message
