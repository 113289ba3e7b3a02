"""Routes: schedules, queries that are asked again and again."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.dependencies import Database, ServiceSettings, UrlOf, WebhookHosts
from agent_relay.api.options import check_options
from agent_relay.api.problems import invalid, responses
from agent_relay.api.requests.idempotency import REPLAYED, IdempotencyKey, once
from agent_relay.api.requests.identity import Caller, Owner, shown_key
from agent_relay.api.requests.pagination import Cursor, Limit, Page
from agent_relay.api.requests.validation import StrictRoute
from agent_relay.api.schedules import rows
from agent_relay.api.schedules.cron import WrongCron, next_times
from agent_relay.api.schedules.schemas import NewSchedule, Schedule, ScheduleChanges, ScheduleId
from agent_relay.api.submission import LOOK_UP_SECONDS, check_deadline
from agent_relay.shared.clock import new_id, now
from agent_relay.shared.errors import UnknownAgent
from agent_relay.shared.idempotency import Key, Repeated, keep
from agent_relay.shared.schemas import metadata_of
from agent_relay.shared.settings import Settings

router = APIRouter(prefix="/schedules", tags=["schedules"], route_class=StrictRoute)


@router.post(
    "",
    status_code=201,
    summary="Ask again and again",
    response_description="The schedule; `Location` is its address.",
    responses=responses(404, 409, 413, 415),
)
async def create_schedule(
    new: NewSchedule,
    database: Database,
    settings: ServiceSettings,
    resolver: WebhookHosts,
    url_of: UrlOf,
    caller: Caller,
    key: IdempotencyKey,
    response: Response,
) -> Schedule:
    """From now on, each time of `cron` makes one run of this query, with the rights of the key of this call."""
    times = _times(new.cron, new.timezone)
    check_deadline(settings, new.deadline_s or settings.run_deadline_seconds)
    if new.webhook_url is not None:
        await resolver.check(new.webhook_url, caller.tenant, seconds=LOOK_UP_SECONDS)
    if new.options is not None:
        await check_options(database, caller, new.options, agent_type=new.agent_type, thread_id=new.thread_id)
    try:
        schedule_id = await once(lambda: _create(database, settings, caller, new, times, key))
    except Repeated as repeated:
        schedule_id = repeated.created
        response.headers.update(REPLAYED)
    response.headers["Location"] = url_of("schedules", schedule_id)
    return rows.schedule_of(await rows.owned_schedule(database, caller, schedule_id))


@router.get("", summary="List your schedules", response_description="A page of schedules.", responses=responses())
async def list_schedules(database: Database, caller: Caller, cursor: Cursor, limit: Limit = 20) -> Page[Schedule]:
    """The user's schedules, newest first."""
    at, schedule_id = cursor.read(datetime.fromisoformat, UUID)
    found = await rows.owned_schedules(database, caller, before=(at, schedule_id), limit=limit)
    return cursor.page(found, limit, rows.schedule_of, lambda row: [row.created_at.isoformat(), row.id])


@router.get("/{schedule_id}", summary="Read a schedule", response_description="The schedule.", responses=responses(404))
async def read_schedule(schedule_id: ScheduleId, database: Database, caller: Caller) -> Schedule:
    """The schedule with its next times, its last run, and the number of failures in a row."""
    return rows.schedule_of(await rows.owned_schedule(database, caller, schedule_id))


