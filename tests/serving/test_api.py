# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E402 - imports that need what may be missing come after the skips
"""The HTTP API over an engine that sleeps: fields, uploads, events, lists, refusals."""

import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx, of the extra dev")

from lamp_trt.runtime.media.image import encode_png
from tests.doubles.sleeping_engine import VIDEO
from tests.serving.serving_process import Server, sleeping_server

PNG = encode_png(np.full((50, 80, 3), 100, np.uint8))
TOKEN = "0123456789abcdefXYZ"
IMAGE_BYTES = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = {"image_bytes": IMAGE_BYTES, "body_bytes": 2 << 20}
    with sleeping_server(tmp_path_factory.mktemp("jobs"), limits=limits) as running:
        running.health("ok")
        yield running


def upload(server: Server, data: bytes, name: str = "x.png", **fields: str) -> "httpx.Response":
    files = {"input_reference": (name, data, "image/png")}
    return server.http.post("/v1/videos", data={"prompt": "rain", **fields}, files=files)


def test_a_video_is_made_polled_listed_read_and_deleted(server: Server) -> None:
    made = server.create("rain", motion="b", seed=7, guidance_scale=3.5)
    assert (made["object"], made["motion"], made["seed"], made["size"]) == ("video", "b", 7, "96x64")
    assert made["guidance_scale"] == 3.5
    ended = server.ended(made["id"])
    assert (ended["status"], ended["progress"], ended["error"]) == ("completed", 100, None)
    content = server.http.get(f"/v1/videos/{made['id']}/content")
    assert content.content == VIDEO + b"rain"
    assert content.headers["content-type"] == "video/mp4"
    assert server.http.get(f"/v1/videos/{made['id']}/content?variant=settings").json() == {}
    listed = server.http.get("/v1/videos?limit=1").json()
    assert [each["id"] for each in listed["data"]] == [made["id"]]
    assert server.http.get(f"/v1/videos?order=asc&after={made['id']}").json()["data"] == []
    assert server.http.delete(f"/v1/videos/{made['id']}").json() == {
        "id": made["id"],
        "object": "video.deleted",
        "deleted": True,
    }
    for path in ("", "/content", "/events"):
        assert server.http.get(f"/v1/videos/{made['id']}{path}").status_code == 404


def test_events_tell_progress_to_the_end(server: Server) -> None:
    made = server.create()
    text = server.http.get(f"/v1/videos/{made['id']}/events").text
    events = [dict(line.split(": ", 1) for line in part.splitlines()) for part in text.strip().split("\n\n")]
    assert events[-1]["event"] == "completed"
    progress = [json.loads(each["data"])["progress"] for each in events]
    assert progress == sorted(progress)
    assert len(progress) >= 4
    assert {each["event"] for each in events[:-1]} <= {"queued", "progress"}


def test_the_synchronous_reply_is_the_video(server: Server) -> None:
    reply = server.http.post("/v1/videos/sync", json={"prompt": "at once"})
    assert reply.content == VIDEO + b"at once"
    assert server.get(reply.headers["x-video-id"])["status"] == "completed"


def test_models_and_health_say_what_is_filtered(server: Server) -> None:
    (model,) = server.http.get("/v1/models").json()["data"]
    assert (model["id"], model["motions"], model["seconds"]) == ("toy", ["a", "b"], "0.5")
    assert (model["safety"], model["has_safety_checker"]) == ("off", False)
    health = server.http.get("/health").json()
    assert (health["status"], health["safety"]) == ("ok", "off")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": " "}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "x" * 200_000}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"model": "other"}, "model"),
        ({"motion": "c"}, "motion"),
        ({"motion": ["a"]}, "motion"),
        ({"seconds": "4"}, "seconds"),
        ({"seconds": True}, "seconds"),
        ({"size": "512x320"}, "size"),
        ({"fps": 0}, "fps"),
        ({"fps": "8x"}, "fps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": "1.5"}, "seed"),
        ({"num_inference_steps": "0"}, "num_inference_steps"),
        ({"guidance_scale": "nan"}, "guidance_scale"),
        ({"preset": "best"}, "preset"),
        ({"fit": "x"}, "fit"),
        ({"background": "no colour"}, "background"),
        ({"safety": "off"}, "safety"),
        ({"mix_noise": False}, "mix_noise"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"input_reference": "http://127.0.0.1/x.png"}, "input_reference"),
        ({"input_reference": "file:///etc/passwd"}, "input_reference"),
        ({"input_reference": {"file_id": "x"}}, "input_reference"),
        ({"input_reference": {"image_url": "data:image/png;base64,@@"}}, "input_reference"),
    ],
    ids=str,
)
def test_a_bad_field_is_named_and_queues_nothing(server: Server, fields: dict[str, Any], param: str) -> None:
    whole = fields if param == "prompt" else {"prompt": "rain", **fields}
    reply = server.http.post(
        "/v1/videos", content=json.dumps(whole), headers={"content-type": "application/json"}
    )
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
    assert len(reply.text) < 2000
    assert server.metric("lamp_trt_queue_length") == 0


