"""Files and images as OpenAI's own client sends them: they are files of this service, and agents get their bytes."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from openai import APIStatusError, BadRequestError, NotFoundError

from tests.acceptance.test_openai import client_of
from tests.support.attachment_agents import shown
from tests.support.client import Client
from tests.support.service import KEYS, Running, Service, serving

SOME = random.Random(16)
PNG = b"\x89PNG\r\n\x1a\n" + SOME.randbytes(3000)
PDF = b"%PDF-1.7\n" + SOME.randbytes(200_000)
MOST = 1 << 20
NAMES = ("sees", "images_only", "passes")
ENVIRONMENT = {
    "AGENTS": ",".join(f"{name}=tests.support.attachment_agents:{name}" for name in NAMES),
    "MAX_FILE_BYTES": str(MOST),
    "MAX_ATTACHMENT_BYTES": str(MOST),
    "WEBHOOK_TRUSTED_HOSTS": "127.0.0.1",
}
SEEN_PNG, SEEN_PDF = shown(PNG, "image/png"), shown(PDF, "application/pdf")
AWAY = "https://127.0.0.1/a.png"
"""An address that is handed on and never fetched."""


@pytest.fixture(scope="module")
def files_service(
    new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service that all tests leave as it is."""
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("openai_files"), ENVIRONMENT) as service:
        service.api()
        service.worker("--processes", "1")
        yield service


@pytest.fixture
def api(files_service: Service) -> Running:
    """The API process."""
    return files_service.processes[0]


@pytest.fixture
def user_id() -> str:
    """A user whom nobody else is."""
    return str(uuid4())


@pytest.fixture
async def ai(api: Running, user_id: str) -> AsyncGenerator[Any]:
    """OpenAI's client."""
    async with client_of(api, user_id) as client:
        yield client


