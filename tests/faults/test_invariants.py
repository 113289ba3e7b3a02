"""Each invariant finds out the history that was doctored to break it; what really happened breaks none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelRequest, ToolReturnPart

from agent_relay.shared.event_log import Entry, Id, end_entry
from agent_relay.shared.runs.wait import canonical
from tests.faults.errands import DENIED, DONE, ERRAND, PAY, WORK, Errand, Line, Report
from tests.faults.faults import Kind, schedule
from tests.faults.guests import GUEST, Visit
from tests.faults.history import (
    Announced,
    Answered,
    Asked,
    Breakage,
    Broken,
    Change,
    Given,
    Heard,
    History,
    Measure,
    Peek,
    Piece,
    Reader,
    Row,
    Seen,
    Sent,
    Slow,
    as_object,
)
from tests.faults.invariants import INVARIANTS, check
from tests.faults.script import TELLER, Query, speaker, told_text
from tests.faults.timeline import timeline
from tests.support.client import Event

TENANT, USER, THREAD = "acme", str(UUID(int=1)), str(UUID(int=2))
FIRST, SECOND, ALONE, VISIT = (str(UUID(int=number)) for number in (11, 12, 13, 14))
SENT, LATE, TICKED = (str(UUID(int=number)) for number in (15, 16, 17))
"""Runs of errands: one that is sent by a user, one that was a message that came too late, one of a schedule."""
ERRAND_THREAD, SCHEDULE = str(UUID(int=3)), str(UUID(int=31))
TICK = "1970-01-01T00:15:00+00:00"
NEXT_YEAR = "1971-01-01T00:00:00+00:00"
SENT_ON = {
    SENT: Errand(nonce="15", rounds=((WORK,), (PAY, PAY)), seconds=0.1),
    LATE: Errand(nonce="16", rounds=((WORK,),), seconds=0.1),
    TICKED: Errand(nonce="17", rounds=((WORK,),), seconds=0.1),
}
IN_TIME = Errand(nonce="18", rounds=((WORK,),), seconds=0.1)
"""A message that its run took in."""
WORKED, PAID, KEPT = SENT_ON[SENT].calls
WORKER_1, WORKER_2 = str(UUID(int=21)), str(UUID(int=22))
PID_1, PID_2 = 101, 102
USAGE = {"requests": 1, "input_tokens": 10, "output_tokens": 20}


def asked_of(run_id: str) -> Query | Visit | Errand:
    return Visit("exit_sync", run_id[-4:]) if run_id == VISIT else SENT_ON.get(run_id) or query_of(run_id)


def agent_of(run_id: str) -> str:
    return GUEST if run_id == VISIT else ERRAND if run_id in SENT_ON else TELLER


def thread_of(run_id: str) -> str:
    return ERRAND_THREAD if run_id in SENT_ON else THREAD


def query_of(run_id: str) -> Query:
    return Query(nonce=run_id[-4:], words=4, pace_seconds=0.1)


def said(run_id: str, attempt: int, characters: int | None = None) -> str:
    return told_text(speaker(run_id, attempt), query_of(run_id))[:characters]


def new_row(run_id: str, seq: int | None) -> Row:
    return {
        "id": run_id,
        "tenant": TENANT,
        "user_id": USER,
        "thread_id": None if seq is None else thread_of(run_id),
        "seq": seq,
        "schedule_id": None,
        "start_at": None,
        "begun": "first",
        "last_message": 0,
        "heard": 0,
        "agent_type": agent_of(run_id),
        "text_output": True,
        "query": str(asked_of(run_id)),
        "message_id": f"answer to {run_id}",
        "status": "queued",
        "attempt": 0,
        "crashes": 0,
        "worker_id": None,
        "partial_output": None,
        "output": None,
        "last_entry": 0,
        "error": None,
        "usage": {},
        "rolled_back": False,
        "end_told": False,
        "finished_at": None,
    }


class Book:
    """Writes a history down."""

    def __init__(self) -> None:
        self.history = History(lease_seconds=4)
        self.now = 1000.0
        self._rows: dict[str, Row] = {}

    def change(self, run_id: str, **changed: Any) -> Row:
        """Change a run's row."""
        before = self._rows[run_id]
        after = self._rows[run_id] = before | changed
        self.note("runs", before, after)
        return after

    def ask(self, run_id: str, seq: int | None, **asked: Any) -> None:
        """Accept a query."""
        self.history.asked.append(
            Asked(
                at=self.now,
                query=asked_of(run_id),
                tenant=TENANT,
                user_id=USER,
                agent_type=agent_of(run_id),
                thread_id=None if seq is None else thread_of(run_id),
                status=202,
                run_id=run_id,
                **asked,
            )
        )
        self.insert(run_id, seq)
        if seq is not None:
            self.store(run_id, "user", str(asked_of(run_id)))

    def insert(self, run_id: str, seq: int | None, **given: Any) -> None:
        """Store a run."""
        self._rows[run_id] = new_row(run_id, seq) | given
        self.note("runs", None, self._rows[run_id])

    def claim(self, run_id: str, worker_id: str, *earlier: str) -> None:
        """Begin an attempt."""
        attempt = self._rows[run_id]["attempt"] + 1
        self.change(run_id, status="running", attempt=attempt, worker_id=worker_id, partial_output=None)
        self.announce(run_id, Entry(Id(attempt, 1), {"event": "message_started", "reason": "first"}))
        if run_id not in SENT_ON:
            self.history.heard.append(Heard(self.now, run_id, attempt, [query_of(run).nonce for run in earlier]))

    def speak(self, run_id: str, *lengths: int | None) -> None:
        """Publish texts."""
        attempt = self._rows[run_id]["attempt"]
        for number, length in enumerate(lengths, 2):
            self.announce(run_id, Entry(Id(attempt, number), {"text": said(run_id, attempt, length)}))
        self.change(run_id, partial_output=said(run_id, attempt, lengths[-1]), last_entry=len(lengths) + 1)

    def end(self, run_id: str, status: str, **changed: Any) -> None:
        """End a run."""
        row = self.change(run_id, status=status, finished_at="now", usage=USAGE, **changed)
        end = end_entry(as_object(row))
        if row["thread_id"] and status != "failed":
            self.store(run_id, "assistant", row["output"] or row["partial_output"])
        self.announce(run_id, end)
        self.change(run_id, end_told=True)
        self.history.logs[run_id] = [entry for entry in self.entries(run_id) if entry.id.attempt >= row["attempt"]]

    def entries(self, run_id: str) -> list[Entry]:
        """Everything that was announced."""
        return [entry for told in self.history.announced if told.run_id == run_id for entry in told.entries]

    def announce(self, run_id: str, entry: Entry) -> None:
        """Write into the log."""
        self.now += 0.1
        self.history.announced.append(Announced(self.now, run_id, [entry]))

    def store(self, run_id: str, role: str, content: str) -> None:
        """Store a message."""
        message_id = f"{role} {content}"
        self.note("messages", None, {"id": message_id, "run_id": run_id, "role": role, "content": content})

    def call(self, run_id: str, call_id: str, heard: int = 0) -> None:
        """Have a tool do what it is called for, and its result stored."""
        attempt = self._rows[run_id]["attempt"]
        self.history.ledger += [Line(run_id, call_id, attempt, what, self.now) for what in ("begun", "ended")]
        self.store_result(run_id, call_id, DONE, heard)

    def store_result(self, run_id: str, call_id: str, content: str, heard: int = 0) -> None:
        """Store the result of a call."""
        result = ModelRequest(parts=[ToolReturnPart(tool_name=WORK, content=content, tool_call_id=call_id)])
        messages = ModelMessagesTypeAdapter.dump_json([result]).decode()
        step = {"run_id": run_id, "attempt": self._rows[run_id]["attempt"], "messages": messages, "heard": heard}
        self.note("run_steps", None, step)

    def send(self, run_id: str, place: int, errand: Errand, next_run_id: str) -> None:
        """Send a message into a run."""
        self.history.sent.append(Sent(run_id, errand, status=202))
        self.change(run_id, last_message=place)
        sent = {"run_id": run_id, "place": place, "query": str(errand), "next_run_id": next_run_id}
        self.note("run_messages", None, sent)
        self.store(run_id, "user", str(errand))

    def wait(self, run_id: str, **approvals: bool) -> None:
        """Have a run wait for these answers, and get them."""
        self.change(run_id, status="waiting", worker_id=None)
        for place, (name, approve) in enumerate(approvals.items()):
            asked = {"run_id": run_id, "attempt": 1, "place": place, "request_id": name, "answer": None}
            self.note("run_requests", None, asked)
            self.history.given.append(Given(run_id, {name: approve}, 202))
            self.history.given.append(Given(run_id, {name: not approve}, 409, "already_answered"))
            self.note("run_requests", asked, asked | {"answer": canonical({"approve": approve})})
        self.change(run_id, status="queued", begun="answered")

    def report(self, run_id: str, *told: str, **outcomes: str) -> None:
        """End an errand."""
        output = str(Report(asked_of(run_id).nonce, list(told), list(outcomes.items())))
        self.end(run_id, "succeeded", output=output, partial_output=None)

    def read(self, run_id: str, *places: str, after: str | None = None) -> None:
        """Have a reader read the run through as many connections as there are places to go on from, and one more."""
        row, reader = self._rows[run_id], Reader(run_id)
        created = {"id": "0-1", "event": "message_created", "run_id": run_id}
        events = [created, *(event_of(row, entry) for entry in self.entries(run_id))]
        end = Id(row["attempt"] + 1, 1)
        events.append({"id": str(end), "event": "done", "status": row["status"]})
        cuts = [Id.parse(place) for place in places]
        for begin, cut in zip([Id.parse(after or "0-0"), *cuts], [*cuts, end], strict=True):
            told = [event for event in events if begin < Id.parse(event["id"]) <= cut]
            cursor = None if begin == Id(0, 0) else str(begin)
            reader.pieces.append(Piece(cursor, told, self.now, self.now, 200))
        self.history.readers.append(reader)

    def show(self, run_id: str, how: str, status: int = 200) -> None:
        """Show the run to its owner."""
        row = self._rows[run_id]
        body = {name: row[name] for name in ("id", "status", "attempt", "output", "partial_output", "error")}
        self.history.seen.append(Seen(self.now, how, status, body | {"finished_at": row["finished_at"]}))

    def note(self, table: str, before: Row | None, after: Row | None) -> None:
        """Change a row."""
        self.now += 0.1
        self.history.changes.append(Change(self.now, table, before, after))


