"""Indexes of a user's runs and deliveries by status, and of dead letters by code: a page is read along one of them.

They are made while nothing is written: with many runs, migrate at a quiet time.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

COLUMNS = ["tenant", "user_id", "status", "created_at", "id"]
DEAD: dict[str, Any] = {"postgresql_where": sa.text("status = 'failed' AND requeued_as IS NULL")}


def upgrade() -> None:
    op.create_index("runs_of_a_user_in_a_status", "runs", COLUMNS)
    op.drop_index("runs_ended_badly_of_a_user", "runs")
    op.create_index("webhook_deliveries_of_a_user_in_a_status", "webhook_deliveries", COLUMNS)
    op.create_index("runs_dead_by_code", "runs", [sa.text("(error ->> 'code')"), "finished_at", "id"], **DEAD)
    op.drop_index("runs_dead", "runs")


def downgrade() -> None:
    op.create_index("runs_dead", "runs", ["finished_at", "id"], **DEAD)
    op.drop_index("runs_dead_by_code", "runs")
    op.drop_index("webhook_deliveries_of_a_user_in_a_status", "webhook_deliveries")
    op.create_index(
        "runs_ended_badly_of_a_user", "runs", COLUMNS, postgresql_where=sa.text("status IN ('failed', 'cancelled')")
    )
    op.drop_index("runs_of_a_user_in_a_status", "runs")
