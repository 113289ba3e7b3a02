"""Behind the nginx of docs/tls.md: TLS, a path, streams as they are written, and large uploads."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import trustme

from agent_relay.embedded.process import Steps
from agent_relay.embedded.server import Server
from tests.support.client import Client, names, read_events
from tests.support.debian import TERMINATE, certify, find, free_port, listens
from tests.support.service import ROOT, Service

NAME = "relay.example.com"
ITEMS, ITEM_BYTES = 400, 8000


class Nginx(Server):
    """nginx with the configuration that the documentation shows, on ports and files of this machine."""

    name: ClassVar[str] = "nginx"
    steps: ClassVar[Steps] = TERMINATE

    def __init__(self, upstream: int, authority: trustme.CA) -> None:
        self._binary = find("nginx", "nginx-light")
        super().__init__()
        self.port = free_port()
        files = certify(authority, self.folder, NAME)
        shown = re.search(r"```nginx\n(.*?)```", (ROOT / "docs/tls.md").read_text(), re.DOTALL)
        assert shown is not None
        server = shown[1]
        for there, here in {
            "127.0.0.1:8000": f"127.0.0.1:{upstream}",
            "listen 443 ssl": f"listen 127.0.0.1:{self.port} ssl",
            "/etc/ssl/relay/certificate.pem": str(files["certificate"]),
            "/etc/ssl/relay/key.pem": str(files["key"]),
        }.items():
            assert there in server
            server = server.replace(there, here)
        folders = "".join(
            f"{kind}_temp_path {self.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self.folder / "nginx.conf").write_text(
            f"daemon off;\nmaster_process off;\npid {self.folder}/pid;\nerror_log stderr;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{folders}{server}}}\n"
        )

    def _prepare(self) -> None:
        pass

    def _command(self) -> list[str | Path]:
        return [self._binary, "-p", self.folder, "-c", self.folder / "nginx.conf"]

    def _answers(self) -> bool:
        return listens(self.port)


@pytest.fixture
def published(service: Service) -> Iterator[tuple[Nginx, ssl.SSLContext]]:
    """The service under a path of a name, over TLS."""
    authority = trustme.CA()
    trusts = ssl.create_default_context()
    authority.configure_trust(trusts)
    api = service.api(ROOT_PATH="/relay")
    service.worker()
    with Nginx(httpx.URL(api.url).port or 80, authority) as nginx:
        yield nginx, trusts


@pytest.fixture
async def client(published: tuple[Nginx, ssl.SSLContext]) -> AsyncGenerator[Client]:
    """A user on the other side of nginx, who checks the certificate."""
    nginx, trusts = published
    async with Client(f"https://127.0.0.1:{nginx.port}/relay") as client:
        headers = {**client.http.headers, "Host": NAME}
        client.http = httpx.AsyncClient(base_url=client.http.base_url, headers=headers, verify=trusts, timeout=60)
        client.http.event_hooks["request"].append(_by_name)
        yield client


async def _by_name(request: httpx.Request) -> None:
    request.extensions["sni_hostname"] = NAME


@pytest.mark.parametrize("sse", [True, False])
async def test_a_stream_comes_as_it_is_written(client: Client, tmp_path: Path, sse: bool) -> None:
    """The agent says a word, and the rest only once the reader has got the word."""
    word = tmp_path / "go on"
    events: list[dict[str, Any]] = []
    async with client.asking(str(word), agent_type="patient", sse=sse) as stream:
        async for event in stream:
            events.append(event)
            if event["event"] == "text_delta":
                word.touch()

    assert names(events)[-1] == "done"
    assert [event["token"] for event in events if event["event"] == "text_delta"][-1] == "Well, at last."


async def test_a_large_batch_goes_through_and_its_results_come_back(client: Client) -> None:
    lines = [{"custom_id": str(number), "query": "x" * ITEM_BYTES} for number in range(ITEMS)]
    body = "\n".join(json.dumps(line) for line in lines)
    accepted = await client.http.post(
        "/batches?agent_type=echo", content=body.encode(), headers={"Content-Type": "application/x-ndjson"}
    )

    assert accepted.status_code == httpx.codes.ACCEPTED, accepted.text
    assert accepted.headers["Location"].startswith("/relay/api/v1/batches/")
    results = accepted.headers["Location"] + "/results"
    async with client.http.stream("GET", client.http.base_url.join(results), params={"follow": "true"}) as stream:
        found = [line async for line in stream.aiter_lines() if '"cursor"' in line]
    assert len(found) == ITEMS


async def test_every_reference_leads_back_and_what_is_forwarded_changes_nothing(client: Client) -> None:
    forged = {
        "X-Forwarded-Host": "evil.test",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Prefix": "/evil",
        "Forwarded": "host=evil.test",
    }
    created = await client.http.post("/runs", json={"agent_type": "echo", "query": "hello"}, headers=forged)

    assert created.headers["Location"] == f"/relay/api/v1/runs/{created.json()['id']}"
    read = await client.http.get(client.http.base_url.join(created.headers["Location"]))
    assert read.json()["id"] == created.json()["id"]
    ticket = (await client.http.post(f"/runs/{created.json()['id']}/stream-ticket")).json()["url"]
    async with client.http.stream("GET", client.http.base_url.join(ticket)) as stream:
        assert [event["event"] async for event in read_events(stream)][-1] == "done"
    refused = await client.http.get("/nowhere", headers=forged)
    assert "evil" not in refused.text + str(refused.headers)
    assert refused.headers["Strict-Transport-Security"]


@pytest.mark.parametrize("path", ["/metrics", "/relay/metrics", "/relay/api/v1/operator/keys", "/api/v1/operator/keys"])
async def test_what_is_private_stays_so(client: Client, path: str) -> None:
    assert (await client.http.get(client.http.base_url.join(path))).status_code == httpx.codes.NOT_FOUND
