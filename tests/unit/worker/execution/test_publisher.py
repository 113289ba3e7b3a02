"""The publisher: texts coalesce, events never, and what Redis loses is told again under new ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisAway

from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.event_log import BEFORE_ALL, REASONING, Append, Entry, EventLog, Id, Outcome
from agent_relay.shared.redis_names import DEFAULT
from agent_relay.shared.rows import RunEnd
from agent_relay.worker.execution.publisher import EventWriter, Publisher
from tests.support.eventually import soon
from tests.support.rows import run_row

TTL = 60
BEGUN = {"event": "message_started", "reason": "first"}
CALL = {"event": "tool_call", "tool_call_id": "1", "tool_name": "look", "args": "{}"}


class TroubledLog(EventLog):
    """A log behind a connection that can be held, lose its replies, or be cut."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.open = asyncio.Event()
        self.open.set()
        self.replies_to_lose = 0
        self.away = False
        self.unwritable: set[UUID] = set()
        """Runs whose entries cannot be written, for a reason that nobody foresaw."""
        self.sizes: list[int] = []

    async def append(self, appends: Sequence[Append]) -> list[Outcome]:
        """Append, if the connection lets it."""
        await self.open.wait()
        if self.away:
            raise RedisAway("away")
        if self.unwritable & {append.run_id for append in appends}:
            raise ValueError("what cannot be written")
        outcomes = await super().append(appends)
        self.sizes.append(len(appends))
        if self.replies_to_lose:
            self.replies_to_lose -= 1
            raise RedisAway("the reply was lost")
        return outcomes


class Desk:
    """A publisher at work, and what PostgreSQL would say about whose run it is."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.log = TroubledLog(redis)
        self.mine = True
        self.database_failures = 0
        self.publisher = Publisher(self.log, self.is_mine)
        self.fenced: list[UUID] = []

    async def is_mine(self, _run_id: UUID, _attempt: int) -> bool:
        """Say whether the run is still this attempt's."""
        if self.database_failures:
            self.database_failures -= 1
            raise OSError("PostgreSQL is away")
        return self.mine

    def telling(self, attempt: int = 1) -> EventWriter:
        """Begin to tell of a new run."""
        run_id = uuid4()
        return self.publisher.begin(run_id, attempt, TTL, lambda: self.fenced.append(run_id))

    async def read(self, telling: EventWriter) -> list[Entry]:
        """Read what stands in the log."""
        return await self.log.read(telling.run_id)

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[None]:
        """Hold the connection, as a slow round trip does."""
        self.log.open.clear()
        yield
        self.log.open.set()


@pytest.fixture
async def desk(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Desk]:
    """A publisher at work."""
    monkeypatch.setattr("agent_relay.worker.execution.publisher.BACK_OFF_SECONDS", 0.01)
    desk = Desk(redis)
    publishing = asyncio.create_task(desk.publisher.run())
    yield desk
    publishing.cancel()


def story(entries: list[Entry]) -> list[str]:
    """Say what entries tell, growth put together."""
    told: list[str] = []
    text = ""
    for entry in entries:
        text = entry.growth.of(text) if entry.growth else entry.text or text
        told.append(f"{entry.id} {entry.event or text}")
    return told


async def test_texts_that_wait_are_replaced_and_events_keep_their_place(desk: Desk) -> None:
    telling = desk.telling()
    async with desk.held():
        telling.tell(BEGUN)
        for text in ("a", "ab", "abc"):
            telling.show(text)
        telling.tell(CALL)
        for text in ("abcd", "abcde"):
            telling.show(text)
    await telling.flushed()

    assert story(await desk.read(telling)) == ["1-1 message_started", "1-2 abc", "1-3 tool_call", "1-4 abcde"]


