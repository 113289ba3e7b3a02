"""Users as callers name them: each text stands for one UUID of its tenant, and a UUID stands for itself."""

from __future__ import annotations

import re
from uuid import UUID, uuid5

from agent_relay.api.schemas import USER_NAME

_NAME = re.compile(USER_NAME, re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_NAMED = UUID("9f4f0f0b-58a3-4d0c-9a52-1f0b9d6c7e11")
"""Namespace of users. Never change it: the ids of users depend on it."""


def user_of(tenant: str, name: str) -> UUID:
    """Say which user of a tenant a name stands for.

    Raises:
        ValueError: it is not 1 to 128 printable ASCII characters, or has a space at an end.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("not a name")
    if _UUID.fullmatch(name):  # `UUID` takes more for one: braces, signs, dashes anywhere.
        return UUID(name)
    return uuid5(uuid5(_NAMED, tenant), name)