def go_on_errands(book: Book) -> None:
    """One run calls tools, waits and is told something; what comes too late is a run; and a schedule makes one."""
    book.ask(SENT, 1)
    book.claim(SENT, WORKER_2)
    book.call(SENT, WORKED)
    book.send(SENT, 1, IN_TIME, "nobody")
    book.wait(SENT, **{PAID: True, KEPT: False})
    book.claim(SENT, WORKER_2)
    book.call(SENT, PAID)
    book.store_result(SENT, KEPT, DENIED, heard=1)
    book.send(SENT, 2, SENT_ON[LATE], LATE)
    book.change(SENT, heard=1)
    book.report(SENT, IN_TIME.nonce, **{WORKED: DONE, PAID: DONE, KEPT: DENIED})
    book.insert(LATE, 2)
    moved = {"id": f"user {SENT_ON[LATE]}", "role": "user", "content": str(SENT_ON[LATE])}
    book.note("messages", moved | {"run_id": SENT}, moved | {"run_id": LATE})
    schedule: Row = {"id": SCHEDULE, "next_times": [NEXT_YEAR], "failed_ticks": 0}
    book.note("schedules", None, schedule)
    book.note("schedules", schedule, schedule | {"next_times": [TICK]})
    book.insert(TICKED, None, schedule_id=SCHEDULE, start_at=TICK)
    book.note("schedules", schedule | {"next_times": [TICK]}, schedule)
    for run_id in (LATE, TICKED):
        book.claim(run_id, WORKER_2)
        [call_id] = SENT_ON[run_id].calls
        book.call(run_id, call_id)
        book.report(run_id, **{call_id: DONE})