async def test_a_row_shows_a_text_as_the_entry_that_says_it_and_without_redis_the_newest(desk: Desk) -> None:
    telling = desk.telling()
    telling.show("a")
    await telling.flushed()
    async with desk.held():
        telling.show("ab")
        await asyncio.sleep(0.05)
        telling.show("abc")  # It waits, and has no number yet.
        assert telling.known == ("ab", 2)
    await telling.flushed()
    assert telling.known == ("abc", 3)

    desk.log.away = True
    telling.show("abcd")
    await soon(lambda: is_known(telling, "abcd", 4))
    telling.show("abcde")
    await soon(lambda: is_known(telling, "abcde", 5))
    desk.log.away = False
    await telling.flushed()
    assert telling.known == ("abcde", 5)
    assert story(await desk.read(telling))[-2:] == ["1-4 abcd", "1-5 abcde"]


async def is_known(telling: EventWriter, text: str, entry: int) -> bool:
    """Tell whether a row may show this text as this entry."""
    return telling.known == (text, entry)


async def test_no_entry_ever_has_two_texts_whatever_becomes_of_redis(desk: Desk) -> None:
    """A row keeps what it shows after the worker has died, and after its log has expired."""
    telling = desk.telling()
    said: dict[int, str] = {}
    for number in range(100):
        telling.show("and so " * (number + 1))
        if number % 9 == 0:
            telling.tell(CALL)
        desk.log.away = number % 10 in range(3, 8)
        desk.log.replies_to_lose += number % 5 == 0
        for _ in range(3):
            await asyncio.sleep(0.002)
            text, entry = telling.known
            assert text is None or said.setdefault(entry, text) == text
    desk.log.away, desk.log.replies_to_lose = False, 0
    await telling.flushed()

    entries = await desk.read(telling)
    assert [entry.id.n for entry in entries] == list(range(1, telling.last_entry + 1))
    text = ""
    for entry in entries:
        text = entry.growth.of(text) if entry.growth else entry.text or text
        assert said.setdefault(entry.id.n, text) == text
    assert text == telling.text
    assert sum(entry.event == "tool_call" for entry in entries) == 12


async def test_the_first_text_is_whole_and_the_next_are_growth(desk: Desk) -> None:
    telling = desk.telling()
    for text in ('{"a":"one"}', '{"a":"one two"}', '{"a":"one two 👩"}'):
        telling.show(text)
        await telling.flushed()

    assert [dict(entry.body) for entry in await desk.read(telling)] == [
        {"text": '{"a":"one"}'},
        {"drop": 2, "append": ' two"}'},
        {"drop": 2, "append": ' 👩"}'},
    ]


async def test_the_same_text_again_is_nothing_new(desk: Desk) -> None:
    telling = desk.telling()
    telling.show("a")
    await telling.flushed()
    telling.show("a")
    await telling.flushed()

    assert story(await desk.read(telling)) == ["1-1 a"]


async def test_all_runs_share_a_round_trip(desk: Desk) -> None:
    tellings = [desk.telling() for _ in range(50)]
    for telling in tellings:
        telling.show("hello")
    for telling in tellings:
        await telling.flushed()

    assert desk.log.sizes == [50]


async def test_a_lost_reply_is_asked_for_again_and_nothing_is_twice(desk: Desk) -> None:
    telling = desk.telling()
    desk.log.replies_to_lose = 2
    for text in ("a", "ab", "abc"):
        telling.show(text)
    await telling.flushed()
    telling.show("abcd")
    await telling.flushed()

    assert story(await desk.read(telling)) == ["1-1 abc", "1-2 abcd"]


async def test_a_lost_log_goes_on_with_a_whole_text_under_new_ids(desk: Desk) -> None:
    telling = desk.telling()
    telling.tell(BEGUN)
    telling.show("Hello")
    await telling.flushed()
    before = await desk.read(telling)
    await desk.redis.delete(DEFAULT.log(telling.run_id))

    telling.tell(CALL)
    telling.show("Hello world")
    await telling.flushed()

    after = await desk.read(telling)
    assert story(after)[-1].endswith(" Hello world")
    assert [entry.event for entry in after if entry.event] == ["tool_call"]
    assert [entry.text for entry in after if not entry.event] == ["Hello world"]
    assert after[0].id.n > before[-1].id.n + 1  # Their first ids may have been read before they were lost.
    assert telling.last_entry == after[-1].id.n