@router.patch(
    "/{schedule_id}",
    summary="Change, pause or resume a schedule",
    response_description="The schedule as it is now.",
    responses=responses(404, 413, 415),
)
async def change_schedule(
    schedule_id: ScheduleId,
    changes: ScheduleChanges,
    database: Database,
    settings: ServiceSettings,
    resolver: WebhookHosts,
    caller: Caller,
) -> Schedule:
    """A field that is left out stays. Times that passed while it was paused are not caught up.

    From now on it has the rights of the key of this call. To ask another agent or thread, make another schedule.
    """
    schedule = await rows.owned_schedule(database, caller, schedule_id)
    check_deadline(settings, changes.deadline_s or settings.run_deadline_seconds)
    if changes.webhook_url is not None:
        await resolver.check(changes.webhook_url, caller.tenant, seconds=LOOK_UP_SECONDS)
    if changes.options is not None:
        await check_options(database, caller, changes.options, agent_type=schedule.agent_type)
    async with database.begin() as connection:
        former = await rows.locked(connection, schedule_id)
        if not caller.may_ask(former.agent_type):
            raise UnknownAgent(former.agent_type, caller.allowed_agents)
        await rows.change(connection, _changed(caller, former, changes))
    return rows.schedule_of(await rows.owned_schedule(database, caller, schedule_id))


@router.delete(
    "/{schedule_id}",
    status_code=204,
    summary="Delete a schedule",
    response_description="It is gone.",
    responses=responses(404),
)
async def delete_schedule(schedule_id: ScheduleId, database: Database, caller: Caller) -> None:
    """It makes no more runs. Those that it has made go on, and stay."""
    async with database.begin() as connection:
        await rows.delete(connection, caller, schedule_id)


async def _create(
    database: AsyncEngine,
    settings: Settings,
    caller: Owner,
    new: NewSchedule,
    times: list[datetime],
    key: Key | None,
) -> UUID:
    schedule_id = new_id()
    async with database.begin() as connection:
        await keep(connection, key, schedule_id)
        values = {
            "id": schedule_id,
            "tenant": caller.tenant,
            "user_id": caller.user_id,
            "key_reference": shown_key(caller).reference,
            "cron": new.cron,
            "timezone": new.timezone,
            "thread_id": new.thread_id,
            "agent_type": await rows.agent_of(connection, caller, new.thread_id, new.agent_type),
            "query": new.query,
            "multitask_strategy": new.multitask_strategy,
            "metadata": to_json(new.metadata).decode(),
            "options": _json(new.options),
            "deadline_seconds": new.deadline_s,
            "wait_seconds": new.wait_deadline_s,
            "webhook_url": new.webhook_url,
            "paused": new.paused,
            **_ahead([] if new.paused else times),
        }
        await rows.insert(connection, values, settings.max_schedules_per_user)
    return schedule_id


def _changed(caller: Owner, former: rows.ScheduleRow, changes: ScheduleChanges) -> dict[str, Any]:
    """Say all that can be changed, as it is from now on.

    Raises:
        Refused: 422, the new times are none.
    """

    def now_or_former(name: str, column: str | None = None) -> Any:
        return getattr(changes, name) if name in changes.model_fields_set else getattr(former, column or name)

    cron, timezone, paused = now_or_former("cron"), now_or_former("timezone"), now_or_former("paused")
    times = _times(cron, timezone)
    retimed = bool({"cron", "timezone"} & changes.model_fields_set) or paused != former.paused
    return {
        "id": former.id,
        "key_reference": shown_key(caller).reference,
        "cron": cron,
        "timezone": timezone,
        "query": now_or_former("query"),
        "metadata": to_json(metadata_of(now_or_former("metadata"))).decode(),
        "options": _json(now_or_former("options")),
        "deadline_seconds": now_or_former("deadline_s", "deadline_seconds"),
        "wait_seconds": now_or_former("wait_deadline_s", "wait_seconds"),
        "webhook_url": now_or_former("webhook_url"),
        "paused": paused,
        "resumes": former.paused and not paused,
        "retimed": retimed,
        **_ahead([] if paused else times),
    }


def _json(value: object) -> str | None:
    return None if value is None else to_json(value).decode()


def _ahead(times: list[datetime]) -> dict[str, Any]:
    return {"next_times": times, "due_at": times[0] if times else None}


def _times(cron: str, timezone: str) -> list[datetime]:
    """Say the next times, as seen from now.

    Raises:
        Refused: 422, there are none.
    """
    try:
        return next_times(cron, timezone, now())
    except WrongCron as wrong:
        raise invalid("/cron", "wrong_cron", str(wrong)) from None
