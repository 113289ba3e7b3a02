"""The stage: private servers with durable data, and API and worker processes with the agents of the benchmarks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
from redis.asyncio import Redis

from agent_relay.embedded import PostgresServer, RedisServer
from agent_relay.shared.migrations.upgrade import upgrade
from benchmarks.processes import cpu_seconds, port_of
from tests.support.service import Running, Service, serving

NO_PROVIDER = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
MODEL = "openai-chat:any"
NO_LIMITS = dict.fromkeys(
    [
        "MAX_REQUESTS_PER_SECOND_PER_USER",
        "MAX_REQUESTS_PER_SECOND_PER_TENANT",
        "MAX_QUEUED_PER_USER",
        "MAX_QUEUED_PER_TENANT",
        "MAX_QUEUED",
    ],
    "0",
)
"""One user sends all that a benchmark sends: the limits would be measured, and not what is limited."""
AGENTS = {name: f"benchmarks.agents:{name}" for name in ("words", "form", "provided", "steps", "forgetful")}


@dataclass(frozen=True)
class Stage:
    """All that a benchmark plays on."""

    service: Service
    postgres: PostgresServer
    redis_server: RedisServer
    redis: Redis
    redis_url: str

    def register_agents(self) -> None:
        """Register the agents: the API takes them for served from then on, although no worker takes a run."""
        self.service.worker().terminate()
        with psycopg.connect(self.postgres.url(), autocommit=True) as connection:
            connection.execute(
                "UPDATE workers SET ended_at = NULL, draining = false, lease_until = now() + interval '1 day'"
            )

    def cpu_seconds(self, *processes: Running) -> float:
        """Sum the CPU that the servers and these processes have used."""
        servers = [self.postgres.process.pid, self.redis_server.process.pid]
        return cpu_seconds([*servers, *(running.process.pid for running in processes)])


@contextmanager
def stage(**environment: str) -> Generator[Stage]:
    """Set the stage, and clear it."""
    agents = {"AGENTS": ",".join(f"{name}={path}" for name, path in AGENTS.items()), "MODEL": MODEL}
    with PostgresServer() as postgres, RedisServer() as redis_server, TemporaryDirectory() as folder:
        postgres.ensure_database()
        upgrade(postgres.url().replace("postgresql://", "postgresql+psycopg://"))
        url = redis_server.url()
        with serving(postgres.url(), url, Path(folder), agents | NO_PROVIDER | NO_LIMITS | environment) as service:
            yield Stage(service, postgres, redis_server, Redis.from_url(url), url)


def port(api: Running) -> int:
    """Tell the port of an API process."""
    return port_of(api.url)
