"""Rules of a run file that span several keys. Pure, but for looking up plug-in classes beforehand."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterator, Mapping
from typing import Any

from coupler.bulks.adios_engine import refused
from coupler.bulks.outbox import SPARE_SLOTS
from coupler.connect import bulk_rules
from coupler.contracts import Simulation, Task
from coupler.registry import parameters
from launch.structure import Mistake
from schemas.run import GuardSection, LimitsSection, LinkSection, Rung, RunSpec, SwitchSection

PARTS = ("arrays", "dt")
"""Parts of Advice that a task may own."""
_MEMBERS = {
    Simulation: ("fields", "snapshot", "integrate", "adopt", "save", "restore", "invariants"),
    Task: ("observe", "forecast", "learn", "state", "restore", "owns"),
}


def broken(spec: RunSpec, simulation: type[Any] | None, tasks: Mapping[str, type[Any]]) -> Iterator[Mistake]:
    """The rules that a spec breaks whose keys are valid one by one.

    Args:
        spec: The spec.
        simulation: Class of the simulation; None when it is not known.
        tasks: Classes of the tasks by name; those that are not known are left out.
    """
    yield from _ranks(spec, simulation)
    yield from _tasks(spec, tasks)
    yield from _owners(spec, tasks)
    yield from _link(spec.link, spec.run.rung)
    yield from _bulk(spec)
    yield from _switch(spec.switch)
    yield from _guard(spec.guard)
    yield from _limits(spec.limits)


def _ranks(spec: RunSpec, simulation: type[Any] | None) -> Iterator[Mistake]:
    ranks, rung, path = spec.simulation.ranks, spec.run.rung, ("simulation", "ranks")
    if ranks > 1 and rung in ("inline", "threads", "local"):
        yield Mistake(
            path,
            f'simulation.ranks is {ranks}, but rung "{rung}" runs one; use run.rung = "mpi", or simulation.ranks = 1',
        )
    if simulation is None:
        return
    if ranks > 1 and "ranks" not in parameters(simulation):
        yield Mistake(
            path, f'simulation.ranks is {ranks}, but "{spec.simulation.use}" is serial: its __init__ takes no ranks'
        )
    yield from _members(simulation, Simulation, spec.simulation.use, ("simulation", "use"))


def _members(cls: type[Any], contract: Any, use: str, path: tuple[str | int, ...]) -> Iterator[Mistake]:
    missing = [name for name in _MEMBERS[contract] if getattr(cls, name, None) is None]
    if missing:
        yield Mistake(path, f'"{use}" is no {contract.__name__}: it lacks {", ".join(missing)}')


def _tasks(spec: RunSpec, tasks: Mapping[str, type[Any]]) -> Iterator[Mistake]:
    seen: set[str] = set()
    for index, task in enumerate(spec.tasks):
        if task.name in seen:
            yield Mistake(("task", index), f'two tasks are named "{task.name}"; give each a name of its own')
        seen.add(task.name)
        if task.name in tasks:
            cls, path = tasks[task.name], ("task", index, "use")
            yield from _members(cls, Task, task.use, path)
            owns = getattr(cls, "owns", None)
            if owns is not None and (not isinstance(owns, frozenset | set) or not owns or not owns <= set(PARTS)):
                yield Mistake(path, f'"{task.use}" owns {owns!r}; a Task has owns, a set of some of {", ".join(PARTS)}')
    if spec.run.mode in ("shadow", "advise", "act") and not spec.tasks:
        yield Mistake(
            ("run", "mode"), f'run.mode is "{spec.run.mode}", but the case has no [[task]]; add one or use "off"'
        )


def _owners(spec: RunSpec, tasks: Mapping[str, type[Any]]) -> Iterator[Mistake]:
    owners: dict[str, str] = {}
    for index, task in enumerate(spec.tasks):
        for part in sorted(getattr(tasks.get(task.name), "owns", None) or ()):
            if owners.setdefault(part, task.name) != task.name:
                yield Mistake(
                    ("task", index, "use"),
                    f'tasks "{owners[part]}" and "{task.name}" both own {part}; a part has one owner',
                )
    if "arrays" in owners and spec.switch.tolerance is None:
        yield Mistake(
            ("switch", "tolerance"),
            f'task "{owners["arrays"]}" owns arrays, so [switch] needs tolerance, the largest horizon error to accept, '
            "rms over rms fluctuation",
        )
    if len(tasks) == len(spec.tasks) > 0 and spec.run.mode == "advise" and "dt" not in owners:
        yield Mistake(
            ("run", "mode"),
            'run.mode is "advise", which takes a dt only, but no task owns dt; add one, or use "shadow" or "act"',
        )
    for key in ("dt_min", "dt_max"):
        if "dt" in owners and getattr(spec.limits, key) is None:
            yield Mistake(("limits", key), f'task "{owners["dt"]}" owns dt, so [limits] needs {key}')


def _link(link: LinkSection, rung: Rung) -> Iterator[Mistake]:
    if link.use == "memory" and rung in ("local", "mpi"):
        yield Mistake(
            ("link", "use"),
            f'link.use is "memory", but rung "{rung}" starts several processes; use link.use = "zeromq"',
        )
    if link.window_bytes < 2 * link.max_message_bytes:
        yield Mistake(
            ("link", "window_bytes"),
            f"link.window_bytes is {link.window_bytes}; it must hold two messages of max_message_bytes = "
            f"{link.max_message_bytes}",
        )
    if sentence := address_mistake(link.address, link.curve):
        yield Mistake(("link", "address"), f'link.address is "{link.address}"; {sentence}')


def _bulk(spec: RunSpec) -> Iterator[Mistake]:
    least = spec.link.credit + SPARE_SLOTS
    if spec.bulk.slots is not None and spec.bulk.slots < least:
        yield Mistake(
            ("bulk", "slots"),
            f"bulk.slots is {spec.bulk.slots}; it must be {least} or more: link.credit = {spec.link.credit} under way, "
            f"and {SPARE_SLOTS} to work in",
        )
    yield from (Mistake(("bulk", "adios"), sentence) for sentence in refused(bulk_rules(spec).adios))


def address_mistake(address: str, curve: bool) -> str:
    """Why an address may not be used, or nothing. Host names but localhost count as beyond this machine."""
    if address == "ipc":
        return ""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not address.startswith("tcp://") or not host or not port.isdecimal():
        return 'it must be "ipc" or "tcp://HOST:PORT", such as "tcp://127.0.0.1:5555"'
    if not 0 < int(port) < 65536:
        return f"port {port} is not in 1 to 65535"
    try:
        ip = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]"))
    except ValueError:
        ip = None
    if host == "*" or (ip is not None and ip.is_unspecified):
        return "it would listen on every network; name one address"
    if not curve and (ip is None or not ip.is_loopback):
        return 'it leaves this machine, which needs link.curve = true; or use "ipc" or "tcp://127.0.0.1:PORT"'
    return ""


def _switch(switch: SwitchSection) -> Iterator[Mistake]:
    for low, high in (("min_horizon", "max_horizon"), ("cooldown", "max_cooldown")):
        least, most = getattr(switch, low), getattr(switch, high)
        if least > most:
            yield Mistake(("switch", low), f"switch.{low} is {least}, above switch.{high} = {most}")


def _guard(guard: GuardSection) -> Iterator[Mistake]:
    for name, (low, high) in guard.bounds.items():
        if math.isnan(low) or math.isnan(high) or low >= high:
            yield Mistake(
                ("guard", "bounds", name), f"guard.bounds.{name} is [{low}, {high}]; the first must be below the second"
            )


def _limits(limits: LimitsSection) -> Iterator[Mistake]:
    dt, low, high = limits.dt, limits.dt_min, limits.dt_max
    if low is not None and high is not None and low > high:
        yield Mistake(("limits", "dt_min"), f"limits.dt_min is {low}, above limits.dt_max = {high}")
    elif dt is not None and not (low or 0.0) <= dt <= (high or math.inf):
        yield Mistake(
            ("limits", "dt"), f"limits.dt is {dt}, outside dt_min = {low or 0.0} to dt_max = {high or math.inf}"
        )
    if limits.errors and low is None:
        yield Mistake(
            ("limits", "errors"),
            "limits.errors has steps made again with a smaller dt, where dt is chosen: give limits.dt_min",
        )
