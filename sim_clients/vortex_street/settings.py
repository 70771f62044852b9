"""What a vortex street is made of, checked as a whole before anything is allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sim_clients.vortex_street.lattice import SOUND_SPEED

MAX_SPEED = 0.17
"""Highest inflow speed, cells per lattice step: Mach 0.3, beyond which the method's compressibility errors show."""

MIN_RELAXATION_TIME = 0.51
"""Lowest relaxation time of shear (1/2 + 3 viscosity), below which a wake under-resolved near the cylinder blows up."""

CLEARANCE = 3
"""Cells that must lie between the cylinder and every boundary."""

STROUHAL = 0.2
"""Rough shedding frequency times diameter over inflow speed, blockage included; only for the check below."""

RESONANCE = (0.8, 1.25)
"""Shedding over lateral sound frequency where the method's sound, not the flow, would set the lift (seen in trials)."""


@dataclass(frozen=True)
class Flow:
    """The flow and its changes in time. Units: cells and lattice steps.

    Attributes:
        nx: Cells along the flow.
        ny: Cells across the flow.
        diameter: Of the cylinder, cells.
        center: Of the cylinder, cells from the lower left corner of the domain.
        reynolds: diameter * inflow_speed / viscosity, before the gust.
        inflow_speed: Before the gust, cells per lattice step.
        gust_time: Simulated time from which the inflow is faster; infinity for never.
        gust_factor: By how much.
        periodic: Whether the lateral boundaries are periodic rather than free-slip.
    """

    nx: int
    ny: int
    diameter: float
    center: tuple[float, float]
    reynolds: float
    inflow_speed: float
    gust_time: float
    gust_factor: float
    periodic: bool

    @property
    def viscosity(self) -> float:
        """Kinematic viscosity, cells^2 per lattice step; the gust does not change it."""
        return self.inflow_speed * self.diameter / self.reynolds

    def speed(self, time: float) -> float:
        """Inflow speed during the lattice step that begins at `time`, cells per lattice step."""
        return self.inflow_speed * self.gust_factor if time >= self.gust_time else self.inflow_speed

    def next_change(self, time: float) -> float:
        """Time of the next change of the inflow speed after `time`; infinity when none comes."""
        return math.inf if time >= self.gust_time else self.gust_time

    def check(self, sponge_length: int) -> None:
        """Raises ValueError, in a full sentence, for settings that do not go together."""
        if self.gust_time < 0:
            raise ValueError(f"gust_time = {self.gust_time:g} lies before the start; use a time >= 0, or inf for never")
        speeds = {self.speed(0.0), self.speed(math.inf)}
        if max(speeds) > MAX_SPEED:
            raise ValueError(
                f"the inflow reaches {max(speeds):.3g} cells per lattice step, but at most {MAX_SPEED} (Mach 0.3) is "
                "accurate: lower inflow_speed or gust_factor"
            )
        relaxation_time = 0.5 + 3 * self.viscosity
        if relaxation_time < MIN_RELAXATION_TIME:
            raise ValueError(
                f"reynolds = {self.reynolds:g} with diameter = {self.diameter:g} gives a relaxation time of "
                f"{relaxation_time:.4f}, but stability needs at least {MIN_RELAXATION_TIME}: raise diameter (more "
                "cells) or lower reynolds"
            )
        for speed in speeds:
            self._check_resonance(speed)
        right = self.nx - sponge_length - self.center[0]
        room = min(self.center[0], right, self.center[1], self.ny - self.center[1]) - self.diameter / 2
        if room < CLEARANCE:
            raise ValueError(
                f"a cylinder of diameter {self.diameter:g} at {self.center} comes within {room:g} cells of the "
                f"boundary of the {self.nx} x {self.ny} domain or of its sponge (the last {sponge_length} columns); "
                f"at least {CLEARANCE} are needed: move center, shrink diameter or raise nx or ny"
            )

    def _check_resonance(self, speed: float) -> None:
        """Refuses a wake that would shed in tune with sound between the lateral boundaries."""
        shedding = self.diameter / (STROUHAL * speed)
        sound = self.ny * (1 if self.periodic else 2) / SOUND_SPEED
        if RESONANCE[0] < sound / shedding < RESONANCE[1]:
            raise ValueError(
                f"at inflow speed {speed:.3g} the wake sheds about every {shedding:.0f} lattice steps, in tune with "
                f"sound between the lateral boundaries ({sound:.0f} steps), which would swell the lift: use lateral = "
                '"periodic", lower inflow_speed, or change ny or diameter'
            )
