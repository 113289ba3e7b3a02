"""One user's line to the service: what passes is waited out, what does not is raised. It knows no resource."""

from __future__ import annotations

import json
import random
import re
import ssl
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from math import inf
from typing import Any, Self
from urllib.request import getproxies, proxy_bypass

import httpx

from agent_relay.client.errors import OutOfReach, Refused, Wrong

API = "/api/v1"
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 45.0
"""A living stream says something every 15 s, unless its operator wants otherwise."""
UPLOAD_SECONDS = 300.0
"""An upload, and the storing of what was uploaded, may stand still for so long."""
STRANGER_SECONDS = 10.0
"""So long a service is tried that has never answered: it may be the wrong address."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0

Where = Callable[[], Mapping[str, str | None]]
"""Tells where to go on, as query parameters."""
Line = tuple[bytes, dict[str, Any]]
"""A line of a stream, and the object that it is."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and where."""

    url: str
    """Of the service, without the path of its API."""
    key: str = field(repr=False)
    user_id: str

    @property
    def host(self) -> str:
        """The service's name in messages; the whole URL may hold a password."""
        return httpx.URL(self.url).netloc.decode()


class _Passing(Exception):
    """Trouble that passes."""

    def __init__(self, what: str, retry_after: float | None = None, *, expected: bool = False) -> None:
        super().__init__(what)
        self.retry_after = retry_after
        self.expected = expected
        """Not worth a word, if it has passed the next time."""


