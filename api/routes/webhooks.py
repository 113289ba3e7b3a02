"""Routes: the secret that webhooks are signed with, and the log of their deliveries."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Response

from agent_relay.api.dependencies import Database, ServiceSettings
from agent_relay.api.problems import responses
from agent_relay.api.queries import owned_deliveries
from agent_relay.api.requests.identity import Caller
from agent_relay.api.requests.pagination import Cursor, Limit, Page
from agent_relay.api.requests.validation import StrictRoute
from agent_relay.api.schemas import DeliveryId, WebhookDelivery, WebhookSecret
from agent_relay.shared.errors import NotFound
from agent_relay.shared.schemas import BatchEvent, RunEvent
from agent_relay.shared.settings import Settings
from agent_relay.shared.webhooks import DeliveryRow, DeliveryStatus, Secret, current_secret, redeliver, rotate_secret

router = APIRouter(prefix="/webhooks", tags=["webhooks"], route_class=StrictRoute)

events = APIRouter(tags=["webhooks"])
"""The requests that receivers get; they are documented here, and receivers answer them."""

_ANSWERS: dict[int | str, dict[str, Any]] = {
    204: {"description": "It is delivered, as it is with any 2xx that comes in time."},
    "3XX": {"description": "It is given up: redirects are not followed."},
    "4XX": {"description": "It is tried again, for hours; but after 410 nothing more is sent to this URL."},
    "5XX": {"description": "It is tried again, for hours."},
}

WebhookId = Annotated[str, Header(alias="webhook-id", description="The event's id, the same however often it is sent.")]
WebhookTimestamp = Annotated[
    str, Header(alias="webhook-timestamp", description="When it was sent, in seconds since 1970.")
]
WebhookSignature = Annotated[
    str, Header(alias="webhook-signature", description="One or two signatures, as Standard Webhooks specifies.")
]


@events.post("run.ended", status_code=204, summary="A run has ended", responses=_ANSWERS)
async def run_ended(event: RunEvent, _id: WebhookId, _at: WebhookTimestamp, _signature: WebhookSignature) -> None:
    """The request to the `webhook_url` of a run once it has ended."""


@events.post("batch.ended", status_code=204, summary="A batch has ended", responses=_ANSWERS)
async def batch_ended(event: BatchEvent, _id: WebhookId, _at: WebhookTimestamp, _signature: WebhookSignature) -> None:
    """The request to the `webhook_url` of a batch once it has ended."""


@router.get(
    "/secret",
    summary="Read the secret of your webhooks",
    response_description="The secret.",
    responses=responses(),
)
async def read_secret(
    database: Database, settings: ServiceSettings, caller: Caller, response: Response
) -> WebhookSecret:
    """The secret that all webhooks of your tenant are signed with; keep it where you keep API keys."""
    async with database.begin() as connection:
        return _secret(await current_secret(connection, caller.tenant, _overlap_seconds(settings)), response)


@router.post(
    "/secret/rotate",
    summary="Replace the secret of your webhooks",
    response_description="The new secret.",
    responses=responses(),
)
async def rotate(database: Database, settings: ServiceSettings, caller: Caller, response: Response) -> WebhookSecret:
    """Make a new secret. For a while, webhooks are signed with the former one as well, so that none is refused.

    Only the newest secret and the one before sign. It can be rotated once a minute; sooner, it is 429.
    """
    async with database.begin() as connection:
        return _secret(await rotate_secret(connection, caller.tenant, _overlap_seconds(settings)), response)


@router.get(
    "/deliveries",
    summary="List the deliveries of webhooks",
    response_description="A page of deliveries.",
    responses=responses(),
)
async def list_deliveries(
    database: Database,
    caller: Caller,
    cursor: Cursor,
    status: Annotated[DeliveryStatus | None, Query(description="Only those in this status.")] = None,
    limit: Limit = 20,
) -> Page[WebhookDelivery]:
    """The deliveries to the URLs of the user's runs and batches, made and pending ones, newest first."""
    at, delivery_id = cursor.read(datetime.fromisoformat, UUID)
    found = await owned_deliveries(database, caller, status=status, before=(at, delivery_id), limit=limit)
    return cursor.page(found, limit, delivery_of, lambda row: [row.created_at.isoformat(), row.id])


@router.post(
    "/deliveries/{delivery_id}/redeliver",
    status_code=202,
    summary="Deliver a webhook again",
    response_description="The delivery, due now.",
    responses=responses(404),
)
async def deliver_again(delivery_id: DeliveryId, database: Database, caller: Caller) -> WebhookDelivery:
    """Send the event once more, under the same `webhook-id`, whatever its status; its schedule begins again."""
    async with database.begin() as connection:
        row = await redeliver(connection, delivery_id, caller.tenant, caller.user_id)
    if row is None:
        raise NotFound("delivery")
    return delivery_of(row)


def _overlap_seconds(settings: Settings) -> float:
    return settings.webhook_secret_overlap_hours * 3600


def _secret(secret: Secret, response: Response) -> WebhookSecret:
    response.headers["Cache-Control"] = "no-store"
    return WebhookSecret(secret=secret.secret, created_at=secret.created_at, former_until=secret.former_until)


def delivery_of(row: DeliveryRow) -> WebhookDelivery:
    """Show a delivery."""
    return WebhookDelivery(
        id=row.id,
        type=row.type,
        resource_id=row.resource_id,
        url=row.url,
        status=row.status,
        attempts=row.attempts,
        response_status=row.response_status,
        error=row.error,
        created_at=row.created_at,
        last_attempt_at=row.last_attempt_at,
        next_attempt_at=row.due_at if row.status == DeliveryStatus.PENDING else None,
    )