def event_of(row: Row, entry: Entry) -> Event:
    """Say an entry as a reader is told it."""
    if entry.event is None:
        return {"id": str(entry.id), "event": "text_delta", "token": entry.text}
    event: Event = {"id": str(entry.id), "event": entry.event, "message_id": row["message_id"]}
    return event | {name: entry.body[name] for name in ("usage", "error", "partial", "reason") if name in entry.body}


def what_really_happened() -> History:
    """In a thread, one run whose first worker was killed and one that was cancelled; and one that ran out of time."""
    book = Book()
    history = book.history
    history.workers = {WORKER_1: PID_1, WORKER_2: PID_2}
    book.ask(FIRST, 1)
    book.ask(SECOND, 2, cancelled=True)
    book.ask(ALONE, None, deadline_seconds=1)
    book.ask(VISIT, None)
    book.claim(FIRST, WORKER_1)
    book.speak(FIRST, 20, 40)
    book.show(FIRST, "read")
    history.broken.append(Broken(book.now, Breakage.KILLED, "worker", (PID_1,)))
    book.change(FIRST, status="queued", crashes=1, worker_id=None)
    book.claim(FIRST, WORKER_2)
    book.speak(FIRST, 30, None)
    book.end(FIRST, "succeeded", output=said(FIRST, 2), partial_output=None)
    book.claim(SECOND, WORKER_2, FIRST)
    book.speak(SECOND, 30)
    book.show(SECOND, "cancelled", 202)
    book.end(SECOND, "cancelled")
    book.show(SECOND, "cancelled")
    book.claim(ALONE, WORKER_2)
    book.end(ALONE, "failed", error={"code": "deadline_exceeded"})
    book.show(ALONE, "read")
    book.claim(VISIT, WORKER_2)
    book.end(VISIT, "failed", error={"code": "agent_error"})
    go_on_errands(book)
    for run_id in (FIRST, SECOND, ALONE, VISIT):
        book.read(run_id)
        book.read(run_id, "0-1", "1-1")
        book.read(run_id, after="1-1")
    history.listed[TENANT, USER] = {FIRST, SECOND, ALONE, VISIT, SENT, LATE, TICKED}
    history.peeks.append(Peek("other", USER, f"GET /runs/{FIRST}", 404))
    history.answered += [
        Answered(book.now, "POST /runs", 202),
        Answered(book.now, "POST /runs", 503, "service_unavailable", "unreachable"),
        Answered(book.now + 100, "POST /runs", 503, "service_unavailable", "unreachable"),
    ]
    history.slow.append(Slow(book.now + 98, book.now + 99))
    history.broken.append(Broken(book.now - 2, Breakage.POSTGRES_CRASHED, "SIGKILL", (), book.now - 1))
    history.measures.append(Measure("connections", 0, 10, 12))
    return history


