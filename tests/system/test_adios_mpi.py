"""M MPI writers to N MPI readers over SST: every value of every step comes to exactly one reader."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from coupler.bulks.adios_engine import available

sys.path.insert(0, str(Path(__file__).parent))
pytestmark = [pytest.mark.mpi, pytest.mark.skipif(bool(available(mpi=True)), reason=available(mpi=True) or "-")]
SCRIPT = Path(__file__).with_name("adios_ranks.py")


def start(role: str, ranks: int, folder: Path, distribution: str) -> subprocess.Popen[str]:
    mpiexec = str(Path(sys.executable).with_name("mpiexec"))
    command = [mpiexec, "-n", str(ranks), sys.executable, "-m", "mpi4py", str(SCRIPT), role, str(folder), distribution]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)


def ended(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("distribution", ["steps", "blocks"])
@pytest.mark.parametrize(("writers", "readers"), [(4, 3), (1, 2), (3, 1)])
def test_every_value_comes_to_one_reader(tmp_path: Path, writers: int, readers: int, distribution: str) -> None:
    from adios_ranks import FIELDS, STEPS, truth

    with ExitStack() as stack:
        reading = start("read", readers, tmp_path, distribution)
        stack.callback(ended, reading)
        writing = start("write", writers, tmp_path, distribution)
        stack.callback(ended, writing)
        said, errors = reading.communicate(timeout=100)
        assert reading.returncode == 0, errors
        _, errors = writing.communicate(timeout=60)
        assert writing.returncode == 0, errors
    everyone = json.loads(said)
    for spec in FIELDS:
        for step in range(STEPS):
            parts = [taken[spec.name][step] for taken in everyone]
            if spec.kind == "scalar" and distribution == "blocks":  # goes to everybody
                parts = parts[:1]
            if distribution == "steps":
                assert all(not part for reader, part in enumerate(parts) if step % readers != reader)
            values = sorted(value for part in parts for value in part)
            assert values == [int(value) for value in truth(spec, step).ravel()], (spec.name, step)
