"""What can be refused, in the words of the domain; `api/problems.py` tells which HTTP status each has."""

from __future__ import annotations

from uuid import UUID


class Refusal(Exception):
    """A call that is refused and leaves nothing behind."""


class NotFound(Refusal):
    """It does not exist, or it is somebody else's, which is the same."""

    def __init__(self, what: str) -> None:
        super().__init__(f"There is no such {what}.")
        self.what = what


class UnknownAgent(Refusal):
    """No worker has registered an agent of that name."""

    def __init__(self, agent_type: str) -> None:
        super().__init__("No worker serves an agent of that name.")
        self.agent_type = agent_type


class ThreadBusy(Refusal):
    """The thread has an unfinished run, and the caller asked not to wait behind it."""

    def __init__(self, run_id: UUID) -> None:
        super().__init__(f"Run {run_id} of this thread has not ended.")
        self.run_id = run_id


class KeyReused(Refusal):
    """The idempotency key has created something, and was given with another body then."""

    def __init__(self) -> None:
        super().__init__("The key was used before, for another body.")


class KeyInUse(Refusal):
    """Another call with this idempotency key has not come to its end yet."""

    def __init__(self) -> None:
        super().__init__("A call with this key is still being answered.")


class BatchUnfinished(Refusal):
    """The batch has runs that have not ended; until then nobody knows which of them fail."""

    def __init__(self) -> None:
        super().__init__("The batch has not ended; what fails can be retried then.")


class NothingFailed(Refusal):
    """No run of the batch has failed, so there is nothing to retry."""

    def __init__(self) -> None:
        super().__init__("No run of this batch has failed.")
