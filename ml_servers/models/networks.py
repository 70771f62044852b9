"""An ensemble of small networks that correct the affine map of latent coordinates.

Each of K members is a multilayer perceptron g, a[k+1] = affine(a[k], u) + s * g(a[k] / d, (u - c) / e). All K run in
one batched product. Networks are evaluated in NumPy; torch is imported only where they are trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml_servers.models.affine import Affine, bounded
from schemas.fields import Array

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The trained members.

    Attributes:
        base: The affine map that they correct.
        center: Subtracted from the inputs (latents, then controls), shape (r + m,).
        width: Divides the inputs, shape (r + m,).
        gain: Multiplies the outputs, shape (r,).
        weights: One array a layer, shape (K, inputs, outputs).
        biases: One array a layer, shape (K, 1, outputs).
    """

    base: Affine
    center: Floats
    width: Floats
    gain: Floats
    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]

    @property
    def members(self) -> int:
        """K."""
        return len(self.weights[0])

    def step(self, latents: Floats, controls: Floats) -> Floats:
        """One step by each member: latents (K, n, r) and controls (n, m) to latents (K, n, r)."""
        imposed = np.broadcast_to(controls, (len(latents), *controls.shape))
        hidden = (np.concatenate([latents, imposed], axis=2) - self.center) / self.width
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = np.tanh(hidden @ weight + bias)
        following: Floats = self.base.step(latents, controls) + self.gain * (
            hidden @ self.weights[-1] + self.biases[-1]
        )
        return following

    def course(self, latents: Floats, controls: Floats, horizon: int) -> Iterator[tuple[Floats, Floats]]:
        """Free-running forecasts under constant controls.

        The forecast follows the mean of the members' vector fields, which stays on the attractor as long as they agree
        (a mean of trajectories that drift apart does not). Beside it each member runs on its own.

        Yields:
            After each step the states, shape (n, r), and the rms distance of the members from them, shape (n,).
        """
        n = len(latents)
        both = np.concatenate([controls, controls])
        states = np.broadcast_to(np.concatenate([latents, latents]), (self.members, 2 * n, latents.shape[1]))
        for _ in range(horizon):
            following = bounded(self.step(states, both))
            mean = following[:, n:].mean(axis=0)
            following[:, n:] = mean
            states = following
            yield mean, np.sqrt(((following[:, :n] - mean) ** 2).sum(axis=2).mean(axis=0))

    def arrays(self) -> dict[str, Array]:
        """All of it as arrays by name."""
        found: dict[str, Array] = {"center": self.center, "width": self.width, "gain": self.gain}
        found |= {f"weights.{i}": w for i, w in enumerate(self.weights)}
        found |= {f"biases.{i}": b for i, b in enumerate(self.biases)}
        return found | self.base.arrays()

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> Ensemble:
        """The ensemble in arrays made by `arrays`."""
        layers = sum(name.startswith("weights.") for name in arrays)
        a = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
        return cls(
            Affine.of(arrays),
            a["center"],
            a["width"],
            a["gain"],
            tuple(a[f"weights.{i}"] for i in range(layers)),
            tuple(a[f"biases.{i}"] for i in range(layers)),
        )
