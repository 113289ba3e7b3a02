"""Bring the database of `DATABASE_URL` up to date; run it before the first start and after every upgrade.

Several at once are safe: they take turns. One that is told to stop changes nothing, and ends with status 1.
"""

from shared.stopping import exit_when_told

if __name__ == "__main__":
    exit_when_told(1)  # With 0, whoever waits for the tables would take them for made.

from sqlalchemy.exc import DBAPIError

from shared.migrations.upgrade import upgrade
from shared.settings import read
from shared.start import refusal_of, unreachable


def main() -> None:
    """Upgrade, or say in a sentence why not."""
    settings = read(redis_url="redis://not-needed")
    try:
        print(upgrade(settings.database_url))  # noqa: T201
    except DBAPIError as error:
        sentence = refusal_of(error.orig)
        if sentence is None and not error.connection_invalidated and error.statement is not None:
            raise
        raise SystemExit(sentence or unreachable(error.orig)) from None


if __name__ == "__main__":
    main()