def event(history: History, run_id: str, name: str) -> Event:
    """Find the first event of that name that a reader was told."""
    readers = [reader for reader in history.readers if reader.run_id == run_id]
    return next(event for reader in readers for event in reader.events if event["event"] == name)


def forget(history: History, run_id: str, name: str, reader: int = 0) -> None:
    """Have a reader not be told an event."""
    for piece in [reader for reader in history.readers if reader.run_id == run_id][reader].pieces:
        piece.events[:] = [event for event in piece.events if event["event"] != name]


def asked_twice(history: History) -> None:
    history.changes.insert(1, Change(1000.1, "runs", None, new_row(FIRST, 1) | {"id": str(UUID(int=99))}))


def never_ended(history: History) -> None:
    history.changes = [change for change in history.changes if change.row.get("status") != "failed"]


def reopened(history: History) -> None:
    ended = next(change.row for change in history.changes if change.row.get("status") == "succeeded")
    history.changes.append(Change(2000, "runs", ended, ended | {"output": "something else"}))


def not_asked_to_cancel(history: History) -> None:
    history.asked[1].cancelled = False


def nobody_died(history: History) -> None:
    history.broken[0].pids = (PID_2 + 1,)


def cut_for_good(history: History) -> None:
    history.readers[0].pieces[-1].events.pop()


def ended_twice(history: History) -> None:
    pieces = history.readers[0].pieces
    pieces[-1].events.insert(-1, pieces[-1].events[-2])


