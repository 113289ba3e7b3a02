"""The event log: one Redis stream a run, which refuses late writes, and the channel that announces its entries.

Entries have ids `<attempt>-<n>`, `n` from 1 without holes; the end of a run whose last attempt was A stands at
`(A+1)-0`. A write and its announcement are one atomic act.

Foreign data in Redis does no harm: an entry that cannot be read is left out, so that readers see a missing entry; an
event of a kind that only a newer version knows keeps its place, and is not shown; a key that holds no log of ours, or
ids that no attempt can have, is removed by the next append.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple, cast
from uuid import UUID

from pydantic_core import from_json, to_json
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from agent_relay.shared.bad_input import BadInput, refuse
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.failpoints import Failpoint, reached
from agent_relay.shared.redis import is_wrong_type
from agent_relay.shared.redis_names import DEFAULT, Names
from agent_relay.shared.rows import RunEnd
from agent_relay.shared.text_delta import Growth

DIGITS, HIGHEST = 10, 2**31 - 1
"""Attempts and the numbers of entries are integers of PostgreSQL's."""


class Id(NamedTuple):
    """Where an event stands; ids only grow."""

    attempt: int
    n: int

    def __str__(self) -> str:
        return f"{self.attempt}-{self.n}"

    @classmethod
    def parse(cls, text: str | bytes) -> Id:
        """Read `<attempt>-<n>`.

        Raises:
            ValueError: it is none that an attempt can have.
        """
        first, _, last = (text if isinstance(text, bytes) else text.encode()).partition(b"-")
        if not (first.isdigit() and last.isdigit() and len(first) <= DIGITS >= len(last)):
            raise ValueError("not the id of an entry")
        read = cls(int(first), int(last))
        if read.attempt > HIGHEST or read.n > HIGHEST:
            raise ValueError("not the id of an entry")
        return read


BEFORE_ALL = Id(0, 0)
REASONING = "reasoning_delta"
CREATED = Id(0, 1)
"""`message_created` stands in no log: the row is its source."""


class Entry(NamedTuple):
    """One entry: a text, a text delta, or an event of another kind. Reasoning is an event with a text."""

    id: Id
    body: Mapping[str, Any]

    @property
    def event(self) -> str | None:
        """The kind of an entry that is not about the text."""
        return self.body.get("event")

    @property
    def text(self) -> str | None:
        """The whole text, where the entry carries it."""
        return self.body.get("text")

    @property
    def growth(self) -> Growth | None:
        """The text delta, if the entry has one."""
        return Growth(self.body["drop"], self.body["append"]) if "drop" in self.body else None

    @property
    def is_end(self) -> bool:
        """Whether the run's last word is this entry."""
        return self.id.n == 0

    def line(self) -> bytes:
        """Write the entry as it is announced."""
        return b"%d-%d %s" % (*self.id, to_json(self.body))


def text_body(text: str, grown: Growth | None = None) -> dict[str, Any]:
    """Say a text in an entry: as growth where there is one, else whole."""
    return {"text": text} if grown is None else {"drop": grown.drop, "append": grown.append}


def digest(text: str) -> str:
    """Fingerprint a text, so that a reader can check that it has the right one."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def end_entry(run: RunEnd) -> Entry:
    """Write the end of a run from its row; it is the same in every process.

    Raises:
        ValueError: the run has not ended.
    """
    text = final_text(run)
    body: dict[str, Any] = {"status": run.status, "last": run.last_entry}
    if text is not None:
        body |= {"length": len(text), "digest": digest(text)}
    match run.status:
        case RunStatus.SUCCEEDED:
            body |= {"event": "message_complete", "usage": run.usage}
        case RunStatus.FAILED:
            body |= {"event": "error", "error": run.error}
        case RunStatus.CANCELLED:
            body |= {"event": "cancelled", "partial": text is not None}
        case other:
            raise ValueError(f"run {run.id} is {other}: it has no end yet")
    return Entry(Id(run.attempt + 1, 0), body)


def final_text(run: RunEnd) -> str | None:
    """Tell the last text of an ended run: its output, or the last valid partial."""
    return run.output if run.status == RunStatus.SUCCEEDED else run.partial_output


class Outcome(StrEnum):
    """The outcome of an append."""

    APPENDED = "appended"
    """It stands in the log and has been announced."""
    DUPLICATE = "duplicate"
    """It was there already: the reply to an earlier try was lost."""
    FENCED = "fenced"
    """A later attempt, or the end, stands there: this one may write nothing any more."""
    LOST = "lost"
    """The log has forgotten what this attempt wrote before."""


_APPEND = """
local function id(text)
    local attempt, n = string.match(text, '^(%d+)-(%d+)$')
    return tonumber(attempt), tonumber(n)
end
local function older(a, n, b, m) return a < b or (a == b and n < m) end

