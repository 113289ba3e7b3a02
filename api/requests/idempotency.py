"""`Idempotency-Key`: a POST that may be sent again, whatever the result of the one before.

A route that creates something takes `IdempotencyKey`, hands it to `shared/idempotency.py: keep` in the transaction that
creates, wraps that transaction in `once`, and on `Repeated` shows the earlier result, with the headers `REPLAYED`. A
route that reads its body itself takes `KeyHeader` instead and makes the key with `key_of`.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request

from agent_relay.api.problems import Refused
from agent_relay.api.requests.identity import Caller, Owner
from agent_relay.api.requests.validation import IDEMPOTENCY_KEY as HEADER
from agent_relay.api.server.root_path import canonical_path
from agent_relay.shared.errors import KeyInUse
from agent_relay.shared.idempotency import Key

REPLAYED_HEADER = "Idempotency-Replayed"
REPLAYED = {REPLAYED_HEADER: "true"}
"""The headers of a result that the same call created before."""

WAIT_SECONDS = 2.0
FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 0.25

_KEY = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?")

Created = TypeVar("Created")


async def _key_header(
    request: Request,
    _key: Annotated[
        str | None,
        Header(
            alias=HEADER,
            json_schema_extra={"pattern": f"^{_KEY.pattern}$"},
            description="Makes the call repeatable: the same key and body create once, and later copies are answered"
            " with what was created. At most 255 printable ASCII characters.",
        ),
    ] = None,
) -> str | None:
    given = request.headers.getlist(HEADER)
    if len(given) > 1:
        raise Refused(400, f"{HEADER} is repeated.")
    if given and not _KEY.fullmatch(given[0]):
        raise Refused(400, f"{HEADER} must be 1 to 255 printable ASCII characters.")
    return given[0] if given else None


KeyHeader = Annotated[str | None, Depends(_key_header)]
"""The header as it was given, and well-formed."""


def key_of(request: Request, caller: Owner, header: str | None, body_hash: bytes) -> Key | None:
    """Make the key of a call from its header and the SHA-256 of its body; None without the header."""
    if header is None:
        return None
    return Key(
        tenant=caller.tenant,
        user_id=caller.user_id,
        route=canonical_path(request),
        key=header,
        body_hash=body_hash,
        kept_seconds=request.app.state.settings.idempotency_retention_hours * 3600,
    )


async def _idempotency_key(request: Request, caller: Caller, header: KeyHeader) -> Key | None:
    body = b"" if header is None else await request.body()
    return key_of(request, caller, header, hashlib.sha256(body).digest())


IdempotencyKey = Annotated[Key | None, Depends(_idempotency_key)]
"""The key of a call whose body is JSON; None if the caller gave none."""


async def once(create: Callable[[], Awaitable[Created]]) -> Created:
    """Create, or wait a while for another call with the same key that is creating; no connection is held meanwhile.

    Raises:
        KeyInUse: the other call has not committed within two seconds.
        Repeated, KeyReused: as `keep`, which `create` calls.
    """
    loop = asyncio.get_running_loop()
    end, pause = loop.time() + WAIT_SECONDS, FIRST_PAUSE_SECONDS
    while True:
        try:
            return await create()
        except KeyInUse:
            if loop.time() >= end:
                raise
        await asyncio.sleep(min(pause * random.uniform(0.5, 1.5), max(end - loop.time(), 0)))  # noqa: S311
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
