"""Batches, and the trigger that counts a run of a batch where it ends, whichever statement ends it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# At the commit and not before: the row's lock, behind which all other ends of the batch wait, is held for nothing else.
# Whoever gets it next sees what was committed under it, so places become visible in their order and without holes.
COUNT_END = """
    CREATE FUNCTION count_end_in_batch() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        ends integer;
    BEGIN
        UPDATE batches
        SET succeeded = succeeded + CASE NEW.status WHEN 'succeeded' THEN 1 ELSE 0 END,
            failed = failed + CASE NEW.status WHEN 'failed' THEN 1 ELSE 0 END,
            cancelled = cancelled + CASE NEW.status WHEN 'cancelled' THEN 1 ELSE 0 END
        WHERE id = NEW.batch_id
        RETURNING succeeded + failed + cancelled INTO ends;
        INSERT INTO batch_results (batch_id, place, run_id) VALUES (NEW.batch_id, ends, NEW.id);
        UPDATE batches
        SET status = CASE status WHEN 'cancelling' THEN 'cancelled' ELSE 'completed' END,
            finished_at = clock_timestamp()
        WHERE id = NEW.batch_id AND total = ends;
        RETURN NULL;
    END
    $$
"""

COUNT_ENDS = """
    CREATE CONSTRAINT TRIGGER runs_count_end_in_batch AFTER UPDATE ON runs
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.batch_id IS NOT NULL AND OLD.finished_at IS NULL AND NEW.finished_at IS NOT NULL)
    EXECUTE FUNCTION count_end_in_batch()
"""

# A function, because the lock and the count must be two statements: the second sees what was committed before the lock.
# One call is one transaction, so that no client that hangs can hold the lock.
RELEASE = """
    CREATE FUNCTION release_in_batch(batch uuid) RETURNS SETOF runs LANGUAGE plpgsql AS $$
    DECLARE
        room integer;
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtextextended(batch::text, 0));
        SELECT max_running - (
            SELECT count(*) FROM runs
            WHERE batch_id = batch AND status IN ('queued', 'running') AND runs.due_at < batches.deadline_at
        ) INTO room
        FROM batches WHERE id = batch AND status = 'in_progress';
        RETURN QUERY UPDATE runs SET due_at = now(), ring = ring + 1, rung_at = now()
        WHERE id IN (
            SELECT id FROM runs
            WHERE batch_id = batch AND status = 'queued'
              AND due_at = (SELECT deadline_at FROM batches WHERE id = batch)
            ORDER BY id LIMIT greatest(0, coalesce(room, 0)) FOR UPDATE SKIP LOCKED
        )
        RETURNING *;
    END
    $$
"""


def upgrade() -> None:
    op.drop_index("runs_queued", table_name="runs")
    op.create_index(
        "runs_queued",
        "runs",
        ["pool", "lane", "created_at", "id"],
        unique=False,
        postgresql_where=sa.text("status = 'queued'"),
    )
    op.create_table(
        "batches",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("metadata", postgresql.JSONB(), nullable=False),
        sa.Column("retry_of", sa.Uuid(), nullable=True),
        sa.Column("max_running", sa.Integer(), nullable=True),
        sa.Column("run_seconds", sa.Float(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'in_progress'"), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("succeeded", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("cancelled", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_index("batches_of_a_user", "batches", ["tenant", "user_id", "created_at", "id"], unique=False)
    op.create_index(
        "batches_unfinished", "batches", ["created_at"], unique=False, postgresql_where=sa.text("finished_at IS NULL")
    )
    op.create_index(
        "batches_to_erase",
        "batches",
        ["finished_at"],
        unique=False,
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )
    op.create_table(
        "batch_results",
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("batch_id", "place"),
    )
    op.create_index(
        "runs_of_a_batch",
        "runs",
        ["batch_id", "created_at", "id"],
        unique=False,
        postgresql_where=sa.text("batch_id IS NOT NULL"),
    )
    op.create_index(
        "runs_unfinished_in_a_batch",
        "runs",
        ["batch_id", "status", "due_at", "id"],
        unique=False,
        postgresql_where=sa.text("batch_id IS NOT NULL AND status IN ('queued', 'running')"),
    )
    op.execute(COUNT_END)
    op.execute(COUNT_ENDS)
    op.execute(RELEASE)


def downgrade() -> None:
    op.execute("DROP FUNCTION release_in_batch")
    op.execute("DROP TRIGGER runs_count_end_in_batch ON runs")
    op.execute("DROP FUNCTION count_end_in_batch")
    op.drop_index("runs_unfinished_in_a_batch", table_name="runs")
    op.drop_index("runs_of_a_batch", table_name="runs")
    op.drop_table("batch_results")
    op.drop_table("batches")
    op.drop_index("runs_queued", table_name="runs")
    op.create_index(
        "runs_queued",
        "runs",
        ["pool", "lane", "created_at"],
        unique=False,
        postgresql_where=sa.text("status = 'queued'"),
    )
