"""How the flow begins: quietly for sound, and with a push off symmetry, so that shedding sets in early."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sim_clients.vortex_street.settings import Flow


def fields(flow: Flow, seed: int, perturbation: float) -> tuple[NDArray[np.float64], ...]:
    """Potential flow past the cylinder plus a solenoidal wave in the wake, which makes shedding set in early.

    Uniform flow up to the cylinder's face would start a sound wave that rings across the domain for thousands of steps.
    The density follows Bernoulli's law for the potential flow only: vortices that drift with the flow have no pressure
    of first order.

    Args:
        flow: The setting.
        seed: Of the wave's phase and strength.
        perturbation: Largest lateral speed of the wave over the inflow speed; the seed takes 50 to 100 % of it.

    Returns:
        Density less 1, velocity along x and y (cells per lattice step), each of shape (nx, ny).
    """
    random = np.random.default_rng(seed)
    phase, strength = random.uniform(0, 2 * math.pi), perturbation * random.uniform(0.5, 1.0)
    x = (np.arange(flow.nx) + 0.5 - flow.center[0])[:, None] / flow.diameter
    y = (np.arange(flow.ny) + 0.5 - flow.center[1])[None, :] / flow.diameter
    squared = np.maximum(x * x + y * y, 0.25)
    u_x = 1 - 0.25 * (x * x - y * y) / squared**2
    u_y = -0.5 * x * y / squared**2
    excess = 1.5 * flow.inflow_speed**2 * (1 - u_x * u_x - u_y * u_y)
    # Stream function: a sine of wavelength 5 diameters around 6 diameters behind the center.
    number = 2 * math.pi / 5
    envelope = np.exp(-((x - 6) ** 2) / 16 - y * y) * (strength / number)
    wave = np.sin(number * x + phase)
    u_x = u_x - 2 * y * wave * envelope
    u_y = u_y - (number * np.cos(number * x + phase) - (x - 6) * 2 / 16 * wave) * envelope
    return excess, flow.inflow_speed * u_x, flow.inflow_speed * u_y
