# SPDX-License-Identifier: Apache-2.0
"""The HTTP API: /v1/videos as OpenAI's, with more fields; events, models, health and metrics."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from lamp_trt._version import __version__
from lamp_trt.engine.errors import LampError, OutputError
from lamp_trt.engine.files.output import cannot_write, keep_copy
from lamp_trt.runtime.algorithm.config import FPS
from lamp_trt.serving.jobs.events import LAST
from lamp_trt.serving.jobs.fields import (
    FieldError,
    VideoFields,
    parse_edit_fields,
    parse_fields,
    settings_shown,
)
from lamp_trt.serving.jobs.front import Front, Unavailable, rounded
from lamp_trt.serving.jobs.metrics import CONTENT_TYPE
from lamp_trt.serving.jobs.store import JobRecord, new_id
from lamp_trt.serving.settings import error_body
from lamp_trt.serving.web.bodies import Body, BodyError, Files, read_request
from lamp_trt.serving.web.clips import AT_ONCE, check_clip
from lamp_trt.serving.web.json_reply import JSONReply
from lamp_trt.serving.web.page import EXAMPLE_TYPES, add_page
from lamp_trt.serving.web.security import BodyTooLarge, Guard
from lamp_trt.serving.web.streams import EventStream, until_left
from lamp_trt.serving.web.uploads import Decoder

log = logging.getLogger("lamp_trt")

POLL_MS = "1000"
RETRY_SECONDS = "5"


def make_app(front: Front) -> Guard:
    """The ASGI application; its lifespan starts and closes the front."""
    decoder = Decoder()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await front.start()
        await decoder.start()
        try:
            yield
        finally:
            await decoder.close()
            await front.close()

    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    _add_errors(api, front)
    _add_making(api, front, decoder)
    _add_reading(api, front)
    _add_service(api, front)
    add_page(api, front.model)
    return Guard(api, front.settings, front.metrics)


def _add_making(api: FastAPI, front: Front, decoder: Decoder) -> None:
    uploading = asyncio.Semaphore(AT_ONCE)

    @api.post("/v1/videos")
    async def create(request: Request) -> Response:
        job = await _create(request, front, decoder)
        return JSONReply(_public(front, job), headers={"openai-poll-after-ms": POLL_MS})

    @api.post("/v1/videos/edits")
    async def edit(request: Request) -> Response:
        job = await _create_edit(request, front, decoder, uploading)
        return JSONReply(_public(front, job), headers={"openai-poll-after-ms": POLL_MS})

    @api.post("/v1/videos/sync")
    async def sync(request: Request) -> Response:
        """Make a video and reply with it; the client's leaving stops it."""
        job = await _create(request, front, decoder)
        if not await until_left(request, _until_ended(front, job)):
            front.delete(job)
            return Response(status_code=499)
        ended = front.get(job.id)
        if ended is None:
            return _error(404, "the video was deleted.", code="deleted")
        if ended.error is not None:
            status = 400 if ended.error["code"] == "content_policy" else 500
            return _error(status, ended.error["message"], "video_error", ended.error["code"])
        return FileResponse(front.store.video(job.id), media_type="video/mp4", headers={"x-video-id": job.id})

    @api.delete("/v1/videos/{video}")
    async def delete(video: str) -> Response:
        job = _found(front, video)
        front.delete(job)
        return JSONReply({"id": job.id, "object": "video.deleted", "deleted": True})


