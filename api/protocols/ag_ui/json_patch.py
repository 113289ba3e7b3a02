"""JSON Patch (RFC 6902) from one state to the next, for states that grow at their end.

The library `jsonpatch` finds shorter patches where values move, and takes 20 times as long. Here an element that moves
is written anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic_core import to_json

Patch = list[dict[str, Any]]
_BANNED = ("/__proto__", "/constructor/prototype")
"""What `fast-json-patch` refuses in a path, which clients in JavaScript apply patches with."""


def patch(before: object, after: object) -> Patch | None:
    """List the operations that turn one JSON value into the other; None where clients would refuse one of them."""
    found: Patch = []
    _compare(before, after, "", found)
    if any(banned in operation["path"] for operation in found for banned in _BANNED):
        return None
    return found


def _compare(before: object, after: object, path: str, found: Patch) -> None:
    if isinstance(before, dict) and isinstance(after, dict):
        _compare_objects(cast("dict[str, object]", before), cast("dict[str, object]", after), path, found)
    elif isinstance(before, list) and isinstance(after, list):
        _compare_arrays(cast("list[object]", before), cast("list[object]", after), path, found)
    elif to_json(before) != to_json(after):
        found.append({"op": "replace", "path": path, "value": after})


def _compare_objects(before: Mapping[str, object], after: Mapping[str, object], path: str, found: Patch) -> None:
    found += [{"op": "remove", "path": f"{path}/{_step(name)}"} for name in before if name not in after]
    both = [name for name in after if name in before]
    for place in _unequal([before[name] for name in both], [after[name] for name in both]):
        name = both[place]
        _compare(before[name], after[name], f"{path}/{_step(name)}", found)
    found += [
        {"op": "add", "path": f"{path}/{_step(name)}", "value": value}
        for name, value in after.items()
        if name not in before
    ]


def _compare_arrays(before: Sequence[object], after: Sequence[object], path: str, found: Patch) -> None:
    both = min(len(before), len(after))
    for place in _unequal(before[:both], after[:both]):
        _compare(before[place], after[place], f"{path}/{place}", found)
    found += [{"op": "remove", "path": f"{path}/{place}"} for place in reversed(range(both, len(before)))]
    found += [{"op": "add", "path": f"{path}/-", "value": value} for value in after[both:]]


def _unequal(before: Sequence[object], after: Sequence[object]) -> Sequence[int]:
    """List the places where the values may differ."""
    last = len(before) - 1
    if before[:last] == after[:last]:  # Only the last one grows: in Python, each comparison of its own would be slow.
        unequal = [last] if before[last:] != after[last:] else []
        equal = [side[:last] if unequal else side for side in (before, after)]
    else:
        unequal = [place for place, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
        skipped = set(unequal)
        equal = [[value for place, value in enumerate(side) if place not in skipped] for side in (before, after)]
    if to_json(equal[0]) == to_json(equal[1]):
        return unequal
    return range(len(before))  # In Python, 1 equals True.


def _step(name: str) -> str:
    """Escape a name for a JSON Pointer."""
    return name.replace("~", "~0").replace("/", "~1")
