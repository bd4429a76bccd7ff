# SPDX-License-Identifier: Apache-2.0
"""Video files with bytes changed anywhere, and what their decoder opens."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from lamp_trt.runtime.media.clip.reader import read_clip
from lamp_trt.runtime.media.video import save_frames
from lamp_trt.runtime.requests import ClipRequest
from tests.fixtures.hostile import read_or_refused
from tests.fixtures.torture import Budget, Tally
from tests.runtime.media.clips import SIZE, moving_picture, write_clip
from tests.system_trace import finish, require_strace, start

FRAMES = moving_picture(5)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sources")
    return {
        "mp4": write_clip(folder / "a.mp4", FRAMES).read_bytes(),
        "webm": write_clip(folder / "a.webm", FRAMES, "libvpx-vp9", "yuv420p").read_bytes(),
        "gif": save_frames(FRAMES, folder / "a.gif").read_bytes(),
    }


def damaged(data: bytes, rng: random.Random) -> bytes:
    """`data` with bytes changed, a part removed, or cut off."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 3, 30])):
        # headers hold the sizes and counts, so half of the changes are there
        place = rng.randrange(min(len(changed), rng.choice([200, len(changed)])))
        changed[place] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
    kind, place = rng.randrange(4), rng.randrange(len(changed))
    if kind == 0:
        return bytes(changed[:place])
    if kind == 1:
        return bytes(changed[:place] + changed[place + rng.randrange(1, 100) :])
    return bytes(changed)


@pytest.mark.torture
@pytest.mark.parametrize("kind", ["mp4", "webm", "gif"])
def test_damaged_videos_are_read_or_refused(
    kind: str,
    sources: dict[str, bytes],
    tmp_path: Path,
    tally: Tally,
    budget: Budget,
    request: pytest.FixtureRequest,
) -> None:
    rng, path = random.Random(kind), tmp_path / f"a.{kind}"
    torture = request.config.getoption("--torture-minutes")
    for _ in budget.rounds(1000, 0.02) if torture else range(4):
        path.write_bytes(damaged(sources[kind], rng))
        read_or_refused(lambda: read_clip(ClipRequest(path), 2, *SIZE), tally)
    path.write_bytes(sources[kind])
    assert read_or_refused(lambda: read_clip(ClipRequest(path), 2, *SIZE), tally)


@pytest.mark.parametrize("hostile", [False, True])
def test_the_decoder_writes_no_file_and_talks_to_nobody(
    hostile: bool, sources: dict[str, bytes], tmp_path: Path
) -> None:
    """hostile: a playlist in a mov, which names a file and an address."""
    require_strace()
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\nfile:///etc/passwd\n"
    path, out = tmp_path / "a.mp4", tmp_path / "out"
    path.write_bytes(b"\0\0\0\x08free" + playlist if hostile else sources["mp4"])
    arguments = json.dumps({"start": 0, "every": 1, "count": 2, "max_frames": 100})
    code = "-B -P -m lamp_trt.runtime.media.clip.decoder"
    command = ["sh", "-c", f"exec {sys.executable} {code} '{arguments}' <{path} | cat >{out}"]
    log = tmp_path / "log"
    trace = finish(start(command, tmp_path, log, dict(os.environ)), tmp_path, log)
    assert trace.returncode == 0
    assert trace.network == []
    assert trace.written_outside(out) == []
    assert "passwd" not in log.read_text(errors="replace").replace(str(playlist), "")
    last = json.loads(b"{" + out.read_bytes().rpartition(b"{")[2])
    assert ("error" in last) == hostile
    assert hostile or last["count"] == len(FRAMES)


def test_the_decoders_process_is_limited(tmp_path: Path) -> None:
    """Too large an allocation, another file, a socket and a growing file fail."""
    code = """
import os, socket
from lamp_trt.runtime.media.clip.limits import MEMORY_BYTES, limit_this_process
limit_this_process()
for attempt in (
    lambda: bytearray(MEMORY_BYTES),
    lambda: os.open("/etc/passwd", os.O_RDONLY),
    lambda: socket.socket(),
    lambda: os.write(1, b"x"),
):
    try:
        attempt()
    except (MemoryError, OSError) as error:
        os.write(2, f"{type(error).__name__} {getattr(error, 'strerror', '')};".encode())
"""
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=out, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.stderr.split(";")[:-1] == [
        "MemoryError ",
        "OSError Too many open files",
        "OSError Too many open files",
        "OSError File too large",
    ]
