"""What the environment and `.env` already say when everything is to be run by one command.

`shared/settings.py` is the only reader of the environment for a process that does the work. The launcher does none: it
*writes* the environment of those processes, so it needs to know what is given and what it has to add.
"""

import os
import socket
from typing import Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import SettingsConfigDict

from agent_relay.shared.settings import Variables, load_file, sentence_of

_FAVOURITE_PORT = 8000
LOOPBACK = "127.0.0.1"


class LaunchEnvironment(Variables):
    """The variables that decide what the launcher adds; what they may hold, `agent_relay.shared.settings` knows."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    database_url: str | None = None
    redis_url: str | None = None
    agent_database_url: str | None = None
    api_keys: str | None = None
    operator_keys: str | None = None
    agents: str | None = None
    port: int | None = Field(default=None, ge=0, le=65_535)
    drain_seconds: float = Field(default=30, ge=0)

    @model_validator(mode="after")
    def _both_servers_or_none(self) -> Self:
        if bool(self.database_url) != bool(self.redis_url):
            raise ValueError("Set both DATABASE_URL and REDIS_URL, or none of them to get private servers.")
        return self

    @classmethod
    def read(cls) -> Self:
        """Read them, or stop with a sentence."""
        load_file()
        try:
            return cls()
        except ValidationError as invalid:
            raise SystemExit("\n".join(map(sentence_of, invalid.errors(include_input=False)))) from None

    def free_port(self) -> int:
        """Return the port that is asked for, if it is free; else the usual one, else any that is free."""
        if self.port:
            if not _can_listen(self.port):
                raise SystemExit(f"PORT {self.port} is taken by another process; choose another, or none to get any.")
            return self.port
        favourite = 0 if self.port == 0 else _FAVOURITE_PORT
        return _can_listen(favourite) or _can_listen(0)

    def environment(self, **added: str) -> dict[str, str]:
        """Return the environment of a child process: ours, and what is added."""
        return {**os.environ, **added}


def servers_environment() -> dict[str, str]:
    """Return the environment of a private server: nothing of ours (PGPORT!) but where the libraries are."""
    libraries = {name: path for name, path in os.environ.items() if name in {"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"}}
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **libraries}


def _can_listen(port: int) -> int:
    """Return the port that a server would get, or 0 where it would get none."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((LOOPBACK, port))
        except OSError:
            return 0
        return server.getsockname()[1]
