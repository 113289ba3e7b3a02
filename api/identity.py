"""Who calls: a tenant, by the API key, and one of its users. Neither is believed without its header, nor with two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Header, Request, Security
from fastapi.security import APIKeyHeader

from api.problems import Refused
from shared.keys import tenant_of

_KEY = "agent_relay.caller"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom threads and runs belong to."""

    tenant: str
    user_id: UUID


def identify(request: Request) -> Owner:
    """Read who calls.

    Raises:
        Refused: 401 without a valid key, 400 without exactly one user.
    """
    keys = request.headers.getlist("X-API-Key")
    if len(keys) > 1:
        raise Refused(400, "X-API-Key is repeated.")
    key = keys[0].encode("latin-1") if keys else b""
    tenant = tenant_of(key, request.app.state.settings.api_keys)
    if tenant is None:
        raise Refused(401, "A valid X-API-Key is needed.", headers={"WWW-Authenticate": "ApiKey"})
    users = request.headers.getlist("X-User-ID")
    if len(users) != 1:
        raise Refused(400, "X-User-ID is repeated." if users else "X-User-ID is missing.")
    try:
        user_id = UUID(users[0])
    except ValueError:
        raise Refused(400, "X-User-ID is not a UUID.") from None
    owner = Owner(tenant, user_id)
    request.scope[_KEY] = owner
    return owner


def _identified(
    request: Request,
    _key: Annotated[
        str | None, Security(APIKeyHeader(name="X-API-Key", description="A key of your tenant.", auto_error=False))
    ],
    _user: Annotated[
        str | None,
        Header(alias="X-User-ID", description="The UUID of the end user.", json_schema_extra={"format": "uuid"}),
    ] = None,
) -> Owner:
    return request.scope[_KEY]


Caller = Annotated[Owner, Depends(_identified)]
"""The caller, whom `StrictRoute` identified before anything else was looked at."""
