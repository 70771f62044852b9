"""Files of somebody else, described in the run file, are played as whole runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import ran
from foreign import write
from recorded import NEEDS_ADIOS

from coupler.bulks.adios_engine import available
from coupler.bulks.bp5 import RECORDING, RecordReader

pytestmark = NEEDS_ADIOS
STEPS = 120
TASKS = [{"use": "propagator", "name": "p", "models": ["affine"]}]
RHO = {"unit": "kg/m3", "kind": "cell", "role": "state", "variable": "density"}
LIFT = {"unit": "1", "kind": "scalar", "role": "observable"}
BY_RANKS = """
import sys
import numpy as np
from mpi4py import MPI
from adios2 import Adios, Mode
comm = MPI.COMM_WORLD
adios = Adios(comm)
io = adios.declare_io("theirs")
io.set_engine("BP5")
io.set_parameter("NumSubFiles", "2")
density = io.define_variable("density", np.zeros(1), [2 * comm.size], [2 * comm.rank], [2])
t, engine = io.define_variable("t", np.zeros(1)), io.open(sys.argv[1], Mode.Write)
for k in range(30):
    engine.begin_step()
    engine.put(density, k + 2.0 * comm.rank + np.arange(2.0), Mode.Sync)
    if comm.rank == 0:
        engine.put(t, np.array([0.1 * k]), Mode.Sync)
    engine.end_step()
engine.close()
"""


def density(k: int) -> np.ndarray[Any, Any]:
    return np.sin(0.1 * k + np.linspace(0.0, 3.0, 10)).reshape(5, 2)


def theirs(path: Path) -> Path:
    """Two blocks of a global array in each step, as two writers would put them, with its time and a number."""

    def step(k: int) -> dict[str, Any]:
        blocks = [((0, 0), density(k)[:2]), ((2, 0), density(k)[2:])]
        return {"density": blocks, "t": np.float64(0.1 * k), "lift": np.float64(np.cos(0.1 * k))}

    return write(path, map(step, range(STEPS)), {"density": (5, 2)})


def test_a_bp5_file_is_learned_from(tmp_path: Path) -> None:
    """Shadow mode streams every state, and what arrives is what the file holds; in mode act a model takes over."""
    told = {"path": str(theirs(tmp_path / "theirs.bp")), "time": "t", "series": {"rho": RHO, "lift": LIFT}}
    settings: dict[str, Any] = {"use": "recording", "steps": STEPS - 1, "tasks": TASKS, "simulation": told}
    shadow = ran(tmp_path / "shadow", mode="shadow", output={"record": "bp5"}, **settings)
    assert shadow.code == 0, shadow.said
    reader = RecordReader(tmp_path / "shadow" / RECORDING)
    try:
        assert reader.steps.tolist() == list(range(STEPS - 1)) and np.allclose(reader.times, 0.1 * reader.steps)
        assert len(set(reader.dts)) == 1
        for k in range(len(reader)):
            arrays = reader.read(k)
            assert np.array_equal(arrays["rho"], density(k)) and arrays["lift"] == np.cos(0.1 * k)
    finally:
        reader.close()
    act = ran(tmp_path / "act", mode="act", **settings)
    assert act.code == 0, act.said
    assert act.summary["learned_fraction"] > 0.2 and act.summary["step_error"]["max"] < 0.01


def shown(folder: Path, ranks: int) -> dict[int, np.ndarray[Any, Any]]:
    """The density of the steps that the ranks of a run left as views."""
    steps = sorted({int(file.name.split(".")[0]) for file in (folder / "views").iterdir()})
    parts = {k: [np.load(folder / "views" / f"{k:08d}.rank{rank}.npz")["rho"] for rank in range(ranks)] for k in steps}
    return {k: np.concatenate(found) for k, found in parts.items()}


@pytest.mark.mpi
def test_ranks_read_their_rows_of_it(tmp_path: Path) -> None:
    told = {"path": str(theirs(tmp_path / "theirs.bp")), "time": "t", "series": {"rho": RHO}}
    settings: dict[str, Any] = {"rung": "mpi", "ranks": 2, "mode": "off", "tasks": [], "output": {"views": 13}}
    played = ran(tmp_path / "run", use="recording", steps=40, simulation=told, **settings)
    assert played.code == 0, played.said
    found = shown(tmp_path / "run", 2)
    assert len(found) > 8 and all(np.array_equal(rho, density(k)) for k, rho in found.items())


@pytest.mark.mpi
@pytest.mark.skipif(bool(available(mpi=True)), reason=available(mpi=True) or "-")
def test_a_file_that_ranks_wrote_together(tmp_path: Path) -> None:
    """Its data are in two files, data.0 with the blocks of two ranks."""
    path, mpiexec = tmp_path / "theirs.bp", Path(sys.executable).with_name("mpiexec")
    subprocess.run([mpiexec, "-n", "3", sys.executable, "-c", BY_RANKS, path], check=True, timeout=60)
    assert (path / "data.1").is_file()
    told = {"path": str(path), "time": "t", "series": {"rho": RHO}}
    settings: dict[str, Any] = {"mode": "off", "tasks": [], "output": {"views": 10}}
    played = ran(tmp_path / "run", use="recording", steps=29, simulation=told, **settings)
    assert played.code == 0, played.said
    found = shown(tmp_path / "run", 1)
    assert len(found) > 8 and all(np.array_equal(rho, k + np.arange(6.0)) for k, rho in found.items())
