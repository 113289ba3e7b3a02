"""Run Alembic from code: one place knows where the migrations lie."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

_LOCK = 7_270_201  # Any constant: whoever upgrades this database takes the same advisory lock.


def upgrade(database_url: str, revision: str = "head") -> None:
    """Upgrade the database to `revision`, one process at a time."""
    engine = create_engine(database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
