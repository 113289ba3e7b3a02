"""Files are taken in while they come, kept once, handed out to their owner only, and gone when nothing needs them."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from uuid import uuid4

import httpx
import psycopg
import pytest

from tests.support.client import Client
from tests.support.eventually import soon
from tests.support.problems import CANARY, SAME_FOR_ALL, errors_of, problem_of
from tests.support.service import KEYS, Service, serving

MEGABYTE = 1 << 20
MOST = 4 * MEGABYTE
OF_A_USER, OF_A_TENANT = 3 * MOST, 6 * MOST
ROOM = random.Random(27)
PDF = b"%PDF-1.7\n" + ROOM.randbytes(3 * MEGABYTE)
PNG = b"\x89PNG\r\n\x1a\n" + ROOM.randbytes(2000)
SHOWN = {"id", "filename", "media_type", "bytes", "sha256", "created_at"}


@pytest.fixture(scope="module")
def service(
    new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service that all tests leave as it is; no worker is needed."""
    environment = {
        "MAX_FILE_BYTES": str(MOST),
        "MAX_FILE_BYTES_PER_USER": str(OF_A_USER),
        "MAX_FILE_BYTES_PER_TENANT": str(OF_A_TENANT),
    }
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("service"), environment) as service:
        service.api()
        yield service


@pytest.fixture
async def user(service: Service) -> AsyncGenerator[Client]:
    """A user who stores nothing yet, of a tenant that stores nothing else."""
    with psycopg.connect(service.database_url) as connection:
        connection.execute("DELETE FROM files")
    async with Client(service.processes[0].url) as client:
        yield client


def rows(service: Service, statement: str, *values: object) -> list[tuple[object, ...]]:
    """Look into the database."""
    with psycopg.connect(service.database_url) as connection:
        return connection.execute(statement, values).fetchall()  # pyright: ignore[reportArgumentType]


def stored(service: Service) -> tuple[object, ...]:
    """Count files, contents and pieces."""
    return rows(
        service,
        "SELECT (SELECT count(*) FROM files), (SELECT count(*) FROM file_contents), (SELECT count(*) FROM file_chunks)",
    )[0]


async def upload(
    user: Client, content: bytes | AsyncIterator[bytes], media_type: str = "application/pdf", **headers: str
) -> httpx.Response:
    """Upload a file as it is."""
    return await user.http.post("/files", content=content, headers={"Content-Type": media_type, **headers})


async def upload_form(
    user: Client, content: bytes, name: str = "report.pdf", media_type: str = "application/pdf"
) -> httpx.Response:
    """Upload a file as a browser's form does."""
    return await user.http.post("/files", files={"file": (name, content, media_type)})


async def in_pieces(content: bytes) -> AsyncIterator[bytes]:
    """Send without a length."""
    for start in range(0, len(content), 100_000):
        yield content[start : start + 100_000]


async def test_a_file_comes_back_as_it_was_sent(user: Client) -> None:
    named = {"Content-Disposition": "attachment; filename=\"x.pdf\"; filename*=UTF-8''r%C3%A9sum%C3%A9.pdf"}
    raw = await upload(user, in_pieces(PDF), **named)
    form = await upload_form(user, PDF)

    for response, name in ((raw, "résumé.pdf"), (form, "report.pdf")):
        assert response.status_code == 201, response.text
        file = response.json()
        assert file.keys() == SHOWN
        assert (file["filename"], file["media_type"], file["bytes"]) == (name, "application/pdf", len(PDF))
        assert file["sha256"] == hashlib.sha256(PDF).hexdigest()
        assert response.headers["Location"] == f"/api/v1/files/{file['id']}"
        assert (await user.http.get(f"/files/{file['id']}")).json() == file
        content = await user.http.get(f"/files/{file['id']}/content")
        assert content.content == PDF
        assert content.headers["Content-Type"] == "application/pdf"
        assert content.headers["Content-Length"] == str(len(PDF))
        assert content.headers["Content-Disposition"].startswith("attachment")
        assert content.headers["X-Content-Type-Options"] == "nosniff"
        assert content.headers["ETag"] == f'"{file["sha256"]}"'
    assert (
        "filename*=UTF-8''r%C3%A9sum%C3%A9.pdf"
        in (await user.http.get(f"/files/{raw.json()['id']}/content")).headers["Content-Disposition"]
    )
    listed = (await user.http.get("/files")).json()
    assert [file["id"] for file in listed["items"]] == [form.json()["id"], raw.json()["id"]]
    page = (await user.http.get("/files", params={"limit": 1})).json()
    rest = (await user.http.get("/files", params={"limit": 1, "cursor": page["next_cursor"]})).json()
    assert page["items"] + rest["items"] == listed["items"]


