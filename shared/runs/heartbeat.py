"""Statements of the heartbeat: it stores and reads data of the runs that its worker holds.

A heartbeat has a thread and a connection of its own, so these are statements for psycopg, with its parameters.
"""

from __future__ import annotations

STORE_PARTIALS = """
    UPDATE runs
    SET partial_output = CASE WHEN held.with_text THEN held.text ELSE partial_output END,
        last_entry = CASE WHEN held.with_text THEN held.last_entry ELSE runs.last_entry END, usage = held.usage
    FROM (SELECT unnest(%(ids)s::uuid[]) AS id, unnest(%(attempts)s::int[]) AS attempt,
                 unnest(%(with_text)s::bool[]) AS with_text, unnest(%(texts)b::text[]) AS text,
                 unnest(%(last_entries)s::int[]) AS last_entry, unnest(%(usages)s::jsonb[]) AS usage) AS held
    WHERE runs.id = held.id AND runs.attempt = held.attempt AND runs.status = 'running'
"""
"""Texts go in binary form: escaping megabytes would keep the event loop from running for long."""

MARK_PUBLISHED = "UPDATE runs SET end_told = true WHERE id = ANY(%(ids)s)"

RUNS_OF_WORKER = """
    SELECT id, attempt, cancel_requested_at IS NOT NULL, last_message FROM runs
    WHERE worker_id = %(id)s AND status = 'running'
"""

RETURN_TO_QUEUE = """
    UPDATE runs SET status = 'queued', worker_id = NULL, begun = 'worker_stopping', ring = ring + 1, rung_at = now()
    WHERE worker_id = %(id)s AND status = 'running' AND cancel_requested_at IS NULL
    RETURNING id
"""
"""The runs that a stopping worker still holds, because it could not return them before; a sweeper enqueues them."""