def thoughts(entries: list[Entry]) -> list[tuple[int, str]]:
    """Say what entries tell of reasoning, growth put together as readers do: out of the entry of reasoning before."""
    told: list[tuple[int, str]] = []
    for entry in entries:
        if entry.event == REASONING:
            part = entry.body["part"]
            assert entry.growth is None or told[-1][0] == part
            told.append((part, entry.growth.of(told[-1][1]) if entry.growth else entry.body["text"]))
    return told


async def test_a_part_of_the_reasoning_that_waits_is_replaced_and_others_keep_their_place(desk: Desk) -> None:
    telling = desk.telling()
    async with desk.held():
        telling.tell(BEGUN)
        for part, text in ((1, "Hm"), (1, "Hm, a thought"), (2, "Hm"), (2, "Hm, a thought, too")):
            telling.think(part, text)
        telling.show("a")
        telling.think(2, "Hm, a thought, too, is")
        telling.think(1, "Hm, again")
    await telling.flushed()

    entries = await desk.read(telling)
    assert thoughts(entries) == [
        (1, "Hm, a thought"),
        (2, "Hm, a thought, too"),
        (2, "Hm, a thought, too, is"),
        (1, "Hm, again"),
    ]
    assert [entry.event for entry in entries] == ["message_started", REASONING, REASONING, None, REASONING, REASONING]
    assert telling.text == "a"


async def test_reasoning_is_said_as_growth(desk: Desk) -> None:
    telling = desk.telling()
    text = ""
    for word in ("I ", "wonder… ", "whether ") * 20:
        text += word
        telling.think(1, text)
        await telling.flushed()

    entries = await desk.read(telling)
    assert thoughts(entries)[-1] == (1, text)
    assert sum(len(entry.body.get("append", "")) for entry in entries) < len(text)
    assert [entry.text for entry in entries[1:]] == [None] * (len(entries) - 1)


async def test_a_lost_log_goes_on_with_the_whole_of_what_is_thought(desk: Desk) -> None:
    telling = desk.telling()
    telling.think(1, "First")
    telling.think(2, "Then I wonder")
    await telling.flushed()
    await desk.redis.delete(DEFAULT.log(telling.run_id))

    telling.think(2, "Then I wonder whether")
    await telling.flushed()
    telling.think(2, "Then I wonder whether it is so")
    await telling.flushed()

    entries = await desk.read(telling)
    assert thoughts(entries) == [(2, "Then I wonder whether"), (2, "Then I wonder whether it is so")]
    assert entries[0].text == "Then I wonder whether"


async def test_a_lost_log_waits_for_a_database_that_is_away(desk: Desk) -> None:
    telling, other = desk.telling(), desk.telling()
    telling.show("Hello")
    await telling.flushed()
    await desk.redis.delete(DEFAULT.log(telling.run_id))
    desk.database_failures = 2

    telling.show("Hello world")
    other.show("Hi")
    await telling.flushed()
    await other.flushed()

    assert [entry.text for entry in await desk.read(telling)] == ["Hello world"]
    assert [entry.text for entry in await desk.read(other)] == ["Hi"]


async def test_a_lost_log_of_a_run_that_is_somebody_elses_is_left_alone(desk: Desk) -> None:
    telling = desk.telling()
    telling.show("Hello")
    await telling.flushed()
    await desk.redis.delete(DEFAULT.log(telling.run_id))
    desk.mine = False

    telling.show("Hello world")
    await telling.flushed()

    assert desk.fenced == [telling.run_id]
    assert await desk.read(telling) == []


async def test_a_fenced_attempt_is_told_once_and_writes_nothing_more(desk: Desk) -> None:
    telling = desk.telling()
    desk.mine = False
    await desk.log.append([Append(telling.run_id, BEFORE_ALL, [Entry(Id(2, 1), BEGUN)], TTL)])
    desk.mine = False

    for text in ("a", "ab"):
        telling.show(text)
        await telling.flushed()

    assert desk.fenced == [telling.run_id]
    assert story(await desk.read(telling)) == ["2-1 message_started"]


