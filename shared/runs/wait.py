"""A run waits for answers, is answered, and goes on. It waits as a row: no process, slot or lease is held.

Its requests are in `run_requests`, one row for each tool call; the messages of the model and its tools so far are in
`transcripts`. The rows fix the ids of a wait's events, whichever process writes them: `waiting` at `wait_entry`, each
answer at its `answer_entry`, and `pause` wherever nothing else stands up to `last_entry`. A `pause` is where a stream
that is followed until the run waits may end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from pydantic_core import from_json, to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agent_relay.shared.database import transact
from agent_relay.shared.database.tables import RequestKind, RunStatus
from agent_relay.shared.database.typed_rows import columns, read, read_one
from agent_relay.shared.errors import AlreadyAnswered, NotFound, NotWaiting, UnknownRequest
from agent_relay.shared.event_log import BEFORE_ALL, Append, Entry, EventLog, Id, Outcome
from agent_relay.shared.queue import QueueEntry
from agent_relay.shared.runs.claim import Claim
from agent_relay.shared.runs.sql import NEW_ENTRY
from agent_relay.shared.schemas import RunRequest, requests_of

LARGEST_EVENT_BYTES = 256 << 10
"""Requests whose arguments and schemas are larger together are published without them; the run's row has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeferredCall:
    """A tool call that waits for an answer, as its worker stores it. JSON values are text."""

    request_id: str
    kind: RequestKind
    tool_name: str
    args: str
    prompt: str | None
    schema: str | None
    metadata: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """The data that an attempt stores when its run begins to wait."""

    text: str | None
    """The last valid partial."""
    last_entry: int
    """The `n` of the last entry of this attempt in the event log."""
    usage: dict[str, float]
    """Requests and tokens, those of earlier attempts included."""
    transcript: str
    """All of the model's messages of this run, whose last calls are open."""
    calls: Sequence[DeferredCall]
    heard: int = 0
    """The `place` of the last message into the run that the transcript holds."""


@dataclass(frozen=True, slots=True)
class WaitRow:
    """A run that waits, or has waited."""

    id: UUID
    status: str
    attempt: int
    wait_attempt: int | None
    wait_entry: int | None
    last_entry: int
    waiting_since: datetime | None
    wait_until: datetime | None
    ring: int
    pool: str
    lane: str
    tenant: str


