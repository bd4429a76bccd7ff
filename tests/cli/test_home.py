# SPDX-License-Identifier: Apache-2.0
"""Nothing reports home, and nothing is written but results and our cache: seen in system calls.

SECURITY.md promises it of our dependencies too, whose native code no Python hook sees.
"""

import json
import os
import pwd
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import lamp_trt
from lamp_trt.engine.files import user_cache
from tests import system_trace
from tests.fixtures.openvino import HOST_BACKENDS, needs_openvino
from tests.runtime.media.clips import moving_picture, write_clip
from tests.system_trace import Trace

VARIABLE = "ORT_DISABLE_TELEMETRY"
SET_ELSEWHERE = (VARIABLE, "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")
"""By the test's user, and by torch in this process once it compiled something."""
SECONDS = 16
"""ONNX Runtime reports some seconds after it was loaded."""

DEPENDENCIES = (
    *("accelerate", "av", "cv2", "diffusers", "huggingface_hub", "numpy", "onnx", "onnx_ir", "onnxruntime"),
    *(
        "onnxscript",
        "polygraphy",
        "safetensors",
        "tensorrt_rtx",
        "tokenizers",
        "torch",
        "tqdm",
        "transformers",
    ),
)


@dataclass(frozen=True)
class Place:
    """A user's machine in small: `home` and `tmp` are empty, `cwd` is where results go."""

    root: Path

    @property
    def cwd(self) -> Path:
        return self.root / "cwd"

    @property
    def cache(self) -> Path:
        return self.root / "home" / ".cache" / "lamp-trt"

    def start(self, *command: str | Path, **changes: str) -> "subprocess.Popen[str]":
        for name in ("home", "tmp", "cwd"):
            (self.root / name).mkdir(parents=True)
        environment = {k: v for k, v in os.environ.items() if k not in SET_ELSEWHERE}
        environment |= {
            "HOME": str(self.root / "home"),
            "TMPDIR": str(self.root / "tmp"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        return system_trace.start(command, self.cwd, self.root / "log", environment | changes)

    def finish(self, process: "subprocess.Popen[str]") -> Trace:
        return system_trace.finish(process, self.cwd, self.root / "log")

    def check(self, trace: Trace) -> None:
        """That it worked, spoke to nobody and wrote in expected places only. What stays in TMPDIR is the
        cache of torch's compiler, empty if nothing was compiled."""
        assert trace.returncode == 0, trace.stderr
        assert trace.network == []
        elsewhere = trace.written_outside(self.cwd, self.cache, self.root / "tmp")
        assert [path for path in elsewhere if path != str(self.cache.parent)] == []
        kept = {path.relative_to(self.root / "home").parts[:2] for path in (self.root / "home").rglob("*")}
        assert kept <= {(".cache",), (".cache", "lamp-trt")}
        left = [path for path in (self.root / "tmp").rglob("*") if path.is_file()]
        assert [path for path in left if "torchinductor_" not in str(path)] == []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    system_trace.require_strace()
    return Place(tmp_path)


@pytest.fixture
def first_frame(tmp_path: Path) -> Path:
    path = tmp_path / "first.png"
    cv2.imwrite(str(path), np.full((64, 64, 3), 90, np.uint8))
    return path


LIBRARY = f"""
import sys, time
start = time.monotonic()
import lamp_trt
pipe = lamp_trt.load(sys.argv[1], backend=sys.argv[3], num_threads=1)
pipe("a horse", first_frame=sys.argv[2], num_inference_steps=1, safety="off").save("clip.mp4")
time.sleep(max(0, {SECONDS} + start - time.monotonic()))
"""


@pytest.mark.parametrize("backend", HOST_BACKENDS)
def test_the_library_talks_to_nobody_and_writes_only_results_and_its_cache(
    backend: str, toy_bundle: Path, first_frame: Path, place: Place
) -> None:
    command = (sys.executable, "-c", LIBRARY, toy_bundle, first_frame, backend)
    trace = place.finish(place.start(*command, CI=""))
    place.check(trace)
    assert trace.stdout == trace.stderr == ""
    assert sorted(path.name for path in place.cwd.iterdir()) == ["clip.mp4", "clip.mp4.json"]
    assert place.cwd / "clip.mp4" in trace.written
    assert list((place.root / "tmp").iterdir()) == []


def test_the_trace_sees_calls_that_reach_out_and_files_that_are_written(place: Place) -> None:
    """Whatever way they take: a check of the check."""
    program = """
import os, socket, sys
for family, address in ((socket.AF_INET, ("127.0.0.1", 9)), (socket.AF_INET6, ("::1", 9))):
    udp = socket.socket(family, socket.SOCK_DGRAM)
    try: udp.sendto(b"x", address)
    except OSError: pass
try: socket.create_connection(("127.0.0.1", 9), 1)
except OSError: pass
home = os.environ["HOME"]
os.mkdir(home + "/folder"); os.chdir(home + "/folder")
open("made", "w").close(); os.rename("made", home + "/renamed"); os.symlink("x", home + "/link")
here = os.open(home, os.O_RDONLY); os.close(os.open("relative", os.O_CREAT | os.O_WRONLY, dir_fd=here))
os.close(os.open("/dev/null", os.O_WRONLY)); open(home + "/renamed").close()
child = os.fork()
if child: os.waitpid(child, 0)
else: open(home + "/child", "a").close()
"""
    trace = place.finish(place.start(sys.executable, "-c", program))
    assert [call.partition("(")[0] for call in trace.network] == ["sendto", "sendto", "connect"]
    home = place.root / "home"
    names = ["child", "folder", "folder/made", "link", "relative", "renamed"]
    assert trace.written_outside(place.cwd) == [str(home / name) for name in names]


@pytest.mark.slow
def test_the_trace_sees_what_onnx_runtime_does_without_the_variable(
    toy_bundle: Path, first_frame: Path, place: Place
) -> None:
    import onnxruntime

    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 29):
        pytest.skip("this ONNX Runtime has no telemetry")
    command = (sys.executable, "-c", LIBRARY, toy_bundle, first_frame, "onnxruntime")
    trace = place.finish(place.start(*command, **{VARIABLE: "0"}))
    assert any("microsoft" in call or system_trace.NAME_LOOKUP in call for call in trace.network)
    assert any("/.cache/Microsoft/" in path for path in trace.written_outside(place.cwd, place.cache))


@pytest.mark.slow
@needs_openvino
def test_the_trace_sees_what_openvino_does_when_it_is_imported_as_it_is(place: Place) -> None:
    program = f"import time, openvino; time.sleep({SECONDS})"
    trace = place.finish(place.start(sys.executable, "-c", program, CI=""))
    assert any(system_trace.NAME_LOOKUP in call or "AF_INET" in call for call in trace.network)
    assert any("/intel/" in path for path in trace.written_outside(place.cwd))


@pytest.mark.slow
def test_no_dependency_talks_to_anybody_or_writes_a_file(tmp_path: Path) -> None:
    """Each alone after lamp_trt, as in a program that uses the library; all wait at the same time."""
    system_trace.require_strace()
    places = {name: Place(tmp_path / name) for name in DEPENDENCIES}
    program = (
        "import importlib, sys, time, lamp_trt\ntry: importlib.import_module(sys.argv[1])\n"
        f"except ModuleNotFoundError: raise SystemExit(77)\ntime.sleep({SECONDS})"
    )
    running = {name: place.start(sys.executable, "-c", program, name) for name, place in places.items()}
    missing = []
    for name, process in running.items():
        trace = places[name].finish(process)
        if trace.returncode == 77:
            missing.append(name)
            continue
        places[name].check(trace)
        assert trace.stderr == "", name
        assert list((places[name].root / "home").iterdir()) == [], name
    assert set(missing) <= {"polygraphy", "tensorrt_rtx", "onnx_ir"}


COMMANDS: dict[str, Callable[[Path, Path, Path], list[str | Path]]] = {
    "doctor": lambda toy, bundle, image: ["doctor"],
    "inspect": lambda toy, bundle, image: ["inspect", bundle],
    "toy": lambda toy, bundle, image: ["toy", "toy"],
    "build": lambda toy, bundle, image: ["build", f"--sd={toy / 'sd'}", "--out=b", "--only", "vae_decoder"],
    "aotinductor": lambda toy, bundle, image: [
        "build", f"--sd={toy / 'sd'}", "--out=b", "--only", "vae_decoder", "--backend=aotinductor"
    ],
    "generate": lambda toy, bundle, image: [
        "generate", "a", f"--bundle={bundle}", f"--first-frame={image}", "--steps=50", "--out=clip.webp"
    ],
    "edit": lambda toy, bundle, image: [
        "edit", write_clip(image.with_name("clip.mp4"), moving_picture(8)), "a", f"--bundle={bundle}",
        f"--first-frame={image}", "--steps=20", "--out=edit.mp4", "--latents=edit.safetensors",
    ],
    "verify": lambda toy, bundle, image: ["verify", bundle, f"--sd={toy / 'sd'}", "--steps=1"],
    "bench": lambda toy, bundle, image: ["bench", f"--bundle={bundle}", "--budget=10s", "--out=report"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_talks_to_anybody_or_writes_elsewhere(
    command: str, toy: Path, toy_bundle: Path, first_frame: Path, place: Place
) -> None:
    """The process stays for some seconds after the work, as ONNX Runtime would report then."""
    program = (
        "import sys, time; from lamp_trt.cli import main\n"
        "start = time.monotonic(); code = main(sys.argv[1:])\n"
        f"time.sleep(max(0, {SECONDS} + start - time.monotonic())); raise SystemExit(code)"
    )
    arguments = COMMANDS[command](toy, toy_bundle, first_frame)
    place.check(place.finish(place.start(sys.executable, "-c", program, *arguments)))


@pytest.mark.slow
def test_a_server_talks_to_its_clients_alone(toy_bundle: Path, first_frame: Path, place: Place) -> None:
    """uvicorn, FastAPI, multipart forms, SQLite, both decoders and an engine, over an edit of an upload."""
    pytest.importorskip("fastapi", reason="needs the extra serve")
    httpx = pytest.importorskip("httpx", reason="needs httpx, of the extra dev")
    clip = write_clip(first_frame.with_name("clip.mp4"), moving_picture(8))
    command = [sys.executable, "-m", "lamp_trt", "serve", "--bundle", toy_bundle, "--port=0", "--safety=off"]
    process = place.start(*command, "--num-threads=1", "--model-name=toy")
    end = time.monotonic() + SECONDS
    assert process.stdout is not None
    try:
        url = process.stdout.readline().split()[3]
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as http:
            files = {"video": clip.read_bytes(), "first_frame": first_frame.read_bytes()}
            form = {"prompt": "a", "num_inference_steps": "2"}
            made = http.post("/v1/videos/edits", data=form, files=files).json()
            assert http.get(f"/v1/videos/{made['id']}/events").text.count("event: completed") == 1
            assert http.get("/").status_code == 200
        time.sleep(max(0, end - time.monotonic()))
        (server,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(server), signal.SIGINT)
        trace = place.finish(process)
    finally:
        process.kill()
        process.wait()
    assert trace.returncode == 130
    place.check(replace(trace, returncode=0))


# --- the variable ----------------------------------------------------------------------------------------


def python(code: str, **changes: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment | changes
    )


@pytest.mark.parametrize("module", ["lamp_trt", "lamp_trt.runtime.load", "lamp_trt.doctor", "lamp_trt.cli"])
def test_importing_any_part_turns_telemetry_off_for_this_process_and_its_children(module: str) -> None:
    child = f"import os; print(os.environ['{VARIABLE}'])"
    done = python(f"import {module}, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("value", ["0", "", "1", "true"])
def test_a_host_that_decided_is_left_alone(value: str) -> None:
    code = f"import onnxruntime, lamp_trt, os; print(os.environ['{VARIABLE}'])"
    done = python(code, **{VARIABLE: value})
    assert (done.stdout, done.stderr) == (f"{value}\n", "")


@pytest.mark.parametrize(("decided", "value"), [(None, "1"), ("0", "0")])
def test_an_environment_that_was_cleared_is_mended_before_onnx_runtime_reads_it(
    decided: str | None, value: str
) -> None:
    code = (
        f"import os, lamp_trt; os.environ.pop('{VARIABLE}')\n"
        f"if {decided!r}: os.environ['{VARIABLE}'] = {decided!r}\n"
        "from lamp_trt.engine.backends.onnxruntime.session import import_onnxruntime\n"
        f"print(import_onnxruntime().__name__, os.environ['{VARIABLE}'])"
    )
    assert python(code).stdout == f"onnxruntime {value}\n"


def test_no_module_imports_onnx_runtime_past_the_switch() -> None:
    root = Path(lamp_trt.__file__).parent
    found = [
        str(path.relative_to(root))
        for folder in ("engine", "runtime", "export", "commands", "doctor", "benchmarks/bench")
        for path in (root / folder).rglob("*.py")
        if re.search(r"^\s*(import|from) onnxruntime", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert found == []


def test_onnx_runtime_imported_first_is_warned_of_once_with_the_remedy() -> None:
    code = "import onnxruntime\nimport lamp_trt\nimport importlib, lamp_trt.runtime.load\n"
    done = python(f"{code}importlib.reload(lamp_trt)")
    assert done.returncode == 0
    assert done.stderr.count("RuntimeWarning") == 1
    assert done.stderr.startswith("<string>:2: RuntimeWarning: onnxruntime was imported before lamp_trt")
    assert f"Import lamp_trt first, or set {VARIABLE}=1 in the environment." in done.stderr
    assert python("import lamp_trt, onnxruntime").stderr == ""


# --- no home ---------------------------------------------------------------------------------------------


@pytest.fixture
def stranger() -> list[str]:
    """The words before a command that runs it under a user id of no account."""
    command = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    try:
        done = subprocess.run([*command, sys.executable, "-c", "import lamp_trt"], capture_output=True)
    except FileNotFoundError:
        pytest.skip("setpriv is not installed: make system-packages")
    if done.returncode:
        pytest.skip("this user cannot become another one, or that one cannot read the code")
    return command


HOMES: dict[str, Mapping[str, str | None]] = {
    "none": {"HOME": None, "XDG_CACHE_HOME": None},
    "empty": {"HOME": "", "XDG_CACHE_HOME": ""},
    "relative": {"HOME": "here", "XDG_CACHE_HOME": "there"},
    "not writable": {"HOME": "/proc", "XDG_CACHE_HOME": None},
    "absent": {"HOME": "/nonexistent", "XDG_CACHE_HOME": None},
}


@pytest.mark.parametrize(
    ("xdg", "home", "expected"),
    [
        ("/xdg", "/home/me", "/xdg/lamp-trt/digests"),
        (None, "/home/me", "/home/me/.cache/lamp-trt/digests"),
        ("", "/home/me", "/home/me/.cache/lamp-trt/digests"),
        ("relative", "/home/me", "/home/me/.cache/lamp-trt/digests"),
        ("relative", "relative", None),
        ("~/cache", "~", None),
        (None, "", None),
        (None, None, None),
    ],
)
def test_the_cache_is_in_an_absolute_folder_or_nowhere(
    xdg: str | None,
    home: str | None,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in (("XDG_CACHE_HOME", xdg), ("HOME", home)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    user_cache._say_once.cache_clear()
    caplog.set_level("DEBUG", "lamp_trt")
    for _ in range(2):
        assert user_cache.cache_folder("digests") == (None if expected is None else Path(expected))
    assert [record.levelname for record in caplog.records] == ["DEBUG"] * (expected is None)


def test_a_user_with_an_account_needs_no_home_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    home = pwd.getpwuid(os.getuid()).pw_dir
    assert user_cache.cache_folder("kernels") == Path(home, ".cache", "lamp-trt", "kernels")


@pytest.fixture
def open_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that every user may write to and reach."""
    folder = Path("/tmp", f"lamp-trt-stranger-{os.getpid()}-{time.monotonic_ns()}")
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.mark.parametrize("home", HOMES)
def test_a_user_of_no_account_makes_a_video_and_leaves_nothing_else(
    home: str, stranger: list[str], toy_bundle: Path, first_frame: Path, open_folder: Path
) -> None:
    subprocess.run(["cp", "-rL", toy_bundle, open_folder / "bundle"], check=True)
    subprocess.run(["cp", first_frame, open_folder / "first.png"], check=True)
    (open_folder / "cwd").mkdir()
    (open_folder / "cwd").chmod(0o777)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **HOMES[home]}
    command = ["generate", "a", "--bundle=../bundle", "--first-frame=../first.png", "--steps=1", "-v"]
    done = subprocess.run(
        [*stranger, sys.executable, "-m", "lamp_trt", *command, "--out=clip.mp4"],
        cwd=open_folder / "cwd",
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(open_folder / "cwd")) == ["clip.mp4", "clip.mp4.json"]
    assert done.stderr.count("nothing is kept between runs") == (home in ("none", "empty", "relative"))
    assert done.stderr.count("files are read in full by every run") <= 1  # none: the files are too new


@pytest.mark.slow
def test_a_user_of_no_account_builds_verifies_and_asks_the_doctor(
    stranger: list[str], toy: Path, open_folder: Path
) -> None:
    subprocess.run(["cp", "-rL", toy, open_folder / "toy"], check=True)
    subprocess.run(["chmod", "-R", "a+rX", open_folder / "toy"], check=True)
    keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    sizes = ["--height=64", "--width=64", "--frames=4"]
    for arguments in (
        ["build", "--sd=toy/sd", "--motion=rain=toy/motions/rain", "--out=b", *sizes],
        ["build", "--sd=toy/sd", "--out=c", "--only", "vae_decoder", "--backend=aotinductor", *sizes],
        ["motion", "add", "b", "storm=toy/motions/horse_run"],
        ["verify", "b", "--sd=toy/sd", "--steps=1"],
        ["bench", "--bundle=b", "--budget=5s", "--out=report"],
        ["doctor", "--for=build"],
        ["toy", "new"],
    ):
        command = [*stranger, sys.executable, "-m", "lamp_trt", *arguments]
        done = subprocess.run(
            command, cwd=open_folder, env={**keep, "TMPDIR": str(open_folder)}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr
    made = {name for name in os.listdir(open_folder) if not name.startswith("torchinductor_")}
    assert made == {"toy", "b", "c", "report", "new"}


def test_a_full_cache_folder_does_not_stop_the_work_and_keeps_no_pieces(
    toy_bundle: Path, first_frame: Path, tmp_path: Path
) -> None:
    """Writes of cache entries fail in the middle."""
    program = (
        "import errno, os, pathlib, sys; from lamp_trt.cli import main\n"
        "write = pathlib.Path.write_bytes\n"
        "def full(path, data):\n"
        "    if path.suffix == '.tmp':\n"
        "        write(path, data[:9]); raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "    return write(path, data)\n"
        "pathlib.Path.write_bytes = full\n"
        "from lamp_trt.engine.bundle import digests; digests.RACY_SECONDS = -1\n"
        "raise SystemExit(main(sys.argv[1:]))"
    )
    arguments = [
        "generate",
        "a",
        f"--bundle={toy_bundle}",
        f"--first-frame={first_frame}",
        "--steps=1",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, f"--out={tmp_path / 'clip.mp4'}"],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == str(tmp_path / "clip.mp4")
    assert done.stderr.count("No space left on device") == 1
    assert list((tmp_path / "cache" / "lamp-trt" / "digests").iterdir()) == []