def another_text(history: History) -> None:
    last = [event for event in history.readers[0].events if event["event"] == "text_delta"][-1]
    last["token"] = last["token"][:-1]


def untrue_log(history: History) -> None:
    history.logs[FIRST][-1] = Entry(history.logs[FIRST][-1].id, history.logs[ALONE][-1].body)


def answered_twice(history: History) -> None:
    answer = next(change for change in history.changes if change.row.get("role") == "assistant")
    history.changes.append(answer)


def finished_by_a_zombie(history: History) -> None:
    for change in history.changes:
        if change.row.get("output"):
            change.row["output"] = said(FIRST, 1)


def heard_from_a_zombie(history: History) -> None:
    history.announced.append(Announced(2000, FIRST, [Entry(Id(1, 4), {"text": said(FIRST, 1)})]))


def another_attempt_in_the_log(history: History) -> None:
    history.logs[FIRST][1] = Entry(Id(2, 2), {"text": said(FIRST, 1, 38)})


def told_again(history: History) -> None:
    pieces = next(reader.pieces for reader in history.readers if len(reader.pieces) > 1)
    pieces[1].events.insert(0, pieces[0].events[-1])


def kept_silent(history: History) -> None:
    """The first reader was told of the first attempt's texts, but not that it had begun."""
    forget(history, FIRST, "message_started")


def told_differently(history: History) -> None:
    again = [reader for reader in history.readers if reader.run_id == FIRST][1]
    for piece in again.pieces:
        piece.events[:] = [event | {"reason": "?"} if "reason" in event else event for event in piece.events]


def gap_for_nothing(history: History) -> None:
    history.broken = []
    history.readers[0].pieces[0].events.insert(1, {"id": "0-2", "event": "gap"})


def invalid_partial(history: History) -> None:
    event(history, FIRST, "text_delta")["token"] = "half of something"


def receipt_too_early(history: History) -> None:
    receipt = next(seen for seen in history.seen if seen.status == 202)
    history.seen.append(Seen(receipt.at, receipt.how, 200, receipt.body))


def out_of_turn(history: History) -> None:
    place = next(
        at for at, one in enumerate(history.changes) if one.row.get("id") == SECOND and one.row["status"] == "running"
    )
    history.changes.insert(5, history.changes.pop(place))


def told_of_what_failed(history: History) -> None:
    history.heard.append(Heard(2000, SECOND, 1, []))


def shown_to_a_stranger(history: History) -> None:
    history.peeks.append(Peek("other", USER, f"GET /runs/{FIRST}", 200))


def refused_for_nothing(history: History) -> None:
    history.answered.append(Answered(5000, "POST /runs", 503, "service_unavailable", "unreachable"))


def grown(history: History) -> None:
    history.measures.append(Measure("memory", 100, 900, 200))


def visited(history: History, **changed: Any) -> None:
    """Have the guest's run have ended otherwise."""
    for change in history.changes:
        if change.row.get("id") == VISIT and change.row["status"] == "failed":
            change.row.update(changed)


def guest_that_succeeded(history: History) -> None:
    visited(history, status="succeeded", output="3", error=None)


def called_again(history: History) -> None:
    history.ledger.append(Line(SENT, WORKED, 2, "begun", 2000))


def called_twice(history: History) -> None:
    history.ledger.append(history.ledger[0])


def never_done(history: History) -> None:
    history.ledger = [line for line in history.ledger if (line.call_id, line.what) != (PAID, "ended")]


def done_although_denied(history: History) -> None:
    history.ledger.append(Line(SENT, KEPT, 2, "begun", 2000))


def changes_in(history: History, table: str) -> list[Change]:
    return [change for change in history.changes if change.table == table]


def answered_otherwise(history: History) -> None:
    for change in changes_in(history, "run_requests"):
        if change.row["answer"] is not None:
            change.row["answer"] = canonical({"approve": change.row["request_id"] == KEPT})


def answered_by_nobody(history: History) -> None:
    history.given = [given for given in history.given if given.approvals != {PAID: True}]


def refused_as_answered_otherwise(history: History) -> None:
    history.given.append(Given(SENT, {PAID: True}, 409, "already_answered"))


