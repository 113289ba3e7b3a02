"""The operations page in a real browser: figures, plots, dead letters, a run as a timeline, and what breaks."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import psycopg
import pytest
from playwright.async_api import Locator, Page, expect
from psycopg import sql

from tests.support.client import Client
from tests.support.service import KEYS, OPERATOR_KEY, Running, Service
from tests.support.window import Window, browsing, check_accessibility

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script> \u202egnp.exe'

_DEAD: LiteralString = """
    INSERT INTO runs (id, tenant, user_id, agent_type, pool, text_output, query, metadata, user_message_id, message_id,
                      status, attempt, deadline_at, created_at, started_at, rung_at, finished_at, end_told, error)
    SELECT gen_random_uuid(), 'acme', %(user)s, %(agent)s, 'default', true, 'a secret', '{}', gen_random_uuid(),
           gen_random_uuid(), 'failed', 1, now() + interval '1 hour', now() - interval '3 seconds',
           now() - interval '2 seconds', now() - interval '3 seconds', now(), true, %(error)s
    FROM generate_series(1, %(runs)s) RETURNING id
"""

_DELIVERY: LiteralString = """
    INSERT INTO webhook_deliveries (id, tenant, user_id, type, resource_id, url, occurred_at, status, attempts, due_at,
                                    last_attempt_at, response_status, error)
    VALUES (gen_random_uuid(), 'acme', gen_random_uuid(), 'run.succeeded', gen_random_uuid(),
            'https://hooks.example/in?token=secret', now(), %s, 3, now() + interval '1 hour', now(), %s, %s)
