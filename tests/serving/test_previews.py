# SPDX-License-Identifier: Apache-2.0

"""Previews over server-sent events: who gets them, when they are taken back, and what they hold."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("httpx", reason="needs httpx, of the extra dev")

from lamp_trt.serving.jobs.events import JobEvent, Subscription
from lamp_trt.serving.pools.previews import MAX_BYTES, webp_from_frames
from tests.serving.serving_process import Server, sleeping_server

STEPS = {"steps": 20, "step_seconds": 0.03}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sleeping_server(tmp_path_factory.mktemp("jobs"), settings=STEPS) as running:
        running.health("ok")
        yield running


def stream(server: Server, video: str, query: str = "") -> list[tuple[str, dict[str, Any]]]:
    text = server.http.get(f"/v1/videos/{video}/events{query}").text
    events = []
    for part in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in part.splitlines() if not line.startswith(":"))
        events.append((lines["event"], json.loads(lines["data"])))
    return events


def test_previews_are_animated_and_only_for_those_who_ask(server: Server) -> None:
    from PIL import Image

    video = server.create("rain")["id"]
    events = stream(server, video, "?previews=1")
    previews = [data for name, data in events if name == "preview"]
    assert len(previews) >= 3
    assert events[-1][0] == "completed"
    assert "withdrawn" not in [name for name, _ in events]
    with Image.open(io.BytesIO(base64.b64decode(previews[-1]["webp"]))) as picture:
        assert (picture.format, picture.size) == ("WEBP", (24, 16))
    assert [each["step"] for each in previews] == sorted(each["step"] for each in previews)
    names = {name for name, _ in stream(server, server.create("rain")["id"])}
    assert names == {"progress", "completed"}


@pytest.mark.parametrize("word", ["flagged", "kill at denoise always"])
def test_a_job_that_becomes_no_video_takes_its_previews_back(
    server: Server, word: str, tmp_path: Path
) -> None:
    events = stream(server, server.create(word)["id"], "?previews=1")
    names = [name for name, _ in events]
    assert "preview" in names
    assert names[-2:] == ["withdrawn", "failed"]
    assert "preview" not in names[names.index("withdrawn") :] or word != "flagged"


def test_a_refusal_before_the_first_step_has_no_previews(server: Server) -> None:
    names = [name for name, _ in stream(server, server.create("refuse")["id"], "?previews=1")]
    assert {"preview", "withdrawn"}.isdisjoint(names)
    assert names[-1] == "failed"


def test_a_deleted_job_takes_its_previews_back(server: Server) -> None:
    video = server.create("rain")["id"]
    seen = []
    with server.http.stream("GET", f"/v1/videos/{video}/events?previews=1") as reply:
        for line in reply.iter_lines():
            if line.startswith("event: "):
                seen.append(line.removeprefix("event: "))
            if seen.count("preview") == 1 and "withdrawn" not in seen and line == "":
                server.http.delete(f"/v1/videos/{video}")
    assert seen[-2:] == ["withdrawn", "deleted"]


def test_a_slow_client_loses_withdrawn_previews_unseen() -> None:
    slow, other = Subscription(previews=True), Subscription()
    for step in range(5):
        for name in ("progress", "preview"):
            for each in (slow, other):
                each.put(JobEvent(name, {"step": step}))
    assert [(event.name, event.data["step"]) for event in slow.pending] == [("progress", 4), ("preview", 4)]
    for each in (slow, other):
        each.put(JobEvent("withdrawn", {}))
        each.put(JobEvent("failed", {}))
    assert [event.name for event in slow.pending] == ["progress", "withdrawn", "failed"]
    assert [event.name for event in other.pending] == ["progress", "failed"]


def test_a_large_preview_has_fewer_frames() -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (24, 96, 160, 3), np.uint8)
    data = webp_from_frames(noise, 8)
    assert len(data) <= MAX_BYTES
    with Image.open(io.BytesIO(data)) as picture:
        frames = getattr(picture, "n_frames", 1)
        assert 1 <= frames < 24
