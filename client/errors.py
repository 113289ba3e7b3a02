"""Why a command ends without having done what it should."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class Wrong(Exception):
    """The command cannot be carried out as it was given."""


class OutOfReach(Exception):
    """The service did not answer for longer than anybody wants to wait."""


class Refused(Exception):
    """The service refused, and would refuse again."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(status)
        self.status = status
        self.problem = problem
        self.where: Callable[[str], str] = str
        """Says to people what a pointer points to."""

    @property
    def code(self) -> str:
        """Which kind of problem it is."""
        return str(self.problem.get("code", ""))

    @property
    def reason(self) -> str:
        """Say it in a sentence."""
        return str(self.problem.get("detail") or self.problem.get("title", ""))

    def __str__(self) -> str:
        """Say it with all that is wrong, a line each."""
        errors: list[Mapping[str, Any]] = self.problem.get("errors", [])
        lines = [f"The service refused ({self.status} {self.problem.get('title', '')}): {self.reason}"]
        lines += [f"  {self.where(str(error.get('pointer')))}: {error.get('message')}" for error in errors]
        if "request_id" in self.problem:
            lines.append(f"  (request {self.problem['request_id']})")
        return "\n".join(lines)
