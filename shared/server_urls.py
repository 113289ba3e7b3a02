"""DATABASE_URL and REDIS_URL, each read once: every connection takes its parameters from here.

PostgreSQL's URL is read by libpq itself, so that all drivers and threads of ours read it alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import PGconn

from agent_relay.shared.plain_numbers import WHOLE, decimal_number

POSTGRES_LOOKS = "postgresql://user:password@host:5432/name"
REDIS_LOOKS = "redis://host:6379/0, rediss://… (TLS), unix:///path or redis+sentinel://host:26379/service"

_NOWHERE = "/dev/null"
"""As a folder of sockets: libpq checks all parameters and then fails at once, without a look at any network."""
_HOST_AND_PORT = re.compile(r"(?:\[(?P<ipv6>[^\]]*)\]|(?P<name>[^:/]*))(?::(?P<port>[0-9]{0,5}))?")
_USER = re.compile("[^@/]*@")
_UNESCAPED = (
    "has a character in its user or password that must be percent-encoded: @ as %40, / as %2F, : as %3A, ? as %3F, "
    "# as %23, % as %25"
)
_POSTGRES_SCHEMES = {"postgresql", "postgres", "postgresql+psycopg"}
_REDIS_SCHEMES = {"redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel"}
_SENTINEL_PORT = 26379

_REDIS_PORT, _LAST_PORT = 6379, 65535
_MOST_SECONDS = 3600
"""To connect within."""
_MOST_DIGITS = 9
"""Of the number of a database."""

_Pairs = Sequence[tuple[str, str]]


def _file(path: str) -> str:
    if not Path(path).is_file():
        raise ValueError(path)
    return path


def _seconds(text: str) -> float:
    seconds = decimal_number(text)
    if not 0 < seconds <= _MOST_SECONDS:
        raise ValueError(text)
    return seconds


_REQUIREMENTS = {
    spelled: name for name in ("required", "optional", "none") for spelled in (name, f"CERT_{name}".upper())
}


class _Kind(NamedTuple):
    """A parameter of a URL: how it is read, and the values that it may have."""

    read: Callable[[str], Any]
    name: str


_FILE = _Kind(_file, "a file that is there")
_TLS = {
    "ssl_ca_certs": _FILE,
    "ssl_certfile": _FILE,
    "ssl_keyfile": _FILE,
    "ssl_cert_reqs": _Kind(_REQUIREMENTS.__getitem__, "required, optional or none"),
    "ssl_check_hostname": _Kind(
        {"true": True, "True": True, "false": False, "False": False}.__getitem__, "true or false"
    ),
}
_OTHERS = {
    "socket_connect_timeout": _Kind(_seconds, "a number of seconds above 0, such as 2.5"),
    "client_name": _Kind(str, "a name"),
}
_ALL = ["db", *_OTHERS, *_TLS, "username", "password", "sentinel_username", "sentinel_password"]


@dataclass(frozen=True, slots=True)
class Postgres:
    """PostgreSQL, one server or several of which one is to be used."""

    parameters: Mapping[str, str] = field(repr=False)
    """As libpq names them, for `psycopg.connect(**parameters)` and others that take libpq's words."""

    @classmethod
    def parse(cls, url: str) -> Postgres:
        """Read a URL as libpq does; `host=h1:5432&host=h2:5432`, as SQLAlchemy writes several hosts, is understood too.

        Raises:
            ValueError: libpq would not connect with it; the message repeats no password.
        """
        scheme, separator, rest = url.partition("://")
        if scheme.lower() not in _POSTGRES_SCHEMES or not separator or not rest:
            raise ValueError(f"must look like {POSTGRES_LOOKS}")
        user = _USER.match(rest)
        query_at = rest.find("?", user.end() if user else 0) % (len(rest) + 1)
        address, query = rest[:query_at], rest[query_at + 1 :]
        if address.count("@") > bool(user):
            raise ValueError(_UNESCAPED)
        pairs = _pairs_of(query)
        hosts = [value for name, value in pairs if name == "host"]
        others = [(name, value) for name, value in pairs if name != "host"]
        _refuse_twice(others)
        written = "&".join(f"{quote(name)}={quote(value)}" for name, value in others)
        try:
            parameters = {
                name: str(value) for name, value in conninfo_to_dict(f"postgresql://{address}?{written}").items()
            }
        except psycopg.Error as error:
            if "token" in str(error):  # It repeats what may be a part of a password.
                raise ValueError(_UNESCAPED) from None
            raise ValueError(f"cannot be read: {str(error).strip()}") from None
        if hosts:
            parameters |= _several(hosts, parameters)
        _check(parameters)
        return cls(parameters)


def _pairs_of(query: str) -> _Pairs:
    return [(name, value) for name, value in parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)]


def _refuse_twice(pairs: _Pairs) -> None:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"says {name} twice")


def _several(hosts: Sequence[str], parameters: Mapping[str, str]) -> dict[str, str]:
    """Read `host=h1:5432`, once or several times, and libpq's own `host=h1,h2&port=5432,5433`."""
    names: list[str] = []
    ports: list[str] = []
    for host in (host for hosts_said in hosts for host in hosts_said.split(",")):
        match = _HOST_AND_PORT.fullmatch(host)
        names.append((match["ipv6"] or match["name"] or "") if match else host)
        ports.append((match["port"] or "") if match else "")
    if not any(ports):
        return {"host": ",".join(names)}
    if parameters.get("port"):
        raise ValueError("says ports both in host=… and elsewhere")
    return {"host": ",".join(names), "port": ",".join(ports)}


