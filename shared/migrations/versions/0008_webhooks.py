"""Webhooks, and the trigger that writes a delivery where a run ends, whichever statement ends it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

PENDING = sa.text("status = 'pending'")

# For any table whose rows end; the argument is what the type of the event begins with.
WRITE_DELIVERY = """
    CREATE FUNCTION write_webhook_delivery() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO webhook_deliveries (id, tenant, user_id, type, resource_id, url, occurred_at)
        VALUES (gen_random_uuid(), NEW.tenant, NEW.user_id, TG_ARGV[0] || '.' || NEW.status, NEW.id, NEW.webhook_url,
                NEW.finished_at);
        RETURN NULL;
    END
    $$
"""

WRITE_DELIVERIES = """
    CREATE TRIGGER runs_write_webhook_delivery AFTER UPDATE ON runs FOR EACH ROW
    WHEN (NEW.webhook_url IS NOT NULL AND OLD.finished_at IS NULL AND NEW.finished_at IS NOT NULL)
    EXECUTE FUNCTION write_webhook_delivery('run')
"""


def upgrade() -> None:
    op.add_column("runs", sa.Column("webhook_url", sa.Text(), nullable=True))
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("step", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("response_status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    for name, columns, where in (
        ("due", ["due_at"], PENDING),
        ("due_of_a_tenant", ["tenant", "due_at"], PENDING),
        ("of_a_resource", ["resource_id"], PENDING),
        ("of_a_user", ["tenant", "user_id", "created_at", "id"], None),
        ("to_erase", ["created_at"], sa.text("status <> 'pending'")),
    ):
        op.create_index(
            f"webhook_deliveries_{name}", "webhook_deliveries", columns, unique=False, postgresql_where=where
        )
    op.create_table(
        "webhook_secrets",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "number"),
    )
    op.execute(WRITE_DELIVERY)
    op.execute(WRITE_DELIVERIES)


def downgrade() -> None:
    op.execute("DROP TRIGGER runs_write_webhook_delivery ON runs")
    op.execute("DROP FUNCTION write_webhook_delivery()")
    op.drop_table("webhook_secrets")
    op.drop_table("webhook_deliveries")
    op.drop_column("runs", "webhook_url")
