"""Framing: one object a line, whatever the text holds, in the framing that was asked for."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_relay.api.problems import Refused
from agent_relay.api.streaming.sse_and_ndjson import Framing, negotiate
from agent_relay.shared.event_log import Id

TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


@given(token=TEXTS | st.text(alphabet="a\n\r\x0b\x0c\x1c\x85\u2028\u2029", max_size=20))
def test_a_line_of_ndjson_is_one_line_for_every_splitter(token: str) -> None:
    frame = Framing.NDJSON.frame(Id(1, 2), "text_delta", {"token": token})

    assert len(frame.decode().splitlines()) == 1
    assert json.loads(frame) == {"id": "1-2", "event": "text_delta", "token": token}


@given(token=TEXTS)
def test_an_event_of_sse_has_one_line_of_data(token: str) -> None:
    frame = Framing.SSE.frame(Id(1, 2), "text_delta", {"token": token}).decode()

    head, event, data, *end = frame.split("\n")
    assert (head, event, end) == ("id: 1-2", "event: text_delta", ["", ""])
    assert len(data.splitlines()) == 1
    assert json.loads(data.removeprefix("data: "))["token"] == token


def test_a_failed_run_is_no_error_of_the_event_source() -> None:
    frame = Framing.SSE.frame(Id(2, 0), "error", {"error": {}})

    assert b"event: run_failed\n" in frame
    assert b'"event":"error"' in frame


@pytest.mark.parametrize(
    ("accept", "framing"),
    [
        (None, Framing.NDJSON),
        ("*/*", Framing.NDJSON),
        ("application/x-ndjson", Framing.NDJSON),
        ("text/event-stream", Framing.SSE),
        ("application/json, Text/Event-Stream;q=0.5", Framing.SSE),
        ("text/*", Framing.SSE),
        ("text/event-stream;q=0, */*", Framing.NDJSON),
        ("text/event-stream; charset=utf-8", Framing.SSE),
        ("TEXT/EVENT-STREAM;Q=1.0", Framing.SSE),
        ("text/event-stream;q=0.2, application/x-ndjson;q=0.8", Framing.NDJSON),
        ("application/x-ndjson, text/event-stream", Framing.SSE),
        ("text/event-stream;q=high, application/ndjson;q=0.8", Framing.SSE),
        ("text/event-stream; q=0.000, text/*, application/jsonl", Framing.NDJSON),
        (" , ", Framing.NDJSON),
    ],
)
def test_the_caller_chooses_the_framing(accept: str | None, framing: Framing) -> None:
    assert negotiate(accept) is framing


def test_who_takes_no_stream_is_refused() -> None:
    with pytest.raises(Refused):
        negotiate("text/html")
