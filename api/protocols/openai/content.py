"""What a message says: text, and of a user's also files. All other parts are refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast
from uuid import UUID

from pydantic import BeforeValidator, PlainValidator
from pydantic_core import PydanticCustomError

from agent_relay.api.attachments import NotAttachable, Placed, from_data, from_id, from_url
from agent_relay.api.protocols.openai.ids import file_id, file_of
from agent_relay.api.schemas import Attachment
from agent_relay.shared.attachments import Attached
from agent_relay.shared.errors import NotFound

_TEXTS = ("text", "input_text", "output_text")
_HINTS = {"detail": "auto"}
"""What a file's part may say besides, with the value that changes nothing."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a message says."""

    text: str
    """The texts of its parts, joined by line breaks."""
    files: tuple[Placed, ...] = ()
    """Each with its place in the content."""

    def files_at(self, pointer: str) -> list[Placed]:
        """Return the files of a content that stands there."""
        return [Placed(each.attachment, pointer + each.pointer) for each in self.files]


def all_files(contents: Sequence[tuple[str, Content | None]]) -> list[Placed]:
    """List the files of the messages of a conversation, each once, with where their contents stand.

    They all belong to the query: what a run keeps of the messages before it is text.
    """
    found: dict[str, Placed] = {}
    for pointer, content in contents:
        for placed in content.files_at(pointer) if content is not None else ():
            found.setdefault(repr(placed.attachment), placed)
    return list(found.values())


def _content_of(value: object) -> Content | None:
    """Read a content.

    Raises:
        PydanticCustomError: a part is not taken.
    """
    if value is None or isinstance(value, str):
        return None if value is None else Content(value)
    if not isinstance(value, list):
        raise PydanticCustomError("content_type", "Content is a text, or a list of parts")
    texts: list[str] = []
    files: list[Placed] = []
    for number, part in enumerate(cast("list[object]", value)):
        named = cast("dict[str, Any]", part) if isinstance(part, dict) else {}
        if named.get("type") in _TEXTS:
            texts.append(_text_of_part(named, number))
        else:
            files.append(_file_of_part(named, number))
    return Content("\n".join(texts), tuple(files))


def _text_of_part(part: Mapping[str, Any], number: int) -> str:
    if not isinstance(part.get("text"), str):
        raise _refused(number, "a part of text has a text")
    if any(part[name] for name in part.keys() - {"type", "text"}):
        raise _refused(number, "a part of text has a type and a text, and nothing else")
    return part["text"]


def _file_of_part(part: Mapping[str, Any], number: int) -> Placed:
    """Read a part that is a file.

    Raises:
        PydanticCustomError: it is none, or has what is not taken.
    """
    said = {name: value for name, value in _given(part).items() if name != "type"}
    steps: tuple[str, ...] = ()
    match part.get("type"):
        case "input_image":
            names = {"image_url", "file_id"}
        case "input_file":
            names = {"file_id", "file_data", "file_url", "filename"}
        case "image_url" if isinstance(said.get("image_url"), dict) and len(said) == 1:
            said, steps = _given(said["image_url"]), ("image_url",)
            names = {"url"}
        case "file" if isinstance(said.get("file"), dict) and len(said) == 1:
            said, steps = _given(said["file"]), ("file",)
            names = {"file_id", "file_data", "filename"}
        case _:
            raise _refused(number, "only text, images and files are taken")
    return _placed(said, names, number, steps)


def _placed(said: Mapping[str, Any], names: set[str], number: int, steps: tuple[str, ...]) -> Placed:
    for name, value in said.items():
        if name in _HINTS:
            if value != _HINTS[name]:
                raise _refused(number, f"{name} is {_HINTS[name]}: leave it out")
        elif name not in names or not isinstance(value, str):
            raise _refused(number, f"such a part has {' or '.join(sorted(names))}, each a text")
    given = [name for name in said if name not in {*_HINTS, "filename"}]
    if len(given) != 1:
        raise _refused(number, f"give exactly one of {', '.join(sorted(names - {'filename'}))}")
    source = given[0]
    if "filename" in said and source != "file_data":
        raise _refused(number, "filename is for file_data: leave it out")
    try:
        attachment = _attachment(source, said[source], said.get("filename"))
    except NotAttachable as wrong:
        raise _refused(number, str(wrong)) from None
    return Placed(attachment, "".join(f"/{step}" for step in (number, *steps, source)))


def _given(part: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if value is not None}


def _attachment(source: str, value: str, filename: str | None) -> Attachment:
    if source == "file_id":
        try:
            return from_id(file_of(value))
        except NotFound:
            return from_id(None)
    if source == "file_data" and value[:5].lower() != "data:":
        return from_data(value, None, filename)
    return from_url(value, None, filename)


def _refused(number: int, why: str) -> PydanticCustomError:
    return PydanticCustomError("unsupported_content", "Part {number}: {why}", {"number": number, "why": why})


def _only_text(value: object) -> object:
    """Read a content that is text only.

    Raises:
        PydanticCustomError: it is not.
    """
    content = _content_of(value)
    if content is not None and content.files:
        raise PydanticCustomError("unsupported_content", "Only text is taken here")
    return None if content is None else content.text


Text = Annotated[str | None, BeforeValidator(_only_text)]
"""What a tool has returned: a text, or parts with text."""
TextAndFiles = Annotated[Content | None, PlainValidator(_content_of)]
"""What a message says: a text, or parts with text and files."""


def check_files(role: str | None, content: Content | None) -> None:
    """See that files are a user's.

    Raises:
        PydanticCustomError: they are not.
    """
    if role != "user" and content is not None and content.files:
        raise PydanticCustomError("unsupported_content", "Only a message of the user's has images and files")


def parts_of(attached: Sequence[Attached]) -> list[dict[str, Any]]:
    """Show what was attached to a query as parts of a content."""
    return [_part_of(each) for each in attached]


def _part_of(attached: Attached) -> dict[str, Any]:
    stored, url, media_type = attached.get("file_id"), attached.get("url"), attached.get("media_type")
    name = None if stored is None else file_id(UUID(str(stored)))
    if media_type is not None and media_type.startswith("image/"):
        return {"type": "input_image", "detail": "auto", "file_id": name, "image_url": url}
    named = {"file_id": name, "file_url": url, "filename": attached.get("filename")}
    return {"type": "input_file", **{field: value for field, value in named.items() if value is not None}}
