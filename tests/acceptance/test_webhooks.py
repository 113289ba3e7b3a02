"""Webhooks: each end is told to whoever wants to know, in the end, whatever dies or fails in between."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import trustme
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks import Webhook, WebhookVerificationError

from agent_relay.shared.batches.accept import Accepted, Submission, accept
from agent_relay.shared.batches.cancel import begin_to_cancel, cancel_some
from agent_relay.shared.batches.retry import retry
from agent_relay.shared.batches.spool import Spool
from agent_relay.shared.database.tables import AttemptReason, RunStatus
from agent_relay.shared.errors import RotatedLately
from agent_relay.shared.event_log import EventLog
from agent_relay.shared.failure_codes import FailureCode, failure
from agent_relay.shared.maintenance.sweeper import Sweeper
from agent_relay.shared.queue import RunQueue
from agent_relay.shared.runs.cancel import cancel, supersede
from agent_relay.shared.runs.dead_letters import requeue
from agent_relay.shared.runs.finish import Ending, finish, give_back, let_go
from agent_relay.shared.runs.queue_limits import Admission
from agent_relay.shared.runs.recovery import declare_dead, expire, take_back
from agent_relay.shared.settings import Settings
from agent_relay.shared.webhooks import DeliveryStatus, Resolver, current_secret, receiver_of, rotate_secret, settle
from agent_relay.shared.webhooks import claim as claim_deliveries
from agent_relay.shared.webhooks.outbox import FRONT
from agent_relay.worker.webhooks import OF_A_TENANT, WebhookSender
from tests.support.agents import CHUNK_BYTES
from tests.support.client import Client
from tests.support.eventually import eventually, soon
from tests.support.problems import errors_of, problem_of
from tests.support.receiver import Received, Receiver, receiving
from tests.support.service import Running, Service, serving
from tests.support.stage import Stage

URL = "https://hooks.example.com/ended"
RETRIES = 4
HASTE = {
    "WEBHOOK_TRUSTED_HOSTS": "127.0.0.1",
    "WEBHOOK_TIMEOUT_SECONDS": "1",
    "WEBHOOK_RETRY_SECONDS": ",".join(["0.1"] * RETRIES),
}


# Which ends are written down, and with what.


def ending(status: RunStatus) -> Ending:
    """Say how a run ends."""
    error = failure(FailureCode.DEADLINE_EXCEEDED) if status is RunStatus.FAILED else None
    return Ending(status=status, text='"x"', last_entry=1, usage={}, error=error)


async def finished(stage: Stage, run_id: UUID, status: RunStatus) -> None:
    await finish(stage.database, await stage.claimed(run_id, await stage.worker()), ending(status))


async def cancelled_while_queued(stage: Stage, run_id: UUID) -> None:
    await cancel(stage.database, run_id)


async def superseded(stage: Stage, _run_id: UUID) -> None:
    async with stage.database.begin() as connection:
        await supersede(connection, stage.thread_id, roll_back=True)


async def expired(stage: Stage, run_id: UUID) -> None:
    await stage.execute("UPDATE runs SET deadline_at = now() WHERE id = :id", id=run_id)
    await expire(stage.database)


async def crashed(stage: Stage, run_id: UUID) -> None:
    worker_id = await stage.worker()
    await stage.claimed(run_id, worker_id)
    await declare_dead(stage.database, worker_id)
    await take_back(stage.database, max_crashes=1)


async def crashed_while_cancelled(stage: Stage, run_id: UUID) -> None:
    worker_id = await stage.worker()
    await stage.claimed(run_id, worker_id)
    await cancel(stage.database, run_id)
    await declare_dead(stage.database, worker_id)
    await take_back(stage.database, max_crashes=3)


End = Callable[[Stage, UUID], Awaitable[None]]

ENDS: dict[str, tuple[End, str]] = {
    "succeeded": (lambda stage, run_id: finished(stage, run_id, RunStatus.SUCCEEDED), "run.succeeded"),
    "failed": (lambda stage, run_id: finished(stage, run_id, RunStatus.FAILED), "run.failed"),
    "cancelled": (lambda stage, run_id: finished(stage, run_id, RunStatus.CANCELLED), "run.cancelled"),
    "cancelled while queued": (cancelled_while_queued, "run.cancelled"),
    "superseded": (superseded, "run.cancelled"),
    "expired": (expired, "run.failed"),
    "crashed": (crashed, "run.failed"),
    "crashed while cancelled": (crashed_while_cancelled, "run.cancelled"),
}

each_end = pytest.mark.parametrize("how", ENDS)


async def deliveries(stage: Stage) -> Sequence[Any]:
    """Read all deliveries."""
    return await stage.execute("SELECT * FROM webhook_deliveries ORDER BY created_at, id")


@each_end
async def test_each_way_to_end_is_written_down_once(stage: Stage, how: str) -> None:
    end, event = ENDS[how]
    await end(stage, await stage.query())  # Of this one nobody wants to know.
    run_id = await stage.query(webhook_url=URL)

    await end(stage, run_id)
    await cancel(stage.database, run_id)
    await take_back(stage.database, max_crashes=1)
    await expire(stage.database)

    (delivery,) = await deliveries(stage)
    run = await stage.row(run_id)
    assert (delivery.type, delivery.resource_id, delivery.url) == (event, run_id, URL)
    assert (delivery.tenant, delivery.user_id, delivery.status) == ("acme", stage.user_id, "pending")
    assert delivery.occurred_at == run.finished_at


async def test_what_is_no_end_is_not_written_down(stage: Stage) -> None:
    run_id = await stage.query(webhook_url=URL)
    worker_id = await stage.worker()

    await give_back(stage.database, await stage.claimed(run_id, worker_id), {}, AttemptReason.WORKER_STOPPING)
    await let_go(stage.database, run_id, (await stage.claimed(run_id, worker_id)).attempt)
    await stage.claimed(run_id, worker_id)
    await declare_dead(stage.database, worker_id)
    await take_back(stage.database, max_crashes=3)
    await stage.claimed(run_id, await stage.worker(), isolated=True)
    await cancel(stage.database, run_id)  # A worker holds it, and is only asked.

    assert (await stage.row(run_id)).status == "running"
    assert await deliveries(stage) == []


async def no_room_for_deliveries(stage: Stage) -> None:
    """Have no delivery be written."""
    await stage.execute("CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no room'; END $$")
    await stage.execute("CREATE TRIGGER fails BEFORE INSERT ON webhook_deliveries FOR EACH ROW EXECUTE FUNCTION fail()")


@each_end
async def test_an_end_and_its_delivery_are_stored_together_or_not_at_all(stage: Stage, how: str) -> None:
    run_id = await stage.query(webhook_url=URL)
    await no_room_for_deliveries(stage)

    with suppress(DBAPIError):  # A sweep sets the run aside instead.
        await ENDS[how][0](stage, run_id)

    assert (await stage.row(run_id)).finished_at is None


async def test_a_run_that_an_operator_has_asked_again_is_told_of_as_well(stage: Stage) -> None:
    run_id = await stage.query(webhook_url=URL)
    await crashed(stage, run_id)

    again = await requeue(stage.database, run_id)
    await cancel(stage.database, again.run_id)

    told = [(delivery.type, delivery.resource_id) for delivery in await deliveries(stage)]
    assert told == [("run.failed", run_id), ("run.cancelled", again.run_id)]


# Of batches: the end of the last run.


async def batch_of(stage: Stage, count: int = 2, **rest: Any) -> Accepted:
    """Accept a batch whose end is to be told."""
    said: dict[str, Any] = {"deadline_seconds": 60, "run_seconds": 60, "webhook_url": URL, **rest}
    asked = Submission(tenant="acme", user_id=stage.user_id, agent_type="echo", **said)
    with Spool() as items:
        for number in range(count):
            items.add(f"row-{number}", f"query {number}", {})
        return await accept(stage.database, asked, items, Admission(settings_of("postgresql://nowhere/none")))


def runs_of(accepted: Accepted) -> list[UUID]:
    """Name its runs."""
    return [ring.run_id for ring in accepted.rings()]


async def cancelled_as_a_batch(stage: Stage, accepted: Accepted) -> None:
    await begin_to_cancel(stage.database, accepted.batch.id)
    await cancel_some(stage.database, accepted.batch.id)


async def cancelled_while_running(stage: Stage, accepted: Accepted) -> None:
    (last,) = (await stage.execute("SELECT id FROM runs WHERE finished_at IS NULL")).pop()
    held = await stage.claimed(last, await stage.worker())
    await cancelled_as_a_batch(stage, accepted)
    await finish(stage.database, held, ending(RunStatus.CANCELLED))


def by_last(end: End) -> Callable[[Stage, Accepted], Awaitable[None]]:
    """End a batch by ending its last run."""
    return lambda stage, accepted: end(stage, runs_of(accepted)[-1])


BATCH_ENDS: dict[str, tuple[Callable[[Stage, Accepted], Awaitable[None]], str]] = {
    "the last succeeds": (by_last(ENDS["succeeded"][0]), "batch.completed"),
    "the last fails": (by_last(ENDS["failed"][0]), "batch.completed"),
    "the last is cancelled": (by_last(cancelled_while_queued), "batch.completed"),
    "the last expires": (by_last(expired), "batch.completed"),
    "the last crashes": (by_last(crashed), "batch.completed"),
    "cancelled while queued": (cancelled_as_a_batch, "batch.cancelled"),
    "cancelled while running": (cancelled_while_running, "batch.cancelled"),
}

each_end_of_a_batch = pytest.mark.parametrize("how", BATCH_ENDS)


@each_end_of_a_batch
async def test_each_way_in_which_a_batch_ends_is_written_down_once(stage: Stage, how: str) -> None:
    end, event = BATCH_ENDS[how]
    accepted, unheard = await batch_of(stage), await batch_of(stage, 1, webhook_url=None)
    for run_id in (runs_of(accepted)[0], *runs_of(unheard)):
        await finished(stage, run_id, RunStatus.FAILED)
    before = await deliveries(stage)

    await end(stage, accepted)
    await cancelled_as_a_batch(stage, accepted)

    assert before == []
    (delivery,) = await deliveries(stage)
    (batch,) = await stage.execute("SELECT * FROM batches WHERE id = :id", id=accepted.batch.id)
    assert (delivery.type, delivery.resource_id, delivery.url) == (event, batch.id, URL)
    assert (delivery.tenant, delivery.user_id, delivery.status) == ("acme", stage.user_id, "pending")
    assert delivery.occurred_at == batch.finished_at


@each_end_of_a_batch
async def test_the_end_of_a_batch_and_its_delivery_are_stored_together_or_not_at_all(stage: Stage, how: str) -> None:
    accepted = await batch_of(stage)
    await finished(stage, runs_of(accepted)[0], RunStatus.SUCCEEDED)
    await no_room_for_deliveries(stage)

    with suppress(DBAPIError):  # As above.
        await BATCH_ENDS[how][0](stage, accepted)

    (batch,) = await stage.execute("SELECT * FROM batches")
    assert (batch.finished_at, batch.succeeded, batch.failed, batch.cancelled) == (None, 1, 0, 0)
    assert (await stage.row(runs_of(accepted)[-1])).finished_at is None


async def test_what_failed_of_a_batch_is_retried_under_the_same_url(stage: Stage) -> None:
    accepted = await batch_of(stage, 1)
    await finished(stage, runs_of(accepted)[0], RunStatus.FAILED)

    again = await retry(stage.database, accepted.batch.id, 60, Admission(settings_of("postgresql://nowhere/none")))
    await finished(stage, runs_of(again)[0], RunStatus.SUCCEEDED)

    told = [(delivery.resource_id, delivery.url) for delivery in await deliveries(stage)]
    assert told == [(accepted.batch.id, URL), (again.batch.id, URL)]


# How they are delivered.


def settings_of(database_url: str, **changes: Any) -> Settings:
    """Make settings for a courier in this process."""
    haste: dict[str, Any] = {name.lower(): value for name, value in HASTE.items()}
    servers = {"database_url": database_url, "redis_url": "redis://nowhere"}
    return Settings.model_validate({**servers, **haste, **changes})


@asynccontextmanager
async def carrying(stage: Stage, settings: Settings, resolver: Resolver | None = None) -> AsyncGenerator[None]:
    """Have a courier deliver."""
    courier = WebhookSender(settings, stage.database, resolver)
    running = asyncio.create_task(courier.run())
    try:
        yield
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await courier.close()


async def settled(stage: Stage) -> Sequence[Any]:
    """Wait until nothing is pending any more, and read all deliveries."""
    async with asyncio.timeout(60):
        while True:
            found = await deliveries(stage)
            if all(delivery.status != "pending" for delivery in found):
                return found
            await asyncio.sleep(0.02)


async def end_for(stage: Stage, url: str) -> UUID:
    """End a run whose end is to be told there."""
    run_id = await stage.query(webhook_url=url)
    await finished(stage, run_id, RunStatus.SUCCEEDED)
    return run_id


async def secret_of(stage: Stage) -> str:
    """Read the tenant's secret."""
    async with stage.database.begin() as connection:
        return (await current_secret(connection, "acme", 60)).secret


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver of the test's own."""
    with receiving() as receiver:
        yield receiver


