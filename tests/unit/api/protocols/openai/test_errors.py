"""Errors as OpenAI's clients read them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.requests import Request

from agent_relay.api import problems
from agent_relay.api.problems import FieldError, Refused, invalid
from agent_relay.api.protocols.openai import router as openai


class _Application:
    def __init__(self) -> None:
        self.state = self
        self.error_shapes = openai.ERRORS


def answered(refused: Refused, path: str = "/v1/models", root_path: str = "") -> tuple[int, Any, Any]:
    """Have a call of this path refused; returns status, body and headers."""
    scope: dict[str, Any] = {
        "type": "http",
        "path": root_path + path,
        "root_path": root_path,
        "headers": [],
        "query_string": b"",
        "server": ("127.0.0.1", 80),
        "app": _Application(),
    }
    response = problems.respond(Request(scope), refused)
    return response.status_code, json.loads(bytes(response.body)), response.headers


def test_a_parameter_is_named_as_openai_does() -> None:
    unknown = FieldError(pointer="/messages/0/tool~1calls", code="extra_forbidden", message="Extra")

    status, body, _ = answered(Refused(422, "The request is not valid.", errors=[unknown]))

    param = "messages[0].tool/calls"
    message = f"Unsupported parameter: '{param}'."
    assert status == 400
    assert body == {
        "error": {
            "message": message,
            "type": "invalid_request_error",
            "param": param,
            "code": "unsupported_parameter",
        }
    }


def test_an_unknown_agent_is_an_unknown_model() -> None:
    status, body, _ = answered(invalid("/agent_type", "unknown_agent", "Known agents: echo."))

    assert (status, body["error"]["param"], body["error"]["code"]) == (404, "model", "model_not_found")


@pytest.mark.parametrize(
    ("refused", "kind", "code", "retried"),
    [
        (Refused(401, "A key is needed."), "invalid_request_error", "invalid_api_key", None),
        (Refused(429, "Too many.", headers={"Retry-After": "3"}), "rate_limit_error", "rate_limit_exceeded", None),
        (Refused(429, "All spent.", code="budget_exhausted"), "rate_limit_error", "insufficient_quota", None),
        (Refused(503, "Away."), "server_error", "service_unavailable", None),
        (Refused(409, "Busy.", code="thread_busy"), "invalid_request_error", "thread_busy", "false"),
        (Refused(409, "Soon.", code="idempotency_key_in_use"), "invalid_request_error", "idempotency_key_in_use", None),
    ],
)
def test_each_status_has_its_type_and_says_whether_to_repeat(
    refused: Refused, kind: str, code: str, retried: str | None
) -> None:
    status, body, headers = answered(refused)

    assert status == refused.status
    assert body["error"] == {"message": refused.detail, "type": kind, "param": None, "code": code}
    assert headers.get("x-should-retry") == retried
    assert headers.get("retry-after") == refused.headers.get("Retry-After")
    assert headers["x-request-id"]


def test_only_paths_of_openai_have_this_shape_behind_a_root_path_too() -> None:
    assert "error" in answered(Refused(404, "Not Found."), "/v1/files", "/relay")[1]
    assert "error" not in answered(Refused(404, "Not Found."), "/api/v1/runs", "/relay")[1]
    assert "/v1/chat/completions" in answered(Refused(404, "Not Found."), "/v1/files")[1]["error"]["message"]
