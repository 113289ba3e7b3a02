"""Alembic's entry: run the migrations on the connection that `upgrade` opened."""

from alembic import context

# Another schema on the search path may have a version table, of another program.
attributes = context.config.attributes
context.configure(connection=attributes["connection"], version_table_schema=attributes["schema"])
with context.begin_transaction():
    context.run_migrations()
