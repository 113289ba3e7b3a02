"""Take a batch in while it arrives: cut, check and spool its items a moment at a time, so that other tasks can run.

All of an upload is on the disk or checked when its last byte has come, and until then it holds no connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from agent_relay.api.attachments import read_attachments
from agent_relay.api.batches.schemas import BatchHead, NewItem
from agent_relay.api.batches.splitter import Limits, Lines, Members
from agent_relay.api.problems import MOST_ERRORS, FieldError, Refused, field_errors, unavailable
from agent_relay.api.requests.identity import Owner
from agent_relay.api.requests.validation import chunks_of, may_be_unstorable, read_json, unstorable
from agent_relay.shared.batches.spool import DiskRoom, Spool
from agent_relay.shared.settings import Settings

Valid = TypeVar("Valid", bound=BaseModel)

_REPEATED = FieldError(pointer="/custom_id", code="repeated", message="Another item has this custom_id")

SLICE_SECONDS = 0.001
"""So long a slice keeps the event loop, and then the item that it is at."""
CHUNK_BYTES = 64 << 10
LONG_BYTES = 16 << 10
"""In an item that is longer, each value is looked at without a look for escapes first."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The result of an upload, besides the items."""

    head: BatchHead
    digest: bytes
    """SHA-256 of the query string and the body as it came."""


class BatchUpload:
    """Where the batches of this process arrive; several at once take turns, slice by slice."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turn = asyncio.Lock()
        self.room = DiskRoom(settings.max_upload_bytes)
        self.storing = asyncio.Lock()
        """Held by the one batch that is being stored: many at once would take all connections for seconds."""

    async def take(self, request: Request, caller: Owner, parameters: Mapping[str, Any] | None, items: Spool) -> Taken:
        """Read the body into the manifest. With query parameters for the other fields, it is NDJSON.

        Raises:
            Refused: 422 with the errors, 400 if it is not JSON, 413 over the limit, 503 without room on the disk.
        """
        limits = Limits(self._settings.max_body_bytes)
        cutter = Members(limits) if parameters is None else Lines(limits)
        check = _Check(items, self._settings, caller, lines=parameters is not None)
        digest = hashlib.sha256(request.url.query.encode() + b"\n")
        try:
            mark = BOM_UTF8
            async for chunk in gathered(chunks_of(request, self._settings.max_batch_body_bytes)):
                digest.update(chunk)
                await self._look_at(cutter.feed(chunk.removeprefix(mark)), check, items)
                mark = b""
            await self._look_at(cutter.end(), check, items)
        except OSError as full:
            raise unavailable("There is no room for the batch.") from full
        return Taken(check.head(cutter.head if parameters is None else _read(parameters)), digest.digest())

    async def _look_at(self, cut: Iterator[bytes | None], check: _Check, items: Spool) -> None:
        """Check items for a moment; let all other tasks run first, and go on."""
        steps = _steps(cut, check)
        going_on = True
        while going_on:
            async with self._turn:
                going_on = _slice(steps)
                await asyncio.sleep(0)
            await items.spool()


async def gathered(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Join chunks that are small and cut those that are large: one of this size is looked at in a moment."""
    some = bytearray()
    async for chunk in chunks:
        some += chunk
        while len(some) >= CHUNK_BYTES:
            yield bytes(some[:CHUNK_BYTES])
            del some[:CHUNK_BYTES]
    yield bytes(some)


def _steps(cut: Iterator[bytes | None], check: _Check) -> Iterator[None]:
    for item in cut:
        if item is None:
            yield
        else:
            yield from check.take(item)


