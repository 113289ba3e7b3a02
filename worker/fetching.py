"""Fetches attachments by their address: over https, from public addresses, within a size and a time."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import httpx2

from agent_relay.shared.errors import WebhookRefused
from agent_relay.shared.settings import Settings
from agent_relay.shared.webhooks import Resolver, Target, read_url
from agent_relay.worker.models.duplex_http import TwoWayTransport


class NotFetched(Exception):
    """An address gave no file; the message has the reason, for people."""


class Fetcher:
    """Fetches files, as webhooks are sent: a name is resolved once, and each of its addresses must be public."""

    def __init__(self, settings: Settings) -> None:
        self._resolver = Resolver(settings.webhook_trusted_hosts)
        self._seconds = settings.attachment_seconds
        self._most = settings.max_file_bytes

    async def fetch(self, url: str, tenant: str) -> tuple[bytes, str]:
        """Fetch a file; returns its bytes and the `Content-Type` that came with them.

        Raises:
            NotFetched: the address may not be called, answers otherwise, takes too long, or sends too much.
        """
        try:
            async with asyncio.timeout(self._seconds):
                target = read_url(url, self._resolver.trusted_hosts)
                addresses = await self._resolver.addresses(target, tenant)
                return await self._get(target, addresses)
        except WebhookRefused as refused:
            raise NotFetched(str(refused)) from None
        except TimeoutError:
            raise NotFetched(f"it took more than {self._seconds:g} seconds") from None
        except (httpx2.HTTPError, OSError):
            raise NotFetched("the connection failed") from None

    async def _get(self, target: Target, addresses: list[str]) -> tuple[bytes, str]:
        """Ask the first of these addresses that takes the connection; TLS and `Host` still speak of the name."""
        async with httpx2.AsyncClient(
            transport=TwoWayTransport(), trust_env=False, follow_redirects=False, timeout=None
        ) as client:
            for left, address in zip(reversed(range(len(addresses))), addresses, strict=True):
                request = client.build_request(
                    "GET",
                    httpx2.URL(scheme=target.scheme, host=address, port=target.port, raw_path=target.path.encode()),
                    headers={"host": target.authority, "accept": "*/*", "accept-encoding": "identity"},
                    extensions={"sni_hostname": target.host},
                )
                try:
                    response = await client.send(request, stream=True)
                except httpx2.ConnectError:
                    if not left:
                        raise
                    continue
                try:
                    return await self._read(response)
                finally:
                    await response.aclose()
        raise NotFetched("the host has no address")

    async def _read(self, response: httpx2.Response) -> tuple[bytes, str]:
        if response.status_code != HTTPStatus.OK:
            raise NotFetched(f"it answered with {response.status_code}")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise NotFetched("it is compressed, which was not asked for")
        pieces: list[bytes] = []
        size = 0
        async for piece in response.aiter_raw():
            pieces.append(piece)
            size += len(piece)
            if size > self._most:
                raise NotFetched(f"it is longer than {self._most} bytes")
        return b"".join(pieces), response.headers.get("content-type", "")
