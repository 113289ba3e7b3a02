"""A unit test needs no server and starts no process; what touches Redis has a fake one, in memory."""

from __future__ import annotations

import platform
import ssl
import subprocess
from collections.abc import AsyncGenerator
from typing import Never

import pytest
from fakeredis import FakeAsyncRedis, FakeServer
from redis.asyncio import Redis

platform.processor()  # It asks `uname` once a process; the clients of providers want to know.


@pytest.fixture(scope="session")
def postgres() -> Never:
    """Refuse whatever asks for a database."""
    pytest.fail("a unit test asks for PostgreSQL: move it to tests/integration or tests/acceptance")


@pytest.fixture(scope="session")
def redis_server() -> Never:
    """Refuse whatever asks for a real Redis."""
    pytest.fail("a unit test asks for a Redis server: use the fixture `redis`, or move it to tests/integration")


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to start a process."""

    def refuse(*_: object, **__: object) -> Never:
        pytest.fail("a unit test starts a process: move it to tests/integration or tests/acceptance")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)


@pytest.fixture(autouse=True)
def no_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have contexts of TLS trust nobody: no unit test connects, and to read all authorities takes 30 ms a client."""

    def trust_nobody(*_: object, **__: object) -> None: ...

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", trust_nobody)


@pytest.fixture
async def redis() -> AsyncGenerator[Redis]:
    """A fake Redis of the test's own, which runs Lua scripts as the real one does."""
    async with FakeAsyncRedis(server=FakeServer()) as client:
        yield client
