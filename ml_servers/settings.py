"""What the core is told by the run file."""

from __future__ import annotations

import msgspec

from coupler.distribution import Share
from coupler.switch import Switch


class CoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the core is told by the run file.

    Attributes:
        run: Name of the run.
        tasks: Names of the tasks, in order.
        shares: What each rank of a task takes, by the task's name; the only one takes all where nothing is said.
        switch: Settings of the Switch.
        act: Whether learned states may be adopted (mode `act`).
        advise: Whether a dt may be advised (modes `advise` and `act`).
        coverage: Target coverage of the calibrated bound.
        max_horizon: Longest horizon, steps.
        credit: Messages that a rank may have in flight.
        overhead: See `ml_servers.budget`.
        invariants: Largest relative drift of an invariant through learned states, by name.
        records: Whether a recorder will ask for the states.
        first_epoch: Above all epochs that earlier servers of this run gave.
        token: Token in the run's folder in shared memory; empty when there is none.
    """

    run: str
    tasks: tuple[str, ...]
    switch: Switch
    shares: dict[str, tuple[Share, ...]] = {}
    act: bool = True
    advise: bool = True
    coverage: float = 0.9
    max_horizon: int = 100
    credit: int = 8
    overhead: float = 0.03
    invariants: dict[str, float] = {}
    records: bool = False
    first_epoch: int = 1
    token: str = ""
