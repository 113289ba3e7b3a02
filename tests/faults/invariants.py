"""What must hold whatever was broken. Each function reads a history and yields what contradicts its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from agent_relay.shared.database.tables import AttemptReason, RunStatus
from agent_relay.shared.event_log import Entry, Id, end_entry, final_text
from tests.faults.errand_invariants import OF_ERRANDS
from tests.faults.errands import Errand
from tests.faults.guests import misdeed_of
from tests.faults.history import (
    NEWS_LOST,
    Answered,
    Asked,
    Breakage,
    Found,
    History,
    Row,
    as_object,
    is_ended,
    shown_text,
)
from tests.faults.script import is_partial, is_whole, speaker
from tests.support.client import Event, texts_by_id

SUPERSEDING = {"interrupt", "rollback"}
ENDS = {"message_complete", "error", "cancelled"}
IN_FLIGHT_SECONDS = 1
"""So long after its sender has died, a claim that was on its way may still come true."""
SLACK_SECONDS = 10
"""Trouble has consequences for so long after it is over: time-outs, reconnections, new tries."""

UNSERVED_SECONDS = 60
"""So long without a living worker an agent counts as not served, as `AGENT_UNSERVED_SECONDS` has it."""


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be."""

    invariant: str
    run_id: str | None
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.what}" + (f" (run {self.run_id})" if self.run_id else "")


Invariant = Callable[[History], Found]


def check(history: History) -> list[Violation]:
    """Hold the history against every invariant."""
    return [
        Violation(invariant.__name__, run_id, what) for invariant in INVARIANTS for run_id, what in invariant(history)
    ]


def accepted_is_exactly_one_row(history: History) -> Found:
    """Who was told that a query is accepted finds one run of it, who was refused none, and nobody else's is there."""
    inserted: dict[str, list[Row]] = {}
    for change in history.changes:
        if change.table == "runs" and change.before is None:
            inserted.setdefault(change.row["query"], []).append(change.row)
    for asked in history.asked:
        rows = inserted.pop(str(asked.query), [])
        if asked.accepted and [row["id"] for row in rows] != [asked.run_id]:
            yield asked.run_id, f"accepted, and there are {len(rows)} rows of it"
        elif asked.refused and rows and not (asked.status == 404 and asked.thread_id in history.deleted_threads):
            yield rows[0]["id"], f"refused with {asked.status}, and there is a row of it"
        elif len(rows) > 1:
            yield rows[0]["id"], f"asked once, and there are {len(rows)} rows of it"
        for row in rows:
            if (row["tenant"], row["user_id"], row["thread_id"]) != (asked.tenant, asked.user_id, asked.thread_id):
                yield row["id"], "the row is not its caller's"
    yield from _asked_by_nobody(history, inserted)


def _asked_by_nobody(history: History, inserted: dict[str, list[Row]]) -> Found:
    for message in history.sent:
        inserted.pop(str(message.errand), None)
    for rows in inserted.values():
        if rows[0]["schedule_id"] is None:
            yield rows[0]["id"], "nobody has asked this"


def every_run_ends(history: History) -> Found:
    """When all is quiet, every run has ended, and its end has been told."""
    for run_id, row in history.rows.items():
        if not is_ended(row):
            yield run_id, f"it is still {row['status']}"
        elif not row["end_told"]:
            yield run_id, "its end was never told"


def ends_never_change(history: History) -> Found:
    """What has ended stays as it ended."""
    for run_id, changes in history.changes_of.items():
        for before, after in pairwise(change.row for change in changes):
            if is_ended(before):
                changed = {name for name in before if before[name] != after[name]} - {"end_told", "rolled_back"}
                if changed:
                    yield run_id, f"{sorted(changed)} changed after the end"


