"""A page with `useChat` in a real browser: answers grow, outlive what dies under them, and stand there once."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from playwright.async_api import Locator, Page, Route, expect

from tests.support.client import Client
from tests.support.node import bundle
from tests.support.service import KEYS, Running, Service, serving
from tests.support.window import browsing

AGENTS = {
    "patient": "tests.support.agents:patient",
    "patient_form": "tests.support.agents:patient_form",
    "bank_support": "agent_relay.worker.agents.bank_support:served",
    "asks": "tests.support.waiting_agents:asks",
}

pytestmark = pytest.mark.timeout(300)  # The first test installs the client.


@pytest.fixture(scope="module")
def script() -> Path:
    return bundle("page.jsx")


@pytest.fixture(scope="module")
def house(new_database: Any, new_redis: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    agents = ",".join(f"{name}={path}" for name, path in AGENTS.items())
    environment = {"AGENTS": agents, "LEASE_SECONDS": "3", "BEAT_SECONDS": "1", "DRAIN_SECONDS": "0"}
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("use-chat"), environment) as house:
        house.worker()
        yield house


@pytest.fixture(scope="module")
def api(house: Service) -> Running:
    return house.api()


class Chat:
    """The page, and its user without it."""

    def __init__(self, page: Page, client: Client) -> None:
        self.page, self.client = page, client

    @property
    def answer(self) -> Locator:
        """The only answer."""
        return self.page.locator("article[data-role=assistant]")

    async def ask(self, text: str) -> None:
        """Write, and press Enter."""
        field = self.page.get_by_label("Message")
        await field.fill(text)
        await field.press("Enter")

    async def click(self, name: str) -> None:
        """Press a button."""
        await self.page.get_by_role("button", name=name).click()

    async def is_over(self, status: str = "ready") -> None:
        """Wait until the page expects no more."""
        await expect(self.page.locator("main")).to_have_attribute("data-status", status)

    async def stands_once(self, *said: str) -> None:
        """See that page and thread have these messages and no others, each once."""
        await self.is_over()
        shown = await self.page.locator("article").all_inner_texts()
        assert shown == list(said)
        [thread] = (await self.client.http.get("/threads")).json()["items"]
        stored = [message["content"] for message in await self.client.messages(thread["id"])]
        assert [_same(text) for text in stored] == [_same(text) for text in said]

    async def texts(self) -> list[str]:
        """List what the text of the last answer was, each once in a row."""
        states: list[list[dict[str, Any]]] = await self.page.evaluate("window.states")
        texts = [
            "".join(part["text"] for part in state[-1]["parts"] if part["type"] == "text")
            for state in states
            if state and state[-1]["role"] == "assistant"
        ]
        return [text for place, text in enumerate(texts) if not place or texts[place - 1] != text]

    async def run(self) -> dict[str, Any]:
        """Read the only run."""
        [run] = (await self.client.http.get("/runs")).json()["items"]
        return run


def _same(text: str) -> Any:
    return json.loads(text) if text.startswith("{") else text


@asynccontextmanager
async def chatting(api: Running, script: Path, agent: str, **body: Any) -> AsyncGenerator[Chat]:
    """Open a page with a chat of a new user's."""
    async with browsing(api.url) as window, Client(api.url, user_id=window.user_id) as client:
        headers = {"X-API-Key": KEYS["acme"], "X-User-ID": window.user_id}
        config = json.dumps({"id": str(uuid4()), "headers": headers, "body": {"agent_type": agent, **body}})
        html = f"""<!doctype html><title>A chat</title><link rel="icon" href="data:,"><div id="root"></div>
            <script>window.config = {config}</script><script type="module" src="/use-chat.js"></script>"""

        async def serve(route: Route) -> None:
            if route.request.url.endswith(".js"):
                await route.fulfill(path=script, content_type="text/javascript")
            else:
                await route.fulfill(body=html, content_type="text/html")

        await window.context.route("**/use-chat*", serve)
        yield Chat(await window.tab("/use-chat"), client)


