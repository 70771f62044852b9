"""`python -m sim_clients RUN_FOLDER [--reference]`: one rank of the simulation of a run (start it under mpiexec)."""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from coupler import connect, registry
from coupler.contracts import Advice, Scheduled, Simulation
from coupler.coupling import Coupling
from coupler.errors import CouplerError, FailedElsewhere
from coupler.files import write_whole
from coupler.ranks import MpiRanks, Ranks
from coupler.recording import books_are_closed
from schemas.fields import Snapshot
from schemas.messages import Action
from schemas.run import RunSpec
from sim_clients.driver import drive
from sim_clients.reference import run_reference
from sim_clients.views import ViewStore, view

log = logging.getLogger("sim_clients")
RESULT = "simulation.json"
FIELDS = "fields.json"
LAST_WORDS_S = 1.0
"""Time that a rank which fails gives others for their last books: twice what a farewell waits for the server."""


class Ended(CouplerError):
    """Somebody asked this process to end (SIGTERM)."""


def _on_sigterm(*_: object) -> None:
    raise Ended("The run was asked to end.")


def make(spec: RunSpec, ranks: Ranks) -> Simulation:
    """Constructs the case's simulation on this rank."""
    cls = registry.find("simulations", spec.simulation.use)
    simulation: Simulation = registry.construct(cls, spec.simulation.settings, ranks=ranks, seed=spec.run.seed)
    return simulation


def run(spec: RunSpec, folder: Path, ranks: Ranks, **link: Any) -> dict[str, Any]:
    """Runs the coupled simulation of a case on this rank.

    Args:
        spec: The case.
        folder: Its run folder.
        ranks: Ranks of the simulation.
        **link: `link=` a connected Link for one-process rungs.

    Returns:
        Facts for the summary: steps, start-up and loop wall time in seconds.
    """
    began = time.perf_counter()
    simulation = make(spec, ranks)
    ready = time.perf_counter()
    store = ViewStore(folder, ranks.rank)
    describe(simulation, folder, ranks)
    seen, on_trial = 0, False  # views that were due so far

    def on_step(simulation: Simulation, advice: Advice) -> None:
        nonlocal seen, on_trial
        due = int(spec.output.views * progress(spec, simulation.snapshot()))
        if advice.action is Action.LEARNED:
            store.write(simulation, advice.version)
        elif advice.action is Action.REWIND:
            store.rewound(advice.rewind_to)
            seen = due
        elif advice.phase == "trial" and not on_trial:
            store.write(simulation, 0)
        elif due > seen:
            store.write(simulation, 0)
            seen = due
        on_trial = advice.phase == "trial"

    fields, invariants = tuple(simulation.fields()), simulation.invariants()
    with connect.open_coupling(folder, fields, ranks=ranks, invariants=invariants, **link) as coupling:
        ended = drive(simulation, coupling, every=spec.output.every, on_step=on_step)
    done = time.perf_counter()
    torch_loaded = "torch" in sys.modules
    last = simulation.snapshot()
    return {
        "status": "finished",
        "step": last.step,
        "time": last.time,
        "stopped": ended or unfinished(spec, coupling, last),
        "startup_s": ready - began,
        "loop_s": done - ready,
        "torch_loaded": torch_loaded,
        "changes": changes(simulation),
    }


def progress(spec: RunSpec, snapshot: Snapshot) -> float:
    """Share of the run that lies behind a state: of its time where it ends at one, else of its steps."""
    end = spec.run.end_time
    return snapshot.step / spec.run.steps if end is None else snapshot.time / end


def unfinished(spec: RunSpec, coupling: Coupling, last: Snapshot) -> str:
    """Why a run did not come to its end, as a sentence; empty when it did."""
    if coupling.advice.action is Action.STOP:
        return f"The server ended the run at step {last.step}: {coupling.advice.reason}"
    if spec.run.end_time is not None and last.time < spec.run.end_time:
        return (
            f"All run.steps = {spec.run.steps} were made, and time is {last.time:g} of run.end_time = "
            f"{spec.run.end_time:g}; allow more steps."
        )
    return ""