def _check(parameters: Mapping[str, str]) -> None:
    """Let libpq check the parameters without connecting.

    Raises:
        ValueError: they cannot work.
    """
    hosts = parameters.get("host", parameters.get("hostaddr", "")).count(",") + 1
    nowhere = {**parameters, "host": ",".join([_NOWHERE] * hosts)}
    nowhere.pop("hostaddr", None)
    tried = PGconn.connect_start(make_conninfo(**nowhere).encode())
    said = tried.error_message.decode(errors="replace").strip()
    tried.finish()
    if not said.startswith("connection to server"):
        raise ValueError(f"cannot be used: {said}")
    for name in ("connect_timeout", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"):
        if not WHOLE.fullmatch(parameters.get(name, "0")):
            raise ValueError(f"has a {name} that is no number")
    root = parameters.get("sslrootcert", "system")
    if root != "system" and not Path(root).is_file():
        raise ValueError(f"names a certificate file that does not exist: sslrootcert={root}")


@dataclass(frozen=True, slots=True)
class Redis:
    """Redis: one server, or the master of a service that Sentinels watch."""

    parameters: Mapping[str, Any] = field(repr=False)
    """Of a connection, as redis-py names them; those of TLS are there if and only if it is TLS."""
    sentinels: tuple[tuple[str, int], ...] = ()
    """Hosts and ports of the Sentinels; without any, `parameters` name the server."""
    service: str = ""
    """The name of the service among the Sentinels."""
    sentinel_parameters: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    """Of a connection to a Sentinel."""

    @classmethod
    def parse(cls, url: str) -> Redis:
        """Read a URL.

        Raises:
            ValueError: it names no server, or has a parameter that this service does not use.
        """
        try:
            parts = urlsplit(url)
        except ValueError:
            raise ValueError(_UNESCAPED) from None
        if parts.scheme not in _REDIS_SCHEMES or not (parts.netloc or parts.path):
            raise ValueError(f"must look like {REDIS_LOOKS}")
        user, _, hosts = parts.netloc.rpartition("@")
        if "@" in user + parts.path or parts.fragment or ("@" in parts.query and not user):
            raise ValueError(_UNESCAPED)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        _refuse_twice(pairs)
        said = dict(pairs)
        name, _, password = user.partition(":")
        login = _login(unquote(name), unquote(password))
        common = _taken(said, _OTHERS) | (_tls(said) if parts.scheme.startswith("rediss") else {})
        login = login or _login(said.pop("username", ""), said.pop("password", ""))
        if parts.scheme == "unix":
            server = cls({**common, **login, "path": unquote(parts.path), **_database(said, "")})
        elif parts.scheme.endswith("sentinel"):
            service, _, database = parts.path.lstrip("/").partition("/")
            if not service:
                raise ValueError("must name the service that the Sentinels watch: redis+sentinel://host:26379/service")
            server = cls(
                {**common, **login, **_database(said, database)},
                tuple(_host_and_port(host, _SENTINEL_PORT) for host in hosts.split(",")),
                unquote(service),
                common | _login(said.pop("sentinel_username", ""), said.pop("sentinel_password", "")),
            )
        else:
            host, port = _host_and_port(hosts, _REDIS_PORT)
            server = cls({**common, **login, "host": host, "port": port, **_database(said, parts.path.lstrip("/"))})
        if said:
            raise ValueError(f"has a parameter that is not known: {min(said)}; known are {', '.join(_ALL)}")
        return server


def _login(user: str, password: str) -> dict[str, str]:
    said = {"username": user, "password": password}
    return {name: value for name, value in said.items() if value}


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None or int(match["port"] or default) > _LAST_PORT:
        raise ValueError(f"must look like {REDIS_LOOKS}; in a user or password, write @ as %40, / as %2F, ? as %3F")
    return unquote(match["ipv6"] or match["name"] or "localhost"), int(match["port"] or default)


def _database(said: dict[str, str], path: str) -> dict[str, int]:
    number = said.pop("db", "") or unquote(path) or "0"
    if number.startswith("-") or not WHOLE.fullmatch(number) or len(number) > _MOST_DIGITS:
        raise ValueError(f"names the database {number!r}: it must be a number, as in redis://host:6379/0")
    return {"db": int(number)}


def _taken(said: dict[str, str], kinds: Mapping[str, _Kind]) -> dict[str, Any]:
    """Take those parameters out of the URL."""
    taken: dict[str, Any] = {}
    for name in sorted(kinds.keys() & said.keys()):
        value = said.pop(name)
        try:
            taken[name] = kinds[name].read(value)
        except (KeyError, ValueError):
            raise ValueError(f"says {name}={value}, which must be {kinds[name].name}") from None
    return taken


def _tls(said: dict[str, str]) -> dict[str, Any]:
    """Read how the other end's certificate is checked: against its host's name, too, by default."""
    tls = _taken(said, _TLS)
    checked = tls.setdefault("ssl_cert_reqs", "required") == "required"
    if not checked and tls.get("ssl_check_hostname"):
        raise ValueError("says ssl_check_hostname, but also that the certificate need not be right: ssl_cert_reqs")
    tls.setdefault("ssl_check_hostname", checked)
    return tls