local function top_of(log)
    local newest = redis.pcall('XREVRANGE', log, '+', '-', 'COUNT', 1)
    if not newest.err then return id(newest[1] and newest[1][1] or '0-0') end
    if string.sub(newest.err, 1, 9) == 'WRONGTYPE' then return math.huge, 0 end
    error(newest.err)
end

local function append(log, wrote, ttl, first, last)
    local top_a, top_n = top_of(log)
    local afresh = ''
    if top_a > 2147483647 then
        redis.call('DEL', log)
        top_a, top_n, afresh = 0, 0, ' afresh'
    end
    local wrote_a, wrote_n = id(wrote)
    local last_a, last_n = id(ARGV[last - 1])
    if top_a > last_a then return 'fenced' end
    if top_a == last_a and top_n >= last_n then return 'duplicate' end
    if older(top_a, top_n, wrote_a, wrote_n) then return 'lost' .. afresh end
    local lines = {}
    for i = first, last, 2 do
        local added = redis.pcall('XADD', log, ARGV[i], 'e', ARGV[i + 1])
        if added.err then
            if not string.find(added.err, 'equal or smaller', 1, true) then error(added.err) end
            redis.call('DEL', log)
            if wrote_a > 0 then return 'lost afresh' end
            afresh = ' afresh'
            redis.call('XADD', log, ARGV[i], 'e', ARGV[i + 1])
        end
        lines[#lines + 1] = ARGV[i] .. ' ' .. ARGV[i + 1]
    end
    redis.call('EXPIRE', log, ttl)
    redis.call('PUBLISH', log, table.concat(lines, '\\n'))
    return 'appended' .. afresh
end

local outcomes, at = {}, 1
for i, log in ipairs(KEYS) do
    local last = at + 2 + 2 * ARGV[at + 2]
    outcomes[i] = append(log, ARGV[at], ARGV[at + 1], at + 3, last)
    at = last + 1
end
return outcomes
"""
LARGEST_TEXT_BYTES = 32 << 20
"""A larger text is not written: Redis disconnects a subscriber with more unread bytes, and with it all its channels."""
APPENDS_A_CALL = 50
"""A script holds up everybody; a call each costs the worker three times as much."""
_APPEND_SHA = hashlib.sha1(_APPEND.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Append:
    """Entries of one run to be appended together."""

    run_id: UUID
    wrote: Id
    """The last id of this attempt that is known to be in the log."""
    entries: Sequence[Entry]
    ttl_seconds: int

    @cached_property
    def length(self) -> int:
        """Characters of text that it carries, about."""
        return sum(len(value) for entry in self.entries for value in entry.body.values() if isinstance(value, str))


def end_of(run: RunEnd, ttl_seconds: int) -> Append:
    """Make the append of a run's end, from its row."""
    return Append(run.id, BEFORE_ALL, [end_entry(run)], ttl_seconds)


def parse_announcement(message: bytes) -> list[Entry]:
    """Read the entries of an announcement; lines that are no entries are left out."""
    lines = (line.partition(b" ") for line in message.split(b"\n"))
    return _entries("announcement", ((entry_id, body) for entry_id, _, body in lines))


def _entries(where: str, items: Iterable[tuple[bytes, bytes | None]]) -> list[Entry]:
    """Read entries; malformed ones are left out."""
    entries: list[Entry] = []
    for entry_id, body in items:
        try:
            entry = Entry(Id.parse(entry_id), from_json(body or b""))
            _demand_shape(entry)
        except ValueError as malformed:
            refuse(BadInput.LOG_ENTRY, where, f"{entry_id[:40]!r}: {malformed}")
        else:
            entries.append(entry)
    return entries


_Shape = Mapping[str, type | tuple[type, ...]]
_TEXT = (str, type(None))
_JSON = (*_TEXT, int, float, list, dict)
_GROWTH: _Shape = {"drop": int, "append": str}
_END: dict[str, type] = {"status": str, "last": int}
_DIGEST: dict[str, type] = {"length": int, "digest": str}
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "message_started": {"reason": str},
    "tool_call": {"tool_call_id": str, "tool_name": str, "args": _TEXT},
    "tool_result": {"tool_call_id": str, "tool_name": str, "content": _TEXT},
    "progress": {"name": str, "data": _JSON},
    "file": {"file_id": str, "media_type": str, "bytes": int},
    "waiting": {"requests": list},
    "answered": {"request_id": str},
    "message_enqueued": {"message": dict},
    REASONING: {"part": int},
    "pause": {},
    "message_complete": {"usage": dict},
    "error": {"error": dict},
    "cancelled": {"partial": bool},
}
"""The events that this version knows, and the fields that it reads of each."""
_ENDS = {"message_complete", "error", "cancelled"}
_MISSING = object()


def knows(event: str | None) -> bool:
    """Return whether this version knows an event of that kind; a newer one may have written it."""
    return event in _FIELDS


