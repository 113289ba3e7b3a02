"""What many runs ask in the same moment: it comes to the same as if each asked alone, and nobody waits in a group."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from agent_relay.shared.clock import new_id
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.runs.cancel import cancel
from agent_relay.shared.runs.claim import Claim, claim, claim_many
from agent_relay.shared.runs.finish import Ending, finish, finish_many, let_go, next_in_thread, next_in_threads
from agent_relay.shared.runs.recovery import declare_dead
from agent_relay.worker.execution.batcher import MOST, Batcher
from tests.support.eventually import soon
from tests.support.stage import Stage

SECONDS = 5
"""A group that waits for somebody's row would wait for ever."""


async def in_a_thread_of_its_own(stage: Stage, **asked: Any) -> UUID:
    """Accept a query of a new thread."""
    thread_id = new_id()
    await stage.execute(
        "INSERT INTO threads (id, tenant, user_id, agent_type, metadata) VALUES (:id, 'acme', :user_id, 'echo', '{}')",
        id=thread_id,
        user_id=stage.user_id,
    )
    return await stage.query(thread_id=thread_id, **asked)


async def test_a_group_claims_what_each_could_claim_alone(stage: Stage) -> None:
    worker_id, dead = await stage.worker(), await stage.worker()
    await declare_dead(stage.database, dead)
    first, second = await stage.query(query="first"), await stage.query(query="second")
    stateless, of_the_dead = await in_a_thread_of_its_own(stage), await in_a_thread_of_its_own(stage)
    taken, late, early, suspect, ended = [await in_a_thread_of_its_own(stage) for _ in range(5)]
    await stage.claimed(taken, worker_id)
    await stage.execute("UPDATE runs SET deadline_at = now() WHERE id = :id", id=late)
    await stage.execute("UPDATE runs SET due_at = now() + interval '1 minute' WHERE id = :id", id=early)
    await stage.execute("UPDATE runs SET crashes = 1 WHERE id = :id", id=suspect)
    await cancel(stage.database, ended)
    others = [second, taken, late, early, suspect, ended, uuid4()]

    claimed = await claim_many(
        stage.database,
        [*((run_id, worker_id) for run_id in [first, stateless, *others]), (of_the_dead, dead)],
        isolated=False,
    )

    assert claimed.keys() == {first, stateless}
    assert (claimed[first].query, claimed[first].attempt, claimed[first].seq) == ("first", 1, 1)
    row = await stage.row(first)
    assert (row.status, row.worker_id, row.attempt) == ("running", worker_id, 1)
    assert row.started_at is not None
    for run_id in others:
        assert await claim(stage.database, run_id, worker_id, isolated=False) is None
    assert await claim(stage.database, of_the_dead, dead, isolated=False) is None
    assert (await claim_many(stage.database, [(suspect, worker_id)], isolated=True)).keys() == {suspect}


def endings() -> list[Ending]:
    """Say how runs may end."""
    return [
        Ending(
            status=RunStatus.SUCCEEDED,
            text='Yes. \u00e9 \\ " {} , NULL',
            last_entry=7,
            usage={"requests": 2, "input_tokens": 3},
            transcript='[{"a": "b"}]',
            model="m",
        ),
        Ending(status=RunStatus.SUCCEEDED, text="", last_entry=1, usage={}),
        Ending(status=RunStatus.CANCELLED, text="So f", last_entry=2, usage={"requests": 1}, transcript="[]"),
        Ending(status=RunStatus.CANCELLED, text=None, last_entry=1, usage={}),
        Ending(status=RunStatus.FAILED, text="Half", last_entry=3, usage={}, error={"code": "agent_error"}),
    ]


async def held(stage: Stage, count: int) -> list[Claim]:
    """Have runs claimed, each of a thread of its own."""
    worker_id = await stage.worker()
    return [await stage.claimed(await in_a_thread_of_its_own(stage), worker_id) for _ in range(count)]


async def kept(stage: Stage, claims: Sequence[Claim]) -> list[Any]:
    """Read all that is kept of runs, but for their ids."""
    kept: list[Any] = []
    for each in claims:
        row = await stage.row(each.run_id)
        messages = await stage.execute(
            "SELECT role, position, content, metadata - 'run_id' AS metadata FROM messages WHERE run_id = :id"
            " ORDER BY position",
            id=each.run_id,
        )
        transcripts = await stage.execute("SELECT messages FROM transcripts WHERE run_id = :id", id=each.run_id)
        of_the_run = (row.status, row.output, row.partial_output, row.error, row.usage, row.last_entry)
        kept.append((of_the_run, row.finished_at is not None, messages, transcripts))
    return kept


