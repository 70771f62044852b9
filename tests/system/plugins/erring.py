"""Rotors that tell an error of their steps, which no rotor has: the square of dt, more of it in a hard stretch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rotor import Rotor

from coupler.contracts import Invariant
from coupler.errors import SimulationFailed
from coupler.ranks import Ranks
from schemas.fields import Block, FieldSpec, Snapshot


class Erring:
    """A Rotor with observables `step_error`, and `total_error` since time 0; on the last rank alone they are not 0."""

    def __init__(
        self,
        *,
        ranks: Ranks,
        seed: int,
        dt: float = 0.1,
        hard: tuple[float, float] = (4.0, 6.0),
        factor: float = 10.0,
        returns: bool = True,
    ) -> None:
        """Makes the rotors. Args: hard: First and last time of steps whose error has the factor."""
        self.rotor = Rotor(ranks=ranks, seed=seed, dt=dt)
        self.hard, self.factor, self.returns = hard, factor, returns
        self.tells = ranks.rank == ranks.size - 1
        self.error = self.total = 0.0
        self.made = 0

    def fields(self) -> tuple[FieldSpec, ...]:
        errors = (FieldSpec(name, "<f8", (), "1", "scalar", "observable") for name in ("step_error", "total_error"))
        return (*self.rotor.fields(), *errors)

    def snapshot(self) -> Snapshot:
        shown = self.rotor.snapshot()
        errors = {"step_error": Block(np.array(-self.error)), "total_error": Block(np.array(self.total))}
        return Snapshot(shown.step, shown.time, shown.dt, {**shown.blocks, **errors}, shown.controls_until)

    def integrate(self, dt: float, n: int) -> None:
        hard = self.hard[0] - 1e-9 <= self.rotor.time < self.hard[1] - 1e-9
        self.rotor.integrate(dt, n)
        self.made += n
        self.error = self.tells * dt**2 * (self.factor if hard else 1.0)
        self.total += self.error

    def adopt(self, snapshot: Snapshot) -> None:
        self.rotor.adopt(snapshot)

    def save(self) -> object:
        return self.rotor.save(), self.error, self.total

    def restore(self, token: Any) -> None:
        if not self.returns:
            raise SimulationFailed("there is no way back")
        rotor, self.error, self.total = token
        self.rotor.restore(rotor)

    def invariants(self) -> Mapping[str, Invariant]:
        return self.rotor.invariants()
