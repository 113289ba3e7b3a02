"""Tell what happened to one run, in order: what is needed to understand a violation."""

from __future__ import annotations

from collections.abc import Iterator

from tests.faults.history import History

AROUND_SECONDS = 15
LONGEST_LINE = 300

Lines = Iterator[tuple[float, str]]


def timeline(history: History, run_id: str) -> str:
    """Write a line for each thing that happened to a run or around it."""
    changes = history.changes_of.get(run_id, [])
    if not changes:
        return f"nothing is known of run {run_id}"
    began = changes[0].at
    lines = sorted([*_of_the_row(history, run_id), *_of_the_log(history, run_id), *_of_clients(history, run_id)])
    lines += _of_the_house(history, began - AROUND_SECONDS, lines[-1][0] + AROUND_SECONDS)
    workers = {change.row["worker_id"] for change in changes} - {None}
    return "\n".join(
        [
            f"run {run_id}, held by { ({worker: history.workers.get(worker) for worker in workers}) }",
            *(f"{at - began:+9.3f}  {line[:LONGEST_LINE]}" for at, line in sorted(lines)),
        ]
    )


def _of_the_row(history: History, run_id: str) -> Lines:
    for change in history.changes_of[run_id]:
        before, after = change.before or {}, change.after or {}
        changed = {name: after.get(name) for name in before | after if before.get(name) != after.get(name)}
        yield change.at, f"row      {changed}" if change.after else "row      deleted"
    for change in history.changes:
        if change.table == "messages" and change.row["run_id"] == run_id:
            yield change.at, f"message  {change.row['role']} {'stored' if change.after else 'deleted'}"


def _of_the_log(history: History, run_id: str) -> Lines:
    for announced in history.announced:
        if announced.run_id == run_id:
            said = ", ".join(f"{entry.id} {entry.event or 'text'}" for entry in announced.entries)
            yield announced.at, f"log      {said}"
    for heard in history.heard:
        if heard.run_id == run_id:
            yield heard.at, f"model    asked by attempt {heard.attempt}"


def _of_clients(history: History, run_id: str) -> Lines:
    query = history.rows[run_id]["query"]
    for asked in history.asked:
        if str(asked.query) == query:
            yield asked.at, f"asked    {asked}"
    for number, reader in enumerate(reader for reader in history.readers if reader.run_id == run_id):
        for piece in reader.pieces:
            told = ", ".join(f"{event['id']} {event['event']}" for event in piece.events)
            yield piece.began_at, f"reader {number} comes, after {piece.after}"
            yield piece.ended_at, f"reader {number} leaves ({piece.status}), told {told or 'nothing'}"
    for seen in history.seen:
        if seen.run_id == run_id:
            yield seen.at, f"shown    {seen.how} {seen.status} {seen.body}"


def _of_the_house(history: History, since: float, until: float) -> Lines:
    for broken in history.broken:
        if since <= broken.at <= until:
            lasted = f" for {broken.until - broken.at:.1f} s" if broken.until else ""
            yield broken.at, f"BROKEN   {broken.kind}: {broken.what} {broken.pids}{lasted}"
