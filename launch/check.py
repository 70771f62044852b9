"""Reads a run file and finds every mistake in it at once, each with its place in the file."""

from __future__ import annotations

import copy
import importlib
import os
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from coupler import registry
from coupler.bulks import bp5, folder
from coupler.errors import CaseError, PluginError
from launch import toml_lines
from launch.overrides import override
from launch.rules import broken
from launch.structure import Mistake, misfits, sections, written
from schemas import toml_text
from schemas.run import RunSpec, SimulationSection, TaskSection, from_table, named, own_keys
from sim_clients.recording import Recording

_PLUGINS: dict[str, tuple[registry.Group, type[SimulationSection] | type[TaskSection]]] = {
    "simulation": ("simulations", SimulationSection),
    "task": ("tasks", TaskSection),
}
_GIVEN = {
    "seed": "the coupler gives the constructor run.seed",
    "fields": "the coupler gives a task the fields of the simulation",
}
RANKS_A_CORE = 64
"""More ranks than that on each core are a slip of the pen; they would take all memory before they do anything."""
RANK_BYTES = (1 << 20) + (1 << 14)
"""What MPICH 5 maps for each rank. Where it is not there, MPI_Init ends in a bus error."""
_UNKNOWN: Any = "?"
"""Stands for a value that is missing or wrong where rules are tried nevertheless; it breaks none."""