class HasEntries(Protocol):
    """The numbers of the events of a wait."""

    @property
    def attempt(self) -> int: ...  # noqa: D102
    @property
    def wait_entry(self) -> int | None: ...  # noqa: D102
    @property
    def last_entry(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class _WaitedFor:
    """A request of a run that goes on, with its answer, and all of the model's messages."""

    messages: str
    request_id: str
    kind: str
    answer: str | None
    metadata: str | None


@dataclass(frozen=True, slots=True)
class Answers:
    """The result of calls to answer."""

    row: WaitRow
    """Of the run, as it is now."""
    before: int
    """The `last_entry` that it had."""
    requests: list[RunRequest]
    """Everything of this wait, with its answers."""
    ring: QueueEntry | None
    """The queue entry, if no request is open any more."""

    @property
    def changed(self) -> bool:
        """Whether this call stored an answer."""
        return self.row.last_entry != self.before


@dataclass(frozen=True, slots=True)
class Given:
    """An answer to one request."""

    request_id: str
    answer: Mapping[str, Any]
    """`approve` with `args` or `message`; or `result`; or `error`."""


_WAIT = text(f"""
    WITH waiting AS (
        UPDATE runs
        SET status = 'waiting', worker_id = NULL, partial_output = :text, usage = CAST(:usage AS jsonb),
            waiting_since = now(), wait_until = now() + make_interval(secs => coalesce(
                wait_seconds, (SELECT batches.wait_seconds FROM batches WHERE batches.id = batch_id), :wait_seconds)),
            wait_attempt = attempt, wait_entry = CAST(:last_entry AS int) + 1,
            last_entry = CAST(:last_entry AS int) + 2, heard = :heard
        WHERE id = :run_id AND attempt = :attempt AND status = 'running' AND cancel_requested_at IS NULL
        RETURNING *
    ), kept AS (
        INSERT INTO transcripts (run_id, messages, attempt) SELECT id, :transcript, attempt FROM waiting
        ON CONFLICT (run_id) DO UPDATE SET messages = excluded.messages, attempt = excluded.attempt
    ), asked AS (
        INSERT INTO run_requests (run_id, attempt, place, request_id, kind, tool_name, args, prompt, schema, metadata)
        SELECT waiting.id, waiting.attempt, call.place, call.request_id, call.kind, call.tool_name, call.args,
            call.prompt, call.schema, call.metadata
        FROM waiting, unnest(
            CAST(:request_id AS text[]), CAST(:kind AS text[]), CAST(:tool_name AS text[]), CAST(:args AS text[]),
            CAST(:prompt AS text[]), CAST(:schema AS text[]), CAST(:metadata AS text[])
        ) WITH ORDINALITY AS call (request_id, kind, tool_name, args, prompt, schema, metadata, place)
    )
    SELECT {columns(WaitRow)} FROM waiting
""")  # noqa: S608  (constants)

_WAITING_ROW = text(f"""
    SELECT {columns(WaitRow)} FROM runs
    WHERE id = :run_id AND attempt = :attempt AND wait_attempt = :attempt AND status = 'waiting'
""")  # noqa: S608  (constants)

_WAITED_FOR = text("""
    SELECT messages, request_id, kind, answer, metadata
    FROM run_requests JOIN transcripts USING (run_id)
    WHERE run_id = :run_id AND run_requests.attempt = :wait_attempt ORDER BY place
""")

_LOCK = text(f"""
    SELECT {columns(WaitRow)} FROM runs WHERE id = :run_id FOR NO KEY UPDATE
""")  # noqa: S608  (constants)

_ASKED = text("""
    SELECT request_id, kind, tool_name, args, prompt, schema, created_at, answer, answered_by, answered_at, attempt,
        place, answer_entry
    FROM run_requests WHERE run_id = :run_id ORDER BY attempt, place
""")

_ANSWER = text("""
    UPDATE run_requests
    SET answer = given.answer, answered_by = :answered_by, answered_at = now(), answer_entry = given.entry
    FROM unnest(CAST(:places AS int[]), CAST(:answers AS text[]), CAST(:entries AS int[]))
        AS given (place, answer, entry)
    WHERE run_id = :run_id AND attempt = :attempt AND run_requests.place = given.place
""")

_STILL_OPEN = text(f"""
    UPDATE runs SET last_entry = :last_entry WHERE id = :run_id RETURNING {columns(WaitRow)}
""")  # noqa: S608  (constants)

_GO_ON = text(f"""
    UPDATE runs
    SET status = 'queued', begun = 'answered', last_entry = :last_entry,
        deadline_at = deadline_at + (now() - waiting_since),
        waited_seconds = waited_seconds + extract(epoch FROM now() - waiting_since),
        waiting_since = NULL, wait_until = NULL, {NEW_ENTRY}
    WHERE id = :run_id
    RETURNING {columns(WaitRow)}
""")  # noqa: S608  (a constant)


async def wait(database: AsyncEngine, claimed: Claim, left: Wait, wait_seconds: float) -> WaitRow | None:
    """Store the run as waiting, with all that it needs to go on, in one transaction.

    Returns the row for the events of the wait; None if the run is no longer this attempt's, or a cancel was requested:
    then finish it so. `wait_seconds` holds unless the run or its batch has a time to wait of its own.
    """
    values = {
        "run_id": claimed.run_id,
        "attempt": claimed.attempt,
        "text": left.text,
        "usage": to_json(left.usage).decode(),
        "last_entry": left.last_entry,
        "transcript": left.transcript,
        "heard": left.heard,
        "wait_seconds": wait_seconds,
        **{
            name: [getattr(call, name) for call in left.calls]
            for name in ("request_id", "kind", "tool_name", "args", "prompt", "schema", "metadata")
        },
    }
    rows = await transact(database, _WAIT, values, WaitRow)
    return rows[0] if rows else None


async def waiting_row(database: AsyncEngine, claimed: Claim) -> WaitRow | None:
    """Read the wait that this attempt stored, if it did and the run still waits."""
    values = {"run_id": claimed.run_id, "attempt": claimed.attempt}
    rows = await transact(database, _WAITING_ROW, values, WaitRow)
    return rows[0] if rows else None


async def waited_for(database: AsyncEngine, claimed: Claim) -> Sequence[_WaitedFor]:
    """Read the data with which a run goes on: a row for each request, with its answer, and all with `messages`."""
    if claimed.wait_attempt is None:
        return []
    values = {"run_id": claimed.run_id, "wait_attempt": claimed.wait_attempt}
    return await transact(database, _WAITED_FOR, values, _WaitedFor)


async def answer(
    database: AsyncEngine,
    run_id: UUID,
    given: Sequence[Given],
    answered_by: str,
    check: Callable[[int, RunRequest, Mapping[str, Any]], None],
) -> Answers:
    """Store answers, all or none, each once; if no request is open any more, queue the run before all positions.

    `check` raises if an answer does not fit its request; the number is its place among those given. Enqueue and publish
    after this returns.

    Raises:
        NotFound: there is no such run.
        UnknownRequest: the run waits, and has no such request.
        AlreadyAnswered: another answer was given before.
        NotWaiting: the run does not wait, and this was not answered before.
    """
    async with database.begin() as connection:
        run = read_one(await connection.execute(_LOCK, {"run_id": run_id}), WaitRow)
        if run is None:
            raise NotFound("run")
        rows = await _asked(connection, run_id)
        known = {row["request_id"]: (row, request) for row, request in zip(rows, requests_of(rows), strict=True)}
        answers: dict[int, str] = {}
        for number, one in enumerate(given):
            written = canonical(one.answer)
            if one.request_id not in known:
                raise UnknownRequest(number) if run.status == RunStatus.WAITING else NotWaiting(run.status)
            row, request = known[one.request_id]
            before = answers.get(row["place"], row["answer"]) if row["attempt"] == run.wait_attempt else row["answer"]
            if before is not None:
                if before != written:
                    raise AlreadyAnswered(one.request_id)
                continue
            if run.status != RunStatus.WAITING:
                raise NotWaiting(run.status)
            check(number, request, one.answer)
            answers[row["place"]] = written
        if not answers:
            return Answers(run, run.last_entry, [], None)
        entries = {place: run.last_entry + number for number, place in enumerate(answers, 1)}
        values = {"run_id": run_id, "attempt": run.wait_attempt, "answered_by": answered_by}
        lists = {"places": list(answers), "answers": list(answers.values()), "entries": list(entries.values())}
        await connection.execute(_ANSWER, values | lists)
        is_open = any(
            row["attempt"] == run.wait_attempt and row["answer"] is None and row["place"] not in answers for row in rows
        )
        last_entry = run.last_entry + len(answers) + is_open
        statement = _STILL_OPEN if is_open else _GO_ON
        values = {"run_id": run_id, "last_entry": last_entry}
        [after] = read(await connection.execute(statement, values), WaitRow)
        asked = requests_of(await _asked(connection, run_id))
        of_wait = [request for request in asked if request.attempt == run.wait_attempt]
        entry = QueueEntry(after.id, after.ring, after.pool, after.lane, after.tenant, first=True)
        return Answers(after, run.last_entry, of_wait, None if is_open else entry)


async def _asked(connection: AsyncConnection, run_id: UUID) -> list[dict[str, Any]]:
    rows = (await connection.execute(_ASKED, {"run_id": run_id})).mappings()
    return [dict(row) for row in rows]


def canonical(answer: Mapping[str, Any]) -> str:
    """Write an answer so that the same one is always the same text."""
    return json.dumps(answer, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def shown_calls(calls: Sequence[DeferredCall], row: WaitRow) -> list[RunRequest]:
    """Show calls that have just come to wait as `requests_of` would."""
    assert row.waiting_since is not None, "the run waits"  # noqa: S101
    return [
        RunRequest(
            request_id=call.request_id,
            kind=call.kind,
            tool_name=call.tool_name,
            args=from_json(call.args),
            prompt=call.prompt,
            schema=None if call.schema is None else from_json(call.schema),
            created_at=row.waiting_since,
            attempt=row.attempt,
        )
        for call in calls
    ]


def wait_entries(row: HasEntries, requests: Sequence[RunRequest], after: int = 0) -> list[Entry]:
    """Write the events of a wait from its rows, those after an `n`; they are the same in every process."""
    answers = {request.answer_entry: request for request in requests if request.answer_entry is not None}
    entries: list[Entry] = []
    for n in range(max(row.wait_entry or 1, after + 1), row.last_entry + 1):
        if n == row.wait_entry:
            body: dict[str, Any] = {"event": "waiting", "requests": _told(requests)}
        elif (answered := answers.get(n)) is not None:
            approve = (answered.answer or {}).get("approve")
            body = {"event": "answered", "request_id": answered.request_id}
            body |= {} if approve is None else {"approve": approve}
        else:
            body = {"event": "pause"}
        entries.append(Entry(Id(row.attempt, n), body))
    return entries


def _told(requests: Sequence[RunRequest]) -> list[dict[str, Any]]:
    """Show requests as they were when the run came to wait for them."""
    of_answers = {"answer", "answered_by", "answered_at"}
    told = [request.model_dump(mode="json", exclude=of_answers) for request in requests]
    if len(to_json(told)) > LARGEST_EVENT_BYTES:
        told = [{**request, "args": None, "schema": None} for request in told]
    return told


async def tell_answers(event_log: EventLog, answered: Answers, ttl_seconds: int) -> None:
    """Append answers to the log of the run; if the log lacks earlier events of the wait, append all of the wait.

    Raises:
        redis.exceptions.RedisError, OSError: readers see it in the rows.
    """
    row = answered.row
    for wrote, after in ((Id(row.attempt, answered.before), answered.before), (BEFORE_ALL, 0)):
        entries = wait_entries(row, answered.requests, after)
        if await event_log.append([Append(row.id, wrote, entries, ttl_seconds)]) != [Outcome.LOST]:
            return
