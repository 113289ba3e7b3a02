"""The API documents itself, completely, truly, and without a network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import iscoroutinefunction
from typing import Any

import httpx
import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from jsonschema_rs import Validator, is_valid, validator_for

from agent_relay.api.app import create_app
from agent_relay.api.openapi import HEADERS as HEADER_NAMES
from agent_relay.api.problems import Problem
from agent_relay.api.requests.validation import IDEMPOTENCY_KEY
from agent_relay.api.routes import agent, agents, api_keys, batches, dead_letters, runs, threads, webhooks
from agent_relay.shared.settings import Settings
from tests.support.client import Client, read_events
from tests.support.openapi import openapi_document
from tests.support.service import OPERATOR_KEY, Running

Json = dict[str, Any]

SCHEMAS = "#/components/schemas/"
PROBLEM = "#/components/schemas/Problem"
HEADERS = "#/components/headers/"
RESPONSES = "#/components/responses/"
STREAMS = {
    "/api/v1/agent/stream": ("post", "StreamEvent"),
    "/api/v1/runs/{run_id}/stream": ("get", "StreamEvent"),
    "/api/v1/threads/{thread_id}/stream": ("get", "ThreadStreamEvent"),
}


@pytest.fixture(scope="module")
def document() -> Json:
    """The document, as every process serves it."""
    return openapi_document()


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    """Walk over what can be called; problems stand where they are referred to."""
    shared = {f"{RESPONSES}{name}": response for name, response in document["components"]["responses"].items()}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            responses = operation["responses"].items()
            whole = {status: shared.get(response.get("$ref"), response) for status, response in responses}
            yield f"{method} {path}", {**operation, "responses": whole}


def event_validator(document: Json, kind: str = "StreamEvent") -> Validator:
    """Validate events of a stream as the document describes them."""
    return validator_for({"$ref": f"{SCHEMAS}{kind}", "components": document["components"]})


def fields_of_events(document: Json) -> dict[str, set[str]]:
    """List the fields that the document knows of each event."""
    schemas = document["components"]["schemas"]
    kinds = [schemas[kind["$ref"].removeprefix(SCHEMAS)]["properties"] for kind in schemas["StreamEvent"]["anyOf"]]
    return {properties["event"]["const"]: set(properties) for properties in kinds}


def properties(document: Json) -> Iterator[tuple[str, Json]]:
    """Walk over the fields of everything that is sent and received."""
    for name, schema in document["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            yield f"{name}.{field}", described


def takes_key(operation: Json) -> bool:
    """Tell whether a call creates something, and so takes an idempotency key."""
    return any(parameter["name"] == IDEMPOTENCY_KEY for parameter in operation.get("parameters", ()))


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


def test_each_problem_is_said_once(document: Json) -> None:
    shared = document["components"]["responses"]
    used = {
        response["$ref"].removeprefix(RESPONSES)
        for methods in document["paths"].values()
        for operation in methods.values()
        for response in operation["responses"].values()
        if "$ref" in response
    }

    assert used == shared.keys()
    assert "application/problem+json" not in str(document["paths"])
    assert len({str(response) for response in shared.values()}) == len(shared)


def test_every_call_of_the_api_tells_of_the_refusals_that_any_may_meet(document: Json) -> None:
    for name, operation in operations(document):
        if "/api/" in name:
            expected = {"400", "401", "408", "422", "431", "503"}
            expected |= {"403", "429"} if "/operator/" not in name else set[str]()
            expected |= {"413", "415"} if "requestBody" in operation else set[str]()
            expected |= {"404"} if takes_key(operation) else set[str]()
            expected |= {"404"} if "{" in name else set[str]()
            assert expected <= operation["responses"].keys(), name


def test_every_call_of_the_api_says_who_may_call(document: Json) -> None:
    schemes = document["components"]["securitySchemes"]

    assert {name: scheme.get("name", scheme.get("scheme")) for name, scheme in schemes.items()} == {
        "ApiKey": "X-API-Key",
        "Bearer": "bearer",
        "UserId": "X-User-ID",
        "OperatorKey": "X-API-Key",
        "OperatorBearer": "bearer",
    }
    of_operators, of_tenants = [{"OperatorKey"}, {"OperatorBearer"}], [{"ApiKey"}, {"Bearer"}]
    of_users = [{"ApiKey", "UserId"}, {"Bearer", "UserId"}, {"Bearer"}]
    for name, operation in operations(document):
        of_callers = of_tenants if name.endswith("/user-tokens") else of_users
        ways = of_operators if "/operator/" in name else of_callers if "/api/" in name else []
        assert [set(way) for way in operation.get("security", [])] == ways, name


def test_streams_are_documented_in_both_framings(document: Json) -> None:
    for path, (method, kind) in STREAMS.items():
        content = document["paths"][path][method]["responses"]["200"]["content"]
        assert content.keys() == {"application/x-ndjson", "text/event-stream"}
        assert all(framing["schema"]["description"] for framing in content.values())
        assert content["application/x-ndjson"]["schema"]["$ref"] == f"{SCHEMAS}{kind}"
        examples = content["application/x-ndjson"]["examples"]
        assert all(name == example["value"]["event"] for name, example in examples.items())
        for example in examples.values():
            event_validator(document, kind).validate(example["value"])
        assert content["text/event-stream"]["example"].endswith("\n\n")
    told = set(re.findall(r"^\| `(\w+)` \|", document["info"]["description"], re.MULTILINE))
    assert told == fields_of_events(document).keys()


@pytest.mark.parametrize(
    ("agent_type", "query", "deltas"),
    [
        ("bank_support", "What is my balance?", False),
        ("bank_support", "What is my balance?", True),
        ("second_thoughts", "hello", True),
        ("breaks", "hello", False),
    ],
)
async def test_events_are_as_documented(
    client: Client, document: Json, agent_type: str, query: str, deltas: bool
) -> None:
    run = await client.run(query, agent_type=agent_type)
    events = await client.events(run["id"], **({"deltas": "true"} if deltas else {}))

    assert events[-1]["event"] == "done"
    fields = fields_of_events(document)
    for event in events:
        event_validator(document).validate(event)
        assert event.keys() <= fields[event["event"]]


async def test_events_of_a_thread_are_as_documented(client: Client, document: Json) -> None:
    thread_id = await client.thread()
    await client.http.post("/runs", json={"thread_id": thread_id, "query": "hello"})
    async with client.http.stream("GET", f"/threads/{thread_id}/stream") as response:
        async for event in read_events(response):
            event_validator(document, "ThreadStreamEvent").validate(event)
            if event["event"] == "done":
                break

    assert not event_validator(document, "ThreadStreamEvent").is_valid({"id": "0-1", "event": "gap"})


def bodies(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Walk over the examples of what can be sent."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if "requestBody" in operation and path != "/api/v1/files":
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
        if template.endswith(("/answers", "/messages")):  # Only some runs take them: see their own tests.
            continue
        path = template
        body = {**example, "thread_id": await client.thread()} if "thread_id" in example else example
        headers = {"X-API-Key": OPERATOR_KEY} if "/operator/" in path else {}
        if "{key_id}" in template:
            made = await client.http.post("/operator/keys", json={"tenant": "acme"}, headers=headers)
            path = template.format(key_id=made.json()["id"])
        elif "{thread_id}" in template:
            path = template.format(thread_id=await client.thread())
        elif "{schedule_id}" in template:
            new = {"cron": "@daily", "agent_type": "echo", "query": "hello"}
            path = template.format(schedule_id=(await client.http.post("/schedules", json=new)).json()["id"])
        response = await client.http.request(method, path.removeprefix("/api/v1"), json=body, headers=headers)
        assert response.is_success, (path, response.text)


def test_every_answer_says_its_headers(document: Json) -> None:
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            expected = {"X-Request-ID"}
            expected |= {"Retry-After"} if status in {"429", "503"} else set[str]()
            limited = "/api/" in name and "/operator/" not in name and (int(status) < 400 or status == "429")
            expected |= {"RateLimit", "RateLimit-Policy"} if limited else set[str]()
            expected |= {"Location"} if status in {"201", "202"} and takes_key(operation) else set[str]()
            assert expected <= response["headers"].keys(), (name, status)
            assert all(each["$ref"].removeprefix(HEADERS) in HEADER_NAMES for each in response["headers"].values())


def test_no_parameter_is_null(document: Json) -> None:
    parameters = [each for _, operation in operations(document) for each in operation.get("parameters", ())]

    assert len(parameters) > 50
    assert [each["name"] for each in parameters if "null" in str(each)] == []


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("after", "3-1-20", ["", "1", "1-1", "1-1-", "-1-1", "01-1-1", "1-01-1", "1-1-1-1", "1-1-1\n"]),
        ("cursor", "A" * 30, ["", "a b", "=" * 30, "short"]),
        ("after", "1-20", ["", "1", "1-", "-1", "01-1", "1-01", "1 - 1", "1-1\n"]),
        ("Last-Event-ID", "", ["1", "01-1", "null"]),
        (IDEMPOTENCY_KEY, "a key", ["", " a", "a ", "\u00e9", "a" * 256, "a\tb"]),
        ("agent_type", "echo", ["", "Echo", "a b", "a" * 64]),
        ("webhook_url", "https://example.com/hook", ["", "example.com", "ftp://example.com", "https://a b"]),
    ],
)
def test_what_a_parameter_looks_like(document: Json, name: str, taken: str, refused: list[str]) -> None:
    patterns = [
        parameter["schema"]["pattern"]
        for path, operation in operations(document)
        for parameter in operation.get("parameters", ())
        if parameter["name"] == name and not path.endswith("/results")
        if name != "after" or ("/threads/" in path) == (taken.count("-") == 2)  # Each has ids of its own.
    ]

    assert patterns
    for pattern in patterns:
        assert re.search(pattern, taken)
        assert [value for value in refused if re.search(f"{pattern.removesuffix('$')}\\Z", value)] == []


@pytest.mark.parametrize(
    ("target", "is_one"),
    [
        ({"thread_id": "t"}, True),
        ({"agent_type": "a"}, True),
        ({"thread_id": "t", "agent_type": None, "multitask_strategy": "reject"}, True),
        ({}, False),
        ({"thread_id": None, "agent_type": None}, False),
        ({"thread_id": "t", "agent_type": "a"}, False),
        ({"agent_type": "a", "multitask_strategy": "enqueue"}, False),
    ],
)
def test_a_query_has_one_target(document: Json, target: Json, is_one: bool) -> None:
    for name in ("NewQuery", "AttendedQuery"):
        kinds = document["components"]["schemas"][name]["oneOf"]
        assert (sum(is_valid(kind, target) for kind in kinds) == 1) is is_one


def test_the_document_says_the_limits_that_are_set() -> None:
    settings = Settings(
        database_url="postgresql://nowhere/none",
        redis_url="redis://nowhere",
        max_run_deadline_seconds=11,
        max_batch_deadline_seconds=22,
        max_batch_items=33,
    )
    document = create_app(settings, 0).openapi()
    fields = {name: str(described) for name, described in properties(document)}

    assert all("'maximum': 11.0" in fields[f"{name}.deadline_s"] for name in ("NewQuery", "AttendedQuery", "Requeue"))
    assert "'maximum': 22.0" in fields["NewBatch.deadline_s"]
    assert "'maxItems': 33" in fields["NewBatch.items"]
    assert "'maximum': 22.0" in str(document["paths"]["/api/v1/batches"]["post"]["parameters"])


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


def _plain_functions(dependant: Dependant) -> Iterator[str]:
    for inner in dependant.dependencies:
        if not iscoroutinefunction(inner.call):
            yield str(inner.call)
        yield from _plain_functions(inner)


def test_no_dependency_is_run_in_a_thread() -> None:
    dependants = [
        route.dependant
        for router in (agents, threads, agent, runs, batches, webhooks, dead_letters, api_keys)
        for route in router.router.routes
        if isinstance(route, APIRoute)
    ] + [route.dependant for route in runs.streams.routes if isinstance(route, APIRoute)]

    assert len(dependants) > 20
    assert [name for dependant in dependants for name in _plain_functions(dependant)] == []
