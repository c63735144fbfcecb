# SPDX-License-Identifier: Apache-2.0
"""Names of operations, which have to be unique in a graph.

Keras numbers names by what a process has made, not by what it has loaded. Whatever is made
beside a loaded model, the masks of its layers for one, may be named like a part of it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

__all__ = ["keep_unique", "rename_new"]


def keep_unique(operation: Any, prefix: str, names: dict[str, Any]) -> None:
    """Enters an operation in `names`, renamed to `prefix_name` where its name is taken."""
    if names.setdefault(operation.name, operation) is operation:
        return
    name = stem = f"{prefix.replace('/', '_').replace(':', '_')}{operation.name}"
    count = 0
    while names.setdefault(name, operation) is not operation:
        count += 1
        name = f"{stem}_{count}"
    operation.name = name


def rename_new(operations: Iterable[Any], known: Container[int]) -> None:
    """Numbers the names of operations whose ids are not `known`, where they are taken."""
    each = {id(operation): operation for operation in operations}.values()
    names: dict[str, Any] = {}
    for operation in sorted(each, key=lambda operation: id(operation) not in known):
        keep_unique(operation, "", names)
