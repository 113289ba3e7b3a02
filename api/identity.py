"""Who calls: a tenant, by the API key, and one of its users; or an operator, by a key of its own.

Nobody is believed without a header, nor with two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request

from api.problems import Refused
from api.tickets import Tickets
from shared.keys import holder_of

_KEY = "agent_relay.caller"
_OPERATOR = "agent_relay.operator"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


SECURITY_SCHEMES = {
    "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "A key of your tenant."},
    "UserId": {
        "type": "apiKey",
        "in": "header",
        "name": "X-User-ID",
        "description": "The UUID of your end user, whom threads and runs belong to.",
    },
}
"""How OpenAPI says it: both headers, on every call of a user's."""

OPERATOR_SCHEMES = {
    "OperatorKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "A key of an operator."},
}
"""The same of the calls of operators."""


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
    tenant = _holder(request, request.app.state.settings.api_keys)
    users = request.headers.getlist("X-User-ID")
    if len(users) != 1:
        raise Refused(400, "X-User-ID is repeated." if users else "X-User-ID is missing.")
    if not _UUID.fullmatch(users[0]):  # `UUID` takes more for one: braces, signs, dashes anywhere.
        raise Refused(400, "X-User-ID is not a UUID.")
    owner = Owner(tenant, UUID(users[0]))
    request.scope[_KEY] = owner
    return owner


def identify_operator(request: Request) -> None:
    """Read which operator calls.

    Raises:
        Refused: 401 without a valid key of an operator, as every key is where none is configured.
    """
    request.scope[_OPERATOR] = _holder(request, request.app.state.settings.operator_keys)


def _holder(request: Request, names_by_hash: Mapping[str, str]) -> str:
    keys = request.headers.getlist("X-API-Key")
    if len(keys) > 1:
        raise Refused(400, "X-API-Key is repeated.")
    name = holder_of(keys[0].encode("latin-1") if keys else b"", names_by_hash)
    if name is None:
        raise Refused(401, "A valid X-API-Key is needed.", headers={"WWW-Authenticate": "ApiKey"})
    return name


def identify_by_ticket(request: Request) -> None:
    """Read whose run the ticket in the query string is for; it opens that run's stream and nothing else.

    Raises:
        Refused: 401, the ticket is not valid for this run.
    """
    tickets: Tickets = request.app.state.parts.tickets
    owner = tickets.owner(request.query_params["ticket"], request.path_params["run_id"])
    request.scope[_KEY] = Owner(*owner)


def caller_of(request: Request) -> Owner | None:
    """Say which user was identified; None where an operator calls."""
    return request.scope.get(_KEY)


def _identified(request: Request) -> Owner:
    return request.scope[_KEY]


def _identified_operator(request: Request) -> str:
    return request.scope[_OPERATOR]


Caller = Annotated[Owner, Depends(_identified)]
"""The caller, whom `StrictRoute` identified before anything else was looked at."""

Operator = Annotated[str, Depends(_identified_operator)]
"""The name of the operator who calls, whom `OperatorRoute` identified."""
