"""The states that a host has saved, for a rewind. Pure."""

from __future__ import annotations

import math

KEPT = 2
"""Saved states kept."""


class SavedStates(dict[int, object]):
    """Tokens of `Simulation.save` by step; the oldest beyond `KEPT` goes.

    Attributes:
        verified: Whether the present state may be kept: a rewind to one that was not directly integrated from a
            verified one would prove nothing.
        all_direct: Whether no learned state was ever adopted.
    """

    verified: bool = True
    all_direct: bool = True

    def keep(self, step: int, token: object) -> None:
        """Keeps a state, if it is verified."""
        if self.verified:
            self[step] = token
            while len(self) > KEPT:
                del self[min(self)]

    def due(self, step: int, every: int) -> bool:
        """Whether to keep the state of a direct step, so that a later one that fails can be taken again.

        So it is while all was direct, and the newest is at least `every` steps old, or there is none.
        """
        return self.all_direct and step - max(self, default=-math.inf) >= every

    def back_to(self, step: int) -> None:
        """The host goes back to the state of a step: later ones are of a branch that it leaves."""
        for later in [s for s in self if s > step]:
            del self[later]
        self.verified = True
