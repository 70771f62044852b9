"""`coupler ls`: what a run left in its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
from rich.console import Console
from rich.table import Table

from coupler.connect import CASE, KEYS
from coupler.errors import CouplerError
from coupler.trace import OBSERVABLES, TRACE

_WHAT = {
    CASE: "the resolved run file",
    "summary.json": "the numbers of the run",
    "report.html": "the report, self-contained",
    TRACE: "one record per decision",
    OBSERVABLES: "observables of every step and their origin",
    "fields.json": "the declared fields",
    "errors.msgpack": "trajectory error against the reference",
    "ledger.json": "where the solver's time went",
    "simulation.json": "how the simulation ended",
    "server.json": "what the server counted",
    "views": "pictures' data, one file per view and rank",
    "logs": "what each process wrote",
    "checkpoint": "last checkpoint of each task",
    "reference": "the all-direct run",
    "link": "sockets",
    KEYS: "keys of this run's encrypted link",
}


class Entry(NamedTuple):
    """One line of the listing: name, what it is, size in bytes, and how many records or files it holds."""

    name: str
    what: str
    size: int
    holds: str


def entries(folder: Path) -> list[Entry]:
    """What is in a run folder, in a stable order.

    Raises:
        CouplerError: It is no folder, or no run left anything in it.
    """
    if not folder.is_dir():
        raise CouplerError(f"{folder} is no folder; name the folder of a run, such as runs/NAME-SEED-1")
    found = list(_entries(folder))
    if not any(entry.name in _WHAT for entry in found):
        raise CouplerError(f"{folder} holds no run; a run folder has at least {CASE}")
    order = {name: number for number, name in enumerate(_WHAT)}
    return sorted(found, key=lambda entry: (order.get(entry.name, len(order)), entry.name))


def _entries(folder: Path) -> Iterator[Entry]:
    for path in folder.iterdir():
        if path.is_dir():
            files = [file for file in path.rglob("*") if file.is_file()]
            size, count = sum(file.stat().st_size for file in files), f"{len(files)} files"
        else:
            size, count = path.stat().st_size, _records(path) if path.suffix == ".msgpack" else ""
        what = "picture" if path.suffix == ".png" else _WHAT.get(path.name, "")
        yield Entry(path.name, what, size, count)


def _records(path: Path) -> str:
    count = 0
    with path.open("rb") as file:
        unpacker = msgpack.Unpacker(file)
        while True:
            try:
                unpacker.skip()
            except msgpack.OutOfData:
                return f"{count} records"
            except ValueError:
                return f"{count} records, then damaged"
            count += 1


def status(folder: Path) -> str:
    """One line on how the run went, from its summary."""
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text("utf-8"))
    except FileNotFoundError:
        return "no summary.json: the run goes on, or was cut off"
    except (OSError, ValueError) as problem:
        return f"summary.json cannot be read ({problem})"
    words = [f"{summary.get('case')}, seed {summary.get('seed')}: {summary.get('status')}"]
    if (cause := summary.get("cause")) is not None:
        words.append(str(cause))
    if (steps := summary.get("steps")) is not None:
        words.append(f"{steps} steps")
    if isinstance(fraction := summary.get("learned_fraction"), int | float):
        words.append(f"{fraction:.0%} learned")
    if isinstance(speedup := summary.get("net_speedup"), int | float):
        words.append(f"net speedup {speedup:.2f}")
    return ", ".join(words)


def show(folder: Path, console: Console) -> None:
    """Lists a run folder: a table on a terminal, tab-separated lines elsewhere.

    Args:
        folder: The run folder.
        console: Where to write.

    Raises:
        CouplerError: See `entries`.
    """
    found = entries(folder)
    if not console.is_terminal:
        rows = ["\t".join([entry.name, str(entry.size), entry.holds, entry.what]) for entry in found]
        console.file.write("\n".join([*rows, status(folder), ""]))  # rich would turn tabs into spaces
        return
    table = Table(box=None, header_style="bold")
    for heading, side in (("file", "left"), ("size", "right"), ("holds", "right"), ("what it is", "left")):
        table.add_column(heading, justify="right" if side == "right" else "left")
    for entry in found:
        table.add_row(entry.name, _size(entry.size), entry.holds, entry.what)
    console.print(table)
    console.print(status(folder), markup=False)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"
