"""Webhooks of batches: the trigger that writes the delivery of a run's end writes that of a batch's, too."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

WRITE_DELIVERIES = """
    CREATE TRIGGER batches_write_webhook_delivery AFTER UPDATE ON batches FOR EACH ROW
    WHEN (NEW.webhook_url IS NOT NULL AND OLD.finished_at IS NULL AND NEW.finished_at IS NOT NULL)
    EXECUTE FUNCTION write_webhook_delivery('batch')
"""


def upgrade() -> None:
    op.add_column("batches", sa.Column("webhook_url", sa.Text(), nullable=True))
    op.execute(WRITE_DELIVERIES)


def downgrade() -> None:
    op.execute("DROP TRIGGER batches_write_webhook_delivery ON batches")
    op.drop_column("batches", "webhook_url")
