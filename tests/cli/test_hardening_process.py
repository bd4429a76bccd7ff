# SPDX-License-Identifier: Apache-2.0
"""The process as a whole: command lines, images, the network, the environment, and what is depended on."""

import ast
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lamp_trt
from lamp_trt.cli import OFFLINE, main
from lamp_trt.engine.bundle.digests import DigestCache
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import BundleError
from lamp_trt.runtime.media.image_files import read_image
from tests.fixtures.hostile import TEXTS, read_or_refused
from tests.fixtures.image_zoo import saved
from tests.fixtures.torture import Tally, no_hang

pytestmark = pytest.mark.torture
FUZZ = settings.get_profile("hardening")
ROOT = Path(__file__).parents[2]
PACKAGES = ("engine", "export", "runtime", "benchmarks", "src/lamp_trt/commands", "src/lamp_trt/doctor")

# --- command lines -------------------------------------------------------------------------------------

FLAGS = {
    "generate": "bundle first-frame background seed steps guidance-scale fps out fit prompts from motion "
    "num-threads adain-switch-step device json backend engine-dir expect-bundle format before-save preset",
    "image": "bundle seed steps guidance-scale out negative-prompt",
    "build": "out sd motion sdxl precision height width frames only",
    "inspect": "verify-files json",
    "motion": "default json",
    "verify": "sd motion steps num-threads out",
}
WORDS = st.one_of(
    TEXTS.filter(lambda text: "\0" not in text),
    st.sampled_from(
        ["-1", "0", "1e309", "nan", "9" * 5000, str(2**64), "a=b", "=", "a:b", "BUNDLE", "/dev/null"]
    ),
)


@settings(FUZZ, max_examples=FUZZ.max_examples * 2)
@given(st.data())
def test_any_command_line_is_carried_out_or_refused_in_a_few_lines(
    toy_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    tally: Tally,
    data: st.DataObject,
) -> None:
    command = data.draw(st.sampled_from(sorted(FLAGS)))
    flags = st.sampled_from([f"--{flag}" for flag in FLAGS[command].split()])
    words = data.draw(st.lists(st.one_of(flags, WORDS), max_size=8))
    if command == "motion":
        words.insert(0, data.draw(st.sampled_from(["add", "list", "remove", "x"])))
    argv = [command, *(str(toy_bundle) if word == "BUNDLE" else word for word in words)]
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("cwd"))
    try:
        with no_hang():
            code = main(argv)
    except SystemExit as exit:  # argparse
        code = int(exit.code or 0)
    finally:
        os.chdir(before)
    error = capsys.readouterr().err
    assert code in (0, 1, 2), error
    assert code == 0 or 0 < len(error) < 60_000
    assert "Traceback" not in error
    tally("command lines tried", 1)


