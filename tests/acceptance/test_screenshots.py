"""Pictures of the pages, as the documentation shows them: `make screenshots` keeps them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from playwright.async_api import Page, expect

from tests.acceptance.test_ops_page import dead, minute, operating
from tests.support.service import Service
from tests.support.window import ask, browsing

WIDE, PHONE = {"width": 1200, "height": 720}, {"width": 390, "height": 780}
PROVIDER = "The model's provider does not answer (503)."
SHOTS: dict[str, dict[str, Any]] = {
    "chat-light": {"viewport": WIDE, "color_scheme": "light"},
    "chat-dark": {"viewport": WIDE, "color_scheme": "dark"},
    "chat-phone-dark": {"viewport": PHONE, "color_scheme": "dark"},
}


BATCHES: dict[str, dict[str, Any]] = {
    "batches-light": {"viewport": WIDE, "color_scheme": "light"},
    "batches-phone-dark": {"viewport": PHONE, "color_scheme": "dark"},
}
OPERATIONS: dict[str, dict[str, Any]] = {
    "operations-light": {"viewport": {"width": 1200, "height": 1150}, "color_scheme": "light"},
    "operations-dark": {"viewport": {"width": 1200, "height": 1150}, "color_scheme": "dark"},
    "operations-phone-light": {"viewport": PHONE, "color_scheme": "light"},
}


@pytest.mark.parametrize("name", SHOTS)
async def test_a_picture_of_the_chat(
    service: Service, tmp_path: Path, request: pytest.FixtureRequest, name: str
) -> None:
    service.environment["AGENTS"] = "bank_support=agent_relay.worker.agents.bank_support:served"
    api = service.api()
    service.worker()
    async with browsing(api.url, locale="en-GB", **SHOTS[name]) as window:
        await window.sign_in()
        page = await window.tab()
        await _converse(page)
        await page.locator("#query").blur()
        await _take(page, request, tmp_path, name)


@pytest.mark.parametrize("name", BATCHES)
async def test_a_picture_of_batches(
    service: Service, tmp_path: Path, request: pytest.FixtureRequest, name: str
) -> None:
    service.environment["AGENTS"] = "bank_support=agent_relay.worker.agents.bank_support:served"
    api = service.api()
    service.worker()
    rows = "".join(f"{number},What is my balance?\n" for number in range(1, 41))
    async with browsing(api.url, locale="en-GB", **BATCHES[name]) as window:
        await window.sign_in()
        page = await window.tab("/batches")
        file = {"name": "questions.csv", "mimeType": "text/csv", "buffer": f"id,question\n{rows}".encode()}
        await page.locator("input[type=file]").set_input_files(file)  # pyright: ignore[reportArgumentType]
        await page.get_by_role("button", name="Submit 40 rows").click()
        await expect(page.locator(".batch[data-status=completed]")).to_be_visible()
        await _take(page, request, tmp_path, name)


@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_picture_of_operations(
    service: Service, tmp_path: Path, request: pytest.FixtureRequest, name: str
) -> None:
    api = service.api()
    service.worker()
    _record(service)
    dead(service, 4, "model_unavailable", "bank_support", PROVIDER)
    async with operating(api, **OPERATIONS[name]) as (_, page):
        await expect(page.locator("#workers")).to_be_visible()
        await _take(page, request, tmp_path, name)


async def _take(page: Page, request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    path = Path(request.config.getoption("--screenshots") or tmp_path) / f"{name}.png"
    await page.screenshot(path=path, animations="disabled")
    assert path.stat().st_size > 10_000


def _record(service: Service) -> None:
    """Have figures that rise and fall, with three minutes in which a provider was away."""
    for ago in range(2, 17):
        runs = 40 + round(15 * math.sin(ago / 2))
        failed = 12 if ago in {6, 7, 8} else 0
        minute(
            service,
            ago,
            ended=[
                ["bank_support", "succeeded", "", runs, 900 * runs, None, None],
                ["triage", "succeeded", "", runs // 3, 200 * runs, None, None],
                ["triage", "cancelled", "", 1, 0, None, None],
                *([["triage", "failed", "model_unavailable", failed, 0, str(uuid4()), PROVIDER]] if failed else []),
            ],
            picked_up={"interactive": {str(8 + ago % 3): runs, str(18 + failed): 2}},
            queues=[
                ["default", "interactive", "queued", failed, failed / 4],
                ["default", "batch", "queued", 90 * ago, 9.0 * ago],
            ],
            streams=20 + runs // 4,
        )


async def _converse(page: Page) -> None:
    await ask(page, "I lost my card, and somebody has paid with it", "bank_support")
    await expect(page.locator("article[data-status=succeeded] .usage")).to_have_count(1)
    await ask(page, "What is my balance?")
    await expect(page.locator("article[data-status=succeeded] .usage")).to_have_count(2)
    await page.locator("summary", has_text="customer_balance").last.click()
