"""A text that is sent as it grows, where what was sent cannot be taken back."""

from __future__ import annotations


class GrowingText:
    """What a reader has been sent of a text that may still begin anew.

    A text that contradicts what was sent is held back: it may yet be as it was. Where the agent has done something
    else since, or at the end, the reader is to begin anew with it.
    """

    __slots__ = ("_may_restart", "sent")

    def __init__(self, sent: str = "") -> None:
        self.sent = sent
        self._may_restart = False

    def interrupt(self) -> None:
        """Note that the agent does something else, such as a tool call: a text that comes now may be another one."""
        self._may_restart = True

    def more(self, text: str) -> str | None:
        """Return what is new in the text; None where it contradicts what was sent."""
        if not text.startswith(self.sent):
            return None
        more = text[len(self.sent) :]
        self.sent, self._may_restart = text, False
        return more

    def may_restart(self, *, is_final: bool) -> bool:
        """Tell whether the reader is to begin anew with a text that contradicts what was sent."""
        return is_final or self._may_restart