async def test_what_fails_is_tried_again_under_the_same_id_until_it_is_taken(
    stage: Stage, database_url: str, receiver: Receiver
) -> None:
    receiver.statuses["/hook"] = [500, 502, 404, 429]
    async with carrying(stage, settings_of(database_url)):
        run_id = await end_for(stage, f"{receiver.url}/hook?a=b")
        (delivery,) = await settled(stage)

    events = [received.verified(await secret_of(stage)) for received in receiver.received]
    assert (delivery.status, delivery.attempts, delivery.response_status) == ("delivered", 5, 204)
    assert {received.id for received in receiver.received} == {str(delivery.id)}
    assert events == [events[0]] * 5
    assert events[0]["type"] == "run.succeeded"
    assert events[0]["data"]["id"] == str(run_id)
    assert {received.path for received in receiver.received} == {"/hook?a=b"}
    assert receiver.received[0].headers["host"] == f"127.0.0.1:{receiver.port}"


async def test_after_the_last_try_it_is_given_up(stage: Stage, database_url: str, receiver: Receiver) -> None:
    receiver.statuses["/hook"] = [503] * 100
    async with carrying(stage, settings_of(database_url)):
        await end_for(stage, f"{receiver.url}/hook")
        (delivery,) = await settled(stage)

    assert (delivery.status, delivery.attempts, delivery.response_status) == ("failed", 1 + RETRIES, 503)
    assert len(receiver.received) == 1 + RETRIES


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_fails(
    stage: Stage, database_url: str, receiver: Receiver, status: int
) -> None:
    receiver.statuses["/hook"] = [status]
    async with carrying(stage, settings_of(database_url)):
        await end_for(stage, f"{receiver.url}/hook")
        (delivery,) = await settled(stage)

    assert (delivery.status, delivery.attempts, delivery.response_status) == ("failed", 1, status)
    assert len(receiver.received) == 1


