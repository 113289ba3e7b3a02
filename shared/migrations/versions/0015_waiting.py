"""Waiting: a run of an agent that waits for answers holds nothing but its row; what it waits for is kept beside it.

Three indexes of unfinished runs are made anew, so that they hold waiting runs, too: on a large table, migrate at a
quiet time.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

UNFINISHED = "status IN ('queued', 'running', 'waiting')"
FORMERLY = "status IN ('queued', 'running')"
INDEXES = {
    "runs_unfinished_of_a_user": ["status", "lane", "tenant", "user_id"],
    "runs_unfinished_in_a_thread": ["thread_id", "seq"],
    "runs_unfinished_in_a_batch": ["batch_id", "status", "due_at", "id"],
}

# See 0005 for why it is deferred. What waits is counted under the same lock, so that exactly one of those that come to
# wait, or end, sees that nothing else of the batch goes on.
COUNT = """
    CREATE OR REPLACE FUNCTION count_end_in_batch() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
    DECLARE
        batch batches%ROWTYPE;
        ends integer;
    BEGIN
        UPDATE batches
        SET succeeded = succeeded + CASE NEW.status WHEN 'succeeded' THEN 1 ELSE 0 END,
            failed = failed + CASE NEW.status WHEN 'failed' THEN 1 ELSE 0 END,
            cancelled = cancelled + CASE NEW.status WHEN 'cancelled' THEN 1 ELSE 0 END,
            waiting = waiting + CASE NEW.status WHEN 'waiting' THEN 1 ELSE 0 END
                - CASE OLD.status WHEN 'waiting' THEN 1 ELSE 0 END
        WHERE id = NEW.batch_id
        RETURNING * INTO batch;
        ends := batch.succeeded + batch.failed + batch.cancelled;
        IF NEW.finished_at IS NOT NULL THEN
            INSERT INTO batch_results (batch_id, place, run_id) VALUES (NEW.batch_id, ends, NEW.id);
            UPDATE batches
            SET status = CASE status WHEN 'cancelling' THEN 'cancelled' ELSE 'completed' END,
                finished_at = clock_timestamp()
            WHERE id = NEW.batch_id AND total = ends;
        END IF;
        IF OLD.status <> 'waiting' AND batch.waiting > 0 AND ends + batch.waiting = batch.total
           AND batch.webhook_url IS NOT NULL THEN
            INSERT INTO webhook_deliveries (id, tenant, user_id, type, resource_id, url, occurred_at)
            VALUES (gen_random_uuid(), batch.tenant, batch.user_id, 'batch.waiting', batch.id, batch.webhook_url,
                    clock_timestamp());
        END IF;
        RETURN NULL;
    END
    $$
"""

COUNT_FORMERLY = """
    CREATE OR REPLACE FUNCTION count_end_in_batch() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
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

ENDS = "OLD.finished_at IS NULL AND NEW.finished_at IS NOT NULL"
WAITS = "(OLD.status = 'waiting') <> (NEW.status = 'waiting')"

WRITE_DELIVERY = """
    CREATE OR REPLACE FUNCTION write_webhook_delivery() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
    BEGIN
        INSERT INTO webhook_deliveries (id, tenant, user_id, type, resource_id, url, occurred_at)
        VALUES (gen_random_uuid(), NEW.tenant, NEW.user_id, TG_ARGV[0] || '.' || NEW.status, NEW.id, NEW.webhook_url,
                {occurred_at});
        RETURN NULL;
    END
    $$
"""

WRITE_WAITING = """
    CREATE TRIGGER runs_write_webhook_delivery_of_waiting AFTER UPDATE ON runs FOR EACH ROW
    WHEN (NEW.webhook_url IS NOT NULL AND OLD.status <> 'waiting' AND NEW.status = 'waiting')
    EXECUTE FUNCTION write_webhook_delivery('run')
"""


def upgrade() -> None:
    op.add_column("runs", sa.Column("wait_seconds", sa.Float(), nullable=True))
    op.add_column("runs", sa.Column("waiting_since", sa.DateTime(timezone=True), nullable=True))
    op.add_column("runs", sa.Column("wait_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("runs", sa.Column("waited_seconds", sa.Float(), server_default=sa.text("0"), nullable=False))
    op.add_column("runs", sa.Column("wait_attempt", sa.Integer(), nullable=True))
    op.add_column("runs", sa.Column("wait_entry", sa.Integer(), nullable=True))
    op.add_column("batches", sa.Column("wait_seconds", sa.Float(), nullable=True))
    op.add_column("batches", sa.Column("waiting", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.create_table(
        "run_requests",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("tool_name", sa.Text(), nullable=False),
        sa.Column("args", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=True),
        sa.Column("schema", sa.Text(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("answered_by", sa.Text(), nullable=True),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("answer_entry", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "attempt", "place"),
    )
    op.create_index("runs_waiting", "runs", ["wait_until"], postgresql_where=sa.text("status = 'waiting'"))
    _index(UNFINISHED)
    op.execute(COUNT.format(schema=_schema()))
    _count_ends(f"{ENDS} OR {WAITS}")
    op.execute(WRITE_DELIVERY.format(schema=_schema(), occurred_at="coalesce(NEW.finished_at, now())"))
    op.execute(WRITE_WAITING)


def downgrade() -> None:
    op.execute("UPDATE runs SET status = 'queued', worker_id = NULL WHERE status = 'waiting'")
    op.execute("SET CONSTRAINTS ALL IMMEDIATE")  # What the statement before has queued belongs to the newer trigger.
    op.execute("DROP TRIGGER runs_write_webhook_delivery_of_waiting ON runs")
    op.execute(WRITE_DELIVERY.format(schema=_schema(), occurred_at="NEW.finished_at"))
    _count_ends(ENDS)
    op.execute(COUNT_FORMERLY.format(schema=_schema()))
    _index(FORMERLY)
    op.drop_index("runs_waiting", "runs")
    op.drop_table("run_requests")
    op.drop_column("batches", "waiting")
    op.drop_column("batches", "wait_seconds")
    for column in ("wait_entry", "wait_attempt", "waited_seconds", "wait_until", "waiting_since", "wait_seconds"):
        op.drop_column("runs", column)


def _index(unfinished: str) -> None:
    for name, columns in INDEXES.items():
        op.drop_index(name, "runs")
        where = f"batch_id IS NOT NULL AND {unfinished}" if columns[0] == "batch_id" else unfinished
        op.create_index(name, "runs", columns, postgresql_where=sa.text(where))


def _count_ends(when: str) -> None:
    op.execute("DROP TRIGGER runs_count_end_in_batch ON runs")
    op.execute(f"""
        CREATE CONSTRAINT TRIGGER runs_count_end_in_batch AFTER UPDATE ON runs
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
        WHEN (NEW.batch_id IS NOT NULL AND ({when}))
        EXECUTE FUNCTION count_end_in_batch()
    """)


def _schema() -> str:
    preparer = op.get_bind().dialect.identifier_preparer
    return preparer.quote(op.get_bind().scalar(sa.text("SELECT current_schema()")))
