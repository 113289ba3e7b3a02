"""The logs of processes: one line for each event, `noun.verb key=value`, so that the verb can be searched for.

The log has a descriptor of its own, a copy of standard error: code that closes or replaces standard error or its Python
object does not affect it. A line that does not fit into a full pipe is dropped and counted; nothing waits for a reader.

A line ends with the ids that are known: `request_id`, `run_id`, `batch_id`, `worker_id`.

A record is one line of limited length, whatever its values: control characters are escaped, and a longer one is cut and
marked. The lines of a traceback are indented, so that none of them looks like a record.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import resource
import select
import threading
import time
from contextvars import ContextVar
from typing import Any

from agent_relay.shared.settings import Settings

OURS = ("agent_relay",)
FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
PIPE_BYTES = select.PIPE_BUF
"""The free room of a pipe that is ready."""
LINE_BYTES = 16 << 10
"""Longest line."""
TRACEBACK_LINES = 200
"""Of a longer traceback, the first and the last half of these are written."""
PATIENCE_MS = 200
"""How long the first line that finds a pipe full waits for its reader; those after it do not wait."""
LOWEST_DESCRIPTOR = 500
"""Above the descriptors that code is likely to close without having opened them."""


REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that is being answered."""
RUN_ID: ContextVar[object | None] = ContextVar("run_id", default=None)
"""The run that is being answered; any object whose `str` is its id, here and below."""
BATCH_ID: ContextVar[object | None] = ContextVar("batch_id", default=None)
"""The batch that the run, or the request, is of."""

_CONTEXT: tuple[ContextVar[str | None] | ContextVar[object | None], ...] = (REQUEST_ID, RUN_ID, BATCH_ID)

_of_process: dict[str, object] = {}

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Characters that begin a line, move a cursor or turn the direction of a text; all but the tab."""
_NEVER_WRITTEN = [
    (re.compile(r"whsec_[A-Za-z0-9+/=_-]+"), "whsec_…"),
    (re.compile(r"input_value=(?:.*(?=, input_type=)|.*)"), "input_value=…"),
]
"""Secrets that sign webhooks, and what pydantic quotes of a query or an answer, wherever in a record they stand."""

_OUTAGE = re.compile(r"_away$|\.broken$|\.(ring|read)_failed$|\.not_writable$")
LINES_OF_AN_OUTAGE, SECONDS_A_LINE = 20.0, 10.0
"""Lines that an event may write at once; after these, one in this number of seconds."""


def name_worker(worker_id: object) -> None:
    """Add the worker's id to every line of this process from now on."""
    _of_process["worker_id"] = worker_id


class _Outages(logging.Filter):
    """Lets the first lines of each event pass that report a server as away, then one now and then.

    While a server is away each run, request and loop meets it again, many times a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self._events: dict[str, tuple[float, float, int]] = {}
        """Of each event: how many lines may be written, as of when, and how many were left out since the last."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be written; the number of records left out before is added to it."""
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
    """Writes a record, and at the end of its first line the known ids that are not in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        line = _line(super().formatMessage(record))
        template = str(record.msg)  # Not the line: a value could hold the name, and keep the true one out.
        about = [(name.name, name.get()) for name in _CONTEXT] + list(_of_process.items())
        said = "".join(f" {name}={value}" for name, value in about if value is not None and f" {name}=" not in template)
        return line + said

    def formatException(self, ei: Any) -> str:  # noqa: N802  (logging's name)
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802  (logging's name)
        return _indented(super().formatStack(stack_info))


def _line(text: str) -> str:
    """Make one line of a text, of a bounded length."""
    length, line = len(text), text[:LINE_BYTES]
    for secret, instead in _NEVER_WRITTEN:
        line = secret.sub(instead, line)
    line = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), line)
    data = line.encode(errors="backslashreplace")
    if length <= LINE_BYTES and len(data) <= LINE_BYTES:
        return line
    return f"{data[:LINE_BYTES].decode(errors='ignore')}… (cut: {length} characters)"


def _indented(text: str) -> str:
    lines = text.split("\n")
    if (left_out := len(lines) - TRACEBACK_LINES) > 0:
        half = TRACEBACK_LINES // 2
        lines = [*lines[:half], f"… ({left_out} lines left out)", *lines[-half:]]
    return "\n".join(f"  {_line(line)}" for line in lines)


def formatter() -> logging.Formatter:
    """Return what writes the lines of a process."""
    return _Lines(FORMAT)


class Stream:
    """Standard error as it was when the process began."""

    def __init__(self) -> None:
        lowest = min(LOWEST_DESCRIPTOR, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._descriptor = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, lowest)
        self._ready = select.poll()
        self._ready.register(self._descriptor, select.POLLOUT)
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._renew_lock)
        self._dropped = 0

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def write(self, text: str) -> None:
        """Write a line, or drop it."""
        with self._lock:
            if self._dropped:
                text = f"{self._dropped} lines were dropped: nobody read the log.\n{text}"
            data = text.encode(errors="backslashreplace")
            for start in range(0, len(data), PIPE_BYTES):
                if not self._ready.poll(0 if self._dropped else PATIENCE_MS):
                    self._dropped += 1
                    return
                os.write(self._descriptor, data[start : start + PIPE_BYTES])
            self._dropped = 0

    def flush(self) -> None:
        """Do nothing: nothing is held back."""

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


class _Log:
    """The log of this process."""

    def __init__(self, settings: Settings) -> None:
        self.stream = Stream()
        self.level = logging.getLevelNamesMapping()[settings.log_level]
        self.handler = logging.StreamHandler(self.stream)
        self.filters = [_Outages()]
        self.handler.setFormatter(formatter())
        self._known = 0
        self._loggers: list[logging.Logger] = []

    def loggers(self) -> list[logging.Logger]:
        """List the loggers of this project; they are looked for again once there are more loggers than before."""
        known: dict[str, Any] = logging.root.manager.loggerDict
        if len(known) != self._known:
            self._known, named = len(known), list(known.items())
            self._loggers = [
                logger for name, logger in named if name.split(".")[0] in OURS and isinstance(logger, logging.Logger)
            ]
        return self._loggers


_log: _Log | None = None


def configure(settings: Settings) -> None:
    """Write to standard error; libraries speak from WARNING on."""
    global _log  # noqa: PLW0603  (there is one log a process)
    try:
        _log = _log or _Log(settings)
    except OSError:
        return  # There is nothing to write to.
    logging.basicConfig(handlers=[_log.handler], level=logging.WARNING, force=True)
    put_back()


def put_back() -> bool:
    """Restore our log, whatever was done to `logging`; returns whether that was needed."""
    if _log is None:
        return False
    disturbed = logging.root.manager.disable >= _log.level
    if disturbed:
        logging.disable(logging.NOTSET)
    if _log.handler.filters != _log.filters:
        disturbed = True
        _log.handler.filters = list(_log.filters)
    for name in OURS:
        logger = logging.getLogger(name)
        if logger.handlers != [_log.handler] or logger.level != _log.level or logger.propagate:
            disturbed = True
            logger.handlers = [_log.handler]
            logger.setLevel(_log.level)
            logger.propagate = False
    for logger in _log.loggers():
        if logger.disabled or logger.filters:
            disturbed = True
            logger.disabled = False
            logger.filters = []
    return disturbed


def stream() -> Stream | None:
    """Where the log is written to, once it is configured."""
    return _log and _log.stream