async def test_an_answer_outlives_a_reload_and_is_given_anew(api: Running, script: Path, tmp_path: Path) -> None:
    word = tmp_path / "word"
    async with chatting(api, script, "patient") as chat:
        await chat.ask(str(word))
        await expect(chat.answer).to_have_text("Well")
        await chat.page.reload()
        await expect(chat.answer).to_have_text("Well")
        await chat.is_over("streaming")
        await chat.click("Stop")
        await chat.is_over()
        assert (await chat.run())["status"] == "running"
        await chat.click("Resume")
        await chat.is_over("streaming")
        word.touch()
        await expect(chat.answer).to_have_text("Well, at last.")
        await chat.stands_once(str(word), "Well, at last.")
        assert (await chat.texts())[-2:] == ["Well", "Well, at last."]

        before = await chat.run()
        await chat.click("Regenerate")
        await expect(chat.answer).to_have_text("Well, at last.")
        await chat.stands_once(str(word), "Well, at last.")
        runs = (await chat.client.http.get("/runs")).json()["items"]
        assert [run["id"] for run in runs if run["id"] != before["id"]], "the agent was asked anew"
        await chat.page.reload()
        await chat.stands_once(str(word), "Well, at last.")


async def test_an_object_grows_and_outlives_a_reload(api: Running, script: Path, tmp_path: Path) -> None:
    word = tmp_path / "word"
    async with chatting(api, script, "patient_form") as chat:
        await chat.ask(str(word))
        await expect(chat.answer).to_contain_text("A form that waits")
        await chat.page.reload()
        await expect(chat.answer).to_contain_text("A form that waits")
        word.touch()
        await expect(chat.answer).to_contain_text("three")
        output = json.dumps((await chat.run())["output"], separators=(",", ":"))
        await chat.stands_once(str(word), output)


async def test_an_answer_outlives_its_worker_and_its_api_process(house: Service, script: Path, tmp_path: Path) -> None:
    word, dying = tmp_path / "word", house.api()
    async with chatting(dying, script, "patient") as chat:
        await chat.ask(str(word))
        await expect(chat.answer).to_have_text("Well")
        dying.kill()
        for running in house.processes:
            if running.name == "worker" and running.process.poll() is None:
                running.kill()
        await chat.is_over("error")
        house.worker()
        house.api(PORT=str(urlsplit(dying.url).port))
        await chat.is_over("streaming")  # Nobody has pressed anything.
        word.touch()
        await expect(chat.answer).to_have_text("Well, at last.")
        await chat.stands_once(str(word), "Well, at last.")
        assert set(await chat.texts()) <= {"", "Well", "Well, at last."}
        assert (await chat.run())["attempt"] == 2


async def test_a_call_is_approved_after_a_reload(api: Running, script: Path) -> None:
    async with chatting(api, script, "asks") as chat:
        await chat.ask(json.dumps([[["pay", {"amount": 3}]], [["refund", {"amount": 2}]]]))
        await expect(chat.page.locator(".tool[data-state=approval-requested]")).to_have_count(1)
        await chat.page.reload()
        await chat.click("Approve")
        await expect(chat.page.locator(".tool[data-state=output-available]")).to_have_text('tool-pay "paid 3"')
        await chat.click("Deny")
        await expect(chat.page.locator(".tool[data-state=output-denied]")).to_have_count(1)
        await expect(chat.answer.locator("p")).to_have_text('["pay: paid 3", "refund: No."]')
        await chat.is_over()
        await expect(chat.page.locator("article")).to_have_count(2)
        await expect(chat.page.locator(".tool")).to_have_count(2)
        assert (await chat.run())["status"] == "succeeded"


async def test_a_run_is_cancelled_where_its_page_stops(api: Running, script: Path, tmp_path: Path) -> None:
    word = tmp_path / "word"
    async with chatting(api, script, "patient", on_disconnect="cancel") as chat:
        await chat.ask(str(word))
        await expect(chat.answer).to_have_text("Well")
        await chat.click("Stop")
        assert (await chat.client.ended((await chat.run())["id"]))["status"] == "cancelled"
        await chat.page.reload()
        await chat.stands_once(str(word), "Well")
