"""Identity of the caller: a tenant, by the API key, and one of its users; or an operator, by a key of its own.

A key comes in `X-API-Key` or as `Authorization: Bearer`; so does a token, which identifies one user. A request without
one of them is refused, and so is one with two.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from sqlalchemy import text

from agent_relay.api.problems import CHALLENGE, Refused, unavailable
from agent_relay.api.requests.identity_provider import ProviderAway
from agent_relay.api.requests.key_cache import KeysUnknown
from agent_relay.api.requests.tickets import refused
from agent_relay.api.requests.user_tokens import LONGEST_TOKEN, Token, not_of_threads
from agent_relay.api.requests.users import user_of
from agent_relay.api.schemas import LONGEST_USER_NAME
from agent_relay.shared.api_keys import ApiKey, Scope
from agent_relay.shared.errors import NotFound
from agent_relay.shared.fair_turns import CALLER
from agent_relay.shared.key_format import hash_key

_KEY = "agent_relay.caller"
_OPERATOR = "agent_relay.operator"
_OWNER = text("SELECT tenant, user_id FROM runs WHERE id = :id")
_DOTS_IN_TOKEN = 2
_BEARER = re.compile(r"bearer(?:[ ]+(.*))?", re.IGNORECASE | re.ASCII | re.DOTALL)
"""Other schemes are none of ours: a proxy in front may ask for one of its own."""

SECURITY_SCHEMES = {
    "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "A key of your tenant."},
    "Bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "The same key, as `Authorization: Bearer`; or a token of a user, of this service or of the"
        " identity provider that it trusts.",
    },
    "UserId": {
        "type": "apiKey",
        "in": "header",
        "name": "X-User-ID",
        "description": "Your end user, whom threads and runs belong to: a UUID, or any text of 1 to 128 printable ASCII"
        " characters, which stands for one UUID of your tenant.",
    },
}
"""OpenAPI's description of the ways to identify a caller."""
WAYS_OF_USERS = (("ApiKey", "UserId"), ("Bearer", "UserId"), ("Bearer",))
"""The schemes that go together, on every call of a user's. A bearer key without a user acts as the key's own."""

OPERATOR_SCHEMES = {
    "OperatorKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "A key of an operator."},
    "OperatorBearer": {"type": "http", "scheme": "bearer", "description": "The same key, as `Authorization: Bearer`."},
}
WAYS_OF_TENANTS = (("ApiKey",), ("Bearer",))
"""The same of calls that need no user."""
WAYS_OF_OPERATORS = (("OperatorKey",), ("OperatorBearer",))
"""The same of the calls of operators."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom threads and runs belong to."""

    tenant: str
    user_id: UUID
    key: ApiKey | None = field(default=None, compare=False)
    """The key of the request, or the key with which its token was made, narrowed to the rights of the token; None if no
    key was needed."""
    token: Token | None = field(default=None, compare=False)
    """The token that was shown."""

    @property
    def allowed_agents(self) -> frozenset[str] | None:
        """The agents that may be asked with the key that was shown; None for all."""
        return None if self.key is None else self.key.agents

    def may_ask(self, agent_type: str) -> bool:
        """Say whether an agent may be asked with the key that was shown."""
        return self.allowed_agents is None or agent_type in self.allowed_agents

    @property
    def threads(self) -> list[UUID] | None:
        """The only threads that exist for this caller; None for all of the user."""
        return None if self.token is None or self.token.threads is None else list(self.token.threads)

    def check_thread(self, thread_id: UUID | None) -> None:
        """See that this caller may ask in a thread, or without one.

        Raises:
            NotFound: the thread does not exist for a token.
            Refused: 403, a token is restricted to some threads, and none is named.
        """
        if self.token is None or self.token.threads is None:
            return
        if thread_id is None:
            raise not_of_threads()
        if thread_id not in self.token.threads:
            raise NotFound("thread")


async def identify(request: Request, scopes: Collection[Scope], *, needs_user: bool = True) -> None:
    """Identify the caller, by a key that has one of these scopes, or by a session or a token that was made with one.

    If no user is needed, a key without a user acts as its own, and a session is not accepted.

    Raises:
        Refused: 401 without a valid key or token, 403 with one that lacks the scope or with a session that another site
            uses, 400 without exactly one user.
    """
    owner = (_in_session(request) if needs_user else None) or await _by_headers(request, needs_user=needs_user)
    if not shown_key(owner).allows(scopes):
        wanted = " or ".join(f"`{scope}`" for scope in scopes)
        sentence = f"This key lacks the scope {wanted}." if wanted else "This call needs a key without scopes."
        raise Refused(403, sentence, code="scope_missing")
    _note(request, owner)


def _in_session(request: Request) -> Owner | None:
    """Identify the user who is signed in; the headers win over a session.

    Raises:
        Refused: 403, another site uses the session; 503, the keys are not known yet.
    """
    if _shown(request) is not None or "X-User-ID" in request.headers or not request.app.state.settings.pages:
        return None
    try:
        session = request.app.state.sessions.read(request)
    except KeysUnknown:
        raise _keys_unknown() from None
    return session and Owner(session.key.tenant, session.user_id, session.key)


async def _by_headers(request: Request, *, needs_user: bool) -> Owner:
    """Identify the caller by the headers.

    Raises:
        Refused: 401, key or token is not valid; 400, there are two, or not exactly one user; 503, the keys are not
            known yet.
    """
    shown = _shown(request)
    try:
        key = None if shown is None else request.app.state.keys.find(shown.secret)
        owner = await _by_token(request, shown) if shown is not None and key is None else None
    except KeysUnknown:
        raise _keys_unknown() from None
    except ProviderAway:
        raise unavailable("The keys of the identity provider cannot be read now.") from None
    if owner is not None:
        return owner
    if shown is None or key is None:
        raise _no_key()
    user_id = _user(request, key.tenant)
    if user_id is None and needs_user and not shown.as_bearer:
        raise Refused(400, "X-User-ID is missing.")
    return Owner(key.tenant, user_id or key.own_user, key)