"""


def execute(service: Service, statement: LiteralString, values: Any = None) -> list[Any]:
    """Change the database as its owner; returns what the statement returns."""
    with psycopg.connect(service.database_url, autocommit=True) as connection:
        cursor = connection.execute(sql.SQL(statement), values)
        return cursor.fetchall() if cursor.description else []


def dead(service: Service, runs: int, code: str, agent: str = "echo", message: str = "It failed.") -> Sequence[UUID]:
    """Have runs that failed."""
    error = json.dumps({"code": code, "message": message, "retryable": True})
    values = {"runs": runs, "user": uuid4(), "agent": agent, "error": error}
    return [row[0] for row in execute(service, _DEAD, values)]


def minute(service: Service, ago: int, **figures: Any) -> None:
    """Have the figures of a minute recorded."""
    at = (datetime.now(UTC) - timedelta(minutes=ago)).replace(second=0, microsecond=0)
    whole: dict[str, Any] = {"ended": [], "picked_up": {}, "queues": [], "streams": 0, **figures}
    statement = (
        "INSERT INTO service_minutes VALUES (%s, %s) ON CONFLICT (minute) DO UPDATE SET figures = excluded.figures"
    )
    execute(service, statement, (at, json.dumps(whole)))


async def sign_in(window: Window, path: str = "/ops") -> Page:
    """Sign in as an operator does: the page to sign in comes by itself."""
    page = await window.tab(path)
    await page.get_by_label("Key of an operator").fill(OPERATOR_KEY)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.locator("main.ops")).to_have_attribute("data-ready", "true")
    return page


@asynccontextmanager
async def operating(api: Running, **options: Any) -> AsyncGenerator[tuple[Window, Page]]:
    """A browser in which an operator is signed in."""
    async with browsing(api.url, locale="en-GB", **options) as window:
        yield window, await sign_in(window)


def figure(page: Page, name: str) -> Locator:
    """One of the numbers at the top."""
    return page.locator(".figure").filter(has=page.get_by_text(name, exact=True))


def table(page: Page, heading: str) -> Locator:
    """The section of a table."""
    return page.locator("section").filter(has=page.get_by_role("heading", name=re.compile(f"^{heading}")))


def plot(page: Page, title: str) -> Locator:
    """A plot."""
    return page.get_by_role("img", name=re.compile(f"^{title}: "))


async def ask(api: Running, agent: str, user_id: str) -> str:
    """Have a run end; returns its id."""
    async with Client(api.url, user_id=user_id) as client:
        body = {"agent_type": agent, "query": "What is my balance? It is a secret"}
        answer = await client.http.post("/agent/query", json=body)
        return answer.json()["run_id"]


async def test_an_operator_sees_the_service_breathe(service: Service) -> None:
    api = service.api()
    worker = service.worker()
    minute(service, 5, ended=[["echo", "succeeded", "", 12, 600, None, None]], picked_up={"interactive": {"20": 12}})
    minute(service, 100, ended=[["old", "failed", "agent_error", 30, 0, str(uuid4()), "It broke."]])
    for status, response, error in (("pending", 503, None), ("failed", None, "no route to host")):
        execute(service, _DELIVERY, (status, response, error))
    async with operating(api) as (window, page):
        await expect(table(page, "Workers").locator("tbody tr")).to_have_count(1)
        await expect(table(page, "Workers")).to_contain_text("takes runs")
        await expect(table(page, "Workers")).to_contain_text(str(worker.process.pid))
        await expect(table(page, "API processes")).to_contain_text(str(api.process.pid))
        deliveries = table(page, "Webhook deliveries that fail")
        await expect(deliveries).to_contain_text("HTTP 503")
        await expect(deliveries).to_contain_text("no route to host")
        assert "secret" not in await deliveries.inner_text()

        for agent in ("echo", "echo", "breaks"):
            await ask(api, agent, window.user_id)
        await expect(figure(page, "Ended in the last minute")).to_contain_text("1 failed")
        await expect(table(page, "Agents, last minute")).to_contain_text("breaks")
        await expect(table(page, "Failures").locator("tr", has_text="breaks")).to_contain_text("agent_error")
        await expect(figure(page, "Pick-up, median")).to_contain_text(re.compile(r"\d ms|\d s"))
        await expect(plot(page, "Runs a minute, by outcome")).to_have_attribute(
            "aria-label", re.compile("failed [1-9]")
        )
        await expect(plot(page, "Runs a minute, by agent")).to_have_attribute("aria-label", re.compile("breaks [1-9]"))

        await page.get_by_role("radio", name="3 hours").check()
        await expect(table(page, "Failures").locator("tr", has_text="It broke.")).to_contain_text("30")
        await page.get_by_role("radio", name="A day").check()
        await expect(table(page, "Failures").locator("tr", has_text="It broke.")).to_contain_text("30")
        await check_accessibility(page)

        await page.goto(f"{window.url}/ops")
        await expect(page.locator("main.ops")).to_have_attribute("data-ready", "true")
        worker.kill()
        await expect(table(page, "Workers")).not_to_contain_text("takes runs")
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("Key of an operator")).to_be_visible()


async def test_the_plots_survive_the_death_of_every_process(service: Service) -> None:
    api = service.api()
    for ago in range(2, 14):
        queues = [["default", "interactive", "queued", 40, 7.5], ["default", "batch", "queued", 900, 100]]
        minute(service, ago, ended=[["echo", "succeeded", "", 6, 60, None, None]], queues=queues, streams=3)
    async with operating(api) as (_, page):
        for again in (False, True):
            await plot(page, "Queued").hover()
            await expect(plot(page, "Queued")).to_have_attribute("aria-label", "Queued: interactive 40, batch 900")
            await page.mouse.move(0, 0)
            if not again:
                api.kill()
                await expect(page.get_by_role("alert")).to_contain_text("The service does not answer")
                service.api(PORT=str(urlsplit(api.url).port))
                await expect(page.get_by_role("alert")).to_have_count(0)
                await page.reload()
                await expect(page.locator("main.ops")).to_have_attribute("data-ready", "true")


async def test_dead_letters_are_requeued_one_some_and_all_of_a_code(service: Service) -> None:
    api = service.api()
    service.worker()
    crashed = dead(service, 130, "worker_crashed")
    dead(service, 3, "model_unavailable")
    unserved = dead(service, 1, "output_invalid", agent="retired")
    async with operating(api) as (_, page):
        letters = table(page, "Dead letters")
        notice = letters.get_by_role("status")
        code = letters.get_by_role("combobox", name="Code", exact=True)
        await code.select_option("model_unavailable")
        await expect(letters.locator("tbody tr")).to_have_count(3)
        await letters.locator("tbody tr").first.get_by_role("button", name="Requeue").click()
        await expect(notice).to_have_text("1 requeued.")
        await expect(letters.locator("tbody tr")).to_have_count(2)
        for box in await letters.locator("tbody").get_by_role("checkbox").all():
            await box.check()
        await letters.get_by_role("button", name="Requeue 2 selected").click()
        await expect(notice).to_have_text("2 requeued.")
        await expect(letters).to_contain_text("None.")

        await code.select_option("output_invalid")
        await letters.locator("tbody tr").get_by_role("button", name="Requeue").click()
        await expect(notice).to_have_text("1 not requeued: no worker has registered their agent.")

        await code.select_option("worker_crashed")
        await expect(letters.locator("tbody tr")).to_have_count(50)
        await letters.get_by_role("button", name="Requeue all of worker_crashed").click()
        await check_accessibility(page)
        await page.get_by_role("dialog").get_by_role("button", name="Requeue all").click()
        await expect(notice).to_have_text("130 requeued.")
        await expect(letters).to_contain_text("None.")
    again = execute(service, "SELECT id, requeued_as FROM runs WHERE status = 'failed'")
    assert {run_id for run_id, requeued_as in again if requeued_as is None} == set(unserved)
    assert set(crashed) <= {run_id for run_id, _ in again}


async def test_a_run_opens_as_a_timeline_without_what_was_said(service: Service) -> None:
    service.environment["AGENTS"] = "bank_support=agent_relay.worker.agents.bank_support:served"
    api = service.api()
    service.worker()
    run_id = await ask(api, "bank_support", str(uuid4()))
    async with operating(api) as (_, page):
        await page.get_by_label("Id of the run").fill(run_id)
        await page.get_by_role("button", name="Open", exact=True).click()
        moments = page.get_by_role("list", name="Timeline").locator("li")
        for _ in range(2):
            await expect(moments.last).to_have_attribute("data-what", "published")
            told = [await moment.get_attribute("data-what") for moment in await moments.all()]
            assert told == [
                *("accepted", "enqueued", "claimed", "attempt", "tool", "tool", "text", "ended", "published")
            ]
            await expect(moments.nth(4)).to_contain_text("customer_balance is called")
            assert "secret" not in await page.get_by_role("dialog").inner_text()
            await check_accessibility(page)
            await page.reload()
        await page.get_by_role("dialog").get_by_role("button", name="Close").click()
        await expect(page).not_to_have_url(re.compile("run="))
        await page.get_by_label("Id of the run").fill("no such run")
        await page.get_by_role("button", name="Open", exact=True).click()
        await expect(page.get_by_role("dialog").get_by_role("alert")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_hostile_text_stays_text_on_a_phone(service: Service, scheme: Any) -> None:
    api = service.api()
    dead(service, 2, "output_invalid", agent=HOSTILE, message=HOSTILE)
    minute(service, 3, ended=[[HOSTILE, "failed", HOSTILE, 4, 0, str(uuid4()), HOSTILE]])
    execute(
        service,
        """INSERT INTO workers (id, pool, host, pid, version, slots, lease_until)
           VALUES (gen_random_uuid(), %(text)s, %(text)s, 1, %(text)s, 5, now() + interval '1 hour')""",
        {"text": HOSTILE},
    )
    async with operating(api, viewport={"width": 390, "height": 780}, color_scheme=scheme) as (_, page):
        await expect(table(page, "Dead letters").locator("tbody tr")).to_have_count(2)
        await expect(table(page, "Failures")).to_contain_text("<img src=x")
        await expect(table(page, "Workers")).to_contain_text("<script>")
        await expect(page.locator("main img, main script")).to_have_count(0)
        assert await page.title() == "Operations · agent-relay"
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await check_accessibility(page)


async def test_only_operators_come_in(service: Service) -> None:
    api = service.api()
    service.worker()
    async with browsing(api.url) as window:
        await window.sign_in()
        page = await window.tab("/ops")
        await page.get_by_label("Key of an operator").fill(KEYS["acme"])
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_contain_text("This is not the key of an operator")
        await check_accessibility(page)
        await page.goto(f"{window.url}/")
        await expect(page.get_by_role("heading", name="Whom do you want to ask?")).to_be_visible()
