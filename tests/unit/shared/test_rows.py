"""The classes of rows have the columns of their tables, and a result with other columns is refused where it is read."""

from __future__ import annotations

import types
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import pytest
from pydantic import JsonValue
from sqlalchemy import JSON

from agent_relay.api.routes.threads import MessageRow, ThreadRow
from agent_relay.shared.api_keys import ChangedKey
from agent_relay.shared.batches.accept import StoredBatch
from agent_relay.shared.database.tables import ApiKeyRow, Base, Batch, Message, Run, Thread, WebhookDelivery
from agent_relay.shared.database.typed_rows import WrongColumns, columns, row_factory
from agent_relay.shared.rows import BatchRow, RunEnd, RunRow
from agent_relay.shared.runs.accept import StoredRun
from agent_relay.shared.runs.dead_letters import DeadLetterRow
from agent_relay.shared.webhooks.outbox import DeliveryRow

COMPUTED = {"served", "running", "transaction_id", "requests"}
"""Fields that no table holds: their statements compute them."""
OF_ITS_AGENT = {"pool", "text_output"}
"""Of a stored batch: columns of another table."""

OF_ITS_RUNS = {"last_message_at", "unfinished_runs"}
"""Of a thread: columns of its messages and runs."""

ROWS: list[tuple[type[Any], type[Base], set[str]]] = [
    (RunEnd, Run, set()),
    (RunRow, Run, COMPUTED),
    (StoredRun, Run, COMPUTED),
    (DeadLetterRow, Run, set()),
    (BatchRow, Batch, COMPUTED),
    (StoredBatch, Batch, COMPUTED | OF_ITS_AGENT),
    (ThreadRow, Thread, OF_ITS_RUNS),
    (MessageRow, Message, set()),
    (DeliveryRow, WebhookDelivery, set()),
    (ChangedKey, ApiKeyRow, set()),
]


@pytest.mark.parametrize(("kind", "table", "computed"), ROWS, ids=lambda each: getattr(each, "__name__", ""))
def test_a_class_has_columns_of_its_table_with_their_types(
    kind: type[Any], table: type[Base], computed: set[str]
) -> None:
    held = {column.name: column for column in table.__table__.columns}
    hints = get_type_hints(kind)

    for field in fields(kind):
        if field.name in computed:
            continue
        assert field.name in held, f"{kind.__name__}.{field.name} is no column of {table.__tablename__}"
        hint = hints[field.name]
        if hint == JsonValue:
            assert isinstance(held[field.name].type, JSON)
            continue
        kinds = set(get_args(hint)) if get_origin(hint) in {types.UnionType, Union} else {hint}
        may_be_null = type(None) in kinds
        assert may_be_null == bool(held[field.name].nullable) or kind is DeadLetterRow, field.name
        [only] = kinds - {type(None)}
        if get_origin(only) is None:
            assert only is held[field.name].type.python_type, field.name


def test_the_class_writes_the_select_list() -> None:
    assert columns(_Place, "here", at="now()") == "here.id, now() AS at"
    assert columns(_Place) == "id, at"


@pytest.mark.parametrize("found", [[b"id"], [b"at", b"id"], [b"id", b"when"], [b"id", b"at", b"more"]])
def test_a_result_with_other_columns_is_refused(found: list[bytes]) -> None:
    with pytest.raises(WrongColumns, match=r"_Place is read from \('id', 'at'\)"):
        row_factory(_Place)(_Cursor(found))


def test_a_result_is_read_into_its_class() -> None:
    at, place = datetime(2026, 1, 1), UUID(int=1)  # noqa: DTZ001

    assert row_factory(_Place)(_Cursor([b"id", b"at"]))((place, at)) == _Place(place, at)


@dataclass(frozen=True, slots=True)
class _Place:
    id: UUID
    at: datetime
    note: str = "a field with a default is no column"


class _Cursor:
    """A cursor whose result has these columns."""

    def __init__(self, names: list[bytes]) -> None:
        self.pgresult = self
        self.nfields = len(names)
        self._names = names

    def fname(self, number: int) -> bytes:
        return self._names[number]
