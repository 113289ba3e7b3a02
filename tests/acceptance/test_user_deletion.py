"""One call erases everything of a user, whatever is under way; nothing of anybody else, and nothing made later."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql
from redis.asyncio import Redis

from tests.support.client import Client, names
from tests.support.eventually import soon
from tests.support.problems import problem_of
from tests.support.service import Service, serving

STAYS = {"past_usage", "user_token_revocations", "user_deletions"}
"""Tables that still name the user: the tenant's sums, and what says that tokens are void and that all is gone."""
NOWHERE = "http://127.0.0.1:9/never"


@dataclass(frozen=True)
class House:
    """A service, and two of its API processes."""

    service: Service
    urls: tuple[str, str]

    def rows_of(self, user_id: str) -> dict[str, int]:
        """Count the rows that name a user, in every table that names users."""
        with psycopg.connect(self.service.database_url) as connection:
            tables = connection.execute(
                "SELECT table_name FROM information_schema.columns WHERE column_name = 'user_id'"
                " AND table_schema = 'public'"
            ).fetchall()
            counts: dict[str, int] = {}
            for (table,) in tables:
                count = sql.SQL("SELECT count(*) FROM {} WHERE user_id = %s").format(sql.Identifier(table))
                [(counts[table],)] = connection.execute(count, [user_id]).fetchall()
        return {table: count for table, count in counts.items() if count and table not in STAYS}

    def held(self, run_ids: list[str]) -> int:
        """Count what is held of runs without naming a user."""
        tables = ("messages", "transcripts", "run_steps", "run_messages", "run_requests", "file_uses", "batch_results")
        with psycopg.connect(self.service.database_url) as connection:
            return sum(
                count
                for table in tables
                for (count,) in connection.execute(
                    sql.SQL("SELECT count(*) FROM {} WHERE run_id = ANY(%s::uuid[])").format(sql.Identifier(table)),
                    [run_ids],
                )
            )


@pytest.fixture(scope="module")
def house(
    new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    """A house that all tests share."""
    environment = {"WEBHOOK_TRUSTED_HOSTS": "127.0.0.1"}
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("deletion"), environment) as service:
        service.worker()
        yield House(service, (service.api().url, service.api().url))


@pytest.fixture
async def user(house: House) -> AsyncGenerator[Client]:
    """A user whom nobody else is."""
    async with Client(house.urls[0]) as client:
        yield client


async def created(client: Client, path: str, **asked: Any) -> dict[str, Any]:
    """Create something."""
    response = await client.http.post(path, **asked)
    assert response.is_success, response.text
    return response.json()


async def live_of(client: Client) -> list[str]:
    """Have a user make one of everything, of which some is under way; returns the ids of its runs."""
    file = await created(client, "/files", content=b"a page of text", headers={"Content-Type": "text/plain"})
    thread_id = await client.thread("echo")
    attached = [{"file_id": file["id"]}]
    ended = await client.run("hello", thread_id=thread_id, attachments=attached, webhook_url=NOWHERE)
    await client.ended(ended["id"])
    busy = await client.thread("slow")
    async with client.asking("60 seconds", thread_id=busy) as stream:
        under_way = (await anext(stream))["run_id"]
        async for event in stream:
            if event["event"] == "message_started":
                break
    await client.run("hello", thread_id=busy)
    await client.run("later", agent_type="echo", start_after_s=600)
    alone = await client.run("hello", agent_type="echo")
    await client.ended(alone["id"])
    items = [{"custom_id": str(number), "query": "60 seconds" if number else "0 seconds"} for number in range(4)]
    await created(client, "/batches", json={"agent_type": "slow", "items": items, "webhook_url": NOWHERE})
    await created(client, "/schedules", json={"cron": "0 8 * * *", "query": "hello", "thread_id": thread_id})
    runs = (await client.http.get("/runs", params={"limit": 100})).json()["items"]
    assert {ended["id"], under_way, alone["id"]} <= {run["id"] for run in runs}
    return [run["id"] for run in runs]


async def exported(client: Client) -> list[dict[str, Any]]:
    """Export everything of a user, without what only says when."""
    response = await client.http.get("/users/me/export")
    assert response.status_code == httpx.codes.OK
    return [json.loads(line) for line in response.text.splitlines()]


