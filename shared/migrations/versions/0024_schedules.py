"""Schedules: queries that are asked again and again; a tick has one run."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSON

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("key_reference", sa.LargeBinary(), nullable=True),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("thread_id", sa.Uuid(), nullable=True),
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("multitask_strategy", sa.Text(), nullable=True),
        sa.Column("metadata", JSON(), nullable=False),
        sa.Column("deadline_seconds", sa.Float(), nullable=True),
        sa.Column("wait_seconds", sa.Float(), nullable=True),
        sa.Column("webhook_url", sa.Text(), nullable=True),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("next_times", ARRAY(TIME), nullable=False),
        sa.Column("due_at", TIME, nullable=True),
        sa.Column("last_run_id", sa.Uuid(), nullable=True),
        sa.Column("failed_ticks", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("error", JSON(), nullable=True),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["thread_id"], ["threads.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("schedules_due", "schedules", ["due_at"], postgresql_where=sa.text("due_at IS NOT NULL"))
    op.create_index("schedules_of_a_user", "schedules", ["tenant", "user_id", "created_at", "id"])
    op.create_index(
        "schedules_of_a_thread", "schedules", ["thread_id"], postgresql_where=sa.text("thread_id IS NOT NULL")
    )
    op.add_column("runs", sa.Column("schedule_id", sa.Uuid(), nullable=True))
    op.create_index(
        "one_run_a_tick",
        "runs",
        ["schedule_id", "start_at"],
        unique=True,
        postgresql_where=sa.text("schedule_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("one_run_a_tick", "runs")
    op.drop_column("runs", "schedule_id")
    op.drop_table("schedules")
