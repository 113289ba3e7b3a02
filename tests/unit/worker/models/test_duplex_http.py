"""An answer that came before the connection was reset is heard, also when the next write fails before the next read."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator

import httpx2

from agent_relay.worker.models.duplex_http import TwoWayTransport

ANSWER = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n"


def answers_and_resets(server: socket.socket, go: threading.Event) -> None:
    """Answer when told to, and close with what was sent unread."""
    connection, _ = server.accept()
    with connection:
        go.wait(10)
        connection.sendall(ANSWER)


async def test_an_answer_is_heard_after_a_write_that_failed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        go = threading.Event()
        answering = threading.Thread(target=answers_and_resets, args=(server, go))
        answering.start()

        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            go.set()
            answering.join()  # The loop stands still meanwhile: it reads nothing, and its next write fails.
            yield b"second"

        async with httpx2.AsyncClient(transport=TwoWayTransport(), timeout=10) as client:
            response = await client.post(f"http://127.0.0.1:{server.getsockname()[1]}/hook", content=body())

    assert response.status_code == 413
