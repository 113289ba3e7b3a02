"""The only reader of the environment. A wrong value stops the start with a sentence that names the variable."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import cached_property
from io import StringIO
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

import dotenv
from dotenv.parser import parse_stream
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from agent_relay.shared.failpoints import Trap
from agent_relay.shared.key_format import TENANT
from agent_relay.shared.plain_numbers import decimal_number, whole_number
from agent_relay.shared.redis_names import PREFIX, Names
from agent_relay.shared.server_urls import Postgres, Redis

SomeUrl = TypeVar("SomeUrl", str, str | None)
_KEY_HASH = re.compile(r"[0-9a-f]{64}")
AGENT_TYPE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_PREFIX = re.compile(r"[A-Za-z0-9_.:/-]{0,64}")
_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_.])?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_USUAL_PORTS = {"http": 80, "https": 443}
_ALIKE = 0.88
"""How much a variable must be like one of ours to be taken for a slip of the pen, of 1."""
_IMPORT_PATH = re.compile(r"([A-Za-z_][\w.]*|[^\s,:=]+\.py):[A-Za-z_]\w*|[^\s,:=]+\.(yaml|yml|json)")
LEAST_SECRET_CHARACTERS = 16
_UNITS = {"_seconds": 1, "_hours": 3600, "_days": 86_400}
_LONGEST_SECONDS = 100 * 365 * 86_400
"""The limit of any duration: more is beyond the dates of Python and PostgreSQL."""
_MOST = 10**15
"""Of any other number: more is beyond what PostgreSQL counts to."""


def _words(value: object) -> object:
    """Split a string at commas and white space; leave everything else to the validators."""
    return _split(value) if isinstance(value, str) else value


def _split(text: str) -> list[str]:
    return [word for word in re.split(r"[,\s]+", text) if word]


def _pairs(value: object, separator: str) -> list[tuple[str, str]]:
    words = _words(value)
    if not isinstance(words, list):
        raise ValueError("must be a list")  # noqa: TRY004  (pydantic reports a ValueError, not a TypeError)
    pairs = [str(word).partition(separator)[::2] for word in words]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return [(left.strip(), right.strip()) for left, right in pairs]


def _keys(value: object) -> object:
    """Read `name:sha256` pairs; a name may have several keys, which is how they are rotated."""
    if isinstance(value, dict):
        return value  # pyright: ignore[reportUnknownVariableType]
    keys: dict[str, str] = {}
    for name, key_hash in _pairs(value, ":"):
        if not TENANT.fullmatch(name) or not _KEY_HASH.fullmatch(key_hash):
            raise ValueError(
                "must list name:hash pairs as `agent-relay key NAME` makes them: the hash of a key, never the key"
            )
        keys[key_hash] = name
    return keys


def _pauses(value: object) -> object:
    """Read seconds, one a word."""
    words = _words(value)
    if not isinstance(words, list) or not words:
        raise ValueError("must list seconds, such as 5,300,1800")
    return words  # pyright: ignore[reportUnknownVariableType]


def _hosts(value: object) -> object:
    words = _words(value)
    return [_trusted_host(str(word)) for word in words] if isinstance(words, list) else words  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _trusted_host(word: str) -> str:
    """Read a name or an address as URLs have it."""
    name = word.lower().removeprefix("[").removesuffix("]")
    with suppress(ValueError):
        return str(ip_address(name))
    if not _HOST_NAME.fullmatch(name):
        raise ValueError(f"must list names or addresses, without scheme, port, path or *; {word!r} is none")
    return name


def _listening_host(value: str) -> str:
    """Read the address to listen on."""
    host = value.strip().removeprefix("[").removesuffix("]")
    with suppress(ValueError):
        ip_address(host.partition("%")[0])
        return host
    if not _HOST_NAME.fullmatch(host.lower()):
        raise ValueError("must be an address or a name, without scheme and port: 127.0.0.1, or 0.0.0.0 for all")
    return host


def _origins(value: object) -> object:
    words = _words(value)
    if not isinstance(words, list):
        return words
    origins = list(dict.fromkeys(_origin(str(word)) for word in words))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if "*" in origins and len(origins) > 1:
        raise ValueError("must list origins, or * alone for all of them")
    return origins


def _origin(word: str) -> str:
    """Write an origin as browsers send it (RFC 6454), or raise with the reason why they never would."""
    if word in {"*", "null"}:
        return word
    try:
        parts = urlsplit(word)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except (ValueError, UnicodeError):
        host, port, parts = "", None, urlsplit("")
    if not _SCHEME.match(word):
        raise ValueError(f"must list origins such as https://app.example.com; {word!r} has no scheme")
    if parts.path not in {"", "/"} or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"must list origins such as https://app.example.com, without path and user; {word!r} has one")
    if not _HOST_NAME.fullmatch(host) and ":" not in host:
        raise ValueError(f"must list origins such as https://app.example.com, each in full; {word!r} is none")
    is_usual = port is None or port == _USUAL_PORTS.get(parts.scheme)
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{'' if is_usual else f':{port}'}"


def is_loopback(url: str) -> bool:
    """Tell whether a URL names this machine."""
    host = urlsplit(url).hostname or ""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _provider_url(url: str | None) -> str | None:
    """Read the URL of an identity provider, whose answers are trusted: so it must be protected on the way."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(url))
        host, _ = parts.hostname, parts.port
    except ValueError:
        is_whole, host, parts = False, None, urlsplit("")
    if not is_whole or not host or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("must be a URL such as https://login.example.com/; http is taken of this machine only")
    return url


