"""A private Redis-compatible server on a Unix socket. It keeps nothing: losing Redis loses no run."""

import signal
import socket
from contextlib import closing, suppress
from pathlib import Path
from typing import ClassVar

from agent_relay.embedded import binaries
from agent_relay.embedded.process import Steps
from agent_relay.embedded.server import Server

DATABASES = 1024


class RedisServer(Server):
    """Valkey, with databases enough for a test each."""

    name: ClassVar[str] = "redis"
    steps: ClassVar[Steps] = ((signal.SIGTERM, 5),)

    def url(self, database: int = 0) -> str:
        """Return the URL of a database, by its number below `DATABASES`."""
        return f"unix://{self._socket}?db={database}"

    @property
    def _socket(self) -> Path:
        return self.folder / "redis.sock"

    def _prepare(self) -> None:
        self._socket.unlink(missing_ok=True)

    def _command(self) -> list[str | Path]:
        options = {
            "port": 0,
            "unixsocket": self._socket,
            "unixsocketperm": 700,
            "dir": self.folder,
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
            "databases": DATABASES,
        }
        command: list[str | Path] = [binaries.redis_binary()]
        for option, value in options.items():
            command += [f"--{option}", str(value)]
        return command

    def _answers(self) -> bool:
        with suppress(OSError), closing(socket.socket(socket.AF_UNIX)) as client:
            client.settimeout(2)
            client.connect(str(self._socket))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
        return False