def every_run_succeeds_but_those_that_may_not(history: History) -> Found:
    """A run fails or is cancelled only for what its caller did, or because it was killed as a suspect, too."""
    asked_by_query = {
        history.rows[run_id]["query"]: _asked_otherwise(history.rows[run_id]) for run_id in history.errands
    }
    asked_by_query |= {str(asked.query): asked for asked in history.asked}
    for run_id, row in history.rows.items():
        if (
            row["query"] not in asked_by_query
            or run_id in history.guests
            or row["status"] == RunStatus.SUCCEEDED
            or not is_ended(row)
        ):
            continue
        asked = asked_by_query[row["query"]]
        if row["status"] == RunStatus.CANCELLED:
            if not (
                asked.cancelled
                or asked.hang_up_cancels
                or asked.thread_id in history.deleted_threads
                or _was_superseded(history, row)
            ):
                yield run_id, "cancelled, and nobody asked for that"
        elif row["error"]["code"] == "deadline_exceeded":
            if not asked.deadline_seconds:
                yield run_id, "it did not end before its deadline, which was far away"
        elif row["error"]["code"] != "worker_crashed":
            yield run_id, f"failed: {row['error']}"
        elif row["crashes"] < history.max_crashes:
            yield run_id, f"called crashed after {row['crashes']} crashes"


def _asked_otherwise(row: Row) -> Asked:
    """Say who asks a run that was a message into another one, or a tick: nobody who would cancel it."""
    return Asked(
        at=0,
        query=Errand.parse(row["query"]),
        tenant=row["tenant"],
        user_id=row["user_id"],
        agent_type=row["agent_type"],
        thread_id=row["thread_id"],
    )


def guests_end_as_they_must(history: History) -> Found:
    """What a guest does ends its own run, once, as it would in peace; but for what others do to it."""
    asked_by_query = {str(asked.query): asked for asked in history.asked}
    for run_id in history.guests:
        row = history.rows[run_id]
        misdeed, asked = misdeed_of(row["query"]), asked_by_query.get(row["query"])
        if not is_ended(row) or asked is None:
            continue
        code = row["error"] and row["error"]["code"]
        if row["status"] == RunStatus.CANCELLED:
            if not asked.hang_up_cancels:
                yield run_id, f"{misdeed.name}: cancelled, and nobody asked for that"
        elif code == "worker_crashed":
            if row["crashes"] < history.max_crashes:
                yield run_id, f"{misdeed.name}: called crashed after {row['crashes']} crashes"
        elif (row["output"], code) != (misdeed.output, misdeed.code):
            yield run_id, f"{misdeed.name}: it {row['status']} with {_short(row['output'])}, {row['error']}"


def _was_superseded(history: History, row: Row) -> bool:
    strategies = {str(asked.query): asked.strategy for asked in history.asked}
    return any(
        later["seq"] > row["seq"] and strategies.get(later["query"]) in SUPERSEDING
        for later in history.runs_of_threads.get(row["thread_id"], [])
    )


def every_crash_is_a_death(history: History) -> Found:
    """A crash is counted only if the process that held the run was killed, or was out of reach for about a lease.

    The count falls where a step is finished: what crashed before is behind the run.
    """
    for run_id, changes in history.changes_of.items():
        for change in changes:
            if change.before is None or change.row["crashes"] <= change.before["crashes"]:
                continue
            worker_id = change.before["worker_id"]
            pid = history.workers.get(worker_id)
            since = next(held.at for held in changes if held.row["worker_id"] == worker_id) - IN_FLIGHT_SECONDS
            troubles = history.breakages(
                Breakage.KILLED, Breakage.FROZEN, Breakage.STOPPED, Breakage.HELD_UP, since=since, until=change.at
            )
            if not any(pid in trouble.pids for trouble in troubles):
                yield run_id, f"crash {change.row['crashes']}: nothing had happened to process {pid}"