def _read(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Take parameters for members; of metadata and options, the JSON that they are given as."""
    given = {name: value for name, value in parameters.items() if value is not None}
    for name in ("metadata", "options"):
        if name in given:
            given[name] = read_json(given[name].encode(), f"parameter {name}")
    return given


def _slice(steps: Iterator[None]) -> bool:
    """Go on for a moment; False where there are no more steps."""
    end = time.perf_counter() + SLICE_SECONDS
    return any(time.perf_counter() > end for _ in steps)


def _validated(kind: type[Valid], value: Any) -> tuple[Valid | None, list[FieldError]]:
    """Convert a value to its type, or return its errors."""
    try:
        return kind.model_validate(value), []
    except ValidationError as invalid:
        found = invalid.errors(include_url=False, include_context=False, include_input=False)
        return None, field_errors([{**error, "loc": ("body", *error["loc"])} for error in found])


class _Check:
    """Valid items go to the manifest, and the first hundred errors are kept here."""

    def __init__(self, items: Spool, settings: Settings, caller: Owner, *, lines: bool) -> None:
        self._items = items
        self._settings = settings
        self._caller = caller
        self._most_items = settings.most_items_of_a_batch
        self._lines = lines
        self._errors: list[FieldError] = []
        self._count = 0
        self._custom_ids: set[str] = set()

    def take(self, raw: bytes) -> Iterator[None]:
        """Check an item, in steps."""
        index, self._count = self._count, self._count + 1
        if index >= self._most_items:
            self._wrong([FieldError(pointer="/items", code="too_long", message=f"At most {self._most_items} items")])
            self._refuse()
        item, errors = yield from self._item(raw, index)
        if item is not None and item.custom_id in self._custom_ids:
            item, errors = None, [_REPEATED]
        if item is None:
            self._wrong([error.model_copy(update={"pointer": f"/items/{index}{error.pointer}"}) for error in errors])
            return
        yield
        attachments, errors = read_attachments(self._settings, self._caller, item.attachments, self._items.set_down)
        if errors:
            self._wrong([error.model_copy(update={"pointer": f"/items/{index}{error.pointer}"}) for error in errors])
            return
        self._custom_ids.add(item.custom_id)
        yield from self._items.add_in_steps(item.custom_id, item.query, item.metadata, attachments)

    def _item(self, raw: bytes, index: int) -> Generator[None, None, tuple[NewItem | None, list[FieldError]]]:
        """Read an item. A line that is not JSON is a bad item; in any other body the rest could not be read."""
        try:
            yield
            value = read_json(raw, f"item {index}")
            yield
            item, errors = _validated(NewItem, value)
            if item is None or item.metadata or len(raw) > LONG_BYTES or may_be_unstorable(raw):
                yield
                if unfit := unstorable(value):
                    return None, unfit
        except Refused as malformed:
            if not self._lines:
                raise
            return None, [FieldError(pointer="", code=malformed.code, message=malformed.detail.rstrip("."))]
        return item, errors

    def head(self, given: Mapping[str, Any]) -> BatchHead:
        """Check the fields beside the items, once all items have come.

        Raises:
            Refused: 422, one of the fields or items is wrong.
        """
        stated = dict(given)
        items = stated.pop("items", [] if self._lines else None)
        if items is None:
            self._wrong([FieldError(pointer="/items", code="missing", message="Field required")])
        elif items != []:
            self._wrong([FieldError(pointer="/items", code="list_type", message="Input should be a valid list")])
        elif not self._count:
            self._wrong([FieldError(pointer="/items", code="too_short", message="At least one item is needed")])
        head, errors = _validated(BatchHead, stated)
        errors = unstorable(stated) or errors
        self._wrong([self._about_head(error) for error in errors])
        if head is None or self._errors:
            self._refuse()
        return head

    def _about_head(self, error: FieldError) -> FieldError:
        return error.model_copy(update={"pointer": f"?{error.pointer[1:]}"}) if self._lines else error

    def _wrong(self, errors: Sequence[FieldError]) -> None:
        self._errors += errors
        if len(self._errors) >= MOST_ERRORS:
            self._refuse()

    def _refuse(self) -> NoReturn:
        raise Refused(422, "The request is not valid.", errors=self._errors)
