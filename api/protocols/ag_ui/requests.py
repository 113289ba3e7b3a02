"""What clients of AG-UI send: a query, or answers to what a run waits for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from ag_ui.core import Message, PartSource, ResumeEntry, RunAgentInput, TextPart, ToolMessage
from pydantic import ConfigDict, Field
from pydantic_core import from_json

from agent_relay.api.attachments import NotAttachable, Placed, from_data, from_id, from_url
from agent_relay.api.problems import Refused, invalid
from agent_relay.api.protocols.ag_ui.message_ids import told_by
from agent_relay.api.schemas import GivenAnswer
from agent_relay.shared.database.tables import RequestKind
from agent_relay.shared.runs.said import Said
from agent_relay.shared.schemas import Metadata, RunRequest

LONGEST_ID = 255
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
ABANDONED = "The user has left this unanswered."


class NewRun(RunAgentInput):
    """A run as a client of AG-UI asks for it. A field that is not known is refused."""

    model_config = ConfigDict(extra="forbid")

    thread_id: str = Field(min_length=1, max_length=LONGEST_ID)
    run_id: str = Field(min_length=1, max_length=LONGEST_ID)

    @property
    def last_place(self) -> int:
        """The place of the last message that the client has made; -1 without one.

        What follows is of a stream that broke off, where the client asks for the same again.
        """
        places = range(len(self.messages))
        return next((place for place in reversed(places) if told_by(self.messages[place].id) is None), -1)

    @property
    def returned(self) -> dict[int, ToolMessage]:
        """The results of tools that the client has called, by their places: the last messages, if they are results."""
        found: dict[int, ToolMessage] = {}
        for place in reversed(range(self.last_place + 1)):
            message = self.messages[place]
            if message.role != "tool":
                break
            found[place] = message
        return found

    @property
    def answers(self) -> bool:
        """Whether it answers what a run waits for, instead of asking something."""
        return bool(self.resume) or bool(self.returned)


def check_carried(asked: NewRun, *, text_output: bool) -> None:
    """See that nothing is asked for that an agent of this service cannot follow.

    Raises:
        Refused: 422, something is.
    """
    if asked.tools:
        names = ", ".join(tool.name for tool in asked.tools[:5])
        message = f"An agent has its own tools: leave these out ({names})"
        raise invalid("/tools", "unsupported_value", message)
    if text_output and asked.state not in (None, {}):
        raise invalid("/state", "unsupported_value", "This agent answers with text and has no state: leave it out")


def metadata_in(asked: NewRun) -> Metadata:
    """Read the metadata of the run.

    Raises:
        Refused: 422, the values are no object.
    """
    values = asked.forwarded_props
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise invalid("/forwardedProps", "dict_type", "They become the run's metadata: give an object")
    return cast("Metadata", values)


def wrong_role(place: int) -> Refused:
    """Refuse messages that ask nothing."""
    message = "The last message must be a user's, or the result of a tool that waits"
    return invalid(f"/messages/{place}/role", "wrong_role", message)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the last message asks."""

    query: str
    files: Sequence[Placed]
    pointer: str
    """Where its content stands."""


OWN = "agent-relay"
"""The provider of the files of this service, as a client may say it."""


def query_in(asked: NewRun) -> Asked:
    """Read the query of the last message, which is a user's, and its files.

    Raises:
        Refused: 422, it is no user's, or holds what is not taken.
    """
    place = asked.last_place
    pointer = f"/messages/{max(place, 0)}"
    last = asked.messages[place] if place >= 0 else None
    if last is None or last.role != "user":
        raise wrong_role(max(place, 0))
    pointer += "/content"
    texts: list[str] = []
    files: list[Placed] = []
    for number, part in enumerate([TextPart(text=last.content)] if isinstance(last.content, str) else last.content):
        if part.type == "text":
            texts.append(part.text)
        else:
            files.append(_file(part.source, f"{pointer}/{number}/source"))
    query = "\n".join(texts)
    if not query:
        raise invalid(pointer, "missing", "The last message asks nothing: it needs a text")
    return Asked(query, files, pointer)


def _file(source: PartSource, pointer: str) -> Placed:
    """Read where the bytes of a part are.

    Raises:
        Refused: 422, they are nowhere that is taken.
    """
    value = f"{pointer}/value"
    try:
        match source.type:
            case "data":
                return Placed(from_data(source.value, source.mime_type), value)
            case "url":
                return Placed(from_url(source.value, source.mime_type), value)
            case "file":
                if source.provider not in (None, OWN):
                    message = "Only files of this service can be read: give the id that POST /files gave"
                    raise invalid(f"{pointer}/provider", "unsupported_value", message)
                return Placed(from_id(UUID(source.value) if _UUID.fullmatch(source.value) else None), value)
    except NotAttachable as wrong:
        raise invalid(value, "unsupported_content", str(wrong)) from None


