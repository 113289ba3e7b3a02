"""A private PostgreSQL on a Unix socket."""

import os
import shutil
import signal
from contextlib import closing, suppress
from pathlib import Path
from typing import ClassVar

import psycopg
from psycopg import sql

from agent_relay.embedded import binaries
from agent_relay.embedded.data_dir import DataDir
from agent_relay.embedded.process import Steps, command_of
from agent_relay.embedded.server import Server, ServerStartError
from agent_relay.embedded.user import make_private_folder

DATABASE = "agent_relay"
OWNER, API, WORKER, AGENTS = "postgres", "api", "worker", "agents"
"""Roles: of the migrations, of API processes, of workers, and of what agents get."""

_PORT = 5432  # Part of the socket's name. Said aloud, because PGPORT would speak otherwise.
_INITDB_SECONDS = 120


class PostgresServer(Server):
    """PostgreSQL with its data in the home, or of the moment. `durable=False` leaves out fsync, for tests."""

    name: ClassVar[str] = "postgres"
    steps: ClassVar[Steps] = ((signal.SIGINT, 20), (signal.SIGQUIT, 5))  # The fast and the immediate shutdown.

    def __init__(self, home: DataDir | None = None, *, durable: bool = True) -> None:
        self._binaries = binaries.postgres_folder()
        super().__init__(home)
        self._durable = durable
        self._data = (home.data if home else self.folder) / "postgres"

    def url(self, database: str = DATABASE, role: str = OWNER) -> str:
        """Return the URL of a database, for a role."""
        return f"postgresql://{role}@:{_PORT}/{database}?host={self.folder}"

    def ensure_database(self, name: str = DATABASE) -> None:
        """Make a database where there is none of that name."""
        with closing(psycopg.connect(self.url("postgres"), autocommit=True)) as connection:
            if not connection.execute("select from pg_database where datname = %s", [name]).rowcount:
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))

    def ensure_roles(self) -> None:
        """Make the roles that are not there; what they may do, the migrations grant."""
        with closing(psycopg.connect(self.url("postgres"), autocommit=True)) as connection:
            for role in (API, WORKER, AGENTS):
                if not connection.execute("select from pg_roles where rolname = %s", [role]).rowcount:
                    connection.execute(sql.SQL("create role {} login").format(sql.Identifier(role)))

    def pause(self) -> None:
        """Freeze the server and the processes that serve its connections."""
        with closing(psycopg.connect(self.url("postgres"), autocommit=True)) as connection:
            super().pause()  # From here on no connection is new.
            others = "select pid from pg_stat_activity where pid <> pg_backend_pid()"
            pids = [int(row[0]) for row in connection.execute(others)]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self._frozen.append(pid)

    def _prepare(self) -> None:
        for socket in self.folder.glob(".s.PGSQL.*"):
            socket.unlink()  # A killed server leaves them, and their numbers may name another process by now.
        if not self._data.exists():
            self._initialise()
        pid_file = self._data / "postmaster.pid"
        if pid_file.exists():
            pid = int(pid_file.read_text().split(maxsplit=1)[0])
            command = command_of(pid)
            if command and str(self._data) not in command:
                pid_file.unlink()  # PostgreSQL would take whoever has the number now for itself.

    def _initialise(self) -> None:
        """Make the cluster, at once or not at all."""
        unfinished = self._data.with_name("postgres.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        make_private_folder(unfinished)
        command: list[str | Path] = [self._binaries / "initdb", "-D", unfinished, "-U", OWNER]
        command += ["--auth=trust", "--encoding=UTF8", "--locale=C", *([] if self._durable else ["--no-sync"])]
        initdb = self._run(command)
        if not initdb.wait(_INITDB_SECONDS):
            initdb.stop(())
        if initdb.end != "status 0":
            raise ServerStartError(f"initdb ended with {initdb.end}.\n{self.last_words()}")
        unfinished.rename(self._data)

    def _command(self) -> list[str | Path]:
        options = {
            "listen_addresses": "",
            "unix_socket_directories": self.folder,
            "unix_socket_permissions": "0700",
            "port": _PORT,
            "max_connections": 200,
            "timezone": "UTC",
            "log_timezone": "UTC",
            # Without these a crash of the machine may lose data; a crash of the server does not.
            "fsync": self._durable,
            "full_page_writes": self._durable,
        }
        command: list[str | Path] = [self._binaries / "postgres", "-D", self._data]
        for option, value in options.items():
            command += ["-c", f"{option}={value}"]
        return command

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError):
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
            return True
        return False

    def _worth_another_try(self) -> bool:
        """Wait for the processes of a killed server, which notice its death and then end."""
        return "still in use" in self.last_words()
