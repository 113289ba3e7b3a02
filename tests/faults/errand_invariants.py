"""What must hold of errands: runs that call tools, wait for answers, take messages in, and are made by schedules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime

from pydantic_ai.messages import BaseToolReturnPart, ModelMessagesTypeAdapter

from agent_relay.shared.database.tables import RunStatus
from tests.faults.errands import DENIED, DONE, Errand, Report
from tests.faults.history import Change, Found, History, Sent, is_ended


def finished_calls_are_not_made_again(history: History) -> Found:
    """No attempt makes a call twice, and none makes a call whose result an earlier attempt has stored."""
    begun = [line for line in history.ledger if line.what == "begun"]
    for (run_id, call_id, attempt), times in Counter(
        (line.run_id, line.call_id, line.attempt) for line in begun
    ).items():
        if times > 1:
            yield run_id, f"attempt {attempt} made the call {call_id} {times} times"
    stored: dict[tuple[str, str], int] = {}
    for step in history.steps:
        for message in ModelMessagesTypeAdapter.validate_json(step["messages"]):
            for part in message.parts:
                if isinstance(part, BaseToolReturnPart):
                    stored.setdefault((step["run_id"], part.tool_call_id), step["attempt"])
    for line in begun:
        if line.attempt > stored.get((line.run_id, line.call_id), line.attempt):
            yield line.run_id, f"attempt {line.attempt} made the call {line.call_id}, whose result was stored before"


def errands_are_done_as_they_say(history: History) -> Found:
    """The model has seen one result of each call; what is called done was done, and what was denied never began."""
    begun = {(line.run_id, line.call_id) for line in history.ledger}
    ended = {(line.run_id, line.call_id) for line in history.ledger if line.what == "ended"}
    for run_id in history.errands:
        row = history.rows[run_id]
        if row["status"] != RunStatus.SUCCEEDED:
            continue
        errand, report = Errand.parse(row["query"]), Report.parse(row["output"])
        if report.nonce != errand.nonce or sorted(call for call, _ in report.outcomes) != sorted(errand.calls):
            yield run_id, f"the model has seen the results {report.outcomes} of {list(errand.calls)}"
        for call, outcome in report.outcomes:
            if outcome == DONE and (run_id, call) not in ended:
                yield run_id, f"the call {call} is called done, and never was"
            if outcome == DENIED and (run_id, call) in begun:
                yield run_id, f"the call {call} was denied, and made"


def each_answer_counts_once(history: History) -> Found:
    """Who was told that an answer counts finds it stored, who was told of another one does not; and it is obeyed."""
    stored = {
        (row["run_id"], row["request_id"]): row["answer"] == '{"approve":true}'
        for row in history.requests
        if row["answer"] is not None
    }
    given: set[tuple[str, str, bool]] = set()
    for call in history.given:
        same = {name: stored.get((call.run_id, name)) == approve for name, approve in call.approvals.items()}
        given |= {(call.run_id, name, approve) for name, approve in call.approvals.items()}
        if call.status in {200, 202} and not all(same.values()) and call.run_id in history.rows:
            yield call.run_id, f"told {call.status} for {call.approvals}, and something else is stored"
        elif call.code == "already_answered" and all(same.values()):
            yield call.run_id, f"told that something else than {call.approvals} was answered"
    for (run_id, name), approve in stored.items():
        if (run_id, name, approve) not in given:
            yield run_id, f"nobody has answered {name} with {approve}"
        row = history.rows[run_id]
        if row["status"] == RunStatus.SUCCEEDED:
            outcomes = dict(Report.parse(row["output"]).outcomes)
            if outcomes.get(name) != (DONE if approve else DENIED):
                yield run_id, f"{name} was answered with {approve}, and became {outcomes.get(name)}"


def messages_into_runs_count_once(history: History) -> Found:
    """A message that was accepted is given to the agent of its run, or is one run of the thread; never both."""
    runs = Counter(row["query"] for row in history.rows.values())
    into = {row["query"]: row for row in history.messages_into_runs}
    for message in history.sent:
        query = str(message.errand)
        row, of_its_own = into.get(query), runs[query]
        if message.status == 202 and row is None and of_its_own != 1:
            yield message.run_id, f"a message was accepted, and there are {of_its_own} runs of it"
        elif _is_refused(history, message) and (row or of_its_own):
            yield message.run_id, f"a message was refused with {message.status}, and is there"
        elif row is None and of_its_own > 1:
            yield message.run_id, f"a message became {of_its_own} runs"
    for row in history.messages_into_runs:
        taken_in, of_its_own = row["place"] <= history.taken_in[row["run_id"]], runs[row["query"]]
        if taken_in and of_its_own:
            yield row["run_id"], f"message {row['place']} was taken in, and became a run"
        elif not taken_in and is_ended(run := history.rows[row["run_id"]]):
            is_kept = run["thread_id"] and not run["rolled_back"] and run["thread_id"] not in history.deleted_threads
            if of_its_own > 1 or (is_kept and not of_its_own) or (of_its_own and not run["thread_id"]):
                yield row["run_id"], f"message {row['place']} came too late, and became {of_its_own} runs"


def agents_are_told_what_runs_have_taken_in(history: History) -> Found:
    """What a run has taken in, its agent was told: everything once, in the order in which it was sent."""
    sent: dict[str, list[str]] = {}
    for row in sorted(history.messages_into_runs, key=lambda row: row["place"]):
        if row["place"] <= history.taken_in[row["run_id"]]:
            sent.setdefault(row["run_id"], []).append(Errand.parse(row["query"]).nonce)
    for run_id in history.errands:
        row = history.rows[run_id]
        if row["status"] != RunStatus.SUCCEEDED:
            continue
        told = Report.parse(row["output"]).told
        if told != sent.get(run_id, []):
            yield run_id, f"the agent was told {told}, not {sent.get(run_id, [])}"


def _is_refused(history: History, message: Sent) -> bool:
    """Tell whether nothing is stored of a message; it may be where the thread was deleted before its sender knew."""
    gone = message.status == 404 and history.rows[message.run_id]["thread_id"] in history.deleted_threads
    return message.status is not None and 400 <= message.status < 500 and not gone


def each_tick_makes_one_run(history: History) -> Found:
    """However many processes look, and whoever dies: a tick has one run, or the schedule says why it has none."""
    ticks: set[tuple[str, datetime]] = set()
    refused: set[tuple[str, datetime]] = set()
    last: dict[str, Change] = {}
    for change in history.changes:
        if change.table != "schedules":
            continue
        last[change.row["id"]] = change
        if change.after is None or change.before is None:
            continue
        before, after = _tick(change.before), _tick(change.after)
        if after is not None and after.timestamp() <= change.at:
            ticks.add((change.row["id"], after))
        if before is not None and change.after["failed_ticks"] > change.before["failed_ticks"]:
            refused.add((change.row["id"], before))
    runs = Counter(
        (row["schedule_id"], datetime.fromisoformat(row["start_at"]))
        for row in history.rows.values()
        if row["schedule_id"] is not None
    )
    for tick in ticks | runs.keys():
        if runs[tick] != (0 if tick in refused else 1) or tick not in ticks:
            yield None, f"the tick {tick} of a schedule has {runs[tick]} runs"
    for schedule_id, change in last.items():
        due = _tick(change.row)
        if due is not None and due.timestamp() <= change.at:
            yield None, f"the tick {due} of schedule {schedule_id} was left"


def _tick(schedule: dict[str, list[str]]) -> datetime | None:
    times = schedule["next_times"]
    return datetime.fromisoformat(times[0]) if times else None


OF_ERRANDS: list[Callable[[History], Found]] = [
    finished_calls_are_not_made_again,
    errands_are_done_as_they_say,
    each_answer_counts_once,
    messages_into_runs_count_once,
    agents_are_told_what_runs_have_taken_in,
    each_tick_makes_one_run,
]
