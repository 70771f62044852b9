"""LAMMPS as a Simulation: drives an unmodified input deck in library mode, block by block, on the ranks of the run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from coupler.contracts import Invariant
from coupler.errors import SimulationFailed, StepFailed
from coupler.ranks import Ranks
from schemas.fields import Block, FieldSpec, Snapshot
from sim_clients.adapters.lammps_bars import bars_dt, bars_return
from sim_clients.adapters.lammps_checks import check_box, check_keywords, check_seed, check_units, deck_at
from sim_clients.adapters.lammps_course import Course, Place
from sim_clients.adapters.lammps_drift import Drift, Drifted, State
from sim_clients.adapters.lammps_engine import Engine, finite
from sim_clients.adapters.lammps_instant import Instant, Instants
from sim_clients.adapters.lammps_judge import OURS, STEPS, WALL, Case, compare
from sim_clients.adapters.lammps_units import unit_of
from sim_clients.paced import Paced

log = logging.getLogger("sim_clients.lammps")
Count = Annotated[int, Meta(gt=0)]
Keyword = Annotated[str, Meta(pattern=r"^(v_)?[A-Za-z]\w*\Z")]

COUPLED = ("econserve", "ecouple")
"""Keywords that hold the energy a thermostat has exchanged so far. It cannot be set back inside LAMMPS."""


class _Saved(NamedTuple):
    """A state: what `snapshot` showed, and what of LAMMPS's own state can be set."""

    shown: Snapshot
    values: dict[str, float]
    instant: Instant
    external: NDArray[np.float64] | None
    place: Place
    md_dt: float
    drifted: Drifted


