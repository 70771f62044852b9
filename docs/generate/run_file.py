"""The run file's sections as tables, from the Structs of `schemas.run` and their docstrings."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from generate import text
from launch.allowed import allowed
from launch.init import CASE
from launch.structure import sections
from schemas import run, toml_text


def parts() -> dict[str, str]:
    """`run_file`: one table for each section. `starter`: the case that `coupler init` writes."""
    tables = [_section(name, kind) for name, kind in sections().items()]
    return {"run_file": "\n\n".join(tables), "starter": f"```toml\n{CASE}```"}


def _section(name: str, kind: type[msgspec.Struct]) -> str:
    header = "[[task]]" if name == "task" else f"[{name}]"
    doc = text.docstring(kind)
    meanings = doc.items("Attributes")
    about = doc.text.partition(".")[2].strip(" .\n") or ""
    rows = [
        (text.code(key), may_hold(field.type), _default(kind, field), text.cell(meanings.get(field.name, "")))
        for field in msgspec.structs.fields(kind)
        if (key := field.encode_name) != "settings"
    ]
    if "settings" in meanings:
        rows.append(("*any other*", "as the plug-in says", "", text.cell(meanings["settings"])))
    lead = f"{text.inline(about[:1].upper() + about[1:])}.\n\n" if about else ""
    return f"## `{header}`\n\n{lead}{text.table(('key', 'allowed', 'default', 'meaning'), rows)}"


def may_hold(kind: Any) -> str:
    """What a key may hold, in the words of the checker; patterns as code."""
    return re.sub(r"matches (\S+)", lambda found: f"matches {text.code(found[1])}", allowed(kind)).replace("|", "\\|")


def _default(kind: type[msgspec.Struct], field: Any) -> str:
    return "taken from `use`" if (kind, field.name) == (run.TaskSection, "name") else default(field)


def default(field: Any) -> str:
    """The default of a Struct's field as a run file writes it."""
    if field.required:
        return "**required**"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if value is None:
        return "not set"
    try:
        return text.code(toml_text.value(msgspec.to_builtins(value)))
    except TypeError:
        return text.code(value)
