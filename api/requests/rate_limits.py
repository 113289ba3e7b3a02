"""The limits of one user and one tenant in an API process, so that room is left for the others.

Two things are limited: requests a second, and calls that stay open (streams, waits, uploads). Both are counted in this
process alone: with N processes behind a load balancer a caller may have N times as much.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from agent_relay.api.problems import Refused
from agent_relay.api.requests.identity import Owner
from agent_relay.shared.settings import Settings, share
from agent_relay.shared.user_tokens import Revocation

Name = TypeVar("Name")

BURST_SECONDS = 5
"""A caller that was silent may send the requests of this time at once."""
SLOW_DOWN_SECONDS = 0.25
"""A refusal of a caller that sends too much is held back, so that the next request of its connection comes later."""
REMEMBERED = 10_000
"""Callers whose rate is kept in memory; above it, the one that was silent longest is dropped."""
FULL_RETRY_AFTER_SECONDS = 5


class OpenCall:
    """A call that stays open; it takes room until it is closed."""

    __slots__ = ("_caller", "_calls", "_open", "_timer", "revoked")

    def __init__(self, calls: OpenCalls, caller: Owner) -> None:
        self._calls = calls
        self._caller = caller
        self._open = True
        self.revoked: Callable[[], None] | None = None
        """Ends the call once its key or its token is void."""
        self._timer: asyncio.TimerHandle | None = None
        if caller.token is not None:
            self._timer = asyncio.get_running_loop().call_later(caller.token.seconds_left, self.end)

    @contextmanager
    def kept(self) -> Generator[OpenCall]:
        """Keep it open beyond this context, unless the context raises."""
        try:
            yield self
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the room back; a second time, do nothing."""
        if self._open:
            self._open = False
            if self._timer is not None:
                self._timer.cancel()
            self._calls.closed(self, self._caller)

    def end(self) -> None:
        """End streams; a call that only waits goes on."""
        if self.revoked is not None:
            self.revoked()

    def was_made_with_token_before(self, at: datetime) -> bool:
        """Say whether it was made with a token that was made up to a time."""
        return self._caller.token is not None and self._caller.token.issued_at <= at.timestamp()


class OpenCalls:
    """The calls of this process that stay open."""

    def __init__(self, most: int, per_tenant: int, per_user: int, what: str) -> None:
        """Allow this number in all, for a tenant and for a user; 0 is no limit. `what` names them in refusals."""
        self._limits = (
            (per_user, 429, f"user_{what}_full", f"The limit of open {what} of this user"),
            (per_tenant, 429, f"tenant_{what}_full", f"The limit of open {what} of this tenant"),
            (most, 503, f"{what}_full", f"The limit of open {what} of this process"),
        )
        self._counts = Counter[str]()
        self._by_key: dict[bytes, set[OpenCall]] = {}
        self._by_token: dict[tuple[str, UUID], set[OpenCall]] = {}
        """Those that were made with a token, by its user."""

    def __len__(self) -> int:
        return self._counts[""]

    def open(self, caller: Owner) -> OpenCall:
        """Make room for a call, until it is closed.

        Raises:
            Refused: 429, a limit of the user or the tenant is reached; 503, that of the process is.
        """
        names = _names(caller)
        for name, (limit, status, code, sentence) in zip(names, self._limits, strict=True):
            if limit and self._counts[name] >= limit:
                headers = {"Retry-After": str(FULL_RETRY_AFTER_SECONDS)}
                raise Refused(status, f"{sentence} ({limit}) is reached.", code=code, headers=headers)
        self._counts.update(names)
        call = OpenCall(self, caller)
        if caller.key is not None:
            self._by_key.setdefault(caller.key.reference, set()).add(call)
        if caller.token is not None:
            self._by_token.setdefault((caller.tenant, caller.user_id), set()).add(call)
        return call

    def closed(self, call: OpenCall, caller: Owner) -> None:
        """Forget a call."""
        self._counts.subtract(names := _names(caller))
        for name in names:
            if not self._counts[name]:
                del self._counts[name]
        if caller.key is not None:
            _discard(self._by_key, caller.key.reference, call)
        if caller.token is not None:
            _discard(self._by_token, (caller.tenant, caller.user_id), call)

    def end(self, reference: bytes) -> None:
        """End the calls that were made with a key."""
        for call in list(self._by_key.get(reference, ())):
            call.end()

    def end_of_tokens(self, revocation: Revocation) -> None:
        """End the calls that were made with tokens which are void now."""
        for call in list(self._by_token.get((revocation.tenant, revocation.user_id), ())):
            if call.was_made_with_token_before(revocation.revoked_before):
                call.end()

    @contextmanager
    def opened(self, caller: Owner) -> Generator[None]:
        """Make room for as long as the context lasts; raises as `open` does."""
        call = self.open(caller)
        try:
            yield
        finally:
            call.close()