def part(name: bytes, value: bytes) -> bytes:
    """A form of one text, with the boundary b."""
    return b'--b\r\nContent-Disposition: form-data; name="' + name + b'"\r\n\r\n' + value + b"\r\n--b--\r\n"


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"prompt": NaN}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"x", "text/plain", 415),
        (b"x", "multipart/form-data", 400),
        (b"x", "multipart/form-data; boundary=b", 400),
        (b"--b\r\n\r\nx", "multipart/form-data; boundary=b", 400),
        (b"prompt=a&prompt=b", "application/x-www-form-urlencoded", 400),
        (b"prompt=a&" + b"&".join(b"x%d=1" % i for i in range(50)), "application/x-www-form-urlencoded", 400),
        (b"prompt=%E4", "application/x-www-form-urlencoded", 400),
        (b"prompt=\xe4", "application/x-www-form-urlencoded", 400),
        ('{"prompt": "x"}'.encode("utf-16"), "application/json", 400),
        (b'{"prompt": "x", "prompt": "y"}', "application/json", 400),
        (part(b"prompt", b"l\xe4uft"), "multipart/form-data; boundary=b", 400),
        (part(b"pr\xf6mpt", b"x"), "multipart/form-data; boundary=b", 400),
        (part(b"prompt", b"x"), "multipart/form-data; boundary=b; charset=latin-1", 415),
        (part(b"prompt", b"+2AA-"), "multipart/form-data; boundary=b; charset=utf-7", 415),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(
    server: Server, content: bytes, kind: str, status: int
) -> None:
    reply = server.http.post("/v1/videos", content=content, headers={"content-type": kind})
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["message"]


PROMPT = "ein Pferd läuft, 馬"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (json.dumps({"prompt": PROMPT}).encode(), "application/json"),
        (b"\xef\xbb\xbf" + json.dumps({"prompt": PROMPT}, ensure_ascii=False).encode(), "application/json"),
        (b"prompt=" + PROMPT.encode(), "application/x-www-form-urlencoded"),
        (b"prompt=" + quote(PROMPT).encode(), "application/x-www-form-urlencoded; charset=UTF-8"),
        (part(b"prompt", PROMPT.encode()), "multipart/form-data; boundary=b"),
        (part(b"prompt", PROMPT.encode()), 'multipart/form-data; charset=utf-8; boundary="b"'),
    ],
)
def test_a_prompt_arrives_as_it_was_sent(server: Server, content: bytes, kind: str) -> None:
    reply = server.http.post("/v1/videos", content=content, headers={"content-type": kind})
    assert reply.status_code == 200, reply.text
    assert reply.json()["prompt"] == PROMPT