async def test_who_says_gone_is_told_nothing_more(stage: Stage, database_url: str, receiver: Receiver) -> None:
    receiver.statuses["/hook"] = [500, 410]
    await end_for(stage, f"{receiver.url}/hook")
    waiting = await end_for(stage, f"{receiver.url}/hook")
    other = await end_for(stage, f"{receiver.url}/other")
    await stage.execute(
        "UPDATE webhook_deliveries SET due_at = now() + interval '1 hour' WHERE resource_id = :id", id=waiting
    )
    async with carrying(stage, settings_of(database_url)):
        found = {delivery.resource_id: delivery for delivery in await settled(stage)}
        await end_for(stage, f"{receiver.url}/hook")  # Named anew, it is tried anew.
        later = (await settled(stage))[-1]

    first = next(delivery for run_id, delivery in found.items() if run_id not in {waiting, other})
    assert (first.status, first.attempts, first.response_status) == ("disabled", 2, 410)
    assert (found[waiting].status, found[waiting].attempts) == ("disabled", 0)
    assert found[other].status == later.status == "delivered"


async def test_who_never_answers_is_hung_up_on(stage: Stage, database_url: str, receiver: Receiver) -> None:
    async with carrying(stage, settings_of(database_url, webhook_timeout_seconds=0.2, webhook_retry_seconds="0")):
        await end_for(stage, f"{receiver.url}/hangs")
        (delivery,) = await settled(stage)

    assert (delivery.status, delivery.attempts) == ("failed", 2)
    assert (delivery.response_status, delivery.error) == (None, "timeout")


async def test_who_never_stops_talking_is_not_listened_to(stage: Stage, database_url: str, receiver: Receiver) -> None:
    async with carrying(stage, settings_of(database_url)):
        await end_for(stage, f"{receiver.url}/endless")
        (delivery,) = await settled(stage)

    assert (delivery.status, delivery.attempts, delivery.response_status) == ("delivered", 1, 204)


async def attempted(stage: Stage) -> Any:
    """Read the delivery, once it is known what came of an attempt."""
    return next((found for found in await deliveries(stage) if found.response_status or found.error), None)


LARGE = 4 << 20
"""Bytes of an answer: more than the sockets between two processes hold."""


def answers_early(status: int, server: socket.socket, manner: str, tls: ssl.SSLContext | None = None) -> None:
    """Answer the first call before its body was read; what happens then is the manner."""
    connection, _ = server.accept()
    if tls is not None:
        connection = tls.wrap_socket(connection, server_side=True)
    with connection:
        connection.recv(1000)
        answer = f"HTTP/1.1 {status} Early\r\nContent-Length: 0\r\n\r\n".encode()
        if manner == "interim":
            connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            size = 0
            while size < LARGE - 10_000 and (some := connection.recv(1 << 16)):
                size += len(some)
        connection.sendall(answer)
        if manner == "keeps":
            connection.recv(1)
            time.sleep(0.5)


