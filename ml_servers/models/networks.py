"""An ensemble of small networks that correct the affine map of latent coordinates.

Each of K members is a multilayer perceptron g, a[k+1] = affine(a[k], u) + s * g(a[k] / d, (u - c) / e). All K run in
one batched product. Networks are evaluated in NumPy; torch is imported only by `Training`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import cos, pi
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ml_servers.models.affine import Affine, Runs, bounded, transitions
from schemas.fields import Array

if TYPE_CHECKING:
    import torch

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


def untrained(
    base: Affine, latents: Floats, controls: Floats, runs: Runs, members: int, hidden: int, seed: int
) -> Ensemble:
    """Members with random first layers and a zero last one: they start as the affine map itself.

    Args:
        base: The affine map to correct.
        latents: Training states, shape (n, r); they set the scales of inputs and, by what `base` misses, of outputs.
        controls: Shape (n, m).
        runs: Where states are consecutive; at least one transition.
        members: K.
        hidden: Width of the two hidden layers.
        seed: Of the weights.
    """
    rng = np.random.default_rng(seed)
    now = transitions(runs)
    inputs = np.hstack([latents[now], controls[now]])
    width = inputs.std(axis=0)
    missed = latents[now + 1] - base.step(latents[now], controls[now])
    gain = np.maximum(np.sqrt((missed**2).mean(axis=0)), 1e-9)
    sizes = (inputs.shape[1], hidden, hidden, latents.shape[1])
    weights = [rng.standard_normal((members, a, b)) / np.sqrt(a) for a, b in pairwise(sizes)]
    weights[-1][:] = 0.0
    biases = [np.zeros((members, 1, b)) for b in sizes[1:]]
    biases[0] += 0.5 * rng.standard_normal(biases[0].shape)
    return Ensemble(base, inputs.mean(axis=0), np.where(width > 0, width, 1.0), gain, tuple(weights), tuple(biases))


class Training:
    """One round of training: Adam on the error of free-running rollouts, learning rate falling to almost zero.

    Each member sees batches of its own, so that members differ where the data leave them free. One thread, float64, no
    global random state.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        latents: Floats,
        controls: Floats,
        runs: Runs,
        *,
        updates: int,
        seed: int,
        rollout: int = 8,
        batch: int = 64,
        rate: float = 3e-3,
    ) -> None:
        """Takes over the weights of `ensemble`.

        Args:
            ensemble: Where to start.
            latents: Training states, shape (n, r).
            controls: Shape (n, m).
            runs: Where states are consecutive.
            updates: Updates in this round.
            seed: Of the batches.
            rollout: Steps of a rollout; fewer where no run is as long.
            batch: Rollouts in an update, for each member.
            rate: Learning rate at the start.

        Raises:
            ValueError: When no run holds a transition.
        """
        import torch

        longest = max((b - a for a, b in runs), default=0)
        self._steps = min(rollout, longest - 1)
        if self._steps < 1:
            raise ValueError("networks cannot train: no stretch of the training data holds two consecutive states")
        self._starts = np.concatenate([np.arange(a, max(a, b - self._steps)) for a, b in runs])
        self._ensemble, self._batch, self._rate = ensemble, batch, rate
        self._rng = np.random.default_rng(seed)
        self._latents, self._controls = torch.from_numpy(latents), torch.from_numpy(controls)
        layers = (*ensemble.weights, *ensemble.biases)
        self._parameters = [torch.from_numpy(layer.copy()).requires_grad_() for layer in layers]
        self._fixed = {
            name: torch.from_numpy(np.ascontiguousarray(array))
            for name, array in ensemble.arrays().items()
            if name in ("center", "width", "gain", "advance", "control", "constant")
        }
        self._optimizer = torch.optim.Adam(self._parameters, lr=rate)
        self._updates, self.done = updates, 0

    @property
    def finished(self) -> bool:
        """Whether all updates of the round are done."""
        return self.done >= self._updates

    def run(self, updates: int) -> float:
        """Makes some updates, with one thread; returns the mean rms error of the rollouts."""
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            losses = [self._update() for _ in range(min(updates, self._updates - self.done))]
        finally:
            torch.set_num_threads(threads)
        return float(np.sqrt(np.mean(losses))) if losses else float("nan")

    def ensemble(self) -> Ensemble:
        """The members as they are now."""
        arrays = [p.detach().numpy().copy() for p in self._parameters]
        half = len(arrays) // 2
        return replace(self._ensemble, weights=tuple(arrays[:half]), biases=tuple(arrays[half:]))

    def step(self, latents: torch.Tensor, controls: torch.Tensor) -> torch.Tensor:
        """`Ensemble.step` in torch: latents (K, n, r) and controls (K, n, m) to latents (K, n, r)."""
        import torch

        fixed, half = self._fixed, len(self._parameters) // 2
        hidden = (torch.cat([latents, controls], dim=2) - fixed["center"]) / fixed["width"]
        for weight, bias in zip(self._parameters[: half - 1], self._parameters[half:-1], strict=True):
            hidden = torch.tanh(torch.baddbmm(bias, hidden, weight))
        correction = torch.baddbmm(self._parameters[-1], hidden, self._parameters[half - 1])
        affine = latents @ fixed["advance"].T + controls @ fixed["control"].T + fixed["constant"]
        return affine + fixed["gain"] * correction

    def _update(self) -> float:
        import torch

        progress = self.done / self._updates
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * (0.01 + 0.99 * 0.5 * (1 + cos(pi * progress)))
        starts = torch.from_numpy(self._rng.choice(self._starts, (self._ensemble.members, self._batch)))
        states, loss = self._latents[starts], torch.zeros((), dtype=torch.float64)
        for k in range(self._steps):
            states = self.step(states, self._controls[starts + k])
            loss = loss + ((states - self._latents[starts + k + 1]) ** 2).sum(dim=2).mean()
        loss = loss / self._steps
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, 10.0)
        self._optimizer.step()
        self.done += 1
        return float(loss.detach())