@pytest.mark.parametrize("body", ['{"\\ud800": 1, "prompt": "x"}', '{"prompt": "x", "motion": "\\udfff"}'])
def test_a_reply_can_say_what_is_no_text(server: Server, body: str) -> None:
    reply = server.http.post("/v1/videos", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400, reply.text
    assert "\\\\ud" in reply.text


def test_form_texts_are_numbers(server: Server) -> None:
    fields = {"prompt": "rain", "seed": "18446744073709551615", "num_inference_steps": "3", "seconds": "0.5"}
    reply = server.http.post("/v1/videos", data=fields)
    assert (reply.json()["seed"], reply.json()["num_inference_steps"]) == (2**64 - 1, 3)


# --- images ----------------------------------------------------------------------------------------------


def test_an_upload_never_names_a_file(server: Server, tmp_path: Path) -> None:
    reply = upload(server, PNG, "../../../etc/passwd")
    assert reply.status_code == 200, reply.text
    assert server.ended(reply.json()["id"])["status"] == "completed"
    text = json.dumps(reply.json())
    assert "passwd" not in text


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return PNG[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + PNG[33:]


def flat_png(width: int, height: int) -> bytes:
    """A whole PNG of one colour, small as a file."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"not an image", 400),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 400),
        (PNG[:-20], 400),
        (PNG[:40], 400),
        (png_claiming(60000, 60000), 400),
        (png_claiming(1, 2**31 - 1), 400),
        (b"#EXTM3U\nfile:///etc/passwd\n", 400),
        (b"%!PS\n(/etc/passwd) (r) file\n", 400),
        (PNG + b"\0" * IMAGE_BYTES, 413),
    ],
    ids=["empty", "text", "svg", "cut", "header", "60000x60000", "line", "playlist", "postscript", "large"],
)
def test_a_hostile_image_is_refused(server: Server, data: bytes, status: int) -> None:
    reply = upload(server, data)
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, "input_reference"), reply.text
    assert upload(server, PNG).status_code == 200


def test_a_bomb_of_64_megapixels_is_refused(server: Server) -> None:
    bomb = flat_png(8192, 8192)
    assert len(bomb) < IMAGE_BYTES
    reply = upload(server, bomb)
    assert reply.status_code == 400
    assert "34 million pixels" in reply.json()["error"]["message"]


def test_first_frame_settings_and_an_image_exclude_each_other(server: Server) -> None:
    reply = upload(server, PNG, first_frame_prompt="a horse")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "first_frame_prompt")


# --- sizes, Host, Origin ---------------------------------------------------------------------------------


def raw(server: Server, request: bytes) -> bytes:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        reply = b""
        while part := connection.recv(4096):
            reply += part
            if b"\r\n\r\n" in reply:
                break
    return reply


def test_a_body_is_limited_by_its_header_before_it_comes(server: Server) -> None:
    request = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    assert raw(server, request).startswith(b"HTTP/1.1 413")


def test_a_body_without_a_length_is_counted(server: Server) -> None:
    head = "POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    size = (2 << 20) + 1
    body = f"Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n".encode() + b"x" * size
    assert raw(server, head.encode() + body).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:80", 200),
        ("127.0.0.1", 200),
        ("[::1]:9", 200),
        ("LOCALHOST", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1@evil.example", 421),
        ("", 421),
        ("[", 421),
    ],
)
def test_only_known_hosts_are_answered(server: Server, host: str, status: int) -> None:
    request = f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    assert raw(server, request).startswith(f"HTTP/1.1 {status}".encode())


@pytest.mark.parametrize("origin", ["null", "http://evil.example", "http://localhost:1", "https://[", ""])
def test_foreign_origins_are_refused(server: Server, origin: str) -> None:
    for method in ("GET", "POST", "DELETE", "OPTIONS"):
        reply = server.http.request(method, "/v1/videos", headers={"origin": origin})
        assert reply.status_code == 403
        assert "access-control-allow-origin" not in reply.headers


def test_the_own_origin_is_answered(server: Server) -> None:
    reply = server.http.get("/v1/videos", headers={"origin": server.url})
    assert reply.status_code == 200
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_an_id_is_no_path(server: Server) -> None:
    for name in ("..%2f..%2fetc%2fpasswd", "%00", "x" * 5000, "video_"):
        assert server.http.get(f"/v1/videos/{name}/content").status_code == 404


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the client's, of its videos
def test_the_openai_client_creates_polls_and_reads(server: Server) -> None:
    openai = pytest.importorskip("openai", reason="needs openai, of the extra dev")
    client = openai.OpenAI(api_key="ignored", base_url=f"{server.url}/v1", max_retries=0)
    video = client.videos.create_and_poll(
        prompt="by the client", extra_body={"motion": "b", "seed": 3}, input_reference=("x.png", PNG)
    )
    assert video.status == "completed"
    content = client.videos.download_content(video.id).read()
    assert content == VIDEO + b"by the client"
    assert video.id in [each.id for each in client.videos.list(limit=5)]
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.BadRequestError, match="size"):
        client.videos.create(prompt="x", size="720x1280")
    client.close()


def test_a_token_is_required_and_stands_in_no_output(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with sleeping_server(tmp_path / "jobs", token=TOKEN, host="127.0.0.1") as server:
        assert server.http.get("/v1/models").status_code == 200
        for wrong in ("", TOKEN, f"Bearer {TOKEN}x", "Bearer \xff", f"Basic {TOKEN}"):
            reply = server.http.get("/v1/models", headers={"authorization": wrong.encode("latin-1")})
            assert reply.status_code == 401
        assert server.http.get(f"/v1/models?token={TOKEN}", headers={"authorization": ""}).status_code == 401
        assert server.http.get("/health", headers={"authorization": ""}).status_code in (200, 503)
        server.health("ok")
        time.sleep(0.1)
    out = capfd.readouterr()
    assert TOKEN not in out.out + out.err
    stored = b"".join(path.read_bytes() for path in (tmp_path / "jobs").iterdir() if path.is_file())
    assert TOKEN.encode() not in stored