@pytest.mark.parametrize("manner", ["closes", "keeps", "interim"])
@pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(
    ("status", "becomes"), [(410, "disabled"), (413, "failed"), (401, "failed"), (200, "delivered")]
)
async def test_an_answer_before_the_end_of_a_large_body_counts(
    stage: Stage, database_url: str, own_ca: trustme.CA, manner: str, with_tls: bool, status: int, becomes: str
) -> None:
    tls = certified(own_ca, "hooks.example.com") if with_tls else None
    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = threading.Thread(target=answers_early, args=(status, server, manner, tls), daemon=True)
        answering.start()
        url = f"{'https' if tls else 'http'}://hooks.example.com:{server.getsockname()[1]}/hook"
        settings = settings_of(database_url, webhook_retry_seconds="3600", webhook_timeout_seconds="60")
        async with carrying(stage, settings, Resolver(["hooks.example.com"], Names("127.0.0.1").look_up)):
            run_id = await stage.query(webhook_url=url)
            run = await stage.claimed(run_id, await stage.worker())
            text = json.dumps("x" * LARGE)
            await finish(
                stage.database, run, Ending(status=RunStatus.SUCCEEDED, text=text, last_entry=1, usage={}, error=None)
            )
            delivery = await soon(lambda: attempted(stage))
        answering.join(60)

    assert (delivery.response_status, delivery.error) == (status, None)
    assert delivery.status == (becomes if becomes != "failed" else "pending")


async def test_nobody_at_home(stage: Stage, database_url: str) -> None:
    with receiving() as receiver:
        url = receiver.url
    async with carrying(stage, settings_of(database_url, webhook_retry_seconds="0")):
        await end_for(stage, url)
        (delivery,) = await settled(stage)

    assert (delivery.status, delivery.error, delivery.response_status) == ("failed", "connection_failed", None)


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        ("url = E'https://\\\\x\\n.example/'", {"malformed_url"}),
        ("url = ''", {"malformed_url"}),
        ("url = 'http://127.0.0.1:99999/hook'", {"malformed_url"}),
        ("url = 'http://' || repeat('a', 300) || '.example/'", {"https_required"}),
        ("type = 'schedule.fired'", {"cannot_be_sent"}),
        ("type = ''", {"cannot_be_sent"}),
    ],
    ids=["no URL", "an empty URL", "no port", "no name", "a newer version's event", "no event"],
)
async def test_a_delivery_that_cannot_be_made_ends_on_its_schedule_and_others_are_made(
    stage: Stage, database_url: str, receiver: Receiver, change: str, codes: set[str]
) -> None:
    bad = await end_for(stage, f"{receiver.url}/bad")
    await stage.execute(f"UPDATE webhook_deliveries SET {change}")
    good = await end_for(stage, f"{receiver.url}/good")
    async with carrying(stage, settings_of(database_url, webhook_retry_seconds="0.1")):
        found = {delivery.resource_id: delivery for delivery in await settled(stage)}

    assert (found[good].status, found[good].attempts) == ("delivered", 1)
    assert (found[bad].status, found[bad].attempts) == ("failed", 2)
    assert found[bad].error in codes


async def test_a_secret_that_signs_nothing_and_a_row_with_odd_json_spoil_no_other_delivery(
    stage: Stage, database_url: str, receiver: Receiver
) -> None:
    await secret_of(stage)
    bad = await end_for(stage, f"{receiver.url}/bad")
    odd = await end_for(stage, f"{receiver.url}/odd")
    await stage.execute("UPDATE webhook_deliveries SET tenant = 'other' WHERE resource_id = :id", id=bad)
    await stage.execute("INSERT INTO webhook_secrets (tenant, number, secret) VALUES ('other', 1, 'whsec_?')")
    await stage.execute("UPDATE runs SET usage = '[]', error = '7', metadata = '[[[1]]]' WHERE id = :id", id=odd)
    async with carrying(stage, settings_of(database_url, webhook_retry_seconds="0.1")):
        found = {delivery.resource_id: delivery for delivery in await settled(stage)}

    assert (found[bad].status, found[bad].error) == ("failed", "cannot_be_sent")
    assert found[odd].status == "delivered"
    (posted,) = receiver.received
    data = posted.verified(await secret_of(stage))["data"]
    assert (data["metadata"], data["error"]["code"], data["usage"]["requests"]) == ({}, "agent_error", 0)


