"""What a client of the AI SDK sends: its whole message list, of which the last message says what it wants.

The conversation itself is the thread's. A message before the last one is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from agent_relay.api.attachments import NotAttachable, Placed, from_id, from_url
from agent_relay.api.files import UNNAMED
from agent_relay.api.problems import invalid, pointer_step
from agent_relay.api.protocols.ai_sdk.renderer import Known
from agent_relay.api.schemas import AgentType, GivenAnswer, Options, Request
from agent_relay.shared.database.tables import RequestKind
from agent_relay.shared.media_types import plain
from agent_relay.shared.runs.accept import Strategy
from agent_relay.shared.schemas import Metadata, RunRequest

UrlOfFile = Callable[[UUID], str]
"""Makes the path of a file's content, as messages show it."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
CHAT_ID = r"^[^/\x00-\x1f\x7f]+$"
LONGEST_ID = 255
Part = dict[str, JsonValue]
ClientId = Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]


class SentMessage(BaseModel):
    """A UI message, as the client keeps it. Only `id`, `role` and `parts` of the last one are looked at."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="allow")

    id: ClientId
    """What the client calls it."""
    role: Literal["user", "assistant", "system"]
    """Who speaks."""
    parts: list[Part]
    """Of a user: text and files. Of an assistant: also the calls whose answers the run waits for."""


class ChatRequest(Request):
    """What `DefaultChatTransport` sends, and what `body` adds to it."""

    id: Annotated[str, Field(min_length=1, max_length=LONGEST_ID, pattern=CHAT_ID)]
    """The chat: any text without a slash, or the id of a thread of yours. A thread is begun with its first message."""
    messages: list[SentMessage] = Field(min_length=1)
    """The last message says what is wanted. The others are not looked at: the service has the conversation."""
    trigger: Literal["submit-message", "regenerate-message"]
    """`submit-message`: ask what the last message says, or go on with the answers that it gives. `regenerate-message`:
    ask it again."""
    message_id: ClientId | None = Field(default=None, alias="messageId")
    """With `submit-message`: the message that is edited, or goes on."""
    agent_type: AgentType | None = None
    """The agent that a new chat begins with, see `GET /agents`; it may stand in the query string instead."""
    options: Options | None = None
    """What you choose of the agent's options."""
    metadata: Metadata = Field(default_factory=dict)
    """Metadata of the run; the agent's dependencies may use it."""
    multitask_strategy: Literal[Strategy.ENQUEUE, Strategy.REJECT, Strategy.INTERRUPT, Strategy.ROLLBACK] | None = None
    """When the chat has unfinished runs, see `POST /runs`."""
    on_disconnect: Literal["continue", "cancel"] = "continue"
    """What becomes of the run when the client hangs up, as `stop()` does: it goes on, and can be resumed; or ends."""

    @property
    def last(self) -> SentMessage:
        """The message that says what is wanted."""
        return self.messages[-1]

    @property
    def answering(self) -> int | None:
        """The number of the answer that goes on, with what it answers; None where a query is asked."""
        if self.trigger != "submit-message":
            return None
        for number in reversed(range(len(self.messages))):
            message = self.messages[number]
            is_meant = message.id == self.message_id or message is self.last
            if is_meant and message.role == "assistant":
                return number
        return None

    @property
    def pointer(self) -> str:
        """Where it stands."""
        return f"/messages/{len(self.messages) - 1}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the last message asks."""

    query: str
    files: Sequence[Placed]


