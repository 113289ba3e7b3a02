"""`agent-relay keys`: make, list, rotate and revoke API keys in the database of `DATABASE_URL`.

API processes apply a change within a second. Operators can do the same over HTTP: see `api/routes/api_keys.py`.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared import api_keys, database
from agent_relay.shared.api_keys import KeyRow, NewApiKey, Scope
from agent_relay.shared.clock import now
from agent_relay.shared.errors import NotFound
from agent_relay.shared.plain_numbers import argument, decimal_number
from agent_relay.shared.settings import TENANT, Settings, read

PAGE = 1000


def _tenant(text: str) -> str:
    if not TENANT.fullmatch(text):
        raise argparse.ArgumentTypeError("a tenant is 1 to 63 of a-z, 0-9, - and _, and begins with a letter or digit")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="agent-relay keys", description=__doc__)
    verbs = parser.add_subparsers(required=True, dest="verb")
    create = verbs.add_parser("create", help="make a key and print it; it is not kept")
    create.add_argument("tenant", type=_tenant, help="the tenant that it belongs to")
    create.add_argument("--label", default="", help="what it is for, to find it again")
    create.add_argument(
        "--scope", action="append", type=Scope, choices=list(Scope), help="allow only this; repeat for more"
    )
    create.add_argument("--agent", action="append", help="allow only this agent to be asked; repeat for more")
    create.add_argument("--first", action="store_true", help="make none where there are keys, here or in API_KEYS")
    create.add_argument(
        "--days", type=argument(decimal_number, 0, 36_500), help="days until it expires; without it, it does not"
    )
    shown = verbs.add_parser("list", help="list the keys, newest first")
    shown.add_argument("tenant", nargs="?", type=_tenant, help="only those of this tenant")
    for verb, text in (("revoke", "make a key invalid within a second"), ("rotate", "make a successor of a key")):
        changed = verbs.add_parser(verb, help=text)
        changed.add_argument("id", type=UUID, help="the id that `list` shows")
        if verb == "rotate":
            changed.add_argument(
                "--overlap-hours",
                type=argument(decimal_number, 0, 8_760),
                default=24,
                help="how long the former key stays valid",
            )
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Execute a command line; `words` are its words, without the command's name."""
    arguments = _parser().parse_args(words)
    try:
        asyncio.run(_do(arguments))
    except NotFound as error:
        raise SystemExit(f"{error} `agent-relay keys list` shows the keys.") from None
    except (SQLAlchemyError, OSError) as error:
        raise SystemExit(f"The database of DATABASE_URL did not do it: {type(error).__name__}.") from None


async def _do(arguments: argparse.Namespace) -> None:
    settings = read(redis_url="redis://not-needed")
    async with _connected(settings) as engine:
        match arguments.verb:
            case "create" if arguments.first and await _has_keys(settings, engine):
                print("There are keys already; none was made.")  # noqa: T201
            case "create":
                expires_at = None if arguments.days is None else now() + timedelta(days=arguments.days)
                made = await api_keys.create(
                    engine,
                    arguments.tenant,
                    label=arguments.label,
                    scopes=arguments.scope,
                    agents=arguments.agent,
                    expires_at=expires_at,
                )
                _print_new(made)
            case "rotate":
                _print_new(await api_keys.rotate(engine, arguments.id, arguments.overlap_hours * 3600))
            case "revoke":
                print(_line(await api_keys.revoke(engine, arguments.id)))  # noqa: T201
            case _:
                await _list(engine, arguments.tenant)


async def _list(engine: AsyncEngine, tenant: str | None) -> None:
    place = (None, None)
    while rows := await api_keys.list_page(engine, tenant, place, PAGE):
        for row in rows:
            print(_line(row))  # noqa: T201
        place = (rows[-1].created_at, rows[-1].id)


def _print_new(made: NewApiKey) -> None:
    print(f"key (give it to its holder, it is not kept):  {made.key}")  # noqa: T201
    print(_line(made.row))  # noqa: T201


def _line(row: KeyRow) -> str:
    """Describe a key in one line."""
    state = "revoked" if row.revoked_at else "expired" if row.expires_at and row.expires_at <= now() else "valid"
    return (
        f"{row.id} {row.prefix}… {state} tenant={row.tenant} scopes={','.join(row.scopes or ['all'])}"
        f" agents={','.join(row.agents or ['all'])} created={row.created_at:%Y-%m-%d}"
        f" expires={f'{row.expires_at:%Y-%m-%d}' if row.expires_at else 'never'}"
        f" used={f'{row.last_used_at:%Y-%m-%dT%H:%M:%SZ}' if row.last_used_at else 'never'} label={row.label!r}"
    )


async def _has_keys(settings: Settings, engine: AsyncEngine) -> bool:
    """Return whether there is a key; a revoked one counts, too: its operator knows how to make another."""
    return bool(settings.api_keys or await api_keys.list_page(engine, None, (None, None), 1))


@asynccontextmanager
async def _connected(settings: Settings) -> AsyncGenerator[AsyncEngine]:
    engine = database.connect(settings)
    try:
        yield engine
    finally:
        await engine.dispose()


if __name__ == "__main__":
    main()
