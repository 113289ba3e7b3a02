"""Usage: the model that answered a run, and what erased runs had used, by day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

KEYS = ("tenant", "user_id", "agent_type", "model", "day")
COUNTS = ("requests", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "tool_calls")


def upgrade() -> None:
    op.add_column("runs", sa.Column("model", sa.Text(), nullable=True))
    op.create_table(
        "past_usage",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        *(sa.Column(name, sa.Numeric(), nullable=False) for name in ("runs", *COUNTS)),
        sa.Column("cost_usd", sa.Numeric(), nullable=True),
        sa.PrimaryKeyConstraint(*KEYS),
    )
    schema = op.get_bind().dialect.identifier_preparer.quote(op.get_bind().scalar(sa.text("SELECT current_schema()")))
    keys = ", ".join(KEYS)
    sums = ", ".join(f"coalesce(sum({_number(name)}), 0)" for name in COUNTS)
    grown = ", ".join(f"{name} = past.{name} + excluded.{name}" for name in ("runs", *COUNTS))
    op.execute(f"""
        CREATE FUNCTION keep_usage() RETURNS trigger LANGUAGE plpgsql
        SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
        BEGIN
            INSERT INTO past_usage AS past ({keys}, runs, {", ".join(COUNTS)}, cost_usd)
            SELECT tenant, user_id, agent_type, coalesce(model, ''), (finished_at AT TIME ZONE 'UTC')::date,
                count(*), {sums}, sum({_number("cost_usd")})
            FROM gone WHERE finished_at IS NOT NULL AND usage <> '{{}}'
            GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
            ON CONFLICT ({keys}) DO UPDATE SET {grown},
                cost_usd = coalesce(past.cost_usd + excluded.cost_usd, past.cost_usd, excluded.cost_usd);
            RETURN NULL;
        END $$
    """)  # noqa: S608  (constants)
    op.execute("REVOKE EXECUTE ON FUNCTION keep_usage() FROM PUBLIC")
    op.execute(
        "CREATE TRIGGER keep_usage AFTER DELETE ON runs REFERENCING OLD TABLE AS gone "
        "FOR EACH STATEMENT EXECUTE FUNCTION keep_usage()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER keep_usage ON runs")
    op.execute("DROP FUNCTION keep_usage()")
    op.drop_table("past_usage")
    op.drop_column("runs", "model")


def _number(name: str) -> str:
    """Read a count in SQL; what is no number counts as none."""
    return f"CASE jsonb_typeof(usage -> '{name}') WHEN 'number' THEN (usage ->> '{name}')::numeric END"