def _add_reading(api: FastAPI, front: Front) -> None:
    @api.get("/v1/videos")
    async def list_videos(request: Request) -> Response:
        query = request.query_params
        limit, order = query.get("limit", "20"), query.get("order", "desc")
        if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= 100):
            raise FieldError("limit", f"limit is {limit!r:.100}; expected 1 to 100.")
        if order not in ("asc", "desc"):
            raise FieldError("order", f"order is {order!r:.100}; expected asc or desc.")
        found = front.store.page(int(limit) + 1, query.get("after"), order == "desc")
        left = front.seconds_left()
        shown = [_public(front, front.get(job.id) or job, left) for job in found[: int(limit)]]
        ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {}
        return JSONReply({"object": "list", "data": shown, "has_more": len(found) > int(limit), **ends})

    @api.get("/v1/videos/{video}")
    async def get(video: str) -> Response:
        return JSONReply(_public(front, _found(front, video)), headers={"openai-poll-after-ms": POLL_MS})

    @api.get("/v1/videos/{video}/content")
    async def content(video: str, variant: str = "video") -> Response:
        """variant: "video", or "settings", the video's sidecar."""
        job = _found(front, video)
        if variant not in ("video", "settings"):
            raise FieldError("variant", f"variant is {variant!r:.100}; expected video or settings.")
        if job.status != "completed":
            return _error(404, f"the video is {job.status}.", code="not_ready")
        if variant == "settings":
            return FileResponse(front.store.sidecar(job.id), media_type="application/json")
        return FileResponse(
            front.store.video(job.id),
            media_type="video/mp4",
            filename=f"{job.id}.mp4",
            content_disposition_type="inline",
        )

    @api.get("/v1/videos/{video}/events")
    async def events(video: str, stop_on_leave: bool = False, previews: bool = False) -> Response:
        """Server-sent events. stop_on_leave: a client that leaves deletes the job, unless it has ended."""
        job = _found(front, video)

        def left() -> None:
            now = front.get(job.id)
            if stop_on_leave and now is not None and not now.finished:
                front.delete(now)

        return EventStream(front.events(job, previews), left)


def _add_service(api: FastAPI, front: Front) -> None:
    model = front.model
    started = int(time.time())

    @api.get("/v1/models")
    async def models() -> Response:
        entry = {
            "id": model.name,
            "object": "model",
            "created": started,
            "owned_by": "lamp-trt",
            "motions": [*model.motions],
            "default_motion": model.default_motion,
            "size": model.size_text,
            "num_frames": model.num_frames,
            "fps": FPS,
            "seconds": model.seconds(FPS),
            "makes_first_frames": model.makes_first_frames,
            "safety": model.safety,
            "has_safety_checker": model.has_checker,
            "bundle": model.bundle,
            "examples": {
                motion: {"url": f"v1/motions/{motion}/example", "type": EXAMPLE_TYPES[path.suffix]}
                for motion, path in model.examples.items()
            },
            "settings": settings_shown(),
        }
        return JSONReply({"object": "list", "data": [entry]})

    @api.get("/health")
    async def health() -> Response:
        engines = front.pool.health()
        states = {engine.state for engine in engines}
        serving = bool(states & {"idle", "busy"})
        status = "ok" if states <= {"idle", "busy"} else "degraded" if serving else "starting"
        if states == {"down"}:
            status = "down"
        body = {
            "status": status,
            "safety": model.safety,
            "has_safety_checker": model.has_checker,
            "queued": len(front.waiting),
            "version": __version__,
            "engines": [
                {"name": each.name, "state": each.state, "restarts": each.restarts} for each in engines
            ],
        }
        return JSONReply(body, 200 if serving else 503)

    @api.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(front.metrics_text(), media_type=CONTENT_TYPE)


def _add_errors(api: FastAPI, front: Front) -> None:
    @api.exception_handler(FieldError)
    async def field_error(_: Request, error: FieldError) -> Response:
        front.metrics.refused["invalid_field"] += 1
        return JSONReply(error_body(str(error), param=error.param, code="invalid_field"), error.status)

    @api.exception_handler(BodyError)
    async def body_error(_: Request, error: BodyError) -> Response:
        front.metrics.refused["invalid_body"] += 1
        return _error(error.status, str(error), code="invalid_body")

    @api.exception_handler(BodyTooLarge)
    async def too_large(_: Request, error: BodyTooLarge) -> Response:
        reply = _error(413, str(error), code="too_large")
        reply.headers["connection"] = "close"
        return reply

    @api.exception_handler(Unavailable)
    async def unavailable(_: Request, error: Unavailable) -> Response:
        status = 429 if error.code == "queue_full" else 503
        kind = "rate_limit_error" if status == 429 else "server_error"
        return JSONReply(
            error_body(str(error), kind, code=error.code), status, headers={"retry-after": RETRY_SECONDS}
        )

    @api.exception_handler(OutputError)
    async def no_space(_: Request, error: OutputError) -> Response:
        front.metrics.refused["out_of_space"] += 1
        return _error(507, str(error), "server_error", "out_of_space")

    @api.exception_handler(LampError)
    async def other_error(_: Request, error: LampError) -> Response:
        log.error("%s", error)
        return _error(500, "the server failed; its log says why.", "server_error", "internal")

    @api.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail))