class Lammps:
    """A LAMMPS input deck. One coupling step is `every` MD steps; its dt is theirs, together.

    `run` lines are driven in blocks without set-up, which is bitwise one long run; all other commands are executed as
    they stand, on the ranks of the run. `thermo_style custom` shows the keywords asked for in addition.

    Fields: `x` (unwrapped) and `v` by atom (state; those named by `particles`); `external_force` (state; with
    `external`), a force on each atom, zero until somebody adopts another; the keywords of `thermo` and the invariant
    (observables), such as `lx`, `ly`, `lz` for the box. `v_NAME` stands for an equal-style variable. With an invariant
    also `drift`, the difference of its highest and lowest value in the last `span` of simulated time, over the kinetic
    energy (0 before the first step), and with `span` also `window_drift`, its largest distance so far from its value at
    the start of the present window, over the mean kinetic energy up to there. With `tolerance` also `wall`, the seconds
    since the simulation was made, and `md_steps`, all MD steps since then.

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
        for_reference: bool = False,
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
            span: Simulated time that `drift` looks back over, and length of a window of `window_drift`; 0 for the last
                coupling step, and no windows.
            units: The unit style that the case is written in; must be the deck's.
            external: Whether a force on each atom comes in through `fix external`.
            log: LAMMPS's own log file.
            tolerance: Largest drift of the invariant in a window of time over the mean kinetic energy there, at which
                `coupler run --reference` compares a chosen dt with others.
            windows: Windows of equal simulated time.
            for_reference: Whether to leave out what the deck writes (dumps, logs, restarts, files of averages): the
                files of the coupled run are there.

        Raises:
            ValueError: The deck cannot be driven, or LAMMPS is not there.
            SimulationFailed: LAMMPS refuses a command of it.
        """
        self._made = time.perf_counter()
        self._deck = deck_at(input)
        check_units(self._deck, self._deck.units, units)
        check_seed(self._deck, seed)
        if samples > every:
            raise ValueError(f"samples is {samples}, more than the MD steps of a coupling step, every = {every}")
        self._ranks, self._every = ranks, every
        self._opening = (ranks, seed, "none" if for_reference else log)
        if tolerance is not None and invariant is None:
            raise ValueError('tolerance is a drift of the invariant; name that too, such as invariant = "econserve"')
        names = [*thermo, *([invariant, "ke"] if invariant else []), *(OURS if tolerance else [])]
        self._keywords = tuple(dict.fromkeys(names))
        self._particles, self._invariant, self._external = particles, invariant, external
        self._blocks = [len(part) for part in np.array_split(range(every), samples)]
        self._engine = Engine(*self._opening)
        shown = [name for name in self._keywords if name not in OURS and not name.startswith("v_")]
        self._course = Course(
            self._deck, shown, every, external, equilibration, quiet=for_reference, ended=self._keep_end
        )
        self._alike: dict[str, Any] = {"input": input, "every": every, "equilibration": equilibration}
        self._tolerance, self._windows = tolerance, windows
        self._ends: dict[int, Instant] = {}  # of run lines, by position
        self._instants: Instants | None = None
        self._course.begin(self._engine)
        self._units = str(self._engine.number("units"))
        check_units(self._deck, self._units, units)
        check_keywords(self._engine, [name for name in self._keywords if name not in OURS])
        check_box(self._engine)
        self._step, self._time, self._made_steps = 0, 0.0, 0
        self._drift = Drift(span)
        self._md_dt = self._engine.dt
        self._dt = every * self._md_dt
        self._offset: dict[str, float] = {}
        self._broken = False
        self._values = self._look()
        self._shown: Snapshot | None = None

    def fields(self) -> tuple[FieldSpec, ...]:
        """See `Simulation.fields`."""
        style, shape = self._units, (self._atoms.count, 3)
        quantities = {"x": "distance", "v": "velocity"}
        atoms = [FieldSpec(n, "<f8", shape, unit_of(quantities[n], style), "particle") for n in self._particles]
        if self._external:
            atoms.append(FieldSpec("external_force", "<f8", shape, unit_of("force", style), "particle"))
        names = [*self._keywords, *(self._drift.names if self._invariant else [])]
        scalars = [FieldSpec(n, "<f8", (), unit_of(n, style), "scalar", "observable") for n in names]
        return (*atoms, *scalars)

    def snapshot(self) -> Snapshot:
        """See `Simulation.snapshot`. Particles of this rank in the order of their ids, which are tags by rank."""
        if self._shown is None:
            scalars = self._values | (self._drift.values if self._invariant else {})
            blocks = {name: Block(np.array(value)) for name, value in scalars.items()}
            until = self._time + self._course.place.left / self._every * self._dt  # no learned phase passes a run line
            self._shown = Snapshot(self._step, self._time, self._dt, self._particle_blocks() | blocks, until)
        return self._shown

    def ended(self) -> str:
        """See `Ending.ended`: all run lines are done."""
        return self._course.ended

    def integrate(self, dt: float, n: int) -> None:
        """See `Simulation.integrate`.

        Raises:
            StepFailed: LAMMPS stopped, atoms were lost, or an observable is not finite.
            SimulationFailed: LAMMPS failed on one rank alone, atoms were added, it changed dt by itself, the deck is
                done, or what it holds bars another dt.
            ValueError: dt is not positive and finite.
        """
        if not (math.isfinite(dt) and dt > 0):
            raise ValueError(f"dt is {dt}; a coupling step must be positive and finite; bound it in [limits]")
        for _ in range(n):
            if dt != self._dt:
                self._require(bars_dt(self._deck, self._course.place.at), f"dt cannot change to {dt / self._every:g}")
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
            self._next_line()

    def adopt(self, snapshot: Snapshot) -> None:
        """See `Simulation.adopt`. Raises SimulationFailed beyond the present run line, and where the deck bars it."""
        self._require(self._bars_return(), "no learned state can be taken over")
        engine, ahead = self._engine, (snapshot.step - self._step) * self._every
        md_step, md_time = int(engine.number("ntimestep")) + ahead, engine.time + snapshot.time - self._time
        self._course.skip(ahead)
        given, spread = snapshot.blocks, self._atoms.spread
        if "x" in given:
            engine.write("x", spread(engine, given["x"]) - engine.turns() * engine.box.lengths)
        if "v" in given:
            engine.write("v", spread(engine, given["v"]))
        if "external_force" in given:
            engine.external()[...] = spread(engine, given["external_force"])
        self._md_dt = self._md_dt if snapshot.dt == self._dt else snapshot.dt / self._every
        self._step, self._time, self._dt = snapshot.step, snapshot.time, snapshot.dt
        self._settle(md_step, md_time)
        self._drift.now = Drifted()  # the energy was changed from outside
        self._values, self._shown = self._look(), None
        self._next_line()

    def save(self) -> object:
        """See `Simulation.save`: copies of this rank's atoms; cheap beside a step."""
        return _Saved(
            shown=self.snapshot(),
            values=dict(self._values),
            instant=self._atoms.take(self._engine),
            external=self._engine.external().copy() if self._external else None,
            place=self._course.place,
            md_dt=self._md_dt,
            drifted=self._drift.now,
        )

    def restore(self, token: object) -> None:
        """See `Simulation.restore`, and above for what is not set back. Raises TypeError for another's token, and
        SimulationFailed where the deck holds what cannot be set back at all.
        """
        if not isinstance(token, _Saved):
            raise TypeError(f"restore got a {type(token).__name__}; give it a token made by save of a Lammps")
        self._require(self._bars_return(), "the run cannot go back")
        if self._broken or token.place.at != self._course.place.at:
            self._rebuild(token.place)
        self._course.place = token.place
        engine, instant, shown = self._engine, token.instant, token.shown
        self._atoms.put(engine, instant)
        if token.external is not None:
            ids = self._atoms.index(instant.tags)
            engine.external()[...] = self._atoms.spread(engine, Block(token.external, ids=ids))
        self._md_dt, self._dt, self._step, self._time = token.md_dt, shown.dt, shown.step, shown.time
        self._drift.now = token.drifted
        self._settle(instant.step, instant.time)
        self._offset = {}
        fresh = self._look()
        self._offset = {name: token.values[name] - fresh[name] for name in COUPLED if name in fresh}
        self._values, self._shown = dict(token.values), shown

    def invariants(self) -> Mapping[str, Invariant]:
        """See `Simulation.invariants`: the named keyword, which every rank knows."""
        return {self._invariant: Invariant(self._values[self._invariant], "max")} if self._invariant else {}

    def judge(self, observed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See `SelfJudged.judge`: against a fixed dt, an oracle and `fix dt/reset` at the same drift.

        Empty where the case states no tolerance.
        """
        if self._tolerance is None or self._invariant is None:
            return {}
        (ranks, seed, _), keywords = self._opening, (self._invariant, "ke")
        case = Case(
            engine=lambda: Engine(ranks, seed, "none"),
            course=lambda: Course(self._deck, keywords, self._every, False, self._alike["equilibration"], quiet=True),
            steered=lambda: Lammps(
                ranks=ranks,
                seed=seed,
                particles=(),
                thermo=(),
                invariant=self._invariant,
                for_reference=True,
                **self._alike,
            ),
            invariant=self._invariant,
            every=self._every,
            tolerance=self._tolerance,
            windows=self._windows,
            say=Paced(log.info if ranks.rank == 0 else lambda _: None),
        )
        return compare(observed, case)

    def _one_step(self, end: float) -> None:
        """The MD steps of one coupling step, and what is observed at its end, a simulated time."""
        before = self._energies(self._time)
        seen = [before.energy]
        for n in self._blocks:
            self._course.advance(self._engine, n)
            self._made_steps += n
            if self._invariant:
                seen.append(self._engine.value(self._invariant) + self._offset.get(self._invariant, 0.0))
        self._values = self._look()
        if bad := finite(self._values):
            raise StepFailed(f"{bad} is {self._values[bad]}")
        if self._invariant:
            self._drift.add(before, seen, self._energies(end))
        if self._engine.dt != self._md_dt:
            raise SimulationFailed(
                f"LAMMPS changed dt from {self._md_dt:g} to {self._engine.dt:g} by itself; take out what does, such as "
                "`fix dt/reset`: the coupling chooses dt, and knows the time by it"
            )
        if (count := self._engine.natoms) != self._atoms.count:
            what = f"There were {self._atoms.count} atoms and now there are {count}"
            if count < self._atoms.count:
                raise StepFailed(f"{what}: atoms were lost")
            raise SimulationFailed(f"{what}. The coupled fields have a fixed number of atoms; do not add any in a run.")

    def _look(self) -> dict[str, float]:
        """The observed keywords at this instant."""
        read = self._engine.value
        values = {name: read(name) for name in self._keywords if name not in OURS}
        values |= {name: values[name] + more for name, more in self._offset.items()}
        ours = {WALL: time.perf_counter() - self._made, STEPS: float(self._made_steps)}
        return values | (ours if WALL in self._keywords else {})

    def _energies(self, time: float) -> State:
        """The conserved and the kinetic energy at the state last looked at; 0 where none is named."""
        return State(time, self._values[self._invariant], self._values["ke"]) if self._invariant else State(time, 0, 0)

    def _particle_blocks(self) -> dict[str, Block]:
        if not (self._particles or self._external):
            return {}
        tags = self._engine.tags()
        order = np.argsort(tags)
        ids = self._atoms.index(tags[order])
        found = {"v": self._engine.read("v")} if "v" in self._particles else {}
        if "x" in self._particles:
            found["x"] = self._engine.unwrapped()
        if self._external:
            found["external_force"] = self._engine.external()
        return {name: Block(values[order], ids=ids) for name, values in found.items()}

    @property
    def _atoms(self) -> Instants:
        if self._instants is None:  # at the end of the first run line, or when the first of the coupled ones begins
            self._instants = Instants(self._ranks, self._engine)
        return self._instants

    def _keep_end(self, at: int) -> None:
        """The run line at a position of the deck is done: what is said after it may depend on where the atoms are."""
        self._ends[at] = self._atoms.take(self._engine)

    def _next_line(self) -> None:
        """After the last step of a run line: what the deck says up to the next one."""
        if not self._course.finish(self._engine):
            return
        check_box(self._engine)
        self._values = self._look()
        self._drift.now = Drifted()  # the energy was changed from outside
        if (md_dt := self._engine.dt) != self._md_dt:
            self._md_dt, self._dt = md_dt, self._every * md_dt

    def _bars_return(self) -> str:
        return bars_return(self._deck, self._course.place.at, str(self._engine.number("atom_style")))

    def _require(self, bar: str, what: str) -> None:
        if bar:
            raise SimulationFailed(f"At time {self._time:g}, {what}: {bar}")

    def _rebuild(self, place: Place) -> None:
        """Another instance, taken to a place in the deck."""
        now = self._engine
        # Refused where there is no way back, so that nothing is lost then.
        self._course.go_to(now, int(now.number("ntimestep")), now.time)
        now.close()
        ranks, seed, log = self._opening
        self._engine = Engine(ranks, seed, log, goes_on=True)
        self._course.replay(self._engine, place, self._put_end)
        self._broken = False

    def _put_end(self, at: int) -> None:
        instant = self._ends[at]
        self._atoms.put(self._engine, instant)
        self._move_to(instant.step, instant.time, instant.dt)
        self._engine.run("run 0 post no")  # so that thermo keywords have their values
        self._atoms.put(self._engine, instant)  # once more as it was: atoms just outside the box were wrapped

    def _settle(self, md_step: int, md_time: float) -> None:
        """After atoms were overwritten: step, time and dt, each atom on its rank, neighbour lists, forces, energies."""
        self._move_to(md_step, md_time, self._md_dt)
        self._course.set_up(self._engine)

    def _move_to(self, md_step: int, md_time: float, md_dt: float) -> None:
        engine = self._engine
        if md_step != engine.number("ntimestep") or md_time != engine.time:
            self._course.go_to(engine, md_step, md_time)
        if md_dt != engine.dt:
            engine.command(f"timestep {md_dt!r}")
        engine.command("displace_atoms all move 0 0 0 units box")  # sends atoms to their ranks, however far they moved
