# SPDX-License-Identifier: Apache-2.0
"""The page without a browser: its files, headers, markup without code, and what it reads from the server."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("httpx", reason="needs httpx, of the extra dev")

from lamp_trt.serving.jobs.fields import CLIP_OPTIONS, OPTIONS
from lamp_trt.serving.web.page import FOLDER, MAX_EXAMPLE_BYTES, TYPES, examples_of
from tests.serving.serving_process import Server, sleeping_server

TOKEN = "0123456789abcdefXYZ"
FILES = sorted(path.name for path in FOLDER.iterdir())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sleeping_server(tmp_path_factory.mktemp("jobs"), token=TOKEN) as running:
        yield running


def test_the_page_and_its_files_need_no_token_and_allow_no_foreign_or_inline_code(server: Server) -> None:
    assert len(FILES) > 8
    for path in ("/", *(f"/static/{name}" for name in FILES)):
        reply = server.http.get(path, headers={"authorization": ""})
        assert reply.status_code == 200, path
        assert reply.headers["content-type"] in TYPES.values()
        policy = dict(
            part.strip().partition(" ")[::2] for part in reply.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name", ["..%2fpage.py", "%2e%2e/page.py", "page.py", "", "index.html/", "x.js", "%00"]
)
def test_other_names_are_no_files(server: Server, name: str) -> None:
    assert server.http.get(f"/static/{name}").status_code in (404, 405)


def test_what_the_page_reads_needs_the_token(server: Server) -> None:
    for path in ("/v1/models", "/v1/motions/a/example", "/v1/videos"):
        assert server.http.get(path, headers={"authorization": ""}).status_code == 401
    (model,) = server.http.get("/v1/models").json()["data"]
    names = [each["name"] for each in model["settings"]]
    assert sorted(names) == sorted((*OPTIONS, *CLIP_OPTIONS, "fps"))
    assert model["examples"] == {}
    assert server.http.get("/v1/motions/a/example").status_code == 404


class Markup(HTMLParser):
    """Collects what a policy without inline code would block, ids, and what labels name."""

    def __init__(self) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.ids: list[str] = []
        self.named: set[str] = set()
        self.fields: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        self.inline += [tag] * (tag == "style" or (tag == "script" and "src" not in given))
        self.ids += [given[name] for name in ("id",) if name in given]
        self.addresses += [given[name] for name in ("src", "href") if name in given]
        for name in ("for", "aria-labelledby", "aria-describedby", "aria-controls"):
            self.named |= set(given.get(name, "").split())
        if tag in ("textarea", "select") or (tag == "input" and given.get("type") in ("text", "password")):
            self.fields.append(given["id"])


def test_the_markup_has_no_code_and_its_fields_have_labels() -> None:
    text = (FOLDER / "index.html").read_text()
    markup = Markup()
    markup.feed(text)
    assert markup.inline == []
    assert len(markup.ids) == len(set(markup.ids))
    assert markup.named <= set(markup.ids)
    labels = set(re.findall(r'<label[^>]* for="([^"]+)"', text))
    assert len(markup.fields) >= 4
    assert set(markup.fields) <= labels
    local = [each for each in markup.addresses if not each.startswith("#")]
    assert all((FOLDER / each.removeprefix("static/")).is_file() for each in local)


def test_the_scripts_use_ids_that_exist_and_load_nothing_from_elsewhere() -> None:
    markup = Markup()
    markup.feed((FOLDER / "index.html").read_text())
    for path in FOLDER.glob("*.js"):
        text = path.read_text()
        used = set(re.findall(r'byId\("([^"]+)"\)', text))
        assert used <= set(markup.ids), path
        for imported in re.findall(r'from "([^"]+)"', text):
            assert (FOLDER / imported).is_file(), path
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|https?://", text
        ), path


def test_examples_are_files_of_the_bundles_motions(tmp_path: Path) -> None:
    folder = tmp_path / "examples"
    folder.mkdir()
    for name in ("a.webp", "a.mp4", "b.gif", "c.txt", "other.webp"):
        (folder / name).write_bytes(b"x")
    with (folder / "d.mp4").open("wb") as file:
        file.truncate(MAX_EXAMPLE_BYTES + 1)
    found = examples_of(tmp_path, ("a", "b", "c", "d"))
    assert found == {"a": folder / "a.webp", "b": folder / "b.gif"}
    assert examples_of(tmp_path / "none", ("a",)) == {}