def _discard(calls: dict[Name, set[OpenCall]], name: Name, call: OpenCall) -> None:
    """Take a call out of those of a name."""
    of_name = calls.get(name, set())
    of_name.discard(call)
    if not of_name:
        calls.pop(name, None)


def _names(caller: Owner) -> tuple[str, str, str]:
    """The counters of a call: of its user, of its tenant and of all."""
    return f"{caller.tenant} {caller.user_id}", caller.tenant, ""


@dataclass(slots=True)
class _Bucket:
    """How much a caller may still send at once, as of a moment."""

    left: float
    at: float


class RequestRate:
    """Requests a second, of each user and each tenant."""

    def __init__(self, per_user: float, per_tenant: float) -> None:
        """Allow this number a second on average; 0 is no limit."""
        self._limits = (("user", per_user), ("tenant", per_tenant))
        self._buckets = OrderedDict[str, _Bucket]()

    def __len__(self) -> int:
        return len(self._buckets)

    async def take(self, caller: Owner) -> dict[str, str]:
        """Count a request; returns the `RateLimit` headers of its response.

        Raises:
            Refused: 429, the user or the tenant sends too much.
        """
        now = asyncio.get_running_loop().time()
        buckets = [
            (self._bucket(name, rate, now), scope, rate)
            for (scope, rate), name in zip(self._limits, _names(caller)[:2], strict=True)
            if rate
        ]
        if not buckets:
            return {}
        tightest, scope, rate = min(buckets, key=lambda each: each[0].left / each[2])
        headers = {
            "RateLimit-Policy": f'"{scope}";q={math.floor(rate * BURST_SECONDS)};w={BURST_SECONDS}',
            "RateLimit": f'"{scope}";r={max(math.floor(tightest.left) - 1, 0)};t={BURST_SECONDS}',
        }
        if tightest.left < 1:
            seconds = max(math.ceil((1 - tightest.left) / rate), 1)
            await asyncio.sleep(SLOW_DOWN_SECONDS)
            detail = (
                f"The limit of requests of this {scope} ({rate:g} a second) is reached; try again after {seconds} s."
            )
            raise Refused(429, detail, headers={"Retry-After": str(seconds), **headers})
        for bucket, _, _ in buckets:
            bucket.left -= 1
        return headers

    def _bucket(self, name: str, rate: float, now: float) -> _Bucket:
        most = rate * BURST_SECONDS
        bucket = self._buckets.pop(name, None) or _Bucket(most, now)
        bucket.left, bucket.at = min(bucket.left + (now - bucket.at) * rate, most), now
        self._buckets[name] = bucket
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        return bucket


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of an API process."""

    requests: RequestRate
    calls: OpenCalls
    """Streams and calls that wait."""
    uploads: OpenCalls
    """Batches that wait on the disk until they have arrived and are stored."""

    @classmethod
    def of(cls, settings: Settings, connections: int) -> Limits:
        """Read the limits that are set; the others are shares of the process's limit."""
        whole = settings.max_open_calls or connections
        return cls(
            RequestRate(settings.max_requests_per_second_per_user, settings.max_requests_per_second_per_tenant),
            OpenCalls(
                whole,
                share(settings.max_open_calls_per_tenant, whole, 2),
                share(settings.max_open_calls_per_user, whole, 4),
                "calls",
            ),
            OpenCalls(
                settings.max_uploads,
                share(None, settings.max_uploads, 2),
                share(None, settings.max_uploads, 4),
                "uploads",
            ),
        )
