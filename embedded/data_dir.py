"""The home of private servers: what outlives a run of them, in a folder (`.local/`) that one run at a time holds."""

import fcntl
import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from agent_relay.embedded import binaries
from agent_relay.embedded.user import everybody_reaches, make_open_folder, servers_account
from agent_relay.shared import key_format


class DataDirLocked(SystemExit):
    """Somebody else holds the home."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"agent-relay already runs from {path} (process {holder}); stop that one first.")


class DataDir:
    """A locked folder with the servers' data, their logs, and the local user and keys."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._lock: int | None = None

    def __enter__(self) -> Self:
        """Make the folder where there is none, and lock it; raise `DataDirLocked` where another process has."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        make_open_folder(self.path)
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode().strip() or "unknown"
            os.close(lock)
            raise DataDirLocked(self.path, holder) from None
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the folder go."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def data(self) -> Path:
        """Where servers keep their data: here, or where the servers' account can enter if it cannot enter here."""
        if servers_account() is None or everybody_reaches(self.path):
            return self.path
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        make_open_folder(binaries.STATE)
        make_open_folder(binaries.STATE / digest)
        return binaries.STATE / digest

    def api_key(self) -> str:
        """Return the key of the local tenant, made the first time."""
        return self._kept("api-key", key_format.new_key)

    def operator_key(self) -> str:
        """Return the key of the local operator, made the first time: for `/ops` and `/api/v1/operator`."""
        return self._kept("operator-key", key_format.new_key)

    def user_id(self) -> str:
        """Return the id of a sample user, made the first time, so that a restart finds its threads again."""
        return self._kept("user-id", lambda: str(uuid.uuid4()))

    def tell_clients(self, url: str) -> None:
        """Write down where the service is and who calls, for `agent-relay ask` and the like in this folder."""
        values = {"URL": url, "API_KEY": self.api_key(), "USER_ID": self.user_id()}
        path = self.path / "client.env"
        path.touch(mode=0o600)
        path.write_text("".join(f"AGENT_RELAY_{name}={value}\n" for name, value in values.items()))

    def _kept(self, name: str, make: Callable[[], str]) -> str:
        path = self.path / name
        path.touch(mode=0o600)
        if not path.read_text():
            path.write_text(f"{make()}\n")
        return path.read_text().strip()
