"""`chat`: a conversation, a line a query, until the end of the input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from uuid import uuid4

from agent_relay.client.ask import Answer
from agent_relay.client.connection import Connection
from agent_relay.client.errors import Refused
from agent_relay.client.terminal import complain

_OF_THE_QUERY = {400, 413, 422}
"""Refusals of a query as such; the next one may be better."""


def begin(connection: Connection, agent: str) -> str:
    """Begin a thread, once; returns its id."""
    return connection.post("/threads", {"agent_type": agent}, key=f"chat-{uuid4()}")["id"]


def lines() -> Iterator[str]:
    """Read queries from standard input, with line editing where that is a terminal; empty ones are none."""
    prompts = sys.stdin.isatty()
    edits = prompts and sys.stdout.isatty()
    if edits:
        with suppress(ImportError):
            import_module("readline")  # `input` edits lines once it is there.
    while True:
        try:
            if edits:
                line = input("> ")
            else:
                if prompts:
                    complain("> ", end="")
                line = sys.stdin.readline()
                if not line:
                    return
        except EOFError:
            return
        if line.strip():
            yield line.strip()


def chat(query_of: Iterator[str], answer_to: Callable[[str], Answer]) -> bool:
    """Ask one query after the other; returns whether all were answered.

    Raises:
        Refused, OutOfReach: the conversation cannot go on.
    """
    all_answered = True
    for query in query_of:
        try:
            answered = answer_to(query).status == "succeeded"
        except Refused as refused:
            if refused.status not in _OF_THE_QUERY:
                raise
            complain(str(refused))
            answered = False
        all_answered = all_answered and answered
    return all_answered