async def _create(request: Request, front: Front, decoder: Decoder) -> JobRecord:
    """The queued job of a request. Refusals for a full queue come before an image is decoded."""
    front.check_capacity()
    body = await read_request(request, front.settings.limits)
    fields = parse_fields(body.fields, front.model, has_frame=body.image is not None)
    return front.create(fields, await _decoded(body, fields, front, decoder, "input_reference"))


async def _create_edit(
    request: Request, front: Front, decoder: Decoder, uploading: asyncio.Semaphore
) -> JobRecord:
    """The queued job of a request to edit. Its clip is stored, and decoded once, before it is queued."""
    front.check_capacity()
    name = new_id()
    clip = front.store.clip(name)
    async with uploading:
        try:
            body = await read_request(request, front.settings.limits, Files("first_frame", clip))
            fields = parse_edit_fields(body.fields, front.model, has_video=body.has_video)
            assert fields.clip is not None
            if fields.clip["video"] is not None:
                _link_video(front, fields.clip["video"], clip)
            await check_clip(clip, fields, front.model)
            return front.create(fields, await _decoded(body, fields, front, decoder, "first_frame"), name)
        except BaseException:
            front.store.remove_files(name)
            raise


def _link_video(front: Front, video: str, clip: Path) -> None:
    """Give a finished job's video a second name, which outlives that job. It is copied where the file system
    has no links."""
    job = front.get(video)
    if job is None or job.status != "completed":
        state = "there is no such video" if job is None else f"it is {job.status}"
        raise FieldError(
            "video", f"video is {video!r:.100}: {state}; expected a file, or a finished video's id."
        )
    try:
        keep_copy(front.store.video(job.id), clip)
    except OSError as error:
        raise cannot_write(clip, error) from error


async def _decoded(
    body: Body, fields: VideoFields, front: Front, decoder: Decoder, field: str
) -> NDArray[np.uint8] | None:
    if body.image is None:
        return None
    fit, background = fields.options.get("fit", "stretch"), fields.options.get("background", "white")
    return await decoder.decode(body.image, front.model.size, fit, background, field)


async def _until_ended(front: Front, job: JobRecord) -> None:
    async for event in front.events(job):
        if event.name in LAST:
            return


def _found(front: Front, video: str) -> JobRecord:
    job = front.get(video)
    if job is None:
        raise HTTPException(404, "there is no such video; it may have expired.")
    return job


def _public(front: Front, job: JobRecord, left: Mapping[str, float] | None = None) -> dict[str, Any]:
    """A job as clients see it. left: what `Front.seconds_left` gives, if it is known."""
    shown = {
        "id": job.id,
        "object": "video",
        "model": front.model.name,
        "status": job.status,
        "progress": front.progress(job),
        "created_at": int(job.created_at),
        "completed_at": int(job.finished_at) if job.status == "completed" and job.finished_at else None,
        "expires_at": int(job.finished_at + front.settings.job_ttl) if job.finished_at else None,
        "size": front.model.size_text,
        "seconds": front.model.seconds(job.fps),
        "prompt": job.prompt,
        "motion": job.motion,
        "fps": job.fps,
        "error": job.error,
        **({} if job.clip is None else {"edit": job.clip}),
        **{name: value for name, value in job.options.items() if not name.startswith("safety")},
    }
    if job.status == "queued":
        shown["queue_position"] = front.waiting.position(job.id)
    if not job.finished:
        left = front.seconds_left() if left is None else left
        shown["seconds_left"] = rounded(left.get(job.id))
    return shown


def _error(
    status: int, message: str, kind: str = "invalid_request_error", code: str | None = None
) -> JSONReply:
    return JSONReply(error_body(message, kind, code=code), status)
