"""A person's browser: real pages in the system's Chromium, and everything that a page must not do fails the test."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
from axe_playwright_python import base as axe  # pyright: ignore[reportMissingTypeStubs]
from playwright.async_api import BrowserContext, ConsoleMessage, Page, Request, async_playwright, expect

from tests.acceptance.test_browser import CHROMIUM
from tests.support.service import KEYS

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
PATIENCE_MS = 60_000
_AXE = Path(axe.AXE_FILE_PATH).read_text()
_NETWORK = ("Failed to load resource", "net::ERR_")

expect.set_options(timeout=PATIENCE_MS)


class Window:
    """A browser that is signed in, with one tab or more."""

    def __init__(self, context: BrowserContext, url: str, user_id: str) -> None:
        self.context = context
        self.url = url
        self.user_id = user_id
        self.wrong: list[str] = []
        context.on("console", self._hear)
        context.on("request", self._see)
        context.on("weberror", lambda error: self.wrong.append(str(error.error)))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not any(word in message.text for word in _NETWORK):
            self.wrong.append(message.text)

    def _see(self, request: Request) -> None:
        if urlsplit(request.url).hostname != "127.0.0.1":
            self.wrong.append(f"a request to {request.url}")

    async def tab(self, path: str = "/") -> Page:
        """Open a page."""
        page = await self.context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        await page.goto(self.url + path)
        return page

    async def sign_in(self, key: str = KEYS["acme"]) -> None:
        """Sign in as the link that `make run` prints does."""
        async with httpx.AsyncClient(base_url=self.url, verify=False) as http:
            headers = {"X-API-Key": key, "X-User-ID": self.user_id}
            link = (await http.post("/console/codes", headers=headers)).json()["url"]
        page = await self.tab(link)
        await expect(page.get_by_role("heading", name="Whom do you want to ask?")).to_be_visible()
        assert "#" not in page.url
        await page.close()


@asynccontextmanager
async def browsing(url: str, **options: Any) -> AsyncGenerator[Window]:
    """Open a browser; at the end, nothing may have gone wrong in its pages."""
    if CHROMIUM is None:
        pytest.skip("There is no chromium; `.ci/run` installs it.")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = await browser.new_context(**options)
        window = Window(context, url, str(uuid4()))
        try:
            yield window
            assert window.wrong == [], window.wrong
        finally:
            await browser.close()


async def ask(page: Page, query: str, agent: str | None = None) -> None:
    """Ask as a person does: choose the agent, write, and press Enter."""
    if agent is not None:
        await page.get_by_role("radio", name=agent, exact=False).and_(page.locator(f'[value="{agent}"]')).check()
    field = page.get_by_label("Message", exact=False).and_(page.locator("textarea"))
    await field.fill(query)
    await field.press("Enter")


async def check_accessibility(page: Page) -> None:
    """Look for what keeps people out; nothing serious may be found."""
    await page.evaluate(_AXE)
    found: list[dict[str, Any]] = (await page.evaluate("axe.run()"))["violations"]
    serious = [
        (each["id"], [node["html"][:200] for node in each["nodes"]])
        for each in found
        if each["impact"] in {"serious", "critical"}
    ]
    assert serious == []
