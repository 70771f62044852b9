"""Speed of the solvers, the baseline every coupling is judged by: `python -m benchmarks.solvers`.

A row is one coupling step of the demo grid of the vortex street (400 x 150 cells, 50 lattice steps) on one core.
`mlups` is million cell updates a second; `ratio` compares double precision with memory copies of the same volume (18
numbers moved for each cell and lattice step), single precision with double.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.table import judged
from coupler.ranks import Ranks
from sim_clients.vortex_street import VortexStreet

NX, NY, SUBSTEPS = 400, 150, 50
TURNS = 40


def times_us(work: Callable[[], object]) -> np.ndarray:
    """Wall time of each of TURNS calls after two to warm up, microseconds."""
    taken = []
    for _ in range(TURNS + 2):
        start = time.perf_counter()
        work()
        taken.append(1e6 * (time.perf_counter() - start))
    return np.array(taken[2:])


def street(precision: str) -> VortexStreet:
    """The demo case."""
    return VortexStreet(
        ranks=Ranks(),
        seed=1,
        nx=NX,
        ny=NY,
        diameter=16.0,
        center=(100.0, 75.0),
        reynolds=100.0,
        inflow_speed=0.1,
        substeps=SUBSTEPS,
        lateral="periodic",
        precision=precision,  # type: ignore[arg-type]
    )


def row(case: str, size: int, taken: np.ndarray, against: str, baseline_us: float) -> dict[str, Any]:
    middle, slow = np.percentile(taken, [50, 99])
    return {
        "case": case,
        "bytes": size,
        "p50_us": float(middle),
        "p99_us": float(slow),
        "ratio": float(middle / baseline_us),
        "against": against,
        "mlups": NX * NY * SUBSTEPS / float(middle),
    }


def rows() -> list[dict[str, Any]]:
    """Measures; one row a precision."""
    found = []
    source, target = np.ones((2, NX, 9, NY))
    copies = np.percentile(times_us(lambda: np.copyto(target, source)), 50) * SUBSTEPS
    against, baseline = "copying the populations once a lattice step", float(copies)
    for precision in ("double", "single"):
        simulation = street(precision)
        taken = times_us(lambda s=simulation: s.integrate(SUBSTEPS, 1))  # type: ignore[misc]
        size = simulation.snapshot().nbytes
        made = row(f"vortex street {NX} x {NY}, {precision}, one core", size, taken, against, baseline)
        found.append(judged(made, "mlups", at_least=40.0))
        if precision == "double":
            against, baseline = "double precision", found[0]["p50_us"]
    return found


def main() -> None:
    print(f"{'case':44} {'bytes':>9} {'p50 us':>9} {'p99 us':>9} {'MLUPS':>7}  ratio")
    for r in rows():
        print(
            f"{r['case']:44} {r['bytes']:9d} {r['p50_us']:9.0f} {r['p99_us']:9.0f} {r['mlups']:7.1f}  "
            f"{r['ratio']:.2f} of {r['against']}"
        )


if __name__ == "__main__":
    main()
