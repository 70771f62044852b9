"""Finds plug-ins by name and constructs them from the settings of a run file.

Built-ins are lazy `"module:Class"` strings, so naming one imports nothing; then come entry points of installed
packages (groups `coupler.simulations`, `coupler.tasks`, `coupler.links`); then a literal `"my.module:Thing"`.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Literal

import msgspec

from coupler.errors import CouplerError, PluginError

Group = Literal["simulations", "tasks", "links"]

RESERVED = frozenset({"ranks", "seed", "fields", "for_reference"})
"""Constructor arguments that the coupler gives; never settings."""

BUILT_IN: Mapping[Group, Mapping[str, str]] = {
    "simulations": {
        "double_well": "sim_clients.double_well:DoubleWell",
        "lammps": "sim_clients.adapters.lammps:Lammps",
        "oscillator": "sim_clients.oscillator:Oscillator",
        "recording": "sim_clients.recording:Recording",
        "relaxation": "sim_clients.relaxation:Relaxation",
        "vortex_street": "sim_clients.vortex_street:VortexStreet",
    },
    "tasks": {
        "propagator": "ml_servers.tasks.propagator:Propagator",
        "timestep": "ml_servers.tasks.timestep:Timestep",
    },
    "links": {
        "memory": "coupler.links.memory:MemoryHub",
        "zeromq": "coupler.links.zeromq",
    },
}


def known(group: Group) -> dict[str, str]:
    """Names of a group with their `"module:Class"` targets, built-ins first."""
    installed = {entry.name: entry.value for entry in metadata.entry_points(group=f"coupler.{group}")}
    return {**installed, **BUILT_IN[group]}


def find(group: Group, name: str) -> Any:
    """Imports the plug-in of that name.

    Args:
        group: `simulations`, `tasks` or `links`.
        name: A known name or `"my.module:Thing"`; a link may also be a module, `"my.module"`.

    Returns:
        A class; for `links` a class or a module that has `listen` and `connect` as `coupler.links.zeromq` has them.

    Raises:
        PluginError: Unknown, cannot be imported, or of the wrong sort; a failed import is the cause.
    """
    kind, names = group.removesuffix("s"), known(group)
    target = names.get(name, name)
    module_name, colon, attribute = target.partition(":")
    is_module = group == "links" and not colon and (name in names or "." in name)
    if not is_module and not (colon and module_name and attribute):
        raise PluginError(
            f'no {kind} is called "{name}"; known are {", ".join(names)}{nearest(name, names)}; '
            'a class of your own is named as "my.module:Thing"'
        )
    thing = module = _imported(module_name, kind, name)
    for part in attribute.split(".") if attribute else ():
        thing = getattr(thing, part, None)
    if group == "links" and not (hasattr(thing, "listen") and hasattr(thing, "connect")):
        raise PluginError(f'the link "{name}" lacks listen or connect; see coupler.links.zeromq for what they take')
    if group != "links" and not isinstance(thing, type):
        here = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise PluginError(f'the {kind} "{name}" is no class of module {module_name}{nearest(attribute, here)}')
    return thing


def _imported(module_name: str, kind: str, name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except Exception as problem:
        cause = f"{type(problem).__name__}: {problem}"
        raise PluginError(f'the {kind} "{name}" cannot be imported ({cause})') from problem


def nearest(name: str, names: typing.Iterable[str]) -> str:
    """`; did you mean "..."?` with the closest of the valid names, or nothing when none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else ""


def parameters(cls: type[Any]) -> dict[str, inspect.Parameter]:
    """Constructor parameters by name, `self` left out.

    Raises:
        PluginError: One of them cannot be given by keyword.
    """
    if cls.__init__ is object.__init__:
        return {}
    found = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
    for name, parameter in found.items():
        if parameter.kind not in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise PluginError(
                f'{cls.__name__}.__init__ takes "{parameter}"; a plug-in names each of its settings as an annotated '
                f"keyword parameter, so that the run file can be checked: replace {name} by what it stands for"
            )
    return found


def settings_type(cls: type[Any]) -> type[msgspec.Struct]:
    """A Struct of the settings that the constructor takes, with their types, ranges and defaults.

    Raises:
        PluginError: A parameter is not annotated, or with a type that no run file can hold.
    """
    wanted = {name: parameter for name, parameter in parameters(cls).items() if name not in RESERVED}
    bare = [name for name, parameter in wanted.items() if parameter.annotation is parameter.empty]
    if bare:
        raise PluginError(f"{cls.__name__}.__init__ lacks the annotation of {', '.join(bare)}; settings need a type")
    try:
        hints = _hints(cls, wanted)
        members = [_member(name, hints[name], parameter.default) for name, parameter in wanted.items()]
        struct = msgspec.defstruct(f"{cls.__name__}Settings", members, frozen=True, kw_only=True, **_STRICT)
        msgspec.inspect.type_info(struct)
    except Exception as problem:
        raise PluginError(f"the settings of {cls.__name__} cannot be read from its __init__ ({problem})") from problem
    return struct


_STRICT: dict[str, Any] = {"forbid_unknown_fields": True}


def _hints(cls: type[Any], wanted: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    # Only the settings are resolved: a plug-in may import the types of `ranks` and `fields` for type checking only.
    probe = types.FunctionType((lambda: None).__code__, getattr(cls.__init__, "__globals__", {}))
    probe.__annotations__ = {name: parameter.annotation for name, parameter in wanted.items()}
    return typing.get_type_hints(probe, include_extras=True)


def _member(name: str, kind: Any, default: Any) -> tuple[str, Any] | tuple[str, Any, Any]:
    if default is inspect.Parameter.empty:
        return (name, kind)
    if isinstance(default, list | dict | set):
        return (name, kind, msgspec.field(default_factory=lambda: copy.deepcopy(default)))
    return (name, kind, default)


def construct(cls: type[Any], settings: Mapping[str, Any], **reserved: Any) -> Any:
    """Makes an instance.

    Args:
        cls: The plug-in.
        settings: Keys and values from the run file.
        **reserved: Any of `RESERVED`; those that the constructor does not take are left out.

    Raises:
        PluginError: A setting is wrong or the constructor raised; its text is kept.
    """
    accepted = parameters(cls)
    try:
        values = msgspec.convert(dict(settings), settings_type(cls))
        given = {name: getattr(values, name) for name in settings}
        return cls(**given, **{name: value for name, value in reserved.items() if name in accepted})
    except PluginError:
        raise
    except msgspec.ValidationError as problem:
        raise PluginError(f"a setting of {cls.__name__} is wrong: {problem}") from problem
    except Exception as problem:
        text = (
            str(problem) if isinstance(problem, ValueError | CouplerError) else f"{type(problem).__name__}: {problem}"
        )
        raise PluginError(f"{cls.__name__} cannot be made: {text}") from problem