async def _by_token(request: Request, shown: _Shown) -> Owner | None:
    """Identify the user of the request's token; None if the token is not valid.

    Raises:
        Refused: 400, X-User-ID names another user; or two.
        KeysUnknown: the keys have not been read yet.
        ProviderAway: it may be one of the identity provider, which cannot be reached.
    """
    if not shown.as_bearer or len(shown.secret) > LONGEST_TOKEN or shown.secret.count(b".") != _DOTS_IN_TOKEN:
        return None
    state, token = request.app.state, shown.secret.decode("latin-1")
    read = state.user_tokens.read(token)
    if read is None and state.identity_provider is not None:
        read = await state.identity_provider.read(token)
    if read is None:
        return None
    key, user_id, limits = read
    if _user(request, key.tenant) not in {None, user_id}:
        raise Refused(400, "X-User-ID names another user than the token; leave it out.")
    return Owner(key.tenant, user_id, key, limits)


def _user(request: Request, tenant: str) -> UUID | None:
    """Read which user the request names; None where it names none.

    Raises:
        Refused: 400, it names two, or none that can be.
    """
    users = request.headers.getlist("X-User-ID")
    if not users:
        return None
    if len(users) > 1:
        raise Refused(400, "X-User-ID is repeated.")
    try:
        return user_of(tenant, users[0])
    except ValueError:
        raise Refused(400, f"X-User-ID is not 1 to {LONGEST_USER_NAME} printable ASCII characters.") from None


def identify_operator(request: Request) -> None:
    """Read which operator calls, with a key or with a session that was begun with one.

    Raises:
        Refused: 401 without a valid key of an operator, as every key is where none is configured; 403, another site
            uses the session; 503, it cannot be read yet.
    """
    settings = request.app.state.settings
    shown = _shown(request)
    if shown is not None:
        name = settings.operator_keys.get(hash_key(shown.secret))
    elif not settings.pages:
        name = None
    else:
        try:
            session = request.app.state.sessions.read_operator(request)
        except KeysUnknown:
            raise _keys_unknown() from None
        name = session and session.name
    if name is None:
        raise _no_key()
    request.scope[_OPERATOR] = name


@dataclass(frozen=True, slots=True)
class _Shown:
    """The credentials of a request."""

    secret: bytes
    as_bearer: bool


def _shown(request: Request) -> _Shown | None:
    """Read the key that the request shows; None where it shows none.

    Raises:
        Refused: 400, there are two.
    """
    keys, authorizations = request.headers.getlist("X-API-Key"), request.headers.getlist("Authorization")
    for name, values in (("X-API-Key", keys), ("Authorization", authorizations)):
        if len(values) > 1:
            raise Refused(400, f"{name} is repeated.")
    bearer = _BEARER.fullmatch(authorizations[0]) if authorizations else None
    if bearer is None:
        return _Shown(keys[0].encode("latin-1"), as_bearer=False) if keys else None
    if keys:
        raise Refused(400, "X-API-Key and Authorization: Bearer are both there; send one of them.")
    return _Shown((bearer[1] or "").encode("latin-1"), as_bearer=True)


def _keys_unknown() -> Refused:
    return unavailable("The API keys have not been read from the database yet.")


def _no_key() -> Refused:
    return Refused(401, "A valid key or token is needed, in X-API-Key or as Authorization: Bearer.", headers=CHALLENGE)


async def identify_by_ticket(request: Request) -> None:
    """Identify the user by the ticket in the query string; it opens that run's stream and nothing else.

    Raises:
        Refused: 401, the ticket is not valid for this run; 503, the keys are not known yet.
    """
    tickets, keys = request.app.state.tickets, request.app.state.keys
    try:
        run_id = UUID(request.path_params["run_id"])
        reference, token = tickets.read(request.query_params["ticket"], run_id)
    except KeysUnknown:
        raise _keys_unknown() from None
    except ValueError:
        raise refused() from None
    async with request.app.state.database.connect() as connection:
        run = (await connection.execute(_OWNER, {"id": run_id})).one_or_none()
    if run is None:
        raise refused()
    try:
        key = keys.find_by_reference(reference, run.tenant)
        is_void = token is not None and keys.is_void(run.tenant, run.user_id, token.issued_at)
    except KeysUnknown:
        raise _keys_unknown() from None
    if key is None or key.tenant != run.tenant or is_void:
        raise refused()
    _note(request, Owner(run.tenant, run.user_id, key, token))


def _note(request: Request, owner: Owner) -> None:
    request.scope[_KEY] = owner
    CALLER.set((owner.tenant, str(owner.user_id)))


def caller_of(request: Request) -> Owner | None:
    """Say which user was identified; None where an operator calls."""
    return request.scope.get(_KEY)


def shown_key(caller: Owner) -> ApiKey:
    """Return the key that a caller has shown."""
    assert caller.key is not None, "the caller was not identified by a request"  # noqa: S101
    return caller.key


async def _identified(request: Request) -> Owner:
    return request.scope[_KEY]


async def _identified_operator(request: Request) -> str:
    return request.scope[_OPERATOR]


Caller = Annotated[Owner, Depends(_identified)]
"""The caller, whom `StrictRoute` identified before all other checks."""

Operator = Annotated[str, Depends(_identified_operator)]
"""The name of the operator, whom `OperatorRoute` identified."""
