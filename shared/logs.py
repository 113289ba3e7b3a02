"""How processes write their logs: a line an event, `noun.verb key=value`, so that the verb can be searched for.

A line ends with what it is about, as far as that is known: `request_id`, `run_id`, `batch_id`, `worker_id`.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from contextvars import ContextVar

from shared.settings import Settings

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that is being answered."""
RUN_ID: ContextVar[object | None] = ContextVar("run_id", default=None)
"""The run that is being answered; anything whose `str` is its id, here and below."""
BATCH_ID: ContextVar[object | None] = ContextVar("batch_id", default=None)
"""The batch that the run, or the request, is of."""

_CONTEXT: tuple[ContextVar[str | None] | ContextVar[object | None], ...] = (REQUEST_ID, RUN_ID, BATCH_ID)

_of_process: dict[str, object] = {}

_OUTAGE = re.compile(r"_away$|\.broken$|\.(ring|read)_failed$|\.not_writable$")
LINES_OF_AN_OUTAGE, SECONDS_A_LINE = 20.0, 10.0
"""Lines that an event may write at once; after these, one in so many seconds."""


def name_worker(worker_id: object) -> None:
    """Have every line of this process from now on say which worker it is."""
    _of_process["worker_id"] = worker_id


class _Outages(logging.Filter):
    """Lets the first lines of each event through that says a server is away, then one now and then.

    While a server is away each run, request and loop meets it again, many times a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self._events: dict[str, tuple[float, float, int]] = {}
        """Of each event: how many lines may be written, as of when, and how many were left out since the last."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is to be written; one that comes after others were left out says how many."""
        event, _, _ = str(record.msg).partition(" ")
        if not _OUTAGE.search(event):
            return True
        now = time.monotonic()
        lines, at, left_out = self._events.get(event, (LINES_OF_AN_OUTAGE, now, 0))
        lines = min(LINES_OF_AN_OUTAGE, lines + (now - at) / SECONDS_A_LINE)
        if lines < 1:
            self._events[event] = lines, now, left_out + 1
            return False
        self._events[event] = lines - 1, now, 0
        if left_out:
            record.msg = f"{record.msg} left_out={left_out}"
        return True


class _Lines(logging.Formatter):
    """Writes a record, and at the end of its first line what it is about and does not say itself."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        line = super().formatMessage(record)
        about = [(name.name, name.get()) for name in _CONTEXT] + list(_of_process.items())
        said = "".join(f" {name}={value}" for name, value in about if value is not None and f" {name}=" not in line)
        return line + said


def configure(settings: Settings) -> None:
    """Write to standard error; libraries speak from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Outages())
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for ours in ("api", "worker", "shared"):
        logging.getLogger(ours).setLevel(settings.log_level)
