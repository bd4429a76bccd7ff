# SPDX-License-Identifier: Apache-2.0
"""Jobs of several videos for one pipeline, read from a prompts file, a sidecar or the command line."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.bundle.paths import possible_path
from lamp_trt.engine.errors import InputError, SafetyError
from lamp_trt.engine.files.output import cannot_write, lies_in
from lamp_trt.engine.files.text import TextError, parse_json, read_text, text_lines, without_marks
from lamp_trt.runtime.algorithm.config import FPS, SETTINGS, GenerationConfig, file_path, settings_of
from lamp_trt.runtime.control import CancelToken, Progress
from lamp_trt.runtime.edit import EditRequest, edit_video
from lamp_trt.runtime.media.clip.reader import check_video
from lamp_trt.runtime.media.image import image_from_base64
from lamp_trt.runtime.media.preview_file import FILE_SECONDS, PreviewFile, check_preview_path
from lamp_trt.runtime.media.tokenizer import prompt_text
from lamp_trt.runtime.media.video import Video, check_destination, check_format, frame_rate
from lamp_trt.runtime.pipeline import LampPipeline
from lamp_trt.runtime.requests import ClipRequest

OPTIONS = tuple(each.name for each in SETTINGS if each.in_jobs)
"""Names of the settings that a job may set, apart from the fields of Job."""

_PROMPTS = tuple(each.name for each in SETTINGS if each.metavar == "PROMPT")

_CLIP = ("video", *(each.name for each in settings_of(ClipRequest)))
"""Fields of a job that edits a clip."""

FIRST_FRAME_OPTIONS = tuple(each.name for each in SETTINGS if each.kept == "first_frame")
"""Names of the settings with which SDXL makes a first frame."""

log = logging.getLogger("lamp_trt")

MAX_JOB_FILE_BYTES = 64 << 20
_SLUG_BYTES = 100


@dataclass(frozen=True)
class Job:
    """One video to make: arguments of `LampPipeline.__call__` and the destination (None: not set yet); with a
    clip, an edit of it (edit.EditRequest)."""

    prompt: str
    motion: str | None = None
    first_frame: Path | NDArray[np.uint8] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    out: Path | None = None
    fps: float = FPS
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Settings with which the given first frame was made, to be stored in the sidecar."""
    bundle: str | None = None
    """Digest of the bundle that made the video to reproduce."""
    clip: ClipRequest | None = None
    latents: Path | None = None
    """File of the clip's inverted latents, see EditRequest."""
    clip_sha256: str | None = None
    """Digest of the clip's frames in the video to reproduce."""


