"""`submit`: many rows become one batch, once, and their results a file, however often it is interrupted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from agent_relay.client.checkpoint import SUFFIX, Asked, Submission
from agent_relay.client.connection import Connection
from agent_relay.client.errors import Refused, Wrong
from agent_relay.client.input_rows import Rows
from agent_relay.client.results_file import ResultsFile, is_result
from agent_relay.client.results_table import write_table
from agent_relay.client.terminal import Bar

OF_THE_BATCH = {400, 413, 415, 422}
"""Refusals of the batch as such, which was therefore never accepted. After any other, the same may be tried again."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be submitted, and where the results go."""

    rows: Rows
    parameters: Mapping[str, str]
    user_id: str
    output: Path
    """Where the results go as they come, as JSON lines."""
    table: Path | None = None
    """Where they go as CSV, once all have come."""

    @property
    def kept(self) -> Path:
        """Where the submission is kept."""
        return self.output.with_name(self.output.name + SUFFIX)


def submit(connection: Connection, bar: Bar, order: Order) -> Counter[str]:
    """Submit, or go on; returns how many rows ended how, once all have.

    Raises:
        Wrong, Refused, OutOfReach: it was not done, or not yet.
    """
    rows = order.rows.measure()
    asked = Asked(order.user_id, order.parameters, rows.sha256, rows.count)
    with ResultsFile(order.output) as results:
        submission = Submission.load(order.kept)
        if submission is None:
            results.begin()
            if order.table is not None and order.table.exists():
                results.remove()
                raise Wrong(f"{order.table} is there already. Choose another --output, or remove it.")
            submission = Submission.new(asked)
            submission.save(order.kept)
        else:
            submission.check(asked, order.kept)
            results.go_on()
            connection.known = True
        try:
            if submission.batch_id is None:
                submission = _send(connection, bar, order, submission, results)
            _follow(connection, bar, submission, results)
        except KeyboardInterrupt:
            bar.tell(_how_to_go_on(submission, results))
            raise
        results.finish()
        if order.table is not None:
            write_table(order.table, order.rows, order.output)
    if order.rows.source.has_changed():
        bar.tell(
            f"{order.rows.source.name} has changed since it was read. The results are of the rows that it had then."
        )
    return results.tally


def _send(connection: Connection, bar: Bar, order: Order, submission: Submission, results: ResultsFile) -> Submission:
    """Send all rows; sent before or not, they are one batch."""
    total = submission.asked.total
    try:
        batch = connection.upload(
            "/batches", order.parameters, lambda: bar.sending(order.rows.chunks, total), key=submission.key
        )
    except Refused as refused:
        refused.where = order.rows.locator()
        if refused.status in OF_THE_BATCH and refused.code != "idempotency_key_reused":
            order.kept.unlink()
            results.remove()
        raise
    submission = submission.accepted(batch["id"])
    submission.save(order.kept)
    bar.tell(f"Batch {submission.batch_id}: {total:,} rows accepted.")
    return submission


def _follow(connection: Connection, bar: Bar, submission: Submission, results: ResultsFile) -> None:
    """Write results as they come, until there is one for each row."""
    total = submission.asked.total
    bar.answering(total, results.tally)
    ends = 0
    path = f"/batches/{submission.batch_id}/results"
    with closing(connection.follow(path, lambda: {"follow": "true", "after": results.cursor})) as lines:
        while results.count < total:
            line, value = next(lines)
            if is_result(value):
                results.add(line, value)
                bar.ended(results.tally)
                ends = 0
            elif "counts" in value:
                counts = value["counts"]
                bar.running(counts["running"])
                ends += counts["queued"] + counts["running"] + counts.get("waiting", 0) == 0
            if ends > 1:  # It ended, was followed from the last result on, and ended again.
                raise Wrong(f"Lines of {results.path} are missing. Remove it and go on: all results come again.")


def _how_to_go_on(submission: Submission, results: ResultsFile) -> str:
    if submission.batch_id is None:
        return (
            "Interrupted; it is not known whether the batch was accepted. The same command goes on, and submits once."
        )
    return (
        f"Interrupted with {results.count:,} of {submission.asked.total:,} results in {results.path}.\n"
        f"The batch goes on. The same command fetches the rest.\n"
        f"To cancel it: agent-relay cancel --batch {submission.batch_id}"
    )
