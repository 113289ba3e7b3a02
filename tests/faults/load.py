"""What clients do meanwhile: ask in every way there is, follow, poll, block, cancel, delete, look where they may not.

Each query is a story of its own, which follows from the seed and its number.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any
from uuid import UUID

import httpx

from tests.faults.errands import ERRAND, Errand
from tests.faults.guests import MISDEEDS, Visit
from tests.faults.history import Answered, Asked, Given, History, Peek, Piece, Reader, Seen, Sent
from tests.faults.script import CLERK, TELLER, Query
from tests.support.client import Event, read_events
from tests.support.service import KEYS

USERS_A_TENANT = 3
PATIENCE_SECONDS = 240
"""A story that is not over by then is left; what it did not see is seen to be missing."""
PAUSE_SECONDS = 0.3
CALL_SECONDS = 30
SCHEDULES = 3
YEARLY = "0 0 1 1 *"
LONGEST_THOUGHT_SECONDS = 1.5
"""A person takes up to so long to answer."""


class User:
    """One user of one tenant, who knows several API processes and trusts none."""

    def __init__(self, history: History, urls: list[str], tenant: str, user_id: str) -> None:
        self.tenant, self.user_id = tenant, user_id
        self.threads: list[tuple[str, str]] = []
        """Its threads, with their agents."""
        self.runs: list[str] = []
        self.errand_threads: list[str] = []
        self._history = history
        self._urls = urls
        self._http = httpx.AsyncClient(
            headers={"X-API-Key": KEYS[tenant], "X-User-ID": user_id},
            timeout=httpx.Timeout(CALL_SECONDS, connect=5),
            verify=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=4),
        )

    async def close(self) -> None:
        """Hang up."""
        await self._http.aclose()

    async def call(self, chance: random.Random, method: str, path: str, **arguments: Any) -> httpx.Response | None:
        """Call one of the API processes; None where no answer came."""
        try:
            response = await self._http.request(method, f"{chance.choice(self._urls)}/api/v1{path}", **arguments)
        except httpx.HTTPError:
            return None
        self._note(f"{method} {path}", response)
        return response

    def _note(self, call: str, response: httpx.Response) -> None:
        refused: dict[str, Any] = response.json() if response.status_code in {429, 500, 503} else {}
        self._history.answered.append(
            Answered(time.time(), call, response.status_code, refused.get("code"), refused.get("reason"))
        )

    async def insist(self, chance: random.Random, method: str, path: str, **arguments: Any) -> httpx.Response | None:
        """Call until an answer comes that is not a refusal for now."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            response = await self.call(chance, method, path, **arguments)
            if response is not None and response.status_code < 500:
                return response
            await asyncio.sleep(PAUSE_SECONDS)
        return None

    async def piece(
        self, chance: random.Random, piece: Piece, method: str, path: str, longest: int, **arguments: Any
    ) -> None:
        """Read a stream until it ends, it is cut, or so many events have come."""
        piece.began_at = time.time()
        sse = chance.random() < 0.5
        headers = {"Accept": "text/event-stream" if sse else "application/x-ndjson"}
        if piece.after is not None:
            if chance.random() < 0.5:
                headers["Last-Event-ID"] = piece.after
            else:
                arguments.setdefault("params", {})["after"] = piece.after
        url = f"{chance.choice(self._urls)}/api/v1{path}"
        try:
            async with self._http.stream(method, url, headers=headers, **arguments) as response:
                piece.status = response.status_code
                if response.status_code != 200:
                    await response.aread()
                self._note(f"{method} {path}", response)
                if response.status_code == 200:
                    await _collect(response, piece.events, longest)
        except httpx.HTTPError:
            pass  # Cut: the reader resumes.
        piece.ended_at = time.time()


def _body(asked: Asked) -> dict[str, Any]:
    """Write what is posted."""
    body: dict[str, Any] = {"query": str(asked.query)}
    if asked.thread_id:
        body["thread_id"] = asked.thread_id
    else:
        body["agent_type"] = asked.agent_type
    if asked.strategy:
        body["multitask_strategy"] = asked.strategy
    if asked.deadline_seconds:
        body["deadline_s"] = asked.deadline_seconds
    return body


async def _collect(response: httpx.Response, events: list[Event], longest: int) -> None:
    async for event in read_events(response):
        events.append(event)
        if event["event"] == "done" or len(events) == longest:
            return


