"""The one job: answer a run. Claim, prepare, announce, answer, store, publish the end. Start reading here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import replace
from functools import partial
from typing import TypeVar
from uuid import UUID

from pydantic_ai.exceptions import (
    ContentFilterError,
    FallbackExceptionGroup,
    ModelAPIError,
    RunCancelled,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared import logs
from agent_relay.shared.away import repeat_while_away, skip_if_redis_away
from agent_relay.shared.database import is_away, is_ours
from agent_relay.shared.database.tables import AttemptReason, RunStatus
from agent_relay.shared.errors import BudgetExhausted
from agent_relay.shared.failpoints import Failpoint, reached
from agent_relay.shared.failure_codes import FailureCode, failure
from agent_relay.shared.metrics import ATTEMPTS, PICK_UP_SECONDS, run_ended
from agent_relay.shared.queue import Lane, QueueEntry, RunQueue
from agent_relay.shared.rows import RunEnd
from agent_relay.shared.runs.claim import Claim, Exchange, IntoRun, claim, claim_many, earlier_exchanges, is_suspect
from agent_relay.shared.runs.concurrency_limits import Quota
from agent_relay.shared.runs.finish import (
    Ending,
    ended_row,
    finish,
    finish_many,
    give_back,
    next_in_thread,
    next_in_threads,
)
from agent_relay.shared.runs.into_run import messages_into
from agent_relay.shared.runs.spending import SpendLimit
from agent_relay.shared.runs.steps import FinishedSteps, Step, forget_steps, keep_steps, keep_steps_of_many, steps_of
from agent_relay.shared.runs.wait import Wait, wait, waited_for, waiting_row
from agent_relay.shared.settings import Settings
from agent_relay.worker.catalog import RegisteredAgent, RunScope, WrongOptions
from agent_relay.worker.deferred_tools import Continuation, continuation_of
from agent_relay.worker.execution.answer import Answered, Asked
from agent_relay.worker.execution.attempt import Attempt, Stop
from agent_relay.worker.execution.batch_progress import BatchEndNotifier
from agent_relay.worker.execution.batcher import Batcher
from agent_relay.worker.execution.entered_agents import EnteredAgents, NotEntered
from agent_relay.worker.execution.files import RunFiles
from agent_relay.worker.execution.history import history_of, transcript_of
from agent_relay.worker.execution.in_flight import RunsInFlight
from agent_relay.worker.execution.publisher import Publisher
from agent_relay.worker.execution.size_limits import OverBudget
from agent_relay.worker.execution.steps import NOTHING_KEPT, CannotContinue, KeptSteps, LeftAtStep, kept_of, most_of
from agent_relay.worker.fetching import Fetcher
from agent_relay.worker.guests.context import guest_context
from agent_relay.worker.models.errors import failure_of, for_operator
from agent_relay.worker.processes.quarantine import Quarantine
from agent_relay.worker.storable import storable

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_ClaimedTogether = asyncio.Task[Mapping[UUID, Claim]] | None
"""The claim of the runs that were popped with a run, if there were others."""

RETRY_SECONDS = 0.5
"""Between two tries to reach PostgreSQL with a result in hand."""
AWAY_ATTEMPTS = 5
"""From this one on, a database that breaks under an agent is taken for the agent's doing."""
LARGE_END = 256 << 10
"""Characters of an output and a transcript from which on an end is stored alone."""
PASS_ON_SECONDS = 1.0
"""How long a run of an agent that is not served here waits before it is offered again."""


class Stopped(Exception):
    """The attempt was stopped; its partial answer is kept."""