async def test_proxies_of_the_environment_are_not_asked(
    stage: Stage, database_url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        async with carrying(stage, settings_of(database_url)):
            await end_for(stage, f"{receiver.url}/hook")
            await settled(stage)

    assert (len(receiver.received), len(proxy.received)) == (1, 0)


class Names:
    """A resolver of one name, whose address changes."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)

    async def look_up(self, _name: str, _port: int) -> Sequence[str]:
        """Answer with the next address, the last for ever."""
        return [self.addresses.pop(0) if len(self.addresses) > 1 else self.addresses[0]]


async def test_a_name_that_moves_to_a_private_address_is_not_followed_there(
    stage: Stage, database_url: str, own_ca: trustme.CA
) -> None:
    with receiving(tls=certified(own_ca, "rebind.example.com")) as receiver:
        url = f"https://rebind.example.com:{receiver.port}/hook"
        resolver = Resolver([], Names("8.8.8.8", "127.0.0.1").look_up)
        await resolver.check(url, "acme", seconds=5)
        async with carrying(stage, settings_of(database_url, webhook_retry_seconds="0"), resolver):
            await end_for(stage, url)
            (delivery,) = await settled(stage)

    assert (delivery.status, delivery.error, delivery.attempts) == ("failed", "address_not_public", 2)
    assert receiver.received == []


async def test_a_name_is_resolved_once_and_that_address_is_called(
    stage: Stage, database_url: str, own_ca: trustme.CA
) -> None:
    with receiving(tls=certified(own_ca, "hooks.example.com")) as receiver:
        url = f"https://hooks.example.com:{receiver.port}/hook"
        names = Names("127.0.0.1", "192.0.2.1")
        async with carrying(stage, settings_of(database_url), Resolver(["hooks.example.com"], names.look_up)):
            await end_for(stage, url)
            (delivery,) = await settled(stage)

    assert (delivery.status, delivery.attempts) == ("delivered", 1)
    assert receiver.received[0].headers["host"] == f"hooks.example.com:{receiver.port}"
    assert names.addresses == ["192.0.2.1"]


async def test_a_receiver_proves_to_be_who_its_name_says(stage: Stage, database_url: str, own_ca: trustme.CA) -> None:
    with receiving(tls=certified(own_ca, "somebody-else.example.com")) as receiver:
        url = f"https://hooks.example.com:{receiver.port}/hook"
        resolver = Resolver(["hooks.example.com"], Names("127.0.0.1").look_up)
        async with carrying(stage, settings_of(database_url, webhook_retry_seconds="0"), resolver):
            await end_for(stage, url)
            (delivery,) = await settled(stage)

    assert (delivery.status, delivery.error) == ("failed", "tls_failed")
    assert receiver.received == []


@pytest.fixture
def own_ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """A certificate authority that this process trusts, as an operator would have it trust one."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return ca


def certified(ca: trustme.CA, name: str) -> ssl.SSLContext:
    """Make a server's context with a certificate for a name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name).configure_cert(context)
    return context


# Who delivers them.


async def claimed(database: AsyncEngine, **changes: Any) -> list[Any]:
    """Claim as a courier does."""
    shares: dict[str, Any] = {"most": 32, "of_a_tenant": 8, "of_a_receiver": 8}
    usual: dict[str, Any] = {**shares, "busy": [], "busy_receivers": [], "lease_seconds": 30}
    return await claim_deliveries(database, **usual | changes)


async def test_a_delivery_is_claimed_once_and_again_when_its_lease_is_over(stage: Stage) -> None:
    await end_for(stage, URL)

    first = await claimed(stage.database, lease_seconds=0.5)
    meanwhile = await claimed(stage.database)
    async with asyncio.timeout(60):
        while not (second := await claimed(stage.database)):  # noqa: ASYNC110  (the database's time)
            await asyncio.sleep(0.05)

    assert meanwhile == []
    assert (second[0].id, first[0].attempt, second[0].attempt) == (first[0].id, 1, 2)


async def test_an_attempt_that_was_overtaken_stores_nothing(stage: Stage) -> None:
    await end_for(stage, URL)
    (first,) = await claimed(stage.database, lease_seconds=0)
    (second,) = await claimed(stage.database)

    await settle(stage.database, first, DeliveryStatus.FAILED, response_status=500, error=None)
    assert (await deliveries(stage))[0].status == "pending"
    await settle(stage.database, second, DeliveryStatus.DELIVERED, response_status=200, error=None)
    await settle(stage.database, second, DeliveryStatus.PENDING, response_status=500, error=None)

    (delivery,) = await deliveries(stage)
    assert (delivery.status, delivery.response_status) == ("delivered", 200)


async def test_a_tenant_with_many_deliveries_leaves_room_for_others(stage: Stage) -> None:
    for _ in range(3):
        await end_for(stage, URL)
    await stage.execute(
        "INSERT INTO webhook_deliveries (id, tenant, user_id, type, resource_id, url, occurred_at) "
        "SELECT gen_random_uuid(), 'other', user_id, type, resource_id, url, now() FROM webhook_deliveries LIMIT 1"
    )

    some = await claimed(stage.database, of_a_tenant=2)
    busy = await claimed(stage.database, busy=["acme"])
    rest = await claimed(stage.database)

    assert sorted(delivery.tenant for delivery in some) == ["acme", "acme", "other"]
    assert busy == []
    assert [delivery.tenant for delivery in rest] == ["acme"]


async def test_a_receiver_with_many_deliveries_leaves_room_for_others_of_its_tenant(stage: Stage) -> None:
    for path in ("one", "two?x", "three"):
        await end_for(stage, f"https://slow.example.com/{path}")
    await end_for(stage, "https://slow.example.com:8443/")

    some = await claimed(stage.database, of_a_receiver=2, lease_seconds=0)
    busy = {("acme", "https://slow.example.com")}
    others = await claimed(stage.database, busy_receivers=busy)
    assert await claimed(stage.database, busy_receivers=busy) == []
    rest = await claimed(stage.database, busy_receivers={("other", "https://slow.example.com")})

    assert Counter(receiver_of(delivery.url) for delivery in some) == {
        "https://slow.example.com": 2,
        "https://slow.example.com:8443": 1,
    }
    assert [delivery.url for delivery in others] == ["https://slow.example.com:8443/"]
    assert len(rest) == 3


async def test_a_busy_receiver_with_more_than_is_looked_at_hides_no_other(stage: Stage) -> None:
    await end_for(stage, "https://slow.example.com/")
    await stage.execute(
        "INSERT INTO webhook_deliveries (id, tenant, user_id, type, resource_id, url, occurred_at, due_at) "
        "SELECT gen_random_uuid(), tenant, user_id, type, resource_id, url, now(), due_at - interval '1 minute' "
        f"FROM webhook_deliveries, generate_series(1, {FRONT})"
    )
    await end_for(stage, URL)

    busy = {("acme", receiver_of("https://slow.example.com/"))}
    (other,) = await claimed(stage.database, busy_receivers=busy)
    assert other.url == URL


async def test_a_receiver_that_hangs_delays_no_other_receiver(
    stage: Stage, database_url: str, receiver: Receiver
) -> None:
    for number in range(2 * OF_A_TENANT):
        await end_for(stage, f"{receiver.url}/hangs?{number}")
    with receiving() as other:
        for number in range(2 * OF_A_TENANT):
            await end_for(stage, f"{other.url}/hook?{number}")
        async with carrying(stage, settings_of(database_url, webhook_timeout_seconds=600)):
            await soon(lambda: _received(other, 2 * OF_A_TENANT))
    assert len(receiver.received) < OF_A_TENANT


async def _received(receiver: Receiver, count: int) -> bool:
    return len({received.path for received in receiver.received}) == count


async def test_what_is_still_to_be_told_is_not_erased_and_what_was_told_is(stage: Stage, database_url: str) -> None:
    unused: Any = None
    sweeper = Sweeper(
        settings_of(database_url, run_retention_days=1, webhook_retention_days=2),
        stage.database,
        RunQueue(unused),
        EventLog(unused),
    )
    alone = await stage.query(webhook_url=URL, thread_id=None, agent_type="echo")
    await finished(stage, alone, RunStatus.SUCCEEDED)
    in_thread = await end_for(stage, URL)
    await stage.execute("UPDATE runs SET finished_at = now() - interval '3 days'")
    await stage.execute("UPDATE threads SET deleted_at = now() - interval '3 days'")
    await stage.execute("UPDATE webhook_deliveries SET created_at = now() - interval '3 days'")

    await sweeper.erase()
    before = [row.id for row in await stage.execute("SELECT id FROM runs")]
    for delivery in await claimed(stage.database):
        await settle(stage.database, delivery, DeliveryStatus.DELIVERED, response_status=200, error=None)
    await sweeper.erase()

    assert set(before) == {alone, in_thread}
    assert await stage.execute("SELECT id FROM runs") == []
    assert await deliveries(stage) == []


async def test_a_batch_is_kept_whole_until_its_end_is_told(stage: Stage, database_url: str) -> None:
    unused: Any = None
    sweeper = Sweeper(
        settings_of(database_url, run_retention_days=1), stage.database, RunQueue(unused), EventLog(unused)
    )
    accepted = await batch_of(stage, 1)
    await finished(stage, runs_of(accepted)[0], RunStatus.SUCCEEDED)
    await stage.execute("UPDATE batches SET finished_at = now() - interval '3 days'")

    await sweeper.erase()
    (before,) = await stage.execute("SELECT deleted_at FROM batches")
    for delivery in await claimed(stage.database):
        await settle(stage.database, delivery, DeliveryStatus.DELIVERED, response_status=200, error=None)
    await sweeper.erase()
    (after,) = await stage.execute("SELECT deleted_at FROM batches")

    assert before.deleted_at is None
    assert after.deleted_at is not None


# Secrets.


async def rotated(stage: Stage, overlap_seconds: float = 60) -> str:
    async with stage.database.begin() as connection:
        return (await rotate_secret(connection, "acme", overlap_seconds)).secret


def signs(received: Received, secret: str) -> bool:
    try:
        Webhook(secret).verify(received.body, received.headers)
    except WebhookVerificationError:
        return False
    return True


async def test_for_a_while_after_a_rotation_both_secrets_sign(
    stage: Stage, database_url: str, receiver: Receiver
) -> None:
    former = await secret_of(stage)
    newer = await rotated(stage)
    async with carrying(stage, settings_of(database_url)):
        await end_for(stage, f"{receiver.url}/hook")
        await settled(stage)
    async with carrying(stage, settings_of(database_url, webhook_secret_overlap_hours=0)):
        await end_for(stage, f"{receiver.url}/hook")
        await settled(stage)

    during, after = receiver.received
    assert [signs(during, secret) for secret in (former, newer)] == [True, True]
    assert [signs(after, secret) for secret in (former, newer)] == [False, True]
    assert during.headers["webhook-signature"].count("v1,") == 2


async def test_all_who_ask_at_once_are_shown_the_same_secret(stage: Stage) -> None:
    firsts = await asyncio.gather(*(secret_of(stage) for _ in range(5)))
    rotations = await asyncio.gather(*(rotated(stage) for _ in range(5)), return_exceptions=True)

    assert len({each for each in rotations if isinstance(each, str)}) == 1
    assert all(isinstance(each, str | RotatedLately) for each in rotations), "who comes a moment later is refused"
    assert len(set(firsts)) == 1
    assert await secret_of(stage) == await secret_of(stage) != firsts[0]


async def test_a_secret_that_signs_no_more_is_forgotten(stage: Stage) -> None:
    await secret_of(stage)
    await rotated(stage, overlap_seconds=0)
    await an_hour_passes(stage)
    last = await rotated(stage, overlap_seconds=0)
    assert len(await stage.execute("SELECT FROM webhook_secrets")) == 2
    newest = await rotated_an_hour_later(stage)

    kept = [row.secret for row in await stage.execute("SELECT secret FROM webhook_secrets ORDER BY number")]
    assert kept == [last, newest]


async def an_hour_passes(stage: Stage) -> None:
    await stage.execute("UPDATE webhook_secrets SET created_at = created_at - interval '1 hour'")


async def rotated_an_hour_later(stage: Stage) -> str:
    await an_hour_passes(stage)
    return await rotated(stage, overlap_seconds=86_400)


async def test_the_newest_secret_and_the_one_before_sign_however_often_it_is_rotated(
    stage: Stage, database_url: str, receiver: Receiver
) -> None:
    secrets = [await secret_of(stage), *[await rotated_an_hour_later(stage) for _ in range(6)]]
    async with carrying(stage, settings_of(database_url, webhook_secret_overlap_hours=24)):
        await end_for(stage, f"{receiver.url}/hook")
        await settled(stage)

    (received,) = receiver.received
    assert [signs(received, secret) for secret in secrets] == [False] * 5 + [True, True]
    assert received.headers["webhook-signature"].count("v1,") == 2
    assert len(await stage.execute("SELECT FROM webhook_secrets")) == 2


async def test_secrets_that_were_made_before_there_was_this_limit_sign_twice_at_most(
    stage: Stage, database_url: str, receiver: Receiver
) -> None:
    await stage.execute(
        "INSERT INTO webhook_secrets (tenant, number, secret) "
        "SELECT 'acme', n, 'whsec_' || encode(sha256(convert_to(n || '', 'UTF8')), 'base64') "
        "FROM generate_series(1, 50) AS n"
    )
    async with carrying(stage, settings_of(database_url, webhook_secret_overlap_hours=24)):
        await end_for(stage, f"{receiver.url}/hook")
        await settled(stage)

    (received,) = receiver.received
    assert received.headers["webhook-signature"].count("v1,") == 2


async def test_a_secret_is_rotated_once_a_minute(stage: Stage) -> None:
    first = await secret_of(stage)
    second = await rotated(stage)
    assert first != second, "the first secret may be rotated at once"
    with pytest.raises(RotatedLately) as refused:
        await rotated(stage)
    assert 0 < refused.value.seconds_left <= 60
    assert await secret_of(stage) == second
    await stage.execute("UPDATE webhook_secrets SET created_at = now() - interval '30 seconds'")
    with pytest.raises(RotatedLately) as refused:
        await rotated(stage)
    assert refused.value.seconds_left <= 30
    await stage.execute("UPDATE webhook_secrets SET created_at = created_at - interval '30 seconds'")
    assert await rotated(stage) not in {first, second}


# The whole way.


@pytest.fixture(scope="module")
def hasty_api(
    new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Generator[Running]:
    """An API and a worker, which may call receivers on this machine and do not wait for hours."""
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("service"), HASTE) as service:
        api = service.api()
        service.worker()
        yield api


@pytest.fixture
async def caller(hasty_api: Running) -> AsyncGenerator[Client]:
    """A user of theirs."""
    async with Client(hasty_api.url) as client:
        yield client


async def delivered(client: Client, count: int = 1) -> list[dict[str, Any]]:
    """Wait until so many deliveries have been made, and read their log."""
    async with asyncio.timeout(60):
        while True:
            items = (await client.http.get("/webhooks/deliveries")).json()["items"]
            if sum(item["status"] != "pending" for item in items) == count:
                return items
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("path", ["/runs", "/agent/query", "/agent/stream"])
async def test_the_end_of_a_run_is_posted_as_the_api_shows_it(caller: Client, receiver: Receiver, path: str) -> None:
    url = f"{receiver.url}/hook"
    await caller.http.post(path, json={"agent_type": "unicode_form", "query": "?", "webhook_url": url})

    (logged,) = await delivered(caller)

    secret = (await caller.http.get("/webhooks/secret")).json()["secret"]
    (received,) = receiver.received
    event = received.verified(secret)
    run = await caller.read(logged["resource_id"])
    assert event == {"type": "run.succeeded", "timestamp": run["finished_at"], "data": run}
    assert received.headers["content-type"] == "application/json"
    assert logged == {
        "id": received.id,
        "type": "run.succeeded",
        "resource_id": run["id"],
        "url": url,
        "status": "delivered",
        "attempts": 1,
        "response_status": 204,
        "error": None,
        "created_at": logged["created_at"],
        "last_attempt_at": logged["last_attempt_at"],
        "next_attempt_at": None,
    }


@pytest.mark.parametrize("lines", [False, True])
async def test_the_end_of_a_batch_is_posted_as_the_api_shows_it(
    caller: Client, receiver: Receiver, lines: bool
) -> None:
    url = f"{receiver.url}/hook"
    receiver.statuses["/hook"] = [500]
    item = {"custom_id": "row-1", "query": "hello"}
    if lines:
        accepted = await caller.http.post(
            "/batches",
            params={"agent_type": "breaks", "webhook_url": url},
            json=item,
            headers={"Content-Type": "application/x-ndjson"},
        )
    else:
        accepted = await caller.http.post(
            "/batches", json={"agent_type": "breaks", "items": [item], "webhook_url": url}
        )

    (logged,) = await delivered(caller)

    secret = (await caller.http.get("/webhooks/secret")).json()["secret"]
    events = [received.verified(secret) for received in receiver.received]
    batch = (await caller.http.get(f"/batches/{accepted.json()['id']}")).json()
    assert batch["counts"]["failed"] == 1
    assert events == [{"type": "batch.completed", "timestamp": batch["finished_at"], "data": batch}] * 2
    assert {received.id for received in receiver.received} == {logged["id"]}
    assert (logged["type"], logged["resource_id"], logged["attempts"]) == ("batch.completed", batch["id"], 2)


async def test_a_batch_is_not_told_to_an_address_that_is_not_public(caller: Client) -> None:
    url = "https://10.0.0.1/hook"
    item = {"custom_id": "row-1", "query": "hello"}
    asked = {"agent_type": "echo", "webhook_url": url}
    as_json = await caller.http.post("/batches", json={**asked, "items": [item]})
    headers = {"Content-Type": "application/x-ndjson"}
    as_lines = await caller.http.post("/batches", params=asked, json=item, headers=headers)

    assert errors_of(as_json) == {("/webhook_url", "address_not_public")}
    assert errors_of(as_lines) == {("?webhook_url", "address_not_public")}
    assert (await caller.http.get("/batches")).json()["items"] == []


async def test_a_large_output_is_sent_whole(caller: Client, receiver: Receiver) -> None:
    run = await caller.run("1 MB", agent_type="big", webhook_url=f"{receiver.url}/hook")

    await delivered(caller)

    assert len(receiver.received[0].body) > 50 * CHUNK_BYTES
    secret = (await caller.http.get("/webhooks/secret")).json()["secret"]
    assert receiver.received[0].verified(secret)["data"] == await caller.read(run["id"])


async def test_failures_and_cancellations_are_told_and_so_is_what_a_deleted_thread_ended(
    caller: Client, receiver: Receiver
) -> None:
    async def ask(path: str, **target: Any) -> str:
        return (await caller.run("30 seconds", webhook_url=receiver.url + path, **target))["id"]

    thread_id = await caller.thread("slow")
    failed = await ask("/failed", agent_type="breaks")
    cancelled = await ask("/cancelled", agent_type="slow")
    running, queued = await ask("/running", thread_id=thread_id), await ask("/queued", thread_id=thread_id)
    while (await caller.read(running))["status"] != "running":  # noqa: ASYNC110  (another process)
        await asyncio.sleep(0.02)
    await caller.http.post(f"/runs/{cancelled}/cancel")
    await caller.http.delete(f"/threads/{thread_id}")

    await delivered(caller, 4)

    secret = (await caller.http.get("/webhooks/secret")).json()["secret"]
    events = {received.path: received.verified(secret) for received in receiver.received}
    told = {path: (event["type"], event["data"]["id"], event["data"]["status"]) for path, event in events.items()}
    assert told == {
        "/failed": ("run.failed", failed, "failed"),
        "/cancelled": ("run.cancelled", cancelled, "cancelled"),
        "/running": ("run.cancelled", running, "cancelled"),
        "/queued": ("run.cancelled", queued, "cancelled"),
    }
    assert events["/failed"]["data"]["error"]["code"] == "agent_error"


async def test_a_delivery_can_be_made_again_under_its_id(caller: Client, receiver: Receiver) -> None:
    receiver.statuses["/hook"] = [302]
    await caller.run("hello", agent_type="echo", webhook_url=f"{receiver.url}/hook")
    (failed,) = await delivered(caller)

    again = await caller.http.post(f"/webhooks/deliveries/{failed['id']}/redeliver")
    while (log := await delivered(caller))[0]["attempts"] == 1:
        pass

    assert (failed["status"], failed["response_status"]) == ("failed", 302)
    assert (again.status_code, again.json()["id"], again.json()["status"]) == (202, failed["id"], "pending")
    assert (log[0]["status"], log[0]["attempts"]) == ("delivered", 2)
    assert [received.id for received in receiver.received] == [failed["id"]] * 2


async def test_the_log_is_the_users_own_and_comes_in_pages(
    caller: Client, hasty_api: Running, receiver: Receiver
) -> None:
    receiver.statuses["/gone"] = [410]
    for path in ("/one", "/gone", "/three"):
        await caller.run("hello", agent_type="echo", webhook_url=receiver.url + path)
    items = await delivered(caller, 3)

    page = (await caller.http.get("/webhooks/deliveries", params={"limit": 2})).json()
    rest = (await caller.http.get("/webhooks/deliveries", params={"cursor": page["next_cursor"]})).json()
    gone = (await caller.http.get("/webhooks/deliveries", params={"status": "disabled"})).json()["items"]
    assert page["items"] + rest["items"] == items
    assert rest["next_cursor"] is None
    assert [item["url"] for item in gone] == [f"{receiver.url}/gone"]
    async with Client(hasty_api.url) as neighbour, Client(hasty_api.url, "other", caller.user_id) as namesake:
        for stranger in (neighbour, namesake):
            assert (await stranger.http.get("/webhooks/deliveries")).json()["items"] == []
            redelivery = await stranger.http.post(f"/webhooks/deliveries/{items[0]['id']}/redeliver")
            problem_of(redelivery, 404, "not_found")


async def test_the_secret_is_the_tenants_and_is_rotated(caller: Client, hasty_api: Running) -> None:
    shown = await caller.http.get("/webhooks/secret")
    rotation = await caller.http.post("/webhooks/secret/rotate")
    async with Client(hasty_api.url) as colleague, Client(hasty_api.url, "other") as other:
        now = (await colleague.http.get("/webhooks/secret")).json()
        others = (await other.http.get("/webhooks/secret")).json()

    assert now == rotation.json()
    assert len({shown.json()["secret"], now["secret"], others["secret"]}) == 3
    assert (now["former_until"] > now["created_at"], others["former_until"]) == (True, None)
    assert shown.headers["cache-control"] == rotation.headers["cache-control"] == "no-store"

    again = await caller.http.post("/webhooks/secret/rotate")
    problem_of(again, 429, "secret_rotated_lately")
    assert 0 < int(again.headers["retry-after"]) <= 60
    assert (await caller.http.get("/webhooks/secret")).json() == now


# Who dies.


async def test_a_worker_killed_in_the_middle_of_a_delivery_costs_no_event(
    service: Service, stage: Stage, database_url: str, receiver: Receiver
) -> None:
    service.environment |= HASTE
    doomed = service.worker()
    run_id = await end_for(stage, f"{receiver.url}/hangs")
    await asyncio.to_thread(eventually, lambda: receiver.received)
    doomed.kill()
    receiver.hanging.set()

    async with carrying(stage, settings_of(database_url)):
        (delivery,) = await settled(stage)

    assert (delivery.status, delivery.resource_id) == ("delivered", run_id)
    assert {received.id for received in receiver.received} == {str(delivery.id)}
    assert len(receiver.received) == delivery.attempts >= 2


@pytest.mark.parametrize("noun", ["run", "batch"])
async def test_a_worker_killed_between_an_end_and_its_delivery_costs_no_event(
    service: Service, stage: Stage, database_url: str, receiver: Receiver, noun: str
) -> None:
    service.environment |= HASTE
    await stage.execute(  # What has just ended is not due yet.
        "CREATE FUNCTION later() RETURNS trigger LANGUAGE plpgsql "
        "AS $$ BEGIN NEW.due_at := now() + interval '3 seconds'; RETURN NEW; END $$"
    )
    await stage.execute(
        "CREATE TRIGGER later BEFORE INSERT ON webhook_deliveries FOR EACH ROW EXECUTE FUNCTION later()"
    )
    doomed = service.worker()
    if noun == "run":
        ended = await stage.query(webhook_url=f"{receiver.url}/hook")  # A sweeper rings for it.
    else:
        ended = (await batch_of(stage, webhook_url=f"{receiver.url}/hook")).batch.id
    await asyncio.to_thread(eventually, lambda: ended_of(database_url) == [ended])
    doomed.kill()
    undelivered = list(receiver.received)

    async with carrying(stage, settings_of(database_url)):
        (delivery,) = await settled(stage)

    assert undelivered == []
    assert (delivery.status, delivery.attempts, delivery.resource_id) == ("delivered", 1, ended)
    assert [received.id for received in receiver.received] == [str(delivery.id)]


def ended_of(database_url: str) -> list[UUID]:
    """Name what has ended and is to be told."""
    ended = "SELECT id FROM {} WHERE webhook_url IS NOT NULL AND finished_at IS NOT NULL"
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(f"{ended.format('runs')} UNION ALL {ended.format('batches')}").fetchall()  # pyright: ignore[reportArgumentType, reportCallIssue]
    return [row[0] for row in rows]