async def test_a_group_ends_each_run_as_it_would_end_alone(stage: Stage) -> None:
    alone, together = await held(stage, len(endings())), await held(stage, len(endings()))

    rows = [await finish(stage.database, *each) for each in zip(alone, endings(), strict=True)]
    of_a_group = await finish_many(stage.database, list(zip(together, endings(), strict=True)))

    assert await kept(stage, together) == await kept(stage, alone)
    for row, each in zip(rows, together, strict=True):
        assert row is not None
        assert of_a_group[each.run_id] == replace(row, id=each.run_id, thread_id=each.thread_id)


async def test_an_attempt_that_was_overtaken_finishes_nothing_in_a_group(stage: Stage) -> None:
    overtaken, mine = await held(stage, 2)
    assert await let_go(stage.database, overtaken.run_id, overtaken.attempt)
    again = await stage.claimed(overtaken.run_id, await stage.worker())
    ending = endings()[0]

    assert (await finish_many(stage.database, [(overtaken, ending), (mine, ending)])).keys() == {mine.run_id}
    assert (await stage.row(overtaken.run_id)).status == "running"
    assert (await finish_many(stage.database, [(again, ending), (mine, ending)])).keys() == {again.run_id}


async def test_a_group_calls_for_the_next_of_each_thread(stage: Stage) -> None:
    first, waiting = await stage.query(), await stage.query()
    with_nothing = (await held(stage, 1))[0]
    claimed = await stage.claimed(first, await stage.worker())
    await finish_many(stage.database, [(claimed, endings()[0]), (with_nothing, endings()[0])])
    assert with_nothing.thread_id is not None

    rings = await next_in_threads(stage.database, [stage.thread_id, with_nothing.thread_id, uuid4()])

    assert rings.keys() == {stage.thread_id, with_nothing.thread_id}
    assert rings[with_nothing.thread_id] is None
    ring, alone = rings[stage.thread_id], await next_in_thread(stage.database, stage.thread_id)
    assert ring is not None
    assert alone is not None
    assert (ring.run_id, ring.ring, ring.lane) == (waiting, 2, "interactive")
    assert alone.ring == ring.ring + 1


async def test_a_group_waits_for_nobodys_row(stage: Stage) -> None:
    worker_id = await stage.worker()
    locked, free = await held(stage, 2)
    queued, free_queued = await in_a_thread_of_its_own(stage), await in_a_thread_of_its_own(stage)
    threads = [each.thread_id for each in (locked, free) if each.thread_id is not None]
    async with stage.database.connect() as somebody:
        ids = {"ids": [locked.run_id, queued], "threads": threads[:1]}
        await somebody.execute(text("SELECT FROM runs WHERE id = ANY(:ids) FOR UPDATE"), {"ids": ids["ids"]})
        await somebody.execute(text("SELECT FROM threads WHERE id = ANY(:ids) FOR UPDATE"), {"ids": ids["threads"]})
        async with asyncio.timeout(SECONDS):
            asked = [(queued, worker_id), (free_queued, worker_id)]
            assert (await claim_many(stage.database, asked, isolated=False)).keys() == {free_queued}
            ends = [(locked, endings()[0]), (free, endings()[0])]
            assert (await finish_many(stage.database, ends)).keys() == {free.run_id}
            assert (await next_in_threads(stage.database, threads)).keys() == set(threads[1:])


@dataclass
class Asked:
    """Somebody to ask, who answers when told to."""

    together: list[list[UUID]] = field(default_factory=list[list[UUID]])
    alone: list[UUID] = field(default_factory=list[UUID])
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    left_out: set[UUID] = field(default_factory=set[UUID])
    spoils: dict[UUID, Exception] = field(default_factory=dict[UUID, Exception])
    away: Exception | None = None

    async def ask_alone(self, asked: UUID) -> str:
        """Answer one."""
        self.alone.append(asked)
        await self.may_answer.wait()
        if asked in self.spoils:
            raise self.spoils[asked]
        return f"alone {asked}"

    async def ask_together(self, asked: Sequence[UUID]) -> dict[UUID, str]:
        """Answer many."""
        self.together.append(list(asked))
        await self.may_answer.wait()
        if self.away or self.spoils.keys() & set(asked):
            raise self.away or next(iter(self.spoils.values()))
        return {each: f"together {each}" for each in asked if each not in self.left_out}

    def group(self) -> Batcher[UUID, str]:
        """Have it asked in groups."""
        return Batcher(self.ask_alone, self.ask_together, lambda asked: asked)


