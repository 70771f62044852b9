"""The built-in simulations and tasks with their settings, from their constructors."""

from __future__ import annotations

import importlib.util
from typing import Any

import msgspec

from coupler import registry
from generate import text
from generate.run_file import default, may_hold


def parts() -> dict[str, str]:
    """`simulations` and `tasks`: what each built-in one is, and a table of its settings."""
    return {group: _group(group) for group in ("simulations", "tasks")}


def built_in(group: registry.Group) -> dict[str, type[Any]]:
    """The built-in classes of a group by name."""
    found = {}
    for name, target in registry.BUILT_IN[group].items():
        if importlib.util.find_spec(target.partition(":")[0]) is not None:
            found[name] = registry.find(group, name)
    return found


def _group(group: registry.Group) -> str:
    return "\n\n".join(_plugin(name, cls) for name, cls in built_in(group).items())


def _plugin(name: str, cls: type[Any]) -> str:
    meanings = text.docstring(cls.__init__).items("Args")
    rows = [
        (text.code(f.encode_name), may_hold(f.type), default(f), text.cell(meanings.get(f.name, "")))
        for f in msgspec.structs.fields(registry.settings_type(cls))
    ]
    settings = text.table(("key", "allowed", "default", "meaning"), rows) if rows else "It has no settings."
    owns = getattr(cls, "owns", None)
    owned = f"\n\nOwns: {', '.join(map(text.code, sorted(owns)))}." if owns else ""
    return f'### `use = "{name}"`\n\n{text.markdown(text.docstring(cls).text)}{owned}\n\n{settings}'
