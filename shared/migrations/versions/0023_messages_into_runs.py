"""Messages into runs: stored beside the run, and queued as runs of their own by its end where it has not taken them in.

Messages of a thread get a second number, for those that come while a run is under way. Transcripts say which attempt
wrote them, and agents what may be shown of their tool calls. The order of messages gets a new index: with many of them,
migrate at a quiet time.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSON

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

# Whatever statement ends a run, what it has not taken in is queued in the same transaction. The place in the thread was
# taken as the message was stored: the row of the thread, which is locked before those of its runs, is only read here.
ENQUEUE = """
    CREATE FUNCTION enqueue_messages() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
    DECLARE
        taken_in integer;
    BEGIN
        IF NOT EXISTS (SELECT FROM threads WHERE id = NEW.thread_id AND deleted_at IS NULL) THEN
            RETURN NULL;
        END IF;
        SELECT greatest(NEW.heard, max(heard)) INTO taken_in FROM run_steps WHERE run_id = NEW.id;
        INSERT INTO runs (id, tenant, user_id, thread_id, seq, agent_type, pool, text_output, query, metadata,
                          webhook_url, wait_seconds, user_message_id, message_id, deadline_at)
        SELECT next_run_id, NEW.tenant, NEW.user_id, NEW.thread_id, seq, NEW.agent_type, NEW.pool, NEW.text_output,
               query, metadata, webhook_url, wait_seconds, id, next_message_id,
               now() + make_interval(secs => deadline_seconds)
        FROM run_messages WHERE run_id = NEW.id AND place > taken_in;
        UPDATE messages
        SET run_id = next_run_id, position = 2 * seq, place = 0,
            metadata = messages.metadata || jsonb_build_object('run_id', next_run_id)
        FROM run_messages
        WHERE run_messages.run_id = NEW.id AND run_messages.place > taken_in AND messages.id = run_messages.id;
        RETURN NULL;
    END
    $$
"""

TRIGGER = """
    CREATE TRIGGER runs_enqueue_messages AFTER UPDATE ON runs FOR EACH ROW
    WHEN (NEW.last_message > NEW.heard AND OLD.finished_at IS NULL AND NEW.finished_at IS NOT NULL
          AND NEW.thread_id IS NOT NULL AND NOT NEW.rolled_back)
    EXECUTE FUNCTION enqueue_messages()
"""


def upgrade() -> None:
    op.add_column("runs", sa.Column("last_message", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("runs", sa.Column("heard", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("run_steps", sa.Column("heard", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("transcripts", sa.Column("attempt", sa.Integer(), nullable=True))
    op.add_column("agents", sa.Column("tool_events", sa.Text(), nullable=True))
    op.add_column("messages", sa.Column("place", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.drop_constraint("messages_in_a_thread", "messages")
    op.create_unique_constraint("messages_in_a_thread", "messages", ["thread_id", "position", "place"])
    op.create_table(
        "run_messages",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("metadata", JSON(), nullable=False),
        sa.Column("webhook_url", sa.Text(), nullable=True),
        sa.Column("wait_seconds", sa.Float(), nullable=True),
        sa.Column("deadline_seconds", sa.Float(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("next_run_id", sa.Uuid(), nullable=False),
        sa.Column("next_message_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("run_id", "place", name="messages_into_a_run"),
    )
    op.execute(ENQUEUE.format(schema=_schema()))
    op.execute(TRIGGER)


def downgrade() -> None:
    op.execute("DROP TRIGGER runs_enqueue_messages ON runs")
    op.execute("DROP FUNCTION enqueue_messages()")
    op.drop_table("run_messages")
    op.execute("DELETE FROM messages WHERE place > 0")
    op.drop_constraint("messages_in_a_thread", "messages")
    op.create_unique_constraint("messages_in_a_thread", "messages", ["thread_id", "position"])
    op.drop_column("messages", "place")
    op.drop_column("agents", "tool_events")
    op.drop_column("transcripts", "attempt")
    op.drop_column("run_steps", "heard")
    op.drop_column("runs", "heard")
    op.drop_column("runs", "last_message")


def _schema() -> str:
    preparer = op.get_bind().dialect.identifier_preparer
    return preparer.quote(op.get_bind().scalar(sa.text("SELECT current_schema()")))
