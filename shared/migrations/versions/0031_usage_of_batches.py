"""Usage of batches: what a run has used is added to its batch by the trigger that counts its end.

What the batches that are there have used is summed once, while no run can end: with many of them, migrate at a quiet
time.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None

KINDS = (
    "requests",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "tool_calls",
    "cost_usd",
)

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
                - CASE OLD.status WHEN 'waiting' THEN 1 ELSE 0 END{usage}
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


def upgrade() -> None:
    op.execute("LOCK TABLE runs IN SHARE ROW EXCLUSIVE MODE")  # Ends that are under way are stored first.
    op.add_column("batches", sa.Column("usage", JSONB(), server_default=sa.text("'{}'"), nullable=False))
    sums = ", ".join(f"'{kind}', sum({_number('usage', kind)})" for kind in KINDS)
    op.execute(f"""
        UPDATE batches SET usage = used.usage
        FROM (
            SELECT batch_id, jsonb_strip_nulls(jsonb_build_object({sums})) AS usage FROM runs
            WHERE batch_id IS NOT NULL AND finished_at IS NOT NULL AND usage <> '{{}}' GROUP BY batch_id
        ) AS used
        WHERE batches.id = used.batch_id
    """)  # noqa: S608  (constants)
    grown = ", ".join(f"'{kind}', {_sum(kind)}" for kind in KINDS)
    usage = f""",
            usage = CASE WHEN NEW.finished_at IS NULL OR NEW.usage = '{{}}' THEN usage
                ELSE jsonb_strip_nulls(jsonb_build_object({grown})) END"""
    op.execute(COUNT.format(schema=_schema(), usage=usage))


def downgrade() -> None:
    op.execute(COUNT.format(schema=_schema(), usage=""))
    op.drop_column("batches", "usage")


def _number(usage: str, kind: str) -> str:
    """Read a count in SQL; what is no number counts as none."""
    return f"CASE jsonb_typeof({usage} -> '{kind}') WHEN 'number' THEN ({usage} ->> '{kind}')::numeric END"


def _sum(kind: str) -> str:
    """Add a count of a run to that of its batch; null where neither has any."""
    of_batch, of_run = _number("usage", kind), _number("NEW.usage", kind)
    return f"coalesce({of_batch} + {of_run}, {of_batch}, {of_run})"


def _schema() -> str:
    preparer = op.get_bind().dialect.identifier_preparer
    return preparer.quote(op.get_bind().scalar(sa.text("SELECT current_schema()")))
