# SPDX-License-Identifier: Apache-2.0
"""The part of JSON Schema that the manifest's schema uses, checked without a dependency."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

__all__ = ["violations"]

_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}

_KNOWN = {
    "$defs",
    "$id",
    "$ref",
    "$schema",
    "additionalProperties",
    "const",
    "description",
    "enum",
    "items",
    "maximum",
    "minimum",
    "minItems",
    "minLength",
    "pattern",
    "properties",
    "required",
    "title",
    "type",
}


def violations(value: Any, schema: dict[str, Any]) -> Iterator[str]:
    """Yields what is wrong with `value`, each as `place: what was found and expected`."""
    yield from _check(value, schema, schema, "manifest")


def _check(value: Any, rule: dict[str, Any], root: dict, at: str) -> Iterator[str]:
    _check_keywords(rule)
    if "$ref" in rule:
        rule = {**_resolve(rule["$ref"], root), **rule}
    if "type" in rule and not _is_type(value, rule["type"]):
        yield f"{at}: {_shown(value)} is not of type {rule['type']}"
        return
    if "const" in rule and not _same(value, rule["const"]):
        yield f"{at}: {_shown(value)} is not {rule['const']!r}"
    if "enum" in rule and not any(_same(value, known) for known in rule["enum"]):
        yield f"{at}: {_shown(value)} is not one of {rule['enum']}"
    if isinstance(value, str):
        yield from _check_text(value, rule, at)
    elif isinstance(value, list):
        yield from _check_items(value, rule, root, at)
    elif isinstance(value, dict):
        yield from _check_members(value, rule, root, at)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from _check_range(value, rule, at)


def _check_keywords(rule: dict[str, Any]) -> None:
    """Refuses a keyword that this module would pass over in silence."""
    unknown = sorted(set(rule) - _KNOWN)
    if unknown:
        raise NotImplementedError(
            f"The schema uses the keywords {unknown}. Expected: of {sorted(_KNOWN)}. Add "
            "their check to keras_branchy/runner/schema.py."
        )


def _resolve(reference: str, root: dict) -> dict[str, Any]:
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def _is_type(value: Any, names: Any) -> bool:
    for name in [names] if isinstance(names, str) else names:
        if isinstance(value, bool) and name != "boolean":
            continue
        if isinstance(value, _TYPES[name]):
            return True
        if name == "integer" and isinstance(value, float) and value.is_integer():
            return True
    return False


def _same(value: Any, expected: Any) -> bool:
    return value == expected and isinstance(value, bool) == isinstance(expected, bool)


def _check_text(value: str, rule: dict, at: str) -> Iterator[str]:
    if len(value) < rule.get("minLength", 0):
        yield f"{at}: {_shown(value)} is shorter than {rule['minLength']}"
    if "pattern" in rule and not re.search(rule["pattern"], value):
        yield f"{at}: {_shown(value)} does not match {rule['pattern']}"


def _check_items(value: list, rule: dict, root: dict, at: str) -> Iterator[str]:
    if len(value) < rule.get("minItems", 0):
        yield f"{at}: {len(value)} items, fewer than {rule['minItems']}"
    for index, item in enumerate(value):
        yield from _check(item, rule.get("items", {}), root, f"{at}[{index}]")


def _check_members(value: dict, rule: dict, root: dict, at: str) -> Iterator[str]:
    members = rule.get("properties", {})
    for name in rule.get("required", []):
        if name not in value:
            yield f"{at}: '{name}' is missing"
    others = rule.get("additionalProperties", {})
    for name, item in value.items():
        if name in members:
            yield from _check(item, members[name], root, f"{at}.{name}")
        elif others is False:
            yield f"{at}: '{name}' is not known"
        else:
            yield from _check(item, others, root, f"{at}.{name}")


def _check_range(value: float, rule: dict, at: str) -> Iterator[str]:
    if not value >= rule.get("minimum", value):
        yield f"{at}: {value!r} is less than {rule['minimum']}"
    if not value <= rule.get("maximum", value):
        yield f"{at}: {value!r} is more than {rule['maximum']}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
