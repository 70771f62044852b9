"""How the flow begins: quietly for sound, and with a push off symmetry, so that shedding sets in early."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sim_clients.vortex_street.settings import Flow


def velocity(flow: Flow, seed: int, perturbation: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Potential flow past the cylinder plus a weak solenoidal wave in the wake; both shape (nx, ny).

    Uniform flow up to the cylinder's face would start a sound wave that rings across the domain for thousands of steps.

    Args:
        flow: The setting.
        seed: Of the wave's phase and strength.
        perturbation: Largest lateral speed of the wave over the inflow speed; the seed takes 50 to 100 % of it.
    """
    random = np.random.default_rng(seed)
    phase, strength = random.uniform(0, 2 * math.pi), perturbation * random.uniform(0.5, 1.0)
    x = (np.arange(flow.nx) + 0.5 - flow.center[0])[:, None] / flow.diameter
    y = (np.arange(flow.ny) + 0.5 - flow.center[1])[None, :] / flow.diameter
    squared = np.maximum(x * x + y * y, 0.25)
    u_x = 1 - 0.25 * (x * x - y * y) / squared**2
    u_y = -0.5 * x * y / squared**2
    # Stream function: a sine of wavelength 5 diameters in an envelope around 3 diameters behind the center.
    number = 2 * math.pi / 5
    envelope = np.exp(-((x - 6) ** 2) / 16 - y * y) * (strength / number)
    wave = np.sin(number * x + phase)
    u_x = u_x - 2 * y * wave * envelope
    u_y = u_y - (number * np.cos(number * x + phase) - (x - 6) * 2 / 16 * wave) * envelope
    return flow.inflow_speed * u_x, flow.inflow_speed * u_y
