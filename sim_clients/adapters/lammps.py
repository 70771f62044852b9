"""LAMMPS as a Simulation: drives an unmodified input deck in library mode, block by block, on the ranks of the run."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from coupler.contracts import Invariant
from coupler.errors import SimulationFailed, StepFailed
from coupler.ranks import Ranks
from schemas.fields import Block, FieldSpec, Snapshot
from sim_clients.adapters.lammps_course import Course, Place
from sim_clients.adapters.lammps_deck import UNITS, Deck, DeckError, read_deck
from sim_clients.adapters.lammps_engine import Atoms, Box, Engine, Floats, finite
from sim_clients.adapters.lammps_units import unit_of

Count = Annotated[int, Meta(gt=0)]
Keyword = Annotated[str, Meta(pattern=r"^(v_)?[A-Za-z]\w*\Z")]

COUPLED = ("econserve", "ecouple")
"""Keywords that hold the energy a thermostat has exchanged so far. It cannot be set back inside LAMMPS."""
WALL = "wall"
"""Keyword of ours: seconds since the simulation was made."""
DRIFT = "drift"
"""Observable: the range of the invariant in the last `span` of simulated time, over the kinetic energy."""
NEARLY = 1e-9
"""Share of `span` that rounding may cost."""


class _Range(NamedTuple):
    """Lowest and highest value of the invariant in a coupling step, and the simulated time of its end."""

    time: float
    low: float
    high: float


class _Saved(NamedTuple):
    """A state: what `snapshot` showed, this rank's atoms, and what of LAMMPS's own state can be set."""

    shown: Snapshot
    values: dict[str, float]
    atoms: Atoms
    external: Floats | None
    box: Box
    place: Place
    md_step: int
    md_time: float
    md_dt: float
    ranges: tuple[_Range, ...]


class Lammps:
    """A LAMMPS input deck. One coupling step is `every` MD steps; its dt is theirs, together.

    `run` lines are driven in blocks without set-up, which is bitwise one long run; all other commands are executed as
    they stand, on the ranks of the run. `thermo_style custom` shows the keywords asked for in addition.

    Fields: `x` (unwrapped) and `v` by atom (state; those named by `particles`); `external_force` (state; with
    `external`), a force on each atom, zero until somebody adopts another; the keywords of `thermo` and the invariant
    (observables), such as `lx`, `ly`, `lz` for the box; with an invariant also `drift`, the difference of its highest
    and lowest value in the last `span` of simulated time, over the kinetic energy (0 before the first step). `v_NAME`
    stands for an equal-style variable, `wall` for the seconds since the simulation was made.

    `restore` gives the saved instant back bitwise: positions, velocities, images, box, step and time. What follows
    agrees with what followed the first time to rounding, since neighbour lists are built anew and sums are in another
    order. It cannot set back what fixes hold: the random numbers of a stochastic thermostat go on (or begin anew, when
    LAMMPS had to be restarted after an error), a Nose-Hoover thermostat keeps its present momentum. The energy that
    thermostats exchanged is corrected for in `econserve` and `ecouple`. `adopt` takes over x and v in the same way, to
    rounding where atoms are wrapped.
    """

    def __init__(  # noqa: PLR0913  every setting is a keyword of the case file
        self,
        *,
        ranks: Ranks,
        seed: int,
        input: str,
        every: Count = 10,
        equilibration: Annotated[int, Meta(ge=0)] = 0,
        thermo: tuple[Keyword, ...] = ("temp", "pe"),
        particles: tuple[Literal["x", "v"], ...] = ("x", "v"),
        invariant: Keyword | None = None,
        samples: Count = 1,
        span: Annotated[float, Meta(ge=0)] = 0.0,
        units: str | None = None,
        external: bool = False,
        log: str = "none",
        tolerance: Annotated[float, Meta(gt=0)] | None = None,
        windows: Count = 1,
    ) -> None:
        """Reads the deck and executes it up to its first run.

        Args:
            ranks: The MPI ranks; LAMMPS runs on all of them.
            seed: Becomes the deck's variable `seed`, for `velocity` and thermostats; 0 leaves it to the deck.
            input: The deck, from the current folder, or else from `run.path`, of which the case's folder is the first.
                File names in it count from the current folder, as for LAMMPS.
            every: MD steps of one coupling step.
            equilibration: Run lines that come first and are executed as they stand, without the coupling.
            thermo: Thermo keywords to observe, and equal-style variables as `v_NAME`.
            particles: Fields of the atoms to stream.
            invariant: Thermo keyword that is conserved: `econserve` with a thermostat, `etotal` without.
            samples: Times in one coupling step that the invariant is looked at; each makes LAMMPS evaluate it.
            span: Simulated time that `drift` looks back over; 0 for the last coupling step.
            units: The unit style that the case is written in; must be the deck's.
            external: Whether a force on each atom comes in through `fix external`.
            log: LAMMPS's own log file.
            tolerance: Largest drift of the invariant in a window of time over the mean kinetic energy there, at which
                `coupler run --reference` compares a chosen dt with others.
            windows: Windows of equal simulated time.

        Raises:
            ValueError: The deck cannot be driven, or LAMMPS is not there.
            SimulationFailed: LAMMPS refuses a command of it.
        """
        self._made = time.perf_counter()
        self._deck = _read(input)
        _check_units(self._deck, units)
        if samples > every:
            raise ValueError(f"samples is {samples}, more than the MD steps of a coupling step, every = {every}")
        self._ranks, self._every = ranks, every
        self._opening = (ranks, seed, log)
        if tolerance is not None and invariant is None:
            raise ValueError('tolerance is a drift of the invariant; name that too, such as invariant = "econserve"')
        names = [*thermo, *([invariant, "ke"] if invariant else []), *([WALL] if tolerance else [])]
        self._keywords = tuple(dict.fromkeys(names))
        self._particles, self._invariant, self._external = particles, invariant, external
        self._blocks = [len(part) for part in np.array_split(range(every), samples)]
        self._engine = Engine(*self._opening)
        shown = [name for name in self._keywords if name != WALL and not name.startswith("v_")]
        self._course = Course(self._deck, shown, every, external, equilibration)
        self._alike: dict[str, Any] = {"input": input, "every": every, "equilibration": equilibration}
        self._tolerance, self._windows = tolerance, windows
        self._course.begin(self._engine)
        if self._engine.number("triclinic"):
            raise ValueError("the box is triclinic, and positions are unwrapped for orthogonal boxes only; use another")
        self._count = self._engine.natoms
        self._ids = np.sort(self._everywhere(self._engine.tags()))
        self._step, self._time, self._drift = 0, 0.0, 0.0
        self._span = span
        self._ranges: deque[_Range] = deque()  # of the invariant, by coupling step
        self._md_dt = float(self._engine.number("dt"))
        self._dt = every * self._md_dt
        self._offset: dict[str, float] = {}
        self._broken = False
        self._values = self._look()
        self._shown: Snapshot | None = None

    def fields(self) -> tuple[FieldSpec, ...]:
        """See `Simulation.fields`."""
        style, shape = self._deck.units, (self._count, 3)
        quantities = {"x": "distance", "v": "velocity"}
        atoms = [FieldSpec(n, "<f8", shape, unit_of(quantities[n], style), "particle") for n in self._particles]
        if self._external:
            atoms.append(FieldSpec("external_force", "<f8", shape, unit_of("force", style), "particle"))
        names = [*self._keywords, *([DRIFT] if self._invariant else [])]
        scalars = [FieldSpec(n, "<f8", (), unit_of(n, style), "scalar", "observable") for n in names]
        return (*atoms, *scalars)

    def snapshot(self) -> Snapshot:
        """See `Simulation.snapshot`. Particles of this rank in the order of their ids, which are tags by rank."""
        if self._shown is None:
            scalars = self._values | ({DRIFT: self._drift} if self._invariant else {})
            blocks = {name: Block(np.array(value)) for name, value in scalars.items()}
            self._shown = Snapshot(self._step, self._time, self._dt, self._particle_blocks() | blocks)
        return self._shown

    def integrate(self, dt: float, n: int) -> None:
        """See `Simulation.integrate`.

        Raises:
            StepFailed: LAMMPS stopped, atoms were lost, or an observable is not finite.
            SimulationFailed: LAMMPS failed on one rank alone, atoms were added, or the deck is done.
            ValueError: dt is not positive and finite.
        """
        if not (math.isfinite(dt) and dt > 0):
            raise ValueError(f"dt is {dt}; a coupling step must be positive and finite; bound it in [limits]")
        for _ in range(n):
            if dt != self._dt:
                self._md_dt, self._dt = dt / self._every, dt
                self._engine.command(f"timestep {self._md_dt!r}")
            self._shown = None
            try:
                self._one_step(self._time + dt)
            except StepFailed as failed:
                self._broken = True
                raise StepFailed(f"At time {self._time:g}, with a dt of {self._md_dt:g}: {failed}") from failed
            self._step += 1
            self._time += dt
            if self._course.finish(self._engine):
                self._values = self._look()
                if (md_dt := float(self._engine.number("dt"))) != self._md_dt:
                    self._md_dt, self._dt = md_dt, self._every * md_dt

    def adopt(self, snapshot: Snapshot) -> None:
        """See `Simulation.adopt`. Raises SimulationFailed when the state lies beyond the present run line."""
        engine, ahead = self._engine, (snapshot.step - self._step) * self._every
        md_step, md_time = int(engine.number("ntimestep")) + ahead, self._md_time() + snapshot.time - self._time
        self._course.skip(ahead)
        given = snapshot.blocks
        if "x" in given:
            images = engine.turns(engine.atoms().image)
            engine.write("x", self._spread(given["x"]) - images * engine.box.lengths)
        if "v" in given:
            engine.write("v", self._spread(given["v"]))
        if "external_force" in given:
            engine.external()[...] = self._spread(given["external_force"])
        self._md_dt = self._md_dt if snapshot.dt == self._dt else snapshot.dt / self._every
        self._step, self._time, self._dt = snapshot.step, snapshot.time, snapshot.dt
        self._settle(md_step, md_time)
        self._ranges.clear()
        self._values, self._shown = self._look(), None

    def save(self) -> object:
        """See `Simulation.save`: copies of this rank's atoms; cheap beside a step."""
        return _Saved(
            shown=self.snapshot(),
            values=dict(self._values),
            atoms=self._engine.atoms(),
            external=self._engine.external().copy() if self._external else None,
            box=self._engine.box,
            place=self._course.place,
            md_step=int(self._engine.number("ntimestep")),
            md_time=self._md_time(),
            md_dt=self._md_dt,
            ranges=tuple(self._ranges),
        )

    def restore(self, token: object) -> None:
        """See `Simulation.restore`, and above for what is not set back. Raises TypeError for another's token."""
        if not isinstance(token, _Saved):
            raise TypeError(f"restore got a {type(token).__name__}; give it a token made by save of a Lammps")
        if self._broken or token.place.at != self._course.place.at:
            self._engine.close()
            self._engine = Engine(*self._opening)
            self._course.replay(self._engine, token.place)
            self._broken = False
        self._course.place = token.place
        engine, atoms, shown = self._engine, token.atoms, token.shown
        if token.box != engine.box:
            engine.set_box(token.box)
        ids = self._index(atoms.tags)
        for name, values in (("x", atoms.x), ("v", atoms.v), ("image", atoms.image)):
            engine.write(name, self._spread(Block(values, ids=ids)))
        if token.external is not None:
            engine.external()[...] = self._spread(Block(token.external, ids=ids))
        self._md_dt, self._dt, self._step, self._time = token.md_dt, shown.dt, shown.step, shown.time
        self._drift = float(shown[DRIFT]) if self._invariant else 0.0
        self._ranges = deque(token.ranges)
        self._settle(token.md_step, token.md_time)
        self._offset = {}
        fresh = self._look()
        self._offset = {name: token.values[name] - fresh[name] for name in COUPLED if name in fresh}
        self._values, self._shown = dict(token.values), shown

    def invariants(self) -> Mapping[str, Invariant]:
        """See `Simulation.invariants`: the named keyword, which every rank knows."""
        return {self._invariant: Invariant(self._values[self._invariant], "max")} if self._invariant else {}

    def judge(self, observed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See `SelfJudged.judge`: against a fixed dt, an oracle and `fix dt/reset` at the same drift.

        Raises:
            ValueError: The case states no tolerance.
        """
        if self._tolerance is None or self._invariant is None:
            raise ValueError("--reference compares at a drift: give simulation.tolerance, windows and an invariant")
        from sim_clients.adapters.lammps_judge import Case, compare

        (ranks, seed, _), keywords = self._opening, (self._invariant, "ke")
        case = Case(
            engine=lambda: Engine(*self._opening),
            course=lambda: Course(self._deck, keywords, self._every, False, self._alike["equilibration"]),
            steered=lambda: Lammps(
                ranks=ranks, seed=seed, particles=(), thermo=(), invariant=self._invariant, **self._alike
            ),
            invariant=self._invariant,
            every=self._every,
            tolerance=self._tolerance,
            windows=self._windows,
        )
        return compare(observed, case, WALL)

    def _one_step(self, end: float) -> None:
        """The MD steps of one coupling step, and what is observed at its end, a simulated time."""
        seen = [self._values[self._invariant]] if self._invariant else []
        for n in self._blocks:
            self._course.advance(self._engine, n)
            if self._invariant:
                seen.append(self._engine.value(self._invariant) + self._offset.get(self._invariant, 0.0))
        self._values = self._look()
        if bad := finite(self._values):
            raise StepFailed(f"{bad} is {self._values[bad]}")
        if self._invariant:
            self._ranges.append(_Range(end, min(seen), max(seen)))
            while len(self._ranges) > 1 and self._ranges[0].time <= end - self._span * (1.0 - NEARLY):
                self._ranges.popleft()
            whole = max(part.high for part in self._ranges) - min(part.low for part in self._ranges)
            self._drift = whole / self._values["ke"] if self._values["ke"] > 0.0 else 0.0
        if (count := self._engine.natoms) != self._count:
            what = f"There were {self._count} atoms and now there are {count}"
            if count < self._count:
                raise StepFailed(f"{what}: atoms were lost")
            raise SimulationFailed(f"{what}. The coupled fields have a fixed number of atoms; do not add any in a run.")

    def _look(self) -> dict[str, float]:
        """The observed keywords at this instant."""
        read = self._engine.value
        values = {name: read(name) for name in self._keywords if name != WALL}
        values |= {name: values[name] + more for name, more in self._offset.items()}
        return values | ({WALL: time.perf_counter() - self._made} if WALL in self._keywords else {})

    def _particle_blocks(self) -> dict[str, Block]:
        if not (self._particles or self._external):
            return {}
        atoms = self._engine.atoms()
        order = np.argsort(atoms.tags)
        ids = self._index(atoms.tags[order])
        found = {"v": atoms.v} if "v" in self._particles else {}
        if "x" in self._particles:
            found["x"] = self._engine.unwrapped(atoms)
        if self._external:
            found["external_force"] = self._engine.external()
        return {name: Block(values[order], ids=ids) for name, values in found.items()}

    def _index(self, tags: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids of atoms from 0, without gaps, from LAMMPS's tags."""
        return np.searchsorted(self._ids, tags)

    def _spread(self, block: Block) -> NDArray[Any]:
        """The rows for this rank's atoms, in LAMMPS's order, of values that the ranks hold together by id."""
        whole = np.zeros((self._count, *block.array.shape[1:]), block.array.dtype)
        whole[block.ids] = block.array
        return self._summed(whole)[self._index(self._engine.tags())]

    def _everywhere(self, tags: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tags of all ranks."""
        parts = self._ranks.bcast(self._ranks.gather(tags))
        return np.concatenate(parts)

    def _summed(self, values: NDArray[Any]) -> NDArray[Any]:
        if self._ranks.comm is None:
            return values
        total = np.empty_like(values)
        self._ranks.comm.Allreduce(values, total)
        return total

    def _md_time(self) -> float:
        """LAMMPS's own simulated time, which its variables see."""
        read = self._engine.number
        return float(read("atime") + (read("ntimestep") - read("atimestep")) * read("dt"))

    def _settle(self, md_step: int, md_time: float) -> None:
        """After atoms were overwritten: step, time and dt, each atom on its rank, neighbour lists, forces, energies."""
        engine = self._engine
        if md_step != engine.number("ntimestep") or md_time != self._md_time():
            engine.command(f"reset_timestep {md_step} time {md_time!r}", "going back (no fix may depend on the step)")
        if self._md_dt != engine.number("dt"):
            engine.command(f"timestep {self._md_dt!r}")
        engine.command("displace_atoms all move 0 0 0 units box")  # sends atoms to their ranks, however far they moved
        self._course.set_up(engine)


def _read(path: str) -> Deck:
    beside = (Path(folder) / path for folder in ("", *sys.path))
    found = next((str(file) for file in beside if file.is_file()), path)

    def read(name: str) -> str:
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            why = getattr(problem, "strerror", None) or "it is not UTF-8 text"
            raise DeckError(
                f"the deck {name} cannot be read ({why}); names of files count from the current folder, {Path.cwd()}"
            ) from problem

    return read_deck(found, read)


def _check_units(deck: Deck, units: str | None) -> None:
    if units is None:
        return
    if units not in UNITS:
        raise ValueError(f"units is {units!r}; LAMMPS has {', '.join(UNITS)}")
    if units != deck.units:
        place = next((command.place for command in deck.named("units")), "LAMMPS's default")
        raise ValueError(
            f"the case is written in units = {units!r}, but the deck in {deck.units!r} ({place}); make them the same"
        )
