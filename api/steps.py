"""The steps of a run, read from the stored ones and from its transcript.

It reads the JSON of a model's messages as pydantic-ai writes it and knows no agent. Unreadable parts are left out.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from pydantic import JsonValue, TypeAdapter, ValidationError
from pydantic_core import from_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.requests.pagination import Rows, bounded, read_bounded
from agent_relay.api.schemas import Step
from agent_relay.shared.bad_input import BadInput, refuse
from agent_relay.shared.database.tables import TERMINAL
from agent_relay.shared.schemas import Usage, usage_of

SHORT = 64 << 10
"""Characters that are read without a thread."""

FULL, NAMES = "full", "names"
"""The parts of its tools that an agent may show, as workers register it; a null is one of an older worker."""

_OUTPUT_TOOL = "final_result"
_OUTPUT_RESULT = "Final result processed."
"""pydantic-ai's name of the tool by which a model gives its output, and the result of that tool."""

SIZE_OF_STEPS = """coalesce((SELECT octet_length(messages) FROM transcripts WHERE run_id = steps_of), 0)
    + coalesce((SELECT sum(octet_length(messages)) FROM run_steps WHERE run_id = steps_of), 0)"""
"""How many bytes are read for the steps of a row's run `steps_of`."""

_RESPONSE = """'"response"'"""
_REFERENCE = re.compile(r"agent-relay-file-([0-9a-f-]{36})")

_SOURCES = f"""
    WITH asked AS MATERIALIZED (
        SELECT runs.id, agent_type, status, finished_at, transcripts.messages, coalesce(
            transcripts.attempt, CASE WHEN status IN ('succeeded', 'cancelled') THEN runs.attempt ELSE wait_attempt END
        ) AS until, runs.attempt, output
        FROM runs LEFT JOIN transcripts ON run_id = runs.id WHERE runs.id = ANY(CAST(:run_ids AS uuid[]))
    ), kept AS MATERIALIZED (
        SELECT run_id, CASE WHEN asked.messages IS NULL OR run_steps.attempt <= until THEN 0 ELSE 2 END AS source,
            run_steps.attempt,
            run_steps.finished_at, each.message, CAST(each.message -> 'kind' AS text) = {_RESPONSE} AS responds,
            row_number() OVER (PARTITION BY run_id ORDER BY run_steps.attempt, place, each.n) AS n
        FROM run_steps JOIN asked ON run_id = asked.id
        CROSS JOIN LATERAL json_array_elements(CAST(run_steps.messages AS json)) WITH ORDINALITY AS each (message, n)
    ), transcribed AS (
        SELECT asked.id AS run_id, until, each.message, each.n,
            CAST(each.message -> 'kind' AS text) = {_RESPONSE} AS responds,
            count(*) FILTER (WHERE CAST(each.message -> 'kind' AS text) = {_RESPONSE})
                OVER (PARTITION BY asked.id ORDER BY each.n) AS responses
        FROM asked CROSS JOIN LATERAL json_array_elements(CAST(asked.messages AS json)) WITH ORDINALITY
            AS each (message, n)
    ), known AS (
        SELECT run_id, source, n, attempt, finished_at, message, responds FROM kept
        UNION ALL
        SELECT run_id, 1, n, until, NULL, message, responds FROM transcribed
        WHERE responses + CASE WHEN responds THEN 0 ELSE 1 END > (
            SELECT count(*) FROM kept WHERE kept.run_id = transcribed.run_id AND source = 0 AND kept.responds
        )
        UNION ALL
        SELECT id, 3, 1, attempt, finished_at, json_build_object('kind', 'response', 'parts', json_build_array(
            json_build_object('part_kind', 'text', 'content', output))), true
        FROM asked WHERE messages IS NULL AND status = 'succeeded'
    ), numbered AS (
        SELECT *, count(*) FILTER (WHERE responds) OVER (PARTITION BY run_id ORDER BY source, n) AS exchange FROM known
    )
"""  # noqa: S608  (a constant)
"""All messages of runs. Steps that a transcript holds, too, are its beginning, and have the time of their end: they are
taken from the steps, and the rest from the transcript. Requests after the last of these responses may hold more results
than the steps do; the reader of the rows leaves out those that it has. Without a transcript, as of a run without a
thread, the output replaces the last response. An exchange is a response and the requests after it."""

_ORDER = "run_id, exchange"

_EXCHANGES = """
    SELECT run_id, exchange, agent_type, status, asked.finished_at,
        (SELECT tool_events FROM agents WHERE agents.agent_type = asked.agent_type) AS tool_events,
        (SELECT coalesce(reasoning, tool_events = 'full') FROM agents WHERE agents.agent_type = asked.agent_type)
            AS reasoning,
        exchange = max(exchange) OVER (PARTITION BY run_id) AS is_last,
        ARRAY(SELECT encode(sha256(convert_to(query, 'UTF8')), 'hex') FROM run_messages WHERE run_id = asked.id)
            AS sent,
        CASE exchange WHEN 0 THEN 0 ELSE length END AS length, entries
    FROM (
        SELECT run_id, exchange, sum(octet_length(CAST(message AS text))) AS length, CAST(json_agg(json_build_object(
            'message', message, 'attempt', attempt, 'finished_at', finished_at) ORDER BY source, n) AS text) AS entries
        FROM numbered GROUP BY run_id, exchange
    ) AS grouped JOIN asked ON asked.id = run_id
"""

