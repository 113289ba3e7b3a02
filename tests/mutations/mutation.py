"""One mutation: a law, the text that keeps it, the text that breaks it, and the test that must notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class DoesNotApply(Exception):
    """The text that a mutation replaces is not there exactly once."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """A way to break the code."""

    breaks: str
    """The law in words, as it is broken."""
    path: str
    old: str
    new: str
    test: str
    """The test that must turn red, as pytest names it."""

    def broken(self, tree: Path) -> str:
        """Write the file as it is when broken.

        Raises:
            DoesNotApply: the code has changed; so must the mutation.
        """
        text = (tree / self.path).read_text()
        if text.count(self.old) != 1:
            raise DoesNotApply(f"{self.path} holds this {text.count(self.old)} times, not once:\n{self.old}")
        return text.replace(self.old, self.new)
