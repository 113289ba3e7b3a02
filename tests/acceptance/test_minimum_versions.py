"""Servers and libraries that are too old stop the start with a sentence; one that is away or keeps silent does not."""

from __future__ import annotations

import re
import socketserver
import threading
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from agent_relay.shared import minimum_versions
from agent_relay.shared.settings import Settings
from tests.support.service import ROOT, Service

SILENT = "+OK\r\n"


@contextmanager
def telling(hello: str) -> Generator[str]:
    """Answer HELLO like that, and everything else with OK."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while line := self.rfile.readline():
                if line.startswith(b"$"):
                    continue
                if line.strip().upper() == b"HELLO":
                    self.wfile.write(hello.encode())
                elif line.strip().upper() in {b"CLIENT", b"SELECT", b"PING"}:
                    self.wfile.write(SILENT.encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def hello(**told: str) -> str:
    """Write the reply to HELLO."""
    words = [word for item in told.items() for word in item]
    return f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (hello(server="redis", version="6.2.14", mode="standalone"), "needs Redis 7.0 or newer; found 6.2.14"),
        (hello(server="redis", version="7.2.4", mode="cluster"), "names a Redis Cluster"),
        (
            "-ERR unknown command `HELLO`, with args beginning with: \r\n",
            "needs Redis 7.0 or newer; found older than 6",
        ),
        (hello(server="redis", version="7.0.0", mode="standalone"), None),
        (hello(server="valkey", version="9.1.2", mode="sentinel"), None),
        ("-NOPERM this user has no permissions to run the 'hello' command\r\n", None),
        ("-LOADING Redis is loading the dataset in memory\r\n", None),
        ("", None),
    ],
)
async def test_an_old_redis_and_a_cluster_are_refused(
    database_url: str, monkeypatch: pytest.MonkeyPatch, said: str, sentence: str | None
) -> None:
    monkeypatch.setattr(minimum_versions, "PATIENCE_SECONDS", 2)
    with telling(said) as url:
        settings = Settings(database_url=database_url, redis_url=url)
        if sentence is None:
            await minimum_versions.refuse_old_servers(settings)
        else:
            with pytest.raises(minimum_versions.TooOld, match=re.escape(sentence)):
                await minimum_versions.refuse_old_servers(settings)


async def test_an_old_postgresql_is_refused(database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minimum_versions, "OLDEST_POSTGRES", 99)
    with pytest.raises(minimum_versions.TooOld, match="agent-relay needs PostgreSQL 99 or newer; found 18"):
        await minimum_versions.refuse_old_servers(Settings(database_url=database_url, redis_url=redis_url))


async def test_servers_that_are_away_are_not_judged() -> None:
    await minimum_versions.refuse_old_servers(
        Settings(database_url="postgresql:///x?host=/nowhere", redis_url="unix:///no/where")
    )


@pytest.mark.parametrize("found", ["2.67.9", "1.99", "0.8.1b2"])
def test_an_old_pydantic_ai_is_refused(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    def version(_: str) -> str:
        return found

    monkeypatch.setattr(minimum_versions, "version", version)
    with pytest.raises(minimum_versions.TooOld, match=rf"needs pydantic-ai 2\.68 or newer; found {found}"):
        minimum_versions.refuse_old_pydantic_ai()


def test_all_say_the_same_versions() -> None:
    docs, project = ((ROOT / name).read_text() for name in ("docs/operating.md", "pyproject.toml"))
    assert "Needed are PostgreSQL 15, Redis 7.0 (or any Valkey) and pydantic-ai 2.68" in docs
    assert "pydantic-ai-slim[openai]>=2.68" in project
    assert (minimum_versions.OLDEST_POSTGRES, minimum_versions.OLDEST_REDIS, minimum_versions.OLDEST_PYDANTIC_AI) == (
        15,
        (7, 0),
        (2, 68),
    )


@pytest.mark.parametrize("name", ["api", "worker"])
def test_a_process_on_an_old_server_says_one_sentence(service: Service, name: str) -> None:
    with telling(hello(server="redis", version="6.0.1", mode="standalone")) as url:
        running = service.begin(name, REDIS_URL=url)
        assert running.process.wait(60) == 1
    assert running.log.read_text() == "agent-relay needs Redis 7.0 or newer; found 6.0.1.\n"