def check(path: str | Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Reads a run file. Puts the folders searched for plug-ins (the file's own, the current one) on `sys.path`.

    Args:
        path: The run file.
        overrides: Assignments such as `run.steps=100`, applied in order before anything is checked.

    Returns:
        The resolved spec: plug-in defaults filled in, search path absolute.

    Raises:
        CaseError: Something is wrong; it carries every mistake, in the order of the file.
    """
    case = _Case(Path(path), overrides)
    case.search()
    case.sections()
    case.links()
    case.recording()
    case.record()
    case.room()
    case.ranks()
    case.rules()
    if case.mistakes or case.refused:
        raise CaseError(case.report())
    return case.resolved()


def cores() -> int:
    """Cores that this process, and all that it starts, may use."""
    return len(os.sched_getaffinity(0))


def crowded(spec: RunSpec) -> str:
    """What it means that there are more ranks than cores here; empty where there are not."""
    ranks, here = spec.simulation.ranks, cores()
    if spec.run.rung != "mpi" or ranks <= here:
        return ""
    return f"{ranks} ranks share {_counted(here, 'core')}: each step waits for ranks that do not run."


class _Case:
    """One run file while it is checked."""

    def __init__(self, path: Path, overrides: Sequence[str]) -> None:
        self.path = path
        self.mistakes: list[Mistake] = []
        self.table, self.lines = _read(path)
        self.classes: dict[toml_lines.Path, type[Any]] = {}
        self.settings: dict[toml_lines.Path, type[msgspec.Struct]] = {}
        self.origins: dict[toml_lines.Path, str] = {}
        self.refused: list[str] = []
        for assignment in overrides:
            try:
                self.origins[override(self.table, assignment)] = assignment
            except ValueError as problem:
                self.refused.append(f"--set {assignment}: {problem}")

    def search(self) -> None:
        """Resolves `run.path` against the file's folder and puts it on `sys.path`."""
        run = self.table.get("run")
        given = run.get("path", []) if isinstance(run, dict) else []
        beside = self.path.resolve().parent
        wanted = [str(beside), os.getcwd()]
        if isinstance(given, list) and all(isinstance(item, str) for item in given):
            wanted = list(dict.fromkeys(wanted + [os.path.normpath(beside / item) for item in given]))
            if isinstance(run, dict):
                run["path"] = wanted
        sys.path[:0] = [item for item in wanted if item not in sys.path]
        importlib.invalidate_caches()

    def sections(self) -> None:
        """Compares every section with its Struct, and the plug-ins' keys with their constructors."""
        kinds = sections()
        for name in self.table:
            if name not in kinds:
                self._add((name,), f"there is no section [{name}]{_section_like(name)}")
        for name, kind in kinds.items():
            content = self.table.get(name)
            if name == "task" and isinstance(content, list):
                for index, task in enumerate(content):
                    self._section(("task", index), task, kind)
            elif content is not None:
                self._section((name,), content, kind)
            elif name in ("run", "simulation"):
                self._add((name,), f"the section [{name}] is missing")

    def _section(self, path: toml_lines.Path, content: Any, kind: type[msgspec.Struct]) -> None:
        name = str(path[0])
        header = "[[task]]" if name == "task" else f"[{name}]"
        if not isinstance(content, dict) or path == ("task",):
            self._add(path, f"{name} is {written(content)}; write it as a section, {header}")
        elif name in _PLUGINS:
            self._plugin(path, content, header)
        else:
            self.mistakes += misfits(content, kind, path, header=header)

    def _plugin(self, path: toml_lines.Path, content: dict[str, Any], header: str) -> None:
        group, kind = _PLUGINS[str(path[0])]
        keys = own_keys(kind)
        full = named(content) if kind is TaskSection else content
        own = {key: value for key, value in full.items() if key in keys}
        found = misfits(own, kind, path, header=header)
        self.mistakes += [mistake for mistake in found if mistake.path[-1] != "name" or "name" in content]
        if not isinstance(use := content.get("use"), str):
            return
        try:
            cls = registry.find(group, use)
            self.settings[path] = registry.settings_type(cls)
        except PluginError as problem:
            self._add((*path, "use"), str(problem))
            return
        self.classes[path] = cls
        rest = {key: value for key, value in content.items() if key not in keys}
        header = f'{header} with use = "{use}"'
        self.mistakes += misfits(rest, self.settings[path], path, header=header, also=keys, notes=_GIVEN)

    def links(self) -> None:
        """Looks the link up."""
        link = self.table.get("link")
        if isinstance(link, dict) and isinstance(use := link.get("use"), str):
            try:
                registry.find("links", use)
            except PluginError as problem:
                self._add(("link", "use"), str(problem))

    def recording(self) -> None:
        """Looks for what a recording needs: a server, and the package that writes it."""
        output, run = self.table.get("output"), self.table.get("run")
        if not isinstance(output, dict) or output.get("record") != "bp5":
            return
        path = ("output", "record")
        if isinstance(run, dict) and run.get("mode") == "off":
            self._add(path, 'output.record is "bp5", but nothing is streamed in mode "off"; use run.mode = "shadow"')
        if sentence := bp5.missing():
            self._add(path, f'output.record is "bp5", but {sentence}')

    def room(self) -> None:
        """Compares what the training buffer asks for with what shared memory has free."""
        bulk = self.table.get("bulk")
        wanted = bulk.get("buffer_bytes") if isinstance(bulk, dict) else None
        if isinstance(wanted, int) and wanted > (free := folder.free_bytes()):
            where = f"{folder.memory()} has {free} bytes free"
            self._add(("bulk", "buffer_bytes"), f"bulk.buffer_bytes is {wanted}, but {where}; lower it, or free some")

    def record(self) -> None:
        """Looks for the file that the simulation `recording` plays, where it will look itself."""
        path = self.table["simulation"].get("path") if self.classes.get(("simulation",)) is Recording else None
        if isinstance(path, str) and not any(Path(folder, path).exists() for folder in ("", *sys.path)):
            where = "neither in the current folder nor in those of run.path"
            self._add(("simulation", "path"), f'simulation.path is "{path}", which is not there, {where}')

    def ranks(self) -> None:
        """Compares the ranks that are started here with the cores, and with the memory that MPI shares among them."""
        simulation, run = self.table.get("simulation"), self.table.get("run")
        ranks = simulation.get("ranks", 1) if isinstance(simulation, dict) else None
        if not isinstance(ranks, int) or not isinstance(run, dict) or run.get("rung") != "mpi":
            return
        path, here, free = ("simulation", "ranks"), cores(), folder.free_bytes()
        if ranks > RANKS_A_CORE * here:
            limit = f"{_counted(here, 'core')} can be used here, for {RANKS_A_CORE} ranks each at most"
            self._add(path, f"simulation.ranks is {ranks}, and {limit}; use fewer ranks")
        elif free < ranks * RANK_BYTES:
            room = f"MPI takes {RANK_BYTES} bytes of {folder.memory()} for each rank, which has {free} bytes free"
            self._add(path, f"simulation.ranks is {ranks}, and {room}; free some")

    def rules(self) -> None:
        """Tries the rules that span several keys, on all that is right so far."""
        bad = {mistake.path for mistake in self.mistakes}
        spec = _without(self.table, bad)
        tasks = {
            task.name: self.classes[path] for i, task in enumerate(spec.tasks) if (path := ("task", i)) in self.classes
        }
        if any(path[0] == "task" for path in bad) or self.refused:
            spec = msgspec.structs.replace(spec, run=msgspec.structs.replace(spec.run, mode=_UNKNOWN))
        found = broken(spec, self.classes.get(("simulation",)), tasks)
        self.mistakes += [mistake for mistake in found if mistake.path not in bad]

    def report(self) -> list[str]:
        """All mistakes as sentences with their places, in the order of the file; overrides follow."""
        overrides = list(self.origins.items())
        placed = []
        for number, mistake in enumerate(self.mistakes):
            setters = [i for i, (path, _) in enumerate(overrides) if mistake.path[: len(path)] == path]
            if setters:
                order, where = (1, setters[-1]), f"--set {overrides[setters[-1]][1]}"
            else:
                order = (0, toml_lines.line_of(self.lines, mistake.path))
                where = f"{self.path}:{order[1]}"
            placed.append((*order, number, f"{where}: {mistake.sentence}"))
        return [sentence for *_, sentence in sorted(placed)] + self.refused

    def resolved(self) -> RunSpec:
        """The spec with the defaults of the plug-ins filled in."""
        for path, kind in self.settings.items():
            content = self.table["simulation"] if path == ("simulation",) else self.table["task"][path[1]]
            given = {field.encode_name for field in msgspec.structs.fields(kind)} & content.keys()
            values = msgspec.convert({key: content[key] for key in given}, kind)
            content.update(_writable(msgspec.structs.asdict(values)))
        return from_table(self.table)

    def _add(self, path: toml_lines.Path, sentence: str) -> None:
        self.mistakes.append(Mistake(path, sentence))


def _read(path: Path) -> tuple[dict[str, Any], dict[toml_lines.Path, int]]:
    try:
        text = path.read_text("utf-8")
    except OSError as problem:
        raise CaseError([f"{path}: cannot be read ({problem.strerror})"]) from problem
    except UnicodeDecodeError as problem:
        raise CaseError([f"{path}: is not UTF-8 text (byte {problem.start})"]) from problem
    try:
        return tomllib.loads(text), toml_lines.key_lines(text)
    except tomllib.TOMLDecodeError as problem:
        place = re.search(r"at line (\d+)", str(problem))
        line = place[1] if place else text.count("\n") + 1
        raise CaseError([f"{path}:{line}: this is not TOML: {problem}"]) from problem


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number != 1 else ''}"


def _section_like(name: str) -> str:
    kinds = sections()
    holder = [f"{section}.{name}" for section, kind in kinds.items() if name in own_keys(kind)]
    if holder:
        return f'; did you mean "{holder[0]}"?'
    return f"; there are {', '.join(kinds)}{registry.nearest(name, kinds)}"


def _without(table: dict[str, Any], bad: set[toml_lines.Path]) -> RunSpec:
    """A spec of all that is right; what is not takes its default, or a value that breaks no rule."""
    table = copy.deepcopy(table)
    for name in table.keys() - sections().keys():
        del table[name]
    for path in sorted(bad, key=len):
        node: Any = table
        for part in path[:-1]:
            node = node.get(part, {}) if isinstance(node, dict) else node[part]
        if isinstance(node, dict):
            node.pop(path[-1], None)
        else:
            node[path[-1]] = {}
    unknown = {"name": "unknown", "steps": 1, "mode": "off", "rung": "mpi"}
    run = table.get("run", {})
    table["run"] = unknown | run
    table["simulation"] = {"use": ""} | table.get("simulation", {})
    for index, task in enumerate(table.get("task", ())):
        table["task"][index] = {"name": f"unknown-{index}", "use": ""} | named(task)
    spec = from_table(table)
    holes = {key: _UNKNOWN for key in ("mode", "rung") if key not in run}
    return msgspec.structs.replace(spec, run=msgspec.structs.replace(spec.run, **holes))


def _writable(values: dict[str, Any]) -> dict[str, Any]:
    """Values as a run file gives them back; those that TOML does not have, such as None, are left out."""
    kept = {}
    for key, value in msgspec.to_builtins(values).items():
        try:
            kept[key] = tomllib.loads(f"value = {toml_text.value(value)}")["value"]
        except TypeError:
            continue
    return kept
