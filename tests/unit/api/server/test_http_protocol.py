"""What a connection receives while a turn of the event loop is full waits for the next one, and loses nothing."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from agent_relay.api.server.connections import Connections
from agent_relay.api.server.http_protocol import PatientProtocol, patient_protocol

REQUEST = b"GET /health/live HTTP/1.1\r\nHost: relay\r\n\r\n"


def transport() -> Mock:
    """Make a connection that only notes what is done with it."""
    made = Mock(spec=asyncio.Transport)
    made.is_closing.return_value = False
    made.get_extra_info.side_effect = {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get
    return made


@pytest.fixture
def asked() -> list[str]:
    """The paths that the application was asked for."""
    return []


@pytest.fixture
async def protocol(asked: list[str]) -> PatientProtocol:
    """A connection."""

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    connections = Connections(10, 10)
    config = Config(app, log_config=None)
    config.load()
    made = patient_protocol(10, connections)(config=config, server_state=ServerState(), app_state={})
    made.connection_made(transport())
    return made


def fill_the_turn(protocol: PatientProtocol) -> None:
    """Have other connections take all places of this turn."""
    while protocol.connections_of_process.turns.take():
        pass


async def turns(number: int) -> None:
    """Let the loop make some turns."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_it_is_taken_in_later_and_nothing_more_is_read_until_then(
    protocol: PatientProtocol, asked: list[str]
) -> None:
    connection: Any = protocol.transport
    fill_the_turn(protocol)
    protocol.data_received(REQUEST[:10])
    protocol.data_received(REQUEST[10:])

    assert connection.pause_reading.called
    assert asked == []
    await turns(4)
    assert connection.resume_reading.called
    assert asked == ["/health/live"]


async def test_what_a_lost_connection_sent_is_dropped_and_its_end_is_told_in_order(
    protocol: PatientProtocol, asked: list[str]
) -> None:
    connection: Any = protocol.transport
    protocol.cycle = cycle = Mock(response_complete=False, scope={})
    fill_the_turn(protocol)
    protocol.data_received(REQUEST)
    connection.is_closing.return_value = True
    protocol.connection_lost(None)

    assert len(protocol.connections_of_process) == 0
    assert not cycle.message_event.set.called
    await turns(2)
    assert cycle.disconnected is True
    assert cycle.message_event.set.called
    assert asked == []


async def test_reading_that_the_application_paused_stays_paused(protocol: PatientProtocol) -> None:
    connection: Any = protocol.transport
    fill_the_turn(protocol)
    protocol.flow.pause_reading()
    protocol.data_received(REQUEST[:10])

    await turns(2)

    assert connection.pause_reading.called
    assert not connection.resume_reading.called