_READ = text(f"""
    {_SOURCES}
    {
    bounded(
        f"SELECT * FROM ({_EXCHANGES}) AS exchanges WHERE exchange >= :first "
        f"ORDER BY {_ORDER} LIMIT CAST(:limit AS int)",
        "length",
        _ORDER,
    )
}
""")  # noqa: S608  (constants)

_DATE_TIME: TypeAdapter[datetime] = TypeAdapter(datetime)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A response of the model, and the requests after it until the next."""

    run_id: UUID
    exchange: int
    agent_type: str
    status: str
    finished_at: datetime | None
    """Of the run."""
    tool_events: str | None
    reasoning: bool | None
    is_last: bool
    sent: Sequence[str]
    """The hashes of the messages into the run."""
    length: Decimal
    """In bytes; 0 for requests before the first response."""
    entries: str
    """A JSON array of `{message, attempt, finished_at}`."""


_NOT_RETURNED: tuple[dict[str, Any], None] = ({}, None)


@dataclass(frozen=True, slots=True)
class PlacedStep:
    """A step, and where it stands: its exchange, and its number there."""

    step: Step
    exchange: int
    number: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A message of a run."""

    message: Mapping[str, Any]
    attempt: int | None
    finished_at: datetime | None

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The parts that are objects, as they should be."""
        return _objects(self.message.get("parts"))


async def page_of_steps(
    database: AsyncEngine, run_id: UUID, place: tuple[int, int, int], limit: int
) -> Rows[PlacedStep]:
    """Read the steps of a run from a place on: an exchange, a number there, and the index of the step."""
    exchange, number, index = place
    while True:
        found = await _read(database, [run_id], exchange, limit + 3)  # The first two may have no steps for this page.
        steps: list[PlacedStep] = []
        for row in found.rows:
            for n, step in enumerate(await _steps(row)):
                if (row.exchange, n) >= (exchange, number):
                    steps.append(PlacedStep(step.model_copy(update={"index": index + len(steps)}), row.exchange, n))
        if steps or not found.ended_early:
            return Rows(steps[: limit + 1], found.ended_early)
        exchange, number = found.rows[-1].exchange + 1, 0


async def steps_of_runs(database: AsyncEngine, run_ids: Sequence[UUID]) -> tuple[dict[UUID, list[Step]], set[UUID]]:
    """Read the steps of runs, as many as a page may have; returns by id those of each, and the runs that have more."""
    steps: dict[UUID, list[Step]] = {run_id: [] for run_id in run_ids}
    if not run_ids:
        return steps, set()
    found = await _read(database, run_ids, 0, None)
    ended: set[UUID] = set()
    for row in found.rows:
        known = steps[row.run_id]
        known += [step.model_copy(update={"index": len(known) + n}) for n, step in enumerate(await _steps(row))]
        if row.is_last:
            ended.add(row.run_id)
    return steps, set(run_ids) - ended if found.ended_early else set()


async def _read(database: AsyncEngine, run_ids: Sequence[UUID], first: int, limit: int | None) -> Rows[Exchange]:
    values = {"run_ids": list(run_ids), "first": first, "limit": limit}
    async with database.connect() as connection:
        return read_bounded(await connection.execute(_READ, values), Exchange)


async def _steps(row: Exchange) -> list[Step]:
    if len(row.entries) <= SHORT:
        return list(steps_in(row))
    return await asyncio.to_thread(lambda: list(steps_in(row)))


def steps_in(row: Exchange) -> Iterator[Step]:
    """Return the steps of an exchange: the model's reasoning and text, its calls and their results."""
    try:
        read = from_json(row.entries)
    except ValueError as unreadable:
        refuse(BadInput.ROW, "run_steps.messages", unreadable)
        return
    entries = [
        _Entry(each["message"], each["attempt"], _time(each["finished_at"]))
        for each in read
        if isinstance(each["message"], dict)
    ]
    results: dict[str, tuple[dict[str, Any], _Entry]] = {}
    for entry in entries:
        for part in entry.parts:
            if entry.message.get("kind") == "request" and isinstance(call := part.get("tool_call_id"), str):
                results.setdefault(call, (part, entry))
    for entry in entries:
        if entry.message.get("kind") == "response":
            yield from _response(row, entry, results)
    for said, at, entry in _prompts(row, entries):
        if hashlib.sha256(said.encode()).hexdigest() in row.sent:
            yield Step(kind="message", text=said, attempt=entry.attempt, started_at=at, finished_at=at)


