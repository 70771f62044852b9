"""VortexStreet on 1, 2 and 4 ranks: bitwise the same run, with a gust, an adopted state and a restored one on the way.

Run as a script (`mpiexec -n 2 python test_vortex_street_mpi.py`) it makes that run and prints a digest.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from coupler.ranks import MpiRanks, Ranks
from schemas.fields import copied
from sim_clients.vortex_street import VortexStreet


def run(ranks):
    """A run of 20 coupling steps on slabs of uneven width; rank 0 returns its digest."""
    simulation = VortexStreet(
        ranks=ranks,
        seed=1,
        nx=67,
        ny=32,
        diameter=6.0,
        center=(17.3, 16.2),  # on 4 ranks the cylinder lies across the first two slabs
        reynolds=40.0,
        inflow_speed=0.1,
        substeps=10,
        lateral="free_slip",
        sponge_length=16,
        gust_time=125.0,
    )
    simulation.integrate(10.0, 10)
    token, there = simulation.save(), copied(simulation.snapshot())
    simulation.integrate(10.0, 5)
    simulation.restore(token)
    simulation.integrate(10.0, 2)
    simulation.adopt(there)
    simulation.integrate(10.0, 10)
    snapshot = simulation.snapshot()
    slabs = ranks.gather(snapshot["populations"].copy())
    forces = ranks.gather((float(snapshot["lift"]), float(snapshot["drag"])))
    mass = ranks.allreduce(np.array([simulation.invariants()["mass"].value]), "sum")
    if ranks.rank > 0:
        return None
    assert len(set(forces)) == 1
    assert slabs[0].shape[0] == -(-67 // ranks.size)
    return f"{hashlib.sha256(np.concatenate(slabs).tobytes()).hexdigest()} {forces[0]} {mass[0]:.9f}"


def python_on(ranks, *arguments):
    command = [Path(sys.executable).with_name("mpiexec"), "-n", str(ranks), sys.executable, *arguments]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_gives_bitwise_the_same_run(ranks):
    done = python_on(ranks, "-m", "mpi4py", __file__)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == run(Ranks())


@pytest.mark.mpi
def test_one_rank_does_not_import_mpi():
    code = (
        "import sys; sys.argv = ['x']; import test_vortex_street_mpi as t; from coupler.ranks import Ranks;"
        "t.run(Ranks()); print('mpi4py' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[2]}"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False, env=environment
    )
    assert done.stdout.strip() == "False", done.stderr


if __name__ == "__main__":
    digest = run(MpiRanks())
    if digest is not None:
        sys.stdout.write(digest + "\n")