def every_attempt_more_has_a_reason(history: History) -> Found:
    """An answer begins again only if we did something to its process, or to PostgreSQL; no guest makes it do so.

    A process also ends once one above it was killed or stopped. A run that has waited goes on in another attempt.
    """
    of_processes = (
        Breakage.KILLED,
        Breakage.FROZEN,
        Breakage.STOPPED,
        Breakage.CUT,
        Breakage.HELD_UP,
        Breakage.REPLY_LOST,
    )
    of_families = (Breakage.KILLED, Breakage.STOPPED)
    of_servers = (Breakage.POSTGRES_CRASHED, Breakage.POSTGRES_SAID_NO)
    for run_id, changes in history.changes_of.items():
        claims = [change for change in changes if change.before and change.row["attempt"] > change.before["attempt"]]
        for claim, later in pairwise(claims):
            if later.row["begun"] == AttemptReason.ANSWERED:
                continue
            pid, since = history.workers.get(claim.row["worker_id"]), claim.at - IN_FLIGHT_SECONDS
            troubles = history.breakages(*of_processes, since=since, until=later.at)
            above: frozenset[int] = frozenset() if pid is None else history.ancestors.get(pid, frozenset())
            if (
                not any(pid in trouble.pids + trouble.started for trouble in troubles)
                and not any(above & {*end.pids} for end in history.breakages(*of_families, since=0, until=later.at))
                and not any(history.breakages(*of_servers, since=since, until=later.at))
            ):
                yield run_id, f"attempt {later.row['attempt']}: nothing had happened to process {pid}"


def every_reader_is_told_the_end(history: History) -> Found:
    """Who goes on reading is told `done` at last, unless the thread was deleted under him."""
    for reader in history.readers:
        row = history.rows.get(reader.run_id)
        if reader.is_done or row is None or row["thread_id"] in history.deleted_threads:
            continue
        if Id.parse(reader.pieces[0].after or "0-0") < Id(row["attempt"] + 1, 1):  # Behind it there is nothing.
            yield reader.run_id, f"a reader was never told that it is over, after {len(reader.pieces)} connections"


def the_end_is_told_once_last_and_true(history: History) -> Found:
    """Each reader who is done was told one end, right before `done`, and it says what the row says."""
    for reader in history.readers:
        row = history.rows.get(reader.run_id)
        if row is None or not reader.is_done:
            continue
        events = reader.events
        ends = [event for event in events if event["event"] in ENDS]
        if [event["event"] for event in events].count("done") != 1 or events[-1]["event"] != "done":
            yield reader.run_id, "`done` is not the last event, once"
        elif events[-1]["status"] != row["status"]:
            yield reader.run_id, f"`done` says {events[-1]['status']}, the row {row['status']}"
        if len(ends) > 1 or (not ends and reader.from_the_start):
            yield reader.run_id, f"{len(ends)} ends were told"
        elif ends and (what := _untrue(ends[0], row)):
            yield reader.run_id, what


def the_last_text_told_is_the_output(history: History) -> Found:
    """Who has followed a run from its start to its end has its output, or the last partial that was kept of it.

    Of an attempt whose worker died, the row keeps what the last beat brought; readers may have been told more.
    """
    for reader in history.readers:
        row = history.rows[reader.run_id]
        text = final_text(as_object(row))
        if text is None or not reader.from_the_start or not reader.is_done:
            continue
        told = [told for piece in reader.pieces for told in texts_by_id(piece.events).items()]
        place, last = told[-1] if told else ("0-0", None)
        if last != text and (row["status"] == RunStatus.SUCCEEDED or Id.parse(place).n <= row["last_entry"]):
            yield reader.run_id, f"the last text told is {_short(last)}, not {_short(text)}"


def the_log_ends_as_the_row(history: History) -> Found:
    """What stands last in a log, if there is one, is the end of its run, once, as the row says it."""
    for run_id, entries in history.logs.items():
        row = history.rows[run_id]
        if not is_ended(row):
            continue
        if [entry for entry in entries if entry.is_end] != [end_entry(as_object(row))]:
            yield run_id, f"the log ends with {entries[-1].body}, not as the row"
        elif not entries[-1].is_end:
            yield run_id, f"the log goes on after its end: {entries[-1]}"


def _untrue(end: Event, row: Row) -> str | None:
    match row["status"], end["event"]:
        case "succeeded", "message_complete":
            true = end["message_id"] == row["message_id"] and end["usage"] == row["usage"]
        case "failed", "error":
            true = end["error"] == row["error"]
        case "cancelled", "cancelled":
            true = end["partial"] == (row["partial_output"] is not None)
        case _:
            true = False
    return None if true else f"the end told is {end}, but the run {row['status']}: {row['usage']} {row['error']}"


