"""One pub/sub connection for the whole process, however many its clients, and a canary that finds a dead one.

It delivers messages of the subscribed channels, never waits for a receiver, and reports each acknowledged subscription,
again after every reconnect: from then on no message is missed, and earlier ones must be read.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import Connection

from agent_relay.shared.away import skip_if_failed, skip_if_redis_away
from agent_relay.shared.bad_input import BadInput, refuse
from agent_relay.shared.clock import new_id
from agent_relay.shared.redis_names import Names
from agent_relay.shared.tasks import run_together

log = logging.getLogger(__name__)

CANARY_SECONDS = 1.0
SILENCE_SECONDS = 3.0
"""After this time without a canary the connection counts as dead."""
BACK_OFF_SECONDS = 0.25
CHANNELS_A_COMMAND = 500


class Subscriptions:
    """Channels that this process listens to."""

    def __init__(
        self, redis: Redis, names: Names, heard: Callable[[str, bytes], None], subscribed: Callable[[str], None]
    ) -> None:
        self._redis = redis
        self._heard = heard
        self._subscribed = subscribed
        self._canary = names.canary(new_id())
        self._wanted: set[str] = set()
        self._asked: set[str] = set()
        """The channels to subscribe, or to subscribe again: a receiver waits for the acknowledgement."""
        self._sent: set[str] = set()
        self._changed = asyncio.Event()
        self._echo = 0.0
        self.connected = False
        """Whether messages arrive."""

    def want(self, channel: str) -> None:
        """Subscribe soon; `subscribed` is called once Redis has acknowledged it."""
        self._wanted.add(channel)
        self._asked.add(channel)
        self._changed.set()

    def drop(self, channel: str) -> None:
        """Unsubscribe soon."""
        self._wanted.discard(channel)
        self._asked.discard(channel)
        self._changed.set()

    async def run(self) -> None:
        """Listen for ever, on one connection after the other."""
        while True:
            with skip_if_failed("hub", "listen"), skip_if_redis_away(log, "hub.broken"):
                await self._listen()
            self.connected = False
            await asyncio.sleep(BACK_OFF_SECONDS)

    async def _listen(self) -> None:
        """Listen on one connection until it breaks."""
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(self._canary)
            self._sent, self._asked = set(), set(self._wanted)
            self._changed.set()
            self._echo = asyncio.get_running_loop().time()
            await run_together(self._read(pubsub), self._subscribe(pubsub), self._sing())

    async def _read(self, pubsub: PubSub) -> None:
        """Receive for ever, from the bare connection: `PubSub` costs more for each message than all of our code."""
        connection = cast("Connection", pubsub.connection)
        reply_timeout, connection.socket_timeout = connection.socket_timeout, None  # The canary finds a dead one.
        try:
            while True:
                response = cast("list[Any]", await connection.read_response(disconnect_on_error=False))
                kind, channel, data = response[0], response[1].decode(), response[2]
                if channel == self._canary:
                    self._echo = asyncio.get_running_loop().time()
                    self.connected = True
                elif kind == b"message":
                    if channel in self._wanted:
                        self._hand_on(channel, data)
                        await asyncio.sleep(0)  # Whoever follows writes it before the next of a burst is looked at.
                else:
                    await pubsub.handle_message(response)
                    if kind == b"subscribe" and channel in self._wanted:
                        self._subscribed(channel)
        finally:
            connection.socket_timeout = reply_timeout

    def _hand_on(self, channel: str, data: bytes) -> None:
        """Pass a message on; an error of its receiver does not affect the other channels."""
        try:
            self._heard(channel, data)
        except Exception as error:  # noqa: BLE001  (whatever was published there)
            refuse(BadInput.ANNOUNCEMENT, channel, error)

    async def _subscribe(self, pubsub: PubSub) -> None:
        """Subscribe and unsubscribe as wanted; the canary stays, so the reader always has one."""
        while await self._changed.wait():
            self._changed.clear()
            added, dropped = list(self._asked), list(self._sent - self._wanted)
            self._asked, self._sent = set(), set(self._wanted)
            for first in range(0, len(added), CHANNELS_A_COMMAND):
                await pubsub.subscribe(*added[first : first + CHANNELS_A_COMMAND])
            if dropped:
                await pubsub.unsubscribe(*dropped)

    async def _sing(self) -> None:
        """Announce, and write: a server that has become a replica echoes, and workers announce elsewhere.

        It refuses to be written, which renews all connections (`shared/redis.py`).
        """
        while True:
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.set(self._canary, b"", ex=math.ceil(SILENCE_SECONDS))
            pipeline.publish(self._canary, b"")
            _, announced = await pipeline.execute(raise_on_error=False)
            if isinstance(announced, Exception):
                raise announced
            await asyncio.sleep(CANARY_SECONDS)
            silence = asyncio.get_running_loop().time() - self._echo
            if silence > SILENCE_SECONDS:
                raise TimeoutError(f"no echo for {silence:.1f} s")
