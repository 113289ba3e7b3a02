"""What every refusal looks like, whatever was wrong."""

from __future__ import annotations

from typing import Any

import httpx

CANARY = "c4n4ry"
"""What tests hide in bad input: it must not come back."""

MEMBERS = {"type", "title", "status", "detail", "instance", "code", "request_id"}
SAME_FOR_ALL = MEMBERS - {"instance", "request_id"}


def problem_of(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """Check that this is a whole problem document which quotes nothing of the input, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem.keys() - {"errors", "run_id", "thread_id", "reason"} == MEMBERS
    assert problem["status"] == status
    assert problem["type"] == f"urn:agent-relay:problem:{problem['code']}"
    assert problem["request_id"] == response.headers["x-request-id"]
    assert code in {None, problem["code"]}
    assert ("errors" in problem) == (status == httpx.codes.UNPROCESSABLE_ENTITY)
    assert CANARY not in str({name: problem[name] for name in SAME_FOR_ALL})
    assert all(CANARY not in error["message"] for error in problem.get("errors", []))
    return problem


def errors_of(response: httpx.Response) -> set[tuple[str, str]]:
    """Check that the request was well-formed and not valid, and return what was wrong where."""
    return {(error["pointer"], error["code"]) for error in problem_of(response, 422, "invalid_request")["errors"]}
