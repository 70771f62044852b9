"""What a simulation process imports and how long that takes: `python -m benchmarks imports`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.runs import STREET, run_case
from benchmarks.table import BenchmarkFailed, Rows, judged, row, spread

CLIENT = ("coupler.connect", "coupler.coupling", "coupler.links.zeromq", "sim_clients.driver")
ALLOWED = {"msgpack", "msgspec", "numpy", "typing_extensions", "xxhash", "zmq"}
"""Packages that the client side may import, beside our own; msgspec takes typing_extensions where it is installed."""
OURS = {"coupler", "schemas", "sim_clients"}
TIMES = 7
STEPS = 20
PROGRAM = """
import json, sys, time
before = set(sys.modules)
began = time.perf_counter()
import {modules}
seconds = time.perf_counter() - began
new = {{name.partition(".")[0] for name in sys.modules if name not in before}} - sys.stdlib_module_names
print(json.dumps([seconds, sorted(name for name in new if "cython" not in name)]))  # Cython's are no real modules
"""


def rows(say: Callable[[str], None]) -> Rows:
    """Import time, imported packages, and whether a simulation process has loaded torch."""
    found = [fresh_import(CLIENT) for _ in range(TIMES + 1)][1:]  # the first one writes the compiled files
    seconds = [s for s, _ in found]
    packages = set(found[0][1])
    strange = sorted(packages - ALLOWED - OURS)
    time_row = row(
        "client import",
        unit="s",
        median=float(np.median(seconds)),
        low=min(seconds),
        high=max(seconds),
        values=seconds,
        packages=sorted(packages),
    )
    strange_row = spread("packages beyond those allowed", {0: float(len(strange))}, unit="1") | {"packages": strange}
    say(f"loaded: {', '.join(sorted(packages))}")
    say(f"{STEPS} steps of {STREET}, to see what its simulation processes load")
    return [
        judged(time_row, "median", at_most=0.4),
        judged(strange_row, "median", at_most=0.0),
        judged(spread("simulation with torch", {0: float(has_torch())}, unit="1"), "median", at_most=0.0),
    ]


def fresh_import(modules: tuple[str, ...]) -> tuple[float, list[str]]:
    """Seconds that an interpreter of its own takes to import modules, and the packages that this loads."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    program = PROGRAM.format(modules=", ".join(modules))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise BenchmarkFailed(f"the client cannot be imported: {done.stderr.strip()[-300:]}")
    seconds, packages = json.loads(done.stdout)
    return seconds, packages


def has_torch() -> bool:
    """Whether torch is loaded in a simulation process of the example at its end."""
    with tempfile.TemporaryDirectory() as folder:
        summary = run_case(STREET, Path(folder) / "run", [f"run.steps={STEPS}"])
    if summary["torch_in_simulation"] is None:
        raise BenchmarkFailed("the summary does not say whether torch was loaded")
    return bool(summary["torch_in_simulation"])
