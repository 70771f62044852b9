"""Compares the tables of a run file with the Structs they fill: unknown, missing, mistyped and out-of-range keys."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from coupler.registry import nearest
from launch.allowed import allowed, choices
from launch.toml_lines import Path
from schemas import toml_text
from schemas.run import RunSpec


class Mistake(NamedTuple):
    """Something wrong in a run file: the path of the key and a full sentence."""

    path: Path
    sentence: str


def sections() -> dict[str, type[msgspec.Struct]]:
    """The sections of a run file and the Structs they fill."""
    hints = typing.get_type_hints(RunSpec)
    found = {}
    for field in msgspec.structs.fields(RunSpec):
        kind = hints[field.name]
        found[field.encode_name] = typing.get_args(kind)[0] if field.encode_name == "task" else kind
    return found


def shown(path: Path) -> str:
    """A path as people write it: `run.steps`, `task.propagator.rank`."""
    return ".".join(str(part) for part in path if not isinstance(part, int))


def written(value: Any) -> str:
    """A value as the run file has it, cut where it is long."""
    text = toml_text.value(value)
    return text if len(text) <= 80 else text[:77] + "..."


def misfits(
    table: Mapping[str, Any],
    kind: type[msgspec.Struct],
    path: Path,
    *,
    header: str,
    also: Sequence[str] = (),
    notes: Mapping[str, str] | None = None,
) -> Iterator[Mistake]:
    """What keeps a table from filling a Struct.

    Args:
        table: Keys and values.
        kind: The Struct.
        path: Where the table is.
        header: How people call the table, such as `[run]`.
        also: Keys that are valid but checked elsewhere.
        notes: Sentences for keys that are not allowed for a reason worth telling.

    Yields:
        Each mistake once, in no particular order.
    """
    members = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    valid = [*also, *members]
    for key, value in table.items():
        if key in members:
            yield from _wrong_value(value, members[key].type, (*path, key))
        elif key not in also:
            note = (notes or {}).get(key) or f"it has {', '.join(valid)}{nearest(key, valid)}"
            yield Mistake((*path, key), f'{header} has no key "{key}"; {note}')
    for key, field in members.items():
        if field.required and key not in table:
            yield Mistake((*path, key), f'{header} lacks "{key}", {allowed(field.type)}')


def _wrong_value(value: Any, kind: Any, path: Path) -> Iterator[Mistake]:
    info = inspect.type_info(kind)
    if isinstance(info, inspect.DictType) and isinstance(value, dict):
        inner = typing.get_args(kind)[1]
        for key, item in value.items():
            yield from _wrong_value(item, inner, (*path, key))
        return
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as problem:
        detail = f" ({problem})" if isinstance(value, list | dict) and "$" in str(problem) else ""
        guess = nearest(value, choices(kind)) if isinstance(value, str) else ""
        yield Mistake(path, f"{shown(path)} is {written(value)}; it must be {allowed(kind)}{detail}{guess}")
