"""Messages into a run on their way to its agent, which gets them before a request to the model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from agent_relay.shared.runs.claim import IntoRun


class Inbox:
    """The messages into its run that one attempt knows. It reads them only after a notification of new ones."""

    def __init__(
        self,
        heard: int,
        last_message: int,
        read: Callable[[int], Awaitable[Sequence[IntoRun]]],
        flushed: Callable[[], Awaitable[None]],
    ) -> None:
        """`read` reads those after a place; `flushed` returns once all events are in the log."""
        self.heard = heard
        """The `place` of the last one that was part of a request to the model."""
        self._last_message = last_message
        self._kept = heard
        self._read = read
        self._flushed = flushed

    def expect(self, last_message: int) -> None:
        """Store how many there are."""
        self._last_message = max(self._last_message, last_message)

    async def new(self) -> Sequence[IntoRun]:
        """Read those that the agent has not got, in their order."""
        return await self._read(self.heard) if self._last_message > self.heard else []

    async def confirmed(self) -> int:
        """Return how many messages the model has received, once readers have been notified; then it is stored."""
        if self._kept != self.heard:
            await self._flushed()
            self._kept = self.heard
        return self.heard