class Load:
    """All clients."""

    def __init__(self, seed: int, history: History, urls: list[str]) -> None:
        self._seed = seed
        self._history = history
        chance = random.Random(f"users {seed}")
        self.users = [
            User(history, urls, tenant, str(UUID(int=chance.getrandbits(128), version=4)))
            for tenant in KEYS
            for _ in range(USERS_A_TENANT)
        ]
        self._stories: list[asyncio.Task[None]] = []
        self._number = 0

    async def receive(self, seconds: float, guests_a_second: float) -> None:
        """Begin visits, each of another guest in turn, for so long, at times that follow from the seed."""
        chance = random.Random(f"visits {self._seed}")
        end = time.monotonic() + seconds
        coming: list[str] = []
        while time.monotonic() < end:
            coming = coming or chance.sample(sorted(MISDEEDS), len(MISDEEDS))
            misdeed, user = MISDEEDS[coming.pop()], chance.choice(self.users)
            asked = Asked(
                at=time.time(),
                query=Visit(misdeed.name, f"{chance.getrandbits(64):016x}"),
                tenant=user.tenant,
                user_id=user.user_id,
                agent_type=misdeed.agent_type,
            )
            self._stories.append(asyncio.create_task(self._ask(user, asked, random.Random(chance.random()))))
            await asyncio.sleep(chance.expovariate(guests_a_second))

    async def run(self, seconds: float, runs_a_second: float) -> None:
        """Begin stories, for so long, at times that follow from the seed."""
        chance = random.Random(f"arrivals {self._seed}")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._number += 1
            story = asyncio.create_task(self._story(random.Random(f"story {self._seed} {self._number}")))
            self._stories.append(story)
            await asyncio.sleep(chance.expovariate(runs_a_second))

    async def send_on_errands(self, seconds: float, errands_a_second: float) -> None:
        """Begin stories of errands, for so long, at times that follow from the seed."""
        chance = random.Random(f"errands {self._seed}")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._stories.append(asyncio.create_task(self._errand(random.Random(chance.random()))))
            await asyncio.sleep(chance.expovariate(errands_a_second))

    async def plan(self) -> None:
        """Make schedules of errands, with and without a thread; see `let_time_pass` for when they ask."""
        chance = random.Random(f"schedules {self._seed}")
        for number in range(SCHEDULES):
            user = self.users[number % len(self.users)]
            asked = {"cron": YEARLY, "query": str(Errand.any(chance, most_rounds=2))}
            thread_id = await self._errand_thread(user, chance) if number else None
            asked |= {"agent_type": ERRAND} if thread_id is None else {"thread_id": thread_id}
            await user.insist(chance, "POST", "/schedules", json=asked, headers={"Idempotency-Key": f"s{number}"})

    async def answer(self) -> None:
        """Be the people who are asked: answer whatever waits, after a while; for ever."""
        chance = random.Random(f"answers {self._seed}")
        thinking: dict[str, asyncio.Task[None]] = {}
        while True:
            for user in self.users:
                await asyncio.sleep(PAUSE_SECONDS)
                response = await user.call(chance, "GET", "/runs", params={"status": "waiting", "limit": 100})
                if response is None or response.status_code != 200:
                    continue
                waiting: list[dict[str, Any]] = response.json()["items"]
                for run in waiting:
                    if run["id"] not in thinking or thinking[run["id"]].done():
                        answering = self._answer(user, run, random.Random(chance.random()))
                        thinking[run["id"]] = asyncio.create_task(answering)
                        self._stories.append(thinking[run["id"]])

    async def _answer(self, user: User, run: dict[str, Any], chance: random.Random) -> None:
        """Answer what is open: all at once or one by one; sometimes two people do, and need not agree."""
        await asyncio.sleep(chance.uniform(0, LONGEST_THOUGHT_SECONDS))
        names = [request["request_id"] for request in run["requests"] if request["answer"] is None]
        async with asyncio.TaskGroup() as together:
            for _ in range(chance.choice([1, 1, 2])):
                approvals = {name: chance.random() < 0.7 for name in names}
                calls = [approvals] if chance.random() < 0.5 else [{name: approvals[name]} for name in names]
                together.create_task(self._give(user, run["id"], calls, random.Random(chance.random())))

    async def _give(self, user: User, run_id: str, calls: list[dict[str, bool]], chance: random.Random) -> None:
        for approvals in calls:
            answers = [{"request_id": name, "approve": approve} for name, approve in approvals.items()]
            response = await user.insist(chance, "POST", f"/runs/{run_id}/answers", json={"answers": answers})
            if response is not None:
                code = response.json().get("code") if response.status_code >= 400 else None
                self._history.given.append(Given(run_id, approvals, response.status_code, code))

    async def _errand(self, chance: random.Random) -> None:
        """Send an agent on an errand, or two in one thread."""
        user = chance.choice(self.users)
        thread_id = await self._errand_thread(user, chance) if chance.random() < 0.6 else None
        async with asyncio.TaskGroup() as stories:
            for _ in range(2 if thread_id and chance.random() < 0.2 else 1):
                asked = Asked(
                    at=time.time(),
                    query=Errand.any(chance),
                    tenant=user.tenant,
                    user_id=user.user_id,
                    agent_type=ERRAND,
                    thread_id=thread_id,
                )
                stories.create_task(self._ask(user, asked, random.Random(chance.random())))
        if thread_id in user.errand_threads and chance.random() < 0.05:
            user.errand_threads.remove(thread_id)
            await self._delete(user, thread_id, chance)

    async def _errand_thread(self, user: User, chance: random.Random) -> str | None:
        """Choose a thread, old or new."""
        if user.errand_threads and chance.random() < 0.6:
            return chance.choice(user.errand_threads)
        response = await user.call(chance, "POST", "/threads", json={"agent_type": ERRAND})
        if response is None or response.status_code != 201:
            return None
        user.errand_threads.append(response.json()["id"])
        return user.errand_threads[-1]

    async def _steer(self, user: User, asked: Asked, chance: random.Random) -> None:
        """Tell the run something, now and then; who is not answered tries again, under the same key."""
        assert asked.run_id is not None
        for _ in range(chance.choice([0, 1, 1, 2, 3])):
            await asyncio.sleep(chance.uniform(0, 1.5))
            errand = Errand.any(chance, most_rounds=2)
            message = Sent(asked.run_id, errand, steers=asked.thread_id is not None and chance.random() < 0.3)
            self._history.sent.append(message)
            path, body = f"/runs/{asked.run_id}/messages", {"query": str(errand)}
            if message.steers:
                path, body = "/runs", body | {"thread_id": str(asked.thread_id), "multitask_strategy": "steer"}
            headers = {"Idempotency-Key": errand.nonce}
            for _ in range(chance.choice([1, 1, 2])):
                if response := await user.insist(chance, "POST", path, json=body, headers=headers):
                    message.status = response.status_code

    async def settle(self) -> None:
        """Wait until every story is over."""
        while waiting := [story for story in self._stories if not story.done()]:
            await asyncio.wait(waiting)
        await asyncio.gather(*self._stories)

    async def close(self) -> None:
        """Hang up."""
        for story in self._stories:
            story.cancel()
        await asyncio.gather(*self._stories, return_exceptions=True)
        for user in self.users:
            await user.close()

    async def _story(self, chance: random.Random) -> None:
        """Ask once, or a few times in one thread, and see to it what comes of it."""
        user = chance.choice(self.users)
        thread = await self._thread(user, chance) if chance.random() < 0.6 else None
        together = chance.randint(2, 4) if thread and chance.random() < 0.2 else 1
        async with asyncio.TaskGroup() as stories:
            for _ in range(together):
                story = random.Random(chance.random())
                stories.create_task(self._ask(user, self._new(user, thread, story), story))
        if thread and chance.random() < 0.05:
            await self._delete(user, thread[0], chance)
        if user.runs and chance.random() < 0.3:
            await self._peek(user, chance)

    async def _thread(self, user: User, chance: random.Random) -> tuple[str, str] | None:
        """Choose a thread, old or new."""
        agent_type = chance.choice([TELLER, CLERK])
        if user.threads and chance.random() < 0.6:
            return chance.choice(user.threads)
        response = await user.call(chance, "POST", "/threads", json={"agent_type": agent_type})
        if response is None or response.status_code != 201:
            return None
        thread = (response.json()["id"], agent_type)
        user.threads.append(thread)
        return thread

    async def _ask(self, user: User, asked: Asked, chance: random.Random) -> None:
        self._history.asked.append(asked)
        body, is_errand = _body(asked), isinstance(asked.query, Errand)
        if is_errand and asked.thread_id is None and chance.random() < 0.2:
            body["start_after_s"] = round(chance.uniform(0.1, 3), 2)
        way = chance.random()
        if way < (0.8 if is_errand else 0.5):
            await self._post(user, asked, body, chance)
        elif way < (0.9 if is_errand else 0.8):
            await self._stream(user, asked, body, chance)
        else:
            await self._block(user, asked, body, chance)
        if asked.run_id is None:
            return
        user.runs.append(asked.run_id)
        async with asyncio.TaskGroup() as together:
            for _ in range(chance.choice([0, 1, 1, 2])):
                together.create_task(self.follow(user, Reader(asked.run_id), random.Random(chance.random())))
            together.create_task(self._poll(user, asked, random.Random(chance.random())))
            if is_errand:
                together.create_task(self._steer(user, asked, random.Random(chance.random())))
            is_in_line = is_errand and asked.thread_id is not None  # What follows there tells runs apart by their ends.
            if not isinstance(asked.query, Visit) and not is_in_line and chance.random() < 0.08:
                together.create_task(self._cancel(user, asked, random.Random(chance.random())))

    @staticmethod
    def _new(user: User, thread: tuple[str, str] | None, chance: random.Random) -> Asked:
        long = chance.random() < 0.04
        query = Query(
            nonce=f"{chance.getrandbits(64):016x}",
            words=chance.randint(30, 60) if long else chance.randint(1, 60),
            pace_seconds=round(chance.choice([0.0, 0.03, 0.08, 0.15]), 3),
            padding=chance.randint(1000, 4000) if long else 0,
        )
        return Asked(
            at=time.time(),
            query=query,
            tenant=user.tenant,
            user_id=user.user_id,
            agent_type=thread[1] if thread else chance.choice([TELLER, CLERK]),
            thread_id=thread[0] if thread else None,
            strategy=chance.choice([None, "enqueue", "enqueue", "enqueue", "reject", "interrupt", "rollback"])
            if thread
            else None,
            deadline_seconds=round(chance.uniform(0.3, 3), 2) if chance.random() < 0.05 else None,
        )

    async def _post(self, user: User, asked: Asked, body: dict[str, Any], chance: random.Random) -> None:
        """Ask and hang up; half of the callers insist, with a key that makes one run of all their tries."""
        if chance.random() < 0.5:
            headers = {"Idempotency-Key": asked.query.nonce}
            response = await user.insist(chance, "POST", "/runs", json=body, headers=headers)
            if response is not None and response.status_code == 202 and chance.random() < 0.3:
                response = await user.insist(chance, "POST", "/runs", json=body, headers=headers)
        else:
            response = await user.call(chance, "POST", "/runs", json=body)
        if response is not None:
            asked.status = response.status_code
            if response.status_code == 202:
                asked.run_id = response.json()["id"]

    async def _stream(self, user: User, asked: Asked, body: dict[str, Any], chance: random.Random) -> None:
        """Ask on the line; who is cut off resumes at any API process, if he knows the run by then."""
        if chance.random() < 0.1 and not isinstance(asked.query, Errand):
            asked.hang_up_cancels = True
            body["on_disconnect"] = "cancel"
        piece = Piece(None)
        deltas = {"deltas": "true"} if chance.random() < 0.5 else {}
        longest = chance.choice([1, 3, 10, 10_000, 10_000])
        await user.piece(chance, piece, "POST", "/agent/stream", longest, json=body, params=deltas)
        asked.status = piece.status
        if piece.events:
            asked.run_id = str(piece.events[0]["run_id"])
            await self.follow(user, Reader(asked.run_id, [piece]), chance)

    async def _block(self, user: User, asked: Asked, body: dict[str, Any], chance: random.Random) -> None:
        headers = {"Prefer": f"wait={chance.choice([1, 5, 20])}"}
        response = await user.call(chance, "POST", "/agent/query", json=body, headers=headers)
        if response is None:
            return
        asked.status = response.status_code
        said: dict[str, Any] = response.json()
        if response.status_code == 202:
            asked.run_id = said["id"]
        elif "run_id" in said and said.get("code") != "thread_busy":
            asked.run_id = said["run_id"]
            self._history.seen.append(Seen(time.time(), "answered", response.status_code, said))

    async def follow(self, user: User, reader: Reader, chance: random.Random) -> None:
        """Read a run to its end, through connections that are cut at will."""
        self._history.readers.append(reader)
        end = time.monotonic() + PATIENCE_SECONDS
        gone = False
        while not reader.is_done and not gone and time.monotonic() < end:
            cursor = next((event["id"] for event in reversed(reader.events)), None)
            piece = Piece(cursor)
            longest = chance.choice([1, 2, 5, 20, 10_000, 10_000])
            parameters = {"deltas": "true"} if chance.random() < 0.5 else {}
            path = f"/runs/{reader.run_id}/stream"
            await user.piece(chance, piece, "GET", path, longest, params=parameters)
            reader.pieces.append(piece)
            gone = piece.status is not None and 400 <= piece.status < 500
            if not piece.events:
                await asyncio.sleep(PAUSE_SECONDS)

    async def _poll(self, user: User, asked: Asked, chance: random.Random) -> None:
        """Look at the run now and then, until it has ended."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            wait = chance.choice([{}, {"wait": 1}, {"wait": 10}])
            response = await user.insist(chance, "GET", f"/runs/{asked.run_id}", params=wait)
            if response is None or response.status_code != 200:
                return
            run = response.json()
            self._history.seen.append(Seen(time.time(), "read", response.status_code, run))
            if run["finished_at"]:
                return
            await asyncio.sleep(chance.uniform(0.2, 2))

    async def _cancel(self, user: User, asked: Asked, chance: random.Random) -> None:
        await asyncio.sleep(chance.uniform(0, 2))
        asked.cancelled = True
        path = f"/runs/{asked.run_id}/cancel"
        response = await user.insist(chance, "POST", path, params={"wait": chance.choice([0, 1, 10])})
        if response is not None and response.status_code < 400:
            self._history.seen.append(Seen(time.time(), "cancelled", response.status_code, response.json()))

    async def _delete(self, user: User, thread_id: str, chance: random.Random) -> None:
        self._history.deleted_threads.add(thread_id)
        user.threads = [thread for thread in user.threads if thread[0] != thread_id]
        await user.call(chance, "DELETE", f"/threads/{thread_id}")

    async def _peek(self, owner: User, chance: random.Random) -> None:
        """Have somebody else look at what is the owner's."""
        stranger = chance.choice([user for user in self.users if user is not owner])
        run_id = chance.choice(owner.runs)
        method, path = chance.choice(
            [
                ("GET", f"/runs/{run_id}"),
                ("GET", f"/runs/{run_id}/stream"),
                ("POST", f"/runs/{run_id}/cancel"),
                *([("GET", f"/threads/{chance.choice(owner.threads)[0]}")] if owner.threads else []),
            ]
        )
        response = await stranger.call(chance, method, path)
        if response is not None:
            self._history.peeks.append(
                Peek(stranger.tenant, stranger.user_id, f"{method} {path}", response.status_code)
            )

    async def look_back(self, most_runs: int) -> None:
        """When all is quiet: read runs again, whole and from a place in the middle; and list what each owner has."""
        chance = random.Random(f"afterwards {self._seed}")
        owners = {run_id: user for user in self.users for run_id in user.runs}
        for run_id in chance.sample(sorted(owners), min(most_runs, len(owners))):
            await self.follow(owners[run_id], Reader(run_id), chance)
            seen = [
                event["id"] for reader in self._history.readers if reader.run_id == run_id for event in reader.events
            ]
            if seen:
                reader = Reader(run_id, [Piece(chance.choice(seen))])
                path, parameters = f"/runs/{run_id}/stream", {"deltas": "true"} if chance.random() < 0.5 else {}
                await owners[run_id].piece(chance, reader.pieces[0], "GET", path, 10_000, params=parameters)
                self._history.readers.append(reader)
        for user in self.users:
            self._history.listed[user.tenant, user.user_id] = await _list(user, chance)


async def _list(user: User, chance: random.Random) -> set[str]:
    """List all runs of a user."""
    listed: set[str] = set()
    cursor: dict[str, str] = {}
    while (page := await user.insist(chance, "GET", "/runs", params={"limit": 100, **cursor})) is not None:
        body = page.json()
        listed |= {run["id"] for run in body["items"]}
        if not body["next_cursor"]:
            break
        cursor = {"cursor": body["next_cursor"]}
    return listed
