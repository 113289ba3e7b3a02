"""Routes for operators: API keys of all tenants, made, listed, rotated and revoked while the service runs."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from agent_relay.api.dependencies import Database
from agent_relay.api.problems import operator_responses
from agent_relay.api.requests.identity import Operator
from agent_relay.api.requests.pagination import Cursor, Limit, Page, Rows
from agent_relay.api.requests.validation import OperatorRoute
from agent_relay.api.schemas import ApiKey, CreatedApiKey, KeyId, NewApiKey, Rotation, Tenant
from agent_relay.shared import api_keys

log = logging.getLogger(__name__)

router = APIRouter(prefix="/operator/keys", tags=["operator"], route_class=OperatorRoute)


@router.post(
    "",
    status_code=201,
    summary="Make an API key",
    response_description="The key, shown this once.",
    responses=operator_responses(413, 415),
)
async def create_key(new: NewApiKey, database: Database, operator: Operator, response: Response) -> CreatedApiKey:
    """It is valid in every process within a second."""
    made = await api_keys.create(
        database,
        new.tenant,
        label=new.label,
        scopes=new.scopes,
        agents=new.agents,
        expires_at=new.expires_at,
    )
    return _created(made, operator, response)


@router.get("", summary="List API keys", response_description="A page of keys.", responses=operator_responses())
async def list_keys(
    database: Database,
    _operator: Operator,
    cursor: Cursor,
    tenant: Annotated[Tenant | None, Query(description="Only those of this tenant.")] = None,
    limit: Limit = 20,
) -> Page[ApiKey]:
    """The keys in the database, newest first, valid or not. Those of `API_KEYS` are not among them."""
    at, key_id = cursor.read(datetime.fromisoformat, UUID)
    rows = await api_keys.list_page(database, tenant, (at, key_id), limit + 1)
    return cursor.page(Rows(rows), limit, _shown, lambda row: [row.created_at.isoformat(), row.id])


@router.post(
    "/{key_id}/rotate",
    status_code=201,
    summary="Replace an API key",
    response_description="The new key, shown this once.",
    responses=operator_responses(404, 413, 415),
)
async def rotate_key(
    key_id: KeyId, rotation: Rotation, database: Database, operator: Operator, response: Response
) -> CreatedApiKey:
    """A new key that may do the same. The former one stays valid for `overlap_hours`."""
    made = await api_keys.rotate(database, key_id, rotation.overlap_hours * 3600)
    return _created(made, operator, response)


@router.delete(
    "/{key_id}", summary="Revoke an API key", response_description="The key.", responses=operator_responses(404)
)
async def revoke_key(key_id: KeyId, database: Database, operator: Operator) -> ApiKey:
    """Within a second it opens nothing, in any process; streams that it opened end without `done`."""
    row = await api_keys.revoke(database, key_id)
    log.info("keys.revoked key=%s tenant=%s operator=%s", row.id, row.tenant, operator)
    return _shown(row)


def _created(made: api_keys.NewApiKey, operator: str, response: Response) -> CreatedApiKey:
    log.info("keys.created key=%s tenant=%s operator=%s", made.row.id, made.row.tenant, operator)
    response.headers["Cache-Control"] = "no-store"
    return CreatedApiKey(**_shown(made.row).model_dump(), key=made.key)


def _shown(row: api_keys.KeyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        tenant=row.tenant,
        label=row.label,
        prefix=row.prefix,
        scopes=row.scopes,
        agents=row.agents,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
