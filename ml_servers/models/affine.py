"""The affine map of latent coordinates, a[k+1] = A a[k] + B u + b: dynamic mode decomposition with a constant term.

Long forecasts hang on the eigenvalues of A: an error of 1e-4 in a phase is one radian after 10,000 steps. Least squares
over single steps gives good eigenvectors but uses the data of n steps like n separate measurements of the phase
advance (error ~ n**-1/2). `refine` keeps the eigenvectors and fits each eigenvalue to the course of its coordinate
over whole segments (error ~ n**-3/2), as optimized DMD does for all at once (T. Askham and J. N. Kutz, SIAM J. Appl.
Dyn. Syst. 17, 380, 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.fields import Array

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Runs = list[tuple[int, int]]
"""Stretches [start, stop) of consecutive states."""

_ILL_CONDITIONED = 1e8
_SLOW = 0.05
_DECAY_OVER_RUN, _GROWTH_OVER_RUN = 0.02, 0.2
_LOCK = 0.1


@dataclass(frozen=True, slots=True)
class Affine:
    """The map.

    Attributes:
        advance: A, shape (r, r).
        control: B, shape (r, m).
        constant: b, shape (r,).
    """

    advance: Floats
    control: Floats
    constant: Floats

    def step(self, latents: Floats, controls: Floats) -> Floats:
        """One step of many states: latents (n, r) and controls (n, m) to latents (n, r)."""
        following: Floats = latents @ self.advance.T + controls @ self.control.T + self.constant
        return following

    def course(self, latents: Floats, controls: Floats, horizon: int) -> Iterator[tuple[Floats, float]]:
        """Free-running forecasts under constant controls: after each step the states, and 0 for the spread."""
        return run_free(self.step, latents, controls, horizon)

    def arrays(self) -> dict[str, Array]:
        """All of it as arrays by name."""
        return {"advance": self.advance, "control": self.control, "constant": self.constant}

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> Affine:
        """The map in arrays made by `arrays`."""
        advance, control, constant = (
            np.asarray(arrays[name], np.float64) for name in ("advance", "control", "constant")
        )
        return cls(advance, control, constant)


def bounded(latents: Floats) -> Floats:
    """Keeps a diverging forecast finite; 1e6 rms fluctuations is wrong by any measure."""
    return np.clip(latents, -1e6, 1e6)


def run_free(
    step: Callable[[Floats, Floats], Floats], latents: Floats, controls: Floats, horizon: int
) -> Iterator[tuple[Floats, float]]:
    """Forecasts by repeated steps of a single map: after each the states, and 0 for the spread."""
    for _ in range(horizon):
        latents = bounded(step(latents, controls))
        yield latents, 0.0


def transitions(runs: Runs) -> NDArray[np.int64]:
    """Indices of the states whose next state belongs to the same run."""
    parts = [np.arange(start, stop - 1) for start, stop in runs if stop - start > 1]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def fit(latents: Floats, controls: Floats, runs: Runs) -> Affine:
    """Least squares over all single steps within runs.

    Args:
        latents: Shape (n, r).
        controls: Shape (n, m). A control that did not vary gets a zero column of B: its effect is unknown.
        runs: Where states are consecutive.
    """
    now = transitions(runs)
    varying = np.ptp(controls[now], axis=0) > 0 if len(now) else np.zeros(controls.shape[1], bool)
    known = np.hstack([latents[now], controls[now][:, varying], np.ones((len(now), 1))])
    size = np.sqrt((known**2).mean(axis=0))
    size[size == 0] = 1.0
    solution = np.linalg.lstsq(known / size, latents[now + 1], rcond=1e-9)[0].T / size
    rank = latents.shape[1]
    control = np.zeros((rank, controls.shape[1]))
    control[:, varying] = solution[:, rank:-1]
    return Affine(solution[:, :rank], control, solution[:, -1])


def refine(model: Affine, latents: Floats, runs: Runs) -> Affine:
    """Fits the eigenvalues of A to whole runs, and takes a limit cycle for what it is.

    Each eigencoordinate about the fixed point is z[k] = c exp((s + i w) k) within a run: s and w are the slopes of
    log|z| and of its phase, common to all runs, c is free in each. Modes that decay or grow by more than 5 % a step
    keep the eigenvalue of least squares. Then two judgements, made where the data cannot tell the difference:

    - An eigenvalue is put on the unit circle when it is a growth of less than 20 % over the longest run (no growth goes
      on for long in a bounded system), or a decay of less than 2 %, or of less than two standard errors of s (20 % at
      most).
    - On the circle, a frequency within 0.1 radian over the longest run of a multiple of the strongest mode's frequency
      is set to that multiple: a limit cycle has one period.

    Whether they were right is for a back-test to say. Where the map has no single fixed point, defective eigenvectors
    or controls that vary, it is returned as it is.
    """
    lengths = [stop - start for start, stop in runs if stop - start > 2]
    values, vectors = np.linalg.eig(model.advance)
    if not lengths or np.any(model.control) or np.abs(values - 1).min() < 1e-6:
        return model
    if np.linalg.cond(vectors) > _ILL_CONDITIONED:
        return model
    inverse = np.linalg.inv(vectors).astype(np.complex128)
    fixed = np.linalg.solve(np.eye(len(values)) - model.advance, model.constant).astype(np.float64)
    coordinates: Complexes = (latents - fixed) @ inverse.T
    refined = values.astype(complex)
    for j, value in enumerate(values):
        if abs(np.log(max(abs(value), 1e-300))) < _SLOW and value.imag >= 0:
            refined[j] = _fitted(complex(value), coordinates[:, j], runs, max(lengths))
    energy = (np.abs(coordinates) ** 2).mean(axis=0) * (np.abs(vectors) ** 2).sum(axis=0)
    refined = _locked(refined, energy, _LOCK / max(lengths))
    for j, value in enumerate(values):
        if value.imag < 0:
            refined[j] = np.conj(refined[int(np.argmin(np.abs(values - np.conj(value))))])
    advance: Floats = ((vectors * refined) @ inverse).real
    return Affine(advance, model.control, fixed - advance @ fixed)


def _fitted(value: complex, course: Complexes, runs: Runs, longest: int) -> complex:
    """The eigenvalue whose powers follow the course of its coordinate best, on the unit circle where in doubt."""
    times, logs = [], []
    for start, stop in runs:
        if stop - start < 3:
            continue
        k = np.arange(stop - start) - (stop - start - 1) / 2
        z = course[start:stop]
        phases = np.unwrap(np.angle(z * np.exp(-1j * np.angle(value) * k)))
        log = np.log(np.maximum(np.abs(z), 1e-300)) + 1j * phases
        times.append(k)
        logs.append(log - log.mean())
    t, log = np.concatenate(times), np.concatenate(logs)
    spread = (t**2).sum()
    slope = (t * log).sum() / spread
    growth, turn = float(slope.real), float(slope.imag)
    error = float(np.sqrt(((log.real - growth * t) ** 2).mean() / spread))
    doubt = max(_DECAY_OVER_RUN, min(2 * error * longest, _GROWTH_OVER_RUN))
    if -doubt < growth * longest < _GROWTH_OVER_RUN:
        growth = 0.0
    if value.imag == 0:
        return complex(np.sign(value.real) * np.exp(growth))
    return complex(np.exp(growth + 1j * (np.angle(value) + turn)))


def _locked(values: Complexes, energy: Floats, tolerance: float) -> Complexes:
    """Sets frequencies on the unit circle to multiples of the strongest one's where they are within a tolerance."""
    angles = np.angle(values)
    neutral = (np.abs(np.abs(values) - 1) < 1e-12) & (angles > 0) & (angles < np.pi)
    if not neutral.any():
        return values
    first = angles[int(np.argmax(np.where(neutral, energy, -1.0)))]
    # Sampled at whole steps, a frequency above half a turn a step appears folded back.
    multiples = np.abs(np.angle(np.exp(1j * first * np.arange(1, 2 * len(values)))))
    locked = values.copy()
    for j in np.flatnonzero(neutral):
        nearest = multiples[int(np.argmin(np.abs(multiples - angles[j])))]
        if abs(nearest - angles[j]) < tolerance:
            locked[j] = np.exp(1j * nearest)
    return locked
