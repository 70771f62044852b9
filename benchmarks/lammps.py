"""LAMMPS: its users' benchmark decks in blocks against LAMMPS alone, what `shadow` costs, and the chosen dt over seeds.

`python -m benchmarks lammps` and `python -m benchmarks lammps_timestep`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.runs import KEPT, fresh, read_table, run_case, slim
from benchmarks.table import BenchmarkFailed, Row, Rows, judged, row, spread
from launch.plan import find_mpiexec

DECKS = ("in.lj", "in.eam", "in.chain", "in.ions")
RANKS = (1, 2, 4)
CASE = Path("examples/lammps_timestep.toml")
PAIRS = 10
SHADOW_TIME = 60.0
"""Simulated time of the runs that `shadow` is judged by: half a minute, so that the start of the server side counts for
what it is."""


def rows(say: Callable[[str], None]) -> Rows:
    """The decks on 1, 2 and 4 ranks, then `shadow` at 4,000 atoms, asked every 10 steps."""
    made = []
    for deck in DECKS:
        for ranks in RANKS:
            found = deck_on(deck, ranks)
            plain, blocks = (min(walls) for walls in zip(*found["walls"], strict=True))
            say(f"{deck} on {ranks}: {1e3 * plain / found['steps']:.2f} ms a step, bitwise {found['bitwise']}")
            case = f"{deck}, {found['atoms']} atoms, {ranks} ranks"
            made.append(
                row(
                    case,
                    against="LAMMPS alone",
                    p50_us=1e6 * blocks / found["steps"],
                    ratio=blocks / plain,
                    bitwise=found["bitwise"],
                )
            )
    return [*made, judged(shadow(say), "ratio", at_most=1.02)]


def deck_on(deck: str, ranks: int) -> dict[str, object]:
    """What `benchmarks.lammps_ranks` measures.

    Raises:
        BenchmarkFailed: It ended with an error.
    """
    command = [find_mpiexec() or "mpiexec", "-n", str(ranks), sys.executable, "-m", "mpi4py", "-m"]
    command += ["benchmarks.lammps_ranks", str(Path(__file__).parent / "decks" / deck)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise BenchmarkFailed(f"{deck} on {ranks} ranks: {done.stderr.strip().splitlines()[-1:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def shadow(say: Callable[[str], None]) -> Row:
    """Wall time of the loop in `shadow` over that of `off`: median of pairs, whose runs take turns at going first."""
    changes = ["simulation.every=10", f"run.end_time={SHADOW_TIME}"]
    ratios = []
    for turn in range(PAIRS):
        walls = {}
        for mode in ("off", "shadow") if turn % 2 else ("shadow", "off"):
            run_case(CASE, fresh("lammps-shadow"), [*changes, f"run.mode={mode}"], seed=1)
            walls[mode] = json.loads((KEPT / "lammps-shadow" / "simulation.json").read_text("utf-8"))["loop_s"]
        ratios.append(walls["shadow"] / walls["off"])
        say(f"shadow {walls['shadow']:.1f} s, off {walls['off']:.1f} s: {ratios[-1]:.3f}")
    made = row("shadow, 4,000 atoms on 2 ranks", against="mode off", ratio=float(np.median(ratios)))
    return made | {"low": min(ratios), "high": max(ratios), "n": PAIRS}


def timestep(seeds: Sequence[int], say: Callable[[str], None]) -> Rows:
    """The chosen dt against the best fixed one, an oracle and `fix dt/reset`, at one drift."""
    targets = {"over_fixed": 1.5, "over_oracle": 0.85, "over_dt_reset": 0.95}
    found: dict[str, dict[int, float | None]] = {key: {} for key in (*targets, "drift")}
    for seed in seeds:
        name = f"lammps-{seed}"
        judgement = run_case(CASE, fresh(name), [], seed=seed, reference=True)["judgement"]
        slim(KEPT / name)
        for key, values in found.items():
            values[seed] = judgement[key]
        say(f"seed {seed}: {', '.join(f'{key} {judgement[key]}' for key in found)}")
    ratios = [
        judged(spread(f"speed, {key}", found[key], unit="times"), "low", at_least=limit)
        for key, limit in targets.items()
    ]
    tolerance = read_table(CASE)["simulation"]["tolerance"]
    return [*ratios, judged(spread("largest drift of a window", found["drift"], unit="1"), "high", at_most=tolerance)]
