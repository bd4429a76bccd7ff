# SPDX-License-Identifier: Apache-2.0
"""Messages advise options: those exist, in the command that the message names."""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import lamp_trt
from lamp_trt.cli import _parser

_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
_OTHERS = re.compile(r"pip install|pip uninstall|nvcc|polygraphy|git |var\(--|--upgrade\.?$")
"""Of other programs' command lines, and CSS."""
FOLDERS = ("engine", "export", "runtime", "benchmarks", "commands", "doctor")


def parsers(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, set[str]]]:
    """The options of each command, by its words."""
    yield name, set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, sub in action.choices.items():
                yield from parsers(sub, f"{name} {word}".strip())


def messages(source: Path) -> Iterator[tuple[int, str]]:
    """Every string of a module, values of f-strings as "…", without docstrings."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in inner | docstrings:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            yield node.lineno, "".join(map(str, parts))


def wrong_options(text: str, commands: dict[str, set[str]]) -> list[str]:
    """Options in `text` that no command has, or not the command that comes before them in `text`."""
    everywhere = set().union(*commands.values())
    wrong = [option for option in _OPTION.findall(text) if option not in everywhere]
    for named in re.finditer(r"lamp-trt ((?:[a-z]+ ?)+)([^`\n]*)", text):
        words = named[1].split()
        known = [" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in commands]
        if known:
            wrong += [option for option in _OPTION.findall(named[2]) if option not in commands[known[0]]]
    return wrong


def test_every_option_that_a_message_names_exists_where_it_says() -> None:
    commands = dict(parsers(_parser()))
    package = Path(lamp_trt.__file__).parent
    sources = [*package.glob("*.py"), *(path for name in FOLDERS for path in (package / name).rglob("*.py"))]
    looked_at, wrong = 0, []
    for source in sources:
        tool = source.name != "cli.py" and "ArgumentParser(" in source.read_text(encoding="utf-8")
        if tool or "proof" in source.parts:
            continue  # has options of its own
        for line, text in messages(source):
            if " " in text and _OPTION.search(text) and not _OTHERS.search(text):
                looked_at += 1
                wrong += [f"{source.name}:{line} {option}" for option in wrong_options(text, commands)]
    assert looked_at > 40
    assert wrong == []


def test_the_check_notices_options_of_other_commands_and_of_none() -> None:
    commands = dict(parsers(_parser()))
    assert wrong_options("use --frobnicate", commands) == ["--frobnicate"]
    assert wrong_options("run: lamp-trt motion add … --out DIR", commands) == ["--out"]
    assert wrong_options("run: lamp-trt build --sd DIR --out DIR", commands) == []
