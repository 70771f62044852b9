"""The messages as byte tables, from `schemas.messages`: tag, order of the fields, MessagePack type, meaning."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import numpy as np
from msgspec import inspect

from generate import text
from schemas import fields, messages, wire

PARTS = (fields.FieldSpec, messages.Place, messages.BlockEntry, messages.Stamp)
GOLDEN = Path(__file__).parents[2] / "tests" / "golden"


def parts() -> dict[str, str]:
    """`messages`, `message_parts`, `actions`, `directions`, `example` and `golden`."""
    union = sorted(typing.get_args(messages.Message), key=tag)
    return {
        "messages": "\n\n".join(_message(kind) for kind in union),
        "message_parts": "\n\n".join(_part(kind) for kind in PARTS),
        "actions": _actions(),
        "directions": text.markdown(messages.__doc__ or ""),
        "limits": f"Wire layout version **{messages.VERSION}**; frame 0 has at most {wire.MAX_HEAD_BYTES:,} bytes; "
        f"dtypes: {', '.join(f'`{dtype}`' for dtype in fields.DTYPES)}.",
        "example": _example(),
        "golden": _golden(),
    }


def tag(kind: type[msgspec.Struct]) -> int:
    """The number that stands first in a message."""
    value = kind.__struct_config__.tag
    assert isinstance(value, int)
    return value


def packed(kind: Any) -> str:
    """A type as MessagePack holds it."""
    hint = inspect.type_info(kind)
    return _words(hint)


def _words(info: inspect.Type) -> str:
    match info:
        case inspect.BoolType():
            return "bool"
        case inspect.IntType() | inspect.EnumType():
            return "int"
        case inspect.FloatType():
            return "float64"
        case inspect.StrType():
            return "str"
        case inspect.BytesType():
            return "bin"
        case inspect.LiteralType():
            return "str: " + ", ".join(map(text.code, info.values))
        case inspect.NoneType():
            return "nil"
        case inspect.StructType():
            return f"[{info.cls.__name__}](#{info.cls.__name__.lower()})"
        case inspect.VarTupleType() | inspect.ListType():
            return f"array of {_words(info.item_type)}"
        case inspect.TupleType():
            return f"array of {len(info.item_types)}: {', '.join(map(_words, info.item_types))}"
        case inspect.DictType():
            return f"map of {_words(info.key_type)} to {_words(info.value_type)}"
        case inspect.UnionType():
            return " or ".join(map(_words, info.types))
    raise TypeError(f"no MessagePack word for {info}")


def _rows(kind: type[msgspec.Struct], first: int) -> list[tuple[str, ...]]:
    # A short message leaves fields to its one sentence; what they mean elsewhere they mean there too.
    meanings = _usual() | text.docstring(kind).items("Attributes")
    found = []
    for number, field in enumerate(msgspec.structs.fields(kind), start=first):
        found.append(
            (str(number), text.code(field.name), packed(field.type), text.cell(meanings.get(field.name, "see above")))
        )
    return found


def _usual() -> dict[str, str]:
    """What a field of some name means in the messages that explain it."""
    found: dict[str, str] = {}
    for kind in (messages.Ask, messages.Stamp, messages.Advice):
        found = text.docstring(kind).items("Attributes") | found
    return found


HEAD = ("#", "field", "MessagePack", "meaning")


def _message(kind: type[msgspec.Struct]) -> str:
    rows = [("0", "*tag*", f"int `{tag(kind)}`", "which message this is"), *_rows(kind, 1)]
    return f"### {kind.__name__}\n\n{text.markdown(text.docstring(kind).text)}\n\n{text.table(HEAD, rows)}"


def _part(kind: type[msgspec.Struct]) -> str:
    doc = text.markdown(text.docstring(kind).text)
    return f"### {kind.__name__}\n\n{doc}\n\n{text.table(HEAD, _rows(kind, 0))}"


def _actions() -> str:
    meanings = text.members(messages.Action)
    rows = [(str(int(a)), text.code(a.name), text.cell(meanings.get(a.name, ""))) for a in messages.Action]
    return text.table(("value", "name", "meaning"), rows)


def _example() -> str:
    """One message as bytes, encoded at build time and read back by another library, which knows nothing of ours."""
    blocks = {"height": fields.Block(np.arange(9.0), (4,)), "lift": fields.Block(np.array(0.5))}
    table, frames = wire.block_table(blocks)
    stamp = messages.Stamp(0, 1, 7, 42, 2.1, 0.05, float("inf"), table)
    encoded = [bytes(frame) for frame in wire.encode(messages.Push(stamp), frames)]
    lines = [f"frame {n}, {len(frame)} bytes\n{_hex(frame)}" for n, frame in enumerate(encoded)]
    reader = msgpack.Unpacker()
    reader.feed(encoded[0])
    read = ", then ".join(map(str, reader))
    return "```text\n" + "\n\n".join([*lines, f"frame 0 as the msgpack package reads it\n    {read}"]) + "\n```"


def _hex(data: bytes) -> str:
    rows = [data[start : start + 16] for start in range(0, len(data), 16)]
    shown = ("".join(chr(byte) if 32 <= byte < 127 else "." for byte in row) for row in rows)
    return "\n".join(
        f"    {16 * n:04x}  {row.hex(' '):<47}  {line}" for n, (row, line) in enumerate(zip(rows, shown, strict=True))
    )


def _golden() -> str:
    files = sorted(path for path in GOLDEN.rglob("*") if path.is_file())
    if not files:
        return ""
    rows = [(text.code(path.relative_to(GOLDEN)), f"{path.stat().st_size:,}") for path in files]
    return text.table(("file", "bytes"), rows)