async def test_an_end_does_not_wait_for_redis_for_ever(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_relay.worker.execution.publisher.GIVE_UP_SECONDS", 0.05)
    telling = desk.telling()
    desk.log.away = True
    telling.tell(BEGUN)
    telling.show("Hello")
    await telling.flushed()

    assert telling.text == "Hello"
    assert telling.last_entry == 2  # What the row says stands behind whatever comes through yet.
    assert await desk.read(telling) == []


async def test_redis_that_comes_back_is_told_what_waited(desk: Desk) -> None:
    telling = desk.telling()
    desk.log.away = True
    telling.tell(BEGUN)
    telling.show("Hello")
    await asyncio.sleep(0)
    desk.log.away = False
    await telling.flushed()

    assert story(await desk.read(telling)) == ["1-1 message_started", "1-2 Hello"]


def ended() -> RunEnd:
    """Make the row of a run that has ended."""
    return run_row(status=RunStatus.SUCCEEDED, output="Yes.", last_entry=2)


async def test_ends_go_with_whatever_is_told_in_that_moment(desk: Desk) -> None:
    telling, rows = desk.telling(), [ended(), ended()]
    async with desk.held():
        telling.tell(BEGUN)
        await asyncio.sleep(0)
        ends = [asyncio.create_task(desk.publisher.tell_end(row, TTL)) for row in rows]
        await asyncio.sleep(0.05)
    await asyncio.gather(*ends)

    assert sorted(desk.log.sizes) in ([1, 2], [3])
    for row in rows:
        [end] = await desk.log.read(row.id)
        assert (end.id, end.event) == (Id(2, 0), "message_complete")


async def test_an_end_that_cannot_be_told_holds_nobody_up(desk: Desk) -> None:
    desk.log.away = True

    with pytest.raises(RedisAway):
        await desk.publisher.tell_end(ended(), TTL)

    desk.log.away = False
    await desk.publisher.tell_end(ended(), TTL)


async def test_a_log_that_cannot_be_written_is_set_aside_and_the_others_go_on(desk: Desk) -> None:
    bad, good, row = desk.telling(), desk.telling(), ended()
    desk.log.unwritable = {bad.run_id}
    async with desk.held():
        bad.show("a")
        good.show("a")
        telling = asyncio.create_task(desk.publisher.tell_end(row, TTL))
        await asyncio.sleep(0)
    await asyncio.gather(bad.flushed(), good.flushed(), telling)
    failed = len(desk.log.sizes)
    for text in ("ab", "abc"):
        bad.show(text)
        good.show(text)
        await good.flushed()

    assert story(await desk.read(good)) == ["1-1 a", "1-2 ab", "1-3 abc"]
    assert [entry.event for entry in await desk.log.read(row.id)] == ["message_complete"]
    assert await desk.read(bad) == []
    assert bad.known == ("abc", bad.last_entry)
    assert desk.log.sizes[failed:] == [1, 1]  # It does not fail a round trip twice.


async def test_an_end_that_cannot_be_written_fails_alone(desk: Desk) -> None:
    bad, good = ended(), ended()
    desk.log.unwritable = {bad.id}

    told = await asyncio.gather(*(desk.publisher.tell_end(row, TTL) for row in (bad, good)), return_exceptions=True)

    assert [type(outcome) for outcome in told] == [ValueError, type(None)]


async def test_an_event_that_json_cannot_say_is_told_mended(desk: Desk) -> None:
    telling = desk.telling()
    telling.tell(CALL | {"tool_name": "lo\ud83dok", "args": object()})
    await telling.flushed()

    assert [dict(entry.body) for entry in await desk.read(telling)] == [
        CALL | {"tool_name": "lo\ufffdok", "args": "<object>"}
    ]


async def test_a_database_that_does_not_answer_holds_up_one_lost_log_only(desk: Desk) -> None:
    lost, other = desk.telling(), desk.telling()
    lost.show("a")
    await lost.flushed()
    await desk.redis.delete(DEFAULT.log(lost.run_id))
    desk.database_failures = 10**6

    lost.show("ab")
    await asyncio.sleep(0.05)
    for text in ("a", "ab"):
        other.show(text)
        await other.flushed()

    assert story(await desk.read(other)) == ["1-1 a", "1-2 ab"]
    desk.database_failures = 0
    await lost.flushed()
    assert [entry.text for entry in await desk.read(lost)] == ["ab"]
