"""Why a server refuses for now, in words for both servers that problem documents, readiness and metrics share."""

from __future__ import annotations

import math
from enum import StrEnum


class Trouble(StrEnum):
    """A reason why a server does not execute a command that is correct."""

    UNREACHABLE = "unreachable"
    STARTING = "starting"
    STOPPING = "stopping"
    READ_ONLY = "read_only"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    DISK_FULL = "disk_full"
    OUT_OF_MEMORY = "out_of_memory"
    OUT_OF_RESOURCES = "out_of_resources"
    IO_ERROR = "io_error"
    NOT_PERMITTED = "not_permitted"
    NO_DATABASE = "no_database"
    NOT_MIGRATED = "not_migrated"
    NO_REPLICAS = "no_replicas"
    BUSY = "busy"
    LOCKED = "locked"
    TIMED_OUT = "timed_out"
    CONFLICT = "conflict"
    """With another transaction: asked again, it may go through."""
    STALE_CONNECTION = "stale_connection"
    """A prepared statement is unknown there, or from before a migration."""
    INTERNAL_ERROR = "internal_error"

    @property
    def sentence(self) -> str:
        """Say it after the name of the server."""
        return _SENTENCES[self]


_SENTENCES = {
    Trouble.UNREACHABLE: "cannot be reached",
    Trouble.STARTING: "is starting",
    Trouble.STOPPING: "is stopping, or ended the connection",
    Trouble.READ_ONLY: "is read-only",
    Trouble.TOO_MANY_CONNECTIONS: "takes no more connections",
    Trouble.DISK_FULL: "has a full disk",
    Trouble.OUT_OF_MEMORY: "is out of memory",
    Trouble.OUT_OF_RESOURCES: "is out of a resource that it limits",
    Trouble.IO_ERROR: "cannot use its disk",
    Trouble.NOT_PERMITTED: "does not permit this to the service's user",
    Trouble.NO_DATABASE: "has no such database",
    Trouble.NOT_MIGRATED: "has not been migrated: run `agent-relay migrate`",
    Trouble.NO_REPLICAS: "has too few replicas to take writes",
    Trouble.BUSY: "is busy",
    Trouble.LOCKED: "holds locked what this needs",
    Trouble.TIMED_OUT: "took too long",
    Trouble.CONFLICT: "is busy with conflicting transactions",
    Trouble.STALE_CONNECTION: "has forgotten a prepared statement",
    Trouble.INTERNAL_ERROR: "has an internal error",
}


class Pace:
    """When to try what may help and costs something: at once, then at intervals that grow while it does not help."""

    FIRST_SECONDS, LONGEST_SECONDS, FORGIVEN_SECONDS = 1.0, 5.0, 60.0

    def __init__(self) -> None:
        self._tried_at = -math.inf
        self._pause = self.FIRST_SECONDS

    def is_due(self, now: float) -> bool:
        """Tell whether it is time, and take it for tried; `now` is in seconds of a clock that only grows."""
        since = now - self._tried_at
        if since < self._pause:
            return False
        forgiven = since > self.FORGIVEN_SECONDS
        self._pause = self.FIRST_SECONDS if forgiven else min(2 * self._pause, self.LONGEST_SECONDS)
        self._tried_at = now
        return True
