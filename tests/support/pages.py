"""What tests of the pages share: a service with agents to look at, a browser that is signed in, and what people do."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import LiteralString
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.async_api import Locator, Page, expect

from tests.support.service import TEST_AGENTS, Running, serving
from tests.support.window import Window, browsing

_SHOWN = {name: f"tests.support.shown_agents:{name}" for name in ("report", "parrot", "items")}
_ASKS = {"asks": "tests.support.waiting_agents:asks"}
PAGE_AGENTS = ",".join(f"{name}={path}" for name, path in (TEST_AGENTS | _SHOWN | _ASKS).items())

ENDED_BATCH: LiteralString = """
    WITH batch AS (
        INSERT INTO batches (id, tenant, user_id, agent_type, metadata, run_seconds, status, total, succeeded,
                             deadline_at, finished_at)
        VALUES (gen_random_uuid(), 'acme', %(user)s, %(agent)s, '{}', 60, 'completed', %(total)s, %(total)s,
                now() + interval '1 hour', now())
        RETURNING id
    ), made AS (
        INSERT INTO runs (id, tenant, user_id, agent_type, pool, lane, text_output, query, metadata, user_message_id,
                          message_id, batch_id, custom_id, status, attempt, output, deadline_at, finished_at, end_told)
        SELECT gen_random_uuid(), 'acme', %(user)s, %(agent)s, 'default', 'batch', true, 'hello', '{}',
               gen_random_uuid(), gen_random_uuid(), batch.id, 'row-' || n, 'succeeded', 1,
               repeat('An answer of some words. ', %(sentences)s), now() + interval '1 hour', now(), true
        FROM batch, generate_series(1, %(total)s) AS n RETURNING id, batch_id
    )
    INSERT INTO batch_results (batch_id, place, run_id)
    SELECT batch_id, row_number() OVER (), id FROM made RETURNING batch_id
"""
"""A batch of `total` runs that have all succeeded, each with an answer of `sentences` of 25 characters."""


@pytest.fixture(scope="module")
def pages_api(
    new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """An API process with a worker, for the tests that leave both alive."""
    folder = tmp_path_factory.mktemp("service")
    with serving(new_database(), new_redis(), folder, {"AGENTS": PAGE_AGENTS}) as service:
        api = service.api()
        service.worker()
        yield api


@pytest.fixture
async def window(pages_api: Running) -> AsyncGenerator[Window]:
    """A browser that is signed in as a user whom nobody else is."""
    async with browsing(pages_api.url) as window:
        await window.sign_in()
        yield window


def answer(page: Page, status: str = "succeeded", turn: int = -1) -> Locator:
    """The answer of a turn in that state."""
    return page.locator("article").nth(turn).and_(page.locator(f"article[data-status={status}]")).locator(".answer")


async def beyond_the_edge(page: Page) -> list[str]:
    """What of a page lies right of what is seen, but for tables, which scroll for themselves."""
    return await page.locator("main *").evaluate_all(
        """all => all.filter((each) => !each.closest(".scrolls") && each.getBoundingClientRect().right > innerWidth + 1)
            .map((each) => each.outerHTML.slice(0, 80))"""
    )


async def drop(page: Page, name: str, content: bytes) -> None:
    """Choose a file; a browser without a screen has nothing to drag."""
    await page.locator("input[type=file]").set_input_files(
        {"name": name, "mimeType": "application/octet-stream", "buffer": content}
    )


async def submit(page: Page, agent: str, rows: str) -> str:
    """Submit what is shown; returns the id of the batch."""
    await page.get_by_role("combobox", name="Agent", exact=True).select_option(agent)
    await page.get_by_role("button", name=re.compile(f"^Submit {rows} rows?$")).click()
    await expect(page.locator(".batch")).to_be_visible()
    return parse_qs(urlsplit(page.url).query)["batch"][0]
