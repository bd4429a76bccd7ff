# SPDX-License-Identifier: Apache-2.0
"""The page at /: files of the package, sent with a strict content security policy."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException

from lamp_trt.serving.settings import ModelInfo

FOLDER = Path(__file__).parent / "static"
INDEX = "index.html"

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; media-src blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-cache",
}

EXAMPLE_TYPES = {".webp": "image/webp", ".gif": "image/gif", ".mp4": "video/mp4"}
MAX_EXAMPLE_BYTES = 16 << 20


def add_page(api: FastAPI, model: ModelInfo) -> None:
    files = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}

    @api.get("/")
    async def index() -> Response:
        return _file(INDEX)

    @api.get("/static/{name}")
    async def static(name: str) -> Response:
        return _file(name)

    @api.get("/v1/motions/{name}/example")
    async def example(name: str) -> Response:
        """A motion's example, if the bundle has one."""
        path = model.examples.get(name)
        if path is None or not path.is_file():
            raise HTTPException(404, "there is no example of this motion.")
        return FileResponse(path, media_type=EXAMPLE_TYPES[path.suffix])

    def _file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "there is no such file.")
        return Response(files[name], media_type=TYPES[Path(name).suffix], headers=HEADERS)


def examples_of(bundle: Path, motions: tuple[str, ...]) -> dict[str, Path]:
    """Looping examples in the bundle's folder `examples`, by motion: MOTION.webp, .gif or .mp4."""
    found = {}
    for motion in motions:
        for suffix in EXAMPLE_TYPES:
            path = bundle / "examples" / f"{motion}{suffix}"
            if motion not in found and path.is_file() and path.stat().st_size <= MAX_EXAMPLE_BYTES:
                found[motion] = path
    return found