def describe(simulation: Simulation, folder: Path, ranks: Ranks) -> None:
    """Writes `fields.json`: the declared fields, and what a view holds, with global shapes. Collective."""
    shown = []
    for name, block in view(simulation).blocks.items():
        ends = [offset + size for offset, size in zip(block.offset, block.array.shape, strict=False)]
        shape = ranks.allreduce(np.array(ends or block.array.shape, dtype=np.float64), "max")
        dtype = block.array.dtype.str
        shown.append({"name": name, "dtype": dtype, "shape": [int(n) for n in shape], "unit": "", "kind": "cell"})
    if ranks.rank == 0:
        names = ("name", "dtype", "shape", "unit", "kind", "role", "blend")
        declared = [dict(zip(names, msgspec.to_builtins(spec), strict=True)) for spec in simulation.fields()]
        text = json.dumps({"fields": declared, "view": [{**v, "role": "state"} for v in shown]}, indent=1)
        write_whole(folder / FIELDS, text)


def changes(simulation: Simulation) -> list[dict[str, Any]]:
    """Changes of the forcing, by the coupling step that first feels them, for the report."""
    if not isinstance(simulation, Scheduled):
        return []
    dt = simulation.snapshot().dt
    return [{"step": math.ceil(time / dt), "announced": announced} for time, announced in simulation.changes()]


def _mpi_ranks() -> MpiRanks:
    """Ranks over MPI, whose shared memory goes with them however they end.

    MPICH keeps a file in /dev/shm while it runs, and leaves it there when its ranks are killed. Every rank of this
    machine maps it in MPI_Init, which is over on all of them once MpiRanks is made (collective), so its name may go.
    """
    ranks = MpiRanks()
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = line.rpartition(" ")[2]
        if path.startswith("/dev/shm/mpich"):
            Path(path).unlink(missing_ok=True)
    return ranks


def note_failure(result: Path, rank: int, cause: str, *, elsewhere: bool = False) -> None:
    """Writes why there is no result of this rank.

    Args:
        result: Where the simulation's result would lie.
        rank: The one that failed.
        cause: As a sentence.
        elsewhere: Another rank knows the cause.
    """
    told = {"rank": rank, "cause": cause, "elsewhere": elsewhere}
    write_whole(result.with_suffix(f".rank{rank}.failed.json"), json.dumps(told))


def failures(result: Path) -> list[dict[str, Any]]:
    """What `note_failure` wrote, by rank."""
    pattern = result.with_suffix(".rank*.failed.json").name
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(result.parent.glob(pattern))]


def _let_others_finish(done: list[Callable[[], bool]]) -> None:
    """Waits a moment for what an abort would break off: the last books of rank 0, the cause of the rank that knows it.

    Where such a rank hangs in a collective operation that this one will not come to, that moment is lost.
    """
    end = time.monotonic() + LAST_WORDS_S
    while not all(finished() for finished in done) and time.monotonic() < end:
        time.sleep(0.02)


def main() -> int:
    """Runs one rank; a failure on one rank ends the job with its cause in the log."""
    parser = argparse.ArgumentParser(prog="python -m sim_clients", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--reference", action="store_true", help="run the same case all-direct and compare")
    told = parser.parse_args()
    faulthandler.enable()  # a library that crashes leaves at least the place in the log
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    spec = connect.read_case(told.folder)
    sys.path[:0] = [entry for entry in spec.run.path if entry not in sys.path]
    ranks = _mpi_ranks() if spec.run.rung == "mpi" else Ranks()
    target = told.folder / "reference" / RESULT if told.reference else told.folder / RESULT
    try:
        # Before this, SIGTERM just ends the process. A rank that raised would leave without an abort, and others that
        # wait for it in MPI_Init, where no Python runs, would spin there for ever.
        signal.signal(signal.SIGTERM, _on_sigterm)
        facts = (run_reference if told.reference else run)(spec, told.folder, ranks)
    except BaseException as error:
        log.exception("Rank %d failed.", ranks.rank)
        elsewhere = isinstance(error, FailedElsewhere)
        note_failure(target, ranks.rank, f"{type(error).__name__}: {error}", elsewhere=elsewhere)
        sys.stdout.flush()
        if ranks.size > 1:
            awaited: list[Callable[[], bool]] = []
            if ranks.rank > 0 and not told.reference:
                awaited.append(lambda: books_are_closed(told.folder))
            if elsewhere:
                awaited.append(lambda: any(not failure["elsewhere"] for failure in failures(target)))
            _let_others_finish(awaited)
            ranks.abort(1)
        return 1
    if ranks.rank == 0:
        write_whole(target, json.dumps(facts, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