def _prompts(row: Exchange, entries: Sequence[_Entry]) -> Iterator[tuple[str, datetime | None, _Entry]]:
    """Find the user's messages after a response, or before the first, except the query; files come after the text."""
    is_query = row.exchange == 0
    for entry in entries:
        for part in entry.parts:
            if part.get("part_kind") != "user-prompt":
                continue
            content = part.get("content")
            said: object = next(iter(cast("list[object]", content)), None) if isinstance(content, list) else content
            if not is_query and isinstance(said, str):
                yield said, _time(part.get("timestamp")), entry
            is_query = False


def _response(row: Exchange, entry: _Entry, results: Mapping[str, tuple[dict[str, Any], _Entry]]) -> Iterator[Step]:
    parts = entry.parts
    ended = row.finished_at if row.is_last and row.status in TERMINAL else None
    times: dict[str, Any] = {
        "attempt": entry.attempt,
        "started_at": _time(entry.message.get("timestamp")),
        "finished_at": entry.finished_at or ended,
    }
    said: list[str] = []
    output: list[str] = []
    calls: list[dict[str, Any]] = []
    returned = {part.get("tool_call_id"): part for part in parts if part.get("part_kind") == "builtin-tool-return"}
    for part in parts:
        match part.get("part_kind"):
            case "thinking" if row.reasoning and part.get("content"):
                yield Step(kind="reasoning", text=_text(part["content"]), **times)
            case "builtin-tool-call" if row.tool_events in {FULL, NAMES, None}:
                result = returned.get(part.get("tool_call_id"), {}).get("content")
                yield _call("native_tool", row, part, result, times)
            case "text":
                said.append(_text(part.get("content")))
            case "tool-call" if _gives_output(part, results):
                output.append(_text(part.get("args")))
            case "tool-call":
                calls.append(part)
            case _:
                pass
    used: dict[str, Any] = (
        {"usage": Usage.model_validate(usage_of(usage) | {"requests": 1})}
        if (usage := entry.message.get("usage"))
        else {}
    )
    if said and output:  # Text before the output is no part of it.
        yield Step(kind="response", text="".join(said), **times)
    yield Step(kind="response", text="".join(output or said) or None, **used, **times)
    if row.tool_events not in {FULL, NAMES, None}:
        return
    for part in calls:
        result, told = results.get(str(part.get("tool_call_id")), _NOT_RETURNED)
        of_call: dict[str, Any] = {
            "attempt": entry.attempt if told is None or told.attempt is None else told.attempt,
            "started_at": entry.finished_at,
            "finished_at": None if told is None else _time(result.get("timestamp")) or told.finished_at,
        }
        yield _call("tool_call", row, part, result.get("content"), of_call)


def _call(kind: Any, row: Exchange, part: Mapping[str, Any], result: JsonValue, times: Mapping[str, Any]) -> Step:
    shown = row.tool_events == FULL
    return Step(
        kind=kind,
        tool_call_id=_text(part.get("tool_call_id")),
        tool_name=_text(part.get("tool_name")),
        args=_value(part.get("args")) if shown else None,
        result=_without_references(result) if shown else None,
        **times,
    )


def _without_references(result: JsonValue) -> JsonValue:
    """Show the stored reference to a file, which `worker/execution/file_references.py` writes."""
    if isinstance(result, list):
        return [_without_references(each) for each in result]
    if not isinstance(result, dict):
        return result
    named = _REFERENCE.fullmatch(str(result.get("identifier"))) if result.get("kind") == "binary" else None
    if named is not None:
        return {"file_id": named[1], "media_type": result.get("media_type")}
    return {name: _without_references(value) for name, value in result.items()}


def _gives_output(part: Mapping[str, Any], results: Mapping[str, tuple[dict[str, Any], _Entry]]) -> bool:
    """Tell whether a call gives the output; streams do not show these as calls either."""
    name, (result, _) = part.get("tool_name"), results.get(str(part.get("tool_call_id")), _NOT_RETURNED)
    is_named_so = isinstance(name, str) and (name == _OUTPUT_TOOL or name.startswith(f"{_OUTPUT_TOOL}_"))
    return is_named_so or result.get("content") == _OUTPUT_RESULT


def _objects(found: object) -> list[dict[str, Any]]:
    each = cast("list[object]", found) if isinstance(found, list) else []
    return [cast("dict[str, Any]", one) for one in each if isinstance(one, dict)]


def _text(found: object) -> str:
    return found if isinstance(found, str) else "" if found is None else _written(found)


def _written(found: object) -> str:
    return TypeAdapter(Any).dump_json(found).decode()


def _value(args: object) -> JsonValue:
    """Read arguments, which a model writes as JSON; malformed ones are shown as text."""
    if not isinstance(args, str):
        return cast("JsonValue", args)
    try:
        return from_json(args)
    except ValueError:
        return args


def _time(found: object) -> datetime | None:
    try:
        return _DATE_TIME.validate_python(found) if isinstance(found, str) else None
    except ValidationError:
        return None
