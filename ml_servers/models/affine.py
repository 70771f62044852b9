"""The affine map of latent coordinates, a[k+1] = A a[k] + B u + b: dynamic mode decomposition with a constant term.

Long forecasts hang on the eigenvalues of A: an error of 1e-4 in a phase is one radian after 10,000 steps. Least squares
over single steps gives good eigenvectors but uses the data of n steps like n separate measurements of the phase
advance (error ~ n**-1/2). `refine` keeps the eigenvectors and fits each eigenvalue to the course of its coordinate
over whole segments (error ~ n**-3/2), as optimized DMD does for all at once (T. Askham and J. N. Kutz, SIAM J. Appl.
Dyn. Syst. 17, 380, 2018).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.fields import Array

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Runs = list[tuple[int, int]]
"""Stretches [start, stop) of consecutive states."""

_ILL_CONDITIONED = 1e8
_DRIFT_OVER_WINDOW = 0.02


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
        for _ in range(horizon):
            latents = bounded(self.step(latents, controls))
            yield latents, 0.0

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
    """Fits the eigenvalues of A to whole runs, and takes those whose modulus is statistically 1 to be on the circle.

    Each eigencoordinate about the fixed point is z[k] = c exp((s + i w) k) within a run: s and w are the slopes of
    log|z| and of its phase, common to all runs, c is free in each. An eigenvalue is put on the unit circle when |s| is
    below two of its standard errors, or when it would change the amplitude by less than 2 % over the longest run: the
    criterion for "this is a limit cycle, not a slow decay or growth", which the data cannot tell apart. Whether that
    was right is for a back-test to say. Modes that decay or grow by more than 5 % a step keep the eigenvalue of least
    squares.

    Where the map has no single fixed point, defective eigenvectors or controls that vary, it is returned as it is.
    """
    lengths = [stop - start for start, stop in runs if stop - start > 2]
    values, vectors = np.linalg.eig(model.advance)
    if (
        not lengths
        or np.any(model.control)
        or np.linalg.cond(vectors) > _ILL_CONDITIONED
        or np.abs(values - 1).min() < 1e-6
    ):
        return model
    fixed = np.linalg.solve(np.eye(len(values)) - model.advance, model.constant)
    coordinates = (latents - fixed) @ np.linalg.inv(vectors).T
    refined = values.astype(complex)
    for j, value in enumerate(values):
        if abs(np.log(max(abs(value), 1e-300))) < 0.05 and value.imag >= 0:
            refined[j] = _refined(complex(value), coordinates[:, j], runs, max(lengths))
    for j, value in enumerate(values):
        if value.imag < 0:
            refined[j] = np.conj(refined[int(np.argmin(np.abs(values - np.conj(value))))])
    advance = ((vectors * refined) @ np.linalg.inv(vectors)).real
    return Affine(advance, model.control, fixed - advance @ fixed)


def _refined(value: complex, course: Complexes, runs: Runs, longest: int) -> complex:
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
    error = np.sqrt(((log.real - growth * t) ** 2).mean() / spread)
    if abs(growth) < max(2 * error, _DRIFT_OVER_WINDOW / longest):
        growth = 0.0
    if value.imag == 0:
        return complex(np.sign(value.real) * np.exp(growth))
    return complex(np.exp(growth + 1j * (np.angle(value) + turn)))