ONE, TWO, THREE = [uuid4() for _ in range(3)]


def asking(group: Batcher[UUID, str], *asked: UUID) -> list[asyncio.Task[str]]:
    """Ask, all in one turn of the loop."""
    return [asyncio.create_task(group.ask(each)) for each in asked]


async def a_few_turns() -> None:
    """Let everything happen that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_alone_is_asked_alone_and_at_once() -> None:
    asked = Asked()
    (answer,) = asking(asked.group(), ONE)
    await a_few_turns()

    assert (asked.alone, asked.together) == ([ONE], [])
    asked.may_answer.set()
    assert await answer == f"alone {ONE}"


async def test_who_asks_in_the_same_turn_goes_together() -> None:
    asked = Asked()
    asked.may_answer.set()

    assert await asyncio.gather(*asking(asked.group(), ONE, TWO)) == [f"together {ONE}", f"together {TWO}"]
    assert (asked.alone, asked.together) == ([], [[ONE, TWO]])


async def test_who_asks_while_others_are_under_way_goes_together_and_no_group_grows_large() -> None:
    asked, many = Asked(), [uuid4() for _ in range(MOST + 2)]
    group = asked.group()
    answers = asking(group, ONE)
    await a_few_turns()
    answers += asking(group, TWO, *many)
    await a_few_turns()
    answers += asking(group, THREE)
    await a_few_turns()
    assert (asked.alone, asked.together) == ([ONE], [])

    asked.may_answer.set()
    await asyncio.gather(*answers)

    assert asked.together == [[TWO, *many[: MOST - 1]], [*many[MOST - 1 :], THREE]]


async def test_one_that_is_held_up_holds_up_nobody() -> None:
    asked = Asked()
    group = asked.group()
    asking(group, ONE)
    await a_few_turns()
    asking(group, TWO)

    async def both_are_asked() -> bool:
        return asked.alone == [ONE, TWO]

    await soon(both_are_asked)


async def test_who_is_left_out_of_a_group_is_asked_alone() -> None:
    asked = Asked(left_out={TWO})
    asked.may_answer.set()

    assert await asyncio.gather(*asking(asked.group(), ONE, TWO)) == [f"together {ONE}", f"alone {TWO}"]


async def test_one_that_spoils_a_group_spoils_its_own_only() -> None:
    asked = Asked(spoils={TWO: ValueError("two")})
    asked.may_answer.set()

    answers = await asyncio.gather(*asking(asked.group(), ONE, TWO, THREE), return_exceptions=True)

    assert answers == [f"alone {ONE}", asked.spoils[TWO], f"alone {THREE}"]


async def test_a_database_that_is_away_is_told_to_all_and_not_asked_again() -> None:
    asked = Asked(away=OperationalError("", {}, psycopg.OperationalError()))
    asked.may_answer.set()
    group = asked.group()

    for answer in asking(group, ONE, TWO):
        with pytest.raises(OperationalError):
            await answer
    assert asked.alone == []
    asked.away = None
    assert await asyncio.gather(*asking(group, ONE, TWO)) == [f"alone {ONE}", f"alone {TWO}"]
    assert await asyncio.gather(*asking(group, ONE, TWO)) == [f"together {ONE}", f"together {TWO}"]


async def test_one_that_breaks_the_connection_of_its_group_fails_the_others_once() -> None:
    breaks = OperationalError("", {}, psycopg.OperationalError("the server closed the connection"))
    asked = Asked(spoils={TWO: breaks})
    asked.may_answer.set()
    group = asked.group()

    assert await asyncio.gather(*asking(group, ONE, TWO), return_exceptions=True) == [breaks, breaks]
    for _ in range(2):
        answers = await asyncio.gather(*asking(group, ONE, TWO, THREE), return_exceptions=True)
        assert answers[1] is breaks
        assert [str(answer).split()[1] for answer in (answers[0], answers[2])] == [str(ONE), str(THREE)]


async def test_who_does_not_wait_any_more_stops_nobody() -> None:
    asked = Asked()
    gone, stays = asking(asked.group(), ONE, TWO)
    await a_few_turns()
    gone.cancel()
    await a_few_turns()
    asked.may_answer.set()

    assert await stays == f"together {TWO}"

    async def cancelled() -> bool:
        return gone.cancelled()

    await soon(cancelled)
