"""What a model costs that never learns anything: `python -m benchmarks useless`.

The example in mode `act`, its trainer working as ever, but on states that follow from nothing; wall time, start-up
counted, over that of the uncoupled run. The two take turns at going first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.runs import KEPT, STREET, Summary, fresh, run_case, slim
from benchmarks.table import BenchmarkFailed, Rows, judged, spread
from ml_servers.tasks.propagator import Propagator
from schemas.fields import Block, Snapshot
from schemas.run import SwitchSection

USE = "task.propagator.use=benchmarks.useless:Useless"
OVERHEAD = f"switch.overhead={SwitchSection().overhead}"
"""The default, which holds for a case of which nothing is known. The example allows more: its wake can be learned."""
SHORTEST_S = 180.0
"""An uncoupled run at least this long is what the target speaks of."""
PROBE_STEPS = 1000
"""Steps of a run that shows how long one takes here."""


class Useless(Propagator):
    """A Propagator that sees each state's distance from the first one times a random number of its own."""

    _first: Snapshot | None = None

    def observe(self, snapshot: Snapshot) -> None:
        """See `Task.observe`."""
        self._first = self._first or scrambled(snapshot, snapshot, 0.0)
        super().observe(scrambled(snapshot, self._first, float(self._random.standard_normal())))

    @functools.cached_property
    def _random(self) -> np.random.Generator:
        return np.random.default_rng(0)


def scrambled(snapshot: Snapshot, first: Snapshot, factor: float) -> Snapshot:
    """The first state plus `factor` times the distance from it; scalars (observables, controls) stay."""
    blocks = {}
    for name, block in snapshot.blocks.items():
        if block.array.ndim:
            origin = np.asarray(first[name], np.float64)
            array = (origin + factor * np.subtract(block.array, origin, dtype=np.float64)).astype(
                block.array.dtype, copy=False
            )
            blocks[name] = Block(array, block.offset, block.ids)
        else:
            blocks[name] = block
    return Snapshot(snapshot.step, snapshot.time, snapshot.dt, blocks, snapshot.controls_until)


def rows(seeds: Sequence[int], say: Callable[[str], None]) -> Rows:
    """Wall time of the useless run over that of the uncoupled one, over seeds."""
    steps = long_enough(say)
    ratios: dict[int, float | None] = {}
    spent: dict[int, float | None] = {}
    for turn, seed in enumerate(seeds):
        walls = {}
        for mode in ("off", "act") if turn % 2 else ("act", "off"):
            summary = one(mode, steps, seed)
            walls[mode] = summary["time"]["wall_s"]
            if mode == "act":
                spent[seed] = summary["time"]["train_s"]
        ratios[seed] = walls["act"] / walls["off"]
        say(f"seed {seed}: {walls['act']:.1f} s coupled, {walls['off']:.1f} s uncoupled, {ratios[seed]:.4f}")
    made = spread("useless model, wall time", ratios, unit="times", against="mode off") | {"steps": steps}
    return [judged(made, "high", at_most=1.05), spread("CPU time of its trainer", spent, unit="s")]


def long_enough(say: Callable[[str], None]) -> int:
    """Steps of an uncoupled run that is not shorter than `SHORTEST_S`; also warms the caches of compiled code."""
    probe = one("off", PROBE_STEPS, 0)["time"]["direct_step_s"]
    steps = math.ceil(1.1 * SHORTEST_S / probe)
    say(f"an uncoupled step takes {1e3 * probe:.1f} ms; {steps} steps are taken, for at least {SHORTEST_S:.0f} s")
    return steps


def one(mode: str, steps: int, seed: int) -> Summary:
    """One run.

    Raises:
        BenchmarkFailed: The model was of use, or nothing was trained.
    """
    name = f"useless-{mode}-{seed}"
    summary = run_case(STREET, fresh(name), [f"run.steps={steps}", f"run.mode={mode}", USE, OVERHEAD], seed=seed)
    slim(KEPT / name)
    if summary["models"] or summary["learned_fraction"]:
        raise BenchmarkFailed(f"the useless model was of use: {summary['models']}")
    if mode == "act" and not summary["time"]["train_s"]:
        raise BenchmarkFailed(f"the useless model was not trained; see {KEPT / name / 'logs'}")
    return summary
