"""Headers that keep browsers and caches from doing more with a response than they are meant to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ON_EVERY_RESPONSE = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""A header that a route sets itself stays."""
_ON_EVERY_RESPONSE = [(name.lower().encode(), value.encode()) for name, value in ON_EVERY_RESPONSE.items()]


def complete(start: Mapping[str, Any]) -> None:
    """Add the headers that are missing to an `http.response.start`."""
    given = {name for name, _ in start["headers"]}
    start["headers"].extend(header for header in _ON_EVERY_RESPONSE if header[0] not in given)
