"""The terms of a run, as its client is told them."""

from __future__ import annotations

import msgspec


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a client is told at its start and keeps to.

    Attributes:
        run: Name of the run.
        last_step: Step at which the run ends.
        dt: dt of direct steps until an Advice says otherwise; 0 leaves it to the simulation's own Snapshot.dt.
        deadline_s: Longest wait for the answer to a LEARNED Ask, seconds.
        max_message_bytes: Largest message accepted.
        digest: Whether arrays carry a digest.
    """

    run: str
    last_step: int
    dt: float = 0.0
    deadline_s: float = 2.0
    max_message_bytes: int = 1 << 30
    digest: bool = True