@pytest.mark.parametrize("option", ["--height", "--width", "--frames", "--first-frame-height"])
@pytest.mark.parametrize("number", [-1, 0, 2**16, 2**31, 2**64])
def test_sizes_that_would_overflow_are_refused(
    option: str, number: int, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    motion = f"rain={toy / 'motions' / 'rain'}"
    argv = ["build", "--out", str(tmp_path / "out"), "--sd", str(toy / "sd"), "--motion", motion]
    assert main([*argv, "--sdxl", str(toy), option, str(number)]) == 2
    assert f"is {number}; " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damage_that_hides_from_time_stamps_is_found_by_verify_files(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of digests is made to say that the damaged file was checked as it is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("lamp_trt.engine.bundle.digests.RACY_SECONDS", -1.0)
    bundle, weights = tmp_path / "bundle", "weights/vae.safetensors"
    shutil.copytree(toy_bundle, bundle)
    content = bytearray((bundle / weights).read_bytes())
    content[-1] ^= 1
    (bundle / weights).write_bytes(content)
    DigestCache().record(bundle / weights, Bundle.open(toy_bundle).manifest.files[weights].sha256)
    assert lamp_trt.load(bundle, num_threads=1).num_frames == 4
    with pytest.raises(BundleError, match=f"{weights}.*is damaged"):
        lamp_trt.load(bundle, verify_files=True)
    argv = ["generate", "a", "--bundle", str(bundle), "--verify-files", "--out", str(tmp_path / "clip.mp4")]
    assert main(argv) == 1
    assert f"{weights} in {bundle} is damaged" in capsys.readouterr().err


def test_a_file_name_that_is_no_utf8_is_printed_as_its_bytes(toy_bundle: Path, tmp_path: Path) -> None:
    copy = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    shutil.copytree(toy_bundle, copy)
    for arguments, text in (("inspect", copy), ("inspect", copy / "none")):
        done = subprocess.run([sys.executable, "-m", "lamp_trt", arguments, text], capture_output=True)
        assert b"Traceback" not in done.stderr
        assert done.returncode == (0 if text == copy else 1)
    done = subprocess.run([sys.executable, "-m", "lamp_trt", "inspect", copy], capture_output=True)
    assert os.fsencode(copy) in done.stdout


# --- images --------------------------------------------------------------------------------------------

FORMATS = ("png", "jpg", "bmp", "webp", "tiff", "ppm", "gif", "avif", "jp2")


def encoded(suffix: str) -> bytearray:
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    if suffix in ("avif", "jp2"):
        return bytearray(saved(picture, {"avif": "AVIF", "jp2": "JPEG2000"}[suffix]))
    done, data = cv2.imencode(f".{suffix}", picture)
    assert done
    return bytearray(data.tobytes())


@pytest.mark.parametrize("suffix", FORMATS)
@settings(FUZZ, max_examples=FUZZ.max_examples // 2)
@given(data=st.data())
def test_any_damaged_image_is_read_or_refused(
    suffix: str, tmp_path_factory: pytest.TempPathFactory, tally: Tally, data: st.DataObject
) -> None:
    content = encoded(suffix)
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.one_of(st.integers(0, 63), st.integers(0, len(content) - 1)))
        content[min(position, len(content) - 1)] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    path.write_bytes(
        content[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else content
    )

    def read() -> None:
        image = read_image(path)
        assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)

    read_or_refused(read, tally)


def bombs() -> dict[str, bytes]:
    """Small files whose headers ask for 65000 x 65000 pixels, 12.7 GB as RGB."""
    side = 65000
    jpg, bmp, gif, ppm = encoded("jpg"), encoded("bmp"), encoded("gif"), b"P6\n65000 65000\n255\n" + bytes(99)
    start = jpg.index(b"\xff\xc0") + 5
    jpg[start : start + 4] = struct.pack(">HH", side, side)
    bmp[18:26] = struct.pack("<ii", side, side)
    gif[6:10] = struct.pack("<HH", side, side)
    tiff = encoded("tiff")
    entries = struct.unpack_from("<I", tiff, 4)[0] + 2
    for entry in (entries, entries + 12):  # ImageWidth, ImageLength come first
        struct.pack_into("<HHII", tiff, entry, struct.unpack_from("<H", tiff, entry)[0], 4, 1, side)
    return {"jpg": bytes(jpg), "bmp": bytes(bmp), "gif": bytes(gif), "ppm": ppm, "tiff": bytes(tiff)}


@pytest.mark.parametrize("suffix", ["jpg", "bmp", "gif", "ppm", "tiff"])
def test_a_header_that_asks_for_gigabytes_is_refused_in_little_memory(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"bomb.{suffix}"
    path.write_bytes(bombs()[suffix])
    program = (
        "import sys; from lamp_trt.runtime.media.image_files import read_image\n"
        "try: read_image(sys.argv[1])\n"
        "except ValueError as error: print(error)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, timeout=60, check=True
    )
    message, peak_kib = done.stdout.strip().splitlines()
    assert "cannot be read" in message
    assert int(peak_kib) < 400 * 1024


def test_a_huge_image_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.write(encoded("png"))
        file.truncate(20 << 30)
    with pytest.raises(ValueError, match="has more than 512 MiB"):
        read_image(tmp_path / "huge.png")


# --- network, telemetry, environment -------------------------------------------------------------------


@pytest.fixture(scope="module")
def without_network() -> list[str]:
    """The words before a command that runs it where no network device is up."""
    command = ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a network namespace")
    probe = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"
    isolated = subprocess.run([*command, sys.executable, "-c", probe], capture_output=True, text=True)
    assert "Network is unreachable" in isolated.stderr
    return command


NO_SOCKETS = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(refuse)
"""


def test_a_video_is_made_where_there_is_no_network(
    toy_bundle: Path, without_network: list[str], tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "first.png"), np.full((64, 64, 3), 90, np.uint8))
    code = NO_SOCKETS + (
        "from lamp_trt.cli import main\n"
        f"code = main(['generate', 'a horse', '--bundle', {str(toy_bundle)!r}, '--steps', '1', '--quiet',\n"
        f"  '--first-frame', {str(tmp_path / 'first.png')!r}, '--out', {str(tmp_path / 'clip.mp4')!r}])\n"
        "raise SystemExit(code)"
    )
    done = subprocess.run([*without_network, sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "clip.mp4").stat().st_size > 500


def test_the_library_sets_one_variable_and_the_command_sets_the_others(
    run_python: Callable[[str], str],
) -> None:
    code = (
        "import os, json; before = {**os.environ, 'ORT_DISABLE_TELEMETRY': '1'}\n"
        "import lamp_trt, lamp_trt.runtime.load, lamp_trt.runtime.jobs, lamp_trt.export.build, lamp_trt.cli\n"
        "assert dict(os.environ) == before\n"
        "try: lamp_trt.cli.main(['--version'])\n"
        "except SystemExit: pass\n"
        "print(json.dumps({k: v for k, v in os.environ.items() if before.get(k) != v}))"
    )
    changed = json.loads(run_python(code).splitlines()[-1])
    assert changed.items() <= OFFLINE.items()
    assert all(os.environ.get(name) == value or changed[name] == value for name, value in OFFLINE.items())


# --- supply chain --------------------------------------------------------------------------------------


FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads",
             "yaml.load", "marshal.loads", "torch.jit.load"}  # fmt: skip
FORBIDDEN_METHODS = {"from_pretrained", "snapshot_download", "hf_hub_download", "urlopen", "urlretrieve"}


def test_no_code_of_ours_downloads_unpickles_or_evaluates() -> None:
    """Pickles of tensors are read by torch's restricted unpickler."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func)
                arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                local = arguments.get("local_files_only") == "True"
                bad = called in FORBIDDEN
                bad |= called.rpartition(".")[2] in FORBIDDEN_METHODS and not local
                bad |= called == "torch.load" and arguments.get("weights_only") != "True"
                bad |= "True" in (arguments.get("shell"), arguments.get("allow_pickle"))
                bad |= "trust_remote_code" in arguments
                if bad:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {called}")
    assert found == []
