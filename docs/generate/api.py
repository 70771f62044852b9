"""The Python interface, one page a module, from signatures and docstrings."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import Any

import coupler.testing
from coupler import registry
from generate import text
from generate.plugins import built_in

GROUPS: dict[str, tuple[str, ...]] = {
    "What a simulation needs": (
        "schemas.fields",
        "coupler.contracts",
        "coupler.connect",
        "coupler.coupling",
        "coupler.ranks",
        "coupler.errors",
        "sim_clients.driver",
    ),
    "What decides": ("coupler.switch", "coupler.calibration", "coupler.guard", "coupler.norms", "coupler.change"),
    "Testing kit": tuple(f"coupler.testing.{module.name}" for module in pkgutil.iter_modules(coupler.testing.__path__)),
    "What travels": ("schemas.messages", "schemas.wire", "schemas.run"),
    "Run folder": ("coupler.trace", "coupler.ledger"),
    "Links and plug-ins": (
        "coupler.links.memory",
        "coupler.links.zeromq",
        "coupler.links.security",
        "coupler.registry",
    ),
}
_OWN_METHODS = ("__call__", "__enter__", "__exit__")


def groups() -> dict[str, tuple[str, ...]]:
    """Modules by group; those of the built-in simulations and tasks are looked up."""
    plugins: dict[str, tuple[str, ...]] = {}
    for title, group in (("Built-in simulations", "simulations"), ("Built-in tasks", "tasks")):
        found = built_in(group)  # type: ignore[arg-type]
        plugins[title] = tuple(dict.fromkeys(registry.BUILT_IN[group][name].partition(":")[0] for name in found))  # type: ignore[index]
    return GROUPS | plugins


def parts() -> dict[str, str]:
    """`api`: the table of contents."""
    lists = []
    for title, modules in groups().items():
        entries = "\n".join(f"/generated/api/{name}" for name in modules)
        lists.append(f"## {title}\n\n```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```")
    return {"api": "\n\n".join(lists)}


def pages() -> dict[str, str]:
    """The page of each module."""
    return {name: _page(importlib.import_module(name)) for modules in groups().values() for name in modules}


def _page(module: ModuleType) -> str:
    parts = [f"# {module.__name__}", text.markdown(text.docstring(module).text)]
    constants = text.constants(module)
    if constants:
        rows = [(text.code(name), _value(getattr(module, name)), text.cell(doc)) for name, doc in constants.items()]
        parts.append(text.table(("constant", "value", "meaning"), rows))
    for name, thing in _public(module).items():
        parts.append(_class(name, thing) if inspect.isclass(thing) else _function(f"`{name}`", thing, 2))
    return "\n\n".join(parts) + "\n"


def _value(value: Any) -> str:
    shown = repr(value)
    return text.code(shown) if len(shown) <= 60 and " at 0x" not in shown else ""


def _public(module: ModuleType) -> dict[str, Any]:
    """Functions and classes that the module defines, in the order of the source."""
    # A package such as vortex_street gives the classes of its modules: those count as its own.
    inside = (module.__name__, f"{module.__name__}.") if hasattr(module, "__path__") else (module.__name__,)
    found = {
        name: thing
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(thing) or inspect.isroutine(inspect.unwrap(thing)))
        and (thing.__module__ == inside[0] or (len(inside) > 1 and thing.__module__.startswith(inside[1])))
    }
    return dict(sorted(found.items(), key=lambda item: _line(item[1])))


def _line(thing: Any) -> int:
    return inspect.getsourcelines(inspect.unwrap(thing))[1]


def _signature(thing: Any, name: str) -> str:
    try:
        signature = str(inspect.signature(thing))
    except ValueError:
        return name
    # Structs give their annotations as objects, functions as text; both shall read as written.
    signature = re.sub(r"<(?:class|function) '?([\w.]+)'?[^>]*>", r"\1", signature)
    signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature)
    line = f"{name}{signature}"
    if len(line) <= 100:
        return line
    return _wrapped(line)


def _wrapped(line: str) -> str:
    """A long signature with one parameter a line."""
    opening = line.index("(")
    depth, pieces, start = 0, [], opening + 1
    for at in range(opening + 1, len(line)):
        depth += (line[at] in "([{") - (line[at] in ")]}")
        if depth < 0:
            pieces.append(line[start:at])
            return f"{line[: opening + 1]}\n" + "".join(f"    {p.strip()},\n" for p in pieces if p.strip()) + line[at:]
        if line[at] == "," and depth == 0:
            pieces.append(line[start:at])
            start = at + 1
    return line


def _function(title: str, function: Any, level: int) -> str:
    plain = inspect.unwrap(getattr(function, "py_func", function))
    name = title.strip("`").rpartition(".")[2]
    heading = f"{'#' * level} {title}\n\n```python\n{_signature(plain, name)}\n```"
    return "\n\n".join([heading, *_prose(text.docstring(plain))])


def _prose(doc: text.Docstring) -> list[str]:
    found = [text.markdown(doc.text)] if doc.text else []
    for section in doc.sections:
        entries = doc.items(section)
        if entries and section != "Returns":
            items = "\n".join(f"- {text.code(name)}: {text.inline(meaning)}" for name, meaning in entries.items())
            found.append(f"**{section}**\n\n{items}")
        else:
            found.append(f"**{section}**\n\n{text.markdown(doc.sections[section])}")
    return found


def _class(name: str, cls: type[Any]) -> str:
    # Nobody makes an instance of a Protocol.
    made = f"class {name}" if getattr(cls, "_is_protocol", False) else _signature(cls, f"class {name}")
    parts = [f"## `{name}`", f"```python\n{made}\n```"]
    parts += _prose(text.docstring(cls))
    settings = text.docstring(cls.__init__) if "__init__" in vars(cls) else text.Docstring("", {})
    entries = settings.items("Args")
    if entries:
        items = "\n".join(f"- {text.code(key)}: {text.inline(meaning)}" for key, meaning in entries.items())
        parts.append(f"**Args**\n\n{items}")
    members = text.members(cls)
    if members:
        parts.append("\n".join(f"- {text.code(key)}: {text.inline(meaning)}" for key, meaning in members.items()))
    for key, member in vars(cls).items():
        if key.startswith("_") and key not in _OWN_METHODS:
            continue
        if isinstance(member, property):
            parts.append(f"### `{name}.{key}`\n\n*property*\n\n{text.markdown(text.docstring(member).text)}")
        elif inspect.isfunction(member) or isinstance(member, (classmethod, staticmethod)):
            parts.append(_function(f"`{name}.{key}`", getattr(cls, key), 3))
    return "\n\n".join(part for part in parts if part)