class Connection:
    """The service, for as long as a command takes."""

    def __init__(
        self, caller: Caller, tell: Callable[[str], None], *, patience_seconds: float, wait_seconds: float | None
    ) -> None:
        proxy = _proxy_for(caller.url)
        self._by_way_of = f" through the proxy {proxy.url.host}" if proxy else ""
        self._http = httpx.Client(
            base_url=caller.url + API,
            trust_env=False,  # Neither .netrc nor a proxy that is not for this address.
            proxy=proxy,
            headers={"X-API-Key": caller.key, "X-User-ID": caller.user_id, "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
            verify=_trusted() if httpx.URL(caller.url).scheme == "https" else False,  # To load them takes a while.
        )
        self._host = caller.host
        self.tell = tell
        self._patience = patience_seconds
        self._longest_wait = wait_seconds
        self.known = False
        """Whether this is the right address for all we know."""
        self._trouble_since: float | None = None
        self._tries = 0
        self._told: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def post(self, path: str, body: Mapping[str, Any] | None = None, *, key: str | None = None) -> Any:
        """Post JSON; with a key it is safe to post it again, which is what happens when the answer gets lost."""
        headers = {} if key is None else {"Idempotency-Key": key}
        return self._persist(lambda: self._http.post(path, json=body, headers=headers))

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """Change a resource; to do it again changes nothing more."""
        return self._persist(lambda: self._http.patch(path, json=body))

    def delete(self, path: str) -> None:
        """Delete a resource.

        Raises:
            Refused: 404, it is not there; so it is if the answer to the first try was lost.
        """
        self._persist(lambda: self._http.delete(path))

    def get(self, path: str, **parameters: Any) -> Any:
        """Read a resource, or a list of them."""
        return self._persist(lambda: self._http.get(path, params=parameters))

    def upload(
        self, path: str, parameters: Mapping[str, str], chunks: Callable[[], Iterable[bytes]], *, key: str
    ) -> Any:
        """Post NDJSON as it is read, from its beginning whenever it has to be posted again."""
        headers = {"Idempotency-Key": key, "Content-Type": "application/x-ndjson"}
        timeout = httpx.Timeout(UPLOAD_SECONDS, connect=CONNECT_SECONDS)
        return self._persist(
            lambda: self._http.post(path, params=parameters, content=chunks(), headers=headers, timeout=timeout)
        )

    def follow(self, path: str, where: Where) -> Generator[Line]:
        """Read the lines of a stream, over as many connections as it takes; it ends when nobody wants more of it."""
        while True:
            parameters = {name: value for name, value in where().items() if value is not None}
            try:
                with self._http.stream("GET", path, params=parameters) as response:
                    self._check(response)
                    yield from self._lines(response)
                trouble = _Passing("The stream was cut", expected=True)
            except httpx.RequestError as error:
                trouble = self._away(error)
            except _Passing as passing:
                trouble = passing
            self._wait(trouble)

    def _lines(self, response: httpx.Response) -> Iterator[Line]:
        """Read whole lines. Empty ones say only that the stream is alive; one without an end was cut."""
        tail = b""
        for chunk in response.iter_bytes():
            self._good()
            *lines, tail = (tail + chunk).split(b"\n")
            for line in filter(None, lines):
                yield line, self._read(line, dict)

    def _persist(self, call: Callable[[], httpx.Response]) -> Any:
        """Call until the service has answered, and return what it said."""
        while True:
            try:
                response = call()
                self._check(response)
            except httpx.RequestError as error:
                trouble = self._away(error)
            except _Passing as passing:
                trouble = passing
            else:
                return (
                    None if response.status_code == HTTPStatus.NO_CONTENT else self._read(response.content, dict, list)
                )
            self._wait(trouble)

    def _read(self, said: bytes, *kinds: type) -> Any:
        try:
            value: Any = json.loads(said)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, kinds):
            raise Wrong(f"{self._host} answers, but not as agent-relay does. Is the address right?")
        return value

    def _check(self, response: httpx.Response) -> None:
        """Let a good answer pass."""
        if response.is_success:
            self._good()
            return
        response.read()
        try:
            problem = response.json()
        except ValueError:
            problem = {}
        if not isinstance(problem, dict) or "title" not in problem:
            if response.has_redirect_location:
                raise Wrong(f"{self._host} sends on to {response.headers['location']}. Give the address of that.")
            problem = {"title": response.reason_phrase, "detail": _NOT_OURS}
        self.known = True
        refused = Refused(response.status_code, problem)  # pyright: ignore[reportUnknownArgumentType]
        if response.is_server_error or response.status_code in _PASSING or refused.code == "idempotency_key_in_use":
            after = response.headers.get("retry-after", "")
            said = f"{self._host} says {response.status_code}: {refused.reason}".rstrip(".")
            raise _Passing(said, float(after) if _SECONDS.fullmatch(after) else None)
        raise refused

    def _away(self, error: httpx.RequestError) -> _Passing:
        """Take trouble of the network for what passes, unless it has never been any better.

        Raises:
            Wrong: TLS does not work with this address.
        """
        tls = next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLError)), None)
        if tls is not None and not self.known:
            if isinstance(tls, ssl.SSLCertVerificationError):
                raise Wrong(
                    f"{self._host} shows a certificate that is not trusted ({tls.verify_message.rstrip('.')})."
                    f" If it is your own, name its authority: SSL_CERT_FILE=/path/to/ca.pem."
                )
            raise Wrong(f"{self._host} does not speak TLS ({tls.reason or tls}). Is its address http://…?")
        return _Passing(f"{self._host} is out of reach{self._by_way_of} ({error or type(error).__name__})")

    def _good(self) -> None:
        """The service answers."""
        if self._told is not None:
            self.tell(f"{self._host} answers again.")
        self.known, self._trouble_since, self._tries, self._told = True, None, 0, None

    def _wait(self, trouble: _Passing) -> None:
        """Wait for so long as the service asks for, or a little longer each time.

        Raises:
            OutOfReach: it has lasted for longer than patience, or than it may where the service asks to be asked later.
        """
        now = time.monotonic()
        if self._trouble_since is None:
            self._trouble_since = now
        lasted, patience = now - self._trouble_since, self._patience
        if not self.known:
            patience = min(patience, STRANGER_SECONDS)
        if trouble.retry_after is not None:
            patience = inf if self._longest_wait is None else self._longest_wait
        if lasted >= patience:
            hint = "" if self.known else f" {_NEVER_SEEN}"
            raise OutOfReach(f"{trouble}; gave up after {lasted:.0f} s.{hint}")
        if not trouble.expected and self._told != str(trouble):
            self._told = str(trouble)
            self.tell(f"{trouble}; {'trying again' if trouble.retry_after is None else 'waiting until it lets me'}.")
        pause = min(FIRST_PAUSE_SECONDS * 2**self._tries, LONGEST_PAUSE_SECONDS)
        self._tries = min(self._tries + 1, 10)
        time.sleep(max(trouble.retry_after or 0, pause * random.uniform(0.5, 1)))  # noqa: S311


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _proxy_for(url: str) -> httpx.Proxy | None:
    """Choose the proxy that the environment names for an address; for this machine itself, none is needed.

    Raises:
        Wrong: it is none that can be used.
    """
    address = httpx.URL(url)
    if address.host in _LOOPBACK or proxy_bypass(f"{address.host}:{address.port or ''}".rstrip(":")):
        return None
    proxies = getproxies()
    name = next((name for name in (address.scheme, "all") if proxies.get(name)), None)
    if name is None:
        return None
    given = proxies[name]
    try:
        proxy = httpx.Proxy(given if "://" in given else f"http://{given}")
    except (ValueError, httpx.InvalidURL):
        proxy = None
    if proxy is None or proxy.url.scheme not in {"http", "https"} or not _HOST.fullmatch(proxy.url.host):
        raise Wrong(
            f"{name.upper()}_PROXY names a proxy that cannot be used; only http:// and https:// can. Unset it, or put"
            f" {address.host} into NO_PROXY."
        )
    return proxy


def _trusted() -> ssl.SSLContext:
    """Load the certificates of authorities.

    Raises:
        Wrong: those that the environment names cannot be loaded.
    """
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise Wrong(f"The certificates of SSL_CERT_FILE or SSL_CERT_DIR cannot be read ({error}).") from None


_SECONDS = re.compile(r"[0-9]{1,9}")
_HOST = re.compile(r"[\w.:-]+")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_NEVER_SEEN = "Is the address right, and does the service run? On this machine, `make run` starts it."
_NOT_OURS = "this is not how agent-relay answers. Is the address right?"

_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