def messages_are_stored_once_and_whole(history: History) -> Found:
    """A run of a thread has its query as a message, and its answer once: whole, and by the attempt that ended it."""
    stored: dict[str, list[Row]] = {}
    moved = {change.row["id"]: change.row["run_id"] for change in history.changes if change.table == "messages"}
    for change in history.changes:
        if change.table == "messages" and change.before is None:
            stored.setdefault(moved[change.row["id"]], []).append(change.row)
    into: Counter[str] = Counter(
        row["run_id"] for row in history.messages_into_runs if row["next_run_id"] not in history.rows
    )
    for run_id, row in history.rows.items():
        roles = Counter(message["role"] for message in stored.get(run_id, []))
        answers = [message["content"] for message in stored.get(run_id, []) if message["role"] == "assistant"]
        if roles["user"] != (0 if row["thread_id"] is None else 1 + into[run_id]):
            yield run_id, f"its query was stored {roles['user']} times"
        text = final_text(as_object(row))
        kept = row["thread_id"] and row["status"] in {"succeeded", "cancelled"} and not row["rolled_back"]
        if is_ended(row) and answers != ([text] if kept and text is not None else []):
            yield run_id, f"{len(answers)} answers were stored, of a run that {row['status']}"
        if (
            row["status"] == RunStatus.SUCCEEDED
            and run_id in history.queries
            and not is_whole(row["agent_type"], row["output"], speaker(run_id, row["attempt"]), history.queries[run_id])
        ):
            yield run_id, f"the output is not the whole answer of attempt {row['attempt']}: {_short(row['output'])}"


def a_row_holds_what_its_attempt_said(history: History) -> Found:
    """Nothing of an earlier attempt is written into a row once a later one has begun."""
    for run_id, changes in history.changes_of.items():
        for change in changes:
            for name in ("partial_output", "output"):
                text, attempt = change.row[name], change.row["attempt"]
                if text is not None and not _is_said(history, run_id, attempt, text):
                    yield run_id, f"{name} in attempt {attempt} is {_short(text)}"


def nobody_is_heard_after_a_later_attempt(history: History) -> Found:
    """Once an attempt, or the end, stands in a log, nothing of an earlier attempt is written or announced any more."""
    tops: dict[str, Id] = {}
    for announced in history.announced:
        for entry in announced.entries:
            top = tops.get(announced.run_id, Id(0, 0))
            if entry.id.attempt < top.attempt:
                yield announced.run_id, f"{entry.id} was written after {top}"
            tops[announced.run_id] = max(top, entry.id)


def a_log_holds_what_its_attempts_said(history: History) -> Found:
    """Every text in a log is a beginning of what that attempt says."""
    for run_id, truth in history.truth.items():
        for entry_id, text in texts_at(truth).items():
            if not _is_said(history, run_id, entry_id.attempt, text):
                yield run_id, f"the log says at {entry_id} {_short(text)}"


def _is_said(history: History, run_id: str, attempt: int, text: str) -> bool:
    row = history.rows[run_id]
    if run_id not in history.queries:
        return True  # It follows no script.
    try:
        return is_partial(row["agent_type"], text, speaker(run_id, attempt), history.queries[run_id])
    except ValueError:
        return False


def texts_at(entries: dict[Id, Entry]) -> dict[Id, str]:
    """Say what the text was at each id; where an entry before is not known, nothing until a whole one comes."""
    texts: dict[Id, str] = {}
    text: str | None = None
    last = Id(0, 0)
    for entry_id in sorted(entries):
        entry = entries[entry_id]
        if entry_id.attempt != last.attempt or entry_id.n != last.n + 1:
            text = None
        last = entry_id
        if entry.event is None:
            if entry.growth is None:
                text = entry.text
            elif text is not None:
                text = entry.growth.of(text)
            if text is not None:
                texts[entry_id] = text
    return texts


