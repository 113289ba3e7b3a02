"""A browser with nothing but `EventSource` and a ticket: what it shows in the end is the whole answer, once."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.client import Client, names
from tests.support.service import Service

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGE = """<!doctype html>
<meta charset="utf-8">
<script>
    const told = [];
    let text = "", opened = 0;
    const say = (path, what) => fetch(path, {method: "POST", body: JSON.stringify(what)});
    const source = new EventSource(STREAM);
    source.onopen = () => opened++;
    const hear = (message) => {
        const event = JSON.parse(message.data);
        told.push({id: message.lastEventId, event: event.event});
        if (event.event === "text_delta") {
            text = "token" in event ? event.token : text.slice(0, text.length - event.drop) + event.append;
            say("/underway", {});
        }
        if (event.event === "done") {
            source.close();
            say("/result", {told, text, opened});
        }
    };
    for (const name of [
        "message_created", "message_started", "tool_call", "tool_result", "text_delta",
        "message_complete", "run_failed", "cancelled", "gap", "done",
    ]) source.addEventListener(name, hear);
</script>
"""


class Site(ThreadingHTTPServer):
    """Serves the page, and hears what it says."""

    page = b""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.underway = threading.Event()
        self.results: Queue[dict[str, Any]] = Queue()

    @property
    def origin(self) -> str:
        """Where the page comes from."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Site  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        """Serve the page."""
        self._answer(self.server.page if self.path == "/" else b"")

    def do_POST(self) -> None:
        """Hear the page."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/result":
            self.server.results.put(body)
        self.server.underway.set()
        self._answer(b"")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class names it)
        """Say nothing."""

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving_pages() -> Generator[Site]:
    """Run the site in a thread."""
    with Site() as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        try:
            yield site
        finally:
            site.shutdown()
            thread.join()


@contextmanager
def browsing(url: str, folder: Path) -> Generator[None]:
    """Open a page in a browser without a screen."""
    if CHROMIUM is None:
        pytest.skip("There is no chromium; `.ci/run` installs it.")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --disable-dev-shm-usage"
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [CHROMIUM, *flags.split(), f"--user-data-dir={folder / 'profile'}", "--remote-debugging-port=0", url],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


async def test_a_page_shows_the_whole_answer_once_though_its_api_dies(service: Service, tmp_path: Path) -> None:
    may_end = tmp_path / "may-end"
    with serving_pages() as site:
        api = service.api(CORS_ORIGINS=site.origin)
        service.worker()
        async with Client(api.url) as client:
            run = await client.run(str(may_end), agent_type="patient")
            ticket = (await client.http.post(f"/runs/{run['id']}/stream-ticket")).json()
        site.page = PAGE.replace("STREAM", json.dumps(api.url + ticket["url"] + "&deltas=true")).encode()

        with browsing(site.origin, tmp_path):
            assert await asyncio.to_thread(site.underway.wait, 60)
            api.kill()
            again = service.api(CORS_ORIGINS=site.origin, PORT=str(urlsplit(api.url).port))
            may_end.touch()
            result = await asyncio.to_thread(site.results.get, timeout=60)

        async with Client(again.url, user_id=client.user_id) as client:
            run = await client.ended(run["id"])

    ids = [tuple(map(int, event["id"].split("-"))) for event in result["told"]]
    assert result["opened"] > 1
    assert result["text"] == run["output"] == "Well, at last."
    assert names(result["told"]) == ["message_created", "message_started", "text_delta", "message_complete", "done"]
    assert ids == sorted(set(ids))
    assert site.results.empty()


DIALOG = """<script>
    const until = (look) => new Promise((resolve) => {
        const timer = setInterval(() => {
            const seen = look();
            if (seen) { clearInterval(timer); resolve(seen); }
        }, 50);
    });
    (async () => {
        (await until(() => document.querySelector(".btn.authorize"))).click();
        await until(() => document.querySelectorAll(".dialog-ux input").length >= 3);
        await new Promise((resolve) => setTimeout(resolve, 300));
        const name = (container) => container.querySelector("h4").textContent;
        const names = [...document.querySelectorAll(".dialog-ux .auth-container")]
            .filter((container) => container.querySelector("input")).map(name);
        const focused = name(document.activeElement.closest(".auth-container"));
        fetch("/result", {method: "POST", body: JSON.stringify({names, focused})});
    })();
</script></body>"""


async def test_who_authorizes_in_the_docs_begins_with_the_callers_key(service: Service, tmp_path: Path) -> None:
    with serving_pages() as site:
        api = service.api(CORS_ORIGINS=site.origin)
        async with httpx.AsyncClient() as http:
            page = (await http.get(f"{api.url}/docs")).text
        page = page.replace("'openapi.json'", f"'{api.url}/openapi.json'")
        page = page.replace('"docs/', f'"{api.url}/docs/').replace("</body>", DIALOG)
        site.page = page.encode()

        with browsing(site.origin, tmp_path):
            result = await asyncio.to_thread(site.results.get, timeout=60)

    assert result["names"][0].startswith("ApiKey")
    assert result["focused"] == result["names"][0]
