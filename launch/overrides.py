"""`--set a.b=value`: changes one key of a run file before it is checked."""

from __future__ import annotations

import tomllib
from typing import Any

from coupler.registry import nearest
from launch.toml_lines import Path
from schemas.run import named


def override(table: dict[str, Any], assignment: str) -> Path:
    """Sets one key in place.

    Args:
        table: The run file as `tomllib` gives it.
        assignment: `a.b=value`. The value is TOML, or text when it is not. `task.NAME.key` means the `[[task]]` of
            that name, or of that `use`.

    Returns:
        The path that was set.

    Raises:
        ValueError: It names no place in the table; whether the key is a valid one is not known here.
    """
    dotted, equals, text = assignment.partition("=")
    if not equals:
        raise ValueError("write a key and a value as a.b=value")
    path: Path = _keys(dotted)
    if path[0] == "task" and len(path) > 1:
        path = ("task", _task(table.get("task", []), str(path[1])), *path[2:])
    if path[0] == "task" and len(path) == 2:
        raise ValueError("name a key of the task, as in task.NAME.key=value")
    node: Any = table
    for depth, part in enumerate(path[:-1]):
        node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if not isinstance(node, dict | list):
            raise ValueError(f"{'.'.join(map(str, path[: depth + 1]))} is {node!r}, and has no keys")
    node[path[-1]] = _value(text.strip())
    return path


def _keys(dotted: str) -> tuple[str, ...]:
    try:
        node: Any = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        raise ValueError(f"{dotted!r} is no key; write it as in run.steps") from None
    keys: list[str] = []
    while isinstance(node, dict) and len(node) == 1:
        ((key, node),) = node.items()
        keys.append(key)
    if node != 0:
        raise ValueError(f"{dotted!r} is not one key; give each its own --set")
    return tuple(keys)


def _task(tasks: Any, wanted: str) -> int:
    tables = [named(task) for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
    for key in ("name", "use"):
        found = [index for index, task in enumerate(tables) if task.get(key) == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f'{len(found)} tasks have {key} = "{wanted}"; give each a name of its own')
    names = [str(task.get("name")) for task in tables]
    have = f"the case has {', '.join(names)}" if names else "the case has no [[task]]"
    raise ValueError(f'no task is named "{wanted}"; {have}{nearest(wanted, names)}')


def _value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if len(table) == 1 else text