def instructions_in(asked: NewRun, most_bytes: int) -> list[Said]:
    """Read what the agent is told for this run beside the query: messages of the application, and the context.

    Raises:
        Refused: 422, it is too large.
    """
    said = [_content_of(message) for message in asked.messages if message.role in {"system", "developer"}]
    said += [f"{context.description}: {context.value}" for context in asked.context or ()]
    size = sum(len(each.encode()) for each in said)
    if size > most_bytes:
        message = f"With the messages of system and developer it has {size} bytes; at most {most_bytes}"
        raise invalid("/context", "too_large", message)
    return [{"role": "instructions", "content": each} for each in said if each]


def _content_of(message: Message) -> str:
    content = getattr(message, "content", None)
    return content if isinstance(content, str) else ""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to what a run waits for, each with the JSON Pointer of where it stands."""

    given: Sequence[GivenAnswer]
    pointers: Sequence[str]


def asked_for(asked: NewRun) -> list[str]:
    """List the requests that may be answered."""
    return [
        *(entry.interrupt_id for entry in asked.resume or ()),
        *(message.tool_call_id for message in asked.returned.values()),
    ]


def answers_in(asked: NewRun, requests: Sequence[RunRequest]) -> Answers:
    """Read the answers to these requests. All that are open must be answered together.

    Raises:
        Refused: 422, something else is answered, something is left open, or an answer is none.
    """
    by_id = {request.request_id: request for request in requests}
    found: dict[str, tuple[GivenAnswer, str]] = {}
    for place, message in asked.returned.items():
        request = by_id.get(message.tool_call_id)
        if request is not None and request.kind != RequestKind.APPROVAL:  # Others are results that the agent knows.
            found[request.request_id] = _result(message, place), f"/messages/{place}/content"
    for number, entry in enumerate(asked.resume or ()):
        request = by_id.get(entry.interrupt_id)
        if request is None:
            raise invalid(f"/resume/{number}/interruptId", "unknown_request", "The run never asked for that")
        found[request.request_id] = _resumed(entry, request, number), f"/resume/{number}/payload"
    left = [request.request_id for request in requests if request.answer is None and request.request_id not in found]
    if left:
        raise invalid(
            "/resume", "left_open", f"All that the run waits for is to be answered together: {left[0]} is not"
        )
    return Answers([answer for answer, _ in found.values()], [pointer for _, pointer in found.values()])


def _resumed(entry: ResumeEntry, request: RunRequest, number: int) -> GivenAnswer:
    """Read the answer to an interrupt."""
    request_id = request.request_id
    is_cancelled = entry.status == "cancelled"
    if request.kind != RequestKind.APPROVAL:
        if is_cancelled:
            return GivenAnswer(request_id=request_id, error=ABANDONED)
        return GivenAnswer(request_id=request_id, result=entry.payload)
    if is_cancelled:
        return GivenAnswer(request_id=request_id, approve=False, message=ABANDONED)
    return GivenAnswer(request_id=request_id, **_approval(entry.payload, f"/resume/{number}/payload"))


def _approval(payload: Any, pointer: str) -> dict[str, Any]:
    """Read the payload of an approval.

    Raises:
        Refused: 422, it is none.
    """
    given = cast("dict[str, Any]", payload) if isinstance(payload, dict) else {}
    if type(given.get("approved")) is not bool:
        raise invalid(f"{pointer}/approved", "missing", "Give {approved: true} or {approved: false}")
    approved = given["approved"]
    goes_with = {"editedArgs": ("args", dict)} if approved else {"reason": ("message", str)}
    answer: dict[str, Any] = {"approve": approved}
    for name, value in given.items():
        if name == "approved" or value is None:
            continue
        known = goes_with.get(name)
        if known is None or not isinstance(value, known[1]):
            raise invalid(f"{pointer}/{name}", "extra_forbidden", f"Not taken with approved: {str(approved).lower()}")
        answer[known[0]] = value
    return answer


def _result(message: ToolMessage, place: int) -> GivenAnswer:
    """Read what a tool of the client's has returned: JSON where it is, else text."""
    if message.error is not None:
        return GivenAnswer(request_id=message.tool_call_id, error=message.error)
    if not isinstance(message.content, str):
        raise invalid(f"/messages/{place}/content", "unsupported_content", "The result of a tool is text, or JSON text")
    try:
        value = from_json(message.content, allow_inf_nan=False)
    except ValueError:
        value = message.content
    return GivenAnswer(request_id=message.tool_call_id, result=value)


def of_their_places(refused: Refused, answers: Answers) -> Refused:
    """Say of what was sent what was said of the answers in it."""
    for error in refused.errors:
        _, _, number, *rest = error.pointer.split("/")
        named = {"args": "editedArgs", "message": "reason"}
        steps = [named.get(rest[0], ""), *rest[1:]] if rest else []
        error.pointer = "/".join([answers.pointers[int(number)], *filter(None, steps)])
    return refused