def _tenant(name: str | None) -> str | None:
    if name is not None and not TENANT.fullmatch(name):
        raise ValueError("must be a tenant: 1 to 63 of a-z, 0-9, - and _, a letter or digit first")
    return name


def _log_level(value: object) -> str:
    level = str(value).strip().upper()
    if level not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
    return level


def _pool(value: str) -> str:
    if not AGENT_TYPE.fullmatch(value):
        raise ValueError("must be a name of at most 63 characters: a-z, 0-9, _ and -")
    return value


def _set(value: object) -> object:
    """Take an empty variable, as `.env` may have it, for none."""
    return value.strip() or None if isinstance(value, str) else value


def _agents(value: object) -> object:
    if isinstance(value, dict):
        return value  # pyright: ignore[reportUnknownVariableType]
    agents: dict[str, str] = {}
    for name, path in _pairs(value, "="):
        if not AGENT_TYPE.fullmatch(name) or not _IMPORT_PATH.fullmatch(path):
            pair = f"{name}={path}"
            raise ValueError(
                f"must list name=package.module:attribute, name=./file.py:attribute or name=./spec.yaml (.yml, .json), "
                f"names of a-z, 0-9, _ and -; {pair!r} is neither"
            )
        if name in agents:
            raise ValueError(f"names {name!r} twice")
        agents[name] = path
    if not agents:
        raise ValueError("must list at least one agent: name=package.module:attribute; not set, it is the sample")
    return agents


def _root_path(path: str) -> str:
    path = path.rstrip("/")
    if path and not _ROOT_PATH.fullmatch(path):
        raise ValueError("must be a path such as /relay, without a host, or empty")
    return path


def _prefix(prefix: str) -> str:
    if not _PREFIX.fullmatch(prefix):
        raise ValueError("must be at most 64 characters of A-Z, a-z, 0-9 and _ . : / -, or empty")
    return prefix


def _secret(secret: SecretStr | None) -> SecretStr | None:
    if secret is not None and len(secret.get_secret_value()) < LEAST_SECRET_CHARACTERS:
        raise ValueError(f"must have at least {LEAST_SECRET_CHARACTERS} characters")
    return secret


def _traps(value: object) -> object:
    words = _words(value)
    return [Trap.parse(word) for word in words if isinstance(word, str)] if isinstance(words, list) else words  # pyright: ignore[reportUnknownVariableType]


def _postgres(url: SomeUrl) -> SomeUrl:
    if url is not None:
        Postgres.parse(url)
    return url


def _redis(url: str) -> str:
    Redis.parse(url)
    return url


def _numbers(value: Any) -> list[float]:
    """List the numbers of a value: itself, or its parts."""
    return [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int | float)]  # pyright: ignore[reportUnknownVariableType]


def _types_in(annotation: object) -> set[type]:
    """List the types that an annotation is made of: `list[int] | None` of list, int and None's."""
    parts = [part for argument in get_args(annotation) for part in _types_in(argument)]
    itself = get_origin(annotation) or annotation
    return {itself, *parts} if isinstance(itself, type) else {*parts}


