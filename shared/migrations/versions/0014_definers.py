"""What triggers write needs no right of the role under which a run or batch ends: they write as the tables' owner."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

FUNCTIONS = ("count_end_in_batch", "write_webhook_delivery")


def upgrade() -> None:
    preparer = op.get_bind().dialect.identifier_preparer
    schema = preparer.quote(op.get_bind().scalar(sa.text("SELECT current_schema()")))
    for function in FUNCTIONS:
        # Without a fixed path, the role could put a table of its own in the place of ours; pg_temp last, for the same.
        op.execute(f"ALTER FUNCTION {function}() SECURITY DEFINER SET search_path = {schema}, pg_temp")
        op.execute(f"REVOKE EXECUTE ON FUNCTION {function}() FROM PUBLIC")


def downgrade() -> None:
    for function in FUNCTIONS:
        op.execute(f"GRANT EXECUTE ON FUNCTION {function}() TO PUBLIC")
        op.execute(f"ALTER FUNCTION {function}() SECURITY INVOKER RESET search_path")
