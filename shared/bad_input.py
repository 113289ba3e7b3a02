"""Data in Redis and PostgreSQL are input: an item that cannot be read is refused, and does not affect others.

It is counted, and logged once a minute at most for each kind, with the number of items that were not logged. The same
holds for a step of a background loop that fails.
"""

from __future__ import annotations

import logging
import time
from enum import StrEnum

from agent_relay.shared.metrics import BAD_INPUT, FAILED_STEPS

SAY_AGAIN_SECONDS = 60.0
LONGEST_QUOTE = 200

log = logging.getLogger(__name__)


class BadInput(StrEnum):
    """The kinds of refused items."""

    CANCEL = "cancel"
    """A message on the channel of cancels that is no id of a run."""
    QUEUE_ENTRY = "queue_entry"
    """A member of a queue that is not `<run>:<ring>`."""
    QUEUE_KEY = "queue_key"
    """A key of a lane that holds something other than a lane."""
    JOB = "job"
    """A job of the queue that cannot be read, or is for another run than its entry."""
    LOG_ENTRY = "log_entry"
    """An entry of an event log, or of its announcement, that cannot be read."""
    ANNOUNCEMENT = "announcement"
    """A message on a followed channel that its subscriber could not process."""
    LOG_KEY = "log_key"
    """The key of an event log that holds something other than this run's log."""
    UNKNOWN_EVENT = "unknown_event"
    """An event of a kind that this version does not know; a newer one writes it."""
    DELIVERY = "delivery"
    """A delivery of a webhook that cannot be written or sent."""
    ROW = "row"
    """A row of the database that cannot be shown, ended or erased as others of its kind."""


_said: dict[str, tuple[float, int]] = {}
"""When each kind was said last, and how often it happened since."""


def refuse(kind: BadInput, where: str, what: object) -> None:
    """Count an item that is refused, and log it unless its kind was logged within the last minute.

    `where` names the key, channel or row, and `what` is the item or the error; both are quoted and cut.
    """
    BAD_INPUT.labels(kind).inc()
    if (unsaid := _may_say(kind)) is not None:
        log.warning("bad_input.refused kind=%s where=%s what=%s unsaid=%d", kind, _quote(where), _quote(what), unsaid)


def failed(part: str, step: str, error: BaseException) -> None:
    """Count a step of a loop that raised an unforeseen error, and log it, as rarely, with its traceback.

    The loop goes on, and so do its other steps.
    """
    FAILED_STEPS.labels(f"{part}.{step}").inc()
    if (unsaid := _may_say(f"{part}.{step}")) is not None:
        log.error("%s.failed step=%s unsaid=%d", part, step, unsaid, exc_info=error)


def _may_say(kind: str) -> int | None:
    """Tell how often it happened unsaid if it may be said now, else None."""
    now = time.monotonic()
    said_at, unsaid = _said.get(kind, (float("-inf"), 0))
    if now - said_at < SAY_AGAIN_SECONDS:
        _said[kind] = (said_at, unsaid + 1)
        return None
    _said[kind] = (now, 0)
    return unsaid


def _quote(what: object) -> str:
    """Write it on one line, as Python writes it in a program, so that it cannot look like a line of its own."""
    quoted = ascii(what)
    return quoted if len(quoted) <= LONGEST_QUOTE else quoted[:LONGEST_QUOTE] + "…"
