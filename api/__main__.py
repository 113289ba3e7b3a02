"""`agent-relay api`: serve the API until stopped. Start any number behind any load balancer."""

from __future__ import annotations

from agent_relay.shared.early_stop import exit_when_told

if __name__ == "__main__":
    exit_when_told()  # Before the imports that take long.

import argparse
import ctypes
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import uvicorn
import uvloop
from fastapi import FastAPI

from agent_relay.api.app import create_app
from agent_relay.api.server.access_log import AccessLog
from agent_relay.api.server.connections import Connections, limit_of_connections
from agent_relay.api.server.http_protocol import patient_protocol
from agent_relay.api.server.listening import listen
from agent_relay.shared import failpoints, logs
from agent_relay.shared.minimum_versions import refuse_old_servers
from agent_relay.shared.settings import read
from agent_relay.shared.startup_checks import check

log = logging.getLogger(__name__)

_M_MMAP_THRESHOLD = -3
LARGE_BLOCK_BYTES = 256 << 10
STOP_SECONDS = 3
"""Streams end at once, so this is for calls that are being answered."""


class Server(uvicorn.Server):
    """uvicorn, with streams that end at an event boundary when it stops."""

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop taking requests, and end streams; their readers resume elsewhere."""
        if hasattr(self._app.state, "relay"):
            self._app.state.relay.close()
            self._app.state.batch_feeds.close()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests, and log where; for sockets that were made elsewhere, uvicorn leaves that out."""
        await super().startup(sockets)
        self._log_started_message(sockets or [])


def give_memory_back() -> None:
    """Return large blocks to the system when they are freed, if the C library is glibc.

    It keeps them once it has seen some: a hundred readers of large pages leave 200 MiB behind.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def main(words: Sequence[str] | None = None) -> None:
    """Serve; `words` are those of the command line, which takes none but `--help`."""
    argparse.ArgumentParser(
        prog="agent-relay api",
        description="Serve the HTTP API until told to stop. Settings are environment variables or lines of .env: "
        "DATABASE_URL, REDIS_URL, HOST, PORT and more. Start as many as you like behind any load balancer.",
    ).parse_args(words)
    give_memory_back()
    settings = read()
    logs.configure(settings)
    sockets = listen(settings.host, settings.port)
    uvloop.run(refuse_old_servers(settings))
    if not settings.api_keys:
        log.info("api.keys_from_database: API_KEYS is not set; `agent-relay keys create TENANT` makes a key")
    failpoints.arm(settings.failpoints)
    logging.getLogger("uvicorn.error").setLevel(settings.log_level)
    check(settings, needs_redis=False)
    connections = Connections(limit_of_connections(settings.max_connections), settings.request_seconds)
    app = create_app(settings, connections.most)
    server = Server(
        app,
        uvicorn.Config(
            AccessLog(app) if settings.access_log else app,
            host=settings.host,
            port=settings.port,
            loop="uvloop",
            http=patient_protocol(settings.stalled_reader_seconds, connections),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=STOP_SECONDS,
        ),
    )
    server.run(sockets)


if __name__ == "__main__":
    main()
