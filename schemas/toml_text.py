"""Writes values as TOML text that `tomllib` reads back equal."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def key(name: str) -> str:
    """A key, quoted where TOML needs it."""
    return name if _BARE.fullmatch(name) else _string(name)


def value(thing: Any) -> str:
    """A value on one line; tables become inline tables.

    Args:
        thing: str, bool, int, float, date or time, or lists, tuples and dicts of them.

    Raises:
        TypeError: TOML has no such value.
    """
    match thing:
        case str():
            return _string(thing)
        case bool():
            return "true" if thing else "false"
        case int() | float():
            return repr(thing)
        case datetime.date() | datetime.time():
            return thing.isoformat()
        case list() | tuple():
            return "[" + ", ".join(value(item) for item in thing) + "]"
        case Mapping():
            return "{" + ", ".join(f"{key(name)} = {value(item)}" for name, item in thing.items()) + "}"
    raise TypeError(f"TOML has no value of type {type(thing).__name__} ({thing!r})")


def table(header: str, content: Mapping[str, Any]) -> str:
    """A section under its header line, such as `[run]`. Keys whose value is None are left out."""
    lines = [f"{key(name)} = {value(item)}" for name, item in content.items() if item is not None]
    return "\n".join([header, *lines, ""])


def _string(text: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is and TOML refuses.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