def data_url(content: bytes = PNG, media_type: str = "image/png") -> str:
    """Write a file as a URL."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def user(*content: Any) -> dict[str, Any]:
    """Write a message of a user."""
    return {"role": "user", "content": list(content)}


def text(said: str = "What is it?") -> dict[str, Any]:
    """Write a part of text of a chat completion."""
    return {"type": "text", "text": said}


def image(url: str) -> dict[str, Any]:
    """Write an image of a chat completion."""
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


def file(**given: Any) -> dict[str, Any]:
    """Write a file of a chat completion."""
    return {"type": "file", "file": given}


def asked(said: str = "What is it?") -> dict[str, Any]:
    """Write a part of text of a response."""
    return {"type": "input_text", "text": said}


async def completed(ai: Any, *messages: Any, model: str = "sees") -> Any:
    """Ask for a chat completion; returns what the agent was given."""
    made = await ai.chat.completions.create(model=model, messages=messages)
    return json.loads(made.choices[0].message.content)


async def responded(ai: Any, *content: Any, model: str = "sees", **more: Any) -> tuple[Any, str]:
    """Ask for a response; returns what the agent was given, and its id."""
    made = await ai.responses.create(model=model, input=[user(*content)], **more)
    return json.loads(made.output_text), made.id


async def test_a_file_is_uploaded_listed_read_and_deleted_as_openais_client_does_it(
    ai: Any, api: Running, user_id: str
) -> None:
    made = [
        await ai.files.create(file=("report.pdf", PDF), purpose="user_data"),
        await ai.files.create(file=("a picture.png", PNG), purpose="vision"),
        await ai.files.create(file=("notes.md", b"# Notes", "application/octet-stream"), purpose="assistants"),
    ]
    first = made[0]

    assert (first.object, first.filename, first.bytes) == ("file", "report.pdf", len(PDF))
    assert (first.purpose, first.status) == ("user_data", "processed")
    assert await ai.files.retrieve(first.id) == first
    assert (await ai.files.content(first.id)).content == PDF
    newest = [each.id for each in made[::-1]]
    assert [each.id async for each in ai.files.list()] == newest
    assert [each.id async for each in ai.files.list(limit=1)] == newest
    assert [each.id async for each in ai.files.list(order="asc", limit=2, purpose="user_data")] == newest[::-1]
    async with Client(api.url, user_id=user_id) as client:
        stored = (await client.http.get("/files")).json()["items"]
    assert [f"file-{each['id'].replace('-', '')}" for each in stored] == newest
    assert [each["media_type"] for each in stored] == ["text/markdown", "image/png", "application/pdf"]
    deleted = await ai.files.delete(first.id)
    assert (deleted.id, deleted.deleted) == (first.id, True)
    assert [each.id async for each in ai.files.list()] == newest[:2]


async def test_a_file_of_another_user_is_as_unknown_as_any_other(ai: Any, api: Running) -> None:
    async with client_of(api) as other:
        foreign = (await other.files.create(file=("a.png", PNG), purpose="user_data")).id
    answers: set[str] = set()
    for known in (foreign, f"file-{'0' * 32}", "file-x", "x", foreign.removeprefix("file-")):
        for call in (ai.files.retrieve, ai.files.content, ai.files.delete):
            with pytest.raises(NotFoundError) as missing:
                await call(known)
            answers.add(json.dumps(missing.value.response.json()))
        with pytest.raises(BadRequestError) as unlisted:
            await ai.files.list(after=known)
        answers.add(unlisted.value.message)
        for attached, place in (
            (file(file_id=known), "file.file_id"),
            ({"type": "input_image", "file_id": known}, "file_id"),
        ):
            with pytest.raises(BadRequestError) as unknown:
                await completed(ai, user(text(), attached))
            assert (unknown.value.param, unknown.value.code) == (f"messages[0].content[1].{place}", "unknown_file")
    assert len(answers) == 2


async def test_an_upload_that_cannot_be_kept_is_refused_by_its_name(ai: Any, api: Running) -> None:
    async def refused(status: int, **upload: Any) -> tuple[str | None, str | None]:
        with pytest.raises(APIStatusError) as wrong:
            await ai.files.create(**{"file": ("a.png", PNG), "purpose": "user_data", **upload})
        assert wrong.value.status_code == status
        return wrong.value.param, wrong.value.code

    assert await refused(400, purpose="batch") == ("purpose", "unsupported_value")
    assert await refused(400, purpose="fine-tune") == ("purpose", "unsupported_value")
    expires = {"anchor": "created_at", "seconds": 3600}
    assert await refused(400, expires_after=expires) == ("expires_after[anchor]", "unsupported_parameter")
    assert await refused(400, file=("a.pdf", PNG)) == (None, "wrong_content")
    assert await refused(400, file=("a.png", b"")) == (None, "wrong_content")
    assert await refused(413, file=("a.txt", b" " * (MOST + 1))) == (None, "body_too_large")
    for unknown in (("a.exe", b"MZ"), ("a.html", b"<p>"), b"no name says what this is"):
        assert await refused(415, file=unknown) == (None, "unsupported_media_type")
    headers = {"Authorization": f"Bearer {KEYS['acme']}", "X-User-ID": str(uuid4())}
    upload, purpose = {"file": ("a.png", PNG)}, {"purpose": "user_data"}
    bodies: list[tuple[dict[str, Any], str | None, str]] = [
        ({"files": upload}, "purpose", "missing_required_parameter"),
        ({"files": {"purpose": (None, "user_data")}}, "file", "missing_required_parameter"),
        ({"files": [*upload.items(), *upload.items()], "data": purpose}, "file", "repeated"),
        ({"files": upload, "data": {"purpose": ["vision", "vision"]}}, "purpose", "repeated"),
        ({"files": upload, "data": {"purpose": "x" * 2000}}, "purpose", "too_long"),
        ({"files": upload, "data": {f"field{n}": "" for n in range(11)}}, "field10", "too_long"),
        ({"files": {**upload, "purpose": (None, b"\xff")}}, "purpose", "string_unicode"),
        (
            {"content": b"--x\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            None,
            "malformed_multipart",
        ),
    ]
    async with httpx.AsyncClient(base_url=f"{api.url}/v1", headers=headers, verify=False, timeout=60) as http:
        for body, param, code in bodies:
            error = await http.post("/files", **body)
            assert (error.status_code, error.json()["error"]["param"], error.json()["error"]["code"]) == (
                400,
                param,
                code,
            )
        assert (await http.post("/files", json=purpose)).status_code == 415
        first = await http.post("/files", files=upload, data=purpose, headers={"Idempotency-Key": "once"})
        again = await http.post("/files", files=upload, data=purpose, headers={"Idempotency-Key": "once"})
        other = await http.post(
            "/files", files={"file": ("b.png", PNG)}, data=purpose, headers={"Idempotency-Key": "once"}
        )
        listed = (await http.get("/files")).json()["data"]
    assert first.json() == again.json()
    assert first.headers["Content-Type"] == "application/json"
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    assert [each["id"] for each in listed] == [first.json()["id"]]


async def test_a_completion_is_given_the_bytes_of_each_kind_of_part(ai: Any) -> None:
    stored = (await ai.files.create(file=("report.pdf", PDF), purpose="user_data")).id
    bare = base64.b64encode(PNG).decode()

    given = await completed(
        ai,
        user(
            text(),
            image(data_url()),
            file(file_id=stored),
            file(file_data=data_url(b"a,b", "text/csv"), filename="t.csv"),
            file(file_data=bare, filename="bare.PNG"),
        ),
    )

    assert given == ["What is it?", SEEN_PNG, SEEN_PDF, shown(b"a,b", "text/csv"), SEEN_PNG]
    assert await completed(ai, user(text(), image(AWAY)), model="passes") == ["What is it?", {"url": AWAY}]


async def test_files_of_earlier_messages_stay_with_a_conversation_that_its_caller_holds(ai: Any) -> None:
    given = await completed(
        ai,
        user(text("Look."), image(data_url())),
        {"role": "assistant", "content": "I see."},
        user(text("Again."), image(data_url()), file(file_data=data_url(PDF, "application/pdf"))),
    )

    assert given == ["Look.", "Again.", SEEN_PNG, SEEN_PDF]


async def test_a_response_is_given_the_bytes_and_shows_what_it_was_asked_with(ai: Any) -> None:
    stored = (await ai.files.create(file=("a.png", PNG), purpose="vision")).id
    conversation = (await ai.conversations.create()).id

    given, made = await responded(
        ai,
        asked(),
        {"type": "input_image", "image_url": data_url(), "detail": "auto"},
        {"type": "input_image", "file_id": stored, "detail": "auto"},
        {"type": "input_file", "file_data": data_url(PDF, "application/pdf"), "filename": "report.pdf"},
        {"type": "input_file", "file_id": stored},
        conversation=conversation,
    )
    handed_on, _ = await responded(
        ai,
        asked(),
        {"type": "input_file", "file_url": AWAY},
        {"type": "input_image", "image_url": AWAY},
        model="passes",
    )
    later, _ = await responded(ai, asked("And now?"), previous_response_id=made)
    items = [each async for each in ai.responses.input_items.list(made)]
    said = [each async for each in ai.conversations.items.list(conversation, order="asc")]

    assert given == ["What is it?", SEEN_PNG, SEEN_PNG, SEEN_PDF]
    assert handed_on == ["What is it?", {"url": AWAY}]
    assert [each for each in later if isinstance(each, dict)] == [SEEN_PNG, SEEN_PNG, SEEN_PDF]
    for message in (items[0], said[0]):
        assert [each.type for each in message.content] == ["input_text", "input_image", "input_image", "input_file"]
        assert message.content[2].file_id == stored
        assert message.content[3].filename == "report.pdf"
        assert (await ai.files.content(message.content[3].file_id)).content == PDF


NOT_TAKEN: list[tuple[dict[str, Any], str, str]] = [
    (image(data_url(PDF)), "image_url.url", "wrong_content"),
    (image("data:image/png;base64,AAAAA"), "image_url.url", "base64"),
    (image("data:image/png;base64,%%%%"), "image_url.url", "base64"),
    (image(data_url(b"<svg/>", "image/svg+xml")), "image_url.url", "type_not_taken"),
    (image("http://127.0.0.2/a.png"), "image_url.url", "https_required"),
    (image("https://10.0.0.1/a.png"), "image_url.url", "address_not_public"),
    (file(file_data=data_url(PDF, "application/pdf")), "file.file_data", "type_not_taken"),
]


async def test_what_cannot_be_attached_is_refused_where_it_stands(ai: Any) -> None:
    for part, place, code in NOT_TAKEN:
        model = "images_only" if code == "type_not_taken" else "sees"
        for earlier in ([], [user(text("Before."))]):
            with pytest.raises(BadRequestError) as refused:
                await completed(ai, *earlier, user(text(), image(AWAY), part), model=model)
            assert (refused.value.param, refused.value.code) == (f"messages[{len(earlier)}].content[2].{place}", code)


NOT_CARRIED: list[dict[str, Any]] = [
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    {"type": "image_url", "image_url": {"url": AWAY, "detail": "high"}},
    {"type": "image_url", "image_url": AWAY},
    {"type": "image_url", "image_url": {"url": AWAY}, "extra": 1},
    {"type": "image_url", "image_url": {"url": "data:image/png,AAAA"}},
    {"type": "image_url", "image_url": {"url": "data:;base64,AAAA"}},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}},
    {"type": "image_url", "image_url": {"url": f"https://127.0.0.1/{'a' * 5000}"}},
    {"type": "file", "file": {}},
    {"type": "file", "file": {"file_id": "file-x", "file_data": "AAAA"}},
    {"type": "file", "file": {"file_id": "file-x", "filename": "a.png"}},
    {"type": "file", "file": {"file_data": "AAAA"}},
    {"type": "file", "file": {"file_data": "AAAA", "filename": "a.exe"}},
    {"type": "file", "file": {"file_data": ["AAAA"]}},
    {"type": "input_file", "file_url": AWAY, "filename": "a.png"},
    {"type": "input_image"},
    {"type": ["text"]},
    {"image_url": AWAY},
]


async def test_a_part_that_is_not_carried_is_refused_by_its_number(ai: Any) -> None:
    for part in NOT_CARRIED:
        for call, param in (
            (ai.chat.completions.create(model="sees", messages=[user(text(), part)]), "messages[0].content"),
            (ai.responses.create(model="sees", input=[user(asked(), part)]), "input[0].content"),
        ):
            with pytest.raises(BadRequestError) as refused:
                await call
            assert (refused.value.param, refused.value.code) == (param, "unsupported_content")
            assert "Part 1: " in refused.value.message


async def test_files_are_a_users_and_need_a_question_and_are_not_too_many(ai: Any) -> None:
    picture = image(data_url())
    large = file(file_data=data_url(b" " * 700_000, "text/plain"))
    stored = [(await ai.files.create(file=(f"{n}.txt", b" " * 700_000), purpose="user_data")).id for n in range(2)]
    for messages, param, code in (
        ([{"role": "system", "content": [picture]}, user(text())], "messages[0]", "unsupported_content"),
        ([user(picture)], "messages[0].content", "missing_required_parameter"),
        ([user(text(), *(image(f"{AWAY}?{n}") for n in range(21)))], "messages", "too_long"),
        ([user(text(), *(file(file_id=each) for each in stored))], "messages", "attachments_too_large"),
    ):
        with pytest.raises(BadRequestError) as refused:
            await completed(ai, *messages)
        assert (refused.value.param, refused.value.code) == (param, code)
    with pytest.raises(APIStatusError) as too_large:
        await completed(ai, user(text(), large, large))
    assert too_large.value.status_code == 413
