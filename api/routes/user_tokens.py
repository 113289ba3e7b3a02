"""Routes: tokens of users, made and revoked with an API key."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Response

from agent_relay.api.dependencies import ApiKeys, Database, Tokens
from agent_relay.api.problems import Refused, responses, unknown_agent
from agent_relay.api.requests.identity import Caller, shown_key
from agent_relay.api.requests.key_cache import MOST_REVOCATIONS
from agent_relay.api.requests.users import user_of
from agent_relay.api.requests.validation import TenantRoute
from agent_relay.api.schemas import LONGEST_USER_NAME, USER_NAME, NewUserToken, UserToken
from agent_relay.shared import user_tokens
from agent_relay.shared.errors import UnknownAgent

router = APIRouter(prefix="/user-tokens", tags=["user tokens"], route_class=TenantRoute)

FULL_RETRY_AFTER_SECONDS = 3600


@router.post(
    "",
    status_code=201,
    summary="Make a token of a user",
    response_description="The token, which is not kept.",
    responses=responses(404, 413, 415),
)
async def create_user_token(
    new: NewUserToken, tokens: Tokens, database: Database, caller: Caller, response: Response
) -> UserToken:
    """For a browser or an app: it acts as this user, allows no more than your key, and is void once that is."""
    user_id = user_of(caller.tenant, new.user_id)
    for agent_type in new.agent_types or ():
        if not caller.may_ask(agent_type):
            raise await unknown_agent(database, UnknownAgent(agent_type, caller.allowed_agents), "/agent_types")
    threads = None if new.threads is None else set(new.threads)
    begins_at = await user_tokens.time_to_begin(database, caller.tenant, user_id, threads or ())
    token = tokens.sign(
        shown_key(caller),
        user_id,
        begins_at,
        new.ttl_s,
        threads=threads,
        agents=new.agent_types,
        read_only=new.read_only,
    )
    response.headers["Cache-Control"] = "no-store"
    return UserToken(token=token, expires_at=begins_at + timedelta(seconds=new.ttl_s))


@router.delete(
    "",
    status_code=204,
    summary="Revoke the tokens of a user",
    response_description="They are revoked.",
    responses=responses(),
)
async def revoke_user_tokens(
    database: Database,
    keys: ApiKeys,
    caller: Caller,
    user: Annotated[
        str,
        Query(
            alias="user_id",
            pattern=f"^{USER_NAME}$",
            max_length=LONGEST_USER_NAME,
            description="The user, in the form of `X-User-ID`.",
        ),
    ],
) -> None:
    """All that were made until now, with any key: within a second they open nothing, and their streams end."""
    user_id = user_of(caller.tenant, user)
    if not keys.has_room(caller.tenant, user_id):
        detail = f"The limit of users of this tenant whose tokens were revoked lately ({MOST_REVOCATIONS}) is reached."
        raise Refused(429, detail, headers={"Retry-After": str(FULL_RETRY_AFTER_SECONDS)})
    await user_tokens.revoke(database, caller.tenant, user_id)
