"""Routes for operators: API keys of all tenants, made, listed, rotated and revoked while the service runs."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Response

from api.dependencies import Service
from api.identity import Operator
from api.pages import Cursor, Limit, Page
from api.problems import responses
from api.resources import ApiKey, CreatedApiKey, KeyId, NewApiKey, Rotation
from api.strict import OperatorRoute
from shared import api_keys

log = logging.getLogger(__name__)

router = APIRouter(prefix="/operator/keys", tags=["operator"], route_class=OperatorRoute)


@router.post(
    "",
    status_code=201,
    summary="Make an API key",
    response_description="The key, shown this once.",
    responses=responses(413, 415),
)
async def create_key(new: NewApiKey, service: Service, operator: Operator, response: Response) -> CreatedApiKey:
    """It is valid in every process within a second."""
    made = await api_keys.create(
        service.database,
        new.tenant,
        label=new.label,
        scopes=new.scopes,
        agents=new.agents,
        expires_at=new.expires_at,
    )
    return _created(made, operator, response)


@router.get("", summary="List API keys", response_description="A page of keys.", responses=responses())
async def list_keys(
    service: Service,
    _operator: Operator,
    cursor: Cursor,
    tenant: Annotated[str | None, Query(max_length=63, description="Only those of this tenant.")] = None,
    limit: Limit = 20,
) -> Page[ApiKey]:
    """The keys in the database, newest first, valid or not. Those of `API_KEYS` are not among them."""
    at, key_id = cursor.read(datetime.fromisoformat, UUID)
    rows = await api_keys.list_page(service.database, tenant, (at, key_id), limit + 1)
    return cursor.page(rows, limit, _shown, lambda row: [row.created_at.isoformat(), row.id])


@router.post(
    "/{key_id}/rotate",
    status_code=201,
    summary="Replace an API key",
    response_description="The new key, shown this once.",
    responses=responses(404, 413, 415),
)
async def rotate_key(
    key_id: KeyId, rotation: Rotation, service: Service, operator: Operator, response: Response
) -> CreatedApiKey:
    """A new key that may do the same. The former one stays valid for `overlap_hours`."""
    made = await api_keys.rotate(service.database, key_id, rotation.overlap_hours * 3600)
    return _created(made, operator, response)


@router.delete("/{key_id}", summary="Revoke an API key", response_description="The key.", responses=responses(404))
async def revoke_key(key_id: KeyId, service: Service, operator: Operator) -> ApiKey:
    """Within a second it opens nothing, in any process; streams that it opened end without `done`."""
    row = await api_keys.revoke(service.database, key_id)
    log.info("keys.revoked key=%s tenant=%s operator=%s", row.id, row.tenant, operator)
    return _shown(row)


def _created(made: api_keys.NewApiKey, operator: str, response: Response) -> CreatedApiKey:
    log.info("keys.created key=%s tenant=%s operator=%s", made.row.id, made.row.tenant, operator)
    response.headers["Cache-Control"] = "no-store"
    return CreatedApiKey(**_shown(made.row).model_dump(), key=made.key)


def _shown(row: Any) -> ApiKey:
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
