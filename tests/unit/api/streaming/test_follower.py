"""How a stream ends: as its run does, where the run waits, or cut, which its reader must be able to tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from starlette.types import Message

from agent_relay.api.requests.rate_limits import OpenCall
from agent_relay.api.server.http_protocol import BREAK_OFF
from agent_relay.api.streaming.native_renderer import NativeRenderer
from agent_relay.api.streaming.relay import Relay
from agent_relay.api.streaming.response import CannotRender, Follower
from agent_relay.api.streaming.run_feed import Event, RunFeed, Text
from agent_relay.api.streaming.sse_and_ndjson import Framing
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.event_log import BEFORE_ALL, Entry, Id, text_body
from agent_relay.shared.rows import RunRow
from tests.support.eventually import soon
from tests.support.rows import run_row

STARTED = Entry(Id(1, 1), {"event": "message_started", "reason": "first"})
WAITING = Entry(Id(1, 2), {"event": "waiting", "requests": []})
PAUSE = Entry(Id(1, 3), {"event": "pause"})
ANSWERED = Entry(Id(1, 4), {"event": "answered", "request_id": "p"})
GOES_ON = Entry(Id(2, 1), {"event": "message_started", "reason": "answered", "steps_kept": 1})


class Followed:
    """A relay with one run, and a reader who notes what is sent."""

    def __init__(self) -> None:
        self.run = run_row(text_output=True)
        self.feed = RunFeed(self.run)
        self.closing = False
        self.sent: list[Message] = []

    @asynccontextmanager
    async def follow(self, _run: RunRow) -> AsyncGenerator[RunFeed]:
        """Follow the run."""
        yield self.feed

    async def send(self, message: Message) -> None:
        """Take what is sent."""
        self.sent.append(message)

    def reader(self, renderer: Any = None, cursor: Id = BEFORE_ALL, **options: Any) -> Follower:
        """Make a reader of the run."""
        renderer = renderer or NativeRenderer(self.run, Framing.NDJSON, deltas=False)
        return Follower(cast("Relay", self), cast("OpenCall", _Call()), self.run, cursor, renderer, **options)

    def close(self) -> None:
        """Stop the process."""
        self.closing = True
        self.feed.wake()

    @property
    def body(self) -> str:
        """What was sent."""
        return b"".join(message.get("body", b"") for message in self.sent).decode()


class _Call:
    revoked: Any = None

    def close(self) -> None:
        """The call is over."""


class Speechless(NativeRenderer):
    """A renderer that has no word for a text."""

    def render(self, item: Event | Text) -> bytes:
        """Write an event."""
        if isinstance(item, Text):
            raise CannotRender
        return super().render(item)


@pytest.mark.parametrize("breaks_off", [False, True])
async def test_a_stream_that_is_cut_breaks_off_where_its_readers_need_that(*, breaks_off: bool) -> None:
    followed = Followed()
    assert followed.feed.take_log([STARTED])
    writing = asyncio.create_task(followed.reader(breaks_off=breaks_off).write(followed.send))
    await soon(_said(followed, "message_started"))
    followed.close()
    await writing

    last = {"type": BREAK_OFF} if breaks_off else {"type": "http.response.body", "body": b"", "more_body": False}
    assert followed.sent[-1] == last


async def test_a_stream_that_has_told_the_end_ends_properly() -> None:
    followed = Followed()
    followed.feed.settle(run_row(status=RunStatus.SUCCEEDED, output="So.", last_entry=1))
    await followed.reader(breaks_off=True).write(followed.send)

    assert '"done"' in followed.body
    assert followed.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_what_a_renderer_cannot_say_cuts_the_stream_there() -> None:
    followed = Followed()
    assert followed.feed.take_log([STARTED, Entry(Id(1, 2), text_body("So.")), Entry(Id(1, 3), {"event": "pause"})])
    renderer = Speechless(followed.run, Framing.NDJSON, deltas=False)
    await followed.reader(renderer, breaks_off=True, until_waiting=True).write(followed.send)

    assert "message_started" in followed.body
    assert "waiting" not in followed.body
    assert followed.sent[-1] == {"type": BREAK_OFF}


async def test_a_reader_who_goes_on_after_a_pause_waits_for_what_comes_after_it() -> None:
    followed = Followed()
    assert followed.feed.take_log([STARTED, WAITING, PAUSE])
    reader = followed.reader(cursor=PAUSE.id, until_waiting=True)
    writing = asyncio.create_task(reader.write(followed.send))
    await asyncio.sleep(0)
    assert followed.feed.take_live([ANSWERED, GOES_ON])
    await soon(_said(followed, "message_started"))
    assert followed.feed.take_live([Entry(Id(2, 2), {"event": "pause"})])
    await writing

    assert [line.split('"event":"')[1].split('"')[0] for line in followed.body.splitlines()] == [
        "answered",
        "message_started",
        "done",
    ]


def _said(followed: Followed, word: str) -> Any:
    async def said() -> bool:
        return word in followed.body

    return said