class Job:
    """Answers runs, any number at once."""

    def __init__(
        self,
        settings: Settings,
        database: AsyncEngine,
        database_of_agents: AsyncEngine,
        lanes: RunQueue,
        publisher: Publisher,
        roster: RunsInFlight,
        batch_ends: BatchEndNotifier,
        isolation: Quarantine | None,
        offers: dict[str, RegisteredAgent],
        entered: EnteredAgents,
        put_back: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._database = database
        self._database_of_agents = database_of_agents
        self._lanes = lanes
        self._publisher = publisher
        self._roster = roster
        self._batch_ends = batch_ends
        self._isolation = isolation
        """Where suspects are answered; None in the process that is made for one."""
        self._offers = offers
        self._entered = entered
        self._put_back = put_back
        """Called at the end of each attempt: puts back what its code has changed of the process."""
        self._quota = Quota.of(settings)
        self._fetcher = Fetcher(settings)
        self._spending = SpendLimit(settings)
        self._ends = Batcher[tuple[Claim, Ending], RunEnd | None](
            lambda asked: finish(database, *asked),
            lambda asked: finish_many(database, asked),
            lambda asked: asked[0].run_id,
        )
        self._steps = Batcher[FinishedSteps, bool](
            lambda finished: keep_steps(database, finished),
            lambda finished: keep_steps_of_many(database, finished),
            lambda finished: finished.run_id,
        )
        self._next_in_threads = Batcher[UUID, QueueEntry | None](
            lambda thread_id: next_in_thread(database, thread_id),
            lambda thread_ids: next_in_threads(database, thread_ids),
            lambda thread_id: thread_id,
        )

    def answer(self, run_ids: Iterable[UUID], worker_id: UUID) -> dict[UUID, asyncio.Task[None]]:
        """Begin to answer runs that were popped together; those that are in hand already are left out."""
        new = [run_id for run_id in dict.fromkeys(run_ids) if run_id not in self._roster]
        for run_id in new:
            self._roster.take(run_id)
        together = None
        if len(new) > 1 and not self._quota:
            # In no context: it is for all of them, not for the run whose task waits for it first.
            together = asyncio.create_task(self._claim_together(new, worker_id), context=Context())
        answering: dict[UUID, asyncio.Task[None]] = {}
        for run_id in new:
            answering[run_id] = task = asyncio.create_task(self._answer(run_id, worker_id, together))
            task.add_done_callback(partial(self._leave, run_id))
        return answering

    def _leave(self, run_id: UUID, _: asyncio.Task[None]) -> None:
        self._roster.leave(run_id)

    async def _answer(self, run_id: UUID, worker_id: UUID, together: _ClaimedTogether) -> None:
        """Answer one run, if it is to be had."""
        logs.RUN_ID.set(run_id)  # Of the task that answers this run and no other.
        try:
            await self._claim_and_answer(run_id, worker_id, together)
        except SQLAlchemyError as error:
            if not is_away(error):
                raise
            log.warning("job.gave_up run_id=%s error=%r", run_id, error)  # A sweeper sees to it.

    async def _claim_and_answer(self, run_id: UUID, worker_id: UUID, together: _ClaimedTogether) -> None:
        reached(Failpoint.RUN_POPPED)
        claimed = await self._claim(run_id, worker_id, together)
        if claimed is None:
            if self._isolation is not None and await is_suspect(self._database, run_id):
                await self._isolation.answer(run_id)
            return
        reached(Failpoint.RUN_CLAIMED)
        logs.BATCH_ID.set(claimed.batch_id)
        ATTEMPTS.labels(claimed.agent_type, claimed.begun).inc()
        PICK_UP_SECONDS.labels(Lane.BATCH if claimed.batch_id else Lane.INTERACTIVE).observe(claimed.waited_seconds)
        offer = self._offers.get(claimed.agent_type)
        if offer is None:
            await self._pass_on(claimed)
            return
        files = RunFiles(
            self._settings,
            self._database,
            self._fetcher,
            claimed,
            takes=offer.attachments,
            urls=offer.attachment_urls,
            patiently=partial(self._while_it_lasts, claimed),
        )
        kept = await files.restored_kept(await self._kept(claimed, offer))
        claimed = replace(claimed, usage=most_of(claimed.usage, kept.usage))
        store = partial(self._keep_steps, claimed)
        messages = partial(self._messages_into, claimed)
        attempt = Attempt(
            claimed, offer, self._settings, self._publisher, files, kept=kept, store=store, messages=messages
        )
        self._roster.begin(attempt)
        attempt.begin()
        ending = await self._outcome(attempt)
        attempt.count()
        await attempt.telling.flushed()
        reached(Failpoint.RUN_FLUSHED)
        await self._conclude(attempt, ending)

    async def _claim_together(self, run_ids: Sequence[UUID], worker_id: UUID) -> Mapping[UUID, Claim]:
        """Claim runs in one statement; of those that are not among the result, each is to be claimed alone."""
        asked = [(run_id, worker_id) for run_id in run_ids]
        try:
            return await claim_many(self._database, asked, isolated=self._isolation is None)
        except Exception as error:  # noqa: BLE001  (one of them spoils it for all: alone, each gets what is its own)
            log.warning("job.not_claimed_together runs=%d error=%r", len(run_ids), error)
            return {}

    async def _kept(self, claimed: Claim, offer: RegisteredAgent) -> KeptSteps:
        """Read the finished steps of earlier attempts, and the answers since.

        Steps that cannot be continued are deleted: then the run begins with its query again, or after its last wait.
        """
        if claimed.attempt == 1:
            return NOTHING_KEPT
        waited = await self._continuation(claimed)
        after = claimed.wait_attempt or 0
        steps: Sequence[Step] = []
        if offer.checkpoints:
            steps = await self._while_it_lasts(claimed, lambda: steps_of(self._database, claimed.run_id, after))
        try:
            kept = await asyncio.to_thread(kept_of, steps, offer.version, waited)  # They may be long.
        except CannotContinue as reason:
            log.warning("job.begins_again run_id=%s steps=%d: %s", claimed.run_id, len(steps), reason)
            await self._while_it_lasts(claimed, lambda: forget_steps(self._database, claimed))
            kept = replace(kept_of([], offer.version, waited), usage=steps[-1].usage)
        if waited is not None:
            kept = replace(kept, heard=max(kept.heard, claimed.heard))
        is_first_after_wait = claimed.begun is AttemptReason.ANSWERED
        return replace(kept, unfinished_calls=frozenset()) if is_first_after_wait else kept

    async def _messages_into(self, claimed: Claim, heard: int) -> Sequence[IntoRun]:
        return await self._while_it_lasts(claimed, lambda: messages_into(self._database, claimed, heard))

    async def _steered(self, attempt: Attempt) -> Sequence[IntoRun]:
        """Read the messages into the run that its agent has got."""
        heard = attempt.inbox.heard
        messages = await self._messages_into(attempt.claimed, 0) if heard else ()
        return [message for message in messages if message.place <= heard]

    async def _keep_steps(self, claimed: Claim, finished: FinishedSteps) -> bool:
        """Store steps together with those of other runs; large ones alone, as an end is."""
        if sum(len(step.messages) for step in finished.steps) > LARGE_END:
            return await self._while_it_lasts(claimed, lambda: keep_steps(self._database, finished))
        return await self._while_it_lasts(claimed, lambda: self._steps.ask(finished))

    async def _claim(self, run_id: UUID, worker_id: UUID, together: _ClaimedTogether) -> Claim | None:
        """Claim the run; while the database is away, for as long as this worker's lease can last without it."""
        if together is not None and (claimed := (await asyncio.shield(together)).get(run_id)) is not None:
            return claimed
        isolated = self._isolation is None
        return await repeat_while_away(
            lambda: claim(self._database, run_id, worker_id, isolated=isolated, quota=self._quota),
            log,
            "job.database_away run_id=%s",
            run_id,
            pause_seconds=RETRY_SECONDS,
            seconds=self._settings.lease_seconds,
        )

    async def _outcome(self, attempt: Attempt) -> Ending | Wait | None:
        """Run the agent, and return how that ended; None if the run does not end here."""
        try:
            answered = await self._ask(attempt)
            most_bytes = self._settings.max_history_bytes
            transcript = await transcript_of(await attempt.files.referenced(answered.messages), most_bytes)
            if isinstance(answered, Asked):
                return self._asked(attempt, answered, transcript)
            if transcript is None and attempt.claimed.wait_attempt is not None:  # What was stored before is not all.
                claimed, steered = attempt.claimed, await self._steered(attempt)
                exchange = Exchange(
                    claimed.query, answered.text, None, attachments=claimed.attachments, steered=steered
                )
                transcript = await transcript_of(await history_of([exchange]), most_bytes)
        except asyncio.CancelledError:
            raise  # This job is cancelled; where an agent raises it, `_ask` raises `Stopped`.
        except LeftAtStep:
            attempt.stopped = attempt.stopped or Stop.STOPPING
            return self._cut(attempt)
        except BaseException as error:  # noqa: BLE001  (whatever an agent raises: a panic in Rust is no Exception)
            attempt.note_deadline(error)
            transcript = await self._transcript_of_cut(attempt, error)
            try:
                return self._broken_off(attempt, error, transcript)
            except BaseException:  # noqa: BLE001  (its own text or attributes raise)
                return self._raised(attempt, error)
        return attempt.ending(RunStatus.SUCCEEDED, answered.text, transcript=transcript, model=answered.model)

    def _asked(self, attempt: Attempt, asked: Asked, transcript: str | None) -> Ending | Wait:
        """Say that the run waits for what its tools ask; not without the messages that it is to go on from."""
        if transcript is None:
            most = self._settings.max_history_bytes
            message = f"The run cannot wait: its messages exceed MAX_HISTORY_BYTES ({most}), or cannot be stored."
            return attempt.failed(FailureCode.AGENT_ERROR, message)
        return Wait(
            text=attempt.telling.text,
            last_entry=attempt.telling.last_entry,
            usage=attempt.usage,
            transcript=transcript,
            calls=asked.calls,
            heard=attempt.inbox.heard,
        )

    async def _transcript_of_cut(self, attempt: Attempt, error: BaseException) -> str | None:
        """Write the messages of a run that was cancelled; None of any other."""
        if not isinstance(error, RunCancelled) or attempt.stopped is not Stop.CANCELLED:
            return None
        messages = await attempt.files.referenced(attempt.answer.whole(error.new_messages()))
        return await transcript_of(messages, self._settings.max_history_bytes)

    def _broken_off(self, attempt: Attempt, error: BaseException, transcript: str | None) -> Ending | None:
        """Return how a run ends whose agent did not answer."""
        match error:
            case RunCancelled() | Stopped():
                return self._cut(attempt, transcript)
            case UsageLimitExceeded() | BudgetExhausted():
                is_of_run = isinstance(error, UsageLimitExceeded)
                code = FailureCode.USAGE_LIMIT_EXCEEDED if is_of_run else FailureCode.BUDGET_EXHAUSTED
                return attempt.failed(code, str(error))
            case OverBudget(code=code) | NotEntered(code=code) | WrongOptions(code=code):
                return attempt.failed(code, str(error))
            case ModelAPIError() | FallbackExceptionGroup() | ContentFilterError():
                is_of_model = error is attempt.answer.model_error
                return self._refused(attempt, error) if is_of_model else self._raised(attempt, error)
            case UnexpectedModelBehavior():
                return attempt.failed(FailureCode.OUTPUT_INVALID, f"The model gave no valid output: {error.message}")
            case _:
                return self._raised(attempt, error)

    def _refused(self, attempt: Attempt, error: ModelAPIError | FallbackExceptionGroup | ContentFilterError) -> Ending:
        """Return the failure of a run that its provider refused; the log has the provider's words."""
        claimed = attempt.claimed
        log.warning("job.refused run_id=%s agent=%s error=%s", claimed.run_id, claimed.agent_type, for_operator(error))
        return attempt.failed(*failure_of(error))

    def _raised(self, attempt: Attempt, error: BaseException) -> Ending | None:
        """Return how a run ends whose agent raised: it failed, unless our own database was away."""
        if is_ours(error) and attempt.claimed.attempt < AWAY_ATTEMPTS:
            log.warning("job.database_away run_id=%s", attempt.claimed.run_id)
            attempt.stopped = attempt.stopped or Stop.DATABASE_AWAY
            return self._cut(attempt)
        claimed = attempt.claimed
        log.error("job.agent_error run_id=%s agent=%s", claimed.run_id, claimed.agent_type, exc_info=error)
        return attempt.failed(FailureCode.AGENT_ERROR, f"The agent raised {type(error).__name__}.")

    async def _ask(self, attempt: Attempt) -> Answered | Asked:
        """Prepare and run the agent; if it does not stop after it was cancelled, it is left behind."""
        asking = asyncio.create_task(self._equip_and_ask(attempt), context=guest_context(attempt.claimed.run_id))
        deadline = asyncio.get_running_loop().call_later(attempt.claimed.seconds_left, attempt.stop, Stop.DEADLINE)
        await asyncio.wait([asking, attempt.unwound], return_when=asyncio.FIRST_COMPLETED)
        deadline.cancel()
        self._put_back()
        if not asking.done():
            log.warning("job.left_behind run_id=%s agent=%s", attempt.claimed.run_id, attempt.claimed.agent_type)
            asking.cancel()
            raise Stopped
        if asking.cancelled():
            raise Stopped
        return asking.result()

    async def _equip_and_ask(self, attempt: Attempt) -> Answered | Asked:
        claimed = attempt.claimed
        await self._while_it_lasts(claimed, lambda: self._spending.check_of(self._database, claimed.tenant))
        most_bytes = self._settings.max_history_bytes
        exchanges = await self._while_it_lasts(claimed, lambda: earlier_exchanges(self._database, claimed, most_bytes))
        is_begun = bool(attempt.kept.messages)
        query = claimed.query if is_begun else await attempt.files.prompt(claimed.query, claimed.attachments, "query")
        history = await attempt.files.restored(await history_of(exchanges, claimed.history))
        scope = RunScope(
            tenant=claimed.tenant,
            user_id=claimed.user_id,
            thread_metadata=claimed.thread_metadata,
            run_metadata=claimed.metadata,
            run_id=claimed.run_id,
            attempt=claimed.attempt,
            unfinished_calls=attempt.kept.unfinished_calls,
            database=self._database_of_agents,
        )
        answer = attempt.answer
        try:
            async with self._entered.use(attempt.offer, lambda: answer.tools_failed):
                chosen = await attempt.offer.options_of(claimed.options, scope)
                return await answer.write(query, history, await attempt.offer.equip(scope), chosen)
        except NotEntered:
            if attempt.stopped is None:
                raise
            raise Stopped from None

    async def _continuation(self, claimed: Claim) -> Continuation | None:
        """Read the data with which a waiting run goes on; None if it begins with its query."""
        if claimed.wait_attempt is None:
            return None
        rows = await self._while_it_lasts(claimed, lambda: waited_for(self._database, claimed))
        try:
            return await asyncio.to_thread(continuation_of, rows)  # It may be long.
        except Exception:
            log.exception("job.begins_again run_id=%s: what it has waited with cannot be read", claimed.run_id)
            return None

    def _cut(self, attempt: Attempt, transcript: str | None = None) -> Ending | None:
        """Return how a stopped attempt ends its run: with the partial answer, or not at all."""
        match attempt.stopped:
            case Stop.CANCELLED:
                return attempt.cancelled(transcript)
            case Stop.DEADLINE:
                return attempt.failed(FailureCode.DEADLINE_EXCEEDED)
            case Stop.STOPPING | Stop.NOT_MINE | Stop.DATABASE_AWAY:
                return None
            case None:
                return attempt.failed(FailureCode.AGENT_ERROR, "The agent cancelled its own run.")

    async def _conclude(self, attempt: Attempt, ending: Ending | Wait | None) -> None:
        """Store the end, or the wait, or return the run to the queue; a run of another attempt is left alone."""
        if isinstance(ending, Wait):
            last_entry = attempt.telling.last_entry  # It has its number only now that all events are published.
            if await self._wait(attempt.claimed, replace(ending, last_entry=last_entry)):
                return
            ending = attempt.cancelled(ending.transcript)  # A cancel was requested: it does not wait.
        if ending is None and (begun := attempt.begun_next) is not None:
            ring = await self._while_it_lasts(
                attempt.claimed, lambda: give_back(self._database, attempt.claimed, attempt.usage, begun)
            )
            if ring is not None:
                reached(Failpoint.RUN_GIVEN_BACK)
                await self._lanes.ring([ring])
                return
            ending = attempt.cancelled()  # A cancel was requested: it is not returned to the queue.
        if ending is not None:  # The last entry has its number only now that all events are published.
            await self._store(attempt.claimed, replace(ending, last_entry=attempt.telling.last_entry))

    async def _wait(self, claimed: Claim, left: Wait) -> bool:
        """Store the wait, and publish it; False if a cancel was requested, or the run is another attempt's."""
        seconds = self._settings.wait_deadline_seconds
        row = await self._while_it_lasts(claimed, lambda: wait(self._database, claimed, left, seconds))
        if row is None:
            row = await self._while_it_lasts(claimed, lambda: waiting_row(self._database, claimed))
        if row is None:
            return False
        reached(Failpoint.RUN_WAITING)
        log.info("job.waiting run_id=%s requests=%d", claimed.run_id, len(left.calls))
        with skip_if_redis_away(log, "job.wait_untold run_id=%s", claimed.run_id):  # Readers see it in the row.
            await self._publisher.tell_wait(row, left.calls, self._settings.log_retention_seconds)
        await self._make_room(claimed)
        return True

    async def _make_room(self, claimed: Claim) -> None:
        """After a run has left its slot: notify its batch, and enqueue a throttled run."""
        if claimed.batch_id:
            self._batch_ends.note(claimed.batch_id, capped=claimed.batch_is_capped)
        passed_over = await self._while_it_lasts(
            claimed, lambda: self._quota.release(self._database, claimed.run_id, claimed.tenant)
        )
        await self._lanes.ring(passed_over)

    async def _store(self, claimed: Claim, ending: Ending) -> None:
        """Store the end, publish it, and enqueue the thread's next run."""
        row = await self._finish(claimed, ending)
        if row is None:
            log.warning("job.fenced run_id=%s attempt=%d", claimed.run_id, claimed.attempt)
            return
        run_ended(row)
        reached(Failpoint.RUN_STORED)
        try:
            with skip_if_redis_away(log, "job.end_untold run_id=%s", claimed.run_id):
                await self._publisher.tell_end(row, self._settings.log_retention_seconds)
                reached(Failpoint.END_TOLD)
                self._roster.end_told(claimed.run_id)
        except Exception:  # The run has ended: the next steps are done all the same.
            log.exception("job.end_untold run_id=%s", claimed.run_id)
        await self._make_room(claimed)
        if (thread_id := claimed.thread_id) is not None:
            ring = await self._while_it_lasts(claimed, lambda: self._next_in_threads.ask(thread_id))
            await self._lanes.ring([] if ring is None else [ring])

    async def _finish(self, claimed: Claim, ending: Ending) -> RunEnd | None:
        """Try to store the end until it is stored or refused; after a lost reply, read whether the commit succeeded.

        If the database refuses the data of the end, the run ends without them.
        """
        try:
            row = await self._while_it_lasts(claimed, lambda: self._end(claimed, ending))
        except Exception as error:
            if is_away(error):
                raise
            log.exception("job.end_not_taken run_id=%s status=%s", claimed.run_id, ending.status)
            bare = _bare(ending, error)
            row = await self._while_it_lasts(claimed, lambda: finish(self._database, claimed, bare))
        return row or await self._while_it_lasts(claimed, lambda: ended_row(self._database, claimed))

    async def _end(self, claimed: Claim, ending: Ending) -> RunEnd | None:
        """Store the end together with others; a large one alone: to escape it in an array would block this process."""
        if len(ending.text or "") + len(ending.transcript or "") > LARGE_END:
            return await finish(self._database, claimed, ending)
        return await self._ends.ask((claimed, ending))

    async def _while_it_lasts(self, claimed: Claim, call: Callable[[], Awaitable[Result]]) -> Result:
        """Wait for a database that is away, as long as the run has time."""
        return await repeat_while_away(
            call,
            log,
            "job.database_away run_id=%s",
            claimed.run_id,
            pause_seconds=RETRY_SECONDS,
            seconds=claimed.seconds_left,
        )

    async def _pass_on(self, claimed: Claim) -> None:
        """Leave the run to a worker that serves its agent."""
        log.warning("job.not_served run_id=%s agent=%s", claimed.run_id, claimed.agent_type)
        await give_back(self._database, claimed, claimed.usage, claimed.begun, delay_seconds=PASS_ON_SECONDS)


def _bare(ending: Ending, error: Exception) -> Ending:
    """Return the end of a run without any data of its agent, its model or its tools."""
    if ending.status is RunStatus.CANCELLED:
        return replace(ending, text=None, transcript=None, model=None)
    message = f"The end of the run could not be stored: {type(error).__name__}."
    return Ending(
        status=RunStatus.FAILED,
        text=None,
        last_entry=ending.last_entry,
        usage=ending.usage,
        heard=ending.heard,
        error=storable(failure(FailureCode.AGENT_ERROR, message)),
    )
