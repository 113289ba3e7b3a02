"""What `docker-compose.yml` starts serves a query: its commands, users and passwords, without the containers."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
import redis
from psycopg import sql

from agent_relay.embedded import binaries
from agent_relay.shared.key_format import hash_key
from tests.support.compose import PASSWORDS, environment_of, filled, read
from tests.support.debian import TcpPostgres, find, free_port, listens
from tests.support.eventually import eventually
from tests.support.service import ROOT


class Composed:
    """The containers as processes on this machine."""

    def __init__(self, services: dict[str, Any], folder: Path, **variables: str) -> None:
        self.services, self.folder = services, folder
        self.variables = {name: f"{name.lower()}of64letters" for name in PASSWORDS} | variables
        self.replaced = {"/roles.sql": str(ROOT / "shared/migrations/roles.sql")}
        self.running: list[subprocess.Popen[bytes]] = []

    def _here(self, value: str) -> str:
        for name, here in self.replaced.items():
            value = value.replace(name, here)
        return value

    def begin(self, name: str, *more: str, **environment: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Start what a service runs."""
        service = self.services[name]
        command = [self._here(filled(part, self.variables)) for part in service["command"]]
        commands = {
            "agent-relay": [sys.executable, "-m", "agent_relay"],
            "psql": [str(binaries.postgres_folder() / "psql")],
        }
        command[:1] = commands.get(command[0], command[:1])
        kept = {
            "PATH": os.environ["PATH"],
            "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),
            "PYTHONPATH": str(ROOT / "src"),
        }
        wanted = {key: self._here(value) for key, value in environment_of(service, self.variables).items()}
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*command, *more], cwd=ROOT, env=kept | wanted | environment, stdout=output, stderr=output
            )
        self.running.append(process)
        return process, log

    def run(self, name: str) -> str:
        """Run what a service runs to its end; returns what it wrote."""
        process, log = self.begin(name)
        assert process.wait(60) == 0, log.read_text()
        return log.read_text()

    def stop(self) -> None:
        """End all that runs."""
        for process in reversed(self.running):
            process.terminate()
        for process in reversed(self.running):
            process.wait(60)


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Composed]:
    """PostgreSQL as its image makes it; the others are started by the test."""
    composed = Composed(read(), tmp_path)
    with TcpPostgres() as postgres:
        postgres.ensure_database()
        with psycopg.connect(postgres.url(), autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE ROLE agent_relay SUPERUSER LOGIN PASSWORD {}").format(
                    composed.variables["POSTGRES_PASSWORD"]
                )
            )
            connection.execute("ALTER SCHEMA public OWNER TO pg_database_owner")
        composed.replaced["@postgres:5432/"] = f"@127.0.0.1:{postgres.port}/"
        composed.services["roles"]["environment"] |= {"PGHOST": "127.0.0.1", "PGPORT": str(postgres.port)}
        try:
            yield composed
        finally:
            composed.stop()


def test_the_same_commands_serve_a_query(composed: Composed) -> None:
    find("redis-server", "redis-server")
    redis_port = str(free_port())
    composed.replaced["@redis:6379/"] = f"@127.0.0.1:{redis_port}/"
    composed.begin("redis", "--port", redis_port, "--bind", "127.0.0.1", "--dir", str(composed.folder))
    eventually(lambda: listens(int(redis_port)))
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=int(redis_port)).ping()

    composed.run("roles")
    composed.run("migrate")
    first = re.search(r"ar_\S+", composed.run("key"))
    assert first is not None
    assert "There are keys already" in composed.run("key").replace(first[0], "")
    _, log = composed.begin("api", HOST="127.0.0.1", PORT="0")
    _, worker_log = composed.begin("worker")
    url = eventually(lambda: next(iter(re.findall(r"Uvicorn running on (http://\S+)", log.read_text())), ""))
    eventually(lambda: "worker.ready" in worker_log.read_text())

    asked = httpx.post(
        f"{url}/api/v1/agent/query",
        json={"query": "What is my balance?", "agent_type": "bank_support"},
        headers={"X-API-Key": first[0], "X-User-ID": str(uuid4())},
        timeout=60,
    )

    assert asked.status_code == httpx.codes.OK, asked.text
    assert "$11" in asked.text or "$12" in asked.text
    assert httpx.get(f"{url}/health/ready").json()["status"] == "ok"
    assert "denied" not in log.read_text() + worker_log.read_text()
    assert "agents_reach_all" not in worker_log.read_text()


def test_no_first_key_is_made_where_keys_are_given(composed: Composed) -> None:
    composed.variables["API_KEYS"] = f"acme:{hash_key(b'given')}"
    composed.run("roles")
    composed.run("migrate")

    assert composed.run("key") == "There are keys already; none was made.\n"