def answer_disobeyed(history: History) -> None:
    reported(history, outcomes={WORKED: DONE, PAID: DENIED, KEPT: DENIED})


def reported(history: History, told: list[str] | None = None, outcomes: dict[str, str] | None = None) -> None:
    """Have the errand say something else."""
    said = {WORKED: DONE, PAID: DONE, KEPT: DENIED} if outcomes is None else outcomes
    output = str(Report(SENT_ON[SENT].nonce, [IN_TIME.nonce] if told is None else told, list(said.items())))
    for change in history.changes:
        if change.row.get("id") == SENT and change.row.get("output"):
            change.row["output"] = output


def never_called(history: History) -> None:
    reported(history, outcomes={WORKED: DONE, PAID: DONE})


def lose(history: History, run_id: str) -> None:
    """Have a run never have been."""
    history.changes = [
        change for change in history.changes if run_id not in {change.row.get("id"), change.row.get("run_id")}
    ]
    history.announced = [announced for announced in history.announced if announced.run_id != run_id]
    del history.logs[run_id]


def came_too_late_and_is_lost(history: History) -> None:
    lose(history, LATE)


def came_too_late_and_is_two_runs(history: History) -> None:
    history.changes.append(Change(2000, "runs", None, new_row(LATE, 3) | {"id": str(UUID(int=99))}))


def taken_in_and_a_run(history: History) -> None:
    run = new_row(LATE, 3) | {"id": str(UUID(int=99)), "query": str(IN_TIME)}
    history.changes.append(Change(2000, "runs", None, run))


def message_lost(history: History) -> None:
    history.changes = [change for change in history.changes if change.table != "run_messages"]
    came_too_late_and_is_lost(history)


def refused_message_is_there(history: History) -> None:
    history.sent[0].status = 409


def not_told(history: History) -> None:
    reported(history, told=[])


def told_twice(history: History) -> None:
    reported(history, told=[IN_TIME.nonce] * 2)


def tick_without_a_run(history: History) -> None:
    lose(history, TICKED)


def tick_with_two_runs(history: History) -> None:
    ticked = new_row(TICKED, None) | {"id": str(UUID(int=99)), "schedule_id": SCHEDULE, "start_at": TICK}
    history.changes.append(Change(2000, "runs", None, ticked))


def run_without_a_tick(history: History) -> None:
    ticked = new_row(TICKED, None) | {"id": str(UUID(int=99)), "schedule_id": SCHEDULE, "start_at": NEXT_YEAR}
    history.changes.append(Change(2000, "runs", None, ticked))


def tick_that_failed(history: History) -> None:
    for change in history.changes:
        if change.row.get("id") == TICKED and change.row["status"] == "succeeded":
            change.row.update(status="failed", error={"code": "agent_error"}, output=None)


def tick_left(history: History) -> None:
    history.changes.remove(changes_in(history, "schedules")[-1])


DOCTORED: dict[str, Callable[[History], None]] = {
    "accepted_is_exactly_one_row": asked_twice,
    "every_run_ends": never_ended,
    "ends_never_change": reopened,
    "every_run_succeeds_but_those_that_may_not": not_asked_to_cancel,
    "guests_end_as_they_must": guest_that_succeeded,
    "every_crash_is_a_death": nobody_died,
    "every_attempt_more_has_a_reason": nobody_died,
    "every_reader_is_told_the_end": cut_for_good,
    "the_end_is_told_once_last_and_true": ended_twice,
    "the_last_text_told_is_the_output": another_text,
    "the_log_ends_as_the_row": untrue_log,
    "messages_are_stored_once_and_whole": answered_twice,
    "a_row_holds_what_its_attempt_said": finished_by_a_zombie,
    "nobody_is_heard_after_a_later_attempt": heard_from_a_zombie,
    "a_log_holds_what_its_attempts_said": another_attempt_in_the_log,
    "ids_only_grow": told_again,
    "what_is_resumed_is_the_rest": kept_silent,
    "the_same_id_is_the_same_event": told_differently,
    "gaps_are_told_only_of_what_was_lost": gap_for_nothing,
    "only_valid_partials_leave": invalid_partial,
    "what_is_shown_is_the_row": receipt_too_early,
    "runs_of_a_thread_never_overlap": out_of_turn,
    "the_model_is_told_the_thread": told_of_what_failed,
    "nothing_of_others_is_visible": shown_to_a_stranger,
    "refusals_have_a_reason": refused_for_nothing,
    "everything_is_back_where_it_was": grown,
    "finished_calls_are_not_made_again": called_again,
    "errands_are_done_as_they_say": never_done,
    "each_answer_counts_once": answered_otherwise,
    "messages_into_runs_count_once": came_too_late_and_is_lost,
    "agents_are_told_what_runs_have_taken_in": not_told,
    "each_tick_makes_one_run": tick_without_a_run,
}


