"""The built pages: HTML that is asked for again each time, and files that are named by their hash and kept for ever."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

from fastapi import Request
from fastapi.responses import Response

STATIC = Path(__file__).parent / "static"
ASSETS = STATIC / "console" / "assets"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; font-src 'self';"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
    " 'none'"
)
"""The rights of the pages: run and show their own files, and call this service."""

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page(request: Request, name: str) -> Response:
    """Serve a page."""
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
    return _file(request, STATIC / f"{name}.html", headers)


def asset(request: Request, name: str) -> Response | None:
    """Serve a file that pages load; None where there is none of that name."""
    path = next((each for each in _assets() if each.name == name), None)
    return path and _file(request, path, {"Cache-Control": "public, max-age=31536000, immutable"})


@cache
def _assets() -> tuple[Path, ...]:
    return tuple(path for path in ASSETS.iterdir() if path.suffix in _MEDIA_TYPES)


def _file(request: Request, path: Path, headers: dict[str, str]) -> Response:
    plain, compressed = _read(path)
    packed = "gzip" in request.headers.get("Accept-Encoding", "")
    encoding = {"Content-Encoding": "gzip"} if packed else {}
    content = compressed if packed else plain
    return Response(
        content, headers={**headers, **encoding, "Vary": "Accept-Encoding"}, media_type=_MEDIA_TYPES[path.suffix]
    )


@cache
def _read(path: Path) -> tuple[bytes, bytes]:
    plain = path.read_bytes()
    return plain, gzip.compress(plain, mtime=0)
