# SPDX-License-Identifier: Apache-2.0
"""/v1/videos/edits over an engine that sleeps: clips by upload and by id, refusals, and nothing left over."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("httpx", reason="needs httpx, of the extra dev")

import httpx

from lamp_trt.runtime.media.image import encode_png
from tests.runtime.media.clips import moving_picture, write_clip
from tests.serving.serving_process import Server, sleeping_server

PNG = encode_png(np.full((50, 80, 3), 100, np.uint8))
VIDEO_BYTES = 1 << 20


@pytest.fixture(scope="module")
def jobs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def server(jobs_dir: Path) -> Iterator[Server]:
    limits = {"video_bytes": VIDEO_BYTES, "body_bytes": 1 << 20, "image_bytes": 1 << 19}
    with sleeping_server(jobs_dir, limits=limits, settings={"plays": True, "steps": 3}) as running:
        running.health("ok")
        yield running


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", moving_picture(8)).read_bytes()


def edit(
    server: Server, video: bytes | str | None, frame: bytes | None = None, **fields: str
) -> httpx.Response:
    files: dict[str, Any] = {"unused": (None, "")}
    if isinstance(video, bytes):
        files["video"] = ("../../../etc/passwd", video, "video/mp4")
    elif video is not None:
        files["video"] = (None, video)
    if frame is not None:
        files["first_frame"] = ("x.png", frame, "image/png")
    del files["unused"]
    files |= {name: (None, value) for name, value in {"prompt": "a white horse", **fields}.items()}
    return server.http.post("/v1/videos/edits", files=files)


def left(jobs_dir: Path) -> list[str]:
    return sorted(
        path.name for path in (jobs_dir / "files").iterdir() if not path.name.endswith((".mp4", ".json"))
    )


def test_an_uploaded_clip_is_edited_and_then_removed(server: Server, clip: bytes, jobs_dir: Path) -> None:
    made = edit(server, clip, PNG, motion="b", start="2", every="1", seed="4")
    assert made.status_code == 200, made.text
    shown = made.json()
    assert (shown["motion"], shown["seed"]) == ("b", 4)
    assert shown["edit"] == {"start": 2, "every": 1, "video": None}
    assert server.ended(shown["id"])["status"] == "completed"
    assert left(jobs_dir) == []


def test_a_finished_video_is_edited_by_its_id_also_once_it_is_deleted(server: Server, jobs_dir: Path) -> None:
    source = server.create("rain")["id"]
    server.ended(source)
    running = server.create("rain")["id"]
    made = edit(server, source)
    assert made.status_code == 200, made.text
    assert made.json()["edit"]["video"] == source
    server.http.delete(f"/v1/videos/{source}")
    assert server.ended(made.json()["id"])["status"] == "completed"
    server.ended(running)
    assert left(jobs_dir) == []


@pytest.mark.parametrize(
    ("video", "fields", "param"),
    [
        (None, {}, "video"),
        ("", {}, "video"),
        ("video_0", {}, "video"),
        ("../../lock", {}, "video"),
        (b"", {}, "video"),
        (b"#EXTM3U\nfile:///etc/passwd\n", {}, "video"),
        (b"\0\0\0\x18ftypmp42" + b"\0" * 50, {}, "video"),
        ("whole", {"start": "6"}, "video"),
        ("whole", {"every": "0"}, "every"),
        ("whole", {"motion": "c"}, "motion"),
        ("whole", {"prompt": ""}, "prompt"),
        ("whole", {"input_reference": "x"}, "input_reference"),
        ("whole", {"first_frame_prompt": "x"}, "first_frame_prompt"),
        ("whole", {"mix_noise": "false"}, "mix_noise"),
        ("whole", {"first_frame": "http://127.0.0.1/x.png"}, "first_frame"),
        ("whole", {"size": "512x320"}, "size"),
        ("cut", {}, "video"),
        ("video_" + "0" * 32, {}, "video"),
        ("../../x", {}, "video"),
    ],
    ids=str,
)
def test_a_bad_edit_is_refused_with_its_field_and_leaves_nothing(
    server: Server, clip: bytes, jobs_dir: Path, video: Any, fields: dict[str, str], param: str
) -> None:
    video = (
        {"whole": clip, "cut": clip[: len(clip) // 2]}.get(video, video) if isinstance(video, str) else video
    )
    reply = edit(server, video, **fields)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    assert str(jobs_dir) not in reply.text
    assert left(jobs_dir) == []


def test_uploads_are_bounded(server: Server, clip: bytes, jobs_dir: Path) -> None:
    for video, frame, param in (
        (clip + b"\0" * VIDEO_BYTES, None, "video"),
        (clip, PNG + b"\0" * (1 << 19), "first_frame"),
    ):
        reply = edit(server, video, frame)
        assert (reply.status_code, reply.json()["error"]["param"]) == (413, param)
    reply = edit(server, clip + b"\0" * (2 * VIDEO_BYTES + 1))
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")
    large = {"input_reference": ("x", b"\0" * (1 << 20), "image/png")}
    assert server.http.post("/v1/videos", data={"prompt": "x"}, files=large).status_code == 413
    assert left(jobs_dir) == []


def test_only_forms_are_edits(server: Server) -> None:
    reply = server.http.post("/v1/videos/edits", json={"prompt": "x", "video": "video_0"})
    assert reply.status_code == 415


def test_a_client_that_leaves_while_it_uploads_leaves_nothing(server: Server, jobs_dir: Path) -> None:
    def body() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="video"; filename="x"\r\n\r\n' + b"x" * 100_000
        raise RuntimeError("left")

    headers = {"content-type": "multipart/form-data; boundary=b"}
    with contextlib.suppress(RuntimeError):
        server.http.post("/v1/videos/edits", content=body(), headers=headers)
    time.sleep(0.3)
    assert left(jobs_dir) == []
    assert server.http.get("/health").json()["status"] == "ok"