def refused_and_stored(history: History) -> None:
    history.asked[2].run_id, history.asked[2].status = None, 422


def stored_for_another(history: History) -> None:
    history.asked[0].user_id = str(UUID(int=3))


def end_untold(history: History) -> None:
    for change in history.changes:
        if change.row.get("id") == ALONE:
            change.row["end_told"] = False


def failed_for_nothing(history: History) -> None:
    history.asked[2].deadline_seconds = None


def crashed_too_soon(history: History) -> None:
    for change in history.changes:
        if change.row.get("id") == ALONE and change.row["error"]:
            change.row["error"] = {"code": "worker_crashed"}


def told_of_another_end(history: History) -> None:
    history.readers[0].pieces[-1].events[-1]["status"] = "failed"


def told_of_another_usage(history: History) -> None:
    event(history, FIRST, "message_complete")["usage"] = {"requests": 2}


def went_on_after_the_end(history: History) -> None:
    history.logs[FIRST].append(history.logs[FIRST][0])


def half_an_answer(history: History) -> None:
    for change in history.changes:
        if change.row.get("output") or change.row.get("role") == "assistant":
            name = "output" if "output" in change.row else "content"
            change.row[name] = change.row[name][:25]


def asked_a_second_time(history: History) -> None:
    query = next(change for change in history.changes if change.row.get("role") == "user")
    history.changes.append(query)


def two_at_once(history: History) -> None:
    """The second run of the thread is claimed although it waits behind nobody who is unfinished but runs."""
    claimed = next(at for at, one in enumerate(history.changes) if one.row.get("status") == "succeeded")
    begun = next(
        at for at, one in enumerate(history.changes) if one.row.get("id") == SECOND and one.row["status"] == "running"
    )
    history.changes.insert(claimed, history.changes.pop(begun))


def shown_otherwise(history: History) -> None:
    history.seen[-1].body["status"] = "succeeded"


def not_listed(history: History) -> None:
    history.listed[TENANT, USER].remove(ALONE)


def listed_for_a_stranger(history: History) -> None:
    history.listed["other", USER] = {FIRST}


def failed_to_answer(history: History) -> None:
    history.answered.append(Answered(history.broken[-1].at, "POST /runs", 500))


def refused_for_another_reason(history: History) -> None:
    """PostgreSQL crashed, which makes it no read-only one."""
    at = history.broken[-1].at
    history.answered.append(Answered(at, "POST /runs", 503, "service_unavailable", "read_only"))


def refused_as_too_many(history: History) -> None:
    history.answered.append(Answered(history.broken[-1].at, "POST /runs", 429, "too_many_requests"))


def refused_by_a_code_that_nothing_explains(history: History) -> None:
    history.answered.append(Answered(history.broken[-1].at, "POST /runs", 503, "calls_full"))


def guest_that_failed_otherwise(history: History) -> None:
    visited(history, error={"code": "output_invalid"})


def guest_that_was_cancelled(history: History) -> None:
    visited(history, status="cancelled", error=None)


def guest_that_crashed_its_process(history: History) -> None:
    visited(history, error={"code": "worker_crashed"}, crashes=1)


def bystander_of_a_guest_begins_again(history: History) -> None:
    """Its process is not the one that was killed."""
    history.broken = [broken for broken in history.broken if broken.kind is not Breakage.KILLED]


