"""What happened, as plain data: what clients asked and saw, what PostgreSQL and Redis saw, and what was broken when.

Times are seconds since 1970; all processes share one machine's clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from agent_relay.shared.database.tables import TERMINAL
from agent_relay.shared.event_log import Entry, Id
from tests.faults.errands import ERRANDS, Errand, Line
from tests.faults.guests import GUESTS, Visit
from tests.faults.script import Query
from tests.support.client import Event

Row = dict[str, Any]
Found = Iterator[tuple[str | None, str]]
"""What contradicts an invariant: the run that it happened to, if it was one, and what happened."""


class Breakage(StrEnum):
    """What can be broken."""

    KILLED = "killed"
    """SIGKILL: by us, or by the process itself at a failpoint."""
    FROZEN = "frozen"
    """SIGSTOP, and SIGCONT later."""
    STOPPED = "stopped"
    """SIGTERM."""
    CUT = "cut"
    """All connections between a process and a server."""
    HELD_UP = "held up"
    """The same, but they stay open and silent."""
    REPLY_LOST = "reply lost"
    """The server did what it was asked for; the connection broke before it said so."""
    FLUSHED = "flushed"
    """All of Redis is gone."""
    REDIS_KILLED = "redis killed"
    POSTGRES_CRASHED = "postgres crashed"
    REDIS_SAID_NO = "redis said no"
    """READONLY, OOM, MISCONF, LOADING: it answers, and does not do what it is asked for."""
    POSTGRES_SAID_NO = "postgres said no"
    """25006, 53300, 57P01."""


NEWS_LOST = {Breakage.FLUSHED, Breakage.REDIS_KILLED}
"""After these, Redis knows nothing of what was before."""


@dataclass(slots=True)
class Broken:
    """One breakage."""

    at: float
    kind: Breakage
    what: str
    """Which process or server, and between which."""
    pids: tuple[int, ...] = ()
    until: float | None = None
    """When it was mended; None while it is not, and for what is over at once."""
    started: tuple[int, ...] = ()
    """Of processes that were told to end: those that they had started, which end with them."""


@dataclass(slots=True, kw_only=True)
class Asked:
    """One query and what its caller knows of it."""

    at: float
    query: Query | Visit | Errand
    tenant: str
    user_id: str
    agent_type: str
    thread_id: str | None = None
    strategy: str | None = None
    deadline_seconds: float | None = None
    hang_up_cancels: bool = False
    status: int | None = None
    """HTTP status of the answer; None where the connection broke."""
    run_id: str | None = None
    """None where the caller does not know it: refused, or the answer was lost."""
    cancelled: bool = False
    """Whether the caller asked to cancel it."""

    @property
    def accepted(self) -> bool:
        """Whether the caller was told so."""
        return self.run_id is not None

    @property
    def refused(self) -> bool:
        """Whether the caller was told that nothing was stored."""
        return self.run_id is None and self.status is not None and 400 <= self.status < 500


@dataclass(slots=True)
class Piece:
    """What one connection told a reader."""

    after: str | None
    events: list[Event] = field(default_factory=list[Event])
    began_at: float = 0
    ended_at: float = 0
    status: int | None = None


@dataclass(slots=True)
class Reader:
    """One reader of a run, through connections that were cut, by himself or by others."""

    run_id: str
    pieces: list[Piece] = field(default_factory=list[Piece])

    @property
    def events(self) -> list[Event]:
        """Everything that he was told."""
        return [event for piece in self.pieces for event in piece.events]

    @property
    def is_done(self) -> bool:
        """Whether he was told that this is all."""
        return any(event["event"] == "done" for event in self.events)

    @property
    def from_the_start(self) -> bool:
        """Whether he has not skipped anything himself."""
        return bool(self.pieces) and self.pieces[0].after is None


@dataclass(frozen=True, slots=True)
class Seen:
    """A run as the API showed it to its owner."""

    at: float
    how: str
    """`read`, `cancelled`, `answered` (by the blocking call)."""
    status: int
    body: dict[str, Any]

    @property
    def run_id(self) -> str:
        """Which run."""
        return self.body["run_id"] if self.how == "answered" else self.body["id"]


@dataclass(frozen=True, slots=True)
class Peek:
    """What somebody got who looked at what is not theirs."""

    tenant: str
    user_id: str
    path: str
    status: int


@dataclass(frozen=True, slots=True)
class Answered:
    """The head of a response, and what it says where it refuses."""

    at: float
    call: str
    status: int
    code: str | None = None
    reason: str | None = None


@dataclass(slots=True)
class Sent:
    """A message into a run, and what its sender knows of it."""

    run_id: str
    """Where it was sent; it may have gone into another run of the thread where it steered."""
    errand: Errand
    steers: bool = False
    status: int | None = None
    """HTTP status of the answer; None where none came."""
    message_id: str | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """Answers that were given in one call, and what the call was told."""

    run_id: str
    approvals: dict[str, bool]
    """By the request."""
    status: int
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Slow:
    """A time for which PostgreSQL itself, past every link, did not answer: the machine had too much to do."""

    at: float
    until: float


@dataclass(frozen=True, slots=True)
class Change:
    """One row as it was changed; PostgreSQL's own record, in the order of the changes."""

    at: float
    table: str
    before: Row | None
    after: Row | None

    @property
    def row(self) -> Row:
        """The row as it was left, or as it was."""
        row = self.after or self.before
        assert row is not None
        return row


@dataclass(frozen=True, slots=True)
class Announced:
    """What Redis announced of a run."""

    at: float
    run_id: str
    entries: list[Entry]


