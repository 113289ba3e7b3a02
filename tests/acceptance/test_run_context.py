"""What agents and their traces know a run by: its own id, its thread, its tenant and user, its attempt and deadline."""

from __future__ import annotations

import json
from typing import Any

from pydantic_ai.messages import ModelMessagesTypeAdapter
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.client import Client
from tests.support.service import Service

SERVED = {"AGENTS": "told=tests.support.context_agents:told"}


async def test_a_run_keeps_its_ids_and_its_deadline_over_attempts(service: Service) -> None:
    api = service.api(**SERVED)
    service.worker("--processes", "1", **SERVED)
    async with Client(api.url) as client:
        thread_id = await client.thread("told")
        runs = [
            await client.ended((await client.run("?", thread_id=thread_id, deadline_s=500))["id"]) for _ in range(2)
        ]
        alone = await client.ended((await client.run("?", agent_type="told"))["id"])

    assert [(run["status"], run["attempt"]) for run in (*runs, alone)] == [("succeeded", 2)] * 3
    for run, conversation_id in ((runs[0], thread_id), (runs[1], thread_id), (alone, alone["id"])):
        said: dict[str, Any] = json.loads(run["output"])
        before, _, after = said["notes"]
        for number, context in ((1, before), (2, after)):
            assert (context["run_id"], context["conversation_id"]) == (run["id"], conversation_id)
            assert context["metadata"] == {
                "team": "blue",
                "tenant": "acme",
                "user": client.user_id,
                "agent": "told",
                "attempt": number,
            }
        longest = 500 if run is not alone else 600
        assert 0 < after["seconds_left"] < before["seconds_left"] <= longest
        assert set(said["ids"]) == {conversation_id}


async def test_the_messages_of_a_run_carry_its_ids_whatever_attempt_they_are_of(
    service: Service, database_url: str
) -> None:
    api = service.api(**SERVED)
    service.worker("--processes", "1", **SERVED)
    async with Client(api.url) as client:
        thread_id = await client.thread("told")
        run = await client.ended((await client.run("?", thread_id=thread_id))["id"])
    engine = create_async_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    async with engine.connect() as connection:
        written = await connection.scalar(
            text("SELECT messages FROM transcripts WHERE run_id = :id"), {"id": run["id"]}
        )
    await engine.dispose()

    messages = ModelMessagesTypeAdapter.validate_json(written)
    assert len(messages) == 8
    assert {(message.run_id, message.conversation_id) for message in messages} == {(run["id"], thread_id)}
