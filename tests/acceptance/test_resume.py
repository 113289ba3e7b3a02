"""A stream that is cut again and again, anywhere, says in its pieces what it would have said whole."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
from redis.asyncio import Redis

from agent_relay.shared.event_log import Entry, EventLog
from tests.support.client import Client, Event, ids, texts_by_id
from tests.support.service import serving

SEED = int(os.environ.get("SEED", random.randrange(1_000_000)))
FOLLOWERS = 6
LONGEST_PIECE = 6


@pytest.fixture(scope="module")
def urls(
    new_database: Callable[[], str], redis_of_the_logs: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """Run two API processes and a worker."""
    with serving(new_database(), redis_of_the_logs, tmp_path_factory.mktemp("resume")) as service:
        service.worker(SCRIPTED_TOKENS_PER_SECOND="100")
        yield [service.api().url, service.api().url]


@pytest.fixture(scope="module")
def redis_of_the_logs(new_redis: Callable[[], str]) -> str:
    """Name the Redis whose logs say what the text was at each id."""
    return new_redis()


async def pieces_of(run_id: str, clients: list[Client], chance: random.Random) -> list[list[Event]]:
    """Follow a run until it is `done`, through connections that are cut at will."""
    pieces: list[list[Event]] = []
    cursor: str | None = None
    while True:
        piece: list[Event] = []
        parameters = {"deltas": "true"} if chance.random() < 0.5 else {}
        longest = chance.randint(1, LONGEST_PIECE)
        client, sse = chance.choice(clients), chance.random() < 0.5
        async with client.following(run_id, sse=sse, after=cursor, **parameters) as stream:
            async for event in stream:
                piece.append(event)
                cursor = event["id"]
                if event["event"] == "done" or len(piece) == longest:
                    break
        pieces.append(piece)
        if piece and piece[-1]["event"] == "done":
            return pieces


def texts_of(log: list[Entry]) -> dict[str, str]:
    """Say what the text was at each id."""
    seen: dict[str, str] = {}
    text = ""
    for entry in log:
        if entry.event is None:
            text = entry.growth.of(text) if entry.growth else entry.text or ""
            seen[str(entry.id)] = text
    return seen


@pytest.mark.parametrize("agent_type", ["bank_support", "second_thoughts", "unicode", "slow"])
async def test_the_pieces_equal_the_whole(urls: list[str], redis_of_the_logs: str, agent_type: str) -> None:
    print(f"SEED={SEED}")  # noqa: T201  (with it, a failure can be had again)
    async with Client(urls[0]) as one, Client(urls[1], user_id=one.user_id) as other:
        run = await one.run("What is my balance? 1 second 🙂", agent_type=agent_type)
        followers = [random.Random(SEED + number) for number in range(FOLLOWERS)]
        cut = await asyncio.gather(*(pieces_of(run["id"], [one, other], chance) for chance in followers))
        whole = await other.events(run["id"])
    async with Redis.from_url(redis_of_the_logs) as redis:
        log = await EventLog(redis).read(UUID(run["id"]))

    text_at, last = texts_of(log), next(event for event in reversed(whole) if event["event"] == "text_delta")
    assert sum(map(len, cut)) > FOLLOWERS
    for pieces in cut:
        events = [event for piece in pieces for event in piece]
        seen = {place: text for piece in pieces for place, text in texts_by_id(piece).items()}
        assert ids(events) == sorted(set(ids(events)))
        assert [event for event in events if event["event"] != "text_delta"] == [
            event for event in whole if event["event"] != "text_delta"
        ]
        assert seen == {place: text_at[place] for place in seen}
        assert list(seen.items())[-1] == (last["id"], last["token"])
    assert log[-1].body["last"] == log[-2].id.n
    assert [str(entry.id) for entry in log if entry.event] == [
        event["id"] for event in whole if event["event"] not in {"message_created", "text_delta", "done"}
    ]


async def test_resuming_at_any_id_gives_exactly_the_rest(urls: list[str]) -> None:
    async with Client(urls[0]) as one, Client(urls[1], user_id=one.user_id) as other:
        whole = await one.stream("What is my balance?", agent_type="second_thoughts")
        run_id = whole[0]["run_id"]
        settled = await other.events(run_id)
        for event in whole[:: max(1, len(whole) // 20)]:
            rest = await other.events(run_id, after=event["id"])
            assert rest == [later for later in settled if ids([later]) > ids([event])]
