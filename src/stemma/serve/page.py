"""The page: files that stand beside this module, read once when the server begins. A path is a key of a table, so no
path leads anywhere else."""

from __future__ import annotations

import hashlib
import mimetypes
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
KINDS = {".js": "text/javascript", ".mjs": "text/javascript", ".webmanifest": "application/manifest+json"}
NONE = b"<!doctype html><title>Stemma</title><p>This server has no page. It speaks OpenAI's interface at /v1.\n"


class File(NamedTuple):
    """A file of the page."""

    data: bytes
    kind: str
    tag: str


def read(folder: Path = FOLDER) -> dict[str, File]:
    """The files of the page by their paths; `/` is index.html."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            found[f"/page/{path.relative_to(folder).as_posix()}"] = _file(path.read_bytes(), path.name)
    found["/"] = found.get("/page/index.html") or _file(NONE, "index.html")
    return found


def _file(data: bytes, name: str) -> File:
    kind = KINDS.get(Path(name).suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    kind = f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
    return File(data, kind, f'"{hashlib.sha256(data).hexdigest()[:20]}"')


def answer(request: Request, files: dict[str, File]) -> Response | None:
    """A file of the page; None where there is none. Browsers ask each time whether theirs is current."""
    file = files.get(request.scope["path"])
    if file is None:
        return None
    head = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "ETag": file.tag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.tag in known:
        return Response(status_code=304, headers=head)
    return Response(file.data, headers=head, media_type=file.kind)