def ids_only_grow(history: History) -> Found:
    """No reader is ever told an id that is not above all before it, whatever connection it comes through."""
    for reader in history.readers:
        ids = [id_of(event) for event in reader.events]
        if reader.pieces and reader.pieces[0].after:
            ids.insert(0, Id.parse(reader.pieces[0].after))
        for before, after in pairwise(ids):
            if after <= before:
                yield reader.run_id, f"{after} was told after {before}"


def id_of(event: Event) -> Id:
    """Read the id of an event."""
    return Id.parse(event["id"])


def what_is_resumed_is_the_rest(history: History) -> Found:
    """No event is missing between two that a reader was told, unless a gap said so."""
    for reader in history.readers:
        truth = history.truth.get(reader.run_id, {})
        events = reader.events
        seen = {id_of(event) for event in events}
        start = Id.parse(reader.pieces[0].after or "0-0") if reader.pieces else Id(0, 0)
        if reader.from_the_start and events and events[0]["event"] != "message_created":
            yield reader.run_id, f"the first event is {events[0]}"
        for entry_id, entry in truth.items():
            if entry.event in {None, "pause"} or entry_id in seen or entry_id <= start:  # A pause is told to nobody.
                continue
            later = [event for event in events if id_of(event) > entry_id and id_of(event).attempt == entry_id.attempt]
            if not later or any(event["event"] == "gap" for event in later):
                continue
            if reader.from_the_start and events[1] is later[0] and _is_forgotten(history, reader.run_id, entry_id):
                continue  # Of a log that is gone, who asks from the start is told the text and the end.
            yield reader.run_id, f"{entry.event} at {entry_id} is missing; {later[0]['event']} came instead"


def the_same_id_is_the_same_event(history: History) -> Found:
    """What stands at an id is the same for everybody, through whatever process."""
    told_at: dict[tuple[str, str], Event] = {}
    for reader in history.readers:
        for event in reader.events:
            if event["event"] not in {"text_delta", "gap"}:
                other = told_at.setdefault((reader.run_id, event["id"]), event)
                if other != event:
                    yield reader.run_id, f"{event['id']} is {event} for one and {other} for another"


def _is_forgotten(history: History, run_id: str, entry_id: Id) -> bool:
    """Tell whether Redis has lost an entry after it was written."""
    at = min(
        announced.at
        for announced in history.announced
        if announced.run_id == run_id and any(entry.id == entry_id for entry in announced.entries)
    )
    return any(history.breakages(*NEWS_LOST, since=at))


def gaps_are_told_only_of_what_was_lost(history: History) -> Found:
    """Who was told of a gap follows a run of which Redis forgot something, or could not be told."""
    reasons = (
        *NEWS_LOST,
        Breakage.REDIS_SAID_NO,
        Breakage.HELD_UP,
        Breakage.CUT,
        Breakage.REPLY_LOST,
        Breakage.FROZEN,
        Breakage.KILLED,
    )
    for reader in history.readers:
        created = history.changes_of[reader.run_id][0].at
        for piece in reader.pieces:
            if any(event["event"] == "gap" for event in piece.events) and not any(
                history.breakages(*reasons, since=created - SLACK_SECONDS, until=piece.ended_at)
            ):
                yield reader.run_id, "a gap was told, and nothing had been lost"


def only_valid_partials_leave(history: History) -> Found:
    """Every text that a client saw is a beginning of what that attempt says, and the same for all who saw it."""
    for reader in history.readers:
        texts = {str(entry_id): text for entry_id, text in texts_at(history.truth.get(reader.run_id, {})).items()}
        for piece in reader.pieces:
            for event_id, text in texts_by_id(piece.events).items():
                if not _is_said(history, reader.run_id, Id.parse(event_id).attempt, text):
                    yield reader.run_id, f"the text at {event_id} is {_short(text)}"
                elif texts.get(event_id, text) != text:
                    yield reader.run_id, f"the text at {event_id} is {_short(text)}, and was {_short(texts[event_id])}"
    for seen in history.seen:
        if seen.how != "answered" and seen.body["partial_output"] is not None:
            run_id = seen.body["id"]
            text = shown_text(history.rows[run_id], seen.body["partial_output"])
            if text is not None and not _is_said(history, run_id, seen.body["attempt"], text):
                yield run_id, f"the partial shown in attempt {seen.body['attempt']} is {_short(text)}"


