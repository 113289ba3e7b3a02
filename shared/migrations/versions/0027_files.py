"""Files, and the attachments of queries that refer to them.

The bytes of a file are stored once for each tenant, in pieces, and go with the last file that has them. A file that a
run uses is kept; triggers note which do, whatever statement stores the run.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
ATTACHED_TO = ("runs", "run_messages", "messages")

# A file locks its content before it looks for others: of two that go at once, the later one sees the first gone.
FORGET_CONTENT = """
    CREATE FUNCTION forget_content() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
    BEGIN
        PERFORM FROM file_contents WHERE id = OLD.content_id FOR UPDATE;
        DELETE FROM file_contents
        WHERE id = OLD.content_id AND NOT EXISTS (SELECT FROM files WHERE content_id = OLD.content_id);
        RETURN NULL;
    END
    $$
"""

NOTE_USE = """
    CREATE FUNCTION note_file_use() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
    BEGIN
        IF TG_OP = 'INSERT' THEN
            UPDATE files SET in_use = true WHERE id = NEW.file_id AND NOT in_use;
        ELSE
            PERFORM FROM files WHERE id = OLD.file_id FOR UPDATE;
            UPDATE files SET in_use = false
            WHERE id = OLD.file_id AND NOT EXISTS (SELECT FROM file_uses WHERE file_id = OLD.file_id);
        END IF;
        RETURN NULL;
    END
    $$
"""

NOTE_ATTACHMENTS = """
    CREATE FUNCTION note_attachments() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
    BEGIN
        INSERT INTO file_uses (file_id, run_id)
        SELECT files.id, CASE TG_TABLE_NAME WHEN 'runs' THEN NEW.id
                         ELSE CAST(to_jsonb(NEW) ->> 'run_id' AS uuid) END
        FROM jsonb_array_elements(NEW.attachments) AS attached
        JOIN files ON files.id = CAST(attached ->> 'file_id' AS uuid)
        ON CONFLICT DO NOTHING;
        RETURN NULL;
    END
    $$
"""

# As in 0023, with the attachments of the message.
ENQUEUE = """
    CREATE OR REPLACE FUNCTION enqueue_messages() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
    DECLARE
        taken_in integer;
    BEGIN
        IF NOT EXISTS (SELECT FROM threads WHERE id = NEW.thread_id AND deleted_at IS NULL) THEN
            RETURN NULL;
        END IF;
        SELECT greatest(NEW.heard, max(heard)) INTO taken_in FROM run_steps WHERE run_id = NEW.id;
        INSERT INTO runs (id, tenant, user_id, thread_id, seq, agent_type, pool, text_output, query, metadata,{column}
                          webhook_url, wait_seconds, user_message_id, message_id, deadline_at)
        SELECT next_run_id, NEW.tenant, NEW.user_id, NEW.thread_id, seq, NEW.agent_type, NEW.pool, NEW.text_output,
               query, metadata,{column} webhook_url, wait_seconds, id, next_message_id,
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


def upgrade() -> None:
    op.create_table(
        "file_contents",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("tenant", "sha256", name="one_content_a_hash"),
    )
    op.create_table(
        "file_chunks",
        sa.Column("content_id", sa.Uuid(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["content_id"], ["file_contents.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("content_id", "place"),
    )
    op.execute("ALTER TABLE file_chunks ALTER COLUMN data SET STORAGE EXTERNAL")  # Most files are compressed already.
    op.create_table(
        "files",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=True),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("content_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("in_use", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.ForeignKeyConstraint(["content_id"], ["file_contents.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("files_of_a_user", "files", ["tenant", "user_id", "created_at", "id"], postgresql_include=["bytes"])
    op.create_index("files_of_a_content", "files", ["content_id"])
    op.create_index("files_to_erase", "files", ["expires_at"], postgresql_where=sa.text("NOT in_use"))
    op.create_table(
        "file_uses",
        sa.Column("file_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "file_id"),
    )
    op.create_index("uses_of_a_file", "file_uses", ["file_id"])
    for table in ATTACHED_TO:
        op.add_column(table, sa.Column("attachments", JSONB(), nullable=True))
    op.add_column("agents", sa.Column("attachments", JSONB(), nullable=True))
    op.add_column("agents", sa.Column("waiting", sa.Boolean(), nullable=True))
    schema = _schema()
    for function in (FORGET_CONTENT, NOTE_USE, NOTE_ATTACHMENTS):
        op.execute(function.format(schema=schema))
    op.execute(ENQUEUE.format(schema=schema, column=" attachments,"))
    op.execute(
        "CREATE TRIGGER files_forget_content AFTER DELETE ON files FOR EACH ROW EXECUTE FUNCTION forget_content()"
    )
    op.execute(
        "CREATE TRIGGER file_uses_note AFTER INSERT OR DELETE ON file_uses FOR EACH ROW"
        " EXECUTE FUNCTION note_file_use()"
    )
    for table in ("runs", "run_messages"):
        op.execute(
            f"CREATE TRIGGER {table}_note_attachments AFTER INSERT ON {table} FOR EACH ROW"
            " WHEN (NEW.attachments IS NOT NULL) EXECUTE FUNCTION note_attachments()"
        )


def downgrade() -> None:
    for table in ("runs", "run_messages"):
        op.execute(f"DROP TRIGGER {table}_note_attachments ON {table}")
    op.execute("DROP TABLE file_uses, files, file_chunks, file_contents")
    for function in ("forget_content", "note_file_use", "note_attachments"):
        op.execute(f"DROP FUNCTION {function}()")
    op.execute(ENQUEUE.format(schema=_schema(), column=""))
    op.drop_column("agents", "waiting")
    op.drop_column("agents", "attachments")
    for table in ATTACHED_TO:
        op.drop_column(table, "attachments")


def _schema() -> str:
    preparer = op.get_bind().dialect.identifier_preparer
    return preparer.quote(op.get_bind().scalar(sa.text("SELECT current_schema()")))