def share(wanted: int | None, whole: int, parts: int) -> int:
    """Return the share of one caller: the setting, or one part of the whole, rounded up; 0 is no limit."""
    return -(-whole // parts) if wanted is None else wanted


class Variables(BaseSettings):
    """Variables of the environment. Numbers among them are written plainly and are finite."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_plain(cls, value: object, info: ValidationInfo) -> object:
        """Refuse text that Python reads as a number and JSON does not: `1_000`, `+5`, digits of other scripts."""
        kinds = _types_in(cls.model_fields[str(info.field_name)].annotation)
        if not isinstance(value, str) or not kinds & {int, float}:
            return value
        if type(None) in kinds and not value.strip():
            return None
        read_number = whole_number if int in kinds else decimal_number
        for number in _split(value) if list in kinds else [value]:
            read_number(number)
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _has_an_end(cls, value: object, info: ValidationInfo) -> object:
        """Refuse infinities, and numbers that no clock or counter reaches."""
        unit = next((seconds for end, seconds in _UNITS.items() if str(info.field_name).endswith(end)), None)
        most = _MOST if unit is None else _LONGEST_SECONDS // unit
        if any(number > most for number in _numbers(value)):
            raise ValueError(f"must be at most {most}")
        return value


class Settings(Variables):
    """Everything that can be set, one variable a field, upper-case; `.env.example` documents each for operators."""

    database_url: Annotated[str, AfterValidator(_postgres)]
    """PostgreSQL, the truth."""
    redis_url: Annotated[str, AfterValidator(_redis)]
    """Redis or a compatible server, for the queue, event logs and notifications."""
    redis_prefix: Annotated[str, AfterValidator(_prefix)] = PREFIX
    """The beginning of all names of keys and channels in Redis."""
    database_pool_size: int = Field(default=10, ge=2, le=200)
    """Connections a process may hold to PostgreSQL."""
    agent_database_url: Annotated[str | None, BeforeValidator(_set), AfterValidator(_postgres)] = None
    """PostgreSQL as agents get it (`RunScope.database`); without it, as the worker has it: the service's tables."""
    database_api_role: Annotated[str | None, BeforeValidator(_set)] = None
    """Role in PostgreSQL of API processes, to which migrations grant only the rights that it needs. Same below."""
    database_worker_role: Annotated[str | None, BeforeValidator(_set)] = None
    """Role of workers."""
    database_agent_role: Annotated[str | None, BeforeValidator(_set)] = None
    """Role of `agent_database_url`."""
    log_level: Annotated[str, BeforeValidator(_log_level)] = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""

    access_log: bool = False
    """Whether the API writes a line for each request."""
    metrics_host: Annotated[str, AfterValidator(_listening_host)] = "127.0.0.1"
    """Address on which workers show their metrics."""
    metrics_port: int = Field(default=0, ge=0, le=65_535)
    """Port on which a worker shows its metrics; 0 shows none. Those of the API are at its own `/metrics`."""

    host: Annotated[str, AfterValidator(_listening_host)] = "127.0.0.1"
    """Address that the API listens on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port that the API listens on; 0 takes a free one."""
    root_path: Annotated[str, AfterValidator(_root_path)] = ""
    """Path under which a proxy publishes the API, such as `/relay`; whether the proxy strips it does not matter."""
    api_keys: Annotated[dict[str, str], NoDecode, BeforeValidator(_keys)] = Field(default_factory=dict)
    """Tenants by the SHA-256 of their API keys, given as `tenant:hash` pairs."""
    operator_keys: Annotated[dict[str, str], NoDecode, BeforeValidator(_keys)] = Field(default_factory=dict)
    """Operators by the SHA-256 of their keys, given as `name:hash` pairs; without any, there is no operator."""
    ticket_secret: Annotated[SecretStr | None, BeforeValidator(_set), AfterValidator(_secret)] = None
    """Signs stream tickets, the same in all API processes; without it, a secret is made and kept in the database."""
    jwt_issuer: Annotated[str | None, BeforeValidator(_set), AfterValidator(_provider_url)] = None
    """Identity provider (OIDC) whose tokens are accepted, by the name in `iss`; without it, none are."""
    jwt_audience: Annotated[str | None, BeforeValidator(_set)] = None
    """The `aud` that such tokens must have."""
    jwt_tenant: Annotated[str | None, BeforeValidator(_set), AfterValidator(_tenant)] = None
    """The tenant that all its users belong to."""
    jwt_tenant_claim: Annotated[str | None, BeforeValidator(_set)] = None
    """Instead of one tenant for all: the claim of a token that names its tenant."""
    jwt_jwks_url: Annotated[str | None, BeforeValidator(_set), AfterValidator(_provider_url)] = None
    """Where the provider publishes its keys; by default, `/.well-known/openid-configuration` names it."""
    cors_origins: Annotated[list[str], NoDecode, BeforeValidator(_origins)] = Field(default_factory=list)
    """Browser origins that may call the API."""
    pages: bool = True
    """Whether the API serves pages for people: chat, batches and sign-in."""
    max_body_bytes: int = Field(default=1 << 20, ge=1 << 10)
    """Longest request body that the API reads."""
    max_connections: int = Field(default=0, ge=0)
    """Connections of clients that an API process may have; 0 is as many as the limit of open files allows."""
    max_open_calls: int = Field(default=0, ge=0)
    """Streams and waiting calls that an API process serves at once; 0 is as many as it may have connections."""
    max_open_calls_per_user: int | None = Field(default=None, ge=0)
    """Of these, those of a user; a quarter of all, unless set. More are refused with 429."""
    max_open_calls_per_tenant: int | None = Field(default=None, ge=0)
    """Of these, those of a tenant; half of all, unless set. More are refused with 429."""
    max_requests_per_second_per_user: float = Field(default=200, ge=0)
    """Requests of a user that an API process answers; more are refused with 429. 0 is no limit."""
    max_requests_per_second_per_tenant: float = Field(default=500, ge=0)
    """Requests of a tenant that an API process answers; more are refused with 429. 0 is no limit."""
    max_uploads: int = Field(default=20, ge=1)
    """Batches and files over 256 KiB that may arrive at once at a process: a quarter of one user, half of a tenant."""
    max_upload_bytes: int = Field(default=512 << 20, ge=1 << 20)
    """Room in `TMPDIR` for the batches and files that arrive at an API process."""
    request_seconds: float = Field(default=10, gt=0)
    """Time that a client has to send the head of a request, and each 1,000 bytes of its body."""
    keepalive_seconds: float = Field(default=15, gt=0)
    """Silence on a stream after which a comment (SSE) or an empty line (NDJSON) is sent."""
    stalled_reader_seconds: float = Field(default=60, gt=0)
    """A reader that has taken nothing for this time is disconnected; it can resume."""

    agents: Annotated[dict[str, str], NoDecode, BeforeValidator(_agents)] = Field(
        default_factory=lambda: {"bank_support": "agent_relay.worker.agents.bank_support:served"}
    )
    """Agents of the worker: `name=package.module:attribute`, `name=./file.py:attribute` or `name=./spec.yaml` pairs."""
    model: Annotated[str | None, BeforeValidator(_set)] = None
    """Model of the agents that bring none of their own, as pydantic-ai names models (`openai-chat:gpt-5`)."""
    model_timeout_seconds: float = Field(default=120, gt=0)
    """Longest silence of a model, for agents that bring no model settings of their own."""
    model_tries: int = Field(default=4, ge=1)
    """How often a model that cannot be had is asked before a run fails as `model_unavailable`."""
    agent_ready_seconds: float = Field(default=60, gt=0)
    """Time that an agent has to become ready with its first run in a process: to start or reach its MCP servers."""
    max_requests: int = Field(default=50, ge=0)
    """Requests to a model that a run may make, for agents that bring no limits; 0 is no limit, here and below."""
    max_tokens: int = Field(default=0, ge=0)
    """Tokens that a run may use, in and out, for agents that bring no limits."""
    max_tool_calls: int = Field(default=0, ge=0)
    """Tool calls that a run may make, for agents that bring no limits."""
    max_cost_usd: float = Field(default=0, ge=0)
    """US dollars that a run may cost, as far as prices are known, for agents that bring no limits."""
    max_cost_usd_per_tenant_day: float = Field(default=0, ge=0)
    """US dollars that the runs of a tenant may cost on a day (UTC), as far as prices are known; 0 is no limit."""
    pool: Annotated[str, AfterValidator(_pool)] = "default"
    """Pool of workers that serves these agents; a run goes to the pool that its agent is registered for."""
    worker_slots: int = Field(default=50, ge=1, le=10_000)
    """Runs that a worker process answers at once."""
    interactive_share: float = Field(default=0.2, ge=0, lt=1)
    """Share of a worker's slots, and of its time, that runs of batches never take."""
    batch_turn: int = Field(default=10, ge=1)
    """After this number of interactive runs in a row, a worker takes one of a batch first."""
    lease_seconds: float = Field(default=15, gt=0)
    """A worker without a heartbeat for this time is dead."""
    beat_seconds: float = Field(default=3, gt=0)
    """Time between the heartbeats of a worker."""
    drain_seconds: float = Field(default=30, ge=0)
    """Time in which the runs of a worker that stops may end before it returns them to the queue."""
    suspects_at_once: int = Field(default=4, ge=1)
    """Runs under which a worker died that a worker answers at once, each in a process of its own."""
    stuck_loop_seconds: float = Field(default=30, gt=0)
    """A worker whose event loop has not answered for this time ends itself."""
    max_crashes: int = Field(default=3, ge=1)
    """Workers that may die under a run before it ends as `worker_crashed`."""
    partial_interval_seconds: float = Field(default=0.03, ge=0)
    """Least time between two validated partials of an interactive run."""
    batch_partial_interval_seconds: float = Field(default=0.5, ge=0)
    """The same of a run of a batch: partials are nearly all of a worker's work on an answer."""
    max_output_bytes: int = Field(default=4 << 20, ge=1 << 10)
    """Largest output of a run, and partial output, as UTF-8; one above it ends the run as `output_too_large`."""
    max_tool_result_bytes: int = Field(default=4 << 20, ge=1 << 10)
    """Largest result of a tool that a model is given; one above it ends the run as `agent_error`."""
    max_history_bytes: int = Field(default=16 << 20, ge=1 << 10)
    """Largest history that a run is given, the newest exchanges of its thread; and largest transcript of a run."""
    tool_event_bytes: int = Field(default=16 << 10, ge=0)
    """Longest arguments or content of a tool event; longer ones are cut and marked."""
    reasoning_event_bytes: int = Field(default=256 << 10, ge=0)
    """Longest reasoning in the events of an attempt; longer reasoning is cut and marked."""
    scripted_tokens_per_second: float = Field(default=80, ge=0)
    """Pace of the scripted model, which answers when no model is configured; 0 does not pace."""

    run_deadline_seconds: float = Field(default=600, gt=0)
    """Time from its acceptance in which a run has to end, unless the caller sets another."""
    max_run_deadline_seconds: float = Field(default=86_400, gt=0)
    """Longest deadline that a caller may ask for."""
    wait_deadline_seconds: float = Field(default=604_800, gt=0, le=7_776_000)
    """Seconds after which a run fails that waits for answers, unless the caller gives another limit."""
    max_batch_items: int = Field(default=50_000, ge=1)
    """Most items of a batch."""
    max_batch_body_bytes: int = Field(default=64 << 20, ge=1 << 10)
    """Longest request body that a batch may come in; each of its items is held to `MAX_BODY_BYTES`."""
    batch_deadline_seconds: float = Field(default=86_400, gt=0)
    """Time from its acceptance in which a batch has to end, unless the caller sets another."""
    max_batch_deadline_seconds: float = Field(default=604_800, gt=0)
    """Longest deadline of a batch that a caller may ask for."""
    batch_run_seconds: float = Field(default=600, gt=0)
    """Time from its claim in which an attempt of a batch's run has to end."""
    max_queued_per_user: int | None = Field(default=None, ge=0)
    """Runs of a user that may wait before more are refused with 429; 0 is no limit, here and below. A fifth of all."""
    max_queued_per_tenant: int | None = Field(default=None, ge=0)
    """Runs of a tenant that may wait before more are refused with 429; half of all, unless set."""
    max_queued: int = Field(default=10_000, ge=0)
    """Runs that may wait before more are refused with 503."""
    agent_unserved_seconds: float = Field(default=60, ge=0, le=86_400)
    """A query for an agent that no living worker has served for this time is refused with 503; 0 accepts it."""
    max_queued_seconds: float = Field(default=0, ge=0)
    """A run may have waited for a slot for this time before more for its pool are refused with 503."""
    max_running_per_user: int = Field(default=0, ge=0)
    """Interactive runs of a user that may run at once; more wait for one of them to end."""
    max_running_per_tenant: int = Field(default=0, ge=0)
    """Interactive runs of a tenant that may run at once; more wait for one of them to end."""
    max_batch_unfinished_per_tenant: int | None = Field(default=None, ge=0)
    """Unfinished runs of a tenant's batches; a batch above it is refused with 429. Half of all, unless set."""
    max_batch_unfinished: int = Field(default=1_000_000, ge=0)
    """Unfinished runs of all batches; a batch that would exceed it is refused with 503."""
    max_schedules_per_user: int = Field(default=100, ge=0)
    """Schedules of a user; one above it is refused with 429."""
    max_file_bytes: int = Field(default=20 << 20, ge=1 << 10)
    """Largest file that may be uploaded, or fetched for an attachment; a longer one is refused with 413."""
    max_file_bytes_per_user: int = Field(default=1 << 30, ge=0)
    """Bytes of a user's files; one above it is refused with 429. 0 is no limit, here and below."""
    max_file_bytes_per_tenant: int = Field(default=10 << 30, ge=0)
    """Bytes of the files of a tenant; one above it is refused with 429."""
    max_attachment_bytes: int = Field(default=32 << 20, ge=1 << 10)
    """Bytes of files that a query may have, and that a run is given: its own files, then the newest of its history."""
    attachment_seconds: float = Field(default=30, gt=0)
    """Time that an address has to send a file to be attached, everything from the look-up of its name included."""
    file_retention_days: float = Field(default=30, gt=0)
    """Life of a file that no run uses, from its upload; one that is used lives until the last of these runs is gone."""
    log_retention_seconds: int = Field(default=3600, ge=1)
    """Life of an event log in Redis after the run's end."""
    webhook_trusted_hosts: Annotated[list[str], NoDecode, BeforeValidator(_hosts)] = Field(default_factory=list)
    """Hosts that webhooks may go to although they are not public, also over http: names or addresses, as in URLs."""
    webhook_timeout_seconds: float = Field(default=10, gt=0)
    """Time that a receiver of a webhook has to answer, everything from the look-up of its name included."""
    webhook_retry_seconds: Annotated[list[Annotated[float, Field(ge=0)]], NoDecode, BeforeValidator(_pauses)] = Field(
        default_factory=lambda: [5, 300, 1800, 7200, 18_000, 36_000, 50_400]
    )
    """Pauses between the attempts at a webhook, each a fifth more or less; after the last it is given up."""
    webhook_secret_overlap_hours: float = Field(default=24, ge=0)
    """Time that a webhook secret still signs after it was rotated."""
    webhook_retention_days: float = Field(default=30, gt=0)
    """Life of the log of deliveries."""
    idempotency_retention_hours: float = Field(default=24, gt=0)
    """Life of idempotency keys in PostgreSQL."""
    run_retention_days: float = Field(default=30, gt=0)
    """Life of stateless runs and of batches in PostgreSQL after their end; other runs live as long as their thread."""

    @cached_property
    def postgres(self) -> Postgres:
        """How `DATABASE_URL` is connected to."""
        return Postgres.parse(self.database_url)

    @cached_property
    def postgres_of_agents(self) -> Postgres | None:
        """How `AGENT_DATABASE_URL` is connected to; None where agents share the service's own."""
        return None if self.agent_database_url is None else Postgres.parse(self.agent_database_url)

    @cached_property
    def redis(self) -> Redis:
        """How `REDIS_URL` is connected to."""
        return Redis.parse(self.redis_url)

    @cached_property
    def names(self) -> Names:
        """The names of all keys and channels in Redis."""
        return Names(self.redis_prefix)

    @property
    def queued_per_user(self) -> int:
        """Runs of a user that may wait; 0 is no limit."""
        return share(self.max_queued_per_user, self.max_queued, 5)

    @property
    def queued_per_tenant(self) -> int:
        """Runs of a tenant that may wait; 0 is no limit."""
        return share(self.max_queued_per_tenant, self.max_queued, 2)

    @property
    def batch_unfinished_per_tenant(self) -> int:
        """Unfinished runs of a tenant's batches; 0 is no limit."""
        return share(self.max_batch_unfinished_per_tenant, self.max_batch_unfinished, 2)

    @property
    def most_items_of_a_batch(self) -> int:
        """How many items a batch may have to be ever accepted: none that no waiting makes room for."""
        limits = (self.max_batch_items, self.batch_unfinished_per_tenant, self.max_batch_unfinished)
        return min(limit for limit in limits if limit)

    failpoints: Annotated[list[Trap], NoDecode, BeforeValidator(_traps)] = Field(default_factory=list[Trap])
    """Where this process is to die or to freeze; for tests, given as `name=kill` or `name=freeze@passes`."""


class WrongSettings(SystemExit):
    """The environment does not configure this process; the message names each wrong variable."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))


def read(**overrides: Any) -> Settings:
    """Read the environment and `.env`, or stop with a sentence a wrong variable.

    What `.env` holds beside our settings is for libraries that read the environment themselves, as model clients do.
    """
    load_file()
    try:
        settings = Settings(**overrides)
    except ValidationError as invalid:
        raise WrongSettings([sentence_of(error) for error in invalid.errors(include_input=False)]) from None
    for hint in _slips(os.environ):
        print(hint, file=sys.stderr)  # noqa: T201  (logs are not configured yet)
    if settings.beat_seconds * 3 > settings.lease_seconds:
        raise WrongSettings(
            ["BEAT_SECONDS must be at most a third of LEASE_SECONDS: a late beat is not a dead worker."]
        )
    if wrong := _wrong_provider(settings):
        raise WrongSettings([wrong])
    if settings.api_keys.keys() & settings.operator_keys.keys():
        raise WrongSettings(["OPERATOR_KEYS has a key in common with API_KEYS: a tenant is no operator."])
    return settings


def _wrong_provider(settings: Settings) -> str | None:
    """Check the settings of the identity provider together."""
    others = [name for name in Settings.model_fields if name.startswith("jwt_") and getattr(settings, name) is not None]
    if settings.jwt_issuer is None:
        return f"{others[0].upper()} has no effect without JWT_ISSUER." if others else None
    if settings.jwt_audience is None:
        return "JWT_ISSUER needs JWT_AUDIENCE: without it, tokens for other services would be taken."
    if (settings.jwt_tenant is None) == (settings.jwt_tenant_claim is None):
        return (
            "JWT_ISSUER needs either JWT_TENANT, the tenant of its users, or JWT_TENANT_CLAIM, the claim that names it."
        )
    return None


def load_file() -> None:
    """Set the variables of `.env` that the environment does not set, or stop with a sentence."""
    path = Path(".env")
    if not (path.is_file() or path.is_fifo()):
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise WrongSettings([".env is not encoded in UTF-8: save it so."]) from None
    except OSError as error:
        raise WrongSettings([f".env cannot be read: {error.strerror}."]) from None
    for statement in parse_stream(StringIO(text)):
        if statement.error:
            blank = len(statement.original.string) - len(statement.original.string.lstrip("\r\n"))
            line = statement.original.line + statement.original.string[:blank].count("\n")
            raise WrongSettings([f".env holds something other than NAME=value in line {line}."])
    dotenv.load_dotenv(stream=StringIO(text))


def _slips(environment: Mapping[str, str]) -> list[str]:
    """Say which variables may be meant for some of ours that are not set."""
    ours = {name.upper() for name in Settings.model_fields}
    unset = ours - {name.upper() for name in environment}
    alike = {name: get_close_matches(name.upper(), unset, n=1, cutoff=_ALIKE) for name in sorted(environment.keys())}
    return [
        f"{name} is set, which means nothing here; did you mean {meant[0]}?"
        for name, meant in alike.items()
        if meant and name.upper() not in ours
    ]


def sentence_of(error: Any) -> str:
    """Say an error of pydantic's as a sentence that begins with the variable, if it is about one."""
    variable = "".join(str(name) for name in error["loc"][:1]).upper()
    if error["type"] == "missing":
        hints = [hint for hint in _slips(os.environ) if hint.endswith(f"{variable}?")]
        help_ = hints[0] if hints else "Without servers of your own, `make run` starts private ones."
        return f"{variable} is not set. {help_}"
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should ", "must ")
    return f"{variable} {message[0].lower()}{message[1:]}." if variable else message
