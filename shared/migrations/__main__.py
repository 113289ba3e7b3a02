"""Bring the database of `DATABASE_URL` up to date; run it before the first start and after every upgrade.

Several at once are safe: they take turns.
"""

from shared.migrations.upgrade import upgrade
from shared.settings import read

if __name__ == "__main__":
    upgrade(read(redis_url="redis://not-needed").database_url)
