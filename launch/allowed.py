"""Says in words which values a type allows, for messages about a run file."""

from __future__ import annotations

import sys
from typing import Any

from msgspec import inspect


def allowed(kind: Any) -> str:
    """What a key of this type may hold, such as `an integer greater than 0`.

    Args:
        kind: A type annotation that msgspec understands.
    """
    return _phrase(inspect.type_info(kind))


def choices(kind: Any) -> list[str]:
    """The words to choose from when the type is a set of literals, else nothing."""
    info = inspect.type_info(kind)
    parts = info.types if isinstance(info, inspect.UnionType) else (info,)
    return [str(word) for part in parts if isinstance(part, inspect.LiteralType) for word in part.values]


def _phrase(info: inspect.Type) -> str:
    match info:
        case inspect.IntType():
            return _ranged("an integer", info)
        case inspect.FloatType() if info.le == sys.float_info.max:
            return _ranged("a finite number", info)
        case inspect.FloatType():
            return _ranged("a number", info)
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType():
            return "text" + (f" that matches {info.pattern}" if info.pattern else "")
        case inspect.LiteralType():
            return "one of " + ", ".join(
                f'"{value}"' if isinstance(value, str) else str(value) for value in info.values
            )
        case inspect.UnionType():
            return " or ".join(_phrase(part) for part in info.types if not isinstance(part, inspect.NoneType))
        case inspect.TupleType():
            return f"a list of {len(info.item_types)}: " + ", ".join(map(_phrase, info.item_types))
        case inspect.VarTupleType() | inspect.ListType():
            return f"a list, each {_phrase(info.item_type)}"
        case inspect.DictType():
            return f"a table, each value {_phrase(info.value_type)}"
        case inspect.StructType():
            return "a table with the keys " + ", ".join(field.encode_name for field in info.fields)
    return f"a value of type {type(info).__name__.removesuffix('Type').lower()}"


def _ranged(noun: str, info: inspect.IntType | inspect.FloatType) -> str:
    words = (("greater than", info.gt), ("of at least", info.ge), ("less than", info.lt), ("of at most", info.le))
    limits = [f"{word} {limit}" for word, limit in words if limit is not None and limit != sys.float_info.max]
    return " ".join([noun, " and ".join(limits)]).strip()
