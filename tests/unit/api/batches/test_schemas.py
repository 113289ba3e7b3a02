"""What a batch may say of itself."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from agent_relay.api.batches.schemas import BatchHead


def _read(number: str) -> int | None:
    return BatchHead.model_validate(json.loads(f'{{"agent_type": "echo", "max_running": {number}}}')).max_running


@pytest.mark.parametrize(
    ("number", "read"), [("2", 2), ("2.0", 2), ("101052.0", 101_052), ("1e3", 1000), ("null", None)]
)
def test_a_whole_number_may_be_written_with_a_point(number: str, read: int | None) -> None:
    assert _read(number) == read


@pytest.mark.parametrize("number", ["2.5", "0.0", "-1.0", "1e7", "1e308", '"2"', "true", "[2]"])
def test_anything_else_is_refused(number: str) -> None:
    with pytest.raises(ValidationError):
        _read(number)
