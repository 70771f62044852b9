"""The command `coupler`. Thin: each command reads its arguments and calls one function, imported when it is needed."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from coupler.errors import CaseError, CouplerError

FAILED, MISUSED, INTERRUPTED = 1, 2, 130

app = App(
    name="coupler",
    help="Couple a running simulation to a server that learns from it and takes over steps, with a stated error.",
    version=lambda: metadata.version("coupler"),
    suppress_keyboard_interrupt=False,
)

Settings = Annotated[list[str], Parameter(name="--set", negative="")]


@app.command
def run(
    case: Path,
    /,
    *,
    settings: Settings | None = None,
    out: Path | None = None,
    reference: Annotated[bool, Parameter(negative="")] = False,
    seed: int | None = None,
) -> int:
    """Run a case: check it, start the simulation and the server, watch them, and write a run folder.

    Args:
        case: The run file.
        settings: Change a key of the run file, as in --set simulation.ranks=2; may be given again.
        out: Run folder, new or empty; runs/NAME-SEED-N unless given.
        reference: Also run the same case all-direct, compare, and write the report.
        seed: Short for --set run.seed=SEED.
    """
    from launch.check import check as checked

    spec = checked(case, [*(settings or []), *([] if seed is None else [f"run.seed={seed}"])])
    folder = out or fresh_folder(Path("runs"), f"{spec.run.name}-{spec.run.seed}")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CaseError([f"--out {out}: it is there already and not empty; name a new folder"])
    from launch import run as launched

    return launched.run(spec, folder, reference=reference)


@app.command
def check(case: Path, /, *, settings: Settings | None = None) -> None:
    """Print the resolved case and the processes it would start, or all that is wrong with it.

    Args:
        case: The run file.
        settings: Change a key of the run file, as in --set simulation.ranks=2; may be given again.
    """
    import shlex

    from coupler import connect
    from coupler.bulks import choice
    from coupler.bulks.adios_engine import available
    from launch import plan
    from launch.check import check as checked
    from launch.check import crowded
    from schemas.run import dump

    spec = checked(case, settings or [])
    say(dump(spec))
    processes = plan.plan(spec, Path("RUN_FOLDER"), "python", "mpiexec")
    if not processes:
        say(f'# rung "{spec.run.rung}": all in the process of coupler run')
    for process in processes:
        say(f"# {process.name}: {f'nice -n {process.nice} ' if process.nice else ''}{shlex.join(process.argv)}")
    if sentence := crowded(spec):
        say(f"# {sentence}")
    if spec.run.mode != "off":
        for line in choice.outlook(connect.bulk_rules(spec), available(), connect.no_shared_memory(spec)):
            say(f"# {line}")
    if spec.run.rung == "mpi" and plan.find_mpiexec() is None:
        say("# no mpiexec is beside python or on PATH: install the mpich wheel (pip install mpich)")


@app.command
def report(folder: Path, /) -> None:
    """Write report.html and its pictures into a run folder.

    Args:
        folder: A run folder.
    """
    from launch.ls import entries
    from launch.report import page

    entries(folder)  # or the reason why it holds no run
    say(str(page.write(folder)))


@app.command
def ls(folder: Path, /) -> None:
    """List what a run left.

    Args:
        folder: A run folder.
    """
    from launch.ls import show

    show(folder, Console())


@app.command
def init(folder: Path = Path(), /, *, lammps: Path | None = None) -> None:
    """Write a commented starter case and a solver of ten lines, or the case of a LAMMPS deck.

    Args:
        folder: Where; here unless given.
        lammps: An input deck of LAMMPS; what could not be decided from it is said in the case.
    """
    if lammps is not None:
        from launch.init_lammps import init_lammps

        files = init_lammps(lammps, folder)
    else:
        from launch.init import init as written

        files = written(folder)
    say(f"wrote {' and '.join(map(str, files))}")
    say(
        f"next: coupler run {files[0]}" if _runs(files[0]) else f"next: decide in {files[0]} what `coupler check` names"
    )


def _runs(case: Path) -> bool:
    """Whether a case that was just written can be run as it is."""
    from launch.check import check as checked

    try:
        checked(case)
    except CaseError:
        return False
    return True


def fresh_folder(runs: Path, name: str) -> Path:
    """Makes the first folder `name-1`, `name-2`, ... that is not there yet; safe beside other runs."""
    number = 1
    while True:
        folder = runs / f"{name}-{number}"
        try:
            folder.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def say(text: str, *, error: bool = False) -> None:
    """Writes a line as it is; rich would wrap it and read markup in it."""
    (sys.stderr if error else sys.stdout).write(text + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Instead of the process's own.

    Returns:
        Exit code: 0 good, 1 a failed run, 2 a wrong case or wrong usage, 130 Ctrl-C.
    """
    try:
        code = app(arguments, exit_on_error=False, result_action="return_value", error_console=Console(stderr=True))
    except CycloptsError:
        return MISUSED
    except CaseError as problem:
        for mistake in problem.mistakes:
            say(mistake, error=True)
        return MISUSED
    except CouplerError as problem:
        say(f"coupler: {problem}", error=True)
        return FAILED
    except KeyboardInterrupt:
        say("coupler: stopped by Ctrl-C", error=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