def query_in(asked: ChatRequest, url_of_file: UrlOfFile) -> Wanted:
    """Read the query of the last message, which is a user's, and its files.

    Raises:
        Refused: 422, it is no user's, or holds what is not taken.
    """
    if asked.last.role != "user":
        raise invalid(f"{asked.pointer}/role", "wrong_role", "The last message must be a user's")
    texts: list[str] = []
    files: list[Placed] = []
    for number, part in enumerate(asked.last.parts):
        said = part.get("text")
        match part.get("type"):
            case "text" if isinstance(said, str):
                texts.append(said)
            case "file":
                files.append(_file(part, f"{asked.pointer}/parts/{number}", url_of_file))
            case _:
                raise _refused(asked, number, "unknown_part", "Of a user's message, text and files are taken")
    query = "\n".join(texts)
    if not query:
        raise invalid(f"{asked.pointer}/parts", "missing", "A text part that is not empty is needed")
    return Wanted(query, files)


def _file(part: Part, pointer: str, url_of_file: UrlOfFile) -> Placed:
    """Read a part that is a file.

    Raises:
        Refused: 422, it is none, or has what is not taken.
    """
    url, media_type, filename = (part.get(name) for name in ("url", "mediaType", "filename"))
    if not isinstance(url, str) or not isinstance(media_type, str) or not isinstance(filename, str | None):
        raise invalid(pointer, "unsupported_content", "A file has url, mediaType and, where it is known, filename")
    for name in part.keys() - {"type", "url", "mediaType", "filename"}:
        if part[name] is not None:
            raise invalid(f"{pointer}/{pointer_step(name)}", "extra_forbidden", "Not taken with a file")
    stored = _UUID.search(url)
    try:
        if stored is not None and url == url_of_file(UUID(stored[0])):
            return Placed(from_id(UUID(stored[0])), f"{pointer}/url")
        known = None if plain(media_type) == UNNAMED else media_type
        return Placed(from_url(url, known, filename), f"{pointer}/url")
    except NotAttachable as wrong:
        raise invalid(f"{pointer}/url", "unsupported_content", str(wrong)) from None


def _refused(asked: ChatRequest, number: int, code: str, message: str) -> Exception:
    return invalid(f"{asked.pointer}/parts/{number}", code, message)


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers that the last message gives to a run, each with the number of its part."""

    given: Sequence[GivenAnswer]
    parts: Sequence[int]


def answers_in(message: SentMessage, requests: Sequence[RunRequest]) -> Answers:
    """Read the answers to these requests, the open ones if there are any."""
    by_id = {request.request_id: request for request in requests}
    found = [
        (number, answer, by_id[answer.request_id])
        for number, part in enumerate(message.parts)
        if (answer := _answer(part, by_id)) is not None
    ]
    if any(request.answer is None for _, _, request in found):
        found = [each for each in found if each[2].answer is None]
    return Answers([answer for _, answer, _ in found], [number for number, _, _ in found])


def _answer(part: Part, requests: Mapping[str, RunRequest]) -> GivenAnswer | None:
    """Read what a part of a tool answers; None where it answers nothing that is asked."""
    call_id = part.get("toolCallId")
    request = requests.get(call_id) if isinstance(call_id, str) else None
    if request is None:
        return None
    answer: dict[str, Any] = {"request_id": request.request_id}
    approval = part.get("approval")
    match part.get("state"):
        case "approval-responded" if request.kind == RequestKind.APPROVAL and isinstance(approval, dict):
            approved, reason = approval.get("approved") is True, approval.get("reason")
            answer["approve"] = approved
            if not approved and isinstance(reason, str):
                answer["message"] = reason
        case "output-available" if request.kind != RequestKind.APPROVAL:
            answer["result"] = part.get("output")
        case "output-error" if request.kind != RequestKind.APPROVAL:
            answer["error"] = str(part.get("errorText") or "")
        case _:
            return None
    return GivenAnswer(**answer)


def known_in(message: SentMessage, answers: Answers) -> Known:
    """Say which calls a message shows, and which results."""
    calls = frozenset(_calls(message.parts))
    results = frozenset(answer.request_id for answer in answers.given if "approve" not in answer.model_fields_set)
    return Known(calls, results)


def _calls(parts: Sequence[Part]) -> Iterator[str]:
    return (call_id for part in parts if isinstance(call_id := part.get("toolCallId"), str))