async def test_the_same_bytes_are_kept_once_and_go_with_the_last_file(user: Client, service: Service) -> None:
    files = [(await upload(user, PDF)).json()["id"] for _ in range(2)]
    async with Client(service.processes[0].url) as neighbour:
        files.append((await upload(neighbour, PDF)).json()["id"])
        async with Client(service.processes[0].url, "other") as stranger:
            assert (await upload(stranger, PDF)).status_code == 201
        pieces = -(-len(PDF) // (256 << 10))

        assert stored(service) == (4, 2, 2 * pieces), "a tenant does not share with another one"
        for file_id in files[:2]:
            assert (await user.http.delete(f"/files/{file_id}")).status_code == 204
            assert (await user.http.get(f"/files/{file_id}")).status_code == 404
        assert stored(service) == (2, 2, 2 * pieces)
        assert (await neighbour.http.get(f"/files/{files[2]}/content")).content == PDF
        assert (await neighbour.http.delete(f"/files/{files[2]}")).status_code == 204
        assert stored(service) == (1, 1, pieces)


async def test_what_belongs_to_somebody_else_does_not_exist(user: Client, service: Service) -> None:
    file_id = (await upload(user, PNG, "image/png")).json()["id"]
    for tenant in KEYS:
        async with Client(service.processes[0].url, tenant) as stranger:
            assert (await stranger.http.get("/files")).json()["items"] == []
            for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
                answers = [
                    problem_of(await stranger.http.request(method, f"/files/{each}{path}"), 404)
                    for each in (file_id, uuid4())
                ]
                assert len({str({name: answer[name] for name in SAME_FOR_ALL}) for answer in answers}) == 1
    assert (await user.http.get(f"/files/{file_id}/content")).content == PNG


@pytest.mark.parametrize("media_type", ["text/html", "image/svg+xml", "application/octet-stream", "x" + CANARY, ""])
async def test_a_type_that_is_not_taken_is_refused(user: Client, service: Service, media_type: str) -> None:
    problem_of(await upload(user, PNG, media_type), 415)
    problem_of(await user.http.post("/files", files={"file": ("x", PNG, media_type or "a/b")}), 415)
    problem_of(await upload(user, PNG, "image/png", **{"Content-Encoding": "gzip"}), 415)
    assert stored(service) == (0, 0, 0)


async def test_a_content_that_is_not_what_its_type_says_is_refused(user: Client, service: Service) -> None:
    for content, media_type in (
        (PNG, "application/pdf"),
        (b"<script>", "image/png"),
        (b"", "text/plain"),
        (b"a\0b", "text/plain"),
        (b"a" * MEGABYTE + b"\xff", "text/csv"),
    ):
        assert errors_of(await upload(user, content, media_type)) == {("", "wrong_content")}
        assert errors_of(await upload_form(user, content, "x", media_type)) == {("", "wrong_content")}
    assert stored(service) == (0, 0, 0)


async def test_a_file_over_the_limit_is_refused_while_it_comes(user: Client, service: Service) -> None:
    url = user.http.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    caller = [f"{name}: {user.http.headers[name]}" for name in ("x-api-key", "x-user-id")]
    head = ["POST /api/v1/files HTTP/1.1", f"Host: {url.host}", *caller, "Content-Type: application/pdf"]
    writer.write("\r\n".join([*head, "Transfer-Encoding: chunked", "", ""]).encode())
    for piece in (b"%PDF-1.7\n", b" " * (MOST - 9), b" "):  # It has no end.
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    answer = await reader.readuntil(b"\r\n")
    writer.close()
    assert answer.startswith(b"HTTP/1.1 413 ")
    problem = problem_of(await upload(user, PDF + b" " * MOST), 413, "body_too_large")
    assert str(MOST) in problem["detail"]
    problem_of(await upload(user, in_pieces(PDF + b" " * MOST)), 413)
    problem_of(await upload_form(user, PDF[:9] + b" " * (MOST - 8)), 413)
    assert stored(service) == (0, 0, 0)
    assert (await upload_form(user, PDF[:9] + b" " * (MOST - 9))).status_code == 201


async def test_a_repeated_upload_stores_one_file(user: Client, service: Service) -> None:
    key = {"Idempotency-Key": "once"}
    first = await upload(user, PNG, "image/png", **key)
    again = await upload(user, in_pieces(PNG), "image/png", **key)
    other = await upload(user, PNG + b"!", "image/png", **key)
    renamed = await upload(user, PNG, "image/png", **key, **{"Content-Disposition": "attachment; filename=x"})

    assert again.json() == first.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    for response in (other, renamed):
        problem_of(response, 422, "idempotency_key_reused")
    assert stored(service)[0] == 1


async def test_a_user_and_a_tenant_store_so_much_and_no_more(user: Client, service: Service) -> None:
    full = b"%PDF-1.7\n" + b" " * (MOST - 9)
    for _ in range(3):
        assert (await upload(user, full)).status_code == 201
    refused = problem_of(await upload(user, PNG, "image/png"), 429, "user_files_full")
    assert str(OF_A_USER) in refused["detail"]
    async with Client(service.processes[0].url) as neighbour, Client(service.processes[0].url) as third:
        for _ in range(3):
            assert (await upload(neighbour, full)).status_code == 201
        problem_of(await upload(third, PNG, "image/png"), 429, "tenant_files_full")
        file_id = (await user.http.get("/files")).json()["items"][0]["id"]
        await user.http.delete(f"/files/{file_id}")
        assert (await upload(third, PNG, "image/png")).status_code == 201


async def test_a_form_has_one_part_and_comes_to_its_end(user: Client, service: Service) -> None:
    two = await user.http.post("/files", files=[("a", ("a", PNG, "image/png")), ("b", ("b", PNG, "image/png"))])
    assert errors_of(two) == {("", "one_part")}
    whole = (
        b'--b\r\nContent-Disposition: form-data; name="f"\r\nContent-Type: image/png\r\n\r\n' + PNG + b"\r\n--b--\r\n"
    )
    assert (await upload(user, whole, "multipart/form-data; boundary=b")).status_code == 201
    for body, boundary in (
        (whole[:-10], "b"),
        (whole[:20], "b"),
        (b"", "b"),
        (whole, "c"),
        (whole, ""),
        (b"--b--\r\n", "b"),
        (b"--b\r\nno header\r\n\r\n\r\n--b--\r\n", "b"),
    ):
        problem_of(await upload(user, body, f"multipart/form-data; boundary={boundary}"), 400)
    assert stored(service)[0] == 1


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ('attachment; filename="../../etc/passwd"', "passwd"),
        (r'attachment; filename="C:\\temp\\a b.txt"', "a b.txt"),
        ("attachment; filename*=UTF-8''a%00b%0d%0aX%3A%20y%E2%80%AEfdp.txt", "abX: yfdp.txt"),
        ("attachment; filename*=nonsense''%ff", None),
        ('attachment; filename=""', None),
        ("attachment", None),
        (f'attachment; filename="{"x" * 400}.txt"', "x" * 255),
    ],
)
async def test_a_name_is_a_name_and_nothing_else(user: Client, said: str, kept: str | None) -> None:
    response = await upload(user, b"hello", "text/plain", **{"Content-Disposition": said})
    assert response.status_code == 201, response.text
    assert response.json()["filename"] == kept
    content = await user.http.get(f"/files/{response.json()['id']}/content")
    assert content.text == "hello"
    assert content.headers["Content-Disposition"].startswith("attachment")


