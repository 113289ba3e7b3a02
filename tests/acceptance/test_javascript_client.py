"""The JavaScript client, packed as it is published: its types fit the API, and its answers are whole, whatever dies.

What it does is told by its own tests, in `clients/js/test`, which Node runs.
"""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import pytest
from playwright.async_api import expect

from agent_relay.shared import VERSION
from tests.support.npm import install, node, npm
from tests.support.openapi import openapi_document
from tests.support.service import KEYS, ROOT, TEST_AGENTS, Running, Service, serving
from tests.support.window import browsing

PAGE = ROOT / "examples" / "plain-html"
CLIENT = ROOT / "clients" / "js"
MODULES = CLIENT / "node_modules"
AGENTS = TEST_AGENTS | {"asks": "tests.support.waiting_agents:asks"}

pytestmark = pytest.mark.timeout(300)  # The first test installs what builds the client.


@pytest.fixture(scope="module")
def modules() -> Path:
    install(CLIENT)
    return MODULES


@pytest.fixture(scope="module")
def project(modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has installed the package, and has the client's tests."""
    assert modules.exists()
    folder = tmp_path_factory.mktemp("project")
    npm(CLIENT, "pack", "--pack-destination", folder)
    (packed,) = folder.glob("*.tgz")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    (folder / "node_modules" / "@agent-relay").mkdir(parents=True)
    (folder / "package").rename(folder / "node_modules" / "@agent-relay" / "client")
    shutil.copytree(CLIENT / "test", folder / "test")
    shutil.copy(CLIENT / "tsconfig.json", folder)
    return folder


class Stage(ThreadingHTTPServer):
    """Lets the tests of the client kill processes of the service, and start them again at the same address."""

    def __init__(self, service: Service, api: Running, worker: Running) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.service, self.api, self.worker = service, api, worker

    def carry_out(self, what: str) -> None:
        """Do what a test asks for."""
        match what:
            case "/restart-api":
                self.api.kill()
                self.api = self.service.api(PORT=str(urlsplit(self.api.url).port))
            case "/restart-worker":
                self.worker.terminate()
                self.worker = self.service.worker()
            case _:
                raise ValueError(what)


class _Handler(BaseHTTPRequestHandler):
    server: Stage  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        """Carry out what the path says."""
        self.server.carry_out(self.path)
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class names it)
        """Say nothing."""


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class names it)
        """Say nothing."""


@contextmanager
def running(server: ThreadingHTTPServer) -> Generator[str]:
    """Run a server in a thread; yields its address."""
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def site(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page without a build, as it is served beside the client."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(PAGE / "index.html", folder)
    (folder / "client").symlink_to(project / "node_modules" / "@agent-relay" / "client" / "dist")
    with running(ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=folder))) as origin:
        yield origin


@pytest.fixture(scope="module")
def stage(
    site: str, new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    environment = {
        "AGENTS": ",".join(f"{name}={path}" for name, path in AGENTS.items()),
        "CORS_ORIGINS": site,
        "DRAIN_SECONDS": "0",
    }
    folder = tmp_path_factory.mktemp("service")
    with serving(new_database(), new_redis(), folder, environment) as service:
        stage = Stage(service, service.api(), service.worker())
        with running(stage):
            yield stage


def test_its_types_are_those_of_the_document(modules: Path, tmp_path: Path) -> None:
    document, types = tmp_path / "openapi.json", tmp_path / "openapi.d.ts"
    document.write_text(json.dumps(openapi_document()))
    node(CLIENT, modules / "openapi-typescript" / "bin" / "cli.js", document, "--output", types)

    committed = CLIENT / "src" / "openapi.d.ts"
    assert types.read_text() == committed.read_text(), "`make client-js` writes the types anew."


def test_the_package_has_what_it_needs_and_nothing_else(project: Path) -> None:
    package = project / "node_modules" / "@agent-relay" / "client"
    files = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    said = json.loads((package / "package.json").read_text())

    modules = {"index", "client", "connection", "progress"}
    built = {f"dist/{module}.{kind}" for module in modules for kind in ("js", "d.ts")}
    assert files == built | {"dist/openapi.d.ts", "package.json", "README.md"}
    assert said["version"] == VERSION
    assert "dependencies" not in said
    imports = [re.findall(r' from "([^"]+)"', (package / name).read_text()) for name in files if name.endswith(".js")]
    assert {name for names in imports for name in names} <= {f"./{module}.js" for module in modules}


def test_its_lock_has_hashes_and_no_addresses() -> None:
    packages = json.loads((CLIENT / "package-lock.json").read_text())["packages"]

    assert [name for name, package in packages.items() if name and "integrity" not in package] == []
    assert [name for name, package in packages.items() if "resolved" in package] == []


def test_its_types_hold(project: Path, modules: Path) -> None:
    node(project, modules / "typescript" / "bin" / "tsc", "--project", "test")


def test_it_goes_on_whatever_the_network_does(project: Path) -> None:
    said = node(project, "--test", "test/connection.test.mjs")
    assert "fail 0" in said


def test_its_answers_are_whole_whatever_dies(project: Path, stage: Stage, tmp_path: Path) -> None:
    said = node(
        project,
        "--test",
        "test/service.test.mjs",
        BASE_URL=stage.api.url,
        API_KEY=KEYS["acme"],
        STAGE=f"http://127.0.0.1:{stage.server_port}",
        FOLDER=str(tmp_path),
    )
    assert "fail 0" in said


async def test_a_page_without_a_build_asks_with_a_token(site: str, stage: Stage) -> None:
    base = f"{stage.api.url}/api/v1"
    async with httpx.AsyncClient(base_url=base, headers={"X-API-Key": KEYS["acme"]}, verify=False) as http:
        made = await http.post("/user-tokens", json={"user_id": "ann", "ttl_s": 600})
        async with browsing(site) as window:
            page = await window.tab("/#" + urlencode({"base": base, "token": made.json()["token"]}))
            await page.get_by_label("Your question").fill("What is my balance?")
            await page.get_by_role("button", name="Ask").click()
            await expect(page.get_by_role("button", name="Ask")).to_be_enabled()
            advice, actions = await page.get_by_role("status").inner_text(), await page.locator("li").all_inner_texts()
        (run,) = (await http.get("/runs", headers={"X-User-ID": "ann"})).json()["items"]

    assert run["output"]["support_advice"] == advice
    assert run["output"]["follow_up_actions"] == actions
    assert (PAGE / "client").readlink() == Path("../../clients/js/dist")
