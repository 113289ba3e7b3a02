"""The API documents itself, completely, truly, and without a network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.problems import Problem
from shared.settings import Settings
from tests.client import Client
from tests.service import OPERATOR_KEY, Running

Json = dict[str, Any]

PROBLEM = "#/components/schemas/Problem"
STREAMS = {"/api/v1/agent/stream": "post", "/api/v1/runs/{run_id}/stream": "get"}


@pytest.fixture(scope="module")
def document() -> Json:
    """The document, as every process serves it."""
    settings = Settings(database_url="postgresql://nowhere/none", redis_url="redis://nowhere")
    return create_app(settings, 0).openapi()


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    """Walk over what can be called."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def properties(document: Json) -> Iterator[tuple[str, Json]]:
    """Walk over the fields of everything that is sent and received."""
    for name, schema in document["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            yield f"{name}.{field}", described


def test_every_call_says_what_it_is_for(document: Json) -> None:
    tags = {tag["name"] for tag in document["tags"] if tag["description"]}
    for name, operation in operations(document):
        assert operation["summary"], name
        assert operation["description"], name
        assert set(operation["tags"]) <= tags, name


def test_every_call_has_a_short_name_of_its_own(document: Json) -> None:
    names = [operation["operationId"] for _, operation in operations(document)]

    assert len(names) == len(set(names))
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", name) for name in names)


def test_every_parameter_is_described(document: Json) -> None:
    parameters = [
        (f"{name} {parameter['name']}", parameter)
        for name, operation in operations(document)
        for parameter in operation.get("parameters", [])
    ]

    assert [name for name, parameter in parameters if not parameter.get("description")] == []


def test_every_field_is_described(document: Json) -> None:
    described = dict(properties(document))

    assert len(described) > 50
    assert [name for name, field in described.items() if not field.get("description")] == []
    schemas = document["components"]["schemas"].items()
    assert [name for name, schema in schemas if schema and not schema.get("description")] == []


def test_every_answer_is_described(document: Json) -> None:
    answers = [
        (f"{name} {status}", response["description"])
        for name, operation in operations(document)
        for status, response in operation["responses"].items()
    ]

    assert [name for name, description in answers if description in {"", "Successful Response"}] == []


def test_problems_have_their_media_type_and_results_have_theirs(document: Json) -> None:
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            content = response.get("content", {})
            if int(status) >= 400:
                assert content.keys() == {"application/problem+json"}, (name, status)
                assert content["application/problem+json"]["schema"] == {"$ref": PROBLEM}, (name, status)
                assert Problem(**content["application/problem+json"]["example"]).status == int(status)
            else:
                assert "application/problem+json" not in content, (name, status)
                assert PROBLEM not in str(content), (name, status)


def test_every_call_of_the_api_tells_of_the_refusals_that_any_may_meet(document: Json) -> None:
    for name, operation in operations(document):
        if "/api/" in name:
            expected = {"400", "401", "422", "503"}
            expected |= {"413", "415"} if "requestBody" in operation else set[str]()
            expected |= {"404"} if "{" in name else set[str]()
            assert expected <= operation["responses"].keys(), name


def test_every_call_of_the_api_needs_both_headers_and_those_of_operators_one(document: Json) -> None:
    schemes = document["components"]["securitySchemes"]

    assert {name: scheme["name"] for name, scheme in schemes.items()} == {
        "ApiKey": "X-API-Key",
        "UserId": "X-User-ID",
        "OperatorKey": "X-API-Key",
    }
    for name, operation in operations(document):
        needed = ["OperatorKey"] if "/operator/" in name else ["ApiKey", "UserId"] if "/api/" in name else []
        assert [name for alternative in operation.get("security", []) for name in alternative] == needed, name


def test_streams_are_documented_in_both_framings(document: Json) -> None:
    for path, method in STREAMS.items():
        content = document["paths"][path][method]["responses"]["200"]["content"]
        assert content.keys() == {"application/x-ndjson", "text/event-stream"}
        assert all(framing["schema"]["description"] for framing in content.values())
        examples = content["application/x-ndjson"]["examples"]
        assert all(name == example["value"]["event"] for name, example in examples.items())
        assert content["text/event-stream"]["example"].endswith("\n\n")
    for event in ("message_created", "message_started", "text_delta", "message_complete", "gap", "done"):
        assert f"| `{event}` |" in document["info"]["description"]


def bodies(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Walk over the examples of what can be sent."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if "requestBody" in operation:
                content = operation["requestBody"]["content"]["application/json"]
                schema = document["components"]["schemas"][content["schema"]["$ref"].rsplit("/", 1)[1]]
                yield from ((method, path, example) for example in schema["examples"])


async def test_the_examples_work(client: Client, document: Json) -> None:
    examples = list(bodies(document))
    assert {path for _, path, _ in examples} >= {
        "/api/v1/threads",
        "/api/v1/runs",
        "/api/v1/agent/query",
        "/api/v1/batches",
    }

    for method, template, example in examples:
        path = template
        body = {**example, "thread_id": await client.thread()} if "thread_id" in example else example
        headers = {"X-API-Key": OPERATOR_KEY} if "/operator/" in path else {}
        if "{key_id}" in template:
            made = await client.http.post("/operator/keys", json={"tenant": "acme"}, headers=headers)
            path = template.format(key_id=made.json()["id"])
        response = await client.http.request(method, path.removeprefix("/api/v1"), json=body, headers=headers)
        assert response.is_success, (path, response.text)


async def test_what_is_served_is_what_is_documented(shared_api: Running, client: Client, document: Json) -> None:
    assert (await client.http.get(f"{shared_api.url}/openapi.json")).json() == document


async def test_the_page_needs_nobody_else(shared_api: Running) -> None:
    async with httpx.AsyncClient(base_url=shared_api.url, verify=False) as http:
        page = await http.get("/docs")
        addresses = re.findall(r"""(?:src|href)=["']?([^"'\s>]+)""", page.text)
        parts = [await http.get(page.url.join(address)) for address in addresses]

    assert len(parts) == 3
    assert "//" not in page.text.replace("// ", "")
    assert [part.status_code for part in parts] == [200, 200, 200]
    types = {part.headers["content-type"].partition(";")[0] for part in parts}
    assert types == {"text/css", "image/png", "text/javascript"}
    assert "'openapi.json'" in page.text