def _demand_shape(entry: Entry) -> None:
    """Check that an entry has the fields that are read of it.

    Raises:
        ValueError: it has not.
    """
    body, is_end = entry.body, entry.is_end
    if not isinstance(cast("object", body), dict):
        raise ValueError("not an object")  # noqa: TRY004  (what is caught where entries are read)
    event: object = body.get("event")
    if event is None and not is_end:
        _demand_text(body)
    elif not isinstance(event, str):
        raise ValueError("not an event")
    elif (shape := _FIELDS.get(event)) is None:
        refuse(BadInput.UNKNOWN_EVENT, str(entry.id), event)
    elif is_end != (event in _ENDS):
        raise ValueError(f"{event} does not stand there")
    else:
        if is_end:
            shape = shape | _END | (_DIGEST if "digest" in body else {})
        if not _has(body, shape):
            raise ValueError(f"{event} without its fields")
        if event == REASONING:
            _demand_text(body)


def _demand_text(body: Mapping[str, Any]) -> None:
    if not isinstance(body.get("text"), str) and not (_has(body, _GROWTH) and body["drop"] >= 0):
        raise ValueError("neither a text nor what one grew by")


def _has(body: Mapping[str, Any], shape: _Shape) -> bool:
    for name, kind in shape.items():  # noqa: SIM110  (each event passes here; `all` takes twice the time)
        if not isinstance(body.get(name, _MISSING), kind):
            return False
    return True


class EventLog:
    """The logs of all runs."""

    def __init__(self, redis: Redis, names: Names = DEFAULT) -> None:
        self._redis = redis
        self.names = names

    async def append(self, appends: Sequence[Append]) -> list[Outcome]:
        """Append to many logs in one round trip; each is decided for itself.

        Raises:
            redis.exceptions.RedisError: the state of the logs is unknown; try the very same again.
        """
        calls = [appends[first : first + APPENDS_A_CALL] for first in range(0, len(appends), APPENDS_A_CALL)]
        replies = await self._try(calls)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            await self._redis.script_load(_APPEND)
            replies = await self._try(calls)
        outcomes: list[Outcome] = []
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
            outcomes += [self._outcome(outcome, appends[len(outcomes) + at]) for at, outcome in enumerate(reply)]
        reached(Failpoint.LOG_APPENDED)
        return outcomes

    def _outcome(self, reply: bytes, append: Append) -> Outcome:
        outcome, _, afresh = reply.decode().partition(" ")
        if afresh:
            refuse(BadInput.LOG_KEY, self.names.log(append.run_id), "removed")
        return Outcome(outcome)

    async def _try(self, calls: Iterable[Sequence[Append]]) -> list[list[bytes] | Exception]:
        pipeline = self._redis.pipeline(transaction=False)
        for appends in calls:
            arguments: list[str | bytes | int] = [self.names.log(append.run_id) for append in appends]
            for append in appends:
                arguments += [str(append.wrote), append.ttl_seconds, len(append.entries)]
                for entry in append.entries:
                    arguments += [str(entry.id), to_json(entry.body)]
            pipeline.evalsha(_APPEND_SHA, len(appends), *cast("list[str]", arguments))
        return cast("list[list[bytes] | Exception]", await pipeline.execute(raise_on_error=False))

    async def read(self, run_id: UUID, after: Id = BEFORE_ALL) -> list[Entry]:
        """Read the entries after an id, oldest first."""
        return (await self.read_many([(run_id, after)]))[0]

    async def read_many(self, reads: Iterable[tuple[UUID, Id]]) -> list[list[Entry]]:
        """Read of each of these logs the entries after an id, oldest first, in one round trip."""
        reads = list(reads)
        pipeline = self._redis.pipeline(transaction=False)
        for run_id, after in reads:
            pipeline.xrange(self.names.log(run_id), min=f"({after}" if after > BEFORE_ALL else "-")
        logs: list[Any] = await pipeline.execute(raise_on_error=False)
        return [_read(self.names.log(run_id), log) for (run_id, _), log in zip(reads, logs, strict=True)]

    async def remove(self, *run_ids: UUID) -> None:
        """Remove logs: of runs that are erased, or one that holds what no attempt of its run can have written."""
        await self._redis.unlink(*map(self.names.log, run_ids))

    async def tell_ends(self, runs: Sequence[RunEnd], ttl_seconds: int) -> None:
        """Append the ends of these runs, from their rows; ends that are in the log already stay as they are.

        A row whose end this version cannot write is left out.
        """
        ends: list[Append] = []
        for run in runs:
            try:
                ends.append(end_of(run, ttl_seconds))
            except Exception as error:  # noqa: BLE001  (whatever stands in the row)
                refuse(BadInput.ROW, f"runs {run.id}", error)
        await self.append(ends)


def _read(where: str, log: Any) -> list[Entry]:
    """Read a log's entries; a key that holds no log counts as empty."""
    if is_wrong_type(log):
        refuse(BadInput.LOG_KEY, where, log)
        return []
    if isinstance(log, Exception):
        raise log
    return _entries(where, ((entry_id, fields.get(b"e")) for entry_id, fields in log))
