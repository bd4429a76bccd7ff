# SPDX-License-Identifier: Apache-2.0
"""JSON replies to any text, lone surrogates of a client's own field names included."""

import json
from typing import Any

from fastapi.responses import Response


class JSONReply(Response):
    """A value as JSON in ASCII. Starlette's JSONResponse raises for texts that UTF-8 cannot encode."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
