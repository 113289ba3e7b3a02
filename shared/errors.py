"""Domain errors: the reasons for which a call is refused; `api/problems.py` maps them to HTTP statuses."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID


class Refusal(Exception):
    """A call that is refused and leaves nothing behind."""


class NotFound(Refusal):
    """It does not exist, or it belongs to another user; both get the same response."""

    def __init__(self, what: str) -> None:
        super().__init__(f"There is no such {what}.")
        self.what = what


class UnknownAgent(Refusal):
    """No worker has registered an agent of that name, or the caller's key may not ask it, which looks the same."""

    def __init__(self, agent_type: str, allowed: frozenset[str] | None = None) -> None:
        """`allowed` are the agents that the caller's key may ask; None for all."""
        super().__init__("No worker has registered an agent of that name.")
        self.agent_type = agent_type
        self.allowed = allowed


class NotLast(Refusal):
    """A query was to go right behind a run of its thread, which is not the last one there."""

    def __init__(self) -> None:
        super().__init__("The thread has gone on since that run.")


class AgentNotServed(Refusal):
    """The agent is known, but no living worker has served it for a while."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"No worker has served this agent for {seconds:g} seconds; retry once a worker serves it.")


class ThreadBusy(Refusal):
    """The thread has an unfinished run, and the caller asked not to wait behind it."""

    def __init__(self, run_id: UUID) -> None:
        super().__init__(f"Run {run_id} of this thread has not ended.")
        self.run_id = run_id


class NotWaiting(Refusal):
    """The run waits for no answer."""

    def __init__(self, status: str) -> None:
        super().__init__(f"The run waits for no answer: it is {status}.")


class RunEnded(Refusal):
    """The run has ended, and has no thread in which the message could be the next run."""

    def __init__(self) -> None:
        super().__init__("The run has ended, and has no thread: ask a run of its own.")


class NotStarted(Refusal):
    """The run starts later; until then it takes no messages."""

    def __init__(self) -> None:
        super().__init__("The run starts later: send messages into it once `start_at` has passed.")


class TooManyMessages(Refusal):
    """The run has had as many messages as it may."""

    def __init__(self, most: int) -> None:
        super().__init__(f"The limit on messages into one run ({most}) is reached: ask in a run of its own.")


class AlreadyAnswered(Refusal):
    """Another answer was given before; the first one counts."""

    def __init__(self, request_id: str) -> None:
        super().__init__("The request was answered before, and otherwise: the first answer counts.")
        self.request_id = request_id


class UnknownRequest(Refusal):
    """The run never asked for that."""

    def __init__(self, number: int) -> None:
        super().__init__("The run has no request of this id; `requests` of the run lists them.")
        self.number = number
        """The place among the answers that were given, from 0."""


class WrongMessage(Refusal):
    """A message that a call names is not there in the thread, or not one that it can be about."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class WrongAttachment(Refusal):
    """An attachment that a query cannot have."""

    def __init__(
        self, code: str, message: str, place: int | None, field: str | None = None, query: int | None = None
    ) -> None:
        """`place` is its number among the attachments, None for all of them; `query` that of the query, of several."""
        super().__init__(message)
        self.code = code
        steps = [*(("items", query) if query is not None else ()), "attachments", place, field]
        self.pointer = "".join(f"/{step}" for step in steps if step is not None)
        """Where it stands in the body."""


class Limit(StrEnum):
    """A limit on what waits; callers see it as the code of the problem."""

    USER = "user_queue_full"
    """Of a user's runs."""
    TENANT = "tenant_queue_full"
    """Of a tenant's runs."""
    QUEUE = "queue_full"
    """Of all runs."""
    AGE = "queue_slow"
    """Of the time for which a run has waited for a slot."""
    BATCHES_OF_TENANT = "tenant_batches_full"
    """Of the unfinished runs of a tenant's batches."""
    BATCHES = "batches_full"
    """Of the unfinished runs of all batches."""
    SCHEDULES = "schedules_full"
    """Of a user's schedules."""
    FILES_OF_USER = "user_files_full"
    """Of the bytes of a user's files."""
    FILES_OF_TENANT = "tenant_files_full"
    """Of the bytes of a tenant's files."""


_FULL: dict[Limit, str] = {
    Limit.USER: "The queue limit for this user ({most}) is reached.",
    Limit.TENANT: "The queue limit for this tenant ({most}) is reached.",
    Limit.QUEUE: "The queue limit of the service ({most}) is reached.",
    Limit.AGE: "The oldest queued run has waited for more than {most:g} seconds.",
    Limit.BATCHES_OF_TENANT: "The limit on unfinished batch runs of this tenant ({most}) would be exceeded.",
    Limit.BATCHES: "The limit on unfinished batch runs of the service ({most}) would be exceeded.",
    Limit.SCHEDULES: "The limit on schedules of a user ({most}) is reached: delete one.",
    Limit.FILES_OF_USER: "The limit on stored files of a user ({most} bytes) would be exceeded: delete some.",
    Limit.FILES_OF_TENANT: "The limit on stored files of this tenant ({most} bytes) would be exceeded: delete some.",
}


class QueueFull(Refusal):
    """A limit on what waits is reached."""

    def __init__(self, limit: Limit, most: float) -> None:
        super().__init__(_FULL[limit].format(most=most))
        self.limit = limit

    @property
    def is_of_caller(self) -> bool:
        """Whether it is this caller's own limit, as against that of the service."""
        return self.limit not in {Limit.QUEUE, Limit.AGE, Limit.BATCHES}


class BudgetExhausted(Refusal):
    """The runs of a tenant have cost as much today as they may a day."""

    def __init__(self, most: float, seconds_left: int) -> None:
        """`seconds_left` are those until the next day."""
        super().__init__(
            f"The spend limit of this tenant ({most:g} US dollars a day) is reached; retry after midnight, UTC."
        )
        self.seconds_left = seconds_left


class KeyReused(Refusal):
    """The idempotency key has created something, and was given with another body then."""

    def __init__(self) -> None:
        super().__init__("The key was used before, for another body.")


class KeyInUse(Refusal):
    """Another call with this idempotency key has not come to its end yet."""

    def __init__(self) -> None:
        super().__init__("A call with this key is still being answered.")


class BatchUnfinished(Refusal):
    """The batch has runs that have not ended; it is not known yet which of them fail."""

    def __init__(self) -> None:
        super().__init__("The batch has not ended; retry its failed items after its end.")


class NothingFailed(Refusal):
    """No run of the batch has failed, so there is nothing to retry."""

    def __init__(self) -> None:
        super().__init__("No run of this batch has failed.")


class RotatedLately(Refusal):
    """The webhook secret was rotated a moment ago; another rotation would take the former secret from its receivers."""

    def __init__(self, seconds: int, seconds_left: int) -> None:
        super().__init__(
            f"The secret was rotated less than {seconds} seconds ago; rotate it again in {seconds_left} seconds."
        )
        self.seconds_left = seconds_left


class WebhookRefused(Refusal):
    """A webhook may not go to this URL."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