async def is_done(client: Client, deletion: dict[str, Any]) -> dict[str, Any]:
    """Wait until nothing is left."""

    async def look() -> dict[str, Any]:
        read = (await client.http.get(f"/users/me/deletions/{deletion['id']}")).json()
        return read if read["status"] == "completed" else {}

    return await soon(look)


async def test_nothing_of_a_user_is_left_and_nobody_else_misses_anything(house: House, user: Client) -> None:
    async with Client(house.urls[1]) as other:
        of_other = await other.ended((await other.run("hello", thread_id=await other.thread("echo")))["id"])
        run_ids = await live_of(user)
        before = await exported(other)
        assert house.rows_of(user.user_id).keys() >= {
            "threads", "runs", "batches", "schedules", "files", "webhook_deliveries"
        }  # fmt: skip

        response = await user.http.delete("/users/me/data")

        assert response.status_code == httpx.codes.ACCEPTED, response.text
        deletion = response.json()
        assert response.headers["location"] == f"/api/v1/users/me/deletions/{deletion['id']}"
        for path in ("/threads", "/batches", "/schedules"):
            assert (await user.http.get(path)).json()["items"] == []
        later = await user.run("made later", thread_id=await user.thread("echo"))
        await user.ended(later["id"])
        done = await is_done(user, deletion)

        assert done["finished_at"] > done["created_at"]
        assert house.held(run_ids) == 0
        assert [run["id"] for run in (await user.http.get("/runs")).json()["items"]] == [later["id"]]
        assert [line["type"] for line in await exported(user)].count("thread") == 1
        assert house.rows_of(user.user_id) == {"threads": 1, "runs": 1}
        for run_id in run_ids:
            problem_of(await user.http.get(f"/runs/{run_id}"), 404, "not_found")
        async with Redis.from_url(house.service.redis_url) as redis:
            logs = {key.decode() for key in await redis.keys("*log:*")}
        assert not [log for log in logs for run_id in run_ids if run_id in log]
        assert (await exported(other))[1:] == before[1:]
        assert await other.read(of_other["id"]) == of_other


async def test_who_follows_is_told_the_end_and_another_user_finds_no_deletion(house: House, user: Client) -> None:
    run = await user.run("60 seconds", thread_id=await user.thread("slow"))
    async with Client(house.urls[1], user_id=user.user_id) as tab, tab.following(run["id"]) as stream:
        assert (await anext(stream))["event"] == "message_created"
        deletion = (await user.http.delete("/users/me/data")).json()
        rest = [event async for event in stream]
    await is_done(user, deletion)

    assert names(rest)[-2:] == ["cancelled", "done"]
    async with Client(house.urls[0]) as somebody, Client(house.urls[0], "other", user.user_id) as tenant:
        for client in (somebody, tenant):
            problem_of(await client.http.get(f"/users/me/deletions/{deletion['id']}"), 404, "not_found")


async def test_tokens_of_the_user_are_void_afterwards_and_some_may_not_delete(house: House, user: Client) -> None:
    thread_id = await user.thread("echo")
    token = (await created(user, "/user-tokens", json={"user_id": user.user_id, "ttl_s": 600}))["token"]
    rights: list[dict[str, Any]] = [{"read_only": True}, {"threads": [thread_id]}]
    limited = [
        (await created(user, "/user-tokens", json={"user_id": user.user_id, "ttl_s": 600, **each}))["token"]
        for each in rights
    ]
    async with httpx.AsyncClient(base_url=f"{house.urls[0]}/api/v1") as page:
        for each in limited:
            refused = await page.delete("/users/me/data", headers={"Authorization": f"Bearer {each}"})
            assert refused.status_code == httpx.codes.FORBIDDEN
        own = {"Authorization": f"Bearer {token}"}
        assert (await page.delete("/users/me/data", headers=own)).status_code == httpx.codes.ACCEPTED

        async def is_void() -> bool:
            return (await page.get("/threads", headers=own)).status_code == 401

        await soon(is_void)


async def test_deletions_that_come_together_are_done_together(house: House, user: Client) -> None:
    await live_of(user)
    async with Client(house.urls[1], user_id=user.user_id) as tab:
        answers = await asyncio.gather(
            *(client.http.delete("/users/me/data") for client in (user, tab) for _ in range(3))
        )
        for answer in answers:
            assert answer.status_code == httpx.codes.ACCEPTED, answer.text
            await is_done(user, answer.json())

    assert house.rows_of(user.user_id) == {}
