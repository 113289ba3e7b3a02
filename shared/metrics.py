"""The counters of this process, for Prometheus, and the port on which a worker shows them.

Labels are names that operators chose (agents), templates of routes, statuses and codes from closed lists: never a user,
a tenant or an id. A counter belongs to one process and starts at 0 with it.
"""

from __future__ import annotations

import errno
import io
import logging
import math
import re
import socket
import sys
import threading
import time
from collections.abc import Iterable
from enum import StrEnum
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, Protocol, cast

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from agent_relay.shared.failure_codes import FailureCode

log = logging.getLogger(__name__)

REGISTRY = CollectorRegistry()
"""All counters below. Those that are read from the database at a scrape are added by `api/routes/health.py`."""
ProcessCollector(registry=REGISTRY)

RUNS_ENDED = Counter(
    "agent_relay_runs_ended",
    "Runs that this process ended. The code is that of the error, empty without one.",
    ["agent_type", "status", "code"],
    registry=REGISTRY,
)
ATTEMPTS = Counter(
    "agent_relay_attempts",
    "Attempts that this process began, by why: first, worker_lost, worker_stopping.",
    ["agent_type", "reason"],
    registry=REGISTRY,
)
PICK_UP_SECONDS = Histogram(
    "agent_relay_pick_up_seconds",
    "From when a worker was called for a run until one claimed it.",
    ["lane"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
    registry=REGISTRY,
)
FIRST_PARTIAL_SECONDS = Histogram(
    "agent_relay_first_partial_seconds",
    "From the claim of a run until the first partial of that attempt.",
    ["agent_type"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300),
    registry=REGISTRY,
)
MODEL_REQUESTS = Counter(
    "agent_relay_model_requests",
    "Requests to a model, counted when an attempt ends.",
    ["agent_type"],
    registry=REGISTRY,
)
COST = Counter(
    "agent_relay_cost_usd",
    "US dollars that requests with a known price came to, counted when an attempt ends.",
    ["agent_type"],
    registry=REGISTRY,
)
TOKENS = Counter(
    "agent_relay_tokens",
    "Tokens, counted when an attempt ends.",
    ["agent_type", "direction"],
    registry=REGISTRY,
)
HTTP_REQUESTS = Counter(
    "agent_relay_http_requests",
    "Requests by the template of their route, empty where none matches. A response counts when its head is sent; the"
    " status is empty where the caller left before.",
    ["method", "route", "status"],
    registry=REGISTRY,
)
SERVER_ERRORS = Counter(
    "agent_relay_server_errors",
    "Calls of PostgreSQL or Redis that failed: by the code of the reply, or `connection` where there was none.",
    ["server", "code"],
    registry=REGISTRY,
)
BAD_INPUT = Counter(
    "agent_relay_bad_input",
    "Items in Redis or PostgreSQL that were refused because they are not what this version writes or reads.",
    ["kind"],
    registry=REGISTRY,
)
FAILED_STEPS = Counter(
    "agent_relay_failed_steps",
    "Steps of a background loop that raised what was not foreseen; the loop goes on.",
    ["step"],
    registry=REGISTRY,
)

MOST_CONNECTIONS = 16
"""To the port of a worker, at once."""
PEER_SECONDS = 5
_ACCEPT_SECONDS = 0.02
"""Between two connections: the cost of all scrapers is bounded, however many there are."""
_HEAD_BYTES = 16 << 10

_CODE = re.compile(r"[A-Z0-9]{2,16}")
"""An SQLSTATE, or the first word of an error of Redis."""


_INTEGRITY = "23"
"""The class of SQLSTATEs that the service meets in its ordinary work."""


class Server(StrEnum):
    """The servers that can refuse."""

    POSTGRESQL = "postgresql"
    REDIS = "redis"


def server_error(server: Server, code: str | None) -> None:
    """Count a call that failed; `code` is an SQLSTATE or the first word of Redis' error, None without a reply."""
    known = "connection" if code is None else "other"
    SERVER_ERRORS.labels(server, code if code is not None and _CODE.fullmatch(code) else known).inc()


def database_error(error: object) -> None:
    """Count an error of PostgreSQL's driver, unless a row exists already, or is missing."""
    code: str | None = getattr(error, "sqlstate", None)
    if code is None or not code.startswith(_INTEGRITY):
        server_error(Server.POSTGRESQL, code)


class Ended(Protocol):
    """The labels of the end of a run."""

    @property
    def agent_type(self) -> str: ...  # noqa: D102
    @property
    def status(self) -> str: ...  # noqa: D102
    @property
    def error(self) -> object: ...  # noqa: D102


def run_ended(row: Ended) -> None:
    """Count the end of a run from its row."""
    code = str(cast("dict[str, Any]", row.error).get("code")) if isinstance(row.error, dict) else ""
    RUNS_ENDED.labels(row.agent_type, row.status, code if code in {"", *FailureCode} else "other").inc()


def serve(host: str, ports: Iterable[int]) -> None:
    """Show the counters at `/metrics` of the first of these ports that is free, from threads.

    Without a free one the process goes on, and logs that.
    """
    error: OSError | None = None
    for port in ports:
        try:
            server = _Server(host, port)
        except OSError as refused:
            error = refused
            if refused.errno != errno.EADDRINUSE:
                break
        else:
            threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
            log.info("metrics.served url=http://%s:%d/metrics", f"[{host}]" if ":" in host else host, port)
            return
    if error is not None:
        log.error("metrics.not_served host=%s error=%r", host, error)


class _Server(ThreadingTCPServer):
    """Takes few connections at once and a second, so that no number of scrapers takes the process from its work."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, *_, address = found[0]
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._shown, self._shown_at, self._showing = b"", -math.inf, threading.Lock()
        super().__init__(cast("tuple[str, int]", address), _Handler)

    def shown(self) -> bytes:
        """Write the counters, at most once a second."""
        with self._showing:
            if time.monotonic() >= self._shown_at + 1:
                self._shown, self._shown_at = generate_latest(REGISTRY), time.monotonic()
            return self._shown

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection once there is room; others wait in the queue of the kernel."""
        time.sleep(_ACCEPT_SECONDS)
        self._room.acquire()
        try:
            return super().get_request()
        except OSError:
            self._room.release()
            raise

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        super().shutdown_request(request)
        self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Leave a peer that has gone; log unforeseen errors."""
        del request, client_address
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("metrics.failed", exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request; a peer has `PEER_SECONDS` to send it, and as long to take the answer."""

    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    default_request_version = "HTTP/1.0"
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(code)d %(message)s\n"

    def setup(self) -> None:
        """Read the head."""
        super().setup()
        self.rfile = io.BytesIO(self._head())
        self.connection.settimeout(PEER_SECONDS)

    def do_GET(self) -> None:
        """Show the counters."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        body = self.server.shown()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  (the base class looks for this name)

    def _refuse(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    do_DELETE = do_OPTIONS = do_PATCH = do_POST = do_PUT = _refuse  # noqa: N815  (as above)

    def end_headers(self) -> None:
        """Add the common headers of all responses."""
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def version_string(self) -> str:
        """Tell no version."""
        return "agent-relay"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class names it)
        """Write no line a request."""

    def _head(self) -> bytes:
        """Read until an empty line; nothing where none comes in time, or only after too much."""
        head, deadline = b"", time.monotonic() + PEER_SECONDS
        while b"\r\n\r\n" not in head and len(head) < _HEAD_BYTES:
            left = deadline - time.monotonic()
            if left <= 0:
                return b""
            self.connection.settimeout(left)
            chunk = self.connection.recv(_HEAD_BYTES - len(head))
            if not chunk:
                return b""
            head += chunk
        return head if b"\r\n\r\n" in head else b""
