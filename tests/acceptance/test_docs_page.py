"""`/docs` in a real browser, under the policy that it is served with: it works, and forgets the key it was given."""

from __future__ import annotations

import json

from playwright.async_api import Page, expect

from tests.support.service import KEYS, Running
from tests.support.window import Window, browsing

OF_SWAGGER = "Deprecated: escaping deep link"
"""A warning of Swagger UI about itself."""
_KEPT = """async () => JSON.stringify({
    local: {...localStorage}, session: {...sessionStorage}, cookie: document.cookie,
    databases: await indexedDB.databases(), caches: await caches.keys(), name: window.name, url: location.href,
})"""


async def authorize(page: Page, window: Window) -> None:
    """Give the page a key and a user, as people do in its dialog."""
    await page.locator(".scheme-container").get_by_role("button", name="Authorize").click()
    dialog = page.locator(".dialog-ux")
    for header, value in (("X-API-Key", KEYS["acme"]), ("X-User-ID", window.user_id)):
        field = dialog.locator(".auth-container").filter(has_text=f"Name: {header}").first
        await field.locator("input").fill(value)
        await field.get_by_role("button", name="Apply credentials").click()
        await expect(field.get_by_role("button", name="Remove authorization")).to_be_visible()
    await dialog.locator(".close-modal").click()


async def test_the_page_works_under_its_policy_and_keeps_no_key(shared_api: Running) -> None:
    async with browsing(shared_api.url) as window:  # Which fails for each violation of the policy.
        page = await window.tab("/docs")
        await expect(page.get_by_role("heading", name="agent-relay")).to_be_visible()
        await authorize(page, window)
        agents = page.locator("#operations-agents-list_agents")
        await agents.locator(".opblock-summary-control").click()
        await agents.get_by_role("button", name="Execute").click()
        await expect(agents.locator(".live-responses-table .response-col_status").last).to_contain_text("200")

        kept = await page.evaluate(_KEPT)
        assert KEYS["acme"] not in kept
        assert window.user_id not in kept
        assert KEYS["acme"] not in json.dumps(await window.context.storage_state(indexed_db=True))

        await page.reload()
        await page.locator(".scheme-container").get_by_role("button", name="Authorize").click()
        await expect(page.locator(".dialog-ux input").first).to_have_value("")
        await expect(page.locator(".dialog-ux").get_by_role("button", name="Remove authorization")).to_have_count(0)
        window.wrong[:] = [said for said in window.wrong if not said.startswith(OF_SWAGGER)]


async def test_a_key_that_an_earlier_page_kept_is_removed(shared_api: Running) -> None:
    async with browsing(shared_api.url) as window:
        page = await window.tab("/docs")
        await page.evaluate("localStorage.setItem('authorized', 'a key')")
        await page.reload()
        await expect(page.get_by_role("heading", name="agent-relay")).to_be_visible()

        assert "a key" not in await page.evaluate(_KEPT)


async def test_no_script_that_is_not_the_pages_own_runs_in_it(shared_api: Running) -> None:
    async with browsing(shared_api.url) as window:
        page = await window.tab("/docs")
        await expect(page.get_by_role("heading", name="agent-relay")).to_be_visible()
        await page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
        )
        fetched = await page.evaluate("fetch('https://127.0.0.1:1/').then(() => 'sent', () => 'refused')")

        assert await page.evaluate("window.ran") is None
        assert fetched == "refused"
        refused = [said for said in window.wrong if "Content Security Policy" in said]
        assert {said.split(" ", 1)[0] for said in refused} >= {"Executing", "Connecting"}, refused
        window.wrong.clear()
