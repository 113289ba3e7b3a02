"""Check values against the JSON Schemas of agents and their tools; returns each error with its place."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import jsonschema_rs
from pydantic_core import from_json, to_json

from agent_relay.api.problems import FieldError, Refused, pointer_step

log = logging.getLogger(__name__)


def check_value(value: Any, schema: Any, pointer: str, whose: str) -> None:
    """Check a value against the schema of an agent or a tool; a schema that cannot be read is fit by any value.

    Raises:
        Refused: 422, it does not; the pointers begin with this one.
    """
    validator = _validator(to_json(schema))
    if validator is None:
        return
    errors = [
        FieldError(
            pointer=pointer + "".join(f"/{pointer_step(step)}" for step in error.instance_path),
            code="not_of_the_schema",
            message=_sentence(error, whose),
        )
        for error in validator.iter_errors(value)
    ]
    if errors:
        raise Refused(422, "The request is not valid.", errors=errors)


def _sentence(error: Any, whose: str) -> str:
    """Describe the demand of the schema, without the value."""
    keyword = error.schema_path[-1] if error.schema_path else "schema"
    return f"Does not fit {whose} schema: {keyword}"


@lru_cache(maxsize=256)
def _validator(schema: bytes) -> Any | None:
    """Make a validator; None for a schema that cannot be read: the agent or tool validates its values, too."""
    try:
        return jsonschema_rs.validator_for(from_json(schema), retriever=_retrieve_nothing)
    except Exception as error:  # noqa: BLE001  (a schema may be wrong in any way)
        log.warning("json_schema.not_read error=%s", type(error).__name__)
        return None


def _retrieve_nothing(uri: str) -> Any:
    raise ValueError(f"schemas are not fetched: {uri}")