def what_is_shown_is_the_row(history: History) -> Found:
    """Whoever reads, cancels or waits for a run that has ended is shown how it ended; a receipt is of an ended run."""
    for seen in history.seen:
        run_id = seen.body["run_id"] if seen.how == "answered" else seen.body["id"]
        row = history.rows[run_id]
        if seen.how == "answered":
            if seen.status == 200 and (row["status"], row["output"]) != ("succeeded", seen.body["response"]):
                yield run_id, f"the answer given is {_short(seen.body['response'])}, the row {row['status']}"
            elif seen.status != 200 and seen.body["code"] not in {(row["error"] or {}).get("code"), row["status"]}:
                yield run_id, f"the problem told is {seen.body['code']}, the row {row['status']} {row['error']}"
            continue
        ended = seen.body["finished_at"] is not None
        if seen.how == "cancelled" and ended != (seen.status == 200):
            yield run_id, f"a receipt of {seen.status} for a run that is {seen.body['status']}"
        if ended and (
            seen.body["status"] != row["status"]
            or seen.body["error"] != row["error"]
            or shown_text(row, seen.body["output"]) != row["output"]
        ):
            yield run_id, f"shown as {seen.body['status']}, but {row['status']}"


def runs_of_a_thread_never_overlap(history: History) -> Found:
    """In a thread one run is claimed at a time, and none before those that were asked before it have ended."""
    unfinished: dict[str, dict[str, int]] = {}
    running: dict[str, str] = {}
    for change in history.changes:
        row = change.row
        if change.table != "runs" or row["thread_id"] is None:
            continue
        thread, run_id = row["thread_id"], row["id"]
        if change.after is None or is_ended(row):
            unfinished.setdefault(thread, {}).pop(run_id, None)
        else:
            unfinished.setdefault(thread, {})[run_id] = row["seq"]
        if change.after is not None and row["status"] == RunStatus.RUNNING:
            if running.setdefault(thread, run_id) != run_id:
                yield run_id, f"it runs while {running[thread]} does"
            if min(unfinished[thread].values()) < row["seq"]:
                yield run_id, "it runs before one that was asked before it"
        elif running.get(thread) == run_id:
            del running[thread]


def the_model_is_told_the_thread(history: History) -> Found:
    """Each attempt hears what succeeded and what was interrupted before it in its thread, in order; nothing else."""
    for heard in history.heard:
        row = history.rows.get(heard.run_id)
        if row is None or row["thread_id"] is None:
            if heard.earlier:
                yield heard.run_id, "a run without a thread was told of others"
            continue
        earlier = [run for run in history.runs_of_threads[row["thread_id"]] if run["seq"] < row["seq"]]
        must = [history.queries[run["id"]].nonce for run in earlier if _is_kept(run, surely=True)]
        may = [history.queries[run["id"]].nonce for run in earlier if _is_kept(run, surely=False)]
        told = heard.earlier
        if [nonce for nonce in told if nonce in must] != must or [nonce for nonce in may if nonce in told] != told:
            yield heard.run_id, f"attempt {heard.attempt} was told of {told}, not of {must}"


def _is_kept(run: Row, *, surely: bool) -> bool:
    if run["rolled_back"]:
        return False
    if run["status"] == RunStatus.CANCELLED:
        return not surely or run["partial_output"] is not None
    return run["status"] == RunStatus.SUCCEEDED


