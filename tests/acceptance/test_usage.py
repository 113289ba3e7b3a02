"""What a run used and cost, told wherever a run is told of, and limited."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.support import fake_openai
from tests.support.client import Client
from tests.support.eventually import soon
from tests.support.problems import problem_of
from tests.support.service import KEYS, TEST_AGENTS, serving

PRICED = "gpt-4o-mini"
COST = (6 * 0.15 + 4 * 0.075 + 20 * 0.6) / 1_000_000
"""Of one request, in US dollars: it reads 10 tokens, 4 of them out of the cache, and writes 20."""
OF_TWO_REQUESTS = {
    "requests": 2,
    "input_tokens": 20,
    "output_tokens": 40,
    "cache_read_tokens": 8,
    "cache_write_tokens": 0,
    "tool_calls": 1,
    "cost_usd": pytest.approx(2 * COST),
}
SPEND_LIMIT = "MAX_COST_USD_PER_TENANT_DAY"
Serve = Callable[..., Client]


@pytest.fixture
async def serve(database_url: str, new_redis: Callable[[], str], tmp_path: Path) -> AsyncGenerator[Serve]:
    """Serves the sample agent with a model at the fake provider; it asks twice and calls a tool in between."""
    with fake_openai.running() as provider, serving(database_url, new_redis(), tmp_path) as service:

        def begin(model: str, **settings: str) -> Client:
            sample = "bank_support=agent_relay.worker.agents.bank_support:served"
            agents = f"{sample},echo={TEST_AGENTS['echo']}"
            service.worker(MODEL=f"openai-chat:{model}", OPENAI_BASE_URL=provider, AGENTS=agents, **settings)
            return Client(service.api(**{name: settings[name] for name in settings.keys() & {SPEND_LIMIT}}).url)

        yield begin


async def test_a_run_says_what_it_used_and_cost(serve: Serve) -> None:
    async with serve(PRICED) as client:
        events = await client.stream("What is my balance?", agent_type="bank_support")
        run = await client.read(events[0]["run_id"])
        items = [{"custom_id": "one", "query": "What is my balance?"}]
        batch = (await client.http.post("/batches", json={"agent_type": "bank_support", "items": items})).json()
        results = await client.http.get(f"/batches/{batch['id']}/results", params={"follow": "true"})
        (line,) = [each for each in map(json.loads, results.text.splitlines()) if "custom_id" in each]

    assert run["usage"] == OF_TWO_REQUESTS
    assert events[-2]["usage"] == OF_TWO_REQUESTS
    assert line["usage"] == OF_TWO_REQUESTS


async def used(client: Client, by: str, **days: str) -> dict[str | None, tuple[int, dict[str, float | None]]]:
    """Ask what was used."""
    page = (await client.http.get("/usage", params={"by": by, **days})).json()
    assert page["next_cursor"] is None
    return {item["key"]: (item["runs"], item["usage"]) for item in page["items"]}


async def used_by_another_tenant(client: Client) -> dict[str | None, tuple[int, dict[str, float | None]]]:
    """Ask the same as the same user of another tenant."""
    client.http.headers["X-API-Key"] = KEYS["other"]
    try:
        return await used(client, "agent")
    finally:
        client.http.headers["X-API-Key"] = KEYS["acme"]


async def test_what_runs_used_is_summed_also_once_they_are_erased(serve: Serve, database_url: str) -> None:
    async with serve(PRICED) as client:
        thread_id = await client.thread("bank_support")
        for _ in range(2):
            assert (await client.ask("What is my balance?", thread_id=thread_id)).is_success
        free = await client.run("hello", agent_type="echo")
        await client.ended(free["id"])
        before = {by: await used(client, by) for by in ("agent", "user", "model", "day")}
        of_others = [await used_by_another_tenant(client)]
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(
                "DELETE FROM runs WHERE id = (SELECT id FROM runs WHERE thread_id = %s LIMIT 1)", [thread_id]
            )
            partly = {by: await used(client, by) for by in before}
            connection.execute("DELETE FROM threads WHERE id = %s", [thread_id])
            connection.execute("DELETE FROM runs")
        after = {by: await used(client, by) for by in before}
        of_others.append(await used_by_another_tenant(client))
        today = next(iter(before["day"]))
        assert today is not None
        of_long_ago = await used(client, "agent", **{"from": "2020-01-01", "to": "2020-01-31"})
        of_today = await used(client, "agent", **{"from": today, "to": today})
        wrong = await client.http.get("/usage", params={"from": "0"})

    runs, usage = before["agent"]["bank_support"]
    assert (runs, usage["requests"], usage["cost_usd"]) == (2, 4, pytest.approx(4 * COST))
    assert before["agent"]["echo"][1]["cost_usd"] is None
    assert before["agent"]["echo"][1]["requests"] == 1
    assert before["model"].keys() >= {PRICED}
    assert before["user"].keys() == {client.user_id}
    assert [runs for runs, _ in before["day"].values()] == [3]
    assert after == partly == before
    assert of_today == before["agent"]
    assert of_long_ago == {}
    assert of_others == [{}, {}]
    assert problem_of(wrong, 422)["errors"][0]["message"] == "Give a day such as 2026-01-31"


async def test_what_earlier_attempts_used_and_cost_counts(serve: Serve) -> None:
    haste = {"LEASE_SECONDS": "3", "BEAT_SECONDS": "1"}
    async with serve(PRICED, FAILPOINTS="step_stored=kill@1", **haste) as client:
        lost = await client.run("What is my balance?", agent_type="bank_support")
        async with serve(PRICED, **haste):
            run = await client.ended(lost["id"])

    assert run["attempt"] == 2
    assert run["usage"] == OF_TWO_REQUESTS


async def test_what_has_no_price_costs_null(serve: Serve) -> None:
    async with serve(PRICED) as client:
        events = await client.stream("hello", agent_type="echo")

    assert events[-2]["usage"]["requests"] == 1
    assert events[-2]["usage"]["cost_usd"] is None


async def test_a_run_that_costs_too_much_fails(serve: Serve) -> None:
    async with serve(PRICED, MAX_COST_USD=str(COST / 2)) as client:
        run = await client.ended((await client.run("What is my balance?", agent_type="bank_support"))["id"])

    assert (run["status"], run["error"]["code"]) == ("failed", "usage_limit_exceeded")
    assert run["usage"]["requests"] == 1
    assert run["usage"]["cost_usd"] == pytest.approx(COST)


async def test_a_tenant_that_has_spent_what_it_may_a_day_is_refused(serve: Serve) -> None:
    query = {"agent_type": "bank_support", "query": "What is my balance?"}
    batch = {"agent_type": "bank_support", "items": [{"custom_id": "one", "query": "What is my balance?"}]}
    async with serve(PRICED, **{SPEND_LIMIT: str(1.5 * COST)}) as client:
        thread_id = await client.thread("bank_support")
        key = {"Idempotency-Key": "first"}
        in_thread = {"thread_id": thread_id, "query": "What is my balance?"}
        first = await client.http.post("/agent/query", json=in_thread, headers=key)

        async def refused() -> httpx.Response | None:
            asked = await client.ask("What is my balance?", agent_type="bank_support")
            return asked if asked.status_code == 429 else None

        of_run = await soon(refused)
        assert of_run is not None
        of_batch = await client.http.post("/batches", json=batch)
        of_stream = await client.http.post("/agent/stream", json=query)
        later = await client.http.post("/runs", json={**query, "start_after_s": 86_400})
        later_batch = await client.http.post("/batches", json={**batch, "start_after_s": 86_400})
        again = await client.http.post("/agent/query", json=in_thread, headers=key)
        client.http.headers["X-API-Key"] = KEYS["other"]
        of_other = await client.ask("What is my balance?", agent_type="bank_support")

    assert (first.status_code, of_other.status_code) == (200, 200)
    for response in (of_run, of_batch, of_stream):
        problem = problem_of(response, 429, "budget_exhausted")
        assert problem["detail"].startswith(
            f"The spend limit of this tenant ({1.5 * COST:g} US dollars a day) is reached"
        )
        assert 0 < int(response.headers["Retry-After"]) <= 86_400
    assert (later.status_code, later_batch.status_code) == (202, 202)
    assert again.headers["Idempotency-Replayed"] == "true"


async def test_what_was_accepted_before_fails_as_it_begins_and_costs_nothing(serve: Serve) -> None:
    query = {"agent_type": "bank_support", "query": "What is my balance?"}
    async with serve(PRICED, **{SPEND_LIMIT: str(1.5 * COST)}) as client:
        later = (await client.http.post("/runs", json={**query, "start_after_s": 8})).json()
        assert (await client.ask("What is my balance?", agent_type="bank_support")).is_success
        run = await client.ended(later["id"])
        by_day = await used(client, "day")

    assert (run["status"], run["error"]["code"], run["error"]["retryable"]) == ("failed", "budget_exhausted", False)
    assert "is reached; retry after midnight, UTC." in run["error"]["message"]
    assert run["usage"]["cost_usd"] is None
    assert [usage["cost_usd"] for _, usage in by_day.values()] == [pytest.approx(2 * COST)]


async def test_what_was_erased_today_stays_spent(serve: Serve, database_url: str) -> None:
    async with serve(PRICED, **{SPEND_LIMIT: str(1.5 * COST)}) as client:
        assert (await client.ask("What is my balance?", agent_type="bank_support")).is_success
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("DELETE FROM runs")

        async def refused() -> bool:
            return (await client.ask("hello", agent_type="echo")).status_code == 429

        assert await soon(refused)
