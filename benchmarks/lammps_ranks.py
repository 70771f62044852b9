"""What `benchmarks.lammps` starts under mpiexec: a deck by LAMMPS alone and in blocks, in turn; rank 0 prints JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from coupler.ranks import MpiRanks
from sim_clients.adapters.lammps import Lammps
from sim_clients.adapters.lammps_deck import split

TURNS = 3
EVERY = 10


def alone(commands: list[str], ranks: MpiRanks) -> tuple[float, np.ndarray]:
    """Wall time of the deck's run line by LAMMPS alone, set up before, and all velocities at its end by id."""
    import lammps

    engine = lammps.lammps(cmdargs=["-screen", "none", "-log", "none"], comm=ranks.comm)
    engine.commands_list([*commands[:-1], "run 0 post no"])
    began = time.perf_counter()
    engine.command(f"{commands[-1]} pre no post no")
    wall_s = time.perf_counter() - began
    v = np.array(engine.gather_atoms("v", 1, 3)).reshape(-1, 3)
    engine.close()
    return wall_s, v


def coupled(deck: str, steps: int, ranks: MpiRanks) -> tuple[float, np.ndarray]:
    """The same in blocks, through the adapter; its set-up lies before the time that counts."""
    simulation = Lammps(ranks=ranks, seed=0, input=deck, every=EVERY, particles=("v",), thermo=("temp",))
    began = time.perf_counter()
    for _ in range(steps // EVERY):
        simulation.integrate(simulation.snapshot().dt, 1)
    wall_s = time.perf_counter() - began
    block = simulation.snapshot().blocks["v"]
    ids, parts = zip(*ranks.bcast(ranks.gather((block.ids, block.array))), strict=True)
    return wall_s, np.concatenate(parts)[np.argsort(np.concatenate(ids))]


def main() -> None:
    """Measures one deck."""
    ranks, deck = MpiRanks(), sys.argv[1]
    commands = [command.text for command in split(Path(deck).read_text(encoding="utf-8"), deck)]
    steps = int(commands[-1].split()[1])
    walls: list[tuple[float, float]] = []
    same = True
    coupled(deck, EVERY, ranks)  # warms up, and lets the deck find its potential files
    for _ in range(TURNS):
        plain_s, plain = alone(commands, ranks)
        blocks_s, blocks = coupled(deck, steps, ranks)
        walls.append((plain_s, blocks_s))
        same = same and bool((plain == blocks).all())
    if ranks.rank == 0:
        sys.stdout.write(json.dumps({"walls": walls, "bitwise": same, "steps": steps, "atoms": len(plain)}) + "\n")


if __name__ == "__main__":
    main()
