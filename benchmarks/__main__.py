"""`python -m benchmarks [NAME ...]`: measures groups of figures, prints them as tables, writes them to bench.json."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.table import BenchmarkFailed, Rows, merge, show


@dataclass(frozen=True, slots=True)
class Group:
    """A group of figures.

    Attributes:
        source: Function that gives its rows, as `module:function`. It takes `seeds`, `say`, both or neither.
        about: What it shows and how long it takes.
        long: Whether only `all`, or its name, runs it.
    """

    source: str
    about: str
    long: bool = False


GROUPS = {
    "links": Group("benchmarks.links:rows", "round trips of the Links against bare pyzmq, seconds"),
    "step": Group("benchmarks.step:rows", "what one coupling step costs the solver, a minute"),
    "bulk": Group("benchmarks.bulk:rows", "a state handed over and one got back, by shared memory, 2 minutes"),
    "fan_in": Group("benchmarks.fan_in:rows", "64 ranks to one server, against bare pyzmq, a minute"),
    "tcp": Group("benchmarks.tcp:rows", "a state across tcp, there and back, against bare pyzmq, half a minute"),
    "promises": Group("benchmarks.promises:rows", "where a step's time goes, what each promise costs, a minute"),
    "streaming": Group("benchmarks.streaming:rows", "a trainer with and without a stream, 2 minutes"),
    "adios": Group("benchmarks.adios:rows", "ADIOS2 streams against adios2 alone, half a minute"),
    "imports": Group("benchmarks.imports:rows", "what a simulation process imports, half a minute"),
    "solvers": Group("benchmarks.solvers:rows", "cell updates a second and such, a minute"),
    "timestep": Group("benchmarks.timestep:rows", "learned dt against fixed dt and a PI controller, minutes"),
    "peers": Group("benchmarks.peers:rows", "what else hands arrays to another process, 6 minutes"),
    "coverage": Group("benchmarks.coverage:rows", "whether adopted states keep their bound, a minute a seed", True),
    "useless": Group("benchmarks.useless:rows", "what a model that learns nothing costs, 7 minutes a seed", True),
    "lammps": Group("benchmarks.lammps:rows", "LAMMPS's benchmark decks, and what `shadow` costs, 10 minutes", True),
    "lammps_timestep": Group("benchmarks.lammps:timestep", "examples/lammps_timestep.toml, 15 minutes a seed", True),
    "street": Group("benchmarks.runs:street", "examples/vortex_street.toml, 5 minutes a seed", True),
    "gust": Group("benchmarks.runs:gust", "examples/vortex_gust.toml, 4 minutes a seed", True),
    "hidden": Group("benchmarks.runs:hidden", "the gust that nobody announces, 4 minutes a seed", True),
    "relaxation": Group("benchmarks.runs:relaxation", "examples/relaxation_timestep.toml, minutes a seed", True),
    "shadow": Group("benchmarks.runs:shadow", "whether `shadow` leaves the trajectory alone, 3 minutes", True),
    "growth": Group("benchmarks.runs:growth", "net speedup against run length and grid, an hour", True),
}
WIDTH = 150
"""Of the tables when they go to a file; a terminal has its own."""
RUNS = ("street", "gust", "hidden", "relaxation", "shadow", "growth")
"""What the name `runs` stands for."""


def chosen(names: Sequence[str]) -> list[str]:
    """Names of the groups to run, in their own order: the quick ones when none is named.

    Raises:
        BenchmarkFailed: There is no group of that name.
    """
    if unknown := [name for name in names if name not in GROUPS and name not in ("all", "runs")]:
        raise BenchmarkFailed(f"no group is called {unknown[0]!r}; there are {', '.join([*GROUPS, 'runs', 'all'])}")
    wanted = {*names, *(RUNS if "runs" in names else ()), *(GROUPS if "all" in names else ())}
    return [name for name, group in GROUPS.items() if (name in wanted if names else not group.long)]


def measure(name: str, seeds: Sequence[int], say: Callable[[str], None]) -> Rows:
    """The rows of one group.

    Raises:
        BenchmarkFailed: It is not there, or cannot be measured.
    """
    module_name, _, function_name = GROUPS[name].source.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as problem:
        if problem.name != module_name:
            raise
        raise BenchmarkFailed(f"{module_name} is not there") from problem
    function = getattr(module, function_name)
    offered = {"seeds": tuple(seeds), "say": say}
    taken = inspect.signature(function).parameters
    rows: Rows = function(**{key: value for key, value in offered.items() if key in taken})
    return rows


def run(names: Iterable[str], seeds: Sequence[int], out: Path, console: Console) -> int:
    """Measures groups one after the other; each is in the file as soon as it is measured. Returns the exit code."""
    failed, missed = [], []
    for name in names:
        console.print(f"[bold]{name}[/]: {GROUPS[name].about}")
        try:
            rows = measure(name, seeds, lambda line: console.print(f"  {line}", highlight=False))
            merge(out, name, rows)
        except BenchmarkFailed as problem:
            failed.append(name)
            console.print(f"[red]{name}[/]: {problem}", highlight=False)
            continue
        show(name, rows, console)
        missed += [f"{name}: {r['case']}" for r in rows if r.get("met") is False]
    if missed:
        console.print("[yellow]Targets missed:[/]", "; ".join(missed), highlight=False)
    if failed:
        console.print("[red]Not measured:[/]", ", ".join(failed), highlight=False)
    return int(bool(failed))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit code: 0 measured (whatever the figures), 1 something could not be, 2 wrong usage."""
    about = "\n".join(f"  {name:11} {group.about}" for name, group in GROUPS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"groups:\n{about}\n  runs        {', '.join(RUNS)}\n  all         every one",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="groups to run; the quick ones unless given")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    told = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    try:
        names = chosen(told.names)
    except BenchmarkFailed as problem:
        console.print(f"[red]{problem}[/]", highlight=False)
        return 2
    return run(names, told.seeds, told.out, console)


if __name__ == "__main__":
    sys.exit(main())
