"""`python -m api`: serve the API until told to stop. Start as many as you like behind any load balancer."""

from __future__ import annotations

from shared.stopping import exit_when_told

if __name__ == "__main__":
    exit_when_told()  # Before the imports that take long.

import logging
import socket
from types import FrameType

import uvicorn
import uvloop
from fastapi import FastAPI

from api.access_log import AccessLog
from api.app import create_app
from api.connections import Connections, limit_of_connections
from api.listening import listen
from api.protocol import patient_protocol
from shared import failpoints, logs
from shared.settings import read
from shared.start import check
from shared.versions import refuse_old_servers

log = logging.getLogger(__name__)

STOP_SECONDS = 3
"""Streams end at once, so this is for calls that are being answered."""


class Server(uvicorn.Server):
    """uvicorn, with streams that end at an event boundary when it is told to stop."""

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop taking requests, and let go of followers; they resume elsewhere."""
        if hasattr(self._app.state, "parts"):
            self._app.state.parts.relay.close()
            self._app.state.parts.batch_feeds.close()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests, and say where; for sockets that were made elsewhere, uvicorn leaves that out."""
        await super().startup(sockets)
        self._log_started_message(sockets or [])


def main() -> None:
    """Serve."""
    settings = read()
    logs.configure(settings)
    sockets = listen(settings.host, settings.port)
    uvloop.run(refuse_old_servers(settings))
    if not settings.api_keys:
        log.info("api.keys_from_database: API_KEYS is not set; `python -m api.keys create TENANT` makes a key")
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