async def test_a_file_that_nothing_uses_expires_with_its_bytes(user: Client, service: Service) -> None:
    kept, expired, used = [(await upload(user, PNG + bytes([number]), "image/png")).json()["id"] for number in range(3)]
    [(days,)] = rows(service, "SELECT extract(day FROM expires_at - created_at)::int FROM files WHERE id = %s", kept)
    assert days == 30
    with psycopg.connect(service.database_url) as connection:
        connection.execute(
            "WITH run AS (INSERT INTO runs (id, tenant, user_id, agent_type, pool, text_output, query, metadata,"
            " user_message_id, message_id, deadline_at, status, finished_at, end_told, attachments)"
            " VALUES (gen_random_uuid(), 'acme', gen_random_uuid(), 'echo', 'none', true, '?', '{}',"
            " gen_random_uuid(), gen_random_uuid(), now(), 'succeeded', now(), true,"
            " jsonb_build_array(jsonb_build_object('file_id', %s::text)))) "
            "UPDATE files SET expires_at = now() WHERE id = ANY(%s::uuid[])",
            [used, [expired, used]],
        )

    async def is_gone(file_id: str) -> bool:
        return (await user.http.get(f"/files/{file_id}")).status_code == 404

    await soon(lambda: is_gone(expired))
    assert not await is_gone(used)
    assert not await is_gone(kept)
    assert stored(service)[:2] == (2, 2)
    with psycopg.connect(service.database_url) as connection:
        connection.execute("DELETE FROM runs")
    await soon(lambda: is_gone(used))
    assert stored(service)[:2] == (1, 1)