def jobs_from_prompts_file(path: Path, defaults: Job) -> list[Job]:
    """Read one job per line of `path`: a prompt, or in a .jsonl file an object.

    An object has `prompt` and any of `motion`, `first_frame` and `video` (relative to the file), `start`,
    `every`, `out`, `fps` and OPTIONS; other values come from `defaults`. Leading and trailing space and empty
    lines are ignored; comments are not supported. Lines end with LF, CRLF or CR; the UTF-8 text may begin
    with a byte order mark. Raises InputError naming the line.
    """
    jobs = []
    text = _text(path)
    is_json = path.suffix.lower() == ".jsonl"
    if not is_json:
        _refuse_json(text, path)
    for number, line in enumerate(text_lines(text), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        if not is_json:
            jobs.append(_job({"prompt": line.strip()}, defaults, where, path.parent))
            continue
        fields = {
            name: without_marks(value) if name in ("prompt", *_PROMPTS) and isinstance(value, str) else value
            for name, value in _object(line, where).items()
        }
        if not isinstance(fields.get("prompt"), str):
            raise InputError(f"{where}: expected an object whose `prompt` is a string.")
        jobs.append(_job(fields, defaults, where, path.parent))
    if not jobs:
        raise InputError(f"{path} holds no prompt; expected one per line.")
    return jobs


def job_from_sidecar(path: Path) -> Job:
    """The job that reproduces a video, from its sidecar `path` (the .json file next to it).

    The sidecar contains the first frame, whether given or made by SDXL. Raises InputError if the file is not
    a sidecar, or if noise was injected.
    """
    settings = _object(_text(path), str(path))
    known = {"prompt", "motion", "fps", "first_frame_png", *_CLIP, *OPTIONS} - {*FIRST_FRAME_OPTIONS}
    if not isinstance(settings.get("prompt"), str) or "first_frame_png" not in settings:
        raise InputError(
            f"{path} is not the settings file of a video: it lacks `prompt` or `first_frame_png`."
        )
    if settings.get("injected"):
        raise InputError(
            f"{path} belongs to a video with injected {settings['injected']!r:.100}, "
            "which the file does not hold. Repeat it from Python."
        )
    fields = {key: value for key, value in settings.items() if key in known}
    if not isinstance(settings["first_frame_png"], str):
        raise InputError(f"{path}: first_frame_png is not a string.")
    image = image_from_base64(fields.pop("first_frame_png"))
    origin = {name: settings[name] for name in FIRST_FRAME_OPTIONS if name in settings}
    with _named(str(path)):
        check_options(origin)
    job = _job(fields, Job(""), str(path), path.parent)
    bundle, clip_sha256 = settings.get("bundle"), settings.get("clip_sha256")
    return replace(job, first_frame=image, origin=origin, bundle=bundle, clip_sha256=clip_sha256)


def first_frame_path(video: Path) -> Path:
    """Path of a saved video's first frame: clip.first_frame.png next to clip.mp4 or the folder clip."""
    stem = video.name if video.is_dir() else video.stem
    return video.with_name(f"{stem}.first_frame.png")


def with_destinations(jobs: Sequence[Job], out: Path | None, suffix: str) -> list[Job]:
    """`jobs` with destinations: `out` itself for a single job, otherwise a distinct name in the folder `out`.

    suffix: ".mp4", ".gif", ".webp" or "" (a folder of PNGs), for generated names. Raises InputError if two
    videos would have the same destination.
    """
    if len(jobs) == 1:
        return [replace(jobs[0], out=jobs[0].out or out or Path(f"{slug(jobs[0].prompt)}{suffix}"))]
    folder = out or Path("videos")
    if folder.suffix and not folder.is_dir():
        raise InputError(f"--out is {str(folder)!r}, but there are {len(jobs)} videos: name a folder.")
    named = []
    for index, job in enumerate(jobs):
        parts = [f"{index:03}", *([job.motion] if job.motion else []), slug(job.prompt)]
        named.append(replace(job, out=job.out or folder / f"{'-'.join(parts)}{suffix}"))
    destinations = [str(job.out) for job in named]
    twice = [path for path in destinations if destinations.count(path) > 1]
    if twice:
        raise InputError(f"two videos would be written to {twice[0]!r}; give each an `out` of its own.")
    return named


def run_jobs(
    pipeline: LampPipeline,
    jobs: Sequence[Job],
    before_save: Callable[[Video], Video] | None = None,
    *,
    progress: Progress | None = None,
    preview: Path | None = None,
    cancel: CancelToken | None = None,
) -> Iterator[tuple[Path, Video]]:
    """Make and save every video, grouped by motion; yields (path, video) after each is saved.

    before_save       gets each finished video and returns the one to save (a safety checker may blur it); its
                      exceptions end the run before that video is written
    progress, cancel  for each video, see LampPipeline.__call__
    preview           a .webp file that shows the running video, see PreviewFile; it stays after a saved
                      video, and is removed after a refused or failed one
    A job without a motion uses the bundle's default one. The folder of several videos is created if missing.
    Jobs and destinations are checked before any video is made.
    A refused video is not written; the others are made, and a SafetyError at the end has the number refused.
    """
    refused = 0
    by_motion: dict[str, list[Job]] = {}
    for job in jobs:
        assert job.out is not None
        job = replace(job, out=file_path("the output", job.out))
        _check(pipeline, job)
        motion = job.motion or pipeline.bundle.manifest.default_motion
        by_motion.setdefault(str(motion), []).append(job)
    check_inputs_kept(jobs, [job.out for job in jobs if job.out is not None])
    if preview is not None:
        preview = file_path("the preview", preview)
        _check_preview(pipeline, preview, jobs)
    for job in (job for group in by_motion.values() for job in group):
        assert job.out is not None
        if len(jobs) > 1 and job.out.parent.parent.is_dir():
            _make_folder(job.out.parent)
        check_destination(job.out, *pipeline.size, job.fps)
    if preview is not None:
        check_destination(preview, *pipeline.size)
    for motion, group in by_motion.items():
        for job in group:
            file = PreviewFile(preview, job.fps) if preview is not None else None
            control = {"progress": progress, "cancel": cancel, "preview": file}
            with file or nullcontext():
                try:
                    video = _made(pipeline, replace(job, motion=motion), control)
                except SafetyError as error:
                    if len(jobs) == 1:
                        raise
                    refused += 1
                    log.warning("%s is not made: %s", job.out, error)
                    if file is not None:
                        file.remove()
                    continue
                path, video = _saved(video, job, before_save)
            yield path, video
    if refused:
        raise SafetyError(f"{refused} of {len(jobs)} videos were refused by the safety checker.")


def _made(pipeline: LampPipeline, job: Job, control: Mapping[str, Any]) -> Video:
    control = {**control, "preview_interval": FILE_SECONDS}
    if job.clip is None:
        video = pipeline(
            job.prompt,
            motion=job.motion,
            first_frame=job.first_frame,
            **control,
            **job.options,
        )
    else:
        video = edit_video(pipeline, _edit(job, job.clip), **control)
        if job.clip_sha256 not in (None, video.settings["clip_sha256"]):
            log.warning("the clip's frames are not those of the edit to repeat: the result may differ")
    return replace(video, settings={**video.settings, **job.origin})


def _edit(job: Job, clip: ClipRequest) -> EditRequest:
    config = GenerationConfig(**job.options)
    return EditRequest(job.prompt, clip, config, job.motion, job.first_frame, job.latents)


def _saved(video: Video, job: Job, before_save: Callable[[Video], Video] | None) -> tuple[Path, Video]:
    assert job.out is not None
    if before_save is not None:
        video = before_save(video)
        if not isinstance(video, Video):
            raise InputError(f"before_save returned {video!r}; expected the Video to save.")
    return video.save(job.out, job.fps), video


def _check_preview(pipeline: LampPipeline, preview: Path, jobs: Sequence[Job]) -> None:
    """Raise the errors of a preview file before any video is made."""
    used = [path for job in jobs for path in _files_of(job)]
    check_preview_path(preview, used, *pipeline.size)
    for job in jobs:
        made = job.first_frame is None and job.clip is None
        pipeline.require_previews(GenerationConfig(**job.options), made=made)


def _files_of(job: Job) -> list[Path]:
    """Files that a job reads or writes."""
    return [path for path in (job.out, job.latents, *_inputs_of(job)) if isinstance(path, Path)]


def _inputs_of(job: Job) -> list[Path]:
    clip = None if job.clip is None else job.clip.video
    return [path for path in (job.first_frame, clip) if isinstance(path, Path)]


def check_inputs_kept(jobs: Sequence[Job], outputs: Iterable[Path]) -> None:
    """Raise InputError for an output that would replace an image or a video that the jobs read."""
    inputs = {path for job in jobs for path in _inputs_of(job)}
    for out in outputs:
        for path in inputs:
            if lies_in(path, out):
                raise InputError(
                    f"the output {str(out)!r:.300} would replace {str(path)!r:.300}, which this run reads; "
                    "choose another name."
                )


def _check(pipeline: LampPipeline, job: Job) -> None:
    """Raise the errors of an invalid job before any video is made."""
    assert job.out is not None
    prompt_text(job.prompt)
    check_options(job.options)
    if job.options.get("safety") is not None:
        pipeline.safety_check(GenerationConfig(**job.options))
    if job.clip is not None:
        _edit(job, job.clip)
        check_video(job.clip.video)
    elif job.first_frame is None:
        pipeline.require_first_frame_networks()
    pipeline.bundle.motion(job.motion or pipeline.bundle.manifest.default_motion)
    if job.bundle not in (None, pipeline.bundle.digest):
        log.warning("the video to repeat was made with another bundle: the result may differ")
    check_format(job.out, *pipeline.size, job.fps)
    if isinstance(job.first_frame, Path) and not os.path.isfile(possible_path(job.first_frame)):
        raise InputError(f"the image {str(job.first_frame)!r:.300} does not exist or is not a file.")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def check_options(options: Mapping[str, Any]) -> None:
    """Raise InputError for an option that is unknown or that `LampPipeline.__call__` would reject."""
    unknown = sorted(options.keys() - {*OPTIONS})
    if unknown:
        raise InputError(f"unknown option {unknown[0]!r:.100}; known: {', '.join(OPTIONS)}.")
    GenerationConfig(**options)
    for name in _PROMPTS:
        if options.get(name) is not None:
            prompt_text(options[name])


def _job(fields: Mapping[str, Any], defaults: Job, where: str, folder: Path) -> Job:
    own = ("prompt", "motion", "first_frame", "out", "fps", *_CLIP)
    unknown = sorted(fields.keys() - {*own, *OPTIONS})
    if unknown:
        raise InputError(f"{where}: unknown field {unknown[0]!r:.100}; known: {', '.join((*own, *OPTIONS))}.")
    for name in ("motion", "first_frame", "out", "video"):
        if not isinstance(fields.get(name, ""), str | None):
            raise InputError(f"{where}: {name} is {fields[name]!r:.100}; expected a string.")
    options = {key: fields[key] for key in OPTIONS if key in fields}
    with _named(where):
        prompt_text(fields["prompt"])
        check_options(options)
        frame_rate(fields.get("fps", FPS))
        clip = _clip(fields, defaults, folder)
    first_frame, out = fields.get("first_frame"), fields.get("out")
    return replace(
        defaults,
        prompt=fields["prompt"],
        motion=fields.get("motion", defaults.motion),
        first_frame=folder / first_frame if first_frame else defaults.first_frame,
        out=Path(out) if out else defaults.out,
        fps=fields.get("fps", defaults.fps),
        options={**defaults.options, **options},
        clip=clip,
    )


def _clip(fields: Mapping[str, Any], defaults: Job, folder: Path) -> ClipRequest | None:
    """The clip of a job's fields. Raises InputError for fields of a clip without `video`."""
    given = {name: fields[name] for name in _CLIP if fields.get(name) is not None}
    if not given:
        return defaults.clip
    if "video" not in given:
        raise InputError(f"{next(iter(given))} is of an edit, but no `video` is given.")
    return ClipRequest(**{**given, "video": folder / given["video"]})


@contextmanager
def _named(where: str) -> Iterator[None]:
    """A context that prefixes InputErrors with `where`, the file and line of the value."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _text(path: Path) -> str:
    try:
        return read_text(path, MAX_JOB_FILE_BYTES)
    except TextError as error:
        raise InputError(f"{path} {error}") from error


def _refuse_json(text: str, path: Path) -> None:
    """Raise InputError for a prompts file that contains JSON, whose lines would be read as prompts."""
    first = next((line for line in text_lines(text) if line.strip()), "")
    for candidate in (text, first):
        try:
            value = parse_json(candidate)
        except TextError:
            continue
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(part, dict) for part in parts):
            raise InputError(
                f"{path} is JSON, expected a prompt a line. For JSON lines, an object with a `prompt` on "
                "each line, name the file .jsonl."
            )


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except TextError as error:
        raise InputError(f"{where} {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a JSON object.")
    return value


def slug(prompt: str) -> str:
    """A file name made of a prompt's letters and digits, in lower case, that the locale can encode."""
    encoding = sys.getfilesystemencoding()
    possible = prompt.lower().encode(encoding, "ignore").decode(encoding)
    words = re.sub(r"[\W_]+", "-", possible).strip("-")
    return words.encode(encoding)[:_SLUG_BYTES].decode(encoding, "ignore").strip("-") or "video"
