"""The processes of a run, from its spec. `plan` and `environment` are pure; nothing is started here."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from schemas.run import RunSpec

Role = Literal["simulation", "server", "trainer", "recorder"]

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""The processes share the cores; libraries that start a thread per core would slow the ranks."""
TRAINER_NICE = 5
"""Mild: beside ranks that spin in MPI a trainer at nice 19 starves. How much it may run, the budget decides."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process to start.

    Attributes:
        role: What it is.
        name: Unique in the run, for logs and messages.
        argv: Command line.
        env: Variables to set on top of the launcher's own.
        nice: Niceness to run at.
        log: File that takes its output.
    """

    role: Role
    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    nice: int = 0
    log: Path = Path()


def plan(spec: RunSpec, run_folder: Path, python: str, mpiexec: str) -> tuple[Process, ...]:
    """The processes in the order to start them; none on the rungs `inline` and `threads`: the launcher's is enough.

    Args:
        spec: The resolved spec.
        run_folder: Where the run keeps its files; every process reads the resolved case there.
        python: The interpreter to run them with.
        mpiexec: MPICH's, or another that takes `-n RANKS`; only used on rung `mpi`.
    """
    if spec.run.rung in ("inline", "threads"):
        return ()
    folder = str(run_folder)
    ranks = (mpiexec, "-n", str(spec.simulation.ranks)) if spec.run.rung == "mpi" else ()
    argv = (*ranks, python, "-m", "sim_clients", folder)
    simulation = _process(spec, run_folder, "simulation", "simulation", argv)
    if spec.run.mode == "off":
        return (simulation,)
    server = _process(spec, run_folder, "server", "server", (python, "-m", "ml_servers", folder))
    trainers = []
    for task in spec.tasks:
        for rank in range(task.ranks):
            argv, name = (python, "-m", "ml_servers", folder, "--task", task.name), f"trainer-{task.name}"
            if task.ranks > 1:
                argv, name = (*argv, "--rank", str(rank)), f"{name}@{rank}"
            trainers.append(_process(spec, run_folder, "trainer", name, argv, nice=TRAINER_NICE))
    if spec.output.record is not None:
        argv = (python, "-m", "ml_servers", folder, "--record")
        trainers.append(_process(spec, run_folder, "recorder", "recorder", argv, nice=TRAINER_NICE))
    return (server, *trainers, simulation)


def _process(
    spec: RunSpec, run_folder: Path, role: Role, name: str, argv: tuple[str, ...], *, nice: int = 0
) -> Process:
    env = {**ONE_THREAD, "PYTHONPATH": os.pathsep.join(spec.run.path)}
    return Process(role, name, argv, env, nice, run_folder / "logs" / f"{name}.log")


def environment(process: Process, inherited: Mapping[str, str]) -> dict[str, str]:
    """All variables of a process: the launcher's own under the process's; both search paths count."""
    merged = {**inherited, **process.env}
    paths = [path for path in (process.env.get("PYTHONPATH"), inherited.get("PYTHONPATH")) if path]
    return merged | {"PYTHONPATH": os.pathsep.join(paths)}


def find_mpiexec(python: str = sys.executable) -> str | None:
    """The mpiexec beside the interpreter, where the `mpich` wheel puts it, else the one on PATH, else None."""
    beside = Path(python).parent / "mpiexec"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("mpiexec")
