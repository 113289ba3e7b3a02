"""Sends the webhook deliveries that are due, and stores the result of each."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus

import httpx2
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.away import skip_if_database_away, skip_if_failed
from agent_relay.shared.bad_input import BadInput, refuse
from agent_relay.shared.errors import WebhookRefused
from agent_relay.shared.settings import Settings
from agent_relay.shared.tasks import stop
from agent_relay.shared.webhooks import (
    Delivery,
    DeliveryStatus,
    Message,
    Resolver,
    Target,
    claim,
    message_of,
    read_url,
    receiver_of,
    settle,
)
from agent_relay.worker.models.duplex_http import TwoWayTransport

log = logging.getLogger(__name__)

AT_ONCE = 32
OF_A_TENANT = 8
"""A tenant whose receivers are slow leaves room for the others."""
OF_A_RECEIVER = 4
"""A receiver that is slow leaves room for the others of its tenant."""
LOOK_SECONDS = 1.0
LEASE_TIMEOUTS = 3
"""A delivery that is not settled after this many times the timeout is due again: its worker has died."""
LONGEST_RESPONSE_BYTES = 64 << 10
JITTER = 0.2
CLOSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """The result of one attempt: a response, or the reason why there was none."""

    response_status: int | None = None
    error: str | None = None
    final: bool = False
    """Whether another attempt would come to the same."""


class WebhookSender:
    """One worker's share of the deliveries."""

    def __init__(self, settings: Settings, database: AsyncEngine, resolver: Resolver | None = None) -> None:
        self._settings = settings
        self._database = database
        self._resolver = resolver or Resolver(settings.webhook_trusted_hosts)
        self._under_way: dict[asyncio.Task[None], tuple[str, str]] = {}
        """The attempts that are being made, each with its tenant and its receiver."""
        self._closing = False
        self._client = httpx2.AsyncClient(
            transport=TwoWayTransport(),
            trust_env=False,
            follow_redirects=False,
            timeout=None,
            headers={"accept": "*/*", "accept-encoding": "identity"},
        )

    async def run(self) -> None:
        """Deliver for ever."""
        while not self._closing:
            claimed: list[Delivery] = []
            with skip_if_failed("courier", "claim"), skip_if_database_away(log, "courier.database_away"):
                claimed = await self._claim()
            for delivery in claimed:
                task = asyncio.create_task(self._deliver(delivery))
                self._under_way[task] = delivery.tenant, receiver_of(delivery.url)
                task.add_done_callback(self._under_way.pop)
            if claimed:  # There may be more, once one of them is done.
                await asyncio.wait(self._under_way, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(LOOK_SECONDS * random.uniform(0.75, 1.25))  # noqa: S311

    async def close(self) -> None:
        """Begin no more, and give those under way a moment; a delivery that is cut off is due again after its lease."""
        self._closing = True
        if under_way := set(self._under_way):
            await asyncio.wait(under_way, timeout=CLOSE_SECONDS)
        await stop(under_way)
        await self._client.aclose()

    async def _claim(self) -> list[Delivery]:
        free = AT_ONCE - len(self._under_way)
        if free <= 0:
            return []
        of_receivers = Counter(self._under_way.values())
        of_tenants = Counter(tenant for tenant, _ in self._under_way.values())
        return await claim(
            self._database,
            most=free,
            of_a_tenant=OF_A_TENANT,
            of_a_receiver=OF_A_RECEIVER,
            busy=[tenant for tenant, count in of_tenants.items() if count >= OF_A_TENANT],
            busy_receivers=[receiver for receiver, count in of_receivers.items() if count >= OF_A_RECEIVER],
            lease_seconds=self._settings.webhook_timeout_seconds * LEASE_TIMEOUTS,
        )

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            with skip_if_database_away(log, "courier.database_away delivery=%s", delivery.id):
                overlap = self._settings.webhook_secret_overlap_hours * 3600
                message = await message_of(self._database, delivery, overlap)
                gone = Attempt(error="resource_gone", final=True)
                await self._settle(delivery, gone if message is None else await self._post(delivery, message))
        except Exception as error:  # noqa: BLE001  (whatever stands in its row, or in what it tells of)
            await self._refuse(delivery, error)

    async def _refuse(self, delivery: Delivery, error: Exception) -> None:
        """Count an attempt that could not be made; the next one follows the schedule, perhaps in another worker."""
        refuse(BadInput.DELIVERY, f"webhook_deliveries {delivery.id}", error)
        away = skip_if_database_away(log, "courier.database_away delivery=%s", delivery.id)
        with skip_if_failed("courier", "settle"), away:  # It is due again after its lease; the others are delivered.
            await self._settle(delivery, Attempt(error="cannot_be_sent"))

    async def _settle(self, delivery: Delivery, attempt: Attempt) -> None:
        """Store the result of an attempt, and the time of the next one, if the schedule has one."""
        schedule, response = self._settings.webhook_retry_seconds, attempt.response_status
        status, pause = DeliveryStatus.FAILED, 0.0
        if response is not None and httpx2.codes.is_success(response):
            status = DeliveryStatus.DELIVERED
        elif response == HTTPStatus.GONE:
            status = DeliveryStatus.DISABLED
        elif not attempt.final and delivery.step < len(schedule):
            status = DeliveryStatus.PENDING
            pause = schedule[delivery.step] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311
        if status in {DeliveryStatus.FAILED, DeliveryStatus.DISABLED}:
            log.warning(
                "courier.gave_up delivery=%s status=%s response=%s error=%s",
                delivery.id,
                status,
                response,
                attempt.error,
            )
        await settle(
            self._database, delivery, status, response_status=response, error=attempt.error, pause_seconds=pause
        )

    async def _post(self, delivery: Delivery, message: Message) -> Attempt:
        """Post the message, within one time limit; bytes after the status do not matter."""
        until = asyncio.get_running_loop().time() + self._settings.webhook_timeout_seconds
        try:
            async with asyncio.timeout_at(until):
                target = read_url(delivery.url, self._resolver.trusted_hosts)
                addresses = await self._resolver.addresses(target, delivery.tenant)
                response = await self._send(target, addresses, message)
        except (httpx2.HTTPError, OSError, WebhookRefused) as error:
            return Attempt(error=_reason(error))
        try:
            async with asyncio.timeout_at(until):
                await _hear_out(response)
        except (httpx2.HTTPError, OSError):
            pass
        finally:
            await response.aclose()
        return Attempt(response.status_code, final=response.is_redirect)

    async def _send(self, target: Target, addresses: list[str], message: Message) -> httpx2.Response:
        """Post to the first of these addresses that takes the connection; TLS and `Host` still speak of the name."""
        for left, address in zip(reversed(range(len(addresses))), addresses, strict=True):
            request = self._client.build_request(
                "POST",
                httpx2.URL(scheme=target.scheme, host=address, port=target.port, raw_path=target.path.encode()),
                headers={**message.headers, "host": target.authority},
                content=message.body,
                extensions={"sni_hostname": target.host},
            )
            try:
                return await self._client.send(request, stream=True)
            except httpx2.ConnectError:
                if not left:
                    raise
        raise OSError("no address")


async def _hear_out(response: httpx2.Response) -> None:
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > LONGEST_RESPONSE_BYTES:
            return


def _reason(error: Exception) -> str:
    """Say in a word why there was no response."""
    match error:
        case WebhookRefused(code=code):
            return code
        case TimeoutError():
            return "timeout"
        case socket.gaierror():
            return "unknown_host"
        case _:
            return "tls_failed" if _has_cause(error, ssl.SSLError) else "connection_failed"


def _has_cause(error: BaseException, kind: type[BaseException]) -> bool:
    cause = error.__cause__ or error.__context__
    return isinstance(error, kind) or (cause is not None and _has_cause(cause, kind))
