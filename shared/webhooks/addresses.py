"""The addresses of webhooks: public ones over https, and the hosts that a setting names.

A URL is read strictly: one that two programs might read differently is refused. A name is resolved once and each of its
addresses must be public; the connection is made to one of these and never to the name, which may have moved since.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from agent_relay.shared.errors import WebhookRefused

LONGEST_URL = 2048
LOOK_UPS_AT_ONCE = 64
LOOK_UPS_OF_A_TENANT = 4
"""A tenant whose names are resolved slowly, or never, leaves room for the others."""

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f]*:[0-9a-f:.]*\]|[a-z0-9.-]+)(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<path>[/?][a-z0-9._~!$&'()*+,;=:@%/?-]*)?",
    re.IGNORECASE | re.ASCII,
)
_NAME = re.compile(
    r"(?=.{1,253}$)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+(?:[a-z]{2,63}|xn--[a-z0-9-]{1,58}[a-z0-9])"
)
"""A name below a top-level domain. Those never are digits, so `127.1` and `0x7f.1` are no names."""
_NEVER_PUBLIC = re.compile(
    r"(?:.*\.)?(?:localhost|localdomain|local|internal|intranet|lan|home\.arpa|onion|test|invalid)"
)

_SPECIAL = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
    )
)
"""Reserved ranges of IANA in IPv4 and in `2000::/3`; the global ranges of Python differ from release to release."""
_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
"""IPv4 as a network without it sees it; as public as the IPv4 address in its last bits."""
_METADATA = frozenset({IPv4Address("168.63.129.16")})
"""Addresses that are public by number, and answer to the machine they are asked from."""

LookUp = Callable[[str, int], Awaitable[Sequence[str]]]
"""Finds the addresses of a name, for a port; raises `OSError` where there are none."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, taken apart."""

    scheme: str
    host: str
    """In lower case; an IPv6 address without brackets."""
    port: int
    authority: str
    """The value of the `Host` header."""
    path: str
    """With the query."""
    trusted: bool
    """Whether the setting names this host, so that it may lie anywhere."""


def read_url(url: str, trusted_hosts: Collection[str]) -> Target:
    """Take a URL apart, and check it as far as that needs no look-up.

    Raises:
        WebhookRefused: it is malformed, not https, or its host is plainly not public.
    """
    read = _URL.fullmatch(url) if len(url) <= LONGEST_URL else None
    if read is None or int(read["port"] or 0) >= 1 << 16:
        raise WebhookRefused(
            "malformed_url", "Must be https://host/path, in ASCII (a name as xn--…), with no user and no fragment"
        )
    scheme, host = read["scheme"].lower(), read["host"].lower()
    path = read["path"] or "/"
    target = Target(
        scheme=scheme,
        host=host.strip("[]"),
        port=int(read["port"] or (443 if scheme == "https" else 80)),
        authority=f"{host}:{read['port']}" if read["port"] else host,
        path=path if path.startswith("/") else f"/{path}",
        trusted=host.strip("[]") in trusted_hosts,
    )
    if target.trusted:
        return target
    if scheme != "https":
        raise WebhookRefused("https_required", "Must begin with https://")
    address = _literal(target.host)
    if address is None and (not _NAME.fullmatch(host) or _NEVER_PUBLIC.fullmatch(host)):
        raise WebhookRefused("address_not_public", "The host is not a public name or address")
    if address is not None and not is_public(address):
        raise WebhookRefused("address_not_public", "The address is not public")
    return target


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Tell whether an address is one of the open internet; one that carries another, like NAT64's, is as that is."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _UNICAST:
            return False
    return address not in _METADATA and not any(_holds(network, address) for network in _SPECIAL)


class Resolver:
    """Finds the addresses of hosts and lets only public ones through; of each tenant it looks up a few at once."""

    def __init__(self, trusted_hosts: Collection[str], look_up: LookUp | None = None) -> None:
        self.trusted_hosts = frozenset(trusted_hosts)
        self._look_up = look_up or _look_up_in_a_thread()
        self._rooms = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(LOOK_UPS_OF_A_TENANT))
        self._under_way: dict[tuple[str, str, int], asyncio.Task[Sequence[str]]] = {}
        """Look-ups, by tenant, name and port: calls for the same name wait for the same look-up."""

    async def addresses(self, target: Target, tenant: str) -> list[str]:
        """Find the addresses to connect to, for a tenant.

        Raises:
            WebhookRefused: one of them is not public.
            OSError: there are none.
        """
        literal = _literal(target.host)
        found = [target.host] if literal else await self._find(tenant, target.host, target.port)
        if not target.trusted and not all(is_public(ip_address(address)) for address in found):
            raise WebhookRefused("address_not_public", "The host has an address that is not public")
        return list(found)

    async def _find(self, tenant: str, name: str, port: int) -> Sequence[str]:
        """Look a name up; a look-up goes on when no call waits for it any more, and keeps its room."""
        asked = tenant, name, port
        looking = self._under_way.get(asked)
        if looking is None:
            looking = self._under_way[asked] = asyncio.create_task(self._in_room(*asked), context=Context())
            looking.add_done_callback(lambda done: done.cancelled() or done.exception())  # Read by no caller.
            looking.add_done_callback(lambda _: self._under_way.pop(asked))
        return await asyncio.shield(looking)

    async def _in_room(self, tenant: str, name: str, port: int) -> Sequence[str]:
        async with self._rooms[tenant]:
            return await self._look_up(name, port)

    async def check(self, url: str, tenant: str, *, seconds: float) -> None:
        """Refuse a URL of a tenant that may not be called; a name that is not resolved in time is checked later.

        Raises:
            WebhookRefused: it may not be called.
        """
        target = read_url(url, self.trusted_hosts)
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(seconds):
                await self.addresses(target, tenant)


def _holds(network: IPv4Network | IPv6Network, address: IPv4Address | IPv6Address) -> bool:
    return network.version == address.version and address in network


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    """Read an address. A form that only some programs accept (`0177.0.0.1`, `2130706433`) is neither one nor a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _look_up_in_a_thread() -> LookUp:
    """Ask the system's resolver, in threads that nothing else waits for, not even the process when it ends."""
    room = asyncio.Semaphore(LOOK_UPS_AT_ONCE)

    async def look_up(name: str, port: int) -> Sequence[str]:
        await room.acquire()
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[str]] = loop.create_future()

        def settle(addresses: list[str], error: Exception | None) -> None:
            room.release()
            if found.done():
                return
            if error is None:
                found.set_result(addresses)
            else:
                found.set_exception(error)

        def look() -> None:
            addresses, error = list[str](), None
            try:
                infos = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
                addresses = list(dict.fromkeys(str(info[4][0]) for info in infos))
            except OSError as unknown:
                error = unknown
            except UnicodeError as malformed:
                error = OSError(str(malformed))
            with suppress(RuntimeError):  # The loop has closed: no caller waits any more.
                loop.call_soon_threadsafe(settle, addresses, error)

        threading.Thread(target=look, name=f"look-up {name}", daemon=True).start()
        return await found

    return look_up