def nothing_of_others_is_visible(history: History) -> Found:
    """What is somebody else's does not exist; what is one's own, and nothing else, is listed."""
    for peek in history.peeks:
        if peek.status not in {404, 503}:
            yield None, f"{peek.tenant}/{peek.user_id} got {peek.status} for {peek.path}"
    own: dict[tuple[str, str], set[str]] = {}
    gone = {
        run_id
        for run_id, row in history.rows.items()
        if row["thread_id"] is not None and row["thread_id"] in history.deleted_threads
    }
    for run_id, row in history.rows.items():
        own.setdefault((row["tenant"], row["user_id"]), set()).add(run_id)
    for owner, listed in history.listed.items():
        for wrong in (listed ^ own.get(owner, set())) - gone:
            yield wrong, f"it is {'' if wrong in listed else 'not '}listed for {owner}"


def refusals_have_a_reason(history: History) -> Found:
    """The service never answers 500 or 429; 503 only while PostgreSQL, or the way to it, or a process is in trouble."""
    for answered in history.answered:
        refused = f"{answered.call} was answered with {answered.status} {answered.code} {answered.reason}"
        if answered.status in {429, 500}:
            yield None, refused
        elif answered.status == 503 and not _explains(history, answered):
            yield None, f"{refused} at {answered.at:.2f}, and nothing was broken"


def _explains(history: History, answered: Answered) -> bool:
    """Tell whether what was broken, or seen to be slow, makes the service refuse for that reason."""
    at = answered.at
    match answered.code, answered.reason:
        case "service_unavailable", "read_only" | "too_many_connections":
            kinds = {Breakage.POSTGRES_SAID_NO}
        case "service_unavailable", "stopping" | "starting":
            kinds = {Breakage.POSTGRES_SAID_NO, Breakage.POSTGRES_CRASHED}
        case "service_unavailable", None:
            kinds = {Breakage.STOPPED}
        case "service_unavailable", "unreachable" | "busy":  # All connections of a pool may wait for it.
            if any(slow.at <= at and slow.until >= at - SLACK_SECONDS for slow in history.slow):
                return True
            kinds = {
                Breakage.POSTGRES_CRASHED,
                Breakage.POSTGRES_SAID_NO,
                Breakage.CUT,
                Breakage.HELD_UP,
                Breakage.REPLY_LOST,
                Breakage.FROZEN,
                Breakage.STOPPED,
            }
        case "agent_not_served", None:
            kinds = {Breakage.KILLED, Breakage.FROZEN, Breakage.STOPPED}
            return any(history.breakages(*kinds, since=at - UNSERVED_SECONDS - SLACK_SECONDS, until=at))
        case _:
            return False
    return any(history.breakages(*kinds, since=at - SLACK_SECONDS, until=at))


def everything_is_back_where_it_was(history: History) -> Found:
    """When all is quiet, memory, connections, keys and readers are what they were."""
    for measure in history.measures:
        if measure.after > measure.allowed:
            yield None, f"{measure.what}: {measure.before:.0f}, then {measure.after:.0f}; allowed {measure.allowed:.0f}"


def _short(text: str | None) -> str:
    return repr(text if text is None or len(text) < 200 else f"{text[:120]} … {text[-60:]} ({len(text)})")


INVARIANTS: list[Invariant] = [
    accepted_is_exactly_one_row,
    every_run_ends,
    ends_never_change,
    every_run_succeeds_but_those_that_may_not,
    guests_end_as_they_must,
    every_crash_is_a_death,
    every_attempt_more_has_a_reason,
    every_reader_is_told_the_end,
    the_end_is_told_once_last_and_true,
    the_last_text_told_is_the_output,
    the_log_ends_as_the_row,
    messages_are_stored_once_and_whole,
    a_row_holds_what_its_attempt_said,
    nobody_is_heard_after_a_later_attempt,
    a_log_holds_what_its_attempts_said,
    ids_only_grow,
    what_is_resumed_is_the_rest,
    the_same_id_is_the_same_event,
    gaps_are_told_only_of_what_was_lost,
    only_valid_partials_leave,
    what_is_shown_is_the_row,
    runs_of_a_thread_never_overlap,
    the_model_is_told_the_thread,
    nothing_of_others_is_visible,
    refusals_have_a_reason,
    everything_is_back_where_it_was,
    *OF_ERRANDS,
]
