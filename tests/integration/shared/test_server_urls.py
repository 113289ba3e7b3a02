"""What DATABASE_URL and REDIS_URL may say, what becomes of it, and the sentences about what they may not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from agent_relay.shared.database import parameters_of
from agent_relay.shared.server_urls import Postgres, Redis
from agent_relay.shared.settings import WrongSettings, read

SECRET = "p@ss/w%rd:+ ü#?&="
ENCODED = "p%40ss%2Fw%25rd%3A%2B%20%C3%BC%23%3F%26%3D"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://h/db", {"host": "h", "dbname": "db"}),
        ("postgres://h/db", {"host": "h", "dbname": "db"}),
        ("POSTGRESQL+psycopg://h/db", {"host": "h", "dbname": "db"}),
        (
            f"postgresql://u:{ENCODED}@h:1/db",
            {"user": "u", "password": SECRET, "host": "h", "port": "1", "dbname": "db"},
        ),
        ("postgresql://u:a?b#c@h/db", {"user": "u", "password": "a?b#c", "host": "h", "dbname": "db"}),
        ("postgresql://h1:1,[::1]:2/db", {"host": "h1,::1", "port": "1,2", "dbname": "db"}),
        ("postgresql:///db?host=h1:1&host=h2:2", {"host": "h1,h2", "port": "1,2", "dbname": "db"}),
        (
            "postgresql:///db?host=h1:1&host=[::1]&host=fe80::1",
            {"host": "h1,::1,fe80::1", "port": "1,,", "dbname": "db"},
        ),
        ("postgresql:///db?host=h1,h2&port=1,2", {"host": "h1,h2", "port": "1,2", "dbname": "db"}),
        ("postgresql:///db?host=/run/postgresql", {"host": "/run/postgresql", "dbname": "db"}),
        ("postgresql://%2Frun%2Fpostgresql/db", {"host": "/run/postgresql", "dbname": "db"}),
        ("postgresql://@/", {}),
        ("postgresql://h/d?options=-csearch_path%3Da,b", {"host": "h", "dbname": "d", "options": "-csearch_path=a,b"}),
        ("postgresql://h/d?application_name=a+b", {"host": "h", "dbname": "d", "application_name": "a+b"}),
    ],
)
def test_a_database_is_named_as_libpq_names_it(url: str, said: dict[str, str]) -> None:
    assert Postgres.parse(url).parameters == said
    assert "password" not in repr(Postgres.parse(url))


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mysql://h/db", "must look like postgresql://"),
        ("postgresql:h/db", "must look like postgresql://"),
        ("postgresql://u:p@ss@h/db", "percent-encoded: @ as %40"),
        ("postgresql://u:p/ss@h/db", "percent-encoded: @ as %40"),
        ("postgresql://u:p@ss/w%rd@h/db", "percent-encoded: @ as %40"),
        ("postgresql://u:pss%rd@h/db", "percent-encoded: @ as %40"),
        ("postgresql://h/db?pgbouncer=true", 'invalid URI query parameter: "pgbouncer"'),
        ("postgresql://h/db?options=-ca%3D1&options=-cb%3D2", "says options twice"),
        ("postgresql://h:1/db?host=h1:1&host=h2:2", "says ports both in host="),
        ("postgresql://h1,h2/db?port=1,2,3", "could not match 3 port numbers to 2 hosts"),
        ("postgresql://h:123456/db", 'invalid port number: "123456"'),
        ("postgresql://h/db?sslmode=yes", 'invalid sslmode value: "yes"'),
        ("postgresql://h/db?target_session_attrs=rw", 'invalid target_session_attrs value: "rw"'),
        ("postgresql://h/db?connect_timeout=soon", "connect_timeout that is no number"),
        ("postgresql://h/db?connect_timeout=1_0", "connect_timeout that is no number"),
        ("postgresql://h/db?keepalives_idle=\u0665", "keepalives_idle that is no number"),
        ("postgresql://h/db?sslmode=verify-full&sslrootcert=/no/where", "does not exist: sslrootcert=/no/where"),
        ("postgresql:///?service=nobody-knows-it", 'definition of service "nobody-knows-it" not found'),
    ],
)
def test_a_database_that_cannot_be_reached_by_any_means_stops_the_start(url: str, sentence: str) -> None:
    with pytest.raises(WrongSettings) as stopped:
        read(database_url=url, redis_url="redis://h")
    assert str(stopped.value).startswith("DATABASE_URL ")
    assert sentence in str(stopped.value)
    assert "ss" not in str(stopped.value).replace("password", "").replace("session", "").replace("ssl", "")


def test_a_service_file_and_a_password_file_say_the_rest(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Postgres.parse(database_url).parameters
    file = tmp_path / "services"
    file.write_text("[relay]\n" + "".join(f"{name}={value}\n" for name, value in said.items()))
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    parameters = parameters_of(Postgres.parse(f"postgresql:///?service=relay&passfile={tmp_path}/none"), "mine")
    with psycopg.connect(**parameters) as connection:
        assert connection.info.dbname == said["dbname"]
        assert connection.execute("SELECT current_setting('application_name')").fetchone() == ("mine",)


def test_what_the_url_says_wins_but_for_the_encoding() -> None:
    url = "postgresql://h/db?connect_timeout=7&keepalives_idle=1&client_encoding=LATIN1"
    parameters = parameters_of(Postgres.parse(url))
    assert (parameters["connect_timeout"], parameters["keepalives_idle"]) == ("7", "1")
    assert parameters["client_encoding"] == "UTF8"


TLS = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://h", {"host": "h", "port": 6379, "db": 0}),
        (f"redis://u:{ENCODED}@h:1/2", {"username": "u", "password": SECRET, "host": "h", "port": 1, "db": 2}),
        ("REDISS://[::1]?db=3", {**TLS, "host": "::1", "port": 6379, "db": 3}),
        ("rediss://h?ssl_cert_reqs=none", {"ssl_cert_reqs": "none", "ssl_check_hostname": False, "host": "h"}),
        ("rediss://h?ssl_cert_reqs=CERT_REQUIRED&ssl_check_hostname=false", {**TLS, "ssl_check_hostname": False}),
        (f"unix://u:{ENCODED}@/run/r.sock?db=4", {"username": "u", "password": SECRET, "path": "/run/r.sock", "db": 4}),
        ("unix:///run/r.sock?password=p", {"password": "p", "path": "/run/r.sock", "db": 0}),
    ],
)
def test_a_redis_is_named_by_a_url(url: str, said: dict[str, Any]) -> None:
    parameters = Redis.parse(url).parameters
    assert {name: parameters[name] for name in said} == said
    assert ("ssl_cert_reqs" in parameters) == url.lower().startswith("rediss")


def test_sentinels_are_named_by_a_url() -> None:
    plain = Redis.parse("redis+sentinel://user:pass@s1:1,s2,[::1]:3/service?db=5")
    assert plain.sentinels == (("s1", 1), ("s2", 26379), ("::1", 3))
    assert (plain.service, plain.sentinel_parameters) == ("service", {})
    assert plain.parameters == {"username": "user", "password": "pass", "db": 5}
    secured = Redis.parse("rediss+sentinel://:p@s1/service/6?sentinel_password=q&ssl_check_hostname=false")
    tls = {**TLS, "ssl_check_hostname": False}
    assert secured.parameters == {**tls, "password": "p", "db": 6}
    assert secured.sentinel_parameters == {**tls, "password": "q"}


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://h", "must look like redis://"),
        ("redis://h:port", "must look like redis://"),
        ("redis://h:99999", "must look like redis://"),
        ("redis://:p@ss@h", "percent-encoded: @ as %40"),
        ("redis://:p/ss@h", "percent-encoded: @ as %40"),
        ("redis://:p?ss@h", "percent-encoded: @ as %40"),
        ("redis://:p#ss@h", "percent-encoded: @ as %40"),
        ("redis://:p[ss@h", "percent-encoded: @ as %40"),
        ("redis://h/zero", "names the database 'zero'"),
        ("redis://h?db=-1", "names the database '-1'"),
        ("redis://h?db=1_0", "names the database '1_0'"),
        ("redis://h/%D9%A5", "names the database '\u0665'"),
        ("redis://h?db=" + "9" * 5_000, "names the database '999"),
        ("redis://h:6_379", "must look like"),
        ("redis://h:\u0665", "must look like"),
        ("redis://h:" + "9" * 5_000, "must look like"),
        ("redis://h?socket_connect_timeout=1_0", "a number of seconds above 0"),
        ("redis://h?socket_connect_timeout=nan", "a number of seconds above 0"),
        ("redis://h?socket_connect_timeout=1e400", "a number of seconds above 0"),
        ("redis://h?socket_connect_timeout=-1", "a number of seconds above 0"),
        ("redis://h?db=1&db=2", "says db twice"),
        ("redis://h?decode_responses=true", "not known: decode_responses"),
        ("redis://h?protocol=3", "not known: protocol"),
        ("redis://h?ssl_ca_certs=/etc/hosts", "not known: ssl_ca_certs"),
        ("rediss://h?ssl_ca_certs=/no/where", "must be a file that is there"),
        ("rediss://h?ssl_cert_reqs=maybe", "must be required, optional or none"),
        ("rediss://h?ssl_cert_reqs=none&ssl_check_hostname=true", "ssl_check_hostname"),
        ("redis+sentinel://s1:26379", "must name the service"),
    ],
)
def test_a_redis_that_cannot_be_used_stops_the_start(url: str, sentence: str) -> None:
    with pytest.raises(WrongSettings) as stopped:
        read(database_url="postgresql://h/db", redis_url=url)
    assert str(stopped.value).startswith("REDIS_URL ")
    assert sentence in str(stopped.value)


@pytest.mark.parametrize("prefix", ["with space:", "*", "a" * 65, "ü:"])
def test_a_prefix_that_no_acl_could_name_stops_the_start(prefix: str) -> None:
    with pytest.raises(WrongSettings, match="REDIS_PREFIX"):
        read(database_url="postgresql://h/db", redis_url="redis://h", redis_prefix=prefix)
