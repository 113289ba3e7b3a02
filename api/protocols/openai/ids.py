"""Ids as OpenAI writes them: a prefix, and the UUID in hexadecimal."""

from __future__ import annotations

import re
from uuid import UUID

from agent_relay.shared.errors import NotFound

_HEX = re.compile("[0-9a-f]{32}")
RESPONSE, CONVERSATION, MESSAGE, CALL, FILE = "resp_", "conv_", "msg_", "fc_", "file-"


def response_id(run_id: UUID) -> str:
    """Name a run as a response."""
    return RESPONSE + run_id.hex


def conversation_id(thread_id: UUID) -> str:
    """Name a thread as a conversation."""
    return CONVERSATION + thread_id.hex


def file_id(stored: UUID) -> str:
    """Name a file."""
    return FILE + stored.hex


def run_of(name: str) -> UUID:
    """Read the run that a response is.

    Raises:
        NotFound: it cannot be the id of one.
    """
    return _uuid_of(name, RESPONSE, "response")


def thread_of(name: str) -> UUID:
    """Read the thread that a conversation is.

    Raises:
        NotFound: it cannot be the id of one.
    """
    return _uuid_of(name, CONVERSATION, "conversation")


def file_of(name: str) -> UUID:
    """Read which file is meant.

    Raises:
        NotFound: it cannot be the id of one.
    """
    return _uuid_of(name, FILE, "file")


def _uuid_of(name: str, prefix: str, what: str) -> UUID:
    digits = name.removeprefix(prefix)
    if not name.startswith(prefix) or not _HEX.fullmatch(digits):
        raise NotFound(what)
    return UUID(digits)
