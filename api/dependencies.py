"""What routes are given: the parts that `app.py` put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches.feeds import BatchFeeds
from api.batches.intake import Intake
from api.key_ring import KeyRing
from api.limits import Limits
from api.probes import Probes
from api.relay import Relay
from api.tickets import Tickets
from shared.event_log import EventLog
from shared.lanes import Lanes
from shared.runs import Admission
from shared.settings import Settings
from shared.webhooks import Resolver


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of an API process."""

    settings: Settings
    database: AsyncEngine
    redis: Redis
    lanes: Lanes
    event_log: EventLog
    relay: Relay
    keys: KeyRing
    tickets: Tickets
    admission: Admission
    resolver: Resolver
    intake: Intake
    batch_feeds: BatchFeeds
    limits: Limits
    probes: Probes

    def url_of(self, noun: str, id_: object) -> str:
        """Return the path of a resource as a caller reaches it, such as `/api/v1/runs/<id>`, behind `ROOT_PATH`."""
        return f"{self.settings.root_path}/api/v1/{noun}/{id_}"


def _parts(request: Request) -> Parts:
    return cast("Parts", request.app.state.parts)


Service = Annotated[Parts, Depends(_parts)]
