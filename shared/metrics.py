"""The counters of this process, for Prometheus, and the port on which a worker shows them.

Labels are names that operators chose (agents), templates of routes, statuses and codes from closed lists: never a user,
a tenant or an id. A counter belongs to one process and starts at 0 with it.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, start_http_server

from shared.failures import FailureCode

log = logging.getLogger(__name__)

REGISTRY = CollectorRegistry()
"""All counters below. What is read from the database when it is asked for, `api/health.py` adds."""
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

_CODE = re.compile(r"[A-Z0-9]{2,16}")
"""An SQLSTATE, or the first word of an error of Redis."""


_INTEGRITY = "23"
"""The class of SQLSTATEs that the service meets in its ordinary work."""


class Server(StrEnum):
    """Who can say no."""

    POSTGRESQL = "postgresql"
    REDIS = "redis"


def server_error(server: Server, code: str | None) -> None:
    """Count a call that failed; `code` is an SQLSTATE or the first word of Redis' error, None without a reply."""
    known = "connection" if code is None else "other"
    SERVER_ERRORS.labels(server, code if code is not None and _CODE.fullmatch(code) else known).inc()


def database_error(error: object) -> None:
    """Count an error of PostgreSQL's driver, unless it says that a row is there already, or is missing."""
    code: str | None = getattr(error, "sqlstate", None)
    if code is None or not code.startswith(_INTEGRITY):
        server_error(Server.POSTGRESQL, code)


def run_ended(row: Any) -> None:
    """Count the end of a run from its row; it has `agent_type`, `status` and `error`."""
    code = str(cast("dict[str, Any]", row.error).get("code")) if isinstance(row.error, dict) else ""
    RUNS_ENDED.labels(row.agent_type, row.status, code if code in {"", *FailureCode} else "other").inc()


def serve(host: str, ports: Iterable[int]) -> None:
    """Show the counters at `/metrics` of the first of these ports that is free, from a thread.

    Without a free one the process goes on, and its log says so.
    """
    error: OSError | None = None
    for port in ports:
        try:
            start_http_server(port, host, REGISTRY)
        except OSError as refused:
            error = refused
            if refused.errno != errno.EADDRINUSE:
                break
        else:
            log.info("metrics.served url=http://%s:%d/metrics", host, port)
            return
    if error is not None:
        log.error("metrics.not_served host=%s error=%r", host, error)
