"""Bring the database of `DATABASE_URL` up to date; run it before the first start and after every upgrade.

Several at once are safe: they take turns. After a stop signal it changes nothing, and ends with status 1.
"""

from agent_relay.shared.early_stop import exit_when_told

if __name__ == "__main__":
    exit_when_told(1)  # After a 0, a process that waits for the tables would go on.

import argparse
from collections.abc import Sequence

from sqlalchemy.exc import DBAPIError

from agent_relay.shared.migrations.grants import Roles
from agent_relay.shared.migrations.upgrade import upgrade
from agent_relay.shared.settings import read
from agent_relay.shared.startup_checks import refusal_of, unreachable


def main(words: Sequence[str] | None = None) -> None:
    """Upgrade, or say in a sentence why not; `words` are those of the command line, which takes none but `--help`."""
    argparse.ArgumentParser(prog="agent-relay migrate", description=__doc__).parse_args(words)
    settings = read(redis_url="redis://not-needed")
    try:
        print(upgrade(settings.database_url, roles=Roles.of(settings)))  # noqa: T201
    except DBAPIError as error:
        sentence = refusal_of(error.orig)
        if sentence is None and not error.connection_invalidated and error.statement is not None:
            raise
        raise SystemExit(sentence or unreachable(error.orig)) from None


if __name__ == "__main__":
    main()