@dataclass(frozen=True, slots=True)
class Heard:
    """What a model was asked."""

    at: float
    run_id: str
    attempt: int
    earlier: list[str]
    """The nonces of the thread's earlier queries, as the model was told them."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that must come back to where it was."""

    what: str
    before: float
    after: float
    allowed: float
    """The highest value that counts as back."""


@dataclass
class History:
    """Everything that happened in one soak."""

    lease_seconds: float = 15
    max_crashes: int = 3
    asked: list[Asked] = field(default_factory=list[Asked])
    deleted_threads: set[str] = field(default_factory=set[str])
    """Those that somebody asked to delete, whether it was done or not."""
    readers: list[Reader] = field(default_factory=list[Reader])
    seen: list[Seen] = field(default_factory=list[Seen])
    listed: dict[tuple[str, str], set[str]] = field(default_factory=dict[tuple[str, str], set[str]])
    """The ids of the runs that each owner (tenant, user) was shown in the end."""
    peeks: list[Peek] = field(default_factory=list[Peek])
    answered: list[Answered] = field(default_factory=list[Answered])
    slow: list[Slow] = field(default_factory=list[Slow])
    sent: list[Sent] = field(default_factory=list[Sent])
    given: list[Given] = field(default_factory=list[Given])
    ledger: list[Line] = field(default_factory=list[Line])
    """What the tools of errands did, in its order."""
    changes: list[Change] = field(default_factory=list[Change])
    workers: dict[str, int] = field(default_factory=dict[str, int])
    """The process of each worker incarnation."""
    ancestors: dict[int, frozenset[int]] = field(default_factory=dict[int, frozenset[int]])
    """The processes above each process, as they were when it was first seen: it ends with any of them."""
    announced: list[Announced] = field(default_factory=list[Announced])
    logs: dict[str, list[Entry]] = field(default_factory=dict[str, list[Entry]])
    """What stood in the event logs in the end."""
    heard: list[Heard] = field(default_factory=list[Heard])
    broken: list[Broken] = field(default_factory=list[Broken])
    measures: list[Measure] = field(default_factory=list[Measure])

    @cached_property
    def rows(self) -> dict[str, Row]:
        """Each run as it was in the end."""
        return {str(change.row["id"]): change.row for change in self.changes if change.table == "runs"}

    @cached_property
    def queries(self) -> dict[str, Query]:
        """What each run was asked that follows the script."""
        others = self.guests | self.errands
        return {run_id: Query.parse(row["query"]) for run_id, row in self.rows.items() if run_id not in others}

    @cached_property
    def guests(self) -> set[str]:
        """The runs of agents that misbehave; what these say follows no script."""
        return {run_id for run_id, row in self.rows.items() if row["agent_type"] in GUESTS}

    @cached_property
    def errands(self) -> set[str]:
        """The runs that call tools and wait; see `errand_invariants.py`."""
        return {run_id for run_id, row in self.rows.items() if row["agent_type"] in ERRANDS}

    @cached_property
    def taken_in(self) -> dict[str, int]:
        """The place of the last message that each run has taken in."""
        taken_in = {run_id: row["heard"] for run_id, row in self.rows.items()}
        for step in self.steps:
            taken_in[step["run_id"]] = max(taken_in[step["run_id"]], step["heard"])
        return taken_in

    @cached_property
    def steps(self) -> list[Row]:
        """The steps of all runs, as they were stored."""
        return [change.row for change in self.changes if change.table == "run_steps" and change.before is None]

    @cached_property
    def messages_into_runs(self) -> list[Row]:
        """The messages into runs, whatever became of them."""
        return [change.row for change in self.changes if change.table == "run_messages" and change.before is None]

    @cached_property
    def requests(self) -> list[Row]:
        """What runs have waited for, as it was in the end."""
        requests = [change.row for change in self.changes if change.table == "run_requests"]
        return list({(row["run_id"], row["attempt"], row["place"]): row for row in requests}.values())

    @cached_property
    def changes_of(self) -> dict[str, list[Change]]:
        """The changes of each run's row."""
        changes: dict[str, list[Change]] = {run_id: [] for run_id in self.rows}
        for change in self.changes:
            if change.table == "runs":
                changes[str(change.row["id"])].append(change)
        return changes

    @cached_property
    def runs_of_threads(self) -> dict[str, list[Row]]:
        """The runs of each thread, in their order."""
        threads: dict[str, list[Row]] = {}
        for row in self.rows.values():
            if row["thread_id"] is not None:
                threads.setdefault(row["thread_id"], []).append(row)
        return {thread_id: sorted(rows, key=lambda row: row["seq"]) for thread_id, rows in threads.items()}

    @cached_property
    def truth(self) -> dict[str, dict[Id, Entry]]:
        """Of each run, every entry that ever stood in its log, as far as Redis announced it or still had it."""
        truth: dict[str, dict[Id, Entry]] = {}
        for announced in self.announced:
            truth.setdefault(announced.run_id, {}).update({entry.id: entry for entry in announced.entries})
        for run_id, entries in self.logs.items():
            truth.setdefault(run_id, {}).update({entry.id: entry for entry in entries})
        return truth

    def breakages(self, *kinds: Breakage, since: float = 0, until: float = float("inf")) -> Iterator[Broken]:
        """Yield what was broken at some time between two times."""
        for broken in self.broken:
            if broken.kind in kinds and broken.at <= until and (broken.until or broken.at) >= since:
                yield broken


def is_ended(row: Row) -> bool:
    """Tell whether the run has ended."""
    return row["status"] in TERMINAL


def as_object(row: Row) -> Any:
    """Show a row as the code that renders it wants to see it."""
    return SimpleNamespace(**row)


def shown_text(row: Row, shown: Any) -> str | None:
    """Say as the row says it what the API shows of an output: text, or JSON."""
    if shown is None or row["text_output"]:
        return shown
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":"))
