"""How pages are served: from this source, cached by hash, under a strict policy, behind any prefix."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from agent_relay.api.console.files import POLICY, STATIC
from tests.support.problems import problem_of
from tests.support.service import ROOT, Running, Service

PAGES = ["/", "/batches", "/ops", "/sign-in"]
MOST_SCRIPT_BYTES = 150_000
"""Of a page, compressed."""


def source_hash(folder: Path) -> str:
    """Hash the source as `web/source-hash.ts` does."""
    hashed = hashlib.sha256()
    paths = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    for path in sorted(path for path in paths if not path.startswith("node_modules")):
        hashed.update(f"{hashlib.sha256((folder / path).read_bytes()).hexdigest()}  {path}\n".encode())
    return hashed.hexdigest()


def test_the_built_pages_come_from_this_source() -> None:
    built_from = (STATIC / "source.sha256").read_text().strip()

    assert built_from == source_hash(ROOT / "web"), "web/ has changed since the pages were built; run `make web`"


@pytest.mark.parametrize("folder", ["web", "tests/javascript"])
def test_no_address_of_a_registry_is_in_the_source(folder: str) -> None:
    lock = (ROOT / folder / "package-lock.json").read_text()

    assert '"resolved"' not in lock
    assert lock.count('"integrity"') > 10


def files_of(html: str) -> list[str]:
    """What a page loads."""
    return re.findall(r'(?:src|href)="(\./[^"]+)"', html)


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_loads_only_what_is_served_here(shared_api: Running, path: str) -> None:
    async with httpx.AsyncClient(base_url=shared_api.url, verify=False) as http:
        page = await http.get(path)
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["cache-control"] == "no-cache"
        assert page.headers["content-security-policy"] == POLICY
        assert not re.search(r"<style|\sstyle=|<script(?![^>]*\ssrc=)|\son\w+=", page.text)
        assert "http" not in page.text
        loaded = [await http.get(urljoin(path, name)) for name in files_of(page.text)]
    assert len(loaded) >= 3
    assert [response.status_code for response in loaded] == [200] * len(loaded)
    assert {response.headers["cache-control"] for response in loaded} == {"public, max-age=31536000, immutable"}
    assert {response.headers["x-content-type-options"] for response in loaded} == {"nosniff"}
    scripts = [response.content for response in loaded if "javascript" in response.headers["content-type"]]
    assert 0 < sum(len(gzip.compress(script)) for script in scripts) < MOST_SCRIPT_BYTES


async def test_a_file_comes_compressed_to_whom_can_read_it(shared_api: Running) -> None:
    async with httpx.AsyncClient(base_url=shared_api.url, verify=False) as http:
        name = files_of((await http.get("/")).text)[-1]
        packed = await http.get(name, headers={"Accept-Encoding": "gzip, br"})
        plain = await http.get(name, headers={"Accept-Encoding": "identity"})

    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.content == plain.content
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"])
    assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize(
    "name", ["index.html", "..%2Findex.html", "..%2F..%2F..%2Froutes.py", "x.js", "source.sha256", "%00", "."]
)
async def test_nothing_else_is_served(shared_api: Running, name: str) -> None:
    async with httpx.AsyncClient(base_url=shared_api.url, verify=False) as http:
        problem_of(await http.get(f"/console/assets/{name}"), 404)


@pytest.mark.parametrize("stripped", [True, False])
async def test_pages_lie_behind_a_prefix(service: Service, *, stripped: bool) -> None:
    api = service.api(ROOT_PATH="/relay")
    before = "" if stripped else "/relay"
    async with httpx.AsyncClient(base_url=api.url, verify=False) as http:
        page = await http.get(f"{before}/")
        assert page.status_code == 200
        for name in files_of(page.text):
            assert (await http.get(urljoin(f"{before}/", name))).status_code == 200
        moved = await http.get("/relay")
        assert (moved.status_code, moved.headers["location"]) == (308, "/relay/")
        headers = {"X-Agent-Relay-Page": "1", "Origin": api.url}
        signed_in = await http.post(f"{before}/console/session", json={"key": "key-of-acme"}, headers=headers)
        assert "Path=/relay/" in signed_in.headers["set-cookie"].split("; ")
