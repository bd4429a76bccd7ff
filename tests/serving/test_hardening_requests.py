# SPDX-License-Identifier: Apache-2.0
"""Hostile requests: whatever is sent, the reply is a result or a refusal, soon, and the server goes on."""

import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("httpx", reason="needs httpx, of the extra dev")

from lamp_trt.runtime.media.image import encode_png
from lamp_trt.serving.jobs.fields import CLIP_OPTIONS, EDIT_OWN, OPTIONS, OWN
from tests.fixtures.hostile import MAX_MESSAGE, TEXTS, VALUES, as_json
from tests.fixtures.torture import Tally, no_hang
from tests.serving.serving_process import Server, sleeping_server

pytestmark = pytest.mark.torture
FUZZ = settings.get_profile("hardening")

PNG = encode_png(np.full((8, 8, 3), 90, np.uint8))
NAMES = st.one_of(st.sampled_from(sorted({*OWN, *EDIT_OWN, *OPTIONS, *CLIP_OPTIONS})), TEXTS)
PATHS = ("/v1/videos", "/v1/videos/edits", "/v1/videos/sync")
BYTES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\0", b"-1", b"1e9", b"9" * 5000, b"\xff" * 40, b"chunked", b"127.0.0.1", b"*"]),
)
HEADERS = (b"Host", b"Origin", b"Authorization", b"Content-Length", b"Content-Type", b"Transfer-Encoding")
METHODS = (b"GET", b"POST", b"DELETE", b"PUT", b"HEAD", b"OPTIONS", b"PATCH", b"TRACE", b"x")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    quick = {"steps": 1, "step_seconds": 0.0}
    with sleeping_server(tmp_path_factory.mktemp("jobs"), settings=quick, max_queued=5000) as running:
        running.health("ok")
        yield running
        assert running.health("ok")["engines"][0]["restarts"] == 0
        assert running.ended(running.create()["id"])["status"] == "completed"


def exchanged(server: Server, request: bytes, tally: Tally) -> bytes:
    """The reply to the bytes of a request, after which the client sends no more."""
    address = urlsplit(server.url)
    start = time.monotonic()
    reply = b""
    with no_hang(), socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                reply += part
        except ConnectionError:  # the server has refused and closed while there was more to read
            pass
    tally("hostile requests", 1)
    tally("slowest hostile request, seconds", time.monotonic() - start)
    return reply


def check_reply(reply: bytes) -> None:
    """A status below 500, and an error of reasonable length. No bytes: the request was not whole. Of several
    replies, to as many requests in the bytes, the first is checked."""
    if not reply:
        return
    head, _, body = reply.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert 200 <= status < 500, reply[:500]
    if status >= 400 and body.startswith(b"{"):
        assert 5 < len(json.JSONDecoder().raw_decode(body.decode())[0]["error"]["message"]) < MAX_MESSAGE


def post(path: str, kind: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    )
    return head.encode("latin-1") + b"Connection: close\r\n\r\n" + body


def form(parts: list[tuple[bytes, bytes]]) -> bytes:
    """parts: headers and content of each."""
    return (
        b"".join(b"--b\r\n" + head + b"\r\n\r\n" + content + b"\r\n" for head, content in parts)
        + b"--b--\r\n"
    )


@settings(FUZZ)
@given(st.sampled_from(PATHS), st.dictionaries(NAMES, VALUES, max_size=4), st.booleans())
def test_any_json_is_a_job_or_a_refusal(
    server: Server, tally: Tally, path: str, fields: dict[str, object], prompt: bool
) -> None:
    given_fields = {"prompt": "rain", **fields} if prompt else fields
    check_reply(exchanged(server, post(path, "application/json", as_json(given_fields)), tally))


@settings(FUZZ)
@given(
    st.sampled_from(PATHS),
    BYTES,
    st.sampled_from(["application/json", "", "text/plain", "multipart/form-data"]),
)
def test_any_body_is_refused(server: Server, tally: Tally, path: str, body: bytes, kind: str) -> None:
    reply = exchanged(server, post(path, kind, body), tally)
    check_reply(reply)
    assert reply.split()[1].startswith(b"4")


@settings(FUZZ)
@given(st.data())
def test_any_form_is_a_job_or_a_refusal(server: Server, tally: Tally, data: st.DataObject) -> None:
    names = st.one_of(NAMES.map(lambda name: name.encode("utf-8", "replace")), BYTES)
    parts = [(b'Content-Disposition: form-data; name="prompt"', b"rain")]
    for _ in range(data.draw(st.integers(0, 3))):
        head = b'Content-Disposition: form-data; name="' + data.draw(names) + b'"'
        if data.draw(st.booleans()):
            head += b'; filename="' + data.draw(BYTES) + b'"\r\nContent-Type: ' + data.draw(BYTES)
        parts.append((head, data.draw(st.one_of(BYTES, st.just(PNG)))))
    body = bytearray(form(parts))
    for _ in range(data.draw(st.integers(0, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.integers(0, 5)) == 0:
        del body[data.draw(st.integers(0, len(body) - 1)) :]
    path = data.draw(st.sampled_from(PATHS))
    check_reply(exchanged(server, post(path, "multipart/form-data; boundary=b", bytes(body)), tally))


@settings(FUZZ)
@given(st.sampled_from(METHODS), TEXTS, st.lists(st.tuples(st.sampled_from(HEADERS), BYTES), max_size=4))
def test_any_head_is_answered_or_refused(
    server: Server, tally: Tally, method: bytes, path: str, headers: list[tuple[bytes, bytes]]
) -> None:
    lines = [method + b" /v1/videos/" + quote(path.encode("utf-8", "replace")).encode() + b" HTTP/1.1"]
    lines += [b"Host: localhost"] if all(name != b"Host" for name, _ in headers) else []
    lines += [name + b": " + value for name, value in headers]
    reply = exchanged(server, b"\r\n".join([*lines, b"Connection: close", b"", b""]), tally)
    check_reply(reply)
    assert not reply or reply.split()[1].startswith(b"4"), (lines, reply[:300])


@settings(FUZZ)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_refused(server: Server, tally: Tally, sent: bytes, with_line: bool) -> None:
    reply = exchanged(
        server, (b"POST /v1/videos HTTP/1.1\r\n" if with_line else b"") + sent + b"\r\n\r\n", tally
    )
    check_reply(reply)
    assert not reply or reply.split()[1].startswith(b"4"), reply[:300]