MORE: list[tuple[str, Callable[[History], None]]] = [
    ("accepted_is_exactly_one_row", refused_and_stored),
    ("accepted_is_exactly_one_row", stored_for_another),
    ("every_run_ends", end_untold),
    ("every_run_succeeds_but_those_that_may_not", failed_for_nothing),
    ("every_run_succeeds_but_those_that_may_not", crashed_too_soon),
    ("the_end_is_told_once_last_and_true", told_of_another_end),
    ("the_end_is_told_once_last_and_true", told_of_another_usage),
    ("the_log_ends_as_the_row", went_on_after_the_end),
    ("messages_are_stored_once_and_whole", half_an_answer),
    ("messages_are_stored_once_and_whole", asked_a_second_time),
    ("runs_of_a_thread_never_overlap", two_at_once),
    ("what_is_shown_is_the_row", shown_otherwise),
    ("nothing_of_others_is_visible", not_listed),
    ("nothing_of_others_is_visible", listed_for_a_stranger),
    ("refusals_have_a_reason", failed_to_answer),
    ("refusals_have_a_reason", refused_for_another_reason),
    ("refusals_have_a_reason", refused_as_too_many),
    ("refusals_have_a_reason", refused_by_a_code_that_nothing_explains),
    ("guests_end_as_they_must", guest_that_failed_otherwise),
    ("guests_end_as_they_must", guest_that_was_cancelled),
    ("guests_end_as_they_must", guest_that_crashed_its_process),
    ("every_attempt_more_has_a_reason", bystander_of_a_guest_begins_again),
    ("finished_calls_are_not_made_again", called_twice),
    ("errands_are_done_as_they_say", done_although_denied),
    ("errands_are_done_as_they_say", never_called),
    ("each_answer_counts_once", answered_by_nobody),
    ("each_answer_counts_once", refused_as_answered_otherwise),
    ("each_answer_counts_once", answer_disobeyed),
    ("messages_into_runs_count_once", came_too_late_and_is_two_runs),
    ("messages_into_runs_count_once", taken_in_and_a_run),
    ("messages_into_runs_count_once", message_lost),
    ("messages_into_runs_count_once", refused_message_is_there),
    ("agents_are_told_what_runs_have_taken_in", told_twice),
    ("each_tick_makes_one_run", tick_with_two_runs),
    ("each_tick_makes_one_run", run_without_a_tick),
    ("each_tick_makes_one_run", tick_left),
    ("every_run_succeeds_but_those_that_may_not", tick_that_failed),
]
"""Other ways to break one."""


def test_what_really_happened_breaks_no_invariant() -> None:
    assert check(what_really_happened()) == []


@pytest.mark.parametrize("name", DOCTORED)
def test_a_doctored_history_is_found_out(name: str) -> None:
    history = what_really_happened()
    DOCTORED[name](history)

    assert name in {violation.invariant for violation in check(history)}


@pytest.mark.parametrize(("name", "doctor"), MORE, ids=lambda item: getattr(item, "__name__", None))
def test_other_ways_to_doctor_a_history_are_found_out(name: str, doctor: Callable[[History], None]) -> None:
    history = what_really_happened()
    doctor(history)

    assert name in {violation.invariant for violation in check(history)}


def test_a_process_may_end_with_the_one_that_started_it() -> None:
    history = what_really_happened()
    history.broken[0].pids = (PID_1 + 100,)
    history.ancestors[PID_1] = frozenset({PID_1 + 100})

    assert "every_attempt_more_has_a_reason" not in {violation.invariant for violation in check(history)}


def test_every_invariant_is_tested() -> None:
    assert [invariant.__name__ for invariant in INVARIANTS] == list(DOCTORED)


def test_a_timeline_tells_everything_about_a_run_in_order() -> None:
    story = timeline(what_really_happened(), FIRST)

    told = [line.split()[1] for line in story.splitlines()[1:]]
    assert {"asked", "row", "message", "log", "model", "reader", "shown", "BROKEN"} <= set(told)
    assert told[0] == "asked"


def test_a_seed_replays_its_schedule() -> None:
    assert schedule(7, 60) == schedule(7, 60) != schedule(8, 60)
    assert {fault.kind for fault in schedule(7, 1)} == set(Kind)
