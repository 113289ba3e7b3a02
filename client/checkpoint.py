"""What is kept beside the results about the batch they are of, so that going on never submits twice."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self
from uuid import uuid4

from agent_relay.client.errors import Wrong

SUFFIX = ".batch"
KEY_HOURS = 24
"""So long a service remembers an idempotency key, unless its operator wants otherwise."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for: with anything else of it changed, it is another batch."""

    user_id: str
    parameters: Mapping[str, str]
    sha256: str
    """Of all rows, as they are sent."""
    total: int


@dataclass(frozen=True, slots=True)
class Submission:
    """A batch that is about to be submitted, or was."""

    asked: Asked
    key: str
    """Under which it is submitted, however often it is sent."""
    begun_at: float
    """Seconds since 1970."""
    batch_id: str | None = None
    """Once the service has told it."""

    @classmethod
    def new(cls, asked: Asked) -> Self:
        """Begin one."""
        return cls(asked, f"submit-{uuid4()}", time.time())

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Read what is kept, if anything is.

        Raises:
            Wrong: it is something else.
        """
        try:
            kept = json.loads(path.read_bytes())
            return cls(Asked(**kept.pop("asked")), **kept)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise Wrong(f"{path} is not what an earlier submit has left. Choose another --output.") from None

    def save(self, path: Path) -> None:
        """Keep it, so that no crash of this machine loses it."""
        new = path.with_name(f"{path.name}.new")
        with new.open("w") as file:
            json.dump(asdict(self), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def accepted(self, batch_id: str) -> Self:
        """Note which batch it became."""
        return replace(self, batch_id=batch_id)

    def check(self, asked: Asked, path: Path) -> None:
        """Check that it is this one that is to be gone on with.

        Raises:
            Wrong: it is another, or nobody can know any more whether it was accepted.
        """
        names = {"user_id": "the user", "parameters": "the options", "sha256": "the rows", "total": "the rows"}
        now, then = asdict(asked), asdict(self.asked)
        changed = sorted({names[name] for name in names if now[name] != then[name]})
        if changed:
            raise Wrong(
                f"{path} says that this output is of an earlier submit; since then, {' and '.join(changed)} changed."
                f" Choose another --output, or remove {path} and the output to begin anew."
            )
        hours = (time.time() - self.begun_at) / 3600
        if self.batch_id is None and hours >= KEY_HOURS:
            raise Wrong(
                f"{path} is {hours:.0f} hours old and does not know whether its batch was accepted; sent again, it"
                f" might be a second one. Look at GET /batches; if it is not there, remove {path} and begin anew."
            )
